import datetime
import gzip
import json
import os
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from pipeline.config import CsvSpec, DatasetSpec, SourceSpec
from pipeline.errors import ConfigError, InputError
from pipeline.sources.formats import registry
from pipeline.sources.listing import find_sources, hive_partition, list_sources
from pipeline.sources.survey import survey


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
    found = [(Path(file.path).name, file.format, file.compression, dict(file.partition)["lang"]) for file in files]
    assert found == [
        ("c.NDJSON.gz", "jsonl", "gz", None),
        ("b.parquet", "parquet", "", "de"),
        ("a.jsonl", "jsonl", "", "e n"),
    ]


def test_every_pattern_must_match(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", {"text": "x"})
    with pytest.raises(InputError, match=r"\*\.parquet"):
        list_sources(SourceSpec(path=(f"{tmp_path}/*.jsonl", f"{tmp_path}/*.parquet"), text="text"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.PQ", ("parquet", "")),
        ("a.parquet", ("parquet", "")),
        ("a.ndjson.zst", ("jsonl", "zst")),
        ("a.csv", ("csv", "")),
        ("a.TSV.GZ", ("tsv", "gz")),
        ("a.arrow", ("arrow", "")),
        ("a.feather", ("arrow", "")),
        ("a.txt", ("text", "")),
        ("a.md.zst", ("text", "zst")),
        ("a.markdown", ("text", "")),
        ("a.rst", ("text", "")),
        ("a.html.gz", ("html", "gz")),
        ("a.htm", ("html", "")),
    ],
)
def test_names_stand_for_formats(name: str, expected: tuple[str, str]) -> None:
    assert registry.format_of(f"/x.csv/{name}", "auto") == expected


@pytest.mark.parametrize("name", ["a.json", "a.gz", "a", "a.parquet.gz", "a.arrow.zst", "a.jsonl.bz2", "parquet"])
def test_an_unknown_format_is_refused_unless_it_is_given(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(InputError, match=rf"{name}.*\.jsonl.*source\.format"):
        list_sources(spec_of(tmp_path))
    packed = {"gz": "gz", "zst": "zst"}.get(name.rpartition(".")[2], "")
    for form in ("jsonl", "lines", "html"):
        (file,) = list_sources(spec_of(tmp_path, format=form))
        assert (file.format, file.compression) == (form, packed)
    for form in ("parquet", "arrow"):
        (file,) = list_sources(spec_of(tmp_path, format=form))
        assert (file.format, file.compression) == (form, "")


def test_what_datasets_saves_beside_arrow_files_is_no_source(tmp_path: Path) -> None:
    import datasets

    split = datasets.Dataset.from_dict({"text": ["a", "b"]})
    datasets.DatasetDict({"train": split, "test": split}).save_to_disk(str(tmp_path))
    for folder in ("train", "test"):
        (tmp_path / folder / "cache-0123.arrow").write_bytes(b"")
    files = list_sources(spec_of(tmp_path))
    assert [(Path(file.path).parent.name, file.format) for file in files] == [("test", "arrow"), ("train", "arrow")]
    assert survey(files, spec_of(tmp_path)).schema == pa.schema([("text", pa.string())])
    (only,) = list_sources(spec_of(tmp_path / "test" / "cache-0123.arrow"))
    assert only.path.endswith("cache-0123.arrow")
    (tmp_path / "state.json").write_text("{}")
    assert find_sources(spec_of(tmp_path)).unknown == ("state.json",)


def test_a_data_set_stands_for_its_files(tmp_path: Path) -> None:
    jsonl(tmp_path / "train.jsonl", {"text": "a"})
    jsonl(tmp_path / "test.jsonl", {"text": "b"})
    (file,) = list_sources(SourceSpec(path=f"dataset:{tmp_path}", text="text", dataset=DatasetSpec(split="test")))
    assert (Path(file.path).name, file.format) == ("test.jsonl", "jsonl")
    with pytest.raises(InputError, match="dataset:x"):
        list_sources(SourceSpec(path=("dataset:x", str(tmp_path)), text="text"))


def test_hive_folders() -> None:
    assert hive_partition("s3://b/a=1/x/b%3Dc=%C3%A9/=/f=1.parquet") == (("a", "1"), ("b=c", "é"))
    assert hive_partition("/a=1/a=2/f") == (("a", "2"),)
    assert hive_partition("/a=%FF/b=%FE%41/f") == (("a", "%FF"), ("b", "%FE%41"))


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
        "only_a": "list<element: int64>",
        "all_null": "string",
    }


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (pa.array([1]), pa.array([1.0])),
        (pa.array([1]), pa.array(["1"])),
        (pa.array([1], pa.uint64()), pa.array([1])),
        (pa.array([0], pa.timestamp("us")), pa.array([0], pa.timestamp("us", "UTC"))),
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


def test_kept_columns_stay_exactly_what_they_are_and_others_are_plain(tmp_path: Path) -> None:
    kinds = {
        "c": pa.dictionary(pa.int32(), pa.string()),
        "l": pa.large_string(),
        "at": pa.timestamp("ns", "Europe/Berlin"),
        "d": pa.decimal128(10, 2),
    }
    columns = {name: pa.nulls(1, kind) for name, kind in kinds.items()}
    for name in ("a", "b"):
        parquet(tmp_path / f"{name}.parquet", text=pa.array(["x"], pa.large_string()), p=["p"], **columns)
    schema = schema_of(tmp_path, ("p",), keep=("c", "l", "at", "d"), id=("text", "p"))
    assert schema == pa.schema([("text", pa.string()), ("p", pa.string()), *kinds.items()])


def test_types_may_be_planned(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", {"text": "x", "k": 1, "d": "1.50"}, {"text": "x", "k": "1", "d": 2})
    (tmp_path / "b.csv").write_text("text,k,d,n\nx,1,1.5,1\n")
    schema = schema_of(tmp_path, keep=("k", "d", "n"), schema={"k": "string", "d": "decimal128(9, 2)", "n": "int64"})
    assert schema.types == [pa.string(), pa.string(), pa.decimal128(9, 2), pa.int64()]
    with pytest.raises(InputError, match=r"source\.schema.*'prize'.*nearest is 'price'"):
        schema_of(tmp_path, keep=("price",), schema={"prize": "int64"})
    with pytest.raises(ConfigError, match="int46"):
        schema_of(tmp_path, keep=("n",), schema={"n": "int46"})
    with pytest.raises(InputError, match="csv files hold strings"):
        schema_of(tmp_path, keep=("n",), schema={"n": "list<item: int64>"})
    # No line that was looked at has it; a later one may.
    assert schema_of(tmp_path, keep=("z",), schema={"z": "int64"}).field("z").type == pa.int64()
    parquet(tmp_path / "all" / "a.parquet", text=["x"])
    with pytest.raises(InputError, match="no source file has a column 'z'"):
        schema_of(tmp_path / "all", keep=("z",), schema={"z": "int64"})


def test_objects_without_keys_have_no_type(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", {"text": "x", "meta": {}}, {"text": "y", "meta": None})
    with pytest.raises(InputError, match=r"'meta' holds nothing but objects without keys.*source\.schema"):
        schema_of(tmp_path, keep=("meta",))
    typed = schema_of(tmp_path, keep=("meta",), schema={"meta": "map<string, string>"})
    assert typed.field("meta").type == pa.map_(pa.string(), pa.string())


def test_a_pipe_is_no_source(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(InputError, match="regular file"):
        list_sources(SourceSpec(path=str(tmp_path / "a.jsonl"), text="text"))


def test_a_damaged_footer_that_ends_processes_is_looked_at_without_harm() -> None:
    """In another process: what is tested is that it lives."""
    path = Path(__file__).parent / "formats" / "files" / "damaged-statistics.parquet"
    program = f"""
from pipeline.config import SourceSpec
from pipeline.sources.listing import list_sources
from pipeline.sources.survey import survey
spec = SourceSpec(path={str(path)!r}, text="text", where="text == 'x'")
print(survey(list_sources(spec), spec).rows_known)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert (done.returncode, done.stdout) == (0, "300\n"), done.stderr


def test_columns_of_a_filter_are_read_and_must_exist(tmp_path: Path) -> None:
    parquet(tmp_path / "lang=de" / "a.parquet", text=["x"], year=[1])
    assert schema_of(tmp_path, where='lang == "de" and year > 2000').names == ["text", "lang", "year"]
    with pytest.raises(InputError, match="yaer"):
        schema_of(tmp_path, where="yaer > 2000")


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.csv.gz", "a.tsv.zst"])
def test_columns_of_csv_come_from_the_header(tmp_path: Path, name: str) -> None:
    comma = "," if ".csv" in name else "\t"
    content = f"text{comma}k{comma}k\nx{comma}1{comma}2\n".encode()
    packers: dict[str, Any] = {"gz": gzip.compress, "zst": zstandard.ZstdCompressor().compress}
    (tmp_path / name).write_bytes(packers.get(name.rpartition(".")[2], bytes)(content))
    assert schema_of(tmp_path).types == [pa.string()]
    with pytest.raises(InputError, match="more than one column 'k'"):
        schema_of(tmp_path, keep=("k",))
    with pytest.raises(InputError, match="no source file has a column 'txt'; the nearest are 'text'"):
        schema_of(tmp_path, text="txt")
    assert schema_of(tmp_path, csv=CsvSpec(columns=("a", "b", "c")), text="b", id="c").names == ["c", "b"]


def test_documents_are_counted_without_reading_them(tmp_path: Path) -> None:
    for index in range(20):
        (tmp_path / f"{index}.md").write_text("" if index else "# title")
    found = survey(list_sources(spec_of(tmp_path)), spec_of(tmp_path, id="path"))
    assert (found.rows_known, found.rows_estimate) == (20, 20)
    assert found.schema == pa.schema([("path", pa.string()), ("text", pa.string())])


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


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_what_parquet_files_hold_uncompressed_stands_in_their_footers(codec: str, tmp_path: Path) -> None:
    texts = [f"{number} " * 40 for number in range(2000)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", compression=codec, use_dictionary=False)
    spec = spec_of(tmp_path)
    found = survey(list_sources(spec), spec)
    assert found.bytes_unpacked == pytest.approx(sum(map(len, texts)), rel=0.1)
    jsonl(tmp_path / "b.jsonl", *({"text": text} for text in texts))
    both = survey(list_sources(spec), spec)
    assert both.bytes_unpacked - found.bytes_unpacked == (tmp_path / "b.jsonl").stat().st_size


def test_many_small_files_are_surveyed_quickly(tmp_path: Path) -> None:
    for index in range(300):
        parquet(tmp_path / f"{index}.parquet", text=["x"], k=[index])
    spec = spec_of(tmp_path, keep=("k",))
    found = survey(list_sources(spec), spec)
    assert found.rows_known == 300
    assert sum(map(len, found.spans)) == 300
