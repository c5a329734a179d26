"""Columns become values as JSON has them, and columns again.

A JSON document has texts, numbers, booleans, lists and objects: other types stand in it as texts, or not at all. This
file says which, and which rows a store can't take whose documents are JSON. It knows no store.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.feeds.store import KEYS, Shape, matrix


def is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def as_text(kind: pa.DataType) -> bool:
    """Whether values of the type stand in a document as Arrow writes them."""
    return bool(pa.types.is_date(kind) or pa.types.is_timestamp(kind) or pa.types.is_decimal(kind))


def reason_against(kind: pa.DataType, inside: bool = False) -> str | None:
    """Return why a document can't hold a type so that it comes back as it was, or None."""
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return "JSON has no bytes: keep it as text, such as hex"
    if is_list(kind):
        return reason_against(kind.value_type, inside=True)
    if pa.types.is_struct(kind):
        return next((reason for field in kind if (reason := reason_against(field.type, inside=True))), None)
    if pa.types.is_uint64(kind):
        return "integers go up to 2^63 - 1: cast it to int64 or to a string"
    if as_text(kind):
        return "JSON has no such type inside a list or a struct: cast it to a string" if inside else None
    plain = pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind) or is_text(kind)
    return None if plain else "JSON has no such type: cast it to a string"


def values_of(column: pa.ChunkedArray) -> list[Any]:
    """Return the values as a document has them: dates, times and decimals are texts. Times have a T and, with a zone,
    a Z, so that stores can compare them."""
    kind = column.type
    if not as_text(kind):
        found: list[Any] = column.to_pylist()
        return found
    if not pa.types.is_timestamp(kind):
        return list(column.cast(pa.string()).to_pylist())
    plain = column.cast(pa.timestamp(kind.unit)).cast(pa.string()).to_pylist()
    end = "Z" if kind.tz else ""
    return [None if text is None else text.replace(" ", "T") + end for text in plain]


def column_of(kind: pa.DataType, values: list[Any]) -> pa.Array:
    """Return the values of documents as an Arrow array again. One that somebody changed to another type becomes null."""
    try:
        return _parsed(kind, values)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        if len(values) == 1:
            return pa.nulls(1, kind)
        return pa.concat_arrays([column_of(kind, [value]) for value in values])


def _parsed(kind: pa.DataType, values: list[Any]) -> pa.Array:
    if not as_text(kind):
        return pa.array(values, kind)
    if pa.types.is_timestamp(kind):
        texts = pa.array([None if text is None else text.rstrip("Z") for text in values], pa.string())
        plain = pc.cast(texts, pa.timestamp(kind.unit))
        return plain.cast(pa.int64()).cast(kind)
    return pc.cast(pa.array(values, pa.string()), kind)


def without_numbers(rows: pa.Table) -> dict[int, str]:
    """Return the rows with a number that is not finite, which JSON doesn't have, by their place. The vector stands last if
    it is there."""
    if not rows.num_rows:
        return {}
    reasons: dict[int, str] = {}
    last = rows.schema[-1]
    columns = list(rows.schema)
    if last.name not in KEYS.names and pa.types.is_fixed_size_list(last.type):
        columns.pop()
        if pa.types.is_floating(last.type.value_type):
            numbers = rows.column(last.name).combine_chunks().flatten().to_numpy(zero_copy_only=False)
            finite = np.isfinite(numbers).reshape(rows.num_rows, -1).all(axis=1)
            reasons |= dict.fromkeys(np.flatnonzero(~finite).tolist(), "the vector has a number that is not finite")
    for field in columns:
        reason = f"column {field.name!r} has a number that is not finite, which JSON doesn't have"
        reasons |= dict.fromkeys(_not_finite(rows.column(field.name)), reason)
    return reasons


def _not_finite(column: pa.ChunkedArray) -> list[int]:
    if pa.types.is_floating(column.type):
        return true_places(pc.fill_null(pc.invert(pc.is_finite(column.cast(pa.float64()))), False))
    if not pa.types.is_nested(column.type):
        return []
    return [row for row, value in enumerate(column.to_pylist()) if not _finite(value)]


def _finite(value: Any) -> bool:
    if isinstance(value, float):
        return bool(np.isfinite(value))
    if isinstance(value, dict):
        return all(map(_finite, value.values()))
    return all(map(_finite, value)) if isinstance(value, list) else True


def without_direction(rows: pa.Table, shape: Shape) -> dict[int, str]:
    """Return the rows whose vector is zero, by their number, where directions are compared."""
    if shape.metric != "cosine" or not rows.num_rows:
        return {}
    zeros = np.flatnonzero(~matrix(rows, shape).any(axis=1)).tolist()
    return dict.fromkeys(zeros, "the vector is zero, which has no cosine")


def true_places(mask: pa.ChunkedArray) -> list[int]:
    """Return where a column of booleans is true."""
    return list(np.flatnonzero(mask.to_numpy()).tolist())
