"""The vectors of a part may be laid out in two ways. Both give the same rows, to all readers, and a table may hold both."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas
import polars
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

import pipeline
from pipeline.errors import ConfigError
from pipeline.storage import Folder
from pipeline.table.operations import purge
from pipeline.table.part import Encoding, encode_part, encoding_of, part_schema
from tests.inline import embed, read_table, reindex, same_rows, spec_of

SPLIT = "BYTE_STREAM_SPLIT"


def rows_of(dtype: str, kept: pa.Table) -> pa.Table:
    """Two rows in falling order of ids."""
    schema = part_schema(kept.schema, False, "embedding", 3, dtype)
    values = np.arange(6).astype(dtype)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(values), type=schema.field("embedding").type)
    hashes, ones = pa.array([bytes(16)] * 2, pa.binary(16)), pa.array([1, 1], pa.int32())
    lineage = [hashes, pa.array([0, 0]), ones, ones, pa.array([False, True])]
    return pa.table([pa.array(["b", "a"]), *kept.columns, vectors, *lineage], schema=schema)


def encodings(content: pa.Buffer | Path) -> dict[str, set[str]]:
    """The encodings of each leaf by path."""
    group = pq.ParquetFile(content if isinstance(content, Path) else pa.BufferReader(content)).metadata.row_group(0)
    return {group.column(n).path_in_schema: set(group.column(n).encodings) for n in range(group.num_columns)}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("encoding", ["plain", "byte_stream_split"])
def test_only_the_vectors_are_split_and_only_where_it_is_asked_for(dtype: str, encoding: Encoding) -> None:
    rows = rows_of(dtype, pa.table({"score": pa.array([0.5, 1.5], pa.float32())}))
    content = encode_part(rows, "embedding", encoding)
    split = {path for path, found in encodings(content).items() if SPLIT in found}
    asked = encoding == "byte_stream_split" and dtype == "float32"
    assert split == ({"embedding.list.element"} if asked else set())
    file = pq.ParquetFile(pa.BufferReader(content))
    assert file.read().equals(rows.sort_by("id"))
    assert encoding_of(file, "embedding") == ("byte_stream_split" if asked else "plain")


def test_a_column_whose_path_is_that_of_the_vectors_is_written_all_the_same() -> None:
    kept = pa.table({"embedding.list": pa.array([{"element": "x"}, {"element": "y"}])})
    rows = rows_of("float32", kept)
    content = encode_part(rows, "embedding", "byte_stream_split")
    assert pq.ParquetFile(pa.BufferReader(content)).read().equals(rows.sort_by("id"))


@pytest.mark.parametrize("dtype", ["float16", "int8", "uint8", "binary", "ubinary"])
def test_only_float32_can_be_split(dtype: str) -> None:
    with pytest.raises(ConfigError, match=f"table.encoding is 'byte_stream_split'.* table.dtype is '{dtype}'"):
        spec_of("x", "y", "z", table={"dtype": dtype, "encoding": "byte_stream_split"})


@pytest.fixture(scope="module")
def table(tiny_model, tmp_path_factory) -> Path:
    """A table of 40 rows, all of it split."""
    folder = tmp_path_factory.mktemp("encoding")
    write_rows(folder / "a.jsonl", range(40))
    embed(spec_of(folder / "a.jsonl", tiny_model, folder / "table", table={"encoding": "byte_stream_split"}))
    return folder / "table"


def write_rows(path: Path, numbers: range) -> None:
    path.write_text("".join(json.dumps({"id": f"d{n:03}", "text": f"text {n}"}) + "\n" for n in numbers))


def with_polars(data: Path) -> list[list[float]]:
    return polars.read_parquet(f"{data}/**/*.parquet").sort("id")["embedding"].to_list()


def with_duckdb(data: Path) -> list[list[float]]:
    import duckdb

    rows = duckdb.sql(f"select embedding from read_parquet('{data}/**/*.parquet') order by id").fetchall()
    return [vector for (vector,) in rows]


def with_datasets(data: Path) -> list[list[float]]:
    import datasets

    return datasets.Dataset(pipeline.read(data.parent).to_table().sort_by("id"))["embedding"][:]


READERS: list[Callable[[Path], list[list[float]]]] = [
    lambda data: pads.dataset(data, format="parquet").to_table().sort_by("id")["embedding"].to_pylist(),
    lambda data: pandas.read_parquet(data).sort_values("id")["embedding"].tolist(),
    with_polars,
    with_duckdb,
    with_datasets,
]


@pytest.mark.parametrize("read", READERS, ids=["pyarrow", "pandas", "polars", "duckdb", "datasets"])
def test_readers_give_the_vectors_of_split_parts(
    read: Callable[[Path], list[list[float]]], table, tiny_model, tmp_path
):
    (file,) = (table / "data").rglob("*.parquet")
    assert SPLIT in encodings(file)["embedding.list.element"]
    embed(spec_of(table.parent / "a.jsonl", tiny_model, tmp_path / "plain"))
    expected = np.array(read_table(tmp_path / "plain")["embedding"].to_pylist())
    assert np.allclose(np.array([list(vector) for vector in read(table / "data")]), expected, atol=1e-6)


def by_encoding(table: Path) -> list[str]:
    files = sorted((table / "data").rglob("*.parquet"))
    return [encoding_of(pq.ParquetFile(file), "embedding") for file in files]


def test_a_table_changes_its_encoding_and_encodes_nothing_for_it(tiny_model, tmp_path):
    source, place = tmp_path / "source", tmp_path / "table"
    source.mkdir()
    write_rows(source / "a.jsonl", range(30))
    plain = spec_of(source, tiny_model, place)
    split = spec_of(source, tiny_model, place, table={"encoding": "byte_stream_split"})
    first = embed(plain)
    assert embed(split).version == first.version, "another encoding alone is nothing to do"
    write_rows(source / "b.jsonl", range(30, 40))
    encoded: list[int] = []
    second = reindex(split, encoded=encoded)
    assert sum(encoded) == 10
    assert second.fingerprint == first.fingerprint
    assert sorted(by_encoding(place)) == ["byte_stream_split", "plain"]
    # Rows leave the plain part, which is written anew for it.
    write_rows(source / "a.jsonl", range(25))
    reindex(split)
    assert set(by_encoding(place)) == {"byte_stream_split"}
    purge.purge(Folder(str(place)), ["d003"])
    assert set(by_encoding(place)) == {"byte_stream_split"}
    write_rows(source / "a.jsonl", range(24))
    reindex(plain)
    assert "plain" in by_encoding(place)
    embed(spec_of(source, tiny_model, tmp_path / "fresh"))
    # The source file was changed after the purge and still has the row.
    same_rows(read_table(place), read_table(tmp_path / "fresh"))
