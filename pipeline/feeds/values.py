"""Columns travel to stores of JSON as plain values, and come back as the Arrow type that they had.

Numbers, texts, truth values, and lists and structs of these stay what they are. Dates, times, decimals and bytes become
texts: ISO 8601 in UTC, digits, and Base64. Null is None. NaN and infinity have no form in JSON: `unfit` names them. This
file knows no store.
"""

import base64
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import InputError
from pipeline.feeds.store import Rejection, Shape, matrix
from pipeline.schema import ID

_JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)
"""json.dumps would make one for each value."""


def check(columns: pa.Schema, store: str) -> None:
    """Raise InputError for a column of a type that has no form in JSON."""
    for field in columns:
        if not (_is_plain(field.type) or _is_text(field.type)):
            raise InputError(
                f"feeds.columns names {field.name!r}, which is {field.type}; {store} takes numbers, texts, booleans, dates, "
                "times, decimals, bytes, and lists and structs of numbers, texts and booleans: leave it out"
            )


def plain(column: pa.ChunkedArray) -> list[Any]:
    """Return the values of a column as JSON has them, None for null."""
    kind = column.type
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return [None if value is None else base64.b64encode(value).decode() for value in column.to_pylist()]
    if pa.types.is_timestamp(kind):
        texts = column.cast(pa.timestamp(kind.unit)).cast(pa.string()).to_pylist()
        zone = "Z" if kind.tz else ""
        return [None if text is None else text.replace(" ", "T") + zone for text in texts]
    if _is_text(kind):
        return list(column.cast(pa.string()).to_pylist())
    if pa.types.is_float16(kind):
        column = column.cast(pa.float32())
    return list(column.to_pylist())


def restored(values: list[Any], kind: pa.DataType) -> pa.Array:
    """Return the column whose `plain` values these are."""
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return pa.array([None if value is None else base64.b64decode(value) for value in values], kind)
    if pa.types.is_timestamp(kind):
        texts = [None if value is None else value.removesuffix("Z").replace("T", " ") for value in values]
        return pa.array(texts, pa.string()).cast(pa.timestamp(kind.unit)).cast(kind)
    if _is_text(kind):
        return pa.array(values, pa.string()).cast(kind)
    if pa.types.is_float16(kind):
        return pa.array([None if value is None else np.float16(value) for value in values], kind)
    if pa.types.is_floating(kind):
        values = [None if value is None else float(value) for value in values]
    return pa.array(values, kind)


def to_json(value: Any) -> str:
    """Return the JSON of a plain value, short and with every letter as it is."""
    return _JSON.encode(value)


def unfit(rows: pa.Table, columns: pa.Schema) -> Mapping[int, str]:
    """Return why JSON can't hold values of some of the rows, by their number."""
    found: dict[int, str] = {}
    for name in columns.names:
        column = rows.column(name)
        if pa.types.is_floating(column.type):
            finite = pc.fill_null(pc.is_finite(column.cast(pa.float64())), True)
            rows_of = np.flatnonzero(~finite.combine_chunks().to_numpy(zero_copy_only=False)).tolist()
        elif _holds_floats(column.type):
            rows_of = [row for row, value in enumerate(column.to_pylist()) if not _is_finite(value)]
        else:
            continue
        for row in rows_of:
            found.setdefault(row, f"its {name} holds a number that is not finite, which JSON can't")
    return found


def unfit_vectors(vectors: np.ndarray[Any, Any], metric: str) -> Mapping[int, str]:
    """Return why some of the vectors, float[n, dim], can't be compared, by their number."""
    if vectors.dtype == np.uint8:
        return {}
    odd = np.flatnonzero(~np.isfinite(vectors).all(axis=1)).tolist()
    found = dict.fromkeys(odd, "its vector holds a number that is not finite")
    if metric == "cosine":
        for row in np.flatnonzero(~vectors.any(axis=1)).tolist():
            found.setdefault(row, "its vector is zero, which has no direction to compare by cosine")
    return found


def fit(rows: pa.Table, shape: Shape, unfit_rows: Mapping[int, str]) -> tuple[list[Rejection], pa.Table]:
    """Tell apart the rows that a store would refuse, for their vectors or for what `unfit_rows` says."""
    found = {**unfit_vectors(matrix(rows, shape), shape.metric), **unfit_rows}
    if not found:
        return [], rows
    ids = rows.column(ID)
    rejected = [Rejection(id=ids[row].as_py(), reason=reason) for row, reason in sorted(found.items())]
    return rejected, rows.take(pa.array([row for row in range(rows.num_rows) if row not in found], pa.int64()))


def _is_finite(value: Any) -> bool:
    try:
        to_json(value)
    except ValueError:
        return False
    return True


def _holds_floats(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(_holds_floats(field.type) for field in kind)
    return _holds_floats(kind.value_type) if _is_list(kind) else pa.types.is_floating(kind)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_plain(kind: pa.DataType) -> bool:
    if _is_list(kind):
        return _is_plain(kind.value_type)
    if pa.types.is_struct(kind):
        return all(_is_plain(field.type) for field in kind)
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    return bool(is_number or pa.types.is_boolean(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_date(kind)
        or pa.types.is_timestamp(kind)
        or pa.types.is_time(kind)
        or pa.types.is_decimal(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
    )
