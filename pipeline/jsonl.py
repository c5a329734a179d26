"""JSON Lines, plain or gzipped: the types of a sample, and the rows of a span. Lines end with a line feed, nothing else.

Bad lines, broken gzip and values that don't fit become errors of their row; only storage can fail here.
"""

import json
import math
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa

from pipeline.columns import Block, partition_values, skipped_block
from pipeline.unit import Span

READAHEAD_BYTES = 4 * 2**20
SAMPLE_LINES = 500
_SAMPLE_BYTES = 8 * 2**20
_CHUNK_BYTES = 2**20
_GZIP_INPUT_BYTES = 2**16
_BLOCK_ROWS = 1024
_BLOCK_BYTES = 4 * 2**20
_MAX_DEPTH = 100
_BOM = b"\xef\xbb\xbf"

Read = Callable[[int], bytes]
Convert = Callable[[Any], Any]


class Misfit(Exception):
    """A line or a value is not what was planned; the message says what it is instead."""


class _BadLine(Misfit):
    """No JSON object."""


class _Broken(Exception):
    """The compressed stream ends or fails here."""


@dataclass(frozen=True, kw_only=True)
class Line:
    position: int
    """Byte offset in the uncompressed stream."""
    content: bytes
    error: str | None = None


# --- the sample


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What the first lines of a file say about all of it."""

    names: frozenset[str]
    """All keys that were seen."""
    types: Mapping[str, pa.DataType]
    """By key; null where only nulls were seen."""
    rows: int
    size: int
    """Bytes of these rows, uncompressed."""
    objects: int
    """Rows that are JSON objects."""


def sample(file: BinaryIO, compressed: bool, columns: Sequence[str], texts: Collection[str] = ()) -> Sample:
    """The types of the columns in the first lines; raises Misfit if one column holds values of two kinds.

    One string makes a string of those in `texts`: what else they hold are bad rows.
    """
    read = gzip_reader(file) if compressed else file.read
    types: dict[str, pa.DataType] = {}
    names: set[str] = set()
    rows, size, objects = 0, 0, 0
    for line in lines(read, 0, None, _SAMPLE_BYTES):
        rows, size = rows + 1, size + len(line.content)
        try:
            record = _parse(line)
        except _BadLine:
            continue
        found = {name: _type_of(record[name], name) for name in columns if name in record}
        objects += 1
        names.update(record)
        for name, kind in found.items():
            seen = types.get(name, pa.null())
            is_text = name in texts and pa.string() in (seen, kind)
            types[name] = pa.string() if is_text else join_types(name, seen, kind)
        if rows >= SAMPLE_LINES or size >= _SAMPLE_BYTES:
            break
    return Sample(names=frozenset(names), types=types, rows=rows, size=size, objects=objects)


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
    if value is None:
        return pa.null()
    if depth > _MAX_DEPTH:
        raise Misfit(f"column {name!r} holds values nested more than {_MAX_DEPTH} levels deep")
    if isinstance(value, list):
        item: pa.DataType = pa.null()
        for each in value:
            item = join_types(name, item, _type_of(each, name, depth + 1))
        return pa.list_(item)
    if isinstance(value, dict):
        # An object without keys is no struct that a file could hold; others of the column may show its keys.
        return (
            pa.struct([(key, _type_of(each, name, depth + 1)) for key, each in value.items()]) if value else pa.null()
        )
    return {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}[type(value)]


# --- the rows of a span


def blocks(
    file: BinaryIO, span: Span, schema: pa.Schema, max_row_bytes: int, needed: Callable[[int, int], bool]
) -> Iterator[Block]:
    """All rows of the span in order. Rows for which `needed(first, count)` is false are counted, not parsed."""
    compressed = span.file.format == "jsonl.gz"
    read = gzip_reader(file) if compressed else file.read
    start, stop = (0, None) if compressed or span.kind == "file" else (span.start, span.stop)
    if start:
        file.seek(start - 1)
    convert = {item.name: _converter(item.type) for item in schema}
    missing = {name: value.as_py() for name, value in partition_values(span.file, schema).items()}
    first = 0
    for group in _groups(lines(read, start, stop, max_row_bytes)):
        if needed(first, len(group)):
            yield _parse_block(group, schema, convert, missing)
        else:
            yield skipped_block(len(group))
        first += len(group)


def _groups(stream: Iterator[Line]) -> Iterator[list[Line]]:
    group: list[Line] = []
    size = 0
    for line in stream:
        group.append(line)
        size += len(line.content)
        if len(group) >= _BLOCK_ROWS or size >= _BLOCK_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def lines(read: Read, start: int, stop: int | None, max_bytes: int) -> Iterator[Line]:
    """The lines that begin in [start, stop), blank ones left out; `read` stands one byte before `start` if there is one.

    Holds at most `max_bytes` of a line and one chunk. A longer line, and the place where `read` breaks, are lines with
    an error.
    """
    position = max(start - 1, 0)
    inside = start == 0  # else the first piece belongs to a line that began before
    parts: list[bytes] = []
    held, too_long = 0, False
    error: str | None = None
    for chunk in _chunks(read):
        if isinstance(chunk, _Broken):
            error = str(chunk)
            break
        begin = 0
        while (end := chunk.find(b"\n", begin)) >= 0:
            if inside and (too_long or held + end - begin > max_bytes):
                yield _too_long(position, max_bytes)
            elif inside:
                content = b"".join([*parts, chunk[begin:end]])
                if (line := _line(position, content)) is not None:
                    yield line
            position += held + end - begin + 1
            if stop is not None and position >= stop:
                return
            inside, parts, held, too_long, begin = True, [], 0, False, end + 1
        held += len(chunk) - begin
        too_long = too_long or held > max_bytes
        parts = [] if too_long or not inside else [*parts, chunk[begin:]]
    if error is not None:
        yield Line(position=position, content=b"", error=error)
    elif inside and too_long:
        yield _too_long(position, max_bytes)
    elif inside and (line := _line(position, b"".join(parts))) is not None:
        yield line


def _chunks(read: Read) -> Iterator[bytes | _Broken]:
    try:
        while chunk := read(_CHUNK_BYTES):
            yield chunk
    except _Broken as broken:
        yield broken


def _line(position: int, content: bytes) -> Line | None:
    if position == 0:
        content = content.removeprefix(_BOM)
    return Line(position=position, content=content) if content.strip() else None


def _too_long(position: int, max_bytes: int) -> Line:
    return Line(position=position, content=b"", error=f"the line is longer than limits.max_row_bytes ({max_bytes})")


def gzip_reader(file: BinaryIO) -> Read:
    """`read(size)` of the uncompressed stream of all gzip members; at a broken place all before it, then _Broken."""
    stream = _gunzip(file)
    return lambda size: next(stream, b"")


def _gunzip(file: BinaryIO) -> Iterator[bytes]:
    """Pieces of at most one chunk, so that a small file that unpacks to a huge one is not held."""
    member = zlib.decompressobj(wbits=31)
    begun = False
    while data := file.read(_GZIP_INPUT_BYTES):
        while data:
            if member.eof:
                data = data.lstrip(b"\0")  # padding between or after members
                if not data:
                    break
                member, begun = zlib.decompressobj(wbits=31), False
            before, given = member.copy() if begun else None, data
            try:
                unpacked = member.decompress(data, _CHUNK_BYTES)
            except zlib.error as error:
                yield from _salvage(before or zlib.decompressobj(wbits=31), given)
                raise _Broken(f"the gzip stream is corrupt from here on ({_short(error)})") from None
            begun = True
            if unpacked:
                yield unpacked
            data = member.unused_data if member.eof else member.unconsumed_tail
            while len(unpacked) == _CHUNK_BYTES and not data and not member.eof:
                # All input is taken, and more may be waiting inside.
                unpacked = member.decompress(b"", _CHUNK_BYTES)
                yield unpacked
    if begun and not member.eof:
        raise _Broken("the gzip stream is truncated: the file ends before its data does")


def _salvage(member: Any, data: bytes) -> Iterator[bytes]:
    """What can be unpacked before the broken byte; zlib gives nothing of a call that fails."""
    for index in range(len(data)):
        try:
            unpacked = member.decompress(data[index : index + 1])
        except zlib.error:
            return
        if unpacked:
            yield unpacked


def _short(error: zlib.error) -> str:
    return str(error).rpartition(": ")[2]


def _parse_block(
    group: Sequence[Line], schema: pa.Schema, convert: Mapping[str, Convert], missing: Mapping[str, Any]
) -> Block:
    """`missing` is the value of a key that an object lacks; null for those not named."""
    errors: dict[int, str] = {}
    values: dict[str, list[Any]] = {name: [None] * len(group) for name in schema.names}
    for row, line in enumerate(group):
        try:
            record = _parse(line)
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
                errors.setdefault(row, f"column {name!r}: {str(misfit) or 'nested too deeply'}")
    columns = pa.table([pa.array(values[item.name], item.type) for item in schema], schema=schema)
    positions = pa.array([line.position for line in group], pa.int64())
    return Block(rows=len(group), columns=columns, positions=positions, errors=errors)


def _parse(line: Line) -> dict[str, Any]:
    if line.error is not None:
        raise _BadLine(line.error)
    try:
        record = json.loads(line.content.decode(), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise _BadLine(f"the line is not valid UTF-8 (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise _BadLine(f"malformed JSON: {error.msg} (character {error.pos})") from None
    except RecursionError:
        raise _BadLine("malformed JSON: nested too deeply") from None
    except ValueError as error:
        raise _BadLine(f"malformed JSON: {error}") from None
    if not isinstance(record, dict):
        raise _BadLine(f"the line holds {_kind(record)}, not a JSON object")
    return record


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON value")


# --- values of the planned type


def _converter(kind: pa.DataType) -> Convert:
    """A function that gives the value as Arrow takes it, or raises Misfit. Nothing is rounded, cut or dropped."""
    if pa.types.is_list(kind):
        item = _nullable(_converter(kind.value_type))
        return lambda value: [item(each) for each in _a(list, value, kind)]
    if pa.types.is_fixed_size_list(kind):
        item = _nullable(_converter(kind.value_type))
        return lambda value: _exactly(kind.list_size, [item(each) for each in _a(list, value, kind)])
    if pa.types.is_struct(kind):
        return _struct_converter(kind)
    if pa.types.is_string(kind):
        return _string
    if pa.types.is_boolean(kind):
        return lambda value: _a(bool, value, kind)
    if pa.types.is_integer(kind):
        return lambda value: _integer(value, kind)
    if pa.types.is_floating(kind):
        return lambda value: _float(value, kind)
    return lambda value: _refuse(value, kind)


def _nullable(convert: Convert) -> Convert:
    return lambda value: None if value is None else convert(value)


def _struct_converter(kind: pa.DataType) -> Convert:
    fields = {item.name: _nullable(_converter(item.type)) for item in kind}

    def convert(value: Any) -> dict[str, Any]:
        unknown = _a(dict, value, kind).keys() - fields.keys()
        if unknown:
            raise Misfit(f"the key {min(unknown)!r} is not among those of {kind}")
        return {name: fit(value.get(name)) for name, fit in fields.items()}

    return convert


def _string(value: Any) -> str:
    text = str(_a(str, value, pa.string()))
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise Misfit("is not valid UTF-8: a \\u escape is half of a surrogate pair") from None
    return text


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
    raise Misfit(f"{_kind(value)} does not fit {kind}")


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "true or false", int: "an integer"}
    return names.get(type(value), "a number" if isinstance(value, float) else "null")
