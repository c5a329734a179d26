"""Values, ids and names that look like paths, markers or other columns come back exactly, or are refused in words."""

import contextlib
import datetime
import json
import shutil
import tempfile
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import pipeline
from pipeline import config
from pipeline.errors import ConfigError, InputError
from pipeline.schema import NULL_PARTITION
from pipeline.sources.columns import partition_value
from pipeline.sources.listing import hive_partition
from pipeline.table import layout
from tests.inline import embed, read_table, spec_of

PATHS = [
    "../x",
    "../../etc/passwd",
    "a/b",
    "/",
    "",
    ".",
    "..",
    "a=b",
    "=",
    "\\",
    "C:\\x",
    "*",
    "?",
    "[a]",
    "{x}",
    "~root",
    "#",
]
ESCAPES = ["%2F", "%2f", "%", "%%", "%00", "+", "&", "%EF"]
CONTROLS = ["\0", "a\0b", "\x01", "\n", "\r\n", "\t", "\x7f", "\x85", "\u2028", "\ufeff"]
UNICODE = ["é", unicodedata.normalize("NFD", "é"), "😀", "👩‍👩‍👧", "עברית", "\u202ex", "한국어", "\U0010ffff", "ﬁ"]
WORDS = [
    "null",
    "NULL",
    "None",
    "nan",
    "true",
    "01",
    "1",
    "1.5",
    "1e5",
    "0x10",
    "2024-01-01",
    " ",
    " a ",
    "'",
    '"',
    "$HOME",
]
MARKERS = [f"{NULL_PARTITION}x", NULL_PARTITION.lower(), "_x", ".hidden", "part-0.parquet", "meta", "CON"]
VALUES: list[str | None] = [*PATHS, *ESCAPES, *CONTROLS, *UNICODE, *WORDS, *MARKERS, "x" * 240, None]
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(VALUES[:-1])


def with_pyarrow(data: Path, name: str) -> pa.Table:
    partitioning = pads.partitioning(pa.schema([(name, pa.string())]), flavor="hive")
    return pads.dataset(data, format="parquet", partitioning=partitioning).to_table()


def with_duckdb(data: Path, name: str) -> pa.Table:
    import duckdb

    options = "hive_partitioning=true, hive_types_autocast=false"
    return duckdb.sql(f"select * from read_parquet('{data}/**/*.parquet', {options})").to_arrow_table()


def with_polars(data: Path, name: str) -> pa.Table:
    import polars

    strings = {name: polars.String}
    return polars.read_parquet(f"{data}/**/*.parquet", hive_partitioning=True, hive_schema=strings).to_arrow()


def with_pipeline(data: Path, name: str) -> pa.Table:
    return pipeline.read(data.parent).to_table()


READERS: dict[str, Callable[[Path, str], pa.Table]] = {
    "pyarrow": with_pyarrow,
    "duckdb": with_duckdb,
    "polars": with_polars,
    "pipeline": with_pipeline,
}


def published(folder: Path, model: Path, ids: Sequence[str], values: Sequence[str | None]) -> list[dict[str, Any]]:
    """A table partitioned by `values`, in a folder of its own; returns its dead letters."""
    rows = {"id": pa.array(ids, pa.string()), "text": ["a text"] * len(ids), "cat": pa.array(values, pa.string())}
    (folder / "in").mkdir()
    pq.write_table(pa.table(rows), folder / "in" / "a.parquet")
    table = {"partition_by": ["cat"]}
    limits = {"max_failed_rows": 1000}
    embed(spec_of(folder / "in", model, folder / "out" / "table", table=table, limits=limits))
    assert {path.name for path in folder.iterdir()} == {"in", "out"}
    assert {path.name for path in (folder / "out").iterdir()} == {"table"}
    assert {path.name for path in (folder / "out" / "table").iterdir()} <= {"data", "meta", "staging"}
    for path in (folder / "out" / "table" / "data").rglob("*"):
        assert path.parent.name == "data" if path.is_dir() else path.parent.parent.name == "data"
    return dead_letters(folder / "out" / "table")


def dead_letters(table: Path) -> list[dict[str, Any]]:
    found = sorted((table / layout.dead_letters(1)).glob("*.parquet"))
    return [row for path in found for row in pq.read_table(path).to_pylist()]


# --- partition values ------------------------------------------------------------------------------------------------


def test_every_reader_gives_hostile_partition_values_back(tiny_model, tmp_path):
    ids = [f"{number:03}" for number in range(len(VALUES))]
    assert published(tmp_path, tiny_model, ids, VALUES) == []
    for name, read in READERS.items():
        rows = read(tmp_path / "out" / "table" / "data", "cat").sort_by("id")
        found = dict(zip(rows["id"].to_pylist(), rows["cat"].to_pylist(), strict=True))
        assert found == dict(zip(ids, VALUES, strict=True)), name


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(rows=st.dictionaries(TEXTS, TEXTS | st.none() | st.just(NULL_PARTITION), min_size=1, max_size=8))
@example(rows={"a": NULL_PARTITION, "b": None, "c": "c"})
@example(rows={"": None})
def test_ids_and_partition_values_of_any_characters_come_back_or_are_dead_letters(tiny_model, rows):
    folder = Path(tempfile.mkdtemp())
    try:
        letters = published(folder, tiny_model, list(rows), list(rows.values()))
        good = {key: value for key, value in rows.items() if value != NULL_PARTITION}
        assert sorted(letter["id"] for letter in letters) == sorted(rows.keys() - good.keys())
        for letter in letters:
            assert (letter["stage"], NULL_PARTITION in letter["error"]) == ("read", True)
        for name, read in READERS.items() if good else ():
            found = read(folder / "out" / "table" / "data", "cat")
            assert dict(zip(found["id"].to_pylist(), found["cat"].to_pylist(), strict=True)) == good, name
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_a_value_too_long_for_a_folder_is_a_dead_letter(tiny_model, tmp_path, kind):
    """`cat=` leaves 251 bytes; a letter of Korean takes nine, escaped."""
    values = ["x" * 251, "x" * 252, "한" * 27, "한" * 28, NULL_PARTITION]
    rows = pa.table({"id": list("abcde"), "text": ["t"] * 5, "cat": pa.array(values, kind)})
    pq.write_table(rows, tmp_path / "a.parquet")
    limits, table = {"max_failed_rows": 10}, {"partition_by": ["cat"]}
    embed(spec_of(tmp_path / "a.parquet", tiny_model, tmp_path / "table", table=table, limits=limits))
    assert read_table(tmp_path / "table")["id"].to_pylist() == ["a", "c"]


def test_a_date_that_no_folder_can_name_is_a_dead_letter(tiny_model, tmp_path):
    days = pa.array([19000, 2**30, None, -(2**30)], pa.int32()).cast(pa.date32())
    pq.write_table(pa.table({"id": list("abcd"), "text": ["t"] * 4, "day": days}), tmp_path / "a.parquet")
    limits, table = {"max_failed_rows": 10}, {"partition_by": ["day"]}
    embed(spec_of(tmp_path / "a.parquet", tiny_model, tmp_path / "table", table=table, limits=limits))
    letters = dead_letters(tmp_path / "table")
    assert [(letter["id"], "years 1 to 9999" in letter["error"]) for letter in letters] == [("b", True), ("d", True)]
    rows = pipeline.read(tmp_path / "table").to_table().sort_by("id")
    assert [str(day) for day in rows["day"].to_pylist()] == ["2022-01-08", "None"]


@pytest.mark.parametrize("kind", [pa.int8(), pa.int64(), pa.uint64(), pa.bool_(), pa.date32()], ids=str)
def test_the_smallest_and_the_largest_value_of_a_type_can_name_a_folder(tiny_model, tmp_path, kind):
    limits = {pa.bool_(): [False, True], pa.date32(): [datetime.date.min, datetime.date.max]}
    lowest = 0 if kind == pa.uint64() else -(2 ** (kind.bit_width - 1))
    values = [*limits.get(kind, [lowest, lowest + 2**kind.bit_width - 1]), None]
    rows = {"id": ["a", "b", "c"], "text": ["t"] * 3, "cat": pa.array(values, kind)}
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    embed(spec_of(tmp_path / "a.parquet", tiny_model, tmp_path / "table", table={"partition_by": ["cat"]}))
    found = with_pipeline(tmp_path / "table" / "data", "cat").sort_by("id")
    assert found["cat"].type == kind
    assert found["cat"].to_pylist() == values
    partitioning = pads.partitioning(pa.schema([("cat", kind)]), flavor="hive")
    found = pads.dataset(tmp_path / "table" / "data", format="parquet", partitioning=partitioning).to_table()
    assert found.sort_by("id")["cat"].to_pylist() == values


@given(value=TEXTS | st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.dates())
def test_what_a_folder_says_is_read_back_as_the_value(value):
    path = layout.data_part((("cat", value),), 1, 0, "nonce")
    assert path.count("/") == 2
    assert path.isascii()
    ((name, text),) = hive_partition(path)
    kind = pa.string() if value is None else pa.scalar(value).type
    assert (name, partition_value(text, kind)) == ("cat", pa.scalar(value, kind))


# --- ids ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [None, {"max_tokens": 8}])
def test_an_id_may_be_empty_or_very_long(tiny_model, tmp_path, chunk):
    ids = ["", " ", "a" * 100_000, "#", "a#0", "\0"]
    lines = [json.dumps({"id": name, "text": "a text"}) for name in ids]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    embed(spec_of(tmp_path / "a.jsonl", tiny_model, tmp_path / "table", chunk=chunk))
    rows = pipeline.read(tmp_path / "table").to_table()
    assert sorted(rows["doc_id" if chunk else "id"].to_pylist()) == sorted(ids)
    if chunk:
        assert sorted(rows["id"].to_pylist()) == sorted(f"{name}#0" for name in ids)


# --- names -------------------------------------------------------------------------------------------------------------


def raw_of(source: str, table: str, **keys: Any) -> dict[str, Any]:
    return {
        "source": {"path": source, "id": "id", "text": "text", "keep": keys.get("keep", [])},
        "model": {"path": "m"},
        "table": {
            "path": table,
            "partition_by": keys.get("by", []),
            "embedding_column": keys.get("named", "embedding"),
        },
    }


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"keep": ["ID"]}, "source.keep names 'ID'"),
        ({"keep": ["Text"]}, "'Text'"),
        ({"keep": ["Content_Hash"]}, "'Content_Hash'"),
        ({"by": ["Id"]}, "table.partition_by names 'Id'"),
        ({"named": "TEXT"}, "table.embedding_column names 'TEXT'"),
        ({"keep": ["Embedding"]}, "'Embedding' and 'embedding'"),
        ({"by": ["EMBEDDING"]}, "'EMBEDDING' and 'embedding'"),
        ({"keep": ["title", "Title"]}, "'title' and 'Title'"),
        ({"keep": ["title"], "by": ["TITLE"]}, "'title' and 'TITLE'"),
        ({"keep": ["straße"], "named": "STRAßE"}, "'straße' and 'STRAßE'"),
        ({"keep": ["title"], "named": "title"}, "also in source.keep"),
        ({"by": ["title"], "named": "title"}, "also in table.partition_by"),
    ],
)
def test_columns_that_readers_would_take_for_one_are_refused(keys, said):
    with pytest.raises(ConfigError) as caught:
        config.from_mapping(raw_of("a", "t", **keys))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "name", ["", "_x", ".x", "..", "a/b", "a=b", "a%2Fb", "a\\b", "a?b", "\0", "a\nb", NULL_PARTITION]
)
def test_a_partition_column_whose_name_readers_would_read_otherwise_is_refused(name):
    with pytest.raises(ConfigError, match=r"table\.partition_by"):
        config.from_mapping(raw_of("a", "t", by=[name]))


@pytest.mark.parametrize(
    "name", ["lang", "Sprache der Seite", "a.b", "a-b+c", "언어", "भाषा", "langue_é", "(x)", "$a,b!"]
)
def test_a_partition_column_that_can_be_has_its_name_in_every_reader(name, tiny_model, tmp_path):
    pq.write_table(pa.table({"id": ["a", "b"], "text": ["t", "u"], name: ["x", None]}), tmp_path / "a.parquet")
    embed(spec_of(tmp_path / "a.parquet", tiny_model, tmp_path / "table", table={"partition_by": [name]}))
    for reader, read in READERS.items():
        rows = read(tmp_path / "table" / "data", name).sort_by("id")
        assert rows[name].to_pylist() == ["x", None], reader


NAMES = [
    "",
    "\0",
    "a/b",
    "..",
    "__row",
    "é",
    unicodedata.normalize("NFD", "é"),
    "😀",
    "document",
    "position ",
    "a.b",
    "'\"",
]


def test_kept_columns_of_any_name_are_carried(tiny_model, tmp_path):
    columns: dict[str, Any] = {name: [number, number + 1] for number, name in enumerate(NAMES)}
    pq.write_table(pa.table({"id": ["a", "b"], "text": ["t", "u"], **columns}), tmp_path / "a.parquet")
    embed(spec_of(tmp_path / "a.parquet", tiny_model, tmp_path / "table", source={"keep": NAMES}))
    rows = pipeline.read(tmp_path / "table").to_table().sort_by("id")
    assert rows.select(NAMES).to_pydict() == columns


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(name=st.text(st.characters(exclude_categories=["Cs"]), max_size=5))
@example(name="Id")
def test_any_name_of_a_column_is_carried_or_refused(tiny_model, name):
    folder = Path(tempfile.mkdtemp())
    try:
        content = {"id": ["a"], "text": ["t"]} | ({name: ["x"]} if name not in ("id", "text") else {})
        pq.write_table(pa.table(content), folder / "a.parquet")
        for sections in ({"source": {"keep": [name]}}, {"table": {"partition_by": [name]}}):
            with contextlib.suppress(InputError):
                embed(spec_of(folder / "a.parquet", tiny_model, folder / "table", **sections))
                for reader, read in READERS.items():
                    if "table" in sections or reader == "pyarrow":
                        assert read(folder / "table" / "data", name)[name].to_pylist() == ["x"], reader
    finally:
        shutil.rmtree(folder)
