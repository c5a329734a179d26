"""Types of source columns: which ones are one type, and what each is in the table.

Comes in: Arrow types as files have them. Goes out: the types that the table carries. Knows no values, files or formats. All
functions are pure.
"""

from collections.abc import Callable

import pyarrow as pa

from pipeline.arrays import INTERVAL_STRUCT, is_list, map_children

_SIGNED = (pa.int8(), pa.int16(), pa.int32(), pa.int64())
_UNSIGNED = (pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64())
_FLOATS = (pa.float16(), pa.float32(), pa.float64())
_UNITS = ("s", "ms", "us", "ns")
_DECIMALS = ((9, pa.decimal32), (18, pa.decimal64), (38, pa.decimal128), (76, pa.decimal256))
"""The most digits of each width."""


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type without its encoding: string for string_view, large_string and dictionaries of them, and so on."""
    if isinstance(kind, pa.BaseExtensionType):
        return plain_type(kind.storage_type)
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return plain_type(kind.value_type)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return pa.binary()
    if is_list(kind) and not pa.types.is_fixed_size_list(kind):
        return pa.list_(kind.value_field.with_type(plain_type(kind.value_type)))
    return map_children(kind, plain_type)


def named_type(kind: pa.DataType) -> pa.DataType:
    """The plain type of a column that names rows: a UUID is the text that everybody writes it as."""
    return pa.string() if is_uuid(kind) else plain_type(kind)


def is_uuid(kind: pa.DataType) -> bool:
    return isinstance(kind, pa.BaseExtensionType) and kind.extension_name == "arrow.uuid"


class _NotCarried(Exception):
    """The type has no place in the table."""


def carried_type(kind: pa.DataType) -> pa.DataType | None:
    """The type that a column of `kind` has in the table: `kind` itself wherever Arrow and Parquet keep it unchanged.

    Otherwise the nearest that holds all its values: seconds become milliseconds, date64 becomes date32, views and
    run-ends lose their encoding, extensions are their storage, a calendar interval is a struct. Dictionaries stay for
    text and binary, with 32 bits of index at least, so that pieces can be joined, and unordered, since the joined ones
    have no order. Items of lists of fixed size may be null; what is null throughout inside a nested type is a string.
    None for what has no place in Parquet: unions, and structs without fields or with two of one name.
    """
    try:
        return _carried(kind)
    except _NotCarried:
        return None


def _carried(kind: pa.DataType) -> pa.DataType:
    if isinstance(kind, pa.BaseExtensionType):
        return _carried(kind.storage_type)
    if pa.types.is_run_end_encoded(kind):
        return _carried(kind.value_type)
    if pa.types.is_dictionary(kind):
        return _carried_dictionary(kind)
    if pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_binary_view(kind) or kind == pa.binary(0):
        return pa.binary()
    if pa.types.is_interval(kind):
        return INTERVAL_STRUCT
    if pa.types.is_date64(kind):
        return pa.date32()
    if pa.types.is_time32(kind):
        return pa.time32("ms")
    if pa.types.is_timestamp(kind) and kind.unit == "s":
        return pa.timestamp("ms", kind.tz)
    if pa.types.is_decimal(kind) and kind.scale < 0:
        return _decimal(kind.precision - kind.scale, 0, kind.bit_width) or _refuse()
    if pa.types.is_union(kind):
        _refuse()
    if pa.types.is_struct(kind) and not 0 < len({item.name for item in kind}) == kind.num_fields:
        _refuse()
    if pa.types.is_fixed_size_list(kind):
        # Arrow reads no lists of size 0 back, and puts null items below each null list.
        item = pa.field(kind.value_field.name, _carried_child(kind.value_type))
        return pa.list_(item, kind.list_size or -1)
    return map_children(kind, _carried_child)


def _carried_child(kind: pa.DataType) -> pa.DataType:
    # Casting lists of nulls, even to their own type, leaves some with wrong offsets.
    return pa.string() if pa.types.is_null(kind) else _carried(kind)


def _refuse() -> pa.DataType:
    raise _NotCarried


def _carried_dictionary(kind: pa.DataType) -> pa.DataType:
    value = plain_type(kind.value_type)
    if not (pa.types.is_string(value) or pa.types.is_binary(value)):
        return _carried(kind.value_type)
    return pa.dictionary(kind.index_type if kind.index_type.bit_width >= 32 else pa.int32(), value)


def unite(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    """The narrowest type that holds all values of both exactly, None if there is none; equal types stay as they are.

    No integer is a float, no number a string, no local time one of a zone. Instants too far off for the finer unit of
    two don't fit it. Structs have the fields of both, by name. The order of the arguments does not matter.
    """
    if a == b or pa.types.is_null(b):
        return a
    if pa.types.is_null(a):
        return b
    a, b = _without_wrapping(a), _without_wrapping(b)
    if a == b:
        return a
    if is_list(a) and is_list(b):
        return _unite_lists(a, b)
    if pa.types.is_struct(a) and pa.types.is_struct(b):
        return _unite_structs(a, b)
    if pa.types.is_map(a) and pa.types.is_map(b):
        key, item = _unite_fields(a.key_field, b.key_field, "key"), _unite_fields(a.item_field, b.item_field, "value")
        return pa.map_(key, item, a.keys_sorted and b.keys_sorted) if key and item else None
    return _unite_leaves(plain_type(a), plain_type(b))


def _without_wrapping(kind: pa.DataType) -> pa.DataType:
    """Without what can stand around a nested type; a leaf keeps its encoding."""
    while isinstance(kind, pa.BaseExtensionType) or pa.types.is_run_end_encoded(kind):
        kind = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind.value_type
    if pa.types.is_dictionary(kind) and pa.types.is_nested(kind.value_type):
        return _without_wrapping(kind.value_type)
    return kind


def _unite_leaves(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    if a == b or pa.types.is_null(b):
        return a
    if pa.types.is_null(a):
        return b
    for family in (_SIGNED, _UNSIGNED, _FLOATS):
        if a in family and b in family:
            return family[max(family.index(a), family.index(b))]
    for signed, unsigned in ((a, b), (b, a)):
        if signed in _SIGNED and unsigned in _UNSIGNED:
            wider = max(_SIGNED.index(signed), _UNSIGNED.index(unsigned) + 1)
            return _SIGNED[wider] if wider < len(_SIGNED) else None
    if _both(pa.types.is_decimal, a, b):
        scale = max(a.scale, b.scale)
        digits = max(a.precision - a.scale, b.precision - b.scale)
        return _decimal(digits + scale, scale, max(a.bit_width, b.bit_width))
    if _both(pa.types.is_timestamp, a, b):
        return pa.timestamp(_finer(a, b), a.tz) if a.tz == b.tz else None
    if _both(pa.types.is_duration, a, b):
        return pa.duration(_finer(a, b))
    if _both(pa.types.is_time, a, b):
        unit = _finer(a, b)
        return pa.time32(unit) if unit in ("s", "ms") else pa.time64(unit)
    if _both(pa.types.is_date, a, b):
        return pa.date32()
    if _both(lambda kind: pa.types.is_binary(kind) or pa.types.is_fixed_size_binary(kind), a, b):
        return pa.binary()
    return None


def _both(check: Callable[[pa.DataType], bool], a: pa.DataType, b: pa.DataType) -> bool:
    return check(a) and check(b)


def _finer(a: pa.DataType, b: pa.DataType) -> str:
    return _UNITS[max(_UNITS.index(a.unit), _UNITS.index(b.unit))]


def _decimal(precision: int, scale: int, bit_width: int) -> pa.DataType | None:
    """The narrowest decimal that is no narrower than `bit_width`; None if none has so many digits."""
    for digits, kind in _DECIMALS:
        if precision <= digits and bit_width <= kind(1, 0).bit_width:
            return kind(precision, scale)
    return None


def _unite_fields(a: pa.Field, b: pa.Field, name: str = "item") -> pa.Field | None:
    """`name` counts where the two have different ones."""
    kind = unite(a.type, b.type)
    return None if kind is None else pa.field(a.name if a.name == b.name else name, kind, a.nullable or b.nullable)


def _unite_lists(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    """A list of the kind that both are, else a plain one."""
    item = _unite_fields(a.value_field, b.value_field)
    if item is None:
        return None
    if _both(pa.types.is_large_list, a, b):
        return pa.large_list(item)
    if _both(pa.types.is_fixed_size_list, a, b) and a.list_size == b.list_size:
        return pa.list_(item, a.list_size)
    return pa.list_(item)


def _unite_structs(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    """Fields in the order that both have, else sorted by name, so that it doesn't matter which struct was seen first."""
    names = [[item.name for item in kind] for kind in (a, b)]
    if any(len(set(each)) < len(each) for each in names):
        return None
    fields = []
    for name in names[0] if names[0] == names[1] else sorted({*names[0], *names[1]}):
        found = [kind.field(name) for kind in (a, b) if name in [item.name for item in kind]]
        united = _unite_fields(*found) if len(found) == 2 else found[0].with_nullable(True)
        if united is None:
            return None
        fields.append(united)
    return pa.struct(fields)


def without_nulls(kind: pa.DataType) -> pa.DataType:
    """The type with string in place of every null type: what was never seen with a value."""
    return pa.string() if pa.types.is_null(kind) else map_children(kind, without_nulls)


def can_be_id(kind: pa.DataType) -> bool:
    kind = plain_type(kind)
    checks = (pa.types.is_string, pa.types.is_integer, pa.types.is_binary, pa.types.is_fixed_size_binary)
    more = (pa.types.is_date, pa.types.is_decimal, pa.types.is_timestamp)
    return any(check(kind) for check in (*checks, *more))
