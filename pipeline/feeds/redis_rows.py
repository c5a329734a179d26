"""Rows become hashes of Redis, and come back as Arrow.

A field of a hash has the name of its column. Texts and numbers stand there as readers write them, a truth value as `true` or
`false`, what has no plain form as JSON, and a null is left out. The content hash has its 16 bytes, a vector its numbers,
little-endian. This file opens no connection.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.arrays import is_text
from pipeline.feeds import values
from pipeline.feeds.store import KEYS, Shape, matrix
from pipeline.schema import CONTENT_HASH, ID, ROW_HASH

SEPARATOR = "\x1f"
"""The module splits a text at it before it indexes it: it is what texts hold least."""


def key(generation: str, name: str) -> bytes:
    return f"{generation}:{name}".encode()


def id_of(generation: str, key: bytes) -> str:
    return key[len(generation.encode()) + 1 :].decode()


def columns_of(rows: pa.Table) -> pa.Schema:
    """Return the columns of rows that are no id, hash or vector."""
    return pa.schema(
        [field for field in rows.schema if field.name not in KEYS.names and not pa.types.is_fixed_size_list(field.type)]
    )


def commands(generation: str, rows: pa.Table, shape: Shape) -> list[bytes]:
    """Return the commands, as they are sent, that put rows there in place of what stands there: every field is set or
    removed. The client's own encoder takes most of the time of a load."""
    names = [name.encode() for name in shape.columns.names]
    columns = [_encoded(rows.column(field.name)) for field in shape.columns]
    vectors = np.ascontiguousarray(_little_endian(matrix(rows, shape)))
    body, width = vectors.tobytes(), vectors.itemsize * vectors.shape[1]
    contents, hashes = rows.column(CONTENT_HASH).to_pylist(), rows.column(ROW_HASH).to_pylist()
    embedding = shape.embedding.encode()
    found = []
    for row, name in enumerate(rows.column(ID).to_pylist()):
        at = key(generation, name)
        command = [b"HSET", at, b"content_hash", contents[row], b"row_hash", b"%d" % hashes[row], embedding]
        command.append(body[row * width : (row + 1) * width])
        missing = []
        for field, column in zip(names, columns, strict=True):
            value = column[row]
            if value is None:
                missing.append(field)
            else:
                command += (field, value)
        if missing:
            found.append(message(b"HDEL", at, *missing))
        found.append(message(*command))
    return found


def message(*words: bytes) -> bytes:
    """Return a command as it is sent."""
    return b"*%d\r\n%b" % (len(words), b"".join([b"$%d\r\n%b\r\n" % (len(word), word) for word in words]))


def packed(vectors: NDArray[np.float32], shape: Shape) -> list[bytes]:
    """Return the bytes of vectors to search for."""
    kind = "<f2" if shape.dtype == "float16" else "<f4"
    return [vector.tobytes() for vector in vectors.astype(kind)]


def _little_endian(vectors: NDArray[Any]) -> NDArray[Any]:
    return vectors.astype(vectors.dtype.newbyteorder("<"), copy=False)


def _encoded(column: pa.ChunkedArray) -> list[bytes | None]:
    plain = values.plain(column)
    if not _is_bare(column.type):
        return [None if value is None else values.to_json(value).encode() for value in plain]
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        return [None if value is None else repr(value).encode() for value in plain]
    return [None if value is None else value.encode() for value in plain]


def _is_bare(kind: pa.DataType) -> bool:
    """Whether its plain values are texts and numbers, which stand in a field as they are."""
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    return bool(is_number or not (pa.types.is_nested(kind) or pa.types.is_boolean(kind)))


def keys(generation: str, at: Sequence[bytes], found: Sequence[Any]) -> pa.Table:
    """Return KEYS of rows. A key of ours that holds something else is a row of no state."""
    rows = [one if isinstance(one, list) else [None, None] for one in found]
    return pa.table(
        {
            ID: [id_of(generation, key) for key in at],
            CONTENT_HASH: [content if content and len(content) == 16 else bytes(16) for content, _ in rows],
            ROW_HASH: [int(number) if number else 0 for _, number in rows],
        },
        schema=KEYS,
    )


def restored(ids: Sequence[str], found: Sequence[Any], shape: Shape) -> pa.Table:
    """Return rows as `shape.schema` has them from the fields behind the id, in its order; missing ones are left out."""
    others = [field for field in shape.schema if field.name != ID]
    at = [field.name for field in others].index(shape.embedding)
    size = shape.vector.list_size * shape.vector.value_type.bit_width // 8
    there = [
        (name, row)
        for name, row in zip(ids, found, strict=True)
        if isinstance(row, list) and row[at] is not None and len(row[at]) == size
    ]
    columns: dict[str, Any] = {ID: pa.array([name for name, _ in there], pa.string())}
    for number, field in enumerate(others):
        columns[field.name] = _decoded([row[number] for _, row in there], field, shape)
    return pa.table(columns, schema=shape.schema)


def _decoded(cells: list[bytes | None], field: pa.Field, shape: Shape) -> pa.Array:
    if field.name == shape.embedding:
        kind = "<f2" if shape.dtype == "float16" else "<f4"
        flat = np.frombuffer(b"".join(cell or b"" for cell in cells), kind)
        return pa.FixedSizeListArray.from_arrays(pa.array(flat, shape.vector.value_type), type=shape.vector)
    if field.name == CONTENT_HASH:
        return pa.array([cell if cell and len(cell) == 16 else bytes(16) for cell in cells], field.type)
    if field.name == ROW_HASH:
        return pa.array([int(cell or 0) for cell in cells], field.type)
    return values.restored([None if cell is None else _plain(cell, field.type) for cell in cells], field.type)


def _plain(cell: bytes, kind: pa.DataType) -> Any:
    if not _is_bare(kind):
        return json.loads(cell)
    if pa.types.is_integer(kind):
        return int(cell)
    return float(cell) if pa.types.is_floating(kind) else cell.decode()


# --- filters


def filter_of(field: pa.Field) -> list[Any] | None:
    """Return how a column is indexed, so that searches can filter by it; None if it can't be."""
    if pa.types.is_integer(field.type) or pa.types.is_floating(field.type):
        return ["NUMERIC"]
    if is_text(field.type) or pa.types.is_boolean(field.type):
        return ["TAG", "SEPARATOR", SEPARATOR, "CASESENSITIVE"]
    return None


def tests(where: Mapping[str, Any], columns: pa.Schema) -> tuple[list[str], list[Any]]:
    """Return the tests of a query, and its parameters."""
    found: list[str] = []
    parameters: list[Any] = []
    for number, (name, value) in enumerate(where.items()):
        if filter_of(columns.field(name)) == ["NUMERIC"]:
            found.append(f"@{escaped(name)}:[{value!r} {value!r}]")
        else:
            found.append(f"@{escaped(name)}:{{$feed_{number}}}")
            parameters += [f"feed_{number}", value if isinstance(value, str) else json.dumps(value)]
    return found, parameters


def escaped(name: str) -> str:
    return re.sub(r"(\W)", r"\\\1", name, flags=re.ASCII)
