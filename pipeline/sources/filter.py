"""`source.where`: a filter over columns, written like an Arrow or a Python expression.

Comes in: its text, and tables. Goes out: an Arrow expression, the columns that it reads, and which rows it lets through.
The text is parsed and translated, never evaluated. Knows nothing of files and formats.
"""

import ast
import datetime
import difflib
import functools
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.acero as acero
import pyarrow.compute as pc

from pipeline.arrays import decode, struct_children
from pipeline.errors import ConfigError, InputError
from pipeline.sources.filter_literals import common_type, fit, hint, is_text, timestamp

_MAX_DEPTH = 100
_MAX_TERMS = 500
"""Arrow makes one deep chain of all that is joined by `or`, and goes down it on the stack."""
ALLOWED = (
    'allowed are columns (`odd name` in backticks, field("a", "b") for nested ones), comparisons, and, or, not, &, |, ~, '
    'in [..], not in [..], is None, is not None, strings, numbers, True, False, date("2024-01-31"), '
    'timestamp("2024-01-31T12:00:00Z"), isin, is_null, is_valid, starts_with, ends_with, contains, length, lower'
)
NOT_PARSED = "is no filter expression"
_QUOTED = re.compile(r"""("(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')|`([^`]+)`""", re.DOTALL)
_NULL = pc.scalar(pa.scalar(None, pa.bool_()))

Path = tuple[str, ...]
"""A column, and the fields that lead into it."""


@dataclass(frozen=True, kw_only=True)
class _Value:
    """What stands on a side of a comparison: an expression over columns, or a literal."""

    text: str
    expression: Any = None
    """pc.Expression; None of a literal."""
    kind: pa.DataType | None = None
    """None where no schema says."""
    literal: Any = None
    """bool, int, float, str, datetime.date, or the pa.Scalar of a timestamp."""


Resolve = Callable[[Path], tuple[pc.Expression, pa.DataType | None]]


# --- what others call


def expression(text: str, schema: pa.Schema | None = None) -> pc.Expression:
    """The filter as Arrow has it; with the schema of what it is meant for, literals have the types of their columns.

    Raises ConfigError for what is not allowed in a filter, InputError for literals that are no values of their column.
    """

    def resolve(path: Path) -> tuple[pc.Expression, pa.DataType | None]:
        kind = None if schema is None or path[0] not in schema.names else _type_at(schema, path, text)
        return pc.field(*path), None if kind is None else _decoded_type(kind)

    return _translate(text, resolve)


def normal(text: str | None) -> str | None:
    """One text for all filters that differ in spaces, quotes and brackets alone."""
    return None if text is None else ast.unparse(_parse(text))


def columns(text: str | None) -> tuple[str, ...]:
    """The columns that the filter reads, each once, in the order in which it names them."""
    return tuple(dict.fromkeys(path[0] for path in _paths(text))) if text is not None else ()


def check(text: str, schema: pa.Schema) -> None:
    """Raises InputError if the filter can't be told of each row of such a schema, whatever values it holds."""
    for path in _paths(text):
        if path[0] not in schema.names:
            near = ", ".join(map(repr, difflib.get_close_matches(path[0], schema.names, 3, 0.5))) or "none"
            raise InputError(f"source.where names column {path[0]!r}, which the sources lack; the nearest are {near}")
    try:
        _evaluate(
            text, [_comparable(pa.array([], _decoded_type(_type_at(schema, path, text)))) for path in _paths(text)], 0
        )
    except pa.ArrowException as error:
        raise InputError(f"source.where {_short(text)!r} can't be told of such columns: {error}") from None


def matches(table: pa.Table, text: str) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """bool[n]: the rows for which the filter is true; null is not true. `check` of the table's schema comes before."""
    arrays = [_comparable(_column_at(table, path, text)) for path in _paths(text)]
    return _evaluate(text, arrays, table.num_rows)


def _evaluate(text: str, arrays: Sequence[pa.Array], rows: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """`arrays` are those of the paths. All comparisons are made between equal types: Arrow's own casts fail at some values."""
    paths = _paths(text)
    names = [str(index) for index in range(len(paths))]

    def resolve(path: Path) -> tuple[pc.Expression, pa.DataType]:
        index = paths.index(path)
        return pc.field(names[index]), arrays[index].type

    condition = _translate(text, resolve)
    table = pa.table([*arrays, np.arange(rows)], names=[*names, "row"])
    source = acero.Declaration("table_source", acero.TableSourceNodeOptions(table))
    # Not a filter: that would take rows of the columns too, and Arrow takes none of some types.
    project = acero.Declaration(
        "project", acero.ProjectNodeOptions([condition, pc.field("row")], ["true", "row"]), [source]
    )
    found = project.to_table(use_threads=False)
    true = np.zeros(rows, bool)
    true[found.column("row").to_numpy()] = pc.fill_null(found.column("true").cast(pa.bool_()), False).to_numpy()
    return true


# --- columns


@functools.lru_cache(maxsize=64)
def _paths(text: str) -> tuple[Path, ...]:
    found: dict[Path, None] = {}

    def resolve(path: Path) -> tuple[pc.Expression, None]:
        found[path] = None
        return pc.field(*path), None

    _translate(text, resolve)
    return tuple(found)


def _type_at(schema: pa.Schema, path: Path, text: str) -> pa.DataType:
    kind = schema.field(path[0]).type
    for name in path[1:]:
        names = [item.name for item in kind] if pa.types.is_struct(kind) else []
        if names.count(name) != 1:
            raise InputError(f"source.where {text!r}: {'.'.join(path)!r} leads nowhere, {name!r} is no field of {kind}")
        kind = kind.field(name).type
    return kind


def _column_at(table: pa.Table, path: Path, text: str) -> pa.Array:
    _type_at(table.schema, path, text)
    values = table.column(path[0]).combine_chunks()
    for name in path[1:]:
        values = struct_children(values)[name]
    return values


def _comparable(values: pa.Array) -> pa.Array:
    """Decoded, and wide enough for Arrow: it has no comparison of half floats, and no set of narrow decimals."""
    values = decode(values)
    kind = values.type
    if pa.types.is_float16(kind):
        return values.cast(pa.float32())
    if pa.types.is_decimal32(kind) or pa.types.is_decimal64(kind):
        return values.cast(pa.decimal128(kind.precision, kind.scale))
    return values


def _decoded_type(kind: pa.DataType) -> pa.DataType:
    if isinstance(kind, pa.BaseExtensionType):
        return _decoded_type(kind.storage_type)
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return _decoded_type(kind.value_type)
    return {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}.get(kind, kind)


# --- text to expression


def _translate(text: str, resolve: Resolve) -> pc.Expression:
    try:
        return _Translation(text=text, resolve=resolve).condition(_parse(text), 0)
    except RecursionError:
        raise ConfigError("source.where is nested too deeply: use in [..] for many values") from None


@functools.lru_cache(maxsize=64)
def _parse(text: str) -> ast.expr:
    def plain(match: re.Match[str]) -> str:
        return match[1] or f"field({match[2]!r})"

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's advice on how to write Python
            parsed = ast.parse(_QUOTED.sub(plain, text).strip(), mode="eval").body
    except SyntaxError as error:
        raise ConfigError(f"source.where {_short(text)!r} {NOT_PARSED}: {error.msg}; {ALLOWED}") from None
    except (RecursionError, MemoryError):
        raise ConfigError("source.where is nested too deeply: use in [..] for many values") from None
    except ValueError as error:
        raise ConfigError(f"source.where {_short(text)!r} {NOT_PARSED}: {error}") from None
    joined = sum(isinstance(node, ast.BoolOp | ast.BinOp | ast.cmpop) for node in ast.walk(parsed))
    terms = joined + sum(len(node.values) for node in ast.walk(parsed) if isinstance(node, ast.BoolOp))
    if terms > _MAX_TERMS:
        raise ConfigError(f"source.where has more than {_MAX_TERMS} comparisons: use in [..] for many values")
    return parsed


def _short(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:197]}..."


_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: lambda a, b: a == b,
    ast.NotEq: lambda a, b: a != b,
    ast.Lt: lambda a, b: a < b,
    ast.LtE: lambda a, b: a <= b,
    ast.Gt: lambda a, b: a > b,
    ast.GtE: lambda a, b: a >= b,
}
_MATCHES = {
    "starts_with": pc.starts_with,
    "ends_with": pc.ends_with,
    "contains": pc.match_substring,
    "match_substring": pc.match_substring,
}
_FUNCTIONS = {"length": (pc.utf8_length, pa.int32()), "lower": (pc.utf8_lower, pa.string())}


@dataclass(frozen=True, kw_only=True)
class _Translation:
    text: str
    resolve: Resolve

    def refuse(self, node: ast.AST, reason: str = "is not allowed") -> NoReturn:
        raise ConfigError(f"source.where {_short(self.text)!r}: {_written(node)} {reason}; {ALLOWED}")

    def misfit(self, reason: str) -> NoReturn:
        raise InputError(f"source.where {_short(self.text)!r}: {reason}")

    # conditions: true, false or null

    def condition(self, node: ast.expr, depth: int) -> pc.Expression:
        if depth > _MAX_DEPTH:
            raise RecursionError
        match node:
            case ast.BoolOp(op=ast.And(), values=values):
                return _balanced([self.condition(each, depth + 1) for each in values], lambda a, b: a & b)
            case ast.BoolOp(op=ast.Or(), values=values):
                return _balanced([self.condition(each, depth + 1) for each in values], lambda a, b: a | b)
            case ast.BinOp(op=ast.BitAnd(), left=left, right=right):
                return self.condition(left, depth + 1) & self.condition(right, depth + 1)
            case ast.BinOp(op=ast.BitOr(), left=left, right=right):
                return self.condition(left, depth + 1) | self.condition(right, depth + 1)
            case ast.UnaryOp(op=ast.Not() | ast.Invert(), operand=operand):
                return ~self.condition(operand, depth + 1)
            case ast.Compare():
                return self.comparison(node, depth + 1)
            case ast.Constant(value=bool() as value):
                return pc.scalar(value)
            case ast.Call(func=ast.Name(id=name)) if name in _MATCHES:
                return self.match(node, name, depth + 1)
            case ast.Call(func=ast.Attribute(value=inner, attr="is_null" | "is_valid" as name), args=[], keywords=[]):
                expression = self.column(inner, depth + 1).expression
                return expression.is_null() if name == "is_null" else expression.is_valid()
            case ast.Call(func=ast.Attribute(value=inner, attr="isin"), args=[values], keywords=[]):
                return self.membership(self.column(inner, depth + 1), values)
        truth = self.value(node, depth + 1)
        if truth.expression is None:
            self.refuse(node, "is neither true nor false (around & and | comparisons need parentheses)")
        if truth.kind is not None and not (pa.types.is_boolean(truth.kind) or pa.types.is_null(truth.kind)):
            self.misfit(f"{truth.text} is {truth.kind}, neither true nor false: compare it with something")
        return truth.expression

    def comparison(self, node: ast.Compare, depth: int) -> pc.Expression:
        sides = [node.left, *node.comparators]
        pairs = zip(sides, node.ops, sides[1:], strict=False)
        return _balanced([self.pair(left, op, right, node, depth) for left, op, right in pairs], lambda a, b: a & b)

    def pair(self, left: ast.expr, op: ast.cmpop, right: ast.expr, node: ast.expr, depth: int) -> pc.Expression:
        if isinstance(op, ast.In):
            return self.membership(self.column(left, depth), right)
        if isinstance(op, ast.NotIn):
            return ~self.membership(self.column(left, depth), right)
        if isinstance(op, ast.Is | ast.Eq | ast.IsNot | ast.NotEq) and (_is_none(left) or _is_none(right)):
            expression = self.column(left if _is_none(right) else right, depth).expression
            return expression.is_null() if isinstance(op, ast.Is | ast.Eq) else expression.is_valid()
        if type(op) not in _COMPARISONS:
            self.refuse(node)
        a, b = self.value(left, depth), self.value(right, depth)
        if a.expression is not None and b.expression is not None:
            self.check_alike(a, b)
        return _COMPARISONS[type(op)](self.side(a, b.kind), self.side(b, a.kind))

    def membership(self, value: _Value, node: ast.expr) -> pc.Expression:
        """Null is in no list that doesn't name it, and it is not known to be outside either, as in comparisons."""
        if not isinstance(node, ast.List | ast.Tuple | ast.Set) or not node.elts:
            self.refuse(node, "is no list of values")
        named = [self.literal(each) for each in node.elts if not _is_none(each)]
        kind = value.kind
        if kind is None or pa.types.is_null(kind):
            scalars = [self.natural(each) for each in named]
        else:
            scalars = [self.fitting(each, kind) for each in named]
        if not named:
            return value.expression.is_null()
        common = common_type({scalar.type for scalar in scalars})
        if common is None:
            self.refuse(node, "holds values of several types")
        values = [scalar.cast(common) for scalar in scalars]
        if pa.types.is_floating(common) and any(scalar.as_py() == 0 for scalar in values):
            values += [pa.scalar(0.0, common), pa.scalar(-0.0, common)]  # Arrow looks values up by their bits.
        found = value.expression.isin(pa.array(values, common))
        if any(_is_none(each) for each in node.elts):
            return found | value.expression.is_null()
        return found | (value.expression.is_null() & _NULL)

    def match(self, node: ast.Call, name: str, depth: int) -> pc.Expression:
        if len(node.args) != 2 or node.keywords:
            self.refuse(node, f"is not {name}(column, text)")
        value, pattern = self.string_column(node.args[0], depth), self.literal(node.args[1]).literal
        if not isinstance(pattern, str):
            self.refuse(node.args[1], "is no string")
        return _MATCHES[name](value.expression, pattern=pattern)

    # values

    def value(self, node: ast.expr, depth: int) -> _Value:
        if depth > _MAX_DEPTH:
            raise RecursionError
        match node:
            case ast.Name(id=name):
                return self.field((name,), node)
            case ast.Call(func=ast.Name(id="field"), args=args, keywords=[]):
                return self.field_call(node, args)
            case ast.Call(func=ast.Attribute(value=ast.Name(id="pc" | "ds"), attr="field"), args=args, keywords=[]):
                return self.field_call(node, args)
            case ast.Call(func=ast.Name(id=name), args=[inner], keywords=[]) if name in _FUNCTIONS:
                function, kind = _FUNCTIONS[name]
                value = self.string_column(inner, depth + 1)
                if value.kind is not None and pa.types.is_large_string(value.kind):
                    kind = {pa.int32(): pa.int64()}.get(kind, value.kind)
                known = None if value.kind is None else kind
                return _Value(text=_written(node), expression=function(value.expression), kind=known)
            case ast.Constant() | ast.UnaryOp(op=ast.USub() | ast.UAdd()):
                return self.literal(node)
            case ast.Call(func=ast.Name(id="date" | "timestamp")):
                return self.literal(node)
            case ast.Compare() | ast.BoolOp() | ast.BinOp() | ast.UnaryOp() | ast.Call():
                condition = self.condition(node, depth) if _may_be_condition(node) else self.refuse(node)
                return _Value(text=_written(node), expression=condition, kind=pa.bool_())
        self.refuse(node)

    def column(self, node: ast.expr, depth: int) -> _Value:
        value = self.value(node, depth)
        return value if value.expression is not None else self.refuse(node, "is no column")

    def string_column(self, node: ast.expr, depth: int) -> _Value:
        value = self.column(node, depth)
        kind = value.kind
        if kind is not None and not is_text(kind):
            self.misfit(f"{value.text} is {kind}, expected strings")
        return value

    def field_call(self, node: ast.expr, args: Sequence[ast.expr]) -> _Value:
        path = [each.value for each in args if isinstance(each, ast.Constant) and isinstance(each.value, str)]
        if not path or len(path) < len(args):
            self.refuse(node, "does not name a column")
        return self.field(tuple(path), node)

    def field(self, path: Path, node: ast.expr) -> _Value:
        expression, kind = self.resolve(path)
        return _Value(text=_written(node), expression=expression, kind=kind)

    def literal(self, node: ast.expr) -> _Value:
        match node:
            case ast.Constant(value=bool() | int() | float() | str() as value):
                return _Value(text=_written(node), literal=value)
            case ast.UnaryOp(
                op=ast.USub() | ast.UAdd() as op, operand=ast.Constant(value=int() | float() as value)
            ) if not isinstance(value, bool):
                return _Value(text=_written(node), literal=-value if isinstance(op, ast.USub) else value)
            case ast.Call(func=ast.Name(id="date"), args=[ast.Constant(value=str() as value)], keywords=[]):
                try:
                    return _Value(text=_written(node), literal=datetime.date.fromisoformat(value))
                except ValueError:
                    self.refuse(node, 'is no date such as date("2024-01-31")')
            case ast.Call(func=ast.Name(id="timestamp"), args=[ast.Constant(value=str() as value)], keywords=[]):
                scalar = timestamp(value)
                if scalar is None:
                    self.refuse(node, 'is no moment such as timestamp("2024-01-31T12:00:00Z")')
                return _Value(text=_written(node), literal=scalar)
        self.refuse(node, "is no value" if isinstance(node, ast.Constant) else "is not allowed")

    # literals and types

    def side(self, value: _Value, other: pa.DataType | None) -> Any:
        """The expression, or the literal with the type of the other side."""
        if value.expression is not None:
            return value.expression
        return pc.scalar(
            self.natural(value) if other is None or pa.types.is_null(other) else self.fitting(value, other)
        )

    def natural(self, value: _Value) -> pa.Scalar:
        if isinstance(value.literal, pa.Scalar):
            return value.literal
        try:
            large = isinstance(value.literal, int) and value.literal >= 2**63
            return pa.scalar(value.literal, pa.uint64()) if large else pa.scalar(value.literal)
        except (OverflowError, pa.ArrowException):
            raise ConfigError(f"source.where {_short(self.text)!r}: the number {value.text} is too large") from None

    def fitting(self, value: _Value, kind: pa.DataType) -> pa.Scalar:
        """The literal as a value of `kind`: exactly, but for the nearest float."""
        try:
            scalar = fit(value.literal, kind)
        except (pa.ArrowException, OverflowError, ValueError, ArithmeticError):
            scalar = None
        if scalar is None:
            self.misfit(f"{value.text} is no value of {kind}, the type of what it is compared with{hint(kind)}")
        return scalar

    def check_alike(self, a: _Value, b: _Value) -> None:
        if a.kind is None or b.kind is None or a.kind == b.kind or pa.types.is_null(a.kind) or pa.types.is_null(b.kind):
            return
        both_float = pa.types.is_floating(a.kind) and pa.types.is_floating(b.kind)
        both_integer = pa.types.is_integer(a.kind) and pa.types.is_integer(b.kind)
        both_text = is_text(a.kind) and is_text(b.kind)
        if not both_text and not both_float and not (both_integer and pa.uint64() not in (a.kind, b.kind)):
            self.misfit(f"{a.text} is {a.kind} and {b.text} is {b.kind}: columns of two types can't be compared")


def _balanced(terms: Sequence[pc.Expression], join: Callable[[Any, Any], Any]) -> pc.Expression:
    """Joined in a tree of little depth: Arrow goes down an expression on the stack."""
    if len(terms) == 1:
        return terms[0]
    middle = len(terms) // 2
    return join(_balanced(terms[:middle], join), _balanced(terms[middle:], join))


def _may_be_condition(node: ast.expr) -> bool:
    match node:
        case ast.Call(func=ast.Name(id=name)):
            return name in _MATCHES
        case ast.Call(func=ast.Attribute(attr=name)):
            return name in ("is_null", "is_valid", "isin") and len(node.args) == (name == "isin") and not node.keywords
        case ast.BinOp(op=op):
            return isinstance(op, ast.BitAnd | ast.BitOr)
        case ast.UnaryOp(op=op):
            return isinstance(op, ast.Not | ast.Invert)
    return isinstance(node, ast.Compare | ast.BoolOp)


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _written(node: ast.AST) -> str:
    text = ast.unparse(node)  # of a tree that was parsed: it is no deeper than Python's own limit
    return text if len(text) <= 80 else f"{text[:77]}..."
