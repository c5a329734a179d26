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

from pipeline.errors import InputError, PipelineError
from pipeline.sources import filter as grammar

_PLAIN = re.compile(r"\s*([^\W\d][\w.-]*|`[^`]+`)\s*(==|=|!=|<=|>=|<|>)\s*([^\s\"'`()=<>!].*|)$", re.DOTALL)
"""It is a column, a sign and a value without quotes."""

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


def told(texts: Sequence[str], schema: pa.Schema) -> Condition | None:
    """Return the condition that all of the texts hold, or None where there are none.

    Raises InputError for what is no condition, or none for columns of this schema.
    """
    if not texts:
        return None
    joined = " and ".join(f"({_written(text, schema)})" for text in texts)
    try:
        missing = [name for name in grammar.columns(joined) if name not in schema.names]
        if missing:
            raise InputError(f"where names column {missing[0]!r}; the table has {', '.join(schema.names)}")
        grammar.check(joined, schema)
    except PipelineError as error:
        raise InputError(str(error).replace("source.where", "where", 1)) from None
    return Condition(grammar.columns(joined), lambda rows: grammar.matches(rows, joined))


def _written(text: str, schema: pa.Schema) -> str:
    """Return the text as the grammar has it: a value without quotes gets those of its column's type."""
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
