import datetime
import gzip
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import SourceSpec
from pipeline.errors import InputError
from pipeline.source import hive_partition, list_sources, survey


def jsonl(path: Path, *rows: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(row + "\n" if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def parquet(path: Path, **columns: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def spec_of(path: Path, **options: Any) -> SourceSpec:
    return SourceSpec(**{"path": str(path), "text": "text", **options})


def schema_of(path: Path, partition_by: tuple[str, ...] = (), **options: Any) -> pa.Schema:
    spec = spec_of(path, **options)
    return survey(list_sources(spec), spec, partition_by).schema


# --- files


def test_files_are_listed_once_with_format_and_partition(tmp_path: Path) -> None:
    parquet(tmp_path / "lang=de" / "b.parquet", text=["x"])
    jsonl(tmp_path / "lang=e%20n" / "a.jsonl", {"text": "x"})
    jsonl(tmp_path / "lang=__HIVE_DEFAULT_PARTITION__" / "c.NDJSON.gz", {"text": "x"})
    spec = SourceSpec(path=(str(tmp_path), f"{tmp_path}/lang=de/*.parquet"), text="text")
    files = list_sources(spec)
    assert [(Path(file.path).name, file.format, dict(file.partition)["lang"]) for file in files] == [
        ("c.NDJSON.gz", "jsonl.gz", None),
        ("b.parquet", "parquet", "de"),
        ("a.jsonl", "jsonl", "e n"),
    ]


def test_every_pattern_must_match(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", {"text": "x"})
    with pytest.raises(InputError, match=r"\*\.parquet"):
        list_sources(SourceSpec(path=(f"{tmp_path}/*.jsonl", f"{tmp_path}/*.parquet"), text="text"))


def test_an_unknown_format_is_refused_unless_it_is_given(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.txt", {"text": "x"})
    with pytest.raises(InputError, match=r"a\.txt.*source\.format"):
        list_sources(spec_of(tmp_path))
    assert list_sources(spec_of(tmp_path, format="jsonl"))[0].format == "jsonl"
    jsonl(tmp_path / "a.gz", {"text": "x"})
    assert list_sources(spec_of(tmp_path, format="jsonl"))[0].format == "jsonl.gz"


def test_hive_folders() -> None:
    assert hive_partition("s3://b/a=1/x/b%3Dc=%C3%A9/=/f=1.parquet") == (("a", "1"), ("b=c", "é"))
    assert hive_partition("/a=1/a=2/f") == (("a", "2"),)


# --- types


def test_parquet_types_are_widened_where_nothing_is_lost(tmp_path: Path) -> None:
    parquet(
        tmp_path / "a.parquet",
        text=pa.array(["x"]).dictionary_encode(),
        i=pa.array([1], pa.int16()),
        u=pa.array([1], pa.uint32()),
        f=pa.array([1], pa.float32()),
        n=pa.nulls(1),
        only_a=[[1]],
        all_null=pa.nulls(1),
    )
    parquet(
        tmp_path / "b.parquet",
        text=pa.array(["x"], pa.large_string()),
        i=pa.array([1], pa.int32()),
        u=pa.array([1], pa.int8()),
        f=pa.array([1], pa.float64()),
        n=[datetime.date(2020, 1, 1)],
    )
    schema = schema_of(tmp_path, keep=("i", "u", "f", "n", "only_a", "all_null"))
    assert {field.name: str(field.type) for field in schema} == {
        "text": "string",
        "i": "int32",
        "u": "int64",
        "f": "double",
        "n": "date32[day]",
        "only_a": "list<item: int64>",
        "all_null": "string",
    }


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (pa.array([1]), pa.array([1.0])),
        (pa.array([1]), pa.array(["1"])),
        (pa.array([1], pa.uint64()), pa.array([1])),
        (pa.array([0], pa.timestamp("us")), pa.array([0], pa.timestamp("ns"))),
        (pa.array([True]), pa.array([1])),
    ],
)
def test_types_that_do_not_fit_name_both_files(tmp_path: Path, a: pa.Array, b: pa.Array) -> None:
    parquet(tmp_path / "a.parquet", text=["x"], k=a)
    parquet(tmp_path / "b.parquet", text=["x"], k=b)
    with pytest.raises(InputError) as caught:
        schema_of(tmp_path, keep=("k",))
    message = str(caught.value)
    assert all(part in message for part in ("'k'", "a.parquet", "b.parquet", str(a.type), str(b.type)))


def test_jsonl_types_come_from_a_sample(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", {"text": "x", "i": 1, "m": 1, "s": {"a": None}, "l": []}, "not json", {"text": None})
    jsonl(
        tmp_path / "b.jsonl.gz",
        {"text": "x", "i": 2, "m": 1.5, "b": True, "s": {"b": [1, None]}, "l": ["x"], "z": None},
    )
    schema = schema_of(tmp_path, keep=("i", "m", "b", "s", "l", "z"))
    assert {field.name: str(field.type) for field in schema} == {
        "text": "string",
        "i": "int64",
        "m": "double",
        "b": "bool",
        "s": "struct<a: string, b: list<item: int64>>",
        "l": "list<item: string>",
        "z": "string",
    }


def test_jsonl_types_that_do_not_fit_name_the_files(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", {"text": "x", "k": 1}, {"text": "x", "k": "1"})
    with pytest.raises(InputError, match=r"'k' holds both int64 and string.*a\.jsonl"):
        schema_of(tmp_path, keep=("k",))
    jsonl(tmp_path / "a.jsonl", {"text": "x", "k": 1})
    jsonl(tmp_path / "b.jsonl", {"text": "x", "k": "1"})
    with pytest.raises(InputError, match=r"int64 in .*a\.jsonl.*string in .*b\.jsonl"):
        schema_of(tmp_path, keep=("k",))


def test_a_text_that_is_no_string_is_a_bad_row_not_a_type(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", {"text": 1}, {"text": "x"}, {"text": ["x"]})
    assert schema_of(tmp_path).field("text").type == pa.string()
    jsonl(tmp_path / "a.jsonl", {"text": 1})
    with pytest.raises(InputError, match=r"source\.text.*int64"):
        schema_of(tmp_path)


def test_formats_may_be_mixed(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", text=["x"], k=pa.array([1], pa.int32()))
    jsonl(tmp_path / "b.jsonl", {"text": "x", "k": 2})
    assert schema_of(tmp_path, keep=("k",)).field("k").type == pa.int64()


def test_an_unknown_column_is_refused_with_the_nearest(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", text=["x"], title=["y"])
    with pytest.raises(InputError, match="no source file has a column 'titel'; the nearest are 'title'"):
        schema_of(tmp_path, keep=("titel",))
    jsonl(tmp_path / "a.parquet", {})
    (tmp_path / "a.parquet").rename(tmp_path / "a.jsonl")
    jsonl(tmp_path / "a.jsonl", {"txt": "x"})
    with pytest.raises(InputError, match="no source file has a column 'text'; the nearest are 'txt'"):
        schema_of(tmp_path)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["1", "-20", None], "int64"),
        (["1", "01"], "string"),
        (["true", "false"], "bool"),
        (["true", "1"], "string"),
        (["2024-01-31", "2024-02-29"], "date32[day]"),
        (["2024-02-30"], "string"),
        ([None], "string"),
        (["99999999999999999999"], "string"),
    ],
)
def test_types_of_folder_names(tmp_path: Path, values: list[str | None], expected: str) -> None:
    for value in values:
        parquet(tmp_path / f"k={value or '__HIVE_DEFAULT_PARTITION__'}" / "a.parquet", text=["x"])
    assert str(schema_of(tmp_path, ("k",)).field("k").type) == expected


def test_the_columns_own_type_counts_before_the_folders_names(tmp_path: Path) -> None:
    parquet(tmp_path / "k=1" / "a.parquet", text=["x"], k=["own"])
    parquet(tmp_path / "k=2" / "b.parquet", text=["x"])
    assert schema_of(tmp_path, ("k",)).field("k").type == pa.string()
    parquet(tmp_path / "k=1" / "a.parquet", text=["x"], k=[1.5])
    with pytest.raises(InputError, match=r"double.*int64"):
        schema_of(tmp_path, ("k",))


def test_texts_must_be_strings_and_ids_must_be_exact(tmp_path: Path) -> None:
    parquet(
        tmp_path / "a.parquet",
        text=["x"],
        number=[1],
        price=[1.5],
        flag=[True],
        day=[datetime.date(2020, 1, 1)],
        key=[b"\x01"],
        amount=[Decimal("1.50")],
    )
    with pytest.raises(InputError, match=r"source\.text.*int64"):
        schema_of(tmp_path, text="number")
    for column in ("price", "flag"):
        with pytest.raises(InputError, match=rf"source\.id.*{column}"):
            schema_of(tmp_path, id=column)
    for column in ("number", "day", "key", "amount", "text"):
        schema_of(tmp_path, id=column)


# --- survey


def test_a_broken_footer_is_a_span_and_only_broken_ones_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 but not quite")
    spec = spec_of(tmp_path)
    with pytest.raises(InputError, match=r"none of the 1 source files.*bad\.parquet"):
        survey(list_sources(spec), spec)
    parquet(tmp_path / "good.parquet", text=["x"])
    found = survey(list_sources(spec), spec)
    kinds = {Path(span.file.path).name: (span.kind, span.rows) for group in found.spans for span in group}
    assert kinds == {"bad.parquet": ("file", None), "good.parquet": ("row_groups", 1)}
    assert found.rows_known is None


def test_rows_are_known_for_parquet_and_guessed_for_jsonl(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", text=["x"] * 1000)
    spec = spec_of(tmp_path)
    found = survey(list_sources(spec), spec)
    assert (found.rows_known, found.rows_estimate) == (1000, 1000)
    assert found.bytes == (tmp_path / "a.parquet").stat().st_size
    jsonl(tmp_path / "b.jsonl", *({"text": "x" * 100} for _ in range(5000)))
    found = survey(list_sources(spec), spec)
    assert found.rows_known is None
    assert 5800 < found.rows_estimate < 6200


def test_many_small_files_are_surveyed_quickly(tmp_path: Path) -> None:
    for index in range(300):
        parquet(tmp_path / f"{index}.parquet", text=["x"], k=[index])
    spec = spec_of(tmp_path, keep=("k",))
    found = survey(list_sources(spec), spec)
    assert found.rows_known == 300
    assert sum(map(len, found.spans)) == 300
