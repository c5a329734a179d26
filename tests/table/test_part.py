"""A part is sorted, holds only what its rows use, and keeps settings of the vectors to the vectors."""

import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.storage import Folder
from pipeline.table import part, snapshot
from pipeline.table.layout import Partition
from pipeline.table.operations import compact, merge_rows
from pipeline.table.operations.compact import Input, merged
from pipeline.table.part import Part, encode_part, part_schema, raw_bytes, split_by_partition
from pipeline.table.publication import Publication


def part_of(kept: pa.Table, embedding: str = "embedding", dim: int = 3) -> tuple[pa.Table, bytes]:
    """(rows whose ids come in falling order, the part's bytes)."""
    schema = part_schema(kept.schema, False, embedding, dim, "float32")
    count = kept.num_rows
    vectors = pa.array(np.arange(dim * count, dtype=np.float32))
    columns = {
        "id": pa.array([f"{999 - row:03}" for row in range(count)]),
        **{name: kept.column(name) for name in kept.column_names},
        embedding: pa.FixedSizeListArray.from_arrays(vectors, type=schema.field(embedding).type),
        "content_hash": pa.array([bytes(16)] * count, pa.binary(16)),
        "row_hash": pa.array([0] * count),
        "source": pa.array([0] * count, pa.int32()),
        "n_tokens": pa.array([1] * count, pa.int32()),
        "truncated": pa.array([False] * count),
    }
    rows = pa.table([columns[name] for name in schema.names], schema=schema)
    return rows, encode_part(rows, embedding).to_pybytes()


def leaves(content: bytes) -> dict[str, tuple[bool, bool]]:
    """(has a dictionary, has statistics) by path."""
    group = pq.read_metadata(pa.BufferReader(content)).row_group(0)
    columns = [group.column(index) for index in range(group.num_columns)]
    return {column.path_in_schema: (column.has_dictionary_page, column.is_stats_set) for column in columns}


@pytest.mark.parametrize("embedding", ["embedding", "my.vector", "vector list", "vektor.list.element"])
def test_only_the_vectors_go_without_dictionary_and_statistics(embedding: str) -> None:
    tree = {"a": 1, "b": [{"c": "x"}], "list": {"element": 2}}
    kept = pa.table(
        {
            "title": ["a", "b"],
            "my": [tree, tree],
            "a.b": [1, 2],
            "vector": pa.array([[1.0, 2.0]] * 2, pa.list_(pa.float32(), 2)),
            "map": pa.array([[("k", 1)]] * 2, pa.map_(pa.string(), pa.int64())),
        }
    )
    rows, content = part_of(kept, embedding)
    found = leaves(content)
    plain = {path for path, settings in found.items() if settings == (False, False)}
    assert plain == {f"{embedding}.list.element"}
    assert {"my.a", "my.b.list.element.c", "my.list.element", "a.b", "vector.list.element", "map.key_value.key"} < set(
        found
    )
    back = pq.read_table(pa.BufferReader(content))
    assert back.equals(rows.sort_by("id"))


def test_a_column_named_like_the_leaf_of_the_vectors_is_kept() -> None:
    kept = pa.table({"embedding.list.element": ["x", "y"], "embedding.list": [1, 2]})
    rows, content = part_of(kept)
    assert pq.ParquetFile(pa.BufferReader(content)).read().equals(rows.sort_by("id"))


def test_columns_whose_paths_are_the_same_are_both_kept() -> None:
    kept = pa.table({"a.b": [1, 2], "a": [{"b": "x"}, {"b": "y"}]})
    rows, content = part_of(kept)
    assert pq.ParquetFile(pa.BufferReader(content)).read().equals(rows.sort_by("id"))


def test_no_part_holds_values_of_rows_that_it_has_not() -> None:
    text = pa.DictionaryArray.from_arrays(pa.array([1, 0], pa.int32()), pa.array(["a", "b", "of a deleted row"]))
    nested = pa.StructArray.from_arrays([pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), text)], ["s"])
    kept = pa.table({"top": text, "nested": nested})
    rows, content = part_of(kept)
    back = pq.ParquetFile(pa.BufferReader(content)).read()
    assert back.to_pylist() == rows.sort_by("id").to_pylist()
    assert back.schema.equals(rows.schema)
    assert back.column("top").chunk(0).dictionary.to_pylist() == ["a", "b"]
    assert sorted(back.column("nested").chunk(0).field("s").values.dictionary.to_pylist()) == ["a", "b"]


def test_rows_of_a_partition_keep_columns_of_every_type() -> None:
    kept = pa.table(
        {
            "lang": pa.array(["en", "de", "en"]),
            "tags": pa.array([["x"], None, []], pa.list_(pa.dictionary(pa.int32(), pa.string()))),
            "sizes": pa.array([[("a", 1)], [], None], pa.map_(pa.string(), pa.int64())),
        }
    )
    groups = dict(split_by_partition(kept, ["lang"]))
    assert {key: group.to_pylist() for key, group in groups.items()} == {
        (("lang", "en"),): [{"tags": ["x"], "sizes": [("a", 1)]}, {"tags": [], "sizes": None}],
        (("lang", "de"),): [{"tags": None, "sizes": []}],
    }


@given(
    st.lists(st.lists(st.text(max_size=3), max_size=12), max_size=5),
    st.integers(1, 4),
)
def test_merged_streams_are_sorted_and_have_every_row(ids: list[list[str]], step: int) -> None:
    def stream(own: list[str]) -> Iterator[pa.Table]:
        rows = pa.table({"id": pa.array(own, pa.string()), "length": [len(item) for item in own]}).sort_by("id")
        for start in range(0, rows.num_rows, step):
            yield rows.slice(start, step)

    found = pa.concat_tables([pa.table({"id": pa.array([], pa.string()), "length": pa.array([], pa.int64())})])
    found = pa.concat_tables([found, *merged([stream(own) for own in ids])])
    assert found.column("id").to_pylist() == sorted((item for own in ids for item in own), key=str.encode)
    assert found.column("length").to_pylist() == [len(item) for item in found.column("id").to_pylist()]


PUBLICATION = Publication(Folder("table"), snapshot.empty())


def staged(size: int, source: int = 0, partition: Partition = ()) -> Input:
    return Input(
        part=Part(
            path=f"{source:04}",
            size=size // 2,
            rows=1,
            raw_bytes=size,
            partition=partition,
            units=(),
            sources=(source,),
        )
    )


SIZES = st.tuples(st.integers(1, 40 * 2**20), st.sampled_from("ab"), st.sampled_from(["staged", "live", "losing"]))


@given(st.lists(SIZES, min_size=1, max_size=40))
@example([(40 * 2**20, "a", "staged")] * 8 + [(1, "a", "staged")] * 3)
@example([(15 * 2**20, "a", "losing"), *[(2 * 2**20, "a", "live")] * 8, (15 * 2**20, "a", "staged")])
def test_merged_parts_are_of_one_size_and_of_neighbouring_sources(found: list[tuple[int, str, str]]) -> None:
    items = [staged(size, source, (("lang", name),)) for source, (size, name, _) in enumerate(found)]
    items = [
        replace(item, removed=b"1234") if kind == "losing" else item
        for item, (_, _, kind) in zip(items, found, strict=True)
    ]
    new = [item for item, (_, _, kind) in zip(items, found, strict=True) if kind == "staged"]
    full = 32 * 2**20
    as_is, jobs = compact.choose(new, [item for item in items if item not in new], full, PUBLICATION)
    assert {part.path for part in as_is} <= {item.part.path for item in new}
    groups = [list(job.inputs) for job in jobs] + [[item] for item in new if item.part in as_is]
    groups.sort(key=lambda group: group[0].part.path)
    assert sorted(item.part.path for group in groups for item in group) == [item.part.path for item in items]
    for name in "ab":
        own = [group for group in groups if group[0].part.partition == (("lang", name),)]
        assert all(item.part.partition == (("lang", name),) for group in own for item in group)
        paths = [item.part.path for group in own for item in group]
        assert paths == sorted(paths)
        sizes = [raw_bytes(item.part for item in group) for group in own]
        assert all(size <= full or len(group) == 1 for size, group in zip(sizes, own, strict=True))
        assert all(first + second > full / 2 for first, second in itertools.pairwise(sizes))


@pytest.mark.parametrize("rows", [20_000, 200_000])
def test_a_small_table_is_cut_evenly(rows: int) -> None:
    items = [staged(4096 * 1650, source) for source in range(rows // 4096)]
    _, jobs = compact.choose(items, [], compact.full_bytes(rows * 1650), PUBLICATION)
    sizes = [raw_bytes(item.part for item in job.inputs) for job in jobs]
    assert len(sizes) > 1
    assert min(sizes) > 0.6 * max(sizes) > 0.4 * compact.LEAST_FULL


def test_parts_grow_with_their_table_between_two_bounds() -> None:
    sizes = [compact.full_bytes(gib * 2**30) for gib in (0, 1, 4, 8, 1000)]
    assert sizes == [compact.LEAST_FULL, compact.LEAST_FULL, 64 * 2**20, compact.MOST_FULL, compact.MOST_FULL]


@pytest.mark.parametrize(("size", "merged"), [(2**20, 9), (12 * 2**20, 0)])
def test_new_rows_pull_in_parts_that_are_far_from_full(size: int, merged: int) -> None:
    parts = tuple(staged(size, source).part for source in range(9))
    parent = replace(snapshot.empty(), parts=parts)
    small_bytes = compact.full_bytes(raw_bytes(parts)) // merge_rows.SMALL_SHARE
    assert len(merge_rows._small_beside(parent, [staged(1000, 9).part], set(), small_bytes)) == merged


@pytest.mark.parametrize("piece_rows", [1, 3, 1000])
def test_row_groups_are_full_whatever_comes_in(piece_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part, "ROW_GROUP_ROWS", 7)
    rows = pa.table({"id": [f"{row:02}" for row in range(30)]})
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(60, dtype=np.float32)), 2)
    rows = rows.append_column("embedding", vectors)
    pieces = (rows.slice(start, piece_rows) for start in range(0, 30, piece_rows))
    content = part.encode_sorted(pieces, rows.schema, "embedding")
    file = pq.ParquetFile(pa.BufferReader(content))
    groups = [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]
    assert groups == [7, 7, 7, 7, 2]
    assert file.read().equals(rows)


def test_no_rows_are_a_file_all_the_same() -> None:
    schema = pa.schema([("id", pa.string()), ("embedding", pa.list_(pa.float32(), 2))])
    content = part.encode_sorted([], schema, "embedding")
    assert pq.ParquetFile(pa.BufferReader(content)).read().num_rows == 0
