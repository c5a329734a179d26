"""Whatever bytes a file holds: rows, dead letters or an error in words, and every row that is known of is one of them."""

import io
import itertools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from pipeline.config import LimitSpec, SourceSpec
from pipeline.errors import InputError
from pipeline.sources.columns import column_names
from pipeline.sources.formats import registry
from pipeline.sources.listing import list_sources
from pipeline.sources.reader import SliceSpec, read_slices
from pipeline.sources.spans import cut
from pipeline.sources.survey import survey
from pipeline.work import Unit
from tests.sources.formats.test_matrix import DOCUMENTS, PACKERS, TABLES

ROWS = 40
TEXTS = [f'row {row}: é, 日本 \\ud800 <b> {{"a": [' + " word" * (row % 9) for row in range(ROWS)]
COLUMNS = pa.table(
    {
        "id": [f"d{row}" for row in range(ROWS)],
        "text": TEXTS,
        "kept": [[{"a": row, "b": None}, {"a": None, "b": "x"}][: row % 3] for row in range(ROWS)],
        "cat": pa.array(["x", "y", None, "z"] * (ROWS // 4)).dictionary_encode(),
    }
)

SCHEMA = COLUMNS.schema.set(3, pa.field("cat", pa.string()))


def parquet() -> bytes:
    sink = io.BytesIO()
    pq.write_table(COLUMNS, sink, row_group_size=7)
    return sink.getvalue()


def arrow(new: Any) -> bytes:
    sink = io.BytesIO()
    with new(sink, COLUMNS.schema) as writer:
        writer.write_table(COLUMNS, 7)
    return sink.getvalue()


def jsonl() -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in COLUMNS.to_pylist())


VALID: dict[str, list[bytes]] = {
    "jsonl": [jsonl()],
    "csv": [b'id,text,kept,cat\n1,"a ""b""\n",2,x\n2,"open,\n3,c,,\n'],
    "tsv": [TABLES["tsv"](TEXTS)],
    "lines": [TABLES["lines"](TEXTS)],
    "parquet": [parquet()],
    "arrow": [arrow(pa.ipc.new_stream), arrow(pa.ipc.new_file)],
    "txt": [DOCUMENTS["txt"](TEXTS)],
    "html": [
        DOCUMENTS["html"](TEXTS),
        b"<!doctype html><table><td>a<td>b</table><textarea>&#xD800;&#0;&bogus;</textarea>",
    ],
}
CASES = [(name, pack) for name in VALID for pack in PACKERS if not (pack and name in ("parquet", "arrow"))]


@st.composite
def contents(draw: Any, name: str, pack: str) -> bytes:
    """Of the format, unless some bytes of it, or of what it was packed into, are others."""
    content = draw(st.sampled_from(VALID[name]) | st.binary(max_size=200))
    if draw(st.booleans()):
        content = draw(mutated(content))
    packed = PACKERS[pack](content)
    return draw(mutated(packed)) if draw(st.booleans()) else packed


@st.composite
def mutated(draw: Any, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(changed)))
        odd = [
            b"",
            b"\0",
            b"\xff" * 4,
            b"\n",
            b'"',
            b"{",
            b"[" * 3000,
            b"\xef\xbb\xbf",
            b"\xed\xa0\x80",
            b"\\ud800",
            b"1e999",
        ]
        changed[at : at + draw(st.integers(0, 8))] = draw(st.sampled_from(odd) | st.binary(max_size=8))
    return bytes(changed[: draw(st.integers(0, len(changed)))] if draw(st.integers(0, 3)) == 0 else changed)


@pytest.mark.parametrize(("name", "pack"), CASES)
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_bytes_are_rows_dead_letters_or_an_error_in_words(name: str, pack: str, data: st.DataObject) -> None:
    some = ("kept", "cat") if name in ("jsonl", "csv", "parquet", "arrow") else ()
    keep = [column for column in some if data.draw(st.booleans())]
    content = data.draw(contents(name, pack))
    folder = Path(tempfile.mkdtemp())
    try:
        (folder / f"a.{name}{pack}").write_bytes(content)
        found = outcome(folder, name, keep, data.draw(st.sampled_from([3, 1000])))
    finally:
        shutil.rmtree(folder)
    event(found)


STRINGS = st.text(st.characters(), max_size=4) | st.sampled_from(["\ud800", "a", ""])  # halves of surrogate pairs too
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | STRINGS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(STRINGS, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    values=st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys(["id", "text", "kept", "cat"], JSON)), max_size=3)
)
def test_any_json_values_are_rows_dead_letters_or_an_error_in_words(values: list[dict[str, Any]]) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        (folder / "a.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in values))
        event(outcome(folder, "jsonl", ["kept", "cat"], 100))
        (folder / "b.jsonl").write_bytes(jsonl())
        event(outcome(folder, "jsonl", ["kept", "cat"], 100))
    finally:
        shutil.rmtree(folder)


def outcome(folder: Path, name: str, keep: list[str], slice_rows: int) -> str:
    spec = SourceSpec(
        path=str(folder),
        text="text",
        id="id" if keep else None,
        keep=tuple(keep),
        format="lines" if name == "lines" else "auto",
    )
    files = list_sources(spec)
    names = column_names(spec, spec.keep)
    try:
        found = survey(files, spec, partitions(spec))
        schema, spans, planned = found.schema, found.spans, "planned"
    except InputError as error:
        # A file may become so after it was planned.
        planned = type(error).__name__
        schema = pa.schema([SCHEMA.field(name) for name in names])
        spans = list(cut(registry.extent(file, None, spec) for file in files))
    counts = [
        count_rows(Unit(unit_id="u", spans=group, sources=tuple(range(len(group)))), schema, spec, slice_rows)
        for group in spans
    ]
    rows, letters = (sum(column) > 0 for column in zip(*counts, strict=True)) if counts else (0, 0)
    return f"{planned}{', rows' if rows else ''}{', dead letters' if letters else ''}"


def partitions(spec: SourceSpec) -> tuple[str, ...]:
    return ("cat",) if "cat" in spec.keep else ()


def count_rows(unit: Unit, schema: pa.Schema, spec: SourceSpec, slice_rows: int) -> tuple[int, int]:
    """(documents, dead letters), all accounted for: of spans that say how many rows they have, too."""
    limits = LimitSpec(max_row_bytes=2**20)
    slices = list(
        read_slices(
            unit,
            SliceSpec(
                schema=schema,
                source=spec,
                carried=spec.keep,
                limits=limits,
                rows=slice_rows,
                partition_by=partitions(spec),
            ),
        )
    )
    assert [each.first_row for each in slices] == [0, *itertools.accumulate(each.num_rows for each in slices)][
        : len(slices)
    ]
    documents = sum(each.documents.num_rows for each in slices)
    letters = sum(each.dead_letters.num_rows for each in slices)
    assert documents + letters == sum(each.num_rows for each in slices)
    known = [span.rows for span in unit.spans]
    if None not in known:
        assert documents + letters == sum(count for count in known if count is not None)
    for each in slices:
        each.documents.validate(full=True)
        for error in each.dead_letters["error"].to_pylist():
            assert len(error.splitlines()) == 1
            assert 0 < len(error) <= 2000
    return documents, letters
