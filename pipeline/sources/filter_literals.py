"""Literals of a filter as values of the columns that they are compared with.

Comes in: Python values as the text of the filter has them, and Arrow types. Goes out: Arrow scalars, exactly, or None where
there is no such value. Knows nothing of expressions.
"""

from decimal import Decimal
from typing import Any

import pyarrow as pa

from pipeline.arrays import cast_exactly


def is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def common_type(types: set[pa.DataType]) -> pa.DataType | None:
    """The type for literals that no column gives one: numbers may be mixed, and moments of all precisions."""
    if len(types) < 2:
        return next(iter(types), pa.null())
    if all(pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in types):
        return pa.float64()
    zones = {kind.tz if pa.types.is_timestamp(kind) else "none" for kind in types}
    return pa.timestamp("ns", *zones) if len(zones) == 1 and zones != {"none"} else None


def timestamp(text: str) -> pa.Scalar | None:
    """In the coarsest unit that holds it; in UTC if the text names a zone or an offset."""
    for zone in (None, "UTC"):
        for unit in ("s", "ms", "us", "ns"):
            try:
                return pa.array([text]).cast(pa.timestamp(unit, zone))[0]
            except pa.ArrowException:
                continue
    return None


def fit(value: Any, kind: pa.DataType) -> pa.Scalar | None:
    if isinstance(value, pa.Scalar):
        return cast_exactly(pa.array([value], value.type), kind)[0] if pa.types.is_timestamp(kind) else None
    if isinstance(value, bool):
        return pa.scalar(value, kind) if pa.types.is_boolean(kind) else None
    if isinstance(value, int | float):
        if pa.types.is_floating(kind):
            return pa.scalar(float(value)).cast(kind)
        if pa.types.is_decimal(kind):
            return cast_exactly(pa.array([Decimal(repr(value))]), kind)[0]
        return pa.scalar(int(value), kind) if pa.types.is_integer(kind) and int(value) == value else None
    if isinstance(value, str):
        strings = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
        fits = any(check(kind) for check in (*strings, pa.types.is_fixed_size_binary))
        return cast_exactly(pa.array([value], pa.string()), kind)[0] if fits else None
    fits = pa.types.is_date(kind) or (pa.types.is_timestamp(kind) and kind.tz is None)
    return cast_exactly(pa.array([value], pa.date32()), kind)[0] if fits else None


def hint(kind: pa.DataType) -> str:
    if pa.types.is_timestamp(kind):
        return f': write timestamp("2024-01-31T12:00:00{"Z" if kind.tz else ""}")'
    return ': write date("2024-01-31")' if pa.types.is_date(kind) else ""
