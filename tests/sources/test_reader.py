import datetime
import functools
import gzip
import io
import json
import random
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.config import LimitSpec, SourceSpec
from pipeline.errors import SourceChanged, StorageError
from pipeline.schema import DEAD_LETTERS
from pipeline.sources import isolated
from pipeline.sources.formats import parquet, registry
from pipeline.sources.listing import list_sources
from pipeline.sources.reader import SliceSpec, read_slices
from pipeline.sources.survey import survey
from pipeline.storage import Folder
from pipeline.work import Slice, Span, Unit
from tests.servers import S3Server, moto_server, rclone_server

LIMITS = LimitSpec()
BOM = b"\xef\xbb\xbf"


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, S3Server]]:
    with moto_server() as moto, rclone_server(tmp_path_factory.mktemp("rclone")) as rclone:
        for server in (moto, rclone):
            server.make_bucket("bucket")
        yield {"moto": moto, "rclone": rclone}


def units_of(spec: SourceSpec, partition_by: Sequence[str] = ()) -> tuple[pa.Schema, list[Unit]]:
    found = survey(list_sources(spec), spec, partition_by)
    units = [
        Unit(unit_id=f"u{index}", spans=spans, sources=tuple(range(index * 100, index * 100 + len(spans))))
        for index, spans in enumerate(found.spans)
    ]
    return found.schema, units


def read(
    path: Path | str,
    *,
    slice_rows: int = 1000,
    limits: LimitSpec = LIMITS,
    partition_by: tuple[str, ...] = (),
    schema: pa.Schema | None = None,
    **options: Any,
) -> tuple[pa.Table, list[dict[str, Any]]]:
    """All documents and dead letters of a source."""
    types = {"schema": options.pop("schema_types")} if "schema_types" in options else {}
    spec = SourceSpec(**{"path": str(path), "text": "text", **options, **types})
    found, units = units_of(spec, partition_by)
    slices = [
        each
        for unit in units
        for each in read_slices(
            unit,
            SliceSpec(
                schema=schema or found, source=spec, carried=(*spec.keep, *partition_by), limits=limits, rows=slice_rows
            ),
        )
    ]
    documents = pa.concat_tables([each.documents for each in slices])
    letters = pa.concat_tables([each.dead_letters for each in slices])
    assert letters.schema == DEAD_LETTERS
    assert documents.num_rows + letters.num_rows == sum(each.num_rows for each in slices)
    for error in letters.column("error").to_pylist():
        assert "\n" not in error
        assert len(error) < 300
        assert "Traceback" not in error
    return documents, letters.to_pylist()


def write_lines(path: Path, *lines: Any) -> list[int]:
    """Write bytes, strings and JSON values as lines; returns where each begins."""
    positions, content = [], b""
    for line in lines:
        positions.append(len(content))
        raw = line if isinstance(line, bytes) else (line if isinstance(line, str) else json.dumps(line)).encode()
        content += raw + b"\n"
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return positions


def numbers(count: int) -> list[int]:
    """Incompressible, and the same every time."""
    random_source = random.Random(0)
    return [random_source.getrandbits(64) for _ in range(count)]


def errors(letters: list[dict[str, Any]]) -> list[str]:
    return [letter["error"] for letter in letters]


# --- documents


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_jsonl_rows_become_documents(tmp_path: Path, name: str) -> None:
    rows = [{"id": "a", "text": "one", "n": 1}, {"id": "b", "text": "", "n": None}, {"text": "zwei ü", "id": "c"}]
    positions = write_lines(tmp_path / name, *rows[:2], b"", b"  \r", rows[2])
    documents, letters = read(tmp_path, id="id", keep=("n",))
    assert letters == []
    assert documents.to_pylist() == [
        {"id": "a", "text": "one", "n": 1, "source": 0, "position": 0},
        {"id": "b", "text": "", "n": None, "source": 0, "position": positions[1]},
        {"id": "c", "text": "zwei ü", "n": None, "source": 0, "position": positions[4]},
    ]
    assert documents.schema.types == [pa.string(), pa.large_string(), pa.int64(), pa.int32(), pa.int64()]


def test_parquet_rows_become_documents_with_positions_in_the_file(tmp_path: Path) -> None:
    table = pa.table({"text": [f"t{row}" for row in range(25_000)], "n": range(25_000), "unused": range(25_000)})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=9000)
    documents, letters = read(tmp_path, keep=("n",))
    assert letters == []
    assert documents.column("position").to_pylist() == documents.column("n").to_pylist() == list(range(25_000))
    assert documents.column("source").to_pylist() == [0] * 9000 + [100] * 9000 + [200] * 7000
    assert documents.column("id")[24_999].as_py() == f"{tmp_path}/a.parquet:24999"


@pytest.mark.parametrize("kind", ["moto", "rclone"])
def test_stores_give_the_same_documents_as_the_disk(tmp_path: Path, kind: str, servers: dict[str, S3Server]) -> None:
    table = pa.table({"id": range(5000), "text": [f"text {row} é" for row in range(5000)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2000)
    write_lines(tmp_path / "b.jsonl", *table.to_pylist())
    write_lines(tmp_path / "c.jsonl.gz", *table.to_pylist())
    folder = Folder(f"s3://bucket/{tmp_path.name}", servers[kind].storage_options)
    for path in tmp_path.iterdir():
        folder.write(path.name, path.read_bytes())
    documents, letters = read(folder.url, id="id", storage_options=folder.options)
    assert letters == []
    assert documents.num_rows == 15_000
    assert documents == read(tmp_path, id="id")[0]


def test_several_texts_are_joined_and_nulls_skipped(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", {"a": "1", "b": "2"}, {"a": None, "b": "2"}, {"a": "1"}, {}, {"a": "", "b": ""})
    documents, letters = read(tmp_path, text=("a", "b"))
    assert documents.column("text").to_pylist() == ["1\n2", "2", "1", "\n"]
    assert errors(letters) == ["the text (column 'a', 'b') is null"]


def test_a_byte_order_mark_and_carriage_returns_are_tolerated(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(BOM + b'{"text": "x"}\r\n{"text": "y\\u2028"}\r\n{"text": "z"}')
    documents, letters = read(tmp_path)
    assert letters == []
    assert documents.column("text").to_pylist() == ["x", "y\u2028", "z"]
    assert documents.column("position").to_pylist() == [0, 18, 39]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array([2**63 + 1], pa.uint64()), "9223372036854775809"),
        (pa.array([-5], pa.int8()), "-5"),
        (pa.array([b"\x00\xff"]), "00ff"),
        (pa.array([b"\x00\xff"], pa.binary(2)), "00ff"),
        (pa.array([datetime.date(2020, 1, 2)]), "2020-01-02"),
        (pa.array([Decimal("1.50")], pa.decimal128(9, 2)), "1.50"),
        (pa.array([Decimal("0.0000000001")], pa.decimal128(12, 10)), "0.0000000001"),
        (pa.array([1_000_000], pa.timestamp("us")), "1970-01-01 00:00:01.000000"),
        (pa.array([1_000_000], pa.timestamp("us", "Europe/Berlin")), "1970-01-01 00:00:01.000000Z"),
        (pa.array(["x"]).dictionary_encode(), "x"),
    ],
)
def test_ids_have_one_form_per_type(tmp_path: Path, values: pa.Array, expected: str) -> None:
    pq.write_table(pa.table({"key": values, "text": ["x"]}), tmp_path / "a.parquet")
    documents, _ = read(tmp_path, id="key", keep=("key",))
    assert documents.column("id").to_pylist() == [expected]
    assert documents.num_columns == 5


def test_folders_names_fill_in_what_the_file_lacks(tmp_path: Path) -> None:
    for value in ("1", "2", "__HIVE_DEFAULT_PARTITION__"):
        (tmp_path / f"k={value}").mkdir()
        pq.write_table(pa.table({"text": [f"p{value[0]}"] * 2}), tmp_path / f"k={value}" / "a.parquet")
    write_lines(tmp_path / "k=2" / "b.jsonl", {"text": "own", "k": 7}, {"text": "null", "k": None}, {"text": "folder"})
    documents, letters = read(tmp_path, partition_by=("k",))
    assert letters == []
    found = sorted(zip(documents.column("text").to_pylist(), documents.column("k").to_pylist(), strict=True))
    assert found == [("folder", 2), ("null", None), ("own", 7)] + [("p1", 1)] * 2 + [("p2", 2)] * 2 + [("p_", None)] * 2


def test_columns_that_some_files_lack_are_null_there(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["x"], "k": pa.array([1], pa.int8())}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": ["y"]}), tmp_path / "b.parquet")
    pq.write_table(pa.table({"other": ["y"] * 600}), tmp_path / "c.parquet")
    pq.write_table(pa.table({"text": ["z"], "k": pa.array([2**40])}), tmp_path / "d.parquet")
    documents, letters = read(tmp_path, keep=("k",))
    assert documents.select(["text", "k"]).to_pylist() == [
        {"text": "x", "k": 1},
        {"text": "y", "k": None},
        {"text": "z", "k": 2**40},
    ]
    assert errors(letters) == ["the text (column 'text') is null"] * 600


def test_nested_and_extension_columns_are_kept(tmp_path: Path) -> None:
    table = pa.table(
        {
            "text": ["x"],
            "tags": pa.array([["a", None]], pa.large_list(pa.large_string())),
            "meta": pa.array([{"a": 1, "b": [1.5]}]),
            "map": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())),
            "when": pa.array([0], pa.timestamp("ms", "UTC")),
            "view": pa.array(["v"], pa.string_view()),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    documents, letters = read(tmp_path, keep=("tags", "meta", "map", "when", "view"))
    assert letters == []
    (row,) = documents.to_pylist()
    assert (row["tags"], row["meta"], row["map"], row["view"]) == (["a", None], {"a": 1, "b": [1.5]}, [("k", 1)], "v")


# --- bad rows


def test_bad_lines_are_dead_letters_with_their_reason(tmp_path: Path) -> None:
    good = {"id": "1", "text": "x", "n": 1, "f": 1.5, "b": True, "l": ["x"], "s": {"a": 1}}
    bad = [
        (b'{"id": "2", "text": "x"', "malformed JSON"),
        (b'{"id": "2", "text": "\xff"}', "the line is not valid UTF-8 (byte 21)"),
        (b'{"id": "2", "text": "\\ud800"}', "column 'text': is not valid UTF-8"),
        (b'{"id": "\\udc00", "text": "x"}', "column 'id': is not valid UTF-8"),
        (b"[1]", "the line holds an array, not a JSON object"),
        (b"null", "the line holds null, not a JSON object"),
        (b'"\\ud800"', "the line holds a string, not a JSON object"),
        (b"[" * 100_000, "malformed JSON: nested too deeply"),
        (b'{"id": "2", "text": "x", "f": NaN}', "column 'f': NaN is no JSON value"),
        (b'{"id": "2", "text": "x", "n": ' + b"1" * 5000 + b"}", "column 'n': an integer of so many digits is no"),
        ({"id": None, "text": "x"}, "the id (column 'id') is null"),
        ({"id": "2", "text": None}, "the text (column 'text') is null"),
        ({"id": "2"}, "the text (column 'text') is null"),
        ({"id": 2, "text": "x"}, "column 'id': an integer does not fit string"),
        ({**good, "n": True}, "column 'n': true or false does not fit int64"),
        ({**good, "n": 1.0}, "column 'n': a number does not fit int64"),
        ({**good, "n": 2**63}, "column 'n': an integer out of the range of int64 does not fit"),
        ({**good, "f": 2**53 + 1}, "column 'f': the number can't be held exactly by double"),
        (b'{"id": "2", "text": "x", "f": 1e999}', "column 'f': the number can't be held exactly by double"),
        ({**good, "f": "1"}, "column 'f': a string does not fit double"),
        ({**good, "b": 1}, "column 'b': an integer does not fit bool"),
        ({**good, "l": "x"}, "column 'l': a string does not fit list<item: string>"),
        ({**good, "l": [1]}, "column 'l': an integer does not fit string"),
        ({**good, "s": {"a": 1, "z": 2}}, "column 's': the key 'z' is not among those of struct<a: int64>"),
        ({**good, "s": [1]}, "column 's': an array does not fit struct<a: int64>"),
    ]
    positions = write_lines(tmp_path / "a.jsonl", *[good] * 500, *(line for line, _ in bad), good)
    types = {"n": "int64", "s": "struct<a: int64>"}  # else late rows widen them
    documents, letters = read(tmp_path, id="id", keep=("n", "f", "b", "l", "s"), schema_types=types)
    assert documents.num_rows == 501
    for letter, position, (line, reason) in zip(letters, positions[500:-1], bad, strict=True):
        assert letter["error"].startswith(reason), line
        assert letter["position"] == position
        assert (letter["stage"], letter["source"], letter["path"]) == ("read", 0, f"{tmp_path}/a.jsonl")


def test_a_dead_letter_keeps_what_is_known_of_its_row(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", {"id": "1", "text": "x", "n": 1}, {"id": None, "text": "y"}, {"id": "3"})
    _, (no_id, no_text) = read(tmp_path, id="id")
    assert (no_id["id"], no_id["text"]) == (None, "y")
    assert (no_text["id"], no_text["text"]) == ("3", None)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_a_line_over_the_limit_is_skipped(tmp_path: Path, name: str) -> None:
    long = {"text": "y" * 3_000_000}
    positions = write_lines(tmp_path / name, {"text": "a"}, long, {"text": "b"}, b"x" * 1001, {"text": "c"}, long)
    documents, letters = read(tmp_path, limits=LimitSpec(max_row_bytes=1000))
    assert documents.column("text").to_pylist() == ["a", "b", "c"]
    assert errors(letters) == ["the line is longer than limits.max_row_bytes (1000)"] * 3
    assert [letter["position"] for letter in letters] == [positions[1], positions[3], positions[5]]


def test_a_parquet_row_over_the_limit_is_left_out(tmp_path: Path) -> None:
    table = pa.table({"id": range(4), "text": ["a", "x" * 2000, "b", "c"], "l": [["y"], [], ["z" * 100] * 50, None]})
    pq.write_table(table, tmp_path / "a.parquet")
    documents, letters = read(tmp_path, id="id", keep=("l",), limits=LimitSpec(max_row_bytes=1000))
    assert documents.column("text").to_pylist() == ["a", "c"]
    assert errors(letters) == ["the row is larger than limits.max_row_bytes (1000)"] * 2
    assert [letter["position"] for letter in letters] == [1, 2]


def broken_strings(*values: bytes) -> pa.Array:
    return pa.Array.from_buffers(pa.string(), len(values), pa.array(values, pa.binary()).buffers())


def test_broken_utf8_in_parquet_is_a_dead_letter_per_row(tmp_path: Path) -> None:
    table = pa.table(
        {
            "id": broken_strings(b"1", b"\xff", b"3", b"4", b"5"),
            "text": broken_strings(b"a", b"b", b"\xfe", b"d", b"e"),
            "k": broken_strings(b"a", b"b", b"c", b"\xc3", b"e"),
            "l": pa.ListArray.from_arrays([0, 1, 2, 3, 4, 5], broken_strings(b"a", b"b", b"c", b"d", b"\xff")),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    documents, letters = read(tmp_path, id="id", keep=("k", "l"))
    assert documents.column("id").to_pylist() == ["1"]
    assert errors(letters) == [f"column {name!r} is not valid UTF-8" for name in ("id", "text", "k", "l")]
    assert [letter["id"] for letter in letters] == [None, "3", "4", "5"]
    assert [letter["position"] for letter in letters] == [1, 2, 3, 4]


def test_a_parquet_file_that_no_longer_fits_the_schema_makes_dead_letters(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["x", "y"], "n": [1, 1000]}), tmp_path / "a.parquet")
    planned = pa.schema([("text", pa.string()), ("n", pa.int8())])
    documents, letters = read(tmp_path, keep=("n",), schema=planned)
    assert documents.column("n").to_pylist() == [1]
    assert errors(letters) == ["column 'n' does not fit int8"]


# --- broken files


def parquet_bytes(rows: int, row_group_size: int) -> bytes:
    sink = io.BytesIO()
    table = pa.table({"text": [f"text number {row} " * 5 for row in range(rows)]})
    pq.write_table(table, sink, row_group_size=row_group_size, data_page_size=4096, use_dictionary=False)
    return sink.getvalue()


@pytest.mark.parametrize("content", [b"", b"PAR1", b"x" * 1000, parquet_bytes(10, 10)[:-6]])
def test_a_broken_footer_is_one_letter_for_the_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.parquet").write_bytes(content)
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "b.parquet")
    documents, (letter,) = read(tmp_path)
    assert documents.num_rows == 1
    assert letter["error"].startswith("the file is no readable Parquet file: ")
    assert letter["position"] is None
    assert letter["path"] == f"{tmp_path}/a.parquet"


@pytest.mark.parametrize("slice_rows", [100, 5000])
def test_a_broken_page_costs_the_rest_of_its_row_group(tmp_path: Path, slice_rows: int) -> None:
    content = bytearray(parquet_bytes(30_000, 10_000))
    chunk = pq.ParquetFile(io.BytesIO(content)).metadata.row_group(1).column(0)
    middle = chunk.data_page_offset + chunk.total_compressed_size // 2
    content[middle : middle + 500] = b"\xff" * 500
    (tmp_path / "a.parquet").write_bytes(content)
    documents, letters = read(tmp_path, slice_rows=slice_rows)
    lost = [letter["position"] for letter in letters]
    assert 1000 < len(lost) < 9000
    assert lost == list(range(lost[0], 20_000))
    assert documents.column("position").to_pylist() == [*range(lost[0]), *range(20_000, 30_000)]
    assert all(error.startswith("the row group can't be read from here on: ") for error in errors(letters))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(0, 255))
def test_whatever_byte_of_a_parquet_file_is_broken_every_row_is_accounted_for(at: int, count: int, value: int) -> None:
    content = bytearray(parquet_bytes(300, 100))
    at = at % len(content)
    content[at : at + count] = bytes([value]) * len(content[at : at + count])
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "a.parquet").write_bytes(content)
        pq.write_table(pa.table({"text": ["x"]}), Path(folder) / "b.parquet")
        try:
            documents, letters = read(folder)
        except Exception as error:
            assert type(error).__name__ == "InputError"  # noqa: PT017 - a footer that lies about its schema
            return
        assert documents.num_rows + len(letters) >= 2


def test_truncated_gzip_keeps_the_rows_before(tmp_path: Path) -> None:
    rows = [{"text": f"text {row} {number}"} for row, number in enumerate(numbers(20_000))]
    positions = write_lines(tmp_path / "a.jsonl.gz", *rows)
    whole = (tmp_path / "a.jsonl.gz").read_bytes()
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    documents, (letter,) = read(tmp_path)
    kept = documents.num_rows
    assert kept > 5000
    assert documents.column("text").to_pylist() == [row["text"] for row in rows[:kept]]
    assert letter["position"] == positions[kept]
    assert letter["error"] == "the gzip stream is truncated: the file ends before its data does"


def test_corrupt_gzip_keeps_the_rows_before(tmp_path: Path) -> None:
    rows = [{"text": f"text {row} {number}"} for row, number in enumerate(numbers(20_000))]
    positions = write_lines(tmp_path / "a.jsonl", *rows, b'{"text": "unfini')
    packer = zlib.compressobj(wbits=31)
    content = packer.compress((tmp_path / "a.jsonl").read_bytes()[:-1]) + packer.flush(zlib.Z_FULL_FLUSH)
    (tmp_path / "a.jsonl").unlink()
    (tmp_path / "a.jsonl.gz").write_bytes(content + b"\xff" * 5000)
    documents, (letter,) = read(tmp_path)
    assert documents.column("text").to_pylist() == [row["text"] for row in rows]
    assert letter["position"] == positions[-1]
    assert letter["error"] == "the gzip stream is corrupt from here on (invalid block type)"


@settings(max_examples=60, deadline=None)
@given(at=st.integers(0, 10_000), count=st.integers(1, 40), seed=st.integers(0, 1000))
def test_whatever_byte_of_a_gzip_file_is_broken_reading_never_raises(at: int, count: int, seed: int) -> None:
    content = bytearray(gzip.compress(b"".join(b'{"text": "%d"}\n' % number for number in numbers(300)), mtime=0))
    at = at % len(content)
    content[at : at + count] = random.Random(seed).randbytes(len(content[at : at + count]))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "a.jsonl.gz").write_bytes(content)
        write_lines(Path(folder) / "b.jsonl", {"text": "x"})
        documents, letters = read(folder)
    assert documents.num_rows > 1 or letters


def test_a_wrong_checksum_at_the_end_keeps_all_rows(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl.gz", *[{"text": "x"}] * 100)
    content = bytearray((tmp_path / "a.jsonl.gz").read_bytes())
    content[-8] ^= 0xFF
    (tmp_path / "a.jsonl.gz").write_bytes(content)
    documents, (letter,) = read(tmp_path)
    assert documents.num_rows == 100
    assert letter["error"] == "the gzip stream is corrupt from here on (incorrect data check)"


def test_gzip_members_and_padding_are_read_and_garbage_is_not(tmp_path: Path) -> None:
    one = gzip.compress(b'{"text": "x"}\n' * 3)
    (tmp_path / "a.jsonl.gz").write_bytes(one + one + b"\0" * 1000)
    (tmp_path / "b.jsonl.gz").write_bytes(b"")
    documents, letters = read(tmp_path)
    assert (documents.num_rows, letters) == (6, [])
    (tmp_path / "b.jsonl.gz").write_bytes(b'{"text": "not packed"}\n')
    documents, letters = read(tmp_path)
    assert (documents.num_rows, letters) == (7, [])
    (tmp_path / "b.jsonl.gz").write_bytes(b'\x00{"text": "neither packed nor text"}\n')
    documents, (letter,) = read(tmp_path)
    assert documents.num_rows == 6
    assert letter["error"] == "the gzip stream is corrupt from here on (incorrect header check)"


# --- slices


def small_corpus(folder: Path) -> tuple[SourceSpec, pa.Schema, Unit]:
    """One unit of four files in three formats, with bad rows in each."""
    write_lines(folder / "a.jsonl", *[{"id": f"a{row}", "text": f"t{row}"} if row % 7 else b"{" for row in range(40)])
    write_lines(folder / "b.jsonl.gz", *[{"id": f"b{row}", "text": None if row % 5 == 0 else "t"} for row in range(30)])
    pq.write_table(pa.table({"id": [f"c{row}" for row in range(50)], "text": ["t", None] * 25}), folder / "c.parquet")
    (folder / "d.parquet").write_bytes(b"broken")
    spec = SourceSpec(path=str(folder), text="text", id="id")
    schema, units = units_of(spec)
    spans = tuple(span for unit in units for span in unit.spans)
    return spec, schema, Unit(unit_id="u", spans=spans, sources=tuple(range(len(spans))))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[SourceSpec, pa.Schema, Unit]:
    return small_corpus(tmp_path_factory.mktemp("corpus"))


def slices_of(
    corpus: tuple[SourceSpec, pa.Schema, Unit], slice_rows: int, done: Sequence[tuple[int, int]] = ()
) -> list[Slice]:
    spec, schema, unit = corpus
    slices = list(
        read_slices(unit, SliceSpec(schema=schema, source=spec, carried=(), limits=LIMITS, rows=slice_rows), done)
    )
    assert [each.last for each in slices] == [False] * (len(slices) - 1) + [True]
    for each in slices:
        assert each.documents.num_rows + each.dead_letters.num_rows == each.num_rows <= slice_rows
        assert each.num_rows or each.last
    return slices


def rows_of(slices: Sequence[Slice]) -> list[tuple[Any, ...]]:
    rows = [
        (row["source"], row["position"], row["id"], row["text"])
        for each in slices
        for row in each.documents.to_pylist()
    ]
    return rows + [
        (row["source"], row["position"], row["id"], row["error"])
        for each in slices
        for row in each.dead_letters.to_pylist()
    ]


TOTAL = 40 + 30 + 50 + 1


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(slice_rows=st.integers(1, 150))
def test_the_size_of_slices_does_not_change_the_rows(
    corpus: tuple[SourceSpec, pa.Schema, Unit], slice_rows: int
) -> None:
    whole = slices_of(corpus, 1000)
    assert len(whole) == 1
    slices = slices_of(corpus, slice_rows)
    assert sorted(rows_of(slices), key=repr) == sorted(rows_of(whole), key=repr)
    assert [each.first_row for each in slices] == list(range(0, TOTAL, slice_rows))
    assert sum(each.num_rows for each in slices) == TOTAL


@settings(max_examples=60, deadline=None)
@given(edges=st.lists(st.integers(0, TOTAL), max_size=10), slice_rows=st.integers(1, 50))
def test_done_rows_are_left_out_and_all_others_read(
    corpus: tuple[SourceSpec, pa.Schema, Unit], edges: list[int], slice_rows: int
) -> None:
    edges = sorted(edges)
    done = list(zip(edges[::2], edges[1::2], strict=False))
    slices = slices_of(corpus, slice_rows, done)
    covered = [row for each in slices for row in range(each.first_row, each.first_row + each.num_rows)]
    assert sorted([*covered, *(row for first, stop in done for row in range(first, stop))]) == list(range(TOTAL))
    assert covered == sorted(covered)
    assert slices[-1].first_row + slices[-1].num_rows == TOTAL
    singly = {each.first_row: rows_of([each]) for each in slices_of(corpus, 1)}
    assert sorted(rows_of(slices), key=repr) == sorted((row for index in covered for row in singly[index]), key=repr)


def test_a_unit_without_rows_has_one_empty_last_slice(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", b"", b" ")
    spec = SourceSpec(path=str(tmp_path), text="text", keep=("k",))
    schema = pa.schema([("text", pa.string()), ("k", pa.int64())])
    file = list_sources(spec)[0]
    span = Span(file=file, kind="bytes", start=0, stop=file.size, rows=None)
    (only,) = read_slices(
        Unit(unit_id="u", spans=(span,), sources=(0,)),
        SliceSpec(schema=schema, source=spec, carried=("k",), limits=LIMITS, rows=10),
    )
    assert (only.first_row, only.num_rows, only.last) == (0, 0, True)
    assert only.documents.schema.names == ["id", "text", "k", "source", "position"]


def test_slices_are_bounded_by_bytes(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", *[{"text": "x" * size} for size in [10, 4000, 4000, 4000, 20_000, 10, 10]])
    spec = SourceSpec(path=str(tmp_path), text="text")
    schema, (unit,) = units_of(spec)
    slices = list(
        read_slices(unit, SliceSpec(schema=schema, source=spec, carried=(), limits=LIMITS, rows=1000, bytes=10_000))
    )
    assert [each.num_rows for each in slices] == [3, 1, 1, 2]


def test_done_row_groups_are_not_even_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").write_bytes(parquet_bytes(3000, 1000))
    read_groups = []
    real = parquet._row_group

    def spy(batches: Any, rows: int, position: int, *rest: Any) -> Any:
        read_groups.append(position)
        return real(batches, rows, position, *rest)

    monkeypatch.setattr(parquet, "_row_group", spy)
    monkeypatch.setattr(isolated, "blocks", registry.blocks)  # the spy is in this process
    spec = SourceSpec(path=str(tmp_path), text="text")
    schema, (unit,) = units_of(spec)
    slices = list(
        read_slices(unit, SliceSpec(schema=schema, source=spec, carried=(), limits=LIMITS, rows=5000), [(0, 1500)])
    )
    assert [(each.first_row, each.num_rows) for each in slices] == [(1500, 1500)]
    assert read_groups == [1000, 2000]


# --- spans


@settings(max_examples=30, deadline=None)
@given(size=st.integers(100, 3000))
def test_spans_of_a_jsonl_file_hold_every_row_once(tmp_path_factory: pytest.TempPathFactory, size: int) -> None:
    folder = tmp_path_factory.getbasetemp() / "spans"
    folder.mkdir(exist_ok=True)
    positions = write_lines(folder / "a.jsonl", *[{"text": "x" * (row * 37 % 200)} for row in range(100)])
    spec = SourceSpec(path=str(folder), text="text")
    (file,) = list_sources(spec)
    starts = range(0, file.size, size)
    spans = tuple(Span(file=file, kind="bytes", start=at, stop=min(at + size, file.size), rows=None) for at in starts)
    unit = Unit(unit_id="u", spans=spans, sources=tuple(range(len(spans))))
    slices = list(
        read_slices(
            unit, SliceSpec(schema=pa.schema([("text", pa.string())]), source=spec, carried=(), limits=LIMITS, rows=30)
        )
    )
    assert [row for each in slices for row in each.documents.column("position").to_pylist()] == positions


# --- changes and failures


def test_a_file_changed_since_the_plan_is_not_read(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", *[{"text": "x"}] * 5000)
    spec = SourceSpec(path=str(tmp_path), text="text")
    schema, (unit,) = units_of(spec)
    slices = read_slices(unit, SliceSpec(schema=schema, source=spec, carried=(), limits=LIMITS, rows=100))
    next(slices)
    write_lines(tmp_path / "a.jsonl", {"text": "y"})
    with pytest.raises(SourceChanged):
        list(slices)
    with pytest.raises(SourceChanged):
        list(read_slices(unit, SliceSpec(schema=schema, source=spec, carried=(), limits=LIMITS, rows=100)))


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.jsonl.gz"])
@pytest.mark.parametrize("kind", ["moto", pytest.param("rclone", marks=pytest.mark.slow)])
def test_a_file_that_vanishes_from_the_store_is_no_dead_letter(
    tmp_path: Path, name: str, kind: str, servers: dict[str, S3Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(f"s3://bucket/{tmp_path.name}", servers[kind].storage_options)
    if name == "a.parquet":
        (tmp_path / name).write_bytes(parquet_bytes(400_000, 200_000))
    else:
        write_lines(tmp_path / name, *[{"text": f"{row} {number}"} for row, number in enumerate(numbers(60_000))])
    folder.write(name, (tmp_path / name).read_bytes())
    monkeypatch.setattr(registry, "readahead_bytes", lambda file: 0 if file.format == "parquet" else 1000)
    spec = SourceSpec(path=folder.url, text="text", storage_options=folder.options)
    schema, units = units_of(spec)
    slices = read_slices(units[0], SliceSpec(schema=schema, source=spec, carried=(), limits=LIMITS, rows=100))
    assert next(slices).dead_letters.num_rows == 0
    folder.delete([name])
    with pytest.raises(SourceChanged):
        list(slices)


def test_a_failing_disk_is_no_dead_letter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").write_bytes(parquet_bytes(3000, 1000))
    spec = SourceSpec(path=str(tmp_path), text="text")
    schema, (unit,) = units_of(spec)

    class Failing(io.FileIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr("builtins.open", lambda path, mode="r": Failing(path))
    with pytest.raises(StorageError, match="Input/output error"):
        list(read_slices(unit, SliceSpec(schema=schema, source=spec, carried=(), limits=LIMITS, rows=100)))


# --- memory


def peak_mib(program: str, *arguments: str) -> float:
    """Peak resident memory of the program, less that of its imports.

    Not ru_maxrss: that counts the parent's memory at the fork.
    """
    frame = (
        "import re, sys\n"
        "import pyarrow, pyarrow.compute, pyarrow.parquet\n"
        "from pipeline.config import LimitSpec, SourceSpec\n"
        "from pipeline.sources.reader import SliceSpec, read_slices\n"
        "from pipeline.sources.listing import list_sources\n"
        "from pipeline.sources.survey import survey\n"
        "from pipeline.work import Unit\n"
        "def peak(): return int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])\n"
        "before = peak()\n"
        f"{program}\n"
        "print((peak() - before) / 1024)\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", frame, *arguments], cwd=root, capture_output=True, text=True, check=True, timeout=120
    )
    return float(done.stdout.split()[-1])


READ_ALL = """
spec = SourceSpec(path=sys.argv[1], text="text")
found = survey(list_sources(spec), spec)
slices = SliceSpec(
    schema=found.schema, source=spec, carried=(), limits=LimitSpec(max_row_bytes=2**20), rows=2048
)
rows = 0
for spans in found.spans:
    unit = Unit(unit_id="u", spans=spans, sources=tuple(range(len(spans))))
    for each in read_slices(unit, slices):
        rows += each.num_rows
assert rows == int(sys.argv[2]), rows
"""


@pytest.mark.parametrize("pack", ["gz", "zst"])
def test_a_large_packed_file_is_streamed(tmp_path: Path, pack: str) -> None:
    lines = b"".join(b'{"text": "%s"}\n' % (f"{row} is a number " * 60).encode() for row in range(1000))
    repeats = 200 * 2**20 // len(lines)
    packer = functools.partial(gzip.open, compresslevel=1) if pack == "gz" else zstandard.open
    with packer(tmp_path / f"a.jsonl.{pack}", "wb") as file:
        for _ in range(repeats):
            file.write(lines)
    assert peak_mib(READ_ALL, str(tmp_path), str(repeats * 1000)) < 150


def test_a_file_that_is_one_line_is_not_held(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "b.jsonl.gz", "wb", compresslevel=1) as file:
        file.write(b'{"text": "first"}\n')
        for _ in range(200):
            file.write(b"x" * 2**20)
    assert peak_mib(READ_ALL, str(tmp_path), "2") < 100


def test_a_parquet_file_with_one_row_group_is_streamed(tmp_path: Path) -> None:
    texts = [f"{row} is a number " * 40 for row in range(1000)]
    with pq.ParquetWriter(tmp_path / "a.parquet", pa.schema([("text", pa.string())])) as writer:
        writer.write_table(pa.table({"text": texts * 300}), row_group_size=300_000)
    assert pq.read_metadata(tmp_path / "a.parquet").num_row_groups == 1
    assert peak_mib(READ_ALL, str(tmp_path), "300000") < 150


@pytest.mark.slow
def test_a_csv_file_that_is_one_open_quote_is_not_held(tmp_path: Path) -> None:
    with (tmp_path / "a.csv").open("wb") as file:
        file.write(b'n,text\n0,"open\n')
        for _ in range(8):
            file.write(b"1,text\n" * 2**17)
    assert peak_mib(READ_ALL, str(tmp_path), str(8 * 2**17 + 1)) < 100


@pytest.mark.slow
def test_a_file_that_is_one_plain_line_is_read_once_and_not_held(tmp_path: Path) -> None:
    with (tmp_path / "a.jsonl").open("wb") as file:
        file.write(b'{"text": "first"}\n{"text": "')
        for _ in range(128):
            file.write(b"x" * 2**20)
        file.write(b'"}\n{"text": "last"}\n')
    program = READ_ALL.replace("max_row_bytes=2**20", "")
    assert peak_mib(program, str(tmp_path), "3") < 100


@pytest.mark.slow
def test_a_parquet_file_of_a_hundred_thousand_row_groups_is_read_exactly(tmp_path: Path) -> None:
    count = 100_000
    schema = pa.schema([("id", pa.string()), ("text", pa.string())])
    with pq.ParquetWriter(tmp_path / "a.parquet", schema) as writer:
        for row in range(count):
            writer.write_table(pa.table([[f"{row}"], [f"text {row % 50}"]], schema=schema))
    program = READ_ALL.replace('text="text"', 'text="text", id="id"').replace(
        "        rows += each.num_rows\n",
        "        assert each.documents['id'].to_pylist() == [f'{row}' for row in range(rows, rows + each.num_rows)]\n"
        "        assert each.documents['position'].to_pylist() == [*range(rows, rows + each.num_rows)]\n"
        "        rows += each.num_rows\n",
    )
    assert "position" in program
    assert peak_mib(program, str(tmp_path), str(count)) < 600
