"""Arrow columns become PostgreSQL's: the type of each, its values as COPY BINARY wants them, and what doesn't fit.

The binary forms are those of PostgreSQL's send and receive functions and, for vectors, of pgvector 0.8. This file opens no
connection.
"""

import datetime
import decimal
import json
import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.arrays import is_list, is_text
from pipeline.errors import InputError
from pipeline.feeds.store import KEYS, Shape, matrix
from pipeline.schema import CONTENT_HASH, ID, ROW_HASH

COPY_START = b"PGCOPY\n\xff\r\n\0" + struct.pack(">ii", 0, 0)
COPY_END = struct.pack(">h", -1)

_EPOCH_DAYS = 10_957
"""PostgreSQL counts from 2000-01-01, Arrow from 1970-01-01: so many days lie between."""
_MICROSECONDS = {"s": 1_000_000, "ms": 1_000, "us": 1}

_FIXED: Mapping[pa.DataType, tuple[str, str]] = {
    pa.bool_(): ("boolean", "?"),
    pa.int8(): ("smallint", ">i2"),
    pa.uint8(): ("smallint", ">i2"),
    pa.int16(): ("smallint", ">i2"),
    pa.uint16(): ("integer", ">i4"),
    pa.int32(): ("integer", ">i4"),
    pa.uint32(): ("bigint", ">i8"),
    pa.int64(): ("bigint", ">i8"),
    pa.float16(): ("real", ">f4"),
    pa.float32(): ("real", ">f4"),
    pa.float64(): ("double precision", ">f8"),
}
"""These Arrow types have values of one width: the SQL type, and numpy's name of its binary form."""
_OIDS = {"boolean": 16, "smallint": 21, "integer": 23, "bigint": 20, "real": 700, "double precision": 701, "text": 25}

VECTORS = {"float32": "vector", "float16": "halfvec", "binary": "bit"}


def sql_type(column: pa.Field) -> str:
    """Return the SQL type of a column of the table. Raises InputError for one that has none here."""
    kind = column.type
    if kind in _FIXED:
        return _FIXED[kind][0]
    if is_text(kind):
        return "text"
    if _is_bytes(kind):
        return "bytea"
    if pa.types.is_date(kind):
        return "date"
    if pa.types.is_time(kind):
        return "time"
    if pa.types.is_timestamp(kind):
        return "timestamp with time zone" if kind.tz else "timestamp"
    if pa.types.is_decimal(kind) or kind == pa.uint64():
        return "numeric"
    if is_list(kind) and (kind.value_type in _FIXED or is_text(kind.value_type)):
        return f"{sql_type(pa.field('', kind.value_type))}[]"
    if _is_json(kind):
        return "jsonb"
    raise InputError(
        f"column {column.name!r} is {column.type}, which a Postgres feed can't hold exactly: leave it out of feeds.columns"
    )


def vector_type(shape: Shape) -> str:
    return f"{VECTORS[shape.dtype]}({shape.dim})"


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def _is_json(kind: pa.DataType) -> bool:
    """JSON holds numbers, texts, truth values, lists and sections of them exactly."""
    if is_list(kind):
        return _is_json(kind.value_type)
    if pa.types.is_struct(kind):
        return all(_is_json(field.type) for field in kind)
    return kind in _FIXED or is_text(kind) or kind == pa.uint64() or bool(pa.types.is_null(kind))


# --- what doesn't fit


def unfit(rows: pa.Table) -> dict[int, str]:
    """Return why PostgreSQL can't take some rows, by their number."""
    found: dict[int, str] = {}
    for field in rows.schema:
        if field.name in (CONTENT_HASH, ROW_HASH) or pa.types.is_fixed_size_list(field.type):
            continue
        column = rows.column(field.name)
        for row, reason in _unfit_values(column):
            found.setdefault(row, f"its {field.name} {reason}")
    return found


def _unfit_values(column: pa.ChunkedArray) -> Iterable[tuple[int, str]]:
    kind = column.type
    if is_text(kind):
        yield from _where(pc.match_substring(column, "\0"), "holds a NUL character, which PostgreSQL's text can't")
    elif pa.types.is_timestamp(kind):
        if kind.unit == "ns":
            fine = pc.equal(pc.multiply(pc.divide(column.cast(pa.int64()), 1000), 1000), column.cast(pa.int64()))
            yield from _where(pc.invert(fine), "has nanoseconds, and PostgreSQL keeps microseconds")
        yield from _where(_out_of_years(column), "is not between the years 1 and 9999")
    elif pa.types.is_date(kind):
        yield from _where(_out_of_years(column.cast(pa.date32())), "is not between the years 1 and 9999")
    elif pa.types.is_time(kind) and kind.unit == "ns":
        fine = pc.equal(pc.multiply(pc.divide(column.cast(pa.int64()), 1000), 1000), column.cast(pa.int64()))
        yield from _where(pc.invert(fine), "has nanoseconds, and PostgreSQL keeps microseconds")
    elif (is_list(kind) and not is_text(kind.value_type) and kind.value_type not in _FIXED) or pa.types.is_struct(kind):
        for row, value in enumerate(column.to_pylist()):
            if reason := _unfit_json(value):
                yield row, reason
    elif is_list(kind) and is_text(kind.value_type):
        for row, value in enumerate(column.to_pylist()):
            if value is not None and any(item is not None and "\0" in item for item in value):
                yield row, "holds a NUL character, which PostgreSQL's text can't"


def _unfit_json(value: Any) -> str:
    if _holds_minus_zero(value):
        return "holds -0.0, which JSON's numbers can't"
    try:
        text = json.dumps(value, allow_nan=False)
    except ValueError:
        return "holds NaN or an infinite number, which JSON can't"
    return "holds a NUL character, which PostgreSQL's text can't" if "\\u0000" in text else ""


def _holds_minus_zero(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_minus_zero, value.values()))
    if isinstance(value, list):
        return any(map(_holds_minus_zero, value))
    return isinstance(value, float) and value == 0 and math.copysign(1, value) < 0


def _where(mask: Any, reason: str) -> Iterable[tuple[int, str]]:
    return ((int(row), reason) for row in np.flatnonzero(pc.fill_null(mask, False).to_numpy(zero_copy_only=False)))


def _out_of_years(column: pa.ChunkedArray) -> Any:
    """Say which values Python's dates, through which they are read back, don't have."""
    if pa.types.is_date(column.type):
        days, first, last = column.cast(pa.int32()).cast(pa.int64()), datetime.date.min, datetime.date.max
        low, high = (day.toordinal() - datetime.date(1970, 1, 1).toordinal() for day in (first, last))
        return pc.or_(pc.less(days, low), pc.greater(days, high))
    per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[column.type.unit]
    low, high = -62_135_596_800 * per_second, 253_402_300_800 * per_second - 1
    values = column.cast(pa.int64())
    limits = np.iinfo(np.int64)
    return pc.or_(pc.less(values, max(low, limits.min)), pc.greater(values, min(high, limits.max)))


# --- rows as bytes


def copy_rows(rows: pa.Table, shape: Shape) -> pa.Buffer:
    """Return the rows, with the columns of `shape.schema`, as COPY BINARY has them, without its start and end.

    Every value stands behind its length. Arrow joins the pieces of each row, so that its data are the rows' bytes.
    """
    if not rows.num_rows:
        return pa.py_buffer(b"")
    pieces: list[pa.Array] = []
    prefix = struct.pack(">h", len(shape.columns) + 4)
    for name in (ID, *shape.columns.names):
        values = _encoded(rows.column(name).combine_chunks())
        pieces += [_lengths(values, prefix), pc.fill_null(values, b"") if values.null_count else values]
        prefix = b""
    pieces.append(_of_one_width(_fixed_end(rows, shape)))
    joined = pc.binary_join_element_wise(*pieces, pa.scalar(b"", pa.large_binary()))
    return joined.buffers()[2]


def _lengths(values: pa.Array, prefix: bytes) -> pa.Array:
    """Return what stands before each value: its length, -1 for a null."""
    sizes = pc.fill_null(pc.binary_length(values), -1).to_numpy(zero_copy_only=False).astype(">i4")
    out = np.empty((len(values), len(prefix) + 4), np.uint8)
    out[:, : len(prefix)] = np.frombuffer(prefix, np.uint8)
    out[:, len(prefix) :] = sizes.view(np.uint8).reshape(-1, 4)
    return _of_one_width(out)


def _of_one_width(block: NDArray[np.uint8]) -> pa.Array:
    """Return each row of a block as a value."""
    count, width = block.shape
    offsets = np.arange(count + 1, dtype=np.int64) * width
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(block.reshape(-1))]
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), count, buffers)


def _fixed_end(rows: pa.Table, shape: Shape) -> NDArray[np.uint8]:
    """Return uint8[n, bytes]: both hashes and the vector, each with its length before it."""
    n = rows.num_rows
    contents = rows.column(CONTENT_HASH).combine_chunks()
    hashes = np.frombuffer(contents.buffers()[1], np.uint8).reshape(-1, 16)[contents.offset :][:n]
    vectors = matrix(rows, shape)
    head = struct.pack(">i", shape.dim) if shape.dtype == "binary" else struct.pack(">hh", shape.dim, 0)
    form = {"float32": ">f4", "float16": ">f2", "binary": "u1"}[shape.dtype]
    size = len(head) + vectors.shape[1] * np.dtype(form).itemsize
    # Arrow's pool keeps its pages. numpy's come fresh from the system for each batch, and cost more than the copy.
    out = np.frombuffer(pa.allocate_buffer(n * (36 + size)), np.uint8).reshape(n, 36 + size)
    out[:, :4] = np.frombuffer(struct.pack(">i", 16), np.uint8)
    out[:, 4:20] = hashes
    out[:, 20:24] = np.frombuffer(struct.pack(">i", 8), np.uint8)
    out[:, 24:32] = rows.column(ROW_HASH).to_numpy().astype(">i8").view(np.uint8).reshape(-1, 8)
    out[:, 32:40] = np.frombuffer(struct.pack(">i", size) + head, np.uint8)
    # The numbers are turned round on their way to their place.
    place = np.ndarray(vectors.shape, form, out, 36 + len(head), (out.shape[1], np.dtype(form).itemsize))
    place[:] = _padded(vectors, shape.dim) if shape.dtype == "binary" else vectors
    return out


def _padded(bits: NDArray[np.uint8], dim: int) -> NDArray[np.uint8]:
    """Return the bits with zeros where the last byte has none of the vector."""
    if dim % 8:
        bits = bits.copy()
        bits[:, -1] &= np.uint8(0xFF << (8 - dim % 8) & 0xFF)
    return bits


def _encoded(column: pa.Array) -> pa.Array:
    """Return the binary form of each value as large_binary, null for a null."""
    kind = column.type
    if is_text(kind) or _is_bytes(kind):
        # Text becomes large without a copy only as text.
        return (column.cast(pa.large_string()) if is_text(kind) else column).cast(pa.large_binary())
    if kind in _FIXED:
        return _of_width(column, _FIXED[kind][1])
    if pa.types.is_date(kind):
        return _shifted(column.cast(pa.date32()).cast(pa.int32()), ">i4", _EPOCH_DAYS)
    if pa.types.is_timestamp(kind):
        return _shifted(_microseconds(column, kind.unit), ">i8", _EPOCH_DAYS * 86_400_000_000)
    if pa.types.is_time(kind):
        return _of_width(_microseconds(column, kind.unit), ">i8")
    encode = _encoder(kind)
    return pa.array([None if value is None else encode(value) for value in column.to_pylist()], pa.large_binary())


def _microseconds(column: pa.Array, unit: str) -> pa.Array:
    numbers = column.cast(pa.int32() if pa.types.is_time32(column.type) else pa.int64()).cast(pa.int64())
    return pc.divide(numbers, 1000) if unit == "ns" else pc.multiply(numbers, _MICROSECONDS[unit])


def _shifted(numbers: pa.Array, form: str, by: int) -> pa.Array:
    return _of_width(pc.subtract(numbers.cast(pa.int64()), by), form)


def _of_width(column: pa.Array, form: str) -> pa.Array:
    filled = pc.fill_null(column, pa.scalar(0).cast(column.type)) if column.null_count else column
    values = np.ascontiguousarray(filled.to_numpy(zero_copy_only=False).astype(form))
    found = _of_one_width(values.view(np.uint8).reshape(len(values), -1))
    return pc.if_else(column.is_valid(), found, None) if column.null_count else found


def _encoder(kind: pa.DataType) -> Callable[[Any], bytes]:
    if pa.types.is_decimal(kind) or kind == pa.uint64():
        return _numeric
    if is_list(kind) and (kind.value_type in _FIXED or is_text(kind.value_type)):
        name = sql_type(pa.field("", kind.value_type))
        form = None if name == "text" else np.dtype(_FIXED[kind.value_type][1])
        return lambda value: _array(value, _OIDS[name], form)
    return lambda value: b"\x01" + json.dumps(value, ensure_ascii=False).encode()


def _array(values: Sequence[Any], oid: int, form: "np.dtype[Any] | None") -> bytes:
    holds_null = any(value is None for value in values)
    out = [struct.pack(">iii", 1 if values else 0, holds_null, oid)]
    if values:
        out.append(struct.pack(">ii", len(values), 1))
    for value in values:
        encoded = None if value is None else value.encode() if form is None else np.array(value, form).tobytes()
        out.append(struct.pack(">i", -1) if encoded is None else struct.pack(">i", len(encoded)) + encoded)
    return b"".join(out)


def _numeric(value: "decimal.Decimal | int") -> bytes:
    """Return a finite number as PostgreSQL's numeric: groups of four decimal digits, the weight of the first one, the
    sign, and how many digits follow the point."""
    sign, digits, exponent = decimal.Decimal(value).as_tuple()
    if not isinstance(exponent, int):
        raise InputError(f"{value} is no finite number")
    text = "".join(map(str, digits)) + "0" * max(0, exponent)
    scale = max(0, -exponent)
    whole, part = (text[:-scale].rjust(0, "0"), text[-scale:].rjust(scale, "0")) if scale else (text, "")
    whole = whole.lstrip("0")
    whole = whole.rjust(-(-len(whole) // 4) * 4, "0")
    weight = len(whole) // 4 - 1
    groups = [
        int((whole + part.ljust(-(-len(part) // 4) * 4, "0"))[at : at + 4])
        for at in range(0, len(whole) + len(part), 4)
    ]
    while groups and not groups[0]:
        groups, weight = groups[1:], weight - 1
    while groups and not groups[-1]:
        groups = groups[:-1]
    return struct.pack(
        f">hhHh{len(groups)}h", len(groups), weight if groups else 0, 0x4000 if sign else 0, scale, *groups
    )


# --- rows read back


def decoded(values: Sequence[Sequence[Any]], shape: Shape) -> pa.Table:
    """Return rows as `shape.schema` has them, from columns of Python values; vectors are in their binary form."""
    columns = [_typed(column, field) for column, field in zip(values, list(shape.schema)[:-1], strict=False)]
    return pa.table([*columns, _vectors(values[-1], shape)], schema=shape.schema)


def keys_of(rows: Sequence[tuple[Any, ...]]) -> pa.Table:
    """Return store.KEYS of rows of Python values."""
    columns = list(zip(*rows, strict=True)) if rows else [(), (), ()]
    return pa.table([pa.array(values, field.type) for values, field in zip(columns, KEYS, strict=True)], schema=KEYS)


def _typed(values: Sequence[Any], field: pa.Field) -> pa.Array:
    kind = field.type
    if kind == pa.uint64():
        values = [None if value is None else int(value) for value in values]
    if pa.types.is_decimal(kind):
        values = [
            None if value is None else value.quantize(decimal.Decimal(1).scaleb(-kind.scale), context=_EXACT)
            for value in values
        ]
    if pa.types.is_struct(kind) or (is_list(kind)):
        values = [_by_type(value, kind) for value in values]
    if kind == pa.float16():
        values = [None if value is None else np.float16(value) for value in values]
    return pa.array(values, kind)


def _by_type(value: Any, kind: pa.DataType) -> Any:
    """Return a value of JSON as its type has it: a fraction without digits after the point comes back as a whole number."""
    if value is None:
        return None
    if is_list(kind):
        return [_by_type(item, kind.value_type) for item in value]
    if pa.types.is_struct(kind):
        return {field.name: _by_type(value.get(field.name), field.type) for field in kind}
    return float(value) if pa.types.is_floating(kind) else value


_EXACT = decimal.Context(prec=100)


def _vectors(values: Sequence[bytes], shape: Shape) -> pa.Array:
    width = shape.vector.list_size
    head, form = (4, "u1") if shape.dtype == "binary" else (4, ">f4" if shape.dtype == "float32" else ">f2")
    flat = np.frombuffer(b"".join(value[head:] for value in values), form).astype(
        shape.vector.value_type.to_pandas_dtype()
    )
    if flat.size != width * len(values):
        raise InputError("vectors in the store are of other lengths than the feed's: make it anew with --rebuild")
    return pa.FixedSizeListArray.from_arrays(pa.array(flat, shape.vector.value_type), type=shape.vector)
