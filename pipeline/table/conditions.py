"""What a person wants of rows becomes a condition that tables can be asked.

Comes in: equal values by column, or texts such as `lang=en` and `year >= 2020`, each of which must hold. Goes out: a
`Condition`. The grammar is that of `source.where`, and a value behind a column and a sign may stand without quotes.
"""

import functools
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.errors import ConfigError, InputError, PipelineError, one_line
from pipeline.sources import filter as grammar

_PLAIN = re.compile(r"\s*([^\W\d][\w.-]*|`[^`]+`)\s*(==|=|!=|<=|>=|<|>)\s*([^\s\"'`()=<>!].*|)$", re.DOTALL)
"""It is a column, a sign and a value without quotes."""

_PAIR = re.compile(r"\s*([^\s`=<>!]+|`[^`]+`)\s*==?([^=].*|)", re.DOTALL)
"""It is a column, a sign of equality and a value."""
_QUOTED = re.compile(r"""\s*(?:"([^"]*)"|'([^']*)')\s*""")
_SIGNS = re.compile(r"[=<>(]|\b(in|is)\b")
"""A condition has one of these, if it isn't the name of a column alone."""

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Condition:
    columns: tuple[str, ...]
    """It reads these."""
    mask: Callable[[pa.Table], Mask]
    """It says which rows of a table with these columns are let through."""


def equal_to(values: Mapping[str, Any]) -> Condition | None:
    """Return the condition that columns equal these values, or None where there are none."""
    if not values:
        return None

    def mask(rows: pa.Table) -> Mask:
        found = [pc.fill_null(pc.equal(rows.column(name), pa.scalar(value)), False) for name, value in values.items()]
        return np.asarray(functools.reduce(operator.and_, [np.asarray(each) for each in found]), np.bool_)

    return Condition(tuple(values), mask)


def is_condition(text: str) -> bool:
    """Say whether a text is written as a condition: it compares a column, or calls one of the grammar's functions. The name
    of a column alone is none, since a word of a question looks like it."""
    if _PLAIN.match(text) or _is_quoted_pair(text):
        return True
    if not _SIGNS.search(text):
        return False
    try:
        return bool(grammar.columns(text))
    except PipelineError:
        return False


def pair(text: str) -> tuple[str, str] | None:
    """Return the column and the value of a condition `column=value`, or None for any other.

    The value may stand in quotes, the column in backticks, and == stands for = as well.
    """
    found = _PAIR.fullmatch(text)
    if found is None:
        return None
    quoted = _QUOTED.fullmatch(found[2])
    value = found[2].strip() if quoted is None else quoted[1] if quoted[1] is not None else quoted[2]
    return found[1].strip("`"), value


def _is_quoted_pair(text: str) -> bool:
    found = _PAIR.fullmatch(text)
    return found is not None and _QUOTED.fullmatch(found[2]) is not None


def told(texts: Sequence[str], schema: pa.Schema) -> Condition | None:
    """Return the condition that all of the texts hold, or None where there are none.

    Raises InputError for what is no condition, or none for columns of this schema.
    """
    if not texts:
        return None
    written = [_written(text, schema) for text in texts]
    for text, condition in zip(texts, written, strict=True):
        _check(text, condition, schema)
    joined = " and ".join(f"({condition})" for condition in written)
    try:
        grammar.check(joined, schema)
    except PipelineError as error:
        raise InputError(str(error).replace("source.where", "where", 1)) from None
    return Condition(grammar.columns(joined), lambda rows: grammar.matches(rows, joined))


def _check(text: str, written: str, schema: pa.Schema) -> None:
    """Raise InputError unless the text is a condition on columns of this schema. It says how conditions are written."""
    try:
        columns = grammar.columns(written)
    except ConfigError as error:
        reason = str(error).partition(f"; {grammar.ALLOWED}")[0].replace("source.where", "where", 1)
        if grammar.NOT_PARSED in reason:
            reason = f"where {one_line(text, 200)!r} is no condition"
        raise InputError(f"{reason}: write such as {_example(text, schema)}") from None
    missing = [name for name in columns if name not in schema.names]
    if missing:
        raise InputError(f"where names column {missing[0]!r}; the table has {', '.join(schema.names)}")


def _example(text: str, schema: pa.Schema) -> str:
    """Return examples of conditions, with the column of the text where it begins with one."""
    first = re.match(r"\s*`?([^\W\d][\w.-]*)", text)
    is_text = first is not None and first[1] in schema.names and pa.types.is_string(schema.field(first[1]).type)
    name = first[1] if first is not None and is_text else "tags"
    return f"{name}=budget, '{name} != \"budget\"' or \"contains({name}, 'budget')\""


def _written(text: str, schema: pa.Schema) -> str:
    """Return the text as the grammar has it: a value without quotes gets those of its column's type."""
    equal = pair(text) if _is_quoted_pair(text) else None
    if equal is not None and equal[0] in schema.names:
        return f"`{equal[0]}` == {_literal(equal[1], schema.field(equal[0]).type)}"
    plain = _PLAIN.match(text)
    name = plain[1].strip("`") if plain else ""
    if plain is None or name not in schema.names or plain[3] in schema.names:
        if plain is not None and plain[2] == "=":
            raise InputError(f"where names column {name!r}; the table has {', '.join(schema.names)}")
        return text
    sign, value = "==" if plain[2] == "=" else plain[2], plain[3].strip()
    if re.search(r"\s(and|or|in|is)\s|[&|]", value):
        return text
    return f"`{name}` {sign} {_literal(value, schema.field(name).type)}"


def _literal(value: str, kind: pa.DataType) -> str:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_date(kind):
        return f"date({value!r})"
    if pa.types.is_timestamp(kind):
        return f"timestamp({value!r})"
    if pa.types.is_boolean(kind) and value.lower() in ("true", "false"):
        return value.title()
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    if is_number and re.fullmatch(r"[-+]?[\d.]+([eE][-+]?\d+)?", value):
        return value
    return repr(value)
