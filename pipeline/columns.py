"""Columns of source rows: which types are one type, what becomes of a value, and the blocks that format readers yield.

Knows no files and no formats. All functions are pure.
"""

import datetime
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.unit import SourceFile

_INTEGER = re.compile(r"0|-?[1-9][0-9]*")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_SIGNED = (pa.int8(), pa.int16(), pa.int32(), pa.int64())
_UNSIGNED = (pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64())
_FLOATS = (pa.float16(), pa.float32(), pa.float64())


@dataclass(frozen=True, kw_only=True)
class Block:
    """Consecutive rows of a source file. A row with an error is a row too; a value that is bad is null here."""

    rows: int
    columns: Any
    """A table with all columns of the planned schema; None if nobody needed the rows."""
    positions: pa.Array
    """int64, null where a row has no place."""
    errors: Mapping[int, str] = field(default_factory=dict)
    """What is wrong, by index of the row."""

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


# --- types


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type without its encoding: string for string_view, large_string and dictionaries of them, and so on."""
    if isinstance(kind, pa.BaseExtensionType):
        return plain_type(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return plain_type(kind.value_type)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(plain_type(kind.value_type))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(plain_type(kind.value_type), kind.list_size)
    if pa.types.is_struct(kind):
        return pa.struct([(item.name, plain_type(item.type)) for item in kind])
    if pa.types.is_map(kind):
        return pa.map_(plain_type(kind.key_type), plain_type(kind.item_type))
    return kind


def common_type(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    """The plain type that holds all values of both exactly, None if there is none. An integer is no float."""
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
    if pa.types.is_list(a) and pa.types.is_list(b):
        value = common_type(a.value_type, b.value_type)
        return None if value is None else pa.list_(value)
    return None


def without_nulls(kind: pa.DataType) -> pa.DataType:
    """The type with string in place of every null type: what was never seen with a value."""
    if pa.types.is_null(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(without_nulls(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(item.name, without_nulls(item.type)) for item in kind])
    return kind


def can_be_id(kind: pa.DataType) -> bool:
    checks = (pa.types.is_string, pa.types.is_integer, pa.types.is_binary, pa.types.is_fixed_size_binary)
    more = (pa.types.is_date32, pa.types.is_decimal, pa.types.is_timestamp)
    return any(check(kind) for check in (*checks, *more))


# --- values


def to_ids(values: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """string: integers exact, binary as lowercase hex, dates in ISO form, timestamps in ISO form and UTC, decimals plain."""
    kind = values.type
    if pa.types.is_string(kind):
        return values
    if pa.types.is_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return pa.array([None if value is None else value.hex() for value in values.to_pylist()], pa.string())
    if pa.types.is_decimal(kind):
        plain = (None if value is None else f"{value:f}" for value in values.to_pylist())
        return pa.array(list(plain), pa.string())
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        values = values.cast(pa.timestamp(kind.unit, "UTC"))
    return values.cast(pa.string())


def conform(values: pa.Array, kind: pa.DataType) -> tuple[pa.Array, dict[int, str]]:
    """`values` with the planned type; those that aren't valid UTF-8 or don't fit are null, with the reason by index."""
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    try:
        cast = values if values.type == kind else values.cast(kind)
        cast.validate(full=True)
        return cast, {}
    except pa.ArrowException:
        pass
    pieces: list[pa.Array] = []
    errors: dict[int, str] = {}
    for row in range(len(values)):
        try:
            piece = values.take(pa.array([row])).cast(kind)
            piece.validate(full=True)
        except pa.ArrowException as error:
            broken = "UTF8" in str(error) or "UTF-8" in str(error)
            errors[row] = "is not valid UTF-8" if broken else f"does not fit {kind}"
            piece = pa.nulls(1, kind)
        pieces.append(piece)
    return pa.concat_arrays(pieces), errors


def row_bytes(columns: pa.Table, limit: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Bytes of values per row: exact for strings and binary, and for nested columns that may pass the limit."""
    total = np.zeros(columns.num_rows, np.int64)
    for column in columns.columns:
        kind = column.type
        if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind):
            total += pc.fill_null(pc.binary_length(column), 0).to_numpy()
        elif pa.types.is_nested(kind) and column.nbytes > limit:
            total += [column.take(pa.array([row])).nbytes for row in range(columns.num_rows)]
        else:
            total += column.nbytes // max(1, columns.num_rows)
    return total


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


def partition_value(value: str | None, kind: pa.DataType) -> pa.Scalar:
    """The folder's value with the planned type, which is at least as wide as `partition_type` of it."""
    if value is None or pa.types.is_string(kind):
        return pa.scalar(value, kind)
    if pa.types.is_boolean(kind):
        return pa.scalar(value == "true", kind)
    try:
        return pa.scalar(datetime.date.fromisoformat(value) if pa.types.is_date(kind) else int(value), kind)
    except (ValueError, OverflowError, pa.ArrowException):
        return pa.scalar(None, kind)  # The column's type is that of files that have it; a folder's name needn't fit.


def partition_values(file: SourceFile, schema: pa.Schema) -> dict[str, pa.Scalar]:
    """What the folders of the file say of columns of the schema: it counts where the file itself says nothing."""
    named = {item.name: item.type for item in schema}
    return {name: partition_value(value, named[name]) for name, value in file.partition if name in named}


def _is_date(value: str) -> bool:
    try:
        datetime.date.fromisoformat(value)
    except ValueError:
        return False
    return True


def column_names(id_column: str | None, text_columns: Iterable[str], carried: Iterable[str]) -> Iterator[str]:
    """The columns of a source that a run reads, each once: id, texts, then kept and partition columns."""
    named = [*([id_column] if id_column is not None else []), *text_columns, *carried]
    yield from dict.fromkeys(named)
