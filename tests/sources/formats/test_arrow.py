import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.sources.formats import registry
from pipeline.work import Span
from tests.sources.formats.reading import blocks_of, rows_of, source_file, spec_of

TABLE = pa.table(
    {
        "n": range(1000),
        "text": [f"text {row}" for row in range(1000)],
        "kind": pa.array(["a", "b"] * 500).dictionary_encode(),
        "unused": pa.array([{"x": row} for row in range(1000)]),
    }
)
SCHEMA = pa.schema([("text", pa.string()), ("n", pa.int64()), ("kind", pa.string())])
ROWS = TABLE.select(["text", "n", "kind"]).to_pylist()


def as_stream(table: pa.Table, rows: int = 100, **options: Any) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema, **options) as writer:
        writer.write_table(table, rows)
    return sink.getvalue()


def as_file(table: pa.Table, rows: int = 100, **options: Any) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, table.schema, **options) as writer:
        writer.write_table(table, rows)
    return sink.getvalue()


def as_feather(table: pa.Table, rows: int = 100) -> bytes:
    sink = io.BytesIO()
    feather.write_feather(table, sink, chunksize=rows, compression="lz4")
    return sink.getvalue()


WRITERS = {"stream": as_stream, "file": as_file, "feather": as_feather}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("rows", [1, 100, 1000])
def test_rows_are_read_with_their_places(tmp_path: Path, name: str, rows: int) -> None:
    path = tmp_path / "a.arrow"
    path.write_bytes(WRITERS[name](TABLE, rows))
    assert rows_of(path, SCHEMA) == (ROWS, [])
    blocks = blocks_of(path, SCHEMA)
    assert [place for block in blocks for place in block.positions.to_pylist()] == list(range(1000))
    assert max(block.rows for block in blocks) <= 512


@pytest.mark.parametrize("name", WRITERS)
def test_a_look_gives_types_and_names(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.feather"
    path.write_bytes(WRITERS[name](TABLE))
    with path.open("rb") as opened:
        look = registry.look(opened, source_file(path), ["kind", "text", "none"], spec_of(path))
    assert look.types == {"kind": TABLE.schema.field("kind").type, "text": pa.string()}
    assert list(look.names) == TABLE.schema.names
    path.write_bytes(b"no arrow")
    with path.open("rb") as opened:
        assert not registry.look(opened, source_file(path), ["text"], spec_of(path)).readable


@pytest.mark.parametrize("name", WRITERS)
def test_columns_that_the_file_lacks_are_null(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.arrow"
    path.write_bytes(WRITERS[name](TABLE))
    good, bad = rows_of(path, pa.schema([("none", pa.int8())]))
    assert (good, bad) == ([{"none": None}] * 1000, [])


def test_rows_that_are_not_needed_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.arrow"
    path.write_bytes(as_stream(TABLE))
    file, spec = source_file(path), spec_of(path)
    span = Span(file=file, kind="file", start=0, stop=file.size, rows=None)
    with path.open("rb") as opened:
        blocks = list(registry.blocks(opened, span, SCHEMA, spec, 2**20, lambda first, count: first >= 500))
    assert sum(block.rows for block in blocks) == 1000
    assert sum(block.rows for block in blocks if block.columns is None) == 500


@pytest.mark.parametrize("name", WRITERS)
@settings(max_examples=60, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_a_prefix_and_one_bad_row(name: str, share: float) -> None:
    content = WRITERS[name](TABLE)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.arrow"
        path.write_bytes(content[: int(share * len(content))])
        good, bad = rows_of(path, SCHEMA)
    assert good == ROWS[: len(good)]
    assert [place for place, _ in bad] == [len(good)]


def test_a_stream_that_ends_between_batches_is_truncated(tmp_path: Path) -> None:
    path = tmp_path / "a.arrow"
    path.write_bytes(as_stream(TABLE)[:-8])
    good, bad = rows_of(path, SCHEMA)
    assert good == ROWS
    assert bad == [(1000, "the stream is truncated: the file ends without the mark of its end")]
    path.write_bytes(as_stream(TABLE) * 2)
    good, bad = rows_of(path, SCHEMA)
    assert good == ROWS
    assert [error.startswith("the stream ends here, but data follows") for _, error in bad] == [True]


@pytest.mark.parametrize("name", WRITERS)
@settings(max_examples=150, deadline=None)
@given(at=st.integers(0, 10**6), count=st.integers(1, 40), seed=st.integers(0, 999))
def test_whatever_bytes_are_broken_reading_never_raises(name: str, at: int, count: int, seed: int) -> None:
    content = bytearray(WRITERS[name](TABLE.slice(0, 60), 20))
    at %= len(content)
    content[at : at + count] = np.random.default_rng(seed).bytes(count)[: len(content) - at]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.arrow"
        path.write_bytes(content)
        rows_of(path, SCHEMA)


def broken_strings(*values: bytes) -> pa.Array:
    return pa.Array.from_buffers(pa.string(), len(values), pa.array(values, pa.binary()).buffers())


def test_broken_utf8_is_a_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "a.arrow"
    path.write_bytes(as_stream(pa.table({"text": broken_strings(b"a", b"\xff", b"c")})))
    good, bad = rows_of(path)
    assert [row["text"] for row in good] == ["a", "c"]
    assert bad == [(1, "column 'text' is not valid UTF-8")]


def test_offsets_that_lead_nowhere_are_not_followed(tmp_path: Path) -> None:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, pa.schema([("text", pa.string())])) as writer:
        writer.write_batch(pa.record_batch([pa.array(["x", "y"])], names=["text"]))
    place = sink.getvalue().index(np.array([0, 1, 2], np.int32).tobytes())
    content = bytearray(sink.getvalue())
    content[place : place + 12] = np.array([0, 2**30, 2**31 - 1], np.int32).tobytes()
    path = tmp_path / "a.arrow"
    path.write_bytes(content)
    good, bad = rows_of(path)
    assert good == []
    assert [(place, error.startswith("the file can't be read from here on: ")) for place, error in bad] == [(0, True)]


@pytest.mark.parametrize("name", WRITERS)
def test_a_length_beyond_the_file_is_not_asked_for(name: str, tmp_path: Path) -> None:
    content = WRITERS[name](TABLE)
    sizes: list[int] = []

    class Watched(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            sizes.append(-1 if size is None else size)
            return super().read(size)

    path = tmp_path / "a.arrow"
    path.write_bytes(content)
    file, spec = source_file(path), spec_of(path)
    span = Span(file=file, kind="file", start=0, stop=file.size, rows=None)
    for at in range(8, len(content) - 8, 97):
        broken = bytearray(content)
        broken[at : at + 8] = b"\xff\xff\xff\xff\xff\xff\xff\x7f"
        list(registry.blocks(Watched(broken), span, SCHEMA, spec, 2**20, lambda first, count: True))
    assert min(sizes) >= 0
    assert max(sizes) <= len(content)


def test_rows_over_the_limit_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.arrow"
    path.write_bytes(as_file(pa.table({"text": ["a", "x" * 5000, "b"]})))
    good, bad = rows_of(path, max_row_bytes=1000)
    assert [row["text"] for row in good] == ["a", "b"]
    assert bad == [(1, "the row is larger than limits.max_row_bytes (1000)")]


def test_what_datasets_saves_is_read(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["no", "yes"]),
            "grid": datasets.Array2D((2, 2), "int32"),
        }
    )
    rows = {"text": ["a", "b"], "label": [0, 1], "grid": [[[1, 2], [3, 4]]] * 2}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path))
    (path,) = tmp_path.glob("*.arrow")
    schema = pa.schema([("text", pa.string()), ("label", pa.int64()), ("grid", pa.list_(pa.list_(pa.int32())))])
    good, bad = rows_of(path, schema)
    assert bad == []
    assert good == [{"text": text, "label": label, "grid": [[1, 2], [3, 4]]} for text, label in (("a", 0), ("b", 1))]
