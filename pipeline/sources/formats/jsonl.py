"""JSON Lines: the types of a sample, and the rows of a span.

Bad lines, broken streams and values that don't fit become errors of their row; only storage can fail here.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import pyarrow as pa

from pipeline.config import SourceSpec
from pipeline.sources.columns import Block, RestLost, WrongType, partition_values
from pipeline.sources.formats.content import HEAD_BYTES, is_plain, sample, utf8
from pipeline.sources.formats.form import MOST_SAMPLED_BYTES, SAMPLE_BYTES, SAMPLE_ROWS, Form, Look, Misfit, Needed
from pipeline.sources.formats.json_values import (
    Convert,
    FloatAsWritten,
    NoNumber,
    converter,
    has_decimals,
    has_text,
    is_valid,
    kind_of,
)
from pipeline.sources.formats.scan import Line, line_blocks, lines, span_lines
from pipeline.work import SourceFile, Span

_MAX_DEPTH = 100
_MANY_MISFITS = 100
"""So many rows of a sample that don't fit the type of the rows before them are no accident."""
_FURTHER_PLACES, _FURTHER_BYTES = 16, 2**16
"""A large file is looked into at so many places behind its sample, so many bytes at each."""
AN_ARRAY = "the file is one JSON array, not JSON Lines (an object per line): convert it, for example with `jq -c '.[]'`"


class _BadLine(Misfit):
    """No JSON object."""


# --- the sample


def look(opened: BinaryIO, file: SourceFile, columns: Sequence[str], spec: SourceSpec) -> Look:
    """The types of the columns in a sample of the lines; raises Misfit if one column holds values of two kinds.

    Null where only nulls were seen, and where `spec.schema` says the type. One string makes a string of a text column:
    what else it holds are bad rows. Where only texts are read a few rows must do. The types of other columns may widen at any
    row, so that as many are looked at as fit the sample's bytes, and some at places further on.
    """
    found = _Sample(columns, spec)
    array = False
    only_texts = {*columns} <= {*spec.text_columns, *spec.schema}
    for line in _rows(lines(sample(utf8(opened, file, spec.encoding), MOST_SAMPLED_BYTES), 0, None, SAMPLE_BYTES)):
        found.rows, found.size = found.rows + 1, found.size + len(line.raw)
        try:
            record = _parse(line)
        except _BadLine as bad:
            opens_array = found.rows == 1 and _opens_array(line)
            array = opens_array or (found.rows == 1 and _is_array(line))
            found.reason = found.reason or f"in line {found.rows} {bad}"
            if opens_array:
                break
            continue
        found.add(record, f"row {found.rows}", late=found.rows > SAMPLE_ROWS)
        if (only_texts and found.rows >= SAMPLE_ROWS) or found.size >= SAMPLE_BYTES:
            break
    if found.size >= SAMPLE_BYTES and not only_texts:
        for line in _further_on(opened, file, spec):
            with contextlib.suppress(_BadLine):
                found.add(_parse(line), f"the row at byte {line.position}", late=True)
    if array:  # no line followed it
        found.reason = AN_ARRAY
    return found.look()


def _further_on(opened: BinaryIO, file: SourceFile, spec: SourceSpec) -> Iterator[Line]:
    """Some lines at places that are spread over what follows the sample; none of a file that can't be read from there."""
    opened.seek(0)
    if file.compression or not is_plain(opened.read(HEAD_BYTES), file, spec.encoding):
        return
    step = max(_FURTHER_BYTES, (file.size - SAMPLE_BYTES) // _FURTHER_PLACES)
    for start in range(SAMPLE_BYTES, file.size, step):
        opened.seek(start - 1)
        yield from _rows(lines(opened.read, start, min(start + _FURTHER_BYTES, file.size), SAMPLE_BYTES))


class _Sample:
    """The types so far."""

    def __init__(self, columns: Sequence[str], spec: SourceSpec) -> None:
        self._columns, self._spec = columns, spec
        self._types: dict[str, pa.DataType] = {}
        self._names: set[str] = set()
        self._objects_only: set[str] = set()
        self._late: dict[str, tuple[int, str]] = {}
        """How many late rows a column has that don't fit it, and the first of them."""
        self._objects = self.rows = self.size = 0
        self.reason = ""

    def add(self, record: Mapping[str, Any], place: str, *, late: bool) -> None:
        """Raises Misfit for a row that doesn't fit the ones before; where it is `late`, for many of them only: one such row
        among many is a bad row, and no reason to stop."""
        planned = {name: pa.null() for name in self._columns if name in record and name in self._spec.schema}
        found = {
            name: _type_of(record[name], name)
            for name in self._columns
            if name in record and name not in self._spec.schema
        }
        self._objects += 1
        self._names.update(record)
        self._objects_only.update(name for name in found if record[name] == {})
        for name, kind in (planned | found).items():
            seen = self._types.get(name, pa.null())
            if kind == seen:
                continue
            is_text = name in self._spec.text_columns and pa.string() in (seen, kind)
            try:
                self._types[name] = pa.string() if is_text else join_types(name, seen, kind)
            except Misfit as misfit:
                count, first = self._late.get(name, (0, f"{misfit}, the second first in {place},"))
                self._late[name] = (count + 1, first)
                if not late or count + 1 >= _MANY_MISFITS:
                    raise Misfit(first) from None

    def look(self) -> Look:
        empty = [name for name in self._objects_only if pa.types.is_null(self._types.get(name, pa.null()))]
        if empty:
            raise Misfit(
                f"column {empty[0]!r} holds nothing but objects without keys, and nobody can tell its type: leave it out, or "
                "give it in source.schema, such as map<string, string>; found"
            )
        for name in self._names & {*self._columns}:
            self._types.setdefault(name, pa.null())
        return Look(
            names=self._names,
            types=self._types,
            rows=self.rows,
            size=self.size,
            readable=self._objects > 0,
            reason=self.reason,
        )


def join(name: str, a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    """The type of a column in two files; None where there is none."""
    try:
        return join_types(name, a, b)
    except Misfit:
        return None


def join_types(name: str, a: pa.DataType, b: pa.DataType) -> pa.DataType:
    """The type of a column that holds both; integers and floats make float64. Raises Misfit where there is none."""
    if a == b or pa.types.is_null(b):
        return a
    if pa.types.is_null(a):
        return b
    if {a, b} == {pa.int64(), pa.float64()}:
        return pa.float64()
    if pa.types.is_list(a) and pa.types.is_list(b):
        return pa.list_(join_types(name, a.value_type, b.value_type))
    if pa.types.is_struct(a) and pa.types.is_struct(b):
        fields = {item.name: item.type for item in a}
        for item in b:
            fields[item.name] = join_types(name, fields.get(item.name, pa.null()), item.type)
        return pa.struct(list(fields.items()))
    raise Misfit(f"column {name!r} holds both {a} and {b}")


def _type_of(value: Any, name: str, depth: int = 0) -> pa.DataType:
    if value is None or isinstance(value, NoNumber):
        return pa.null()
    if depth > _MAX_DEPTH:
        raise Misfit(f"column {name!r} holds values nested more than {_MAX_DEPTH} levels deep")
    if isinstance(value, list):
        item: pa.DataType = pa.null()
        for each in value:
            item = join_types(name, item, _type_of(each, name, depth + 1))
        return pa.list_(item)
    if isinstance(value, dict):
        # An object without keys is no struct that a file could hold; others of the column may show its keys. One with a key
        # that is no text will be a bad row.
        fields = [(key, _type_of(each, name, depth + 1)) for key, each in value.items() if is_valid(key)]
        return pa.struct(fields) if fields else pa.null()
    return {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string(), FloatAsWritten: pa.float64()}[
        type(value)
    ]


# --- the rows of a span


def blocks(
    opened: BinaryIO, span: Span, schema: pa.Schema, spec: SourceSpec, max_row_bytes: int, needed: Needed
) -> Iterator[Block]:
    """All rows of the span in order. Rows that are not `needed` are counted, not parsed."""
    convert = {item.name: converter(item.type, as_text=item.name in spec.schema) for item in schema}
    missing = {name: value.as_py() for name, value in partition_values(span.file, schema).items()}
    written = any(has_decimals(item.type) or (item.name in spec.schema and has_text(item.type)) for item in schema)
    rows = _rows(span_lines(opened, span, max_row_bytes, spec.encoding))
    if not span.start:
        rows = _without_array(rows, whole=span.kind != "bytes" or span.stop >= span.file.size)
    return line_blocks(rows, needed, lambda group: _parse_block(group, schema, convert, missing, written))


def _rows(stream: Iterator[Line]) -> Iterator[Line]:
    return (line for line in stream if line.error is not None or line.content.strip())


def _without_array(rows: Iterator[Line], *, whole: bool) -> Iterator[Line]:
    """The rows; one bad row for all of a file that is one JSON array. `whole`: these are all rows of the file."""
    first, second = next(rows, None), next(rows, None)
    if first is None:
        return
    if _opens_array(first) or (whole and second is None and _is_array(first)):
        yield Line(position=first.position, raw=b"", error=RestLost(AN_ARRAY))
        return
    yield first
    if second is not None:
        yield second
    yield from rows


def _is_array(line: Line) -> bool:
    try:
        return line.content.lstrip().startswith(b"[") and isinstance(json.loads(line.content), list)
    except (ValueError, RecursionError):
        return False


def _opens_array(line: Line) -> bool:
    """Whether a JSON array begins in the line and doesn't end there."""
    if not line.content.lstrip().startswith(b"["):
        return False
    try:
        json.loads(line.content)
    except json.JSONDecodeError:
        return True
    except (ValueError, RecursionError):
        return False
    return False


def _parse_block(
    group: Sequence[Line],
    schema: pa.Schema,
    convert: Mapping[str, Convert],
    missing: Mapping[str, Any],
    written: bool,
) -> Block:
    """`missing` is the value of a key that an object lacks; null for those not named."""
    errors: dict[int, str] = {}
    values: dict[str, list[Any]] = {name: [None] * len(group) for name in schema.names}
    for row, line in enumerate(group):
        if line.error is not None:
            errors[row] = line.error
            continue
        try:
            record = _parse(line, written)
        except Misfit as misfit:
            errors[row] = str(misfit)
            continue
        for name, fit in convert.items():
            if name not in record:
                values[name][row] = missing.get(name)
                continue
            value = record[name]
            try:
                values[name][row] = None if value is None else fit(value)
            except (Misfit, RecursionError) as misfit:
                error = f"column {name!r}: {str(misfit) or 'nested too deeply'}"
                errors.setdefault(row, WrongType(error, name) if _is_of_type(misfit) else error)
    columns = pa.table([_array(values[item.name], item.type) for item in schema], schema=schema)
    positions = pa.array([line.position for line in group], pa.int64())
    return Block(rows=len(group), columns=columns, positions=positions, errors=errors)


def _is_of_type(misfit: Exception) -> bool:
    """Whether another type of the column would take the value; none takes NaN or what is no text."""
    return isinstance(misfit, Misfit) and not any(words in str(misfit) for words in ("UTF-8", "is no JSON value"))


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(kind):
        # Arrow makes dictionaries of a few types of Python values only.
        return pa.array(values, kind.value_type).dictionary_encode().cast(kind)
    return pa.array(values, kind)


def _parse(line: Line, written: bool = False) -> dict[str, Any]:
    if line.error is not None:
        raise _BadLine(line.error)
    try:
        text = line.content.decode()
        try:
            record = json.loads(text, parse_constant=NoNumber, parse_float=FloatAsWritten if written else None)
        except json.JSONDecodeError:
            raise
        except ValueError:  # an integer of thousands of digits
            record = json.loads(text, parse_constant=NoNumber, parse_float=FloatAsWritten, parse_int=_integer_or_none)
    except UnicodeDecodeError as error:
        raise _BadLine(f"the line is not valid UTF-8 (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise _BadLine(f"malformed JSON: {error.msg} (character {error.pos})") from None
    except RecursionError:
        raise _BadLine("malformed JSON: nested too deeply") from None
    except ValueError as error:
        raise _BadLine(f"malformed JSON: {error}") from None
    if not isinstance(record, dict):
        raise _BadLine(f"the line holds {kind_of(record)}, not a JSON object")
    return record


def _integer_or_none(digits: str) -> Any:
    try:
        return int(digits)
    except ValueError:
        return NoNumber(digits)


FORM = Form(
    blocks=blocks,
    look=look,
    suffixes=(".jsonl", ".ndjson"),
    divisible=lambda file, spec: True,
    join=join,
)
