"""Columns of source rows: what becomes of a value, and the blocks that format readers yield.

Comes in: arrays as files hold them. Goes out: values of the types that the table carries, and what is wrong with the
others. Which types those are stands in column_types.py. Knows no files and no formats. All functions are pure.
"""

import datetime
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.arrays import (
    cast_exactly,
    compact,
    decode,
    is_list,
    is_text,
    list_parts,
    struct_children,
)
from pipeline.config import SourceSpec
from pipeline.schema import MAX_FOLDER_BYTES, NULL_PARTITION, UNESCAPED
from pipeline.sources import filter
from pipeline.sources.column_types import is_uuid, plain_type
from pipeline.work import SourceFile

_INTEGER = re.compile(r"0|-?[1-9][0-9]*")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_FIRST_DAY, _LAST_DAY = ((day - datetime.date(1970, 1, 1)).days for day in (datetime.date.min, datetime.date.max))


class Unread(str):
    """The error of rows that stand where storage gives no readable bytes: nobody knows which rows they are."""


class RestLost(Unread):
    """The error of a row that stands for an unknown number of them: the rest of its file."""


class WrongType(str):
    """The error of a row with a value that has no place in the type of its column."""

    column: str

    def __new__(cls, message: str, column: str = "") -> "WrongType":
        error = super().__new__(cls, message)
        error.column = column
        return error


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
    deleted: Any = None
    """bool[rows]: the rows that the log of a lakehouse table deletes; None where there are none."""

    def slice(self, start: int, stop: int) -> "Block":
        assert self.columns is not None
        return Block(
            rows=stop - start,
            columns=self.columns.slice(start, stop - start),
            positions=self.positions.slice(start, stop - start),
            errors={row - start: error for row, error in self.errors.items() if start <= row < stop},
            deleted=None if self.deleted is None else self.deleted[start:stop],
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


def partition_value(value: Any, kind: pa.DataType) -> pa.Scalar | None:
    """The folder's value, or one that a log tells with a type of its own, with the planned type; None if it has no such
    value. `09` is no integer, only `9` is."""
    if value is None:
        return pa.scalar(None, kind)
    if not isinstance(value, str):
        values, misfits = conform(pa.array([value]), kind)
        return None if misfits else values[0]
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
    """The texts that are too long for a folder, by index, and why; a byte that is escaped becomes three."""
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
