"""Rows become the bytes of Qdrant's upsert requests, and points become rows again.

A request is a protobuf message. It is put together from bytes here rather than from objects: on the wire a list of
floats is the array itself, so that vectors are copied and never converted. All of a point that has the same size in
every row is laid out by numpy at once. This file knows the messages UpsertPoints and Value, and no client.

The point of a row has the UUIDv5 of its id as its own id, and the id itself in its payload, because Qdrant has no
strings as ids.
"""

import base64
import hashlib
import struct
import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.feeds.json_values import as_text, column_of, is_list, is_text, values_of
from pipeline.feeds.store import KEYS, Shape, matrix
from pipeline.schema import CONTENT_HASH, ID, ROW_HASH

EPOCH = "feed_epoch"
"""Each sync counts one up, and its rows carry the number: an older sync that wakes up leaves newer rows alone."""
NAMESPACE = uuid.NAMESPACE_OID
"""`uuid.uuid5(uuid.NAMESPACE_OID, id)` is a row's point."""

_HEX = np.frombuffer(b"".join(b"%02x" % byte for byte in range(256)), np.uint8).reshape(256, 2)
_DASHES = (8, 13, 18, 23)
_UUID_DIGITS = np.array([place for place in range(36) if place not in _DASHES])
_MAX_LENGTH = 127
"""A length up to this takes one byte."""

Column = tuple[pa.DataType, Sequence[Any]]


def points_of(ids: Iterable[str]) -> list[str]:
    """Return the id of each row's point, as Qdrant writes it."""
    found = bytes(_uuids(list(ids))).decode("ascii")
    return [found[start : start + 36] for start in range(0, len(found), 36)]


def upsert_body(rows: pa.Table, shape: Shape, vectors: NDArray[np.float32], epoch: int) -> bytes:
    """Return the points of the rows as field 3 of UpsertPoints has them; other fields of the message can stand before or
    after it. `vectors` is float32[n, dim], and replaces those of the rows."""
    numbers = [field for field in shape.columns if _is_fixed(rows.column(field.name))]
    fixed, width = _fixed(rows, numbers, vectors, epoch)
    payloads = [_texts(ID, rows.column(ID).to_pylist())]
    for field in shape.columns:
        if field not in numbers:
            values = values_of(rows.column(field.name))
            text = is_text(field.type) or as_text(field.type)
            payloads.append(_texts(field.name, values) if text else _entries(field.name, field.type, values))
    pieces: list[bytes | memoryview] = []
    for row, payload in enumerate(map(b"".join, zip(*payloads, strict=True)) if payloads[1:] else payloads[0]):
        pieces += (b"\x1a" + _varint(width + len(payload)), fixed[row * width : (row + 1) * width], payload)
    return b"".join(pieces)


def _is_fixed(column: pa.ChunkedArray) -> bool:
    """Whether the entries of a column have one size in all rows."""
    kind = column.type
    return column.null_count == 0 and bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _fixed(
    rows: pa.Table, numbers: Sequence[pa.Field], vectors: NDArray[np.float32], epoch: int
) -> tuple[memoryview, int]:
    """Lay out the id of the point, columns of numbers, both hashes, the epoch and the vector of each row; return them
    and their size."""
    count, dim = vectors.shape
    parts = [_constant(b"\x0a\x26\x12\x24", count), _uuids(rows.column(ID).to_pylist())]
    contents = np.frombuffer(b"".join(rows.column(CONTENT_HASH).to_pylist()), np.uint8).reshape(count, 16)
    parts += [_constant(_entry_head(CONTENT_HASH, 34) + b"\x22\x20", count), _HEX[contents].reshape(count, 32)]
    for field in [*numbers, rows.schema.field(ROW_HASH)]:
        values = rows.column(field.name)
        if pa.types.is_floating(field.type):
            found = values.cast(pa.float64()).to_numpy().astype("<f8").view(np.uint8).reshape(count, 8)
            parts += [_constant(_entry_head(field.name, 9) + b"\x11", count), found]
        else:
            found = _varints(values.cast(pa.int64()).to_numpy().astype(np.uint64))
            parts += [_constant(_entry_head(field.name, 11) + b"\x18", count), found]
    parts.append(_constant(_entry(EPOCH, b"\x18" + _varint(epoch)) + _vector_head(dim), count))
    parts.append(np.ascontiguousarray(vectors, "<f4").view(np.uint8).reshape(count, 4 * dim))
    whole = np.concatenate(parts, axis=1)
    return whole.data.cast("B"), whole.shape[1]


def _constant(value: bytes, count: int) -> NDArray[np.uint8]:
    return np.broadcast_to(np.frombuffer(value, np.uint8), (count, len(value)))


def _uuids(ids: Sequence[str]) -> NDArray[np.uint8]:
    """Return uint8[n, 36], the UUIDv5 of each id as text."""
    space, sha1 = NAMESPACE.bytes, hashlib.sha1
    digests = b"".join(sha1(space + name.encode(), usedforsecurity=False).digest() for name in ids)
    raw = np.frombuffer(digests, np.uint8).reshape(len(ids), 20)[:, :16].copy()
    raw[:, 6] = raw[:, 6] & 0x0F | 0x50  # the version, 5
    raw[:, 8] = raw[:, 8] & 0x3F | 0x80  # the variant of RFC 9562
    out = np.full((len(ids), 36), ord("-"), np.uint8)
    out[:, _UUID_DIGITS] = _HEX[raw].reshape(len(ids), 32)
    return out


def _varints(numbers: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """Return uint8[n, 10]: numbers in the longest form that a reader must take, so that all have one size."""
    out = np.empty((len(numbers), 10), np.uint8)
    for place in range(10):
        out[:, place] = (numbers >> np.uint64(7 * place)).astype(np.uint8) & 0x7F
    out[:, :9] |= 0x80
    return out


def _vector_head(dim: int) -> bytes:
    """Return all that stands before the floats in PointStruct.vectors.vector.dense.data."""
    head = b"\x0a" + _varint(4 * dim)
    size = 4 * dim
    for tag in (b"\xaa\x06", b"\x0a", b"\x22"):
        head = tag + _varint(size + len(head)) + head
    return head


def _varint(number: int) -> bytes:
    if number <= _MAX_LENGTH:
        return bytes((number,))
    out = bytearray()
    while number > _MAX_LENGTH:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _entry_head(name: str, size: int) -> bytes:
    """Return what stands before a Value of `size` bytes in an entry of PointStruct.payload."""
    key = name.encode()
    head = b"\x0a" + _varint(len(key)) + key + b"\x12" + _varint(size)
    return b"\x1a" + _varint(len(head) + size) + head


def _entry(name: str, value: bytes) -> bytes:
    return _entry_head(name, len(value)) + value


def _entries(name: str, kind: pa.DataType, values: Sequence[Any]) -> list[bytes]:
    """Return an entry of the payload for each value; a null has none."""
    encode = _encoder(kind)
    return [b"" if value is None else _entry(name, encode(value)) for value in values]


def _texts(name: str, values: Sequence[str | None]) -> list[bytes]:
    """Do as `_entries` for texts, whose heads differ by their length alone."""
    heads: dict[int, bytes] = {}
    out = []
    for value in values:
        if value is None:
            out.append(b"")
            continue
        text = value.encode()
        head = heads.get(len(text))
        if head is None:
            inner = b"\x22" + _varint(len(text))
            head = heads[len(text)] = _entry_head(name, len(inner) + len(text)) + inner
        out.append(head + text)
    return out


def _encoder(kind: pa.DataType) -> Callable[[Any], bytes]:
    """Return what turns a value that is not null into the bytes of a Value."""
    if pa.types.is_boolean(kind):
        return lambda value: b"\x28\x01" if value else b"\x28\x00"
    if pa.types.is_integer(kind):
        return lambda value: b"\x18" + _varint(value & 0xFFFFFFFFFFFFFFFF)
    if pa.types.is_floating(kind):
        return lambda value: b"\x11" + struct.pack("<d", value)
    if is_list(kind):
        encode = _encoder(kind.value_type)
        return lambda value: _sized(b"\x3a", b"".join(_sized(b"\x0a", _value(encode, one)) for one in value))
    if pa.types.is_struct(kind):
        fields = [(field.name, _encoder(field.type)) for field in kind]
        return lambda value: _sized(b"\x32", b"".join(_field(name, _value(one, value[name])) for name, one in fields))
    return lambda value: _sized(b"\x22", value.encode())


def _sized(tag: bytes, content: bytes) -> bytes:
    return tag + _varint(len(content)) + content


def _value(encode: Callable[[Any], bytes], value: Any) -> bytes:
    return b"\x08\x00" if value is None else encode(value)


def _field(name: str, value: bytes) -> bytes:
    return _sized(b"\x0a", _sized(b"\x0a", name.encode()) + _sized(b"\x12", value))


def plain_value(value: Any) -> Any:
    """Return a Value as Python has it."""
    kind = value.WhichOneof("kind")
    if kind == "list_value":
        return [plain_value(one) for one in value.list_value.values]
    if kind == "struct_value":
        return {name: plain_value(one) for name, one in value.struct_value.fields.items()}
    return None if kind in (None, "null_value") else getattr(value, kind)


def keys_of(points: Iterable[Any], foreign: str) -> pa.Table:
    """Return store.KEYS of RetrievedPoints. A point that isn't the one of the id in its payload, or lacks a hash, was not
    put there by us: it gets the id `foreign` + its own id, and hashes of zeros."""
    points = list(points)
    ids = [point.payload[ID].string_value if ID in point.payload else "" for point in points]
    names, contents, numbers = [], [], []
    for point, name, expected in zip(points, ids, points_of(ids), strict=True):
        payload = point.payload
        content = payload[CONTENT_HASH].string_value if CONTENT_HASH in payload else ""
        ours = point.id.uuid == expected and ID in payload and len(content) == 32 and ROW_HASH in payload
        names.append(name if ours else f"{foreign}{point.id.uuid or point.id.num}")
        contents.append(_bytes_of(content) if ours else bytes(16))
        numbers.append(payload[ROW_HASH].integer_value if ours else 0)
    return pa.table([names, contents, numbers], schema=KEYS)


def _bytes_of(text: str) -> bytes:
    try:
        return base64.b16decode(text, casefold=True)
    except ValueError:
        return bytes(16)


def rows_of(points: Sequence[Any], shape: Shape) -> pa.Table:
    """Return RetrievedPoints with their vectors as rows of `shape.schema`."""
    payloads = [point.payload for point in points]
    columns: dict[str, Any] = {}
    for field in [KEYS.field(ID), *shape.columns]:
        values = [plain_value(one[field.name]) if field.name in one else None for one in payloads]
        columns[field.name] = column_of(field.type, values)
    columns[CONTENT_HASH] = [_bytes_of(one[CONTENT_HASH].string_value) for one in payloads]
    columns[ROW_HASH] = [one[ROW_HASH].integer_value for one in payloads]
    floats = np.frombuffer(b"".join(_floats(point.vectors.vector, shape.dim) for point in points), "<f4")
    flat = pa.array(floats.astype(shape.vector.value_type.to_pandas_dtype()), shape.vector.value_type)
    columns[shape.embedding] = pa.FixedSizeListArray.from_arrays(flat, type=shape.vector)
    return pa.table(columns, schema=shape.schema)


def _floats(vector: Any, dim: int) -> bytes:
    """Return the bytes of a VectorOutput's floats. Older servers answer in the field `data`."""
    found = vector.dense if vector.WhichOneof("vector") == "dense" else vector
    if len(found.data) != dim:
        return np.full(dim, np.nan, "<f4").tobytes()
    if found is vector:
        return np.array(found.data, "<f4").tobytes()
    return bytes(found.SerializeToString()[-4 * dim :])


def unit_vectors(rows: pa.Table, shape: Shape) -> NDArray[np.float32]:
    """Return float32[n, dim] as they are sent. Under `cosine` those that aren't of length 1, within the precision of
    their type, are brought to it; all others are the table's bit by bit."""
    vectors: NDArray[np.float32] = matrix(rows, shape).astype(np.float32)
    if shape.metric != "cosine" or not len(vectors):
        return vectors
    squares = np.einsum("ij,ij->i", vectors, vectors)
    other = np.flatnonzero(np.abs(squares - 1) > (2e-3 if shape.dtype == "float16" else 1e-5))
    if len(other):
        wide = vectors[other].astype(np.float64)
        vectors = vectors.copy()
        vectors[other] = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    return vectors
