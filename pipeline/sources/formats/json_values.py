"""Values of JSON as values of the planned types: nothing is rounded, cut or dropped.

Comes in: what the parser makes of JSON text. Goes out: Python values as Arrow takes them; Misfit says why there is none.
"""

import math
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pyarrow as pa

from pipeline.sources.formats import values as text_values
from pipeline.sources.formats.form import Misfit

Convert = Callable[[Any], Any]


class FloatAsWritten(float):
    """A float that keeps the text it was written as."""

    text: str

    def __new__(cls, text: str) -> "FloatAsWritten":
        number = super().__new__(cls, text)
        number.text = text
        return number


class NoNumber:
    """What JSON has no number for, but some writers have: NaN, the infinities, and integers too long to be read. It spoils
    a row only where it is read."""

    def __init__(self, name: str) -> None:
        self.name = name if len(name) <= 20 else "an integer of so many digits"


def converter(kind: pa.DataType, as_text: bool = False) -> Convert:
    """A function that gives the value as Arrow takes it, or raises Misfit. Nothing is rounded, cut or dropped; with
    `as_text` strings take numbers too, as they are written."""
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_list_view, pa.types.is_large_list_view)
    if any(check(kind) for check in lists):
        item = _nullable(converter(kind.value_type, as_text))
        return lambda value: [item(each) for each in _a(list, value, kind)]
    if pa.types.is_fixed_size_list(kind):
        item = _nullable(converter(kind.value_type, as_text))
        return lambda value: _exactly(kind.list_size, [item(each) for each in _a(list, value, kind)])
    if pa.types.is_struct(kind):
        return _struct_converter(kind, as_text)
    if pa.types.is_map(kind):
        return _map_converter(kind, as_text)
    if pa.types.is_dictionary(kind):
        return converter(kind.value_type, as_text)
    if text_values.is_text(kind):
        return lambda value: _string(_written_number(value) if as_text else value, kind)
    if pa.types.is_boolean(kind):
        return lambda value: _a(bool, value, kind)
    if pa.types.is_integer(kind):
        return lambda value: _integer(value, kind)
    if pa.types.is_floating(kind):
        return lambda value: _float(value, kind)
    if pa.types.is_decimal(kind):
        return lambda value: _decimal(value, kind)
    return lambda value: _from_text(value, kind)


def has_decimals(kind: pa.DataType) -> bool:
    if pa.types.is_nested(kind):
        return any(has_decimals(kind.field(index).type) for index in range(kind.num_fields))
    return pa.types.is_decimal(kind) or (pa.types.is_dictionary(kind) and has_decimals(kind.value_type))


def has_text(kind: pa.DataType) -> bool:
    if pa.types.is_nested(kind):
        return any(has_text(kind.field(index).type) for index in range(kind.num_fields))
    return text_values.is_text(kind)


def _written_number(value: Any) -> Any:
    """A number as its text, anything else as it is."""
    if isinstance(value, FloatAsWritten):
        return value.text
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _nullable(convert: Convert) -> Convert:
    return lambda value: None if value is None else convert(value)


def _struct_converter(kind: pa.DataType, as_text: bool) -> Convert:
    fields = {item.name: _nullable(converter(item.type, as_text)) for item in kind}

    def convert(value: Any) -> dict[str, Any]:
        unknown = _a(dict, value, kind).keys() - fields.keys()
        if unknown:
            raise Misfit(f"the key {min(unknown)!r} is not among those of {kind}")
        return {name: fit(value.get(name)) for name, fit in fields.items()}

    return convert


def _map_converter(kind: pa.DataType, as_text: bool) -> Convert:
    """From an object, if keys are strings or can be parsed from them, or from an array of [key, value] pairs."""
    key, item = converter(kind.key_type, as_text), _nullable(converter(kind.item_type, as_text))

    def convert(value: Any) -> list[tuple[Any, Any]]:
        pairs = list(value.items()) if isinstance(value, dict) else _a(list, value, kind)
        if not all(isinstance(pair, tuple) or (isinstance(pair, list) and len(pair) == 2) for pair in pairs):
            raise Misfit(f"an array of anything but [key, value] does not fit {kind}")
        if any(name is None for name, _ in pairs):
            raise Misfit(f"a key that is null does not fit {kind}")
        return [(key(name), item(each)) for name, each in pairs]

    return convert


def _from_text(value: Any, kind: pa.DataType) -> Any:
    """What JSON has no type for and strings stand for; an Arrow scalar, because Python has no nanoseconds."""
    values, errors = text_values.parse([_a(str, value, kind)], kind)
    if errors:
        raise Misfit(f"the string {errors[0]}")
    return values[0]


def _decimal(value: Any, kind: pa.DataType) -> Any:
    if isinstance(value, str):
        return _from_text(value, kind)
    number = _a((int, FloatAsWritten), value, kind)
    try:
        return pa.scalar(Decimal(number.text if isinstance(number, FloatAsWritten) else number), kind)
    except (pa.ArrowException, ValueError):
        raise Misfit(f"the number does not fit {kind}") from None


def _string(value: Any, kind: pa.DataType) -> str:
    text = str(_a(str, value, kind))
    if not is_valid(text):
        raise Misfit("is not valid UTF-8: a \\u escape is half of a surrogate pair")
    return text


def is_valid(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _integer(value: Any, kind: pa.DataType) -> int:
    number = int(_a(int, value, kind))
    signed = pa.types.is_signed_integer(kind)
    lowest = -(2 ** (kind.bit_width - 1)) if signed else 0
    if not lowest <= number < lowest + 2**kind.bit_width:
        raise Misfit(f"an integer out of the range of {kind} does not fit")
    return number


def _float(value: Any, kind: pa.DataType) -> float:
    number = _a((int, float), value, kind)
    try:
        nearest = float(number)
        if not pa.types.is_float64(kind):
            nearest = pa.scalar(nearest, kind).as_py()
    except OverflowError:
        nearest = math.inf
    if not math.isfinite(nearest) or (isinstance(number, int) and int(nearest) != number):
        raise Misfit(f"the number can't be held exactly by {kind}")
    return nearest


def _exactly(size: int, items: list[Any]) -> list[Any]:
    if len(items) != size:
        raise Misfit(f"a list of {len(items)} values does not fit one of {size}")
    return items


def _a(kinds: type | tuple[type, ...], value: Any, kind: pa.DataType) -> Any:
    if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
        _refuse(value, kind)
    return value


def _refuse(value: Any, kind: pa.DataType) -> Any:
    if isinstance(value, NoNumber):
        raise Misfit(f"{value.name} is no JSON value")
    raise Misfit(f"{kind_of(value)} does not fit {kind}")


def kind_of(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "true or false", int: "an integer"}
    return names.get(type(value), "a number" if isinstance(value, float) else "null")
