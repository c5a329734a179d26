"""Columns of source rows: which types are one type, what becomes of a value, and the blocks that format readers yield.

Comes in: Arrow types and arrays as files hold them. Goes out: the types that the table carries, values of these types,
and what is wrong with the others. Knows no files and no formats. All functions are pure.
"""

import datetime
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.arrays import (
    INTERVAL_STRUCT,
    cast_exactly,
    compact,
    decode,
    is_list,
    is_text,
    list_parts,
    map_children,
    struct_children,
)
from pipeline.config import SourceSpec
from pipeline.schema import MAX_FOLDER_BYTES, NULL_PARTITION, UNESCAPED
from pipeline.sources import filter
from pipeline.work import SourceFile

_INTEGER = re.compile(r"0|-?[1-9][0-9]*")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_FIRST_DAY, _LAST_DAY = ((day - datetime.date(1970, 1, 1)).days for day in (datetime.date.min, datetime.date.max))
_SIGNED = (pa.int8(), pa.int16(), pa.int32(), pa.int64())
_UNSIGNED = (pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64())
_FLOATS = (pa.float16(), pa.float32(), pa.float64())
_UNITS = ("s", "ms", "us", "ns")
_DECIMALS = ((9, pa.decimal32), (18, pa.decimal64), (38, pa.decimal128), (76, pa.decimal256))
"""The most digits of each width."""


class Unread(str):
    """The error of rows that stand where storage gives no readable bytes: nobody knows which rows they are."""


class RestLost(Unread):
    """The error of a row that stands for an unknown number of them: the rest of its file."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """Consecutive rows of a source file. A row with an error is a row too; a value that is bad is null here."""

    rows: int
    columns: Any
    """A table with all columns of the planned schema; None if nobody needed the rows or `excluded` is true."""
    positions: pa.Array
    """int64, null where a row has no place."""
    errors: Mapping[int, str] = field(default_factory=dict)
    """What is wrong, by index of the row."""
    excluded: bool = False
    """Rows that source.where rules out, known without reading; columns is None."""

    def slice(self, start: int, stop: int) -> "Block":
        assert self.columns is not None
        return Block(
            rows=stop - start,
            columns=self.columns.slice(start, stop - start),
            positions=self.positions.slice(start, stop - start),
            errors={row - start: error for row, error in self.errors.items() if start <= row < stop},
        )


def failed_block(schema: pa.Schema, positions: pa.Array, error: str) -> Block:
    """Rows of which nothing is known but that they are bad."""
    rows = len(positions)
    columns = pa.table([pa.nulls(rows, kind) for kind in schema.types], schema=schema)
    return Block(rows=rows, columns=columns, positions=positions, errors=dict.fromkeys(range(rows), error))


def skipped_block(rows: int) -> Block:
    return Block(rows=rows, columns=None, positions=pa.nulls(rows, pa.int64()))


def excluded_block(rows: int) -> Block:
    return Block(rows=rows, columns=None, positions=pa.nulls(rows, pa.int64()), excluded=True)


def column_names(spec: SourceSpec, carried: Iterable[str]) -> Iterator[str]:
    """The columns of a source that a run reads, each once: ids, texts, kept and partition columns, those of `where`."""
    yield from dict.fromkeys([*spec.id_columns, *spec.text_columns, *carried, *filter.columns(spec.where)])


# --- types


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


# --- values


def to_ids(values: pa.Array | pa.ChunkedArray) -> pa.Array:
    """string: integers exact, binary as lowercase hex, UUIDs with their dashes, dates in ISO form, timestamps in ISO form
    and UTC, decimals plain."""
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    values = decode(_uuids_as_text(values))
    kind = values.type
    if pa.types.is_string(kind):
        return values
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return pa.array([None if value is None else value.hex() for value in values.to_pylist()], pa.string())
    if pa.types.is_decimal(kind):
        plain = (None if value is None else f"{value:f}" for value in values.to_pylist())
        return pa.array(list(plain), pa.string())
    if pa.types.is_date64(kind):
        values = values.cast(pa.date32())
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        values = values.cast(pa.timestamp(kind.unit, "UTC"))
    return values.cast(pa.string())


def _uuids_as_text(values: pa.Array) -> pa.Array:
    if not is_uuid(values.type):
        return values
    raw = values.storage.to_pylist()
    return pa.array([None if value is None else str(uuid.UUID(bytes=value)) for value in raw], pa.string())


def join_ids(parts: Sequence[pa.Array]) -> pa.Array:
    """string: one column as it is, several joined by ":", null if any is null. Different tuples never give one id.

    ":" and the backslash inside a value get a backslash before them.
    """
    if len(parts) == 1:
        return parts[0]
    escaped = [pc.replace_substring_regex(part, r"([\\:])", r"\\\1") for part in parts]
    return pc.binary_join_element_wise(*escaped, ":", null_handling="emit_null")


def conform(values: pa.Array, kind: pa.DataType) -> tuple[pa.Array, dict[int, str]]:
    """`values` with the planned type, exactly; those that aren't valid UTF-8 or don't fit are null, with the reason by index.

    What fits is said by `cast_exactly`: nothing is rounded, cut or dropped.
    """
    if is_text(kind):
        values = _uuids_as_text(values)
    try:
        return _valid(values, kind), {}
    except pa.ArrowException:
        # Apart from its encoding the array can be cut: a cut one still has all of its dictionary.
        plain = cast_exactly(values, plain_type(values.type))
    pieces: list[pa.Array] = []
    errors: dict[int, str] = {}
    _conform_rows(plain, 0, len(plain), kind, pieces, errors)
    return pa.concat_arrays(pieces), errors


def _conform_rows(
    values: pa.Array, start: int, stop: int, kind: pa.DataType, pieces: list[pa.Array], errors: dict[int, str]
) -> None:
    """Add the rows [start, stop) in as few pieces as misfits allow."""
    try:
        # `take` and not `slice`: the check of a slice looks at what lies outside it too.
        pieces.append(_valid(values.take(pa.array(range(start, stop), pa.int64())), kind))
        return
    except pa.ArrowException as error:
        if stop - start == 1:
            broken = "UTF8" in str(error) or "UTF-8" in str(error)
            errors[start] = "is not valid UTF-8" if broken else f"does not fit {kind}"
            pieces.append(pa.nulls(1, kind))
            return
    middle = (start + stop) // 2
    _conform_rows(values, start, middle, kind, pieces, errors)
    _conform_rows(values, middle, stop, kind, pieces, errors)


def _valid(values: pa.Array, kind: pa.DataType) -> pa.Array:
    cast = compact(cast_exactly(values, kind))
    cast.validate(full=True)
    return cast


_Sizes = np.ndarray[Any, np.dtype[np.int64]]


def row_bytes(columns: pa.Table) -> _Sizes:
    """int64[n]: bytes of values per row; an item of a list counts its 4 bytes of offset too."""
    total = np.zeros(columns.num_rows, np.int64)
    for column in columns.columns:
        start = 0
        for chunk in column.chunks:
            total[start : start + len(chunk)] += _value_bytes(chunk)
            start += len(chunk)
    return total


def _value_bytes(values: pa.Array) -> _Sizes:
    values = values if pa.types.is_dictionary(values.type) else decode(values)
    kind = values.type
    if pa.types.is_null(kind):
        return np.zeros(len(values), np.int64)
    if pa.types.is_dictionary(kind):
        known = np.append(_value_bytes(values.dictionary), 0)
        places = pc.fill_null(values.indices.cast(pa.int64()), len(known) - 1).to_numpy()
        return np.asarray(known[places], np.int64)
    if is_list(kind) or pa.types.is_map(kind):
        lengths, children = list_parts(values)
        ends = np.concatenate([[0], np.cumsum(lengths)])
        totals = np.concatenate([[0], np.cumsum(sum(4 + _value_bytes(child) for child in children))])
        return np.asarray(np.diff(totals[ends]), np.int64)
    if pa.types.is_struct(kind):
        sizes = [_value_bytes(child) for child in struct_children(values).values()]
        return np.asarray(np.sum(sizes, axis=0), np.int64)
    if _has_lengths(kind):
        return np.asarray(pc.fill_null(pc.binary_length(values), 0).to_numpy(), np.int64)
    return np.full(len(values), max(1, kind.bit_width // 8), np.int64)


def _has_lengths(kind: pa.DataType) -> bool:
    checks = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return any(check(kind) for check in checks)


# --- values in the names of folders


def partition_type(values: Iterable[str | None]) -> pa.DataType:
    """int64, bool or date32 if all values are in that type's one form, else string."""
    known = {value for value in values if value is not None}
    if known and all(_INTEGER.fullmatch(value) and abs(int(value)) < 2**63 for value in known):
        return pa.int64()
    if known and known <= {"true", "false"}:
        return pa.bool_()
    if known and all(_DATE.fullmatch(value) and _is_date(value) for value in known):
        return pa.date32()
    return pa.string()


def partition_value(value: str | None, kind: pa.DataType) -> pa.Scalar | None:
    """The folder's value with the planned type; None if it has no such value. `09` is no integer, only `9` is."""
    if value is None:
        return pa.scalar(None, kind)
    if pa.types.is_boolean(kind):
        return pa.scalar(value == "true", kind) if value in ("true", "false") else None
    if pa.types.is_integer(kind) and not _INTEGER.fullmatch(value):
        return None
    values, misfits = conform(pa.array([value]), kind)
    return None if misfits else values[0]


def partition_values(file: SourceFile, schema: pa.Schema) -> dict[str, pa.Scalar]:
    """What the folders of the file say of columns of the schema: it counts where the file itself says nothing.

    A value that doesn't fit is null: planning refuses it wherever it would count.
    """
    named = {item.name: item.type for item in schema}
    found = {name: partition_value(value, named[name]) for name, value in file.partition if name in named}
    return {name: pa.scalar(None, named[name]) if value is None else value for name, value in found.items()}


def folder_misfits(name: str, values: pa.ChunkedArray) -> dict[int, str]:
    """Why a row can't lie in the folder `name=value`, by index. Null has a folder; a text that says what that one says
    would be read as null, escaped or not: readers unescape before they compare."""
    if pa.types.is_date32(values.type):
        days = values.cast(pa.int32())
        bad, reason = (
            pc.or_(pc.less(days, _FIRST_DAY), pc.greater(days, _LAST_DAY)),
            "is a date outside the years 1 to 9999",
        )
    elif is_text(values.type):
        bad, reason = pc.equal(values, NULL_PARTITION), f"is {NULL_PARTITION!r}, the name that means null"
    else:
        return {}
    found = np.flatnonzero(pc.fill_null(bad, False).to_numpy(zero_copy_only=False))
    reasons = dict.fromkeys(found.tolist(), reason) | _too_long(name, values)
    return {row: f"{why}: no folder of the table can be named so" for row, why in reasons.items()}


def _too_long(name: str, values: pa.ChunkedArray) -> dict[int, str]:
    """Of texts; a byte that is escaped becomes three."""
    room = MAX_FOLDER_BYTES - len(f"{name}=".encode())
    if not is_text(values.type) or (pc.max(pc.binary_length(values)).as_py() or 0) * 3 <= room:
        return {}
    sizes = [len(quote(value or "", safe=UNESCAPED)) for value in values.to_pylist()]
    return {row: f"takes {size} bytes, at most {room} are left" for row, size in enumerate(sizes) if size > room}


def _is_date(value: str) -> bool:
    try:
        datetime.date.fromisoformat(value)
    except ValueError:
        return False
    return True
