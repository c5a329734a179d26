"""Arrow arrays of every type: the list of all kinds, and hypothesis strategies for types and their values."""

import datetime
import decimal
from typing import Any

import pyarrow as pa
from hypothesis import strategies as st

from pipeline.arrays import is_list

UNITS = ("s", "ms", "us", "ns")
INTEGERS = [getattr(pa, f"{sign}int{bits}")() for sign in ("", "u") for bits in (8, 16, 32, 64)]
FLOATS = [pa.float16(), pa.float32(), pa.float64()]
DECIMALS = [pa.decimal32(5, 2), pa.decimal64(15, 2), pa.decimal128(30, 2), pa.decimal256(60, 5)]
TIMES = [
    *[pa.timestamp(unit, zone) for unit in UNITS for zone in (None, "UTC", "Europe/Berlin", "+05:30")],
    *[pa.duration(unit) for unit in UNITS],
    *[pa.time32("s"), pa.time32("ms"), pa.time64("us"), pa.time64("ns"), pa.date32(), pa.date64()],
]
STRINGS = [pa.string(), pa.large_string(), pa.string_view()]
BINARIES = [pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(4)]
LEAVES = [*INTEGERS, *FLOATS, *DECIMALS, *TIMES, *STRINGS, *BINARIES, pa.bool_(), pa.null()]
DICTIONARIES = [
    *[pa.dictionary(index, pa.string()) for index in INTEGERS],
    *[pa.dictionary(pa.int32(), value) for value in LEAVES if not pa.types.is_null(value)],
    pa.dictionary(pa.int32(), pa.string(), ordered=True),
    pa.dictionary(pa.int32(), pa.list_(pa.int64())),
    pa.dictionary(pa.int32(), pa.null()),
]
_TEXT = pa.dictionary(pa.int32(), pa.string())
_TREE = pa.struct(
    [("a", pa.int64()), ("b", pa.list_(pa.struct([("c", pa.string()), ("d", pa.timestamp("us", "UTC"))])))]
)
NESTED = [
    *[pa.list_(kind) for kind in [*LEAVES, _TEXT, _TREE, pa.list_(pa.int64()), pa.list_view(pa.int64())]],
    *[
        pa.large_list(kind)
        for kind in (pa.string_view(), pa.large_string(), pa.dictionary(pa.int8(), pa.large_string()))
    ],
    *[pa.list_(kind, 2) for kind in (pa.float32(), pa.large_string(), pa.string_view(), _TEXT, pa.list_(pa.int8(), 3))],
    *[pa.list_view(pa.string()), pa.large_list_view(_TREE), pa.list_(pa.int64(), 0), pa.list_(pa.map_(_TEXT, _TREE))],
    *[pa.list_(pa.field("item", pa.float32(), nullable=False), size) for size in (-1, 2)],
    *[_TREE, pa.struct([("x", pa.null())]), pa.struct([pa.field("a", pa.int64(), nullable=False)])],
    pa.struct(
        [("a.b", _TEXT), ("v", pa.string_view()), ("f", pa.list_(pa.float16(), 2)), ("s", pa.struct([("t", _TEXT)]))]
    ),
    *[pa.map_(pa.string(), pa.int64()), pa.map_(_TEXT, pa.list_(_TEXT)), pa.map_(pa.string_view(), pa.date64())],
    pa.map_(pa.string(), pa.timestamp("s"), keys_sorted=True),
]
WRAPPED = [
    *[pa.run_end_encoded(pa.int32(), kind) for kind in (pa.string(), pa.int64(), pa.string_view(), pa.timestamp("s"))],
    *[pa.json_(), pa.uuid(), pa.bool8(), pa.fixed_shape_tensor(pa.float32(), (2,))],
]
ODD = [pa.decimal128(10, -2), pa.binary(0), pa.month_day_nano_interval(), pa.list_(pa.month_day_nano_interval())]
ALL = list({str(kind): kind for kind in [*LEAVES, *DICTIONARIES, *NESTED, *WRAPPED, *ODD]}.values())
NOWHERE = [
    pa.dense_union([pa.field("a", pa.int64())]),
    pa.sparse_union([pa.field("a", pa.int64())]),
    pa.struct([]),
    pa.struct([("a", pa.int64()), ("a", pa.string())]),
]
NOWHERE += [pa.list_(kind) for kind in NOWHERE]


def build(values: list[Any], kind: pa.DataType) -> pa.Array:
    """What `pa.array` makes, for those encodings too that it doesn't make."""
    if isinstance(kind, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(kind, build(values, kind.storage_type))
    if pa.types.is_run_end_encoded(kind):
        ends = pa.array(range(1, len(values) + 1), kind.run_end_type)
        return pa.RunEndEncodedArray.from_arrays(ends, build(values, kind.value_type))
    if pa.types.is_dictionary(kind):
        places = [None if value is None else index for index, value in enumerate(values)]
        known = build([value for value in values if value is not None], kind.value_type)
        order = {index: place for place, index in enumerate(index for index in places if index is not None)}
        indices = pa.array([None if index is None else order[index] for index in places], kind.index_type)
        return pa.DictionaryArray.from_arrays(indices, known, ordered=kind.ordered)
    return pa.array(values, kind)


def arrays(kind: pa.DataType, size: int = 5) -> st.SearchStrategy[pa.Array]:
    """Arrays of `size` values, nulls among them; one in two is a slice of a longer array."""

    def cut(values: list[Any]) -> pa.Array:
        return build(values, kind).slice(2, size)

    whole = st.lists(st.none() | values(kind), min_size=size, max_size=size).map(lambda rows: build(rows, kind))
    return whole | st.lists(st.none() | values(kind), min_size=size + 3, max_size=size + 3).map(cut)


def values(kind: pa.DataType) -> st.SearchStrategy[Any]:
    """Python values that Arrow takes for the type, none of them null."""
    types = pa.types
    if isinstance(kind, pa.BaseExtensionType):
        return values(kind.storage_type)
    if types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        return values(kind.value_type)
    if types.is_null(kind):
        return st.none()
    if types.is_boolean(kind):
        return st.booleans()
    if types.is_integer(kind):
        low = -(2 ** (kind.bit_width - 1)) if types.is_signed_integer(kind) else 0
        return st.integers(low, low + 2**kind.bit_width - 1)
    if types.is_floating(kind):
        return st.floats(width=kind.bit_width)
    if types.is_decimal(kind):
        limit = 10**kind.precision - 1
        context = decimal.Context(prec=80)
        return st.integers(-limit, limit).map(lambda number: context.scaleb(decimal.Decimal(number), -kind.scale))
    if types.is_timestamp(kind):
        zone = st.just(datetime.UTC) if kind.tz else st.none()
        first, last = datetime.datetime(1900, 1, 1), datetime.datetime(2200, 1, 1)
        return st.datetimes(first, last, timezones=zone).map(lambda moment: _cut(moment, kind.unit))
    if types.is_duration(kind):
        return st.integers(-(10**9), 10**9).map(lambda seconds: datetime.timedelta(seconds=seconds))
    if types.is_time(kind):
        return st.times().map(lambda time: _cut(time, kind.unit))
    if types.is_date(kind):
        return st.dates()
    if types.is_interval(kind):
        number = st.integers(-(2**31), 2**31 - 1)
        return st.tuples(number, number, st.integers(-(2**63), 2**63 - 1)).map(pa.MonthDayNano)
    if types.is_fixed_size_binary(kind):
        return st.binary(min_size=kind.byte_width, max_size=kind.byte_width)
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind):
        return st.binary(max_size=20)
    if is_list(kind):
        fixed = types.is_fixed_size_list(kind)
        size = {"min_size": kind.list_size, "max_size": kind.list_size} if fixed else {"max_size": 3}
        return st.lists(_item(kind.value_field), **size)
    if types.is_map(kind):
        return st.lists(st.tuples(values(kind.key_type), _item(kind.item_field)), max_size=3)
    if types.is_struct(kind):
        return st.fixed_dictionaries({item.name: _item(item) for item in kind})
    return st.text(max_size=20)


def _item(item: pa.Field) -> st.SearchStrategy[Any]:
    return st.none() | values(item.type) if item.nullable else values(item.type)


def _cut(moment: Any, unit: str) -> Any:
    return moment.replace(microsecond={"s": 0, "ms": moment.microsecond // 1000 * 1000}.get(unit, moment.microsecond))
