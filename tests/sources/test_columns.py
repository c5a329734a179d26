"""Columns of every Arrow type reach the table unchanged; what doesn't fit is an error of its row, never another value."""

import math
import pickle
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipeline import identity
from pipeline.arrays import cast_exactly
from pipeline.config import SourceSpec
from pipeline.schema import embedding_type
from pipeline.sources.column_types import (
    can_be_id,
    carried_type,
    plain_type,
    unite,
    without_nulls,
)
from pipeline.sources.columns import (
    Block,
    column_names,
    conform,
    excluded_block,
    join_ids,
    row_bytes,
    skipped_block,
    to_ids,
)
from pipeline.stages.slice_row import from_cell, to_ipc
from pipeline.storage import Folder
from pipeline.table.operations.compact import Input, Rewrite, rewrite
from pipeline.table.part import Part, encode_part, part_schema
from tests.arrows import (
    ALL,
    BINARIES,
    DECIMALS,
    DICTIONARIES,
    FLOATS,
    INTEGERS,
    LEAVES,
    NESTED,
    NOWHERE,
    STRINGS,
    TIMES,
    arrays,
    build,
    values,
)

ROWS = 5


def same(a: Any, b: Any) -> bool:
    """Equal, NaN to NaN included, whatever the encoding."""
    if isinstance(a, float) and isinstance(b, float):
        return a == b or (math.isnan(a) and math.isnan(b))
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return bool(a == b)


def listed(values: pa.Array | pa.ChunkedArray) -> list[Any]:
    """Python values; an extension's are its storage's, a calendar interval is a dict."""
    if isinstance(values, pa.ExtensionArray):
        values = values.storage

    def plain(value: Any) -> Any:
        if isinstance(value, pa.MonthDayNano):
            return {"months": value[0], "days": value[1], "nanoseconds": value[2]}
        return [plain(item) for item in value] if isinstance(value, list) else value

    return [plain(value) for value in values.to_pylist()]


# --- all the way into the table


def to_rows(kept: pa.Array, first: int) -> tuple[pa.Table, pa.Schema]:
    schema = part_schema(pa.schema([pa.field("x", kept.type)]), False, "embedding", 2, "float32")
    count = len(kept)
    vectors = pa.FixedSizeListArray.from_arrays(np.ones(2 * count, np.float32), type=schema.field("embedding").type)
    # Ids in another order than the rows, so that the part sorts them.
    ids = [f"{9 - first - index}" for index in range(count)]
    lineage = [
        identity.content_hashes(pa.array(ids), ""),
        identity.row_hashes(pa.table({"x": kept})),
        pa.array([0] * count, pa.int32()),
        pa.array([1] * count, pa.int32()),
        pa.array([False] * count),
    ]
    return pa.table([pa.array(ids), kept, vectors, *lineage], schema=schema), schema


@pytest.mark.parametrize("kind", ALL, ids=str)
@settings(max_examples=4, deadline=None)
@given(data=st.data())
def test_every_type_reaches_the_table_unchanged(kind: pa.DataType, tmp_path_factory, data) -> None:
    carried = carried_type(kind)
    assert carried is not None
    assert carried_type(carried) == carried
    table = Folder(str(tmp_path_factory.mktemp("table")), {})
    given_rows, inputs = [], []
    for index in range(2):
        column = data.draw(arrays(kind, ROWS))
        kept, misfits = conform(column, carried)
        assert not misfits
        assert kept.type == carried
        rows, schema = to_rows(kept, index * ROWS)
        # As it travels: taken apart, put together, sent from process to process, cast to the schema of the part.
        rows = pa.concat_tables([rows.slice(0, 2), rows.filter(pa.array([False] * 2 + [True] * 3))]).combine_chunks()
        rows = from_cell(pa.table({"c": [to_ipc(rows).to_pybytes()]}), "c").cast(schema)
        content = encode_part(rows, "embedding")
        table.write(f"{index}.parquet", content)
        part = Part(
            path=f"{index}.parquet", size=content.size, rows=ROWS, raw_bytes=1, partition=(), units=("u",), sources=(0,)
        )
        inputs.append(Input(part=part))
        given_rows += zip(
            rows.column("id").to_pylist(), listed(column), rows.column("row_hash").to_pylist(), strict=True
        )
    merged = rewrite(table, Rewrite(inputs=tuple(inputs), output="merged.parquet"), "embedding")
    content = table.read(merged.path)
    assert content is not None
    found = pq.ParquetFile(pa.BufferReader(content)).read()
    found.validate(full=True)
    assert found.schema.field("x").type == carried
    found_rows = zip(*(found.column(name).to_pylist() for name in ("id", "x", "row_hash")), strict=True)
    assert same(list(found_rows), sorted(given_rows, key=lambda row: row[0]))


@pytest.mark.parametrize("kind", NOWHERE, ids=str)
def test_what_parquet_can_not_hold_is_not_carried(kind: pa.DataType) -> None:
    assert carried_type(kind) is None


@pytest.mark.parametrize(
    "kind", [*INTEGERS, *FLOATS, *DECIMALS, *STRINGS[:2], pa.binary(), pa.large_list(pa.int8())], ids=str
)
def test_a_type_that_survives_is_carried_as_it_is(kind: pa.DataType) -> None:
    assert carried_type(kind) == kind


def test_dictionaries_that_together_pass_their_index_can_be_joined() -> None:
    carried = carried_type(pa.dictionary(pa.int8(), pa.string()))
    pieces = [
        conform(build([f"{letter}{n}" for n in range(100)], pa.dictionary(pa.int8(), pa.string())), carried)[0]
        for letter in "ab"
    ]
    assert len(pa.chunked_array(pieces).combine_chunks().dictionary) == 200


# --- uniting types


def united() -> st.SearchStrategy[pa.DataType]:
    """Types with many that can be united among them."""
    leaves = st.sampled_from([*LEAVES, *DICTIONARIES[:12]]) | st.builds(
        lambda kind, digits, scale: kind(digits, min(scale, digits)),
        st.sampled_from([pa.decimal128, pa.decimal256]),
        st.integers(1, 38),
        st.integers(0, 38),
    )

    def nested(kinds: st.SearchStrategy[pa.DataType]) -> st.SearchStrategy[pa.DataType]:
        def field(name: str, kind: pa.DataType, nullable: bool) -> pa.Field:
            return pa.field(name, kind, nullable or pa.types.is_null(kind))

        fields = st.builds(field, st.sampled_from("abc"), kinds, st.booleans())
        items = st.builds(field, st.just("item"), kinds, st.booleans())
        return st.one_of(
            st.builds(pa.list_, items, st.sampled_from([-1, 2, 3])),
            items.map(pa.large_list),
            st.lists(fields, min_size=1, max_size=3, unique_by=lambda item: item.name).map(pa.struct),
            st.builds(pa.map_, st.sampled_from([pa.string(), pa.int8(), pa.int32()]), items),
        )

    return st.recursive(leaves, nested, max_leaves=4)


@given(united(), united())
def test_uniting_is_symmetric_and_keeps_what_is_equal(a: pa.DataType, b: pa.DataType) -> None:
    assert unite(a, a) == a
    assert unite(a, b) == unite(b, a)
    assert str(unite(a, b)) == str(unite(b, a))
    both = unite(a, b)
    if both is not None:
        assert unite(both, a) == both
        assert unite(both, b) == both


FAMILIES = [INTEGERS, FLOATS, STRINGS + DICTIONARIES[:8], BINARIES, TIMES, [*DECIMALS, pa.decimal128(38, 0)]]


@given(st.data())
def test_uniting_is_associative_where_it_is_defined(data) -> None:
    pool = data.draw(st.sampled_from(FAMILIES) | st.lists(united(), min_size=1, max_size=8))
    a = data.draw(st.sampled_from(pool))
    b = data.draw(st.sampled_from([kind for kind in pool if unite(a, kind) is not None]))
    both = unite(a, b)

    def goes_with_both(kind: pa.DataType) -> bool:
        right = unite(b, kind)
        return right is not None and unite(both, kind) is not None and unite(a, right) is not None

    c = data.draw(st.sampled_from([kind for kind in pool if goes_with_both(kind)]))  # b is among them
    if data.draw(st.booleans()):
        a, b, c = (
            pa.struct([(name, kind)]) for name, kind in zip(data.draw(st.permutations("xxy")), (a, b, c), strict=True)
        )
    assert unite(unite(a, b), c) == unite(a, unite(b, c))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_values_of_both_types_are_values_of_the_united_one(data) -> None:
    pool = st.sampled_from(data.draw(st.sampled_from(FAMILIES))) | united()
    a, b = data.draw(pool), data.draw(pool)
    both = unite(a, b)
    assume(both is not None)
    for kind in (a, b):
        column = data.draw(arrays(kind))
        cast, misfits = conform(column, both)
        assert cast.type == both
        assert not misfits
        found, expected = cast.to_pylist(), column.to_pylist()
        if not pa.types.is_nested(both):
            assert same(found, expected)
        else:
            assert same(cast_exactly(cast, plain_type(kind)).to_pylist(), expected)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (pa.int64(), pa.float64()),
        (pa.int64(), pa.string()),
        (pa.int64(), pa.uint64()),
        (pa.int64(), pa.decimal128(38, 0)),
        (pa.string(), pa.binary()),
        (pa.bool_(), pa.int8()),
        (pa.timestamp("us"), pa.timestamp("us", "UTC")),
        (pa.timestamp("us", "UTC"), pa.timestamp("us", "Europe/Berlin")),
        (pa.timestamp("us"), pa.date32()),
        (pa.decimal256(76, 0), pa.decimal128(20, 10)),
        (pa.list_(pa.int8()), pa.int8()),
        (pa.struct([("a", pa.int8())]), pa.struct([("a", pa.string())])),
    ],
    ids=str,
)
def test_kinds_that_mean_different_things_are_not_united(a: pa.DataType, b: pa.DataType) -> None:
    assert unite(a, b) is None
    assert unite(pa.list_(a), pa.list_(b)) is None


def test_structs_unite_by_name() -> None:
    one = pa.struct([("a", pa.int8()), ("b", pa.string())])
    other = pa.struct([pa.field("c", pa.int8(), nullable=False), pa.field("a", pa.int64())])
    both = unite(one, other)
    assert both == pa.struct([("a", pa.int64()), ("b", pa.string()), ("c", pa.int8())])
    assert conform(pa.array([{"a": 1, "b": "x"}, None], one), both)[0].to_pylist() == [
        {"a": 1, "b": "x", "c": None},
        None,
    ]


def test_types_never_seen_with_a_value_become_strings() -> None:
    kind = pa.struct([("a", pa.null()), ("b", pa.large_list(pa.null()))])
    assert without_nulls(kind) == pa.struct([("a", pa.string()), ("b", pa.large_list(pa.string()))])


# --- values


@pytest.mark.parametrize(
    ("given_values", "kind", "fits"),
    [
        (pa.array([1000, 1001], pa.timestamp("ns")), pa.timestamp("us"), [True, False]),
        (pa.array([10**9, 10**11], pa.timestamp("s")), pa.timestamp("ns"), [True, False]),
        (pa.array([0], pa.timestamp("us")), pa.timestamp("us", "UTC"), [False]),
        (pa.array([0], pa.timestamp("us", "UTC")), pa.timestamp("us"), [False]),
        (pa.array([86400000, 1], pa.int64()).view(pa.date64()), pa.date32(), [True, False]),
        (pa.array([0.5, 0.1, math.nan, math.inf]), pa.float32(), [True, False, True, True]),
        (pa.array([1.0, 0.5, math.nan, 1e300]), pa.int64(), [True, False, False, False]),
        (pa.array([127, 128]), pa.int8(), [True, False]),
        (pa.array([0, 1, 2]), pa.bool_(), [True, True, False]),
        (pa.array([2048, 2049]), pa.float16(), [True, False]),
        (pa.array([2**53, 2**53 + 1]), pa.float64(), [True, False]),
        (pa.array([12, 123456]), pa.decimal128(5, 2), [True, False]),
        (pa.array([Decimal("0.01")], pa.decimal32(5, 2)), pa.decimal128(15, 12), [True]),
        (pa.array([Decimal("0.01"), Decimal("0.10")]), pa.decimal32(5, 1), [False, True]),
        (pa.array([1, -5]), pa.string(), [True, True]),
        (pa.array(["7", "x", "", "1.5"]), pa.int64(), [True, False, False, False]),
        (pa.array(["0.1", "1e999", "inf", "9007199254740993", "x"]), pa.float64(), [True, False, True, False, False]),
        (pa.array(["1.20", "1.255"]), pa.decimal128(5, 2), [True, False]),
        (pa.array(["2024-01-31", "2024-02-31"]), pa.date32(), [True, False]),
        (pa.array(["10:11:12.5", "25:00:00"]), pa.time32("ms"), [True, False]),
        (pa.array(["2024-01-31T10:00:00Z", "2024-01-31"]), pa.timestamp("s", "UTC"), [True, False]),
        (pa.array([b"a", b"\xff"]), pa.string(), [True, False]),
        (pa.array([b"abcd", b"abc"]), pa.binary(4), [True, False]),
        (pa.array([[1, 2], [1], None]), pa.list_(pa.int64(), 2), [True, False, True]),
        (pa.array([[1, 300], [1, 2], []]), pa.list_(pa.int8()), [False, True, True]),
        (pa.array([[1, None], [1]]), pa.list_(pa.field("item", pa.int64(), nullable=False)), [False, True]),
        (pa.array([{"a": 1}, {"a": 300}, None]), pa.struct([("a", pa.int8())]), [True, False, True]),
        (pa.array([{"a": 1, "b": 2}, {"a": 1}]), pa.struct([("a", pa.int8())]), [False, True]),
        (pa.array([{"a": None}, None]), pa.struct([pa.field("a", pa.int64(), nullable=False)]), [False, True]),
        (
            pa.array([[("a", 1)], [("a", 300)]], pa.map_(pa.string(), pa.int64())),
            pa.map_(pa.string(), pa.int8()),
            [True, False],
        ),
        (pa.array(["1", "x", "1"]).dictionary_encode(), pa.int8(), [True, False, True]),
        (pa.array(["1", "x"], pa.string_view()), pa.int8(), [True, False]),
        (pa.array(["1", "x"]), pa.list_(pa.int8()), [False, False]),
    ],
    ids=lambda value: str(getattr(value, "type", value)),
)
def test_what_a_cast_would_change_is_an_error_of_its_row(
    given_values: pa.Array, kind: pa.DataType, fits: list[bool]
) -> None:
    padded = pa.concat_arrays([given_values, given_values]).slice(len(given_values) - 1, len(given_values) + 1)
    for column, expected in ((given_values, fits), (padded, [fits[-1], *fits])):
        cast, errors = conform(column, kind)
        assert cast.type == kind
        assert sorted(errors) == [row for row, good in enumerate(expected) if not good]
        assert all(not cast[row].is_valid for row in errors)
        for row in set(range(len(column))) - errors.keys():
            assert cast[row].is_valid == column[row].is_valid
            alone = cast_exactly(column.slice(row, 1), kind)
            assert same(alone.to_pylist(), cast.slice(row, 1).to_pylist())


@pytest.mark.parametrize(
    "kind", [*STRINGS, pa.dictionary(pa.int32(), pa.string()), pa.list_(pa.large_string())], ids=str
)
def test_broken_text_is_told_from_text_that_does_not_fit(kind: pa.DataType) -> None:
    rows = [b"good", b"\xff\xfe", None, "é".encode()]
    raw = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary(), pa.string_view(): pa.binary_view()}
    if pa.types.is_dictionary(kind):
        dictionary = pa.array([b"good", b"\xff\xfe", "é".encode()]).view(pa.string())
        column = pa.DictionaryArray.from_arrays(pa.array([0, 1, None, 2], pa.int32()), dictionary)
    elif pa.types.is_list(kind):
        items = pa.array([row for row in rows if row], pa.large_binary()).view(pa.large_string())
        nulls = pa.array([False, False, True, False])
        column = pa.ListArray.from_arrays(pa.array([0, 1, 2, 2, 3], pa.int32()), items, mask=nulls)
    else:
        column = pa.Array.from_buffers(kind, 4, pa.array(rows, raw[kind]).buffers())
    for target in (carried_type(kind), plain_type(kind)):
        cast, errors = conform(column, target)
        assert errors == {1: "is not valid UTF-8"}
        assert [value.is_valid for value in cast] == [True, False, False, True]


def test_a_column_of_nulls_has_any_type() -> None:
    for kind in ALL:
        cast, errors = conform(pa.nulls(2), carried_type(kind))
        assert (cast.type, cast.null_count, errors) == (carried_type(kind), 2, {})


def test_dictionaries_hold_only_what_their_rows_use() -> None:
    column = pa.DictionaryArray.from_arrays(pa.array([1, 0]), pa.array(["a", "b", "never seen"]))
    assert conform(column, pa.dictionary(pa.int32(), pa.string()))[0].dictionary.to_pylist() == ["b", "a"]


# --- ids


@pytest.mark.parametrize("kind", [kind for kind in [*LEAVES, *DICTIONARIES] if can_be_id(kind)], ids=str)
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_different_values_have_different_ids_whatever_their_encoding(kind: pa.DataType, data) -> None:
    column = data.draw(arrays(kind))
    ids = to_ids(pa.chunked_array([column.slice(0, 2), column.slice(2)]))
    assert ids.type == pa.string()
    assert ids.to_pylist() == to_ids(cast_exactly(column, plain_type(kind))).to_pylist()
    pairs = set(zip(column.to_pylist(), ids.to_pylist(), strict=True))
    assert len(pairs) == len({value for value, _ in pairs}) == len({text for _, text in pairs})
    assert all((value is None) == (text is None) for value, text in pairs)


def test_floats_and_lists_are_no_ids() -> None:
    assert not any(can_be_id(kind) for kind in [*FLOATS, *NESTED, pa.bool_(), pa.null()])


PARTS = st.none() | st.text(":\\a", max_size=4)


@given(st.integers(1, 3).flatmap(lambda width: st.lists(st.tuples(*[PARTS] * width), min_size=1, max_size=20)))
def test_different_tuples_have_different_ids(rows: list[tuple[str | None, ...]]) -> None:
    ids = join_ids([pa.array(column, pa.string()) for column in zip(*rows, strict=True)]).to_pylist()
    assert [value is None for value in ids] == [None in row for row in rows]
    whole = {row: value for row, value in zip(rows, ids, strict=True) if value is not None}
    assert len(set(whole.values())) == len(whole)


def test_joined_ids_can_be_read() -> None:
    assert join_ids([pa.array(["a", "a:b"]), pa.array(["1", "\\"])]).to_pylist() == ["a:1", "a\\:b:\\\\"]
    assert join_ids([pa.array(["a:b"])]).to_pylist() == ["a:b"]


# --- sizes and blocks


def text_bytes(value: Any) -> int:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return sum(map(text_bytes, value))
    return len(value.encode() if isinstance(value, str) else value) if isinstance(value, str | bytes) else 0


@pytest.mark.parametrize(
    "kind", [carried_type(kind) for kind in [*STRINGS, *BINARIES, *DICTIONARIES, *NESTED]], ids=str
)
@settings(max_examples=4, deadline=None)
@given(data=st.data())
def test_a_row_has_at_least_the_bytes_of_its_texts(kind: pa.DataType, data) -> None:
    column, _ = conform(data.draw(arrays(kind)), kind)
    sizes = row_bytes(pa.table({"x": pa.chunked_array([column.slice(0, 2), column.slice(2)])}))
    expected = [text_bytes(value) for value in column.to_pylist()]
    assert all(found >= at_least for found, at_least in zip(sizes.tolist(), expected, strict=True))
    if not pa.types.is_nested(kind) and pa.types.is_string(plain_type(kind)):
        assert sizes.tolist() == expected


def test_a_row_of_another_does_not_add_to_its_size() -> None:
    rows = [["x" * 1000], ["y"], [], None]
    for kind in (
        pa.list_(pa.string()),
        pa.large_list(pa.large_string()),
        pa.list_(pa.dictionary(pa.int32(), pa.string())),
    ):
        assert row_bytes(pa.table({"x": pa.array(rows, kind)})).tolist() == [1004, 5, 0, 0]
    assert row_bytes(pa.table({"x": pa.array(["x" * 1000, "y", None]).dictionary_encode()})).tolist() == [1000, 1, 0]
    structs = pa.array([{"a": "xyz", "b": 1}, None], pa.struct([("a", pa.string()), ("b", pa.int64())]))
    assert row_bytes(pa.table({"x": structs})).tolist() == [11, 8]


def test_each_column_is_read_once() -> None:
    spec = SourceSpec(path="x", text=("title", "body"), id=("lang", "n"), where='lang == "en" and `a b` > 1')
    assert list(column_names(spec, ["title", "url"])) == ["lang", "n", "title", "body", "url", "a b"]
    assert list(column_names(SourceSpec(path="x", text="t"), [])) == ["t"]


def test_an_excluded_block_is_not_a_skipped_one() -> None:
    assert (excluded_block(3).rows, excluded_block(3).excluded, excluded_block(3).columns) == (3, True, None)
    assert not skipped_block(3).excluded
    whole = Block(rows=2, columns=pa.table({"a": [1, 2]}), positions=pa.array([5, 6]), errors={1: "bad"})
    assert whole.slice(1, 2).errors == {0: "bad"}
    assert not whole.slice(1, 2).excluded


@given(st.sampled_from(LEAVES).flatmap(lambda kind: st.tuples(st.just(kind), st.lists(values(kind), max_size=3))))
def test_values_that_are_not_text_have_the_size_of_their_type(pair: tuple[pa.DataType, list[Any]]) -> None:
    kind, rows = pair
    assume(not any(check(plain_type(kind)) for check in (pa.types.is_string, pa.types.is_binary, pa.types.is_null)))
    expected = max(1, kind.bit_width // 8)
    assert row_bytes(pa.table({"x": build(rows, kind)})).tolist() == [expected] * len(rows)


@given(united())
def test_a_type_is_the_same_in_another_process(kind: pa.DataType) -> None:
    schema = pa.schema([pa.field("column", kind), pa.field("vectors", embedding_type(4, "float32"), nullable=False)])
    assert pickle.loads(pickle.dumps(schema)).equals(schema, check_metadata=True)
    assert str(pickle.loads(pickle.dumps(schema))) == str(schema)
    empty = schema.empty_table()
    assert pickle.loads(pickle.dumps(empty)).schema.equals(schema)
