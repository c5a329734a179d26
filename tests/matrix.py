"""The same documents in every format and compression, embedded from a store, against those of a plain JSONL file.

`python -m tests.matrix URL MODEL FOLDER` prints the cells of one store as JSON: for stores that need a process of their own.
"""

import csv
import gzip
import html
import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import zstandard

from pipeline.sources.formats.registry import FORMS
from pipeline.storage import Folder
from tests import documents, inline
from tests.inline import read_table, spec_of, vectors_of

DOCUMENTS = [
    {"id": "a", "title": "Oil, \"up\"", "text": "The market of new york went up, they said: \"up\"; 7 people saw it."},
    {"id": "b", "title": "", "text": "서울 날씨가 좋은 영화입니다"},
    {"id": "c", "title": "中文", "text": "中文句子。北京天氣很好，電影也很好。"},
    {"id": "d", "title": "it's", "text": "naïve café 🙂 people's government & <company>"},
    {"id": "e", "title": "long", "text": "was it so? no! " * 30 + "end"},
    {"id": "f", "title": "again", "text": "The market of new york went up, they said: \"up\"; 7 people saw it."},
]  # fmt: skip
CHUNK = {"max_tokens": 24, "overlap_tokens": 4}
COMPRESS: Mapping[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


def _jsonl() -> Iterator[tuple[str, bytes]]:
    yield "docs.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in DOCUMENTS).encode()


def _delimited(name: str, delimiter: str, quoting: int) -> Iterator[tuple[str, bytes]]:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, quoting=quoting, quotechar=None if quoting == csv.QUOTE_NONE else '"')
    writer.writerows([["id", "title", "text"], *([row["id"], row["title"], row["text"]] for row in DOCUMENTS)])
    yield name, out.getvalue().encode()


def _lines() -> Iterator[tuple[str, bytes]]:
    yield "docs.txt", "".join(row["text"] + "\n" for row in DOCUMENTS).encode()


def _text() -> Iterator[tuple[str, bytes]]:
    for row in DOCUMENTS:
        yield f"deep/{row['id']}.md", row["text"].encode()


def _html() -> Iterator[tuple[str, bytes]]:
    for row in DOCUMENTS:
        title, text = html.escape(row["title"]), html.escape(row["text"])
        yield f"{row['id']}.html", f"<html><head><title>{title}</title></head><p>{text}</p></html>".encode()


def _arrow() -> Iterator[tuple[str, bytes]]:
    sink = io.BytesIO()
    rows = pa.Table.from_pylist(DOCUMENTS)
    with ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    yield "docs.arrow", sink.getvalue()


def _parquet() -> Iterator[tuple[str, bytes]]:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(DOCUMENTS), sink)
    yield "docs.parquet", sink.getvalue()


def _pdf() -> Iterator[tuple[str, bytes]]:
    for row in DOCUMENTS:
        yield f"{row['id']}.pdf", documents.pdf([[row["text"]]])


def _docx() -> Iterator[tuple[str, bytes]]:
    for row in DOCUMENTS:
        yield f"{row['id']}.docx", documents.docx(documents.paragraph(row["text"]))


def _pptx() -> Iterator[tuple[str, bytes]]:
    for row in DOCUMENTS:
        yield f"{row['id']}.pptx", documents.pptx([(documents.shape(row["text"]), "")])


def _epub() -> Iterator[tuple[str, bytes]]:
    for row in DOCUMENTS:
        yield f"{row['id']}.epub", documents.epub([f"<html><body><p>{html.escape(row['text'])}</p></body></html>"])


def _ipynb() -> Iterator[tuple[str, bytes]]:
    for row in DOCUMENTS:
        yield f"{row['id']}.ipynb", documents.notebook([("markdown", row["text"])])


def _eml() -> Iterator[tuple[str, bytes]]:
    for row in DOCUMENTS:
        yield f"{row['id']}.eml", documents.mail(row["text"])


def _mbox() -> Iterator[tuple[str, bytes]]:
    yield "docs.mbox", documents.mbox([documents.mail(row["text"]) for row in DOCUMENTS])


FORMATS: Mapping[str, Callable[[], Iterator[tuple[str, bytes]]]] = {
    "parquet": _parquet,
    "jsonl": _jsonl,
    "csv": lambda: _delimited("docs.csv", ",", csv.QUOTE_MINIMAL),
    "tsv": lambda: _delimited("docs.tsv", "\t", csv.QUOTE_NONE),
    "arrow": _arrow,
    "lines": _lines,
    "text": _text,
    "html": _html,
    "pdf": _pdf,
    "docx": _docx,
    "pptx": _pptx,
    "epub": _epub,
    "ipynb": _ipynb,
    "eml": _eml,
    "mbox": _mbox,
}
TEXT_ALONE = ("lines", "text", "pdf", "docx", "pptx", "epub", "ipynb", "eml", "mbox")
COLUMNS: Mapping[str, tuple[str, ...]] = {**dict.fromkeys(TEXT_ALONE, ()), "html": ("title",)}
"""What a format carries beside the text; id and title where it isn't said."""
CELLS = [(name, end) for name in FORMATS for end in (COMPRESS if FORMS[name].packable else [""])]
Cell = tuple[str, str]


def write_corpora(folder: Path) -> None:
    """All documents in every format and compression, each in a folder of its own."""
    for name, end in CELLS:
        for path, data in FORMATS[name]():
            target = folder / folder_of((name, end)) / (path + end)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(COMPRESS[end](data))


def folder_of(cell: Cell) -> str:
    return cell[0] + cell[1].replace(".", "-")


def upload(folder: Path, url: str, options: Mapping[str, Any]) -> None:
    target = Folder(url, options)
    for path in folder.rglob("*"):
        if path.is_file():
            target.write(path.relative_to(folder).as_posix(), path.read_bytes())


def works(cell: Cell, url: str, options: Mapping[str, Any], model: str, folder: Path, *, chunked: bool) -> bool:
    """Whether the cell's documents have the same rows and vectors as those of a plain JSONL file on the disk."""
    expected = _embedded(("jsonl", ""), str(folder / "corpora"), {}, model, folder / f"expected-{chunked}", chunked)
    found = _embedded(cell, url, options, model, folder / f"{folder_of(cell)}-{chunked}", chunked)
    names = [name for name in COLUMNS.get(cell[0], ("id", "title", "doc_id")) if name in expected.column_names]
    names += ["text", "n_tokens", *(["chunk_index", "chunk_start", "chunk_end"] if chunked else [])]
    one, other = _in_order(expected, names), _in_order(found, names)
    if cell[0] in ("pdf", "pptx"):  # the end of a page is part of the text
        other = _without_page_ends(other)
    same = one.select(names).to_pylist() == other.select(names).to_pylist()
    return same and bool(np.abs(vectors_of(one) - vectors_of(other)).max() <= 1e-6)


def _without_page_ends(rows: pa.Table) -> pa.Table:
    whole = rows.column("text").to_pylist()
    texts = [text.removesuffix("\n\f") for text in whole]
    changed = {"text": pa.array(texts, pa.large_string())}
    if "chunk_end" in rows.column_names:
        cut = [len(one) - len(other) for one, other in zip(whole, texts, strict=True)]
        ends = rows.column("chunk_end")
        changed["chunk_end"] = pa.array(
            [end - less for end, less in zip(ends.to_pylist(), cut, strict=True)], ends.type
        )
    for name, values in changed.items():
        rows = rows.set_column(rows.column_names.index(name), name, values)
    return rows


def _embedded(cell: Cell, url: str, options: Mapping[str, Any], model: str, table: Path, chunked: bool) -> pa.Table:
    name = cell[0]
    columns = COLUMNS.get(name, ("id", "title"))
    source = {
        "path": f"{url}/{folder_of(cell)}",
        "format": "lines" if name == "lines" else "auto",
        "id": "id" if "id" in columns else None,
        "keep": ["title"] if "title" in columns else [],
        "storage_options": dict(options),
    }
    if not table.exists():
        inline.embed(spec_of("", model, table, source=source, chunk=CHUNK if chunked else None))
    return read_table(table)


def _in_order(rows: pa.Table, names: list[str]) -> pa.Table:
    return rows.sort_by([(name, "ascending") for name in names])


def main(arguments: list[str]) -> None:
    url, model, folder = arguments
    cells = [
        [*cell, chunked, works(cell, url, {}, model, Path(folder), chunked=chunked)]
        for chunked in (False, True)
        for cell in CELLS
    ]
    print(json.dumps(cells))


if __name__ == "__main__":
    main(sys.argv[1:])
