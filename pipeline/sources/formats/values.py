"""Text into values of the planned type: nothing is rounded, cut or guessed; what doesn't fit is null, with the reason.

Comes in: strings, as csv has them and as JSON has what it has no type for. Goes out: Arrow arrays, and blocks of them.
"""

import base64
import binascii
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import pyarrow as pa

from pipeline.sources.columns import Block, conform, partition_values
from pipeline.work import SourceFile

_DURATION = re.compile(
    r"(?P<sign>-?)P(?=.)(?:(?P<weeks>\d+)W)?(?:(?P<days>\d+)D)?"
    r"(?:T(?=.)(?:(?P<hours>\d+)H)?(?:(?P<minutes>\d+)M)?(?:(?P<seconds>\d+(?:\.\d+)?)S)?)?",
    re.ASCII,
)
_SECONDS = {"weeks": 604800, "days": 86400, "hours": 3600, "minutes": 60, "seconds": 1}
_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def is_text(kind: pa.DataType) -> bool:
    """Whether strings have this type without being parsed."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    return any(check(kind) for check in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


def is_bytes(kind: pa.DataType) -> bool:
    checks = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary)
    return any(check(kind) for check in checks)


def can_be_text(kind: pa.DataType) -> bool:
    """Whether a string can be parsed as the type."""
    if pa.types.is_dictionary(kind):
        return can_be_text(kind.value_type)
    return not (pa.types.is_nested(kind) or pa.types.is_null(kind))


def parse(texts: Sequence[str | None], kind: pa.DataType) -> tuple[pa.Array, dict[int, str]]:
    """The values, and what is wrong with those that don't fit, by index.

    Dates, times and timestamps in ISO form, durations as ISO 8601 (`P1DT2H3.5S`), binary as base64.
    """
    if pa.types.is_dictionary(kind) and not is_text(kind):
        values, errors = parse(texts, kind.value_type)
        return values.dictionary_encode().cast(kind), errors
    if is_bytes(kind):
        return _narrowed(*_each(texts, _from_base64, pa.binary()), kind)
    if pa.types.is_duration(kind):
        return _narrowed(*_each(texts, lambda text: _from_iso(text, kind.unit), pa.int64()), kind)
    if not can_be_text(kind):
        return _each(texts, functools.partial(_refuse, kind), kind)
    if pa.types.is_integer(kind):
        return _narrowed(*_each(texts, _decimal_digits, pa.string()), kind)
    return conform(pa.array(texts, pa.string()), kind)


def _narrowed(values: pa.Array, errors: dict[int, str], kind: pa.DataType) -> tuple[pa.Array, dict[int, str]]:
    narrowed, misfits = conform(values, kind)
    return narrowed, {**errors, **misfits}


def block(
    columns: Mapping[str, Sequence[str | None]],
    positions: Sequence[int],
    errors: Mapping[int, str],
    schema: pa.Schema,
    file: SourceFile,
) -> Block:
    """A block of rows whose values are strings. Columns that are not given are what the file's folders say, or null.

    "" is a string, and null for every other type.
    """
    rows, errors = len(positions), dict(errors)
    constants = partition_values(file, schema)
    arrays = []
    for item in schema:
        if item.name not in columns:
            arrays.append(pa.repeat(constants.get(item.name, pa.scalar(None, item.type)), rows))
            continue
        texts = columns[item.name]
        values, misfits = parse(texts if is_text(item.type) else [text or None for text in texts], item.type)
        arrays.append(values)
        for row, reason in misfits.items():
            errors.setdefault(row, f"column {item.name!r} {reason}")
    table = pa.table(arrays, schema=schema)
    return Block(rows=rows, columns=table, positions=pa.array(positions, pa.int64()), errors=errors)


# --- types that strings can't be cast to


def _each(
    texts: Sequence[str | None], convert: Callable[[str], Any], kind: pa.DataType
) -> tuple[pa.Array, dict[int, str]]:
    """The values one by one; None and an error where `convert` raises ValueError."""
    values: list[Any] = []
    errors: dict[int, str] = {}
    for row, text in enumerate(texts):
        try:
            values.append(None if text is None else convert(text))
        except ValueError as error:
            values.append(None)
            errors[row] = str(error)
    return pa.array(values, kind), errors


def _refuse(kind: pa.DataType, text: str) -> Any:
    raise ValueError(f"does not fit {kind}")


def _decimal_digits(text: str) -> str:
    if "x" in text.lower():
        raise ValueError("is hexadecimal, not a decimal number")  # as Arrow would take it
    return text


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("is not base64") from None


def _from_iso(text: str, unit: str) -> int:
    """The duration as a count of the unit; a month or a year has no fixed length and is refused."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError("is no ISO 8601 duration of weeks, days, hours, minutes and seconds")
    seconds = sum((Fraction(match[name] or 0) * factor for name, factor in _SECONDS.items()), Fraction(0))
    count = seconds * _PER_SECOND[unit]
    if count.denominator != 1 or count >= 2**63:
        raise ValueError(f"does not fit duration[{unit}]")
    return -count.numerator if match["sign"] else count.numerator
