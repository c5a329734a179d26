"""All six libraries read partitions back as docs/table.md says: nulls, slashes, equals signs, letters of any script."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow.dataset import dataset, partitioning

import pipeline
from pipeline.schema import NULL_PARTITION
from tests.inline import embed, reindex, spec_of

CITIES = ["München/ä=b", None, "日本 語", "01", "plain", "100%"]
HIVE = partitioning(pa.schema([("city", pa.string())]), flavor="hive")


@pytest.fixture(scope="module")
def data(tiny_model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("readers")
    rows = [{"id": f"d{n}", "text": f"text {n}", "city": city} for n, city in enumerate(CITIES)]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    # A string stands for a list of one.
    embed(spec_of(folder / "a.jsonl", tiny_model, folder / "table", table={"partition_by": "city"}))
    return folder / "table" / "data"


def with_pyarrow(data: Path) -> dict[str, Any]:
    rows = dataset(data, format="parquet", partitioning=HIVE).to_table()
    return dict(zip(rows["id"].to_pylist(), rows["city"].to_pylist(), strict=True))


def with_pandas(data: Path) -> dict[str, Any]:
    rows = pandas.read_parquet(data, partitioning=HIVE)
    return {name: None if pandas.isna(city) else city for name, city in zip(rows["id"], rows["city"], strict=True)}


def with_polars(data: Path) -> dict[str, Any]:
    rows = polars.read_parquet(f"{data}/**/*.parquet", hive_partitioning=True, hive_schema={"city": polars.String})
    return dict(zip(rows["id"].to_list(), rows["city"].to_list(), strict=True))


def with_duckdb(data: Path) -> dict[str, Any]:
    import duckdb

    options = "hive_partitioning=true, hive_types_autocast=false"
    return dict(duckdb.sql(f"select id, city from read_parquet('{data}/**/*.parquet', {options})").fetchall())


def with_datasets(data: Path) -> dict[str, Any]:
    import datasets

    rows = datasets.Dataset(pipeline.read(data.parent).to_table())
    return dict(zip(rows["id"][:], rows["city"][:], strict=True))


def with_ray(data: Path) -> dict[str, Any]:
    """The part of Ray that reads the names of folders, which needs no cluster."""
    from ray.data.datasource.partitioning import Partitioning, PathPartitionParser

    parse = PathPartitionParser(Partitioning("hive"))
    found = {}
    for file in data.rglob("*.parquet"):
        (city,) = parse(str(file)).values()
        names = dataset(file).to_table(columns=["id"])["id"].to_pylist()
        found |= dict.fromkeys(names, None if city == NULL_PARTITION else city)
    return found


@pytest.mark.parametrize(
    "read",
    [with_pyarrow, with_pandas, with_polars, with_duckdb, with_datasets, with_ray],
    ids=lambda read: read.__name__,
)
def test_a_reader_gives_the_values_that_the_rows_had(read: Callable[[Path], dict[str, Any]], data):
    assert read(data) == {f"d{n}": city for n, city in enumerate(CITIES)}


@pytest.mark.parametrize(
    ("column", "keep", "kept"),
    [("number", ["number"], "number"), ("id", {"id": "number"}, "number"), ("nr", "nr", "nr")],
)
def test_an_id_can_keep_its_own_name_and_type(column, keep, kept, tiny_model, tmp_path):
    rows = pa.table({column: pa.array([7, 2**40], pa.int64()), "text": ["a text", "b"]})
    pq.write_table(rows, tmp_path / "a.parquet")
    spec = spec_of(tmp_path / "a.parquet", tiny_model, tmp_path / "table", source={"id": column, "keep": keep})
    embed(spec)
    found = pipeline.read(tmp_path / "table").to_table().sort_by("id")
    assert (found["id"].to_pylist(), found[kept].to_pylist()) == ([str(2**40), "7"], [2**40, 7])
    assert found.schema.field(kept).type == pa.int64()
    assert reindex(spec).version == 1


def test_the_documentation_calls_the_readers_as_these_tests_do():
    told = (Path(__file__).parents[2] / "docs" / "table.md").read_text(encoding="utf-8")
    tested = Path(__file__).read_text(encoding="utf-8")
    for call in (
        "hive_types_autocast=false",
        'hive_schema={"city": polars.String}',
        "partitioning=hive",
        'flavor="hive"',
    ):
        assert call in told
        assert call.lower() in tested.lower()
    assert re.search(r"datasets\.Dataset\(pipeline\.read\(.*\)\.to_table\(\)\)", told)
