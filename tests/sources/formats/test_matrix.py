"""Every format, packed every way, from every kind of storage: the same documents come out."""

import csv
import gzip
import html
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from pipeline.config import LimitSpec, SourceSpec
from pipeline.sources.listing import list_sources
from pipeline.sources.reader import SliceSpec, read_slices
from pipeline.sources.survey import survey
from pipeline.storage import Folder
from pipeline.work import Unit
from tests.servers import S3Server, moto_server

TEXTS = [f"text {row}: é, 日本 \u2028 & <b>" + " word" * (row % 50) for row in range(300)]
Writer = Callable[[list[str]], bytes]


def as_jsonl(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def as_csv(texts: list[str]) -> bytes:
    sink = io.StringIO()
    csv.writer(sink).writerows([["text"], *([text] for text in texts)])
    return sink.getvalue().encode()


def as_tsv(texts: list[str]) -> bytes:
    return "".join(f"{text}\t\n" for text in ["text", *texts]).encode()


def as_lines(texts: list[str]) -> bytes:
    return "".join(f"{text}\n" for text in texts).encode()


def as_parquet(texts: list[str]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": texts}), sink, row_group_size=100)
    return sink.getvalue()


def as_arrow(texts: list[str]) -> bytes:
    sink = io.BytesIO()
    table = pa.table({"text": texts})
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, 100)
    return sink.getvalue()


TABLES: dict[str, Writer] = {
    "jsonl": as_jsonl,
    "csv": as_csv,
    "tsv": as_tsv,
    "lines": as_lines,
    "parquet": as_parquet,
    "arrow": as_arrow,
}
DOCUMENTS: dict[str, Writer] = {
    "txt": lambda texts: texts[0].encode(),
    "html": lambda texts: f"<title>t</title><pre>{html.escape(texts[0])}</pre>".encode(),
}
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}
CASES = [
    (name, pack) for name in [*TABLES, *DOCUMENTS] for pack in PACKERS if not (pack and name in ("parquet", "arrow"))
]


@pytest.fixture(scope="module")
def moto() -> Iterator[S3Server]:
    with moto_server() as server:
        server.make_bucket("bucket")
        yield server


@pytest.mark.parametrize("storage", ["disk", "memory", "s3"])
@pytest.mark.parametrize(("name", "pack"), CASES)
def test_the_same_documents_come_out(tmp_path: Path, name: str, pack: str, storage: str, moto: S3Server) -> None:
    roots = {
        "disk": str(tmp_path),
        "memory": f"memory://{tmp_path.name}",
        "s3": f"s3://bucket/{tmp_path.name}",
    }
    folder = Folder(roots[storage], moto.storage_options if storage == "s3" else {})
    if name in TABLES:
        texts = TEXTS
        files = {"0": TABLES[name](texts[:200]), "1": TABLES[name](texts[200:])}
    else:
        texts = TEXTS[:12]
        files = {f"{row:02}": DOCUMENTS[name]([text]) for row, text in enumerate(texts)}
    for stem, content in files.items():
        folder.write(f"{stem}.{name}{pack}", PACKERS[pack](content))
    spec = SourceSpec(
        path=roots[storage],
        text="text",
        format="lines" if name == "lines" else "auto",
        storage_options=folder.options,
    )
    found = survey(list_sources(spec), spec)
    read = []
    for spans in found.spans:
        unit = Unit(unit_id="u", spans=spans, sources=tuple(range(len(spans))))
        for each in read_slices(
            unit, SliceSpec(schema=found.schema, source=spec, carried=(), limits=LimitSpec(), rows=100)
        ):
            assert each.dead_letters.num_rows == 0
            read += each.documents.column("text").to_pylist()
    assert read == texts
