"""Names of Arrow types, as `source.schema` gives them: text in, pa.DataType out.

Every name that Arrow writes itself is understood, and the usual shorthands; names of a struct's fields hold none of the
signs , : < > ( ) [ ] that types are written with. Knows no columns and no values.
"""

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn

import pyarrow as pa

from pipeline.errors import ConfigError

_EXAMPLES = "int64, string, decimal128(10, 2), timestamp[us, tz=UTC], list<string>, struct<a: int64, b: list<string>>"
_MAX_DEPTH = 100
_SPACE = re.compile(r"\s*")
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NUMBER = re.compile(r"-?[0-9]{1,9}(?![0-9])")
_ZONE = re.compile(r"[^\]]*[^\]\s]")
_FIELD = re.compile(r"([^:,<>()\[\]]*):")
_ENTRY = re.compile(r"\('[^']*'\)")
_UNITS = ("s", "ms", "us", "ns")

_PLAIN: dict[str, pa.DataType] = {
    **{f"{sign}int{bits}": getattr(pa, f"{sign}int{bits}")() for sign in ("", "u") for bits in (8, 16, 32, 64)},
    **dict.fromkeys(("null", "na"), pa.null()),
    **dict.fromkeys(("bool", "boolean"), pa.bool_()),
    **dict.fromkeys(("halffloat", "half", "float16"), pa.float16()),
    **dict.fromkeys(("float", "float32"), pa.float32()),
    **dict.fromkeys(("double", "float64"), pa.float64()),
    **dict.fromkeys(("string", "str", "utf8"), pa.string()),
    **dict.fromkeys(("large_string", "large_utf8"), pa.large_string()),
    **dict.fromkeys(("string_view", "utf8_view"), pa.string_view()),
    **dict.fromkeys(("binary", "bytes"), pa.binary()),
    "large_binary": pa.large_binary(),
    "binary_view": pa.binary_view(),
    "month_day_nano_interval": pa.month_day_nano_interval(),
}
_LISTS: dict[str, Callable[[pa.Field], pa.DataType]] = {
    "list": pa.list_,
    "large_list": pa.large_list,
    "list_view": pa.list_view,
    "large_list_view": pa.large_list_view,
}
_DECIMALS = {
    "decimal": pa.decimal128,
    "decimal32": pa.decimal32,
    "decimal64": pa.decimal64,
    "decimal128": pa.decimal128,
    "decimal256": pa.decimal256,
}


def parse(name: str) -> pa.DataType:
    """The type that Arrow writes as `name`, or that is meant by a shorthand of it.

    Raises ConfigError with the place in the text where it stops making sense.
    """
    parser = _Parser(text=name)
    kind = parser.type(0)
    if name[parser.place :].strip():
        parser.refuse("expected the end")
    return kind


@dataclass(kw_only=True)
class _Parser:
    """Goes through the text from left to right; each method takes what its name says."""

    text: str
    place: int = field(default=0)

    def refuse(self, reason: str) -> NoReturn:
        rest = self.text[self.place :].strip()
        at = f"at {rest[:20]!r} (character {self.place})" if rest else "at its end"
        raise ConfigError(
            f"{self.text[:200]!r} is no name of an Arrow type: {reason} {at}; names are such as {_EXAMPLES}"
        )

    def found(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        """Takes what matches, if it comes next."""
        space = _SPACE.match(self.text, self.place)
        match = pattern.match(self.text, space.end() if space else self.place)
        if match is not None:
            self.place = match.end()
        return match

    def has(self, sign: str) -> bool:
        return self.found(re.compile(re.escape(sign))) is not None

    def sign(self, sign: str) -> None:
        if not self.has(sign):
            self.refuse(f"expected {sign!r}")

    def take(self, pattern: re.Pattern[str], what: str) -> str:
        match = self.found(pattern)
        return match[0] if match is not None else self.refuse(f"expected {what}")

    def number(self) -> int:
        return int(self.take(_NUMBER, "a number"))

    def type(self, depth: int) -> pa.DataType:
        if depth > _MAX_DEPTH:
            self.refuse(f"more than {_MAX_DEPTH} levels")
        start = self.place
        name = self.take(_WORD, "the name of a type")
        try:
            return self.named(name, depth)
        except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
            self.place = start
            self.refuse(f"{str(error).rstrip('.')},")

    def named(self, name: str, depth: int) -> pa.DataType:
        if name in _DECIMALS:
            return self.decimal(_DECIMALS[name])
        if name in _LISTS:
            return _LISTS[name](self.item(depth))
        if name in ("struct", "map", "fixed_size_list", "dictionary", "run_end_encoded"):
            make: Callable[[int], pa.DataType] = getattr(self, name)
            return make(depth)
        if name in ("date", "date32", "date64"):
            if self.has("["):
                self.unit_word(("ms",) if name == "date64" else ("day",))
                self.sign("]")
            return pa.date64() if name == "date64" else pa.date32()
        if name in ("time32", "time64"):
            unit = self.unit(("s", "ms") if name == "time32" else ("us", "ns"))
            return pa.time32(unit) if name == "time32" else pa.time64(unit)
        if name == "duration":
            return pa.duration(self.unit(_UNITS))
        if name == "timestamp":
            return self.timestamp()
        if name == "fixed_size_binary" or (name == "binary" and self.text[self.place : self.place + 1] == "["):
            return pa.binary(self.size())
        if name not in _PLAIN:
            self.place -= len(name)
            near = difflib.get_close_matches(name, [*_PLAIN, *_LISTS, *_DECIMALS, "timestamp", "struct", "map"], 1)
            self.refuse(f"{name!r} is unknown{f' (did you mean {near[0]}?)' if near else ''}")
        return _PLAIN[name]

    # leaves

    def decimal(self, kind: Callable[[int, int], pa.DataType]) -> pa.DataType:
        self.sign("(")
        precision, scale = self.number(), self.number() if self.has(",") else 0
        self.sign(")")
        return kind(precision, scale)

    def unit(self, allowed: tuple[str, ...]) -> str:
        self.sign("[")
        unit = self.unit_word(allowed)
        self.sign("]")
        return unit

    def unit_word(self, allowed: tuple[str, ...]) -> str:
        start = self.place
        unit = self.take(_WORD, f"the unit {' or '.join(allowed)}")
        if unit not in allowed:
            self.place = start
            self.refuse(f"expected the unit {' or '.join(allowed)}")
        return unit

    def timestamp(self) -> pa.DataType:
        self.sign("[")
        unit, zone = self.unit_word(_UNITS), None
        if self.has(","):
            self.sign("tz=")
            zone = self.take(_ZONE, "a time zone")
        self.sign("]")
        return pa.timestamp(unit, zone)

    def size(self) -> int:
        self.sign("[")
        size = self.number()
        self.sign("]")
        if size < 0:
            self.refuse("expected a size of 0 or more")
        return size

    # nested types

    def item(self, depth: int) -> pa.Field:
        """`<type>`, or `<name: type not null>`."""
        self.sign("<")
        item = self.field(depth, "item")
        self.sign(">")
        return item

    def field(self, depth: int, default: str) -> pa.Field:
        name = self.found(_FIELD)
        kind = self.type(depth + 1)
        return pa.field(name[1] if name else default, kind, not self.has("not null"))

    def struct(self, depth: int) -> pa.DataType:
        self.sign("<")
        fields: list[pa.Field] = []
        while not self.has(">"):
            if fields:
                self.sign(",")
            name = self.found(_FIELD) or self.refuse("expected `name: type`")
            kind = self.type(depth + 1)
            fields.append(pa.field(name[1], kind, not self.has("not null")))
        return pa.struct(fields)

    def map(self, depth: int) -> pa.DataType:
        """Arrow adds the names of keys and items, such as ('k'), where they are unusual; they are no part of the type."""
        self.sign("<")
        key = self.type(depth + 1)
        self.found(_ENTRY)
        self.sign(",")
        item = self.type(depth + 1)
        self.found(_ENTRY)
        keys_sorted = self.has(",")
        if keys_sorted:
            self.sign("keys_sorted")
        self.sign(">")
        return pa.map_(key, item, keys_sorted)

    def fixed_size_list(self, depth: int) -> pa.DataType:
        item = self.item(depth)
        return pa.list_(item, self.size())

    def dictionary(self, depth: int) -> pa.DataType:
        self.sign("<")
        self.sign("values=")
        values, indices, ordered = self.type(depth + 1), pa.int32(), False
        while self.has(","):
            if self.has("indices="):
                indices = self.type(depth + 1)
            else:
                self.sign("ordered=")
                ordered = bool(self.number())
        self.sign(">")
        return pa.dictionary(indices, values, ordered)

    def run_end_encoded(self, depth: int) -> pa.DataType:
        self.sign("<")
        self.sign("run_ends:")
        ends = self.type(depth + 1)
        self.sign(",")
        self.sign("values:")
        values = self.type(depth + 1)
        self.sign(">")
        return pa.run_end_encoded(ends, values)
