"""Arrow arrays taken apart and put together again: casts that change no value, dictionaries without unused values.

Comes in: arrays of any type, slices among them. Goes out: new arrays, or pa.ArrowException. Knows no columns and no rows
of sources. All functions are pure.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

ROWS_AT_ONCE = 4096
"""So many rows are objects of Python at a time, which take ten times the bytes that they have in Arrow."""
INTERVAL_STRUCT = pa.struct([("months", pa.int32()), ("days", pa.int32()), ("nanoseconds", pa.int64())])
"""A calendar interval has this type where there is none for it."""
_WHOLE_NUMBER = r"^[+-]?[0-9]+$"
_INFINITE = r"(?i)^[+-]?inf(inity)?$"


def table_of(rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Return the rows as a table with these columns. They may be made one by one as they are asked for."""
    given = iter(rows)
    pieces = iter(lambda: list(itertools.islice(given, ROWS_AT_ONCE)), [])
    tables = [pa.Table.from_pylist(piece, schema) for piece in pieces]
    return pa.concat_tables(tables) if tables else schema.empty_table()


def cast_exactly(values: pa.Array, kind: pa.DataType) -> pa.Array:
    """The values with another type; raises pa.ArrowException if one of them would change or doesn't fit.

    Numbers, dates and times must be the same when cast back; text must be how a value of `kind` is written, a fraction
    may be rounded to the nearest float. A struct may gain fields, which are null, and lose fields that are null throughout.
    """
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    if values.type == kind:
        return values
    if pa.types.is_dictionary(kind):
        return _to_dictionary(values, kind)
    values = decode(values)
    if values.type == kind:
        return values
    if pa.types.is_null(values.type):
        return pa.nulls(len(values), kind)
    if pa.types.is_null(kind) and values.null_count == len(values):
        return pa.nulls(len(values))
    if pa.types.is_interval(values.type):
        return cast_exactly(_interval_to_struct(values), kind)
    if is_list(values.type) and is_list(kind):
        return _to_list(values, kind)
    if pa.types.is_map(values.type) and pa.types.is_map(kind):
        return _to_map(values, kind)
    if pa.types.is_struct(values.type) and pa.types.is_struct(kind):
        return _to_struct(values, kind)
    return _cast_leaf(values, kind)


def decode(values: pa.Array) -> pa.Array:
    """The array without dictionary, run-end, view or extension encoding at its top."""
    while True:
        kind = values.type
        if isinstance(values, pa.ExtensionArray):
            values = values.storage
        elif pa.types.is_dictionary(kind):
            # Arrow decodes no dictionary of views, and takes none: the values come first.
            values = decode(values.dictionary).take(values.indices)
        elif pa.types.is_run_end_encoded(kind):
            run = np.searchsorted(values.run_ends.to_numpy(), values.offset + np.arange(len(values)), side="right")
            values = decode(values.values).take(pa.array(run))
        elif pa.types.is_string_view(kind):
            values = values.cast(pa.string())
        elif pa.types.is_binary_view(kind):
            values = values.cast(pa.binary())
        else:
            return values


def compact(values: pa.Array) -> pa.Array:
    """The array without the values in its dictionaries that it doesn't use: rows that left leave no trace."""
    if not holds_dictionary(values.type):
        return values
    return cast_exactly(cast_exactly(values, _without_dictionaries(values.type)), values.type)


def holds_dictionary(kind: pa.DataType) -> bool:
    return bool(_without_dictionaries(kind) != kind)


def _without_dictionaries(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return kind.value_type
    return map_children(kind, _without_dictionaries)


# --- nested types


def is_list(kind: pa.DataType) -> bool:
    """Lists of all five kinds; a map is none."""
    checks = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    views = (pa.types.is_list_view, pa.types.is_large_list_view)
    return any(check(kind) for check in (*checks, *views))


def map_children(kind: pa.DataType, change: Callable[[pa.DataType], pa.DataType]) -> pa.DataType:
    """The nested type with `change(child type)` in place of each child; list views become lists, others stay."""

    def changed(item: pa.Field) -> pa.Field:
        return pa.field(item.name, change(item.type), item.nullable)

    if pa.types.is_list(kind) or pa.types.is_list_view(kind):
        return pa.list_(changed(kind.value_field))
    if pa.types.is_large_list(kind) or pa.types.is_large_list_view(kind):
        return pa.large_list(changed(kind.value_field))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(changed(kind.value_field), kind.list_size)
    if pa.types.is_struct(kind):
        return pa.struct([changed(item) for item in kind])
    if pa.types.is_map(kind):
        return pa.map_(changed(kind.key_field), changed(kind.item_field), kind.keys_sorted)
    return kind


def list_parts(values: pa.Array) -> tuple[np.ndarray[Any, np.dtype[np.int64]], tuple[pa.Array, ...]]:
    """(int64[n] lengths, 0 for null; all items in one array): of a list or a map, whose items are (keys, values)."""
    if not pa.types.is_map(values.type):
        lengths = pc.fill_null(pc.list_value_length(values), 0).to_numpy(zero_copy_only=False)
        return lengths.astype(np.int64), (values.flatten(),)
    # Arrow flattens no maps; keys and items are those of the whole array, whatever slice of it this is.
    if not len(values):
        return np.zeros(0, np.int64), (values.keys.slice(0, 0), values.items.slice(0, 0))
    offsets = values.offsets.to_numpy().astype(np.int64)
    lengths = np.where(values.is_valid().to_numpy(zero_copy_only=False), np.diff(offsets), 0)
    if lengths.sum() == offsets[-1] - offsets[0]:
        keys, items = (child.slice(offsets[0], lengths.sum()) for child in (values.keys, values.items))
        return lengths, (keys, items)
    # The numbers that lie below a null are no items.
    places = np.arange(lengths.sum()) + np.repeat(offsets[:-1] - (np.cumsum(lengths) - lengths), lengths)
    keys, items = (decode(child).take(pa.array(places)) for child in (values.keys, values.items))
    return lengths, (keys, items)


def _to_list(values: pa.Array, kind: pa.DataType) -> pa.Array:
    lengths, (items,) = list_parts(values)
    children = _checked(cast_exactly(items, kind.value_type), kind.value_field)
    nulls = values.is_null()
    if pa.types.is_fixed_size_list(kind):
        return _to_fixed_size_list(lengths, children, nulls.to_numpy(zero_copy_only=False), kind)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    if pa.types.is_large_list(kind):
        return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), children, type=kind, mask=nulls)
    if pa.types.is_list(kind):
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), children, type=kind, mask=nulls)
    raise pa.ArrowNotImplementedError(f"no cast to {kind}")


def _to_fixed_size_list(
    lengths: np.ndarray[Any, Any], children: pa.Array, nulls: np.ndarray[Any, Any], kind: pa.DataType
) -> pa.Array:
    size = kind.list_size
    if (lengths[~nulls] != size).any():
        raise pa.ArrowInvalid(f"a list does not have {size} items")
    if nulls.any():
        # A null takes as much room as a list; whose items fill it doesn't matter.
        starts = np.where(nulls, 0, np.cumsum(lengths) - lengths)
        places = (starts[:, None] + np.arange(size)).reshape(-1)
        children = children.take(pa.array(places)) if len(children) else pa.nulls(len(places), kind.value_type)
    return pa.FixedSizeListArray.from_arrays(children, type=kind, mask=pa.array(nulls))


def _to_map(values: pa.Array, kind: pa.DataType) -> pa.Array:
    lengths, (keys, items) = list_parts(values)
    return pa.MapArray.from_arrays(
        pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32()),
        _checked(cast_exactly(keys, kind.key_type), kind.key_field),
        _checked(cast_exactly(items, kind.item_type), kind.item_field),
        type=kind,
        mask=values.is_null(),
    )


def _to_struct(values: pa.Array, kind: pa.DataType) -> pa.Array:
    given = struct_children(values)
    names = [item.name for item in kind]
    if len(given) < values.type.num_fields or len(set(names)) < len(names) or not names:
        raise pa.ArrowNotImplementedError(f"no cast from {values.type} to {kind}")
    if any(child.null_count < len(child) for name, child in given.items() if name not in names):
        raise pa.ArrowInvalid(f"a field of {values.type} is not among those of {kind}")
    valid = values.is_valid()
    children = []
    for item in kind:
        child = cast_exactly(given[item.name], item.type) if item.name in given else pa.nulls(len(values), item.type)
        if not item.nullable:
            _checked(child.filter(valid), item)
        children.append(child)
    return pa.StructArray.from_arrays(children, fields=list(kind), mask=values.is_null())


def struct_children(values: pa.Array) -> Mapping[str, pa.Array]:
    """The fields' values by name, null where the struct is."""
    return dict(zip((item.name for item in values.type), values.flatten(), strict=True))


def _checked(values: pa.Array, item: pa.Field) -> pa.Array:
    if not item.nullable and values.null_count:
        raise pa.ArrowInvalid(f"a value of {item.name!r} is null")
    return values


def _interval_to_struct(values: pa.Array) -> pa.Array:
    kind = np.dtype([("months", np.int32), ("days", np.int32), ("nanoseconds", np.int64)])
    stored = np.frombuffer(values.buffers()[1], kind)[values.offset : values.offset + len(values)]
    children = [pa.array(np.ascontiguousarray(stored[item.name])) for item in INTERVAL_STRUCT]
    return pa.StructArray.from_arrays(children, fields=list(INTERVAL_STRUCT), mask=values.is_null())


# --- dictionaries


def _to_dictionary(values: pa.Array, kind: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(values.type) and values.type.value_type == kind.value_type:
        dictionary, indices = values.dictionary, values.indices
    else:
        encoded = cast_exactly(values, kind.value_type).dictionary_encode()
        dictionary, indices = encoded.dictionary, encoded.indices
    return pa.DictionaryArray.from_arrays(indices.cast(kind.index_type), dictionary, ordered=kind.ordered)


# --- leaves


def _cast_leaf(values: pa.Array, kind: pa.DataType) -> pa.Array:
    given = values.type
    if is_text(given):
        return _from_text(values, kind)
    if pa.types.is_timestamp(given) and pa.types.is_timestamp(kind) and (given.tz is None) != (kind.tz is None):
        raise pa.ArrowInvalid("a local time has no place in a time zone")
    cast = _cast_number(values, kind)
    if not _same(values, _cast_number(cast, given)):
        raise pa.ArrowInvalid(f"a value of {given} is not exactly one of {kind}")
    return cast


def is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _cast_number(values: pa.Array, kind: pa.DataType) -> pa.Array:
    given = values.type
    if not pa.types.is_decimal(kind):
        return values.cast(kind)
    if pa.types.is_integer(given) and 0 <= kind.scale <= 56:
        # Arrow asks for a precision that holds every integer of the type: the way goes over one that does.
        return values.cast(pa.decimal256(20 + kind.scale, kind.scale)).cast(kind)
    if pa.types.is_decimal(given):
        # Arrow multiplies in the width of the narrower type, where it overflows: the way goes over the widest.
        wide = values.cast(pa.decimal256(given.precision, given.scale))
        return wide.cast(pa.decimal256(kind.precision, kind.scale)).cast(kind)
    return values.cast(kind)


def _same(a: pa.Array, b: pa.Array) -> bool:
    if a.equals(b):
        return True
    if not pa.types.is_floating(a.type):
        return False
    a, b = a.cast(pa.float64()), b.cast(pa.float64())  # Exact, and half floats have no comparison.
    both_nan = pc.and_(pc.is_nan(a), pc.is_nan(b))
    return bool(a.is_null().equals(b.is_null())) and pc.all(pc.or_(pc.equal(a, b), both_nan)).as_py() is not False


def _from_text(values: pa.Array, kind: pa.DataType) -> pa.Array:
    if pa.types.is_time(kind):
        # Arrow reads no time of day by itself.
        moments = pc.binary_join_element_wise("1970-01-01T", values.cast(pa.string()), "")
        return moments.cast(pa.timestamp(kind.unit)).cast(kind)
    cast = values.cast(kind)
    if pa.types.is_floating(kind):
        wide = cast.cast(pa.float64())
        infinite = pc.is_inf(wide)
        if pc.any(pc.and_not(infinite, pc.match_substring_regex(values, _INFINITE))).as_py():
            raise pa.ArrowInvalid(f"a number is out of the range of {kind}")
        whole = pc.fill_null(pc.match_substring_regex(values, _WHOLE_NUMBER), False)
        pairs = zip(values.filter(whole).to_pylist(), wide.filter(whole).to_pylist(), strict=True)
        if any(int(number) != int(text) for text, number in pairs):
            raise pa.ArrowInvalid(f"a whole number can't be held exactly by {kind}")
    return cast
