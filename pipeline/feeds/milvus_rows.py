"""Rows become what Milvus takes: fields of a request, or a Parquet file that it imports; and they come back as Arrow.

Beside id, hashes and vector, all columns of a row stand in Milvus's dynamic field, as JSON: it holds nulls and numbers
exactly in every version, while columns of their own hold nulls since Milvus 2.5 only. A column that is null is left out.
Bits are padded with zeros to whole bytes. This file opens no connection.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pymilvus import DataType
from pymilvus.grpc_gen import schema_pb2

from pipeline.arrays import is_text
from pipeline.feeds import values
from pipeline.feeds.store import KEYS, Shape, matrix
from pipeline.schema import CONTENT_HASH, ID, ROW_HASH

MOST_ID_BYTES = 65_535
MOST_JSON_BYTES = 65_536
"""All columns of a row together, as JSON, have so many bytes at most."""
DYNAMIC = "$meta"

VECTORS = {"float32": DataType.FLOAT_VECTOR, "float16": DataType.FLOAT16_VECTOR, "binary": DataType.BINARY_VECTOR}


def unfit(rows: pa.Table) -> Mapping[int, str]:
    """Return why Milvus can't take some rows, by their number, their vectors left aside."""
    columns = pa.schema([field for field in rows.schema if _is_dynamic(field)])
    found = dict(values.unfit(rows, columns))
    if ID in rows.column_names:
        sizes = pc.binary_length(rows.column(ID)).to_numpy()
        for row in np.flatnonzero(sizes > MOST_ID_BYTES).tolist():
            found.setdefault(row, f"its id has {sizes[row]} bytes; Milvus takes {MOST_ID_BYTES}")
        for row in np.flatnonzero(sizes == 0).tolist():
            found.setdefault(row, "its id is empty, which no query of Milvus tells from none")
    if _may_be_long(rows, columns):
        fine = [row for row in range(rows.num_rows) if row not in found]
        texts = dynamic(rows.take(pa.array(fine, pa.int64())), columns)
        for row, text in zip(fine, texts, strict=True):
            if len(text) > MOST_JSON_BYTES:
                found[row] = (
                    f"its columns have {len(text)} bytes as JSON; Milvus takes {MOST_JSON_BYTES}: leave some out"
                )
    return found


def _may_be_long(rows: pa.Table, columns: pa.Schema) -> bool:
    """Whether some row's JSON could be too long, told from its longest values: writing the JSON takes longer."""
    total = 2
    for field in columns:
        column = rows.column(field.name)
        total += 6 * len(field.name.encode()) + 64
        if pa.types.is_nested(field.type):
            return True
        if is_text(field.type) or pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type):
            total += 6 * (pc.max(pc.binary_length(column)).as_py() or 0)  # an escaped letter has six bytes
    return total > MOST_JSON_BYTES


def _is_dynamic(field: pa.Field) -> bool:
    return field.name not in KEYS.names and not pa.types.is_fixed_size_list(field.type)


def dynamic(rows: pa.Table, columns: pa.Schema) -> list[bytes]:
    """Return the JSON of each row's columns."""
    if not columns.names:
        return [b"{}"] * rows.num_rows
    plain = [values.plain(rows.column(name)) for name in columns.names]
    return [
        values.to_json(
            {name: value for name, value in zip(columns.names, row, strict=True) if value is not None}
        ).encode()
        for row in zip(*plain, strict=True)
    ]


def fields(rows: pa.Table, shape: Shape) -> list[Any]:
    """Return the fields of an upsert. The bytes of float vectors are already those of the message, and are not looked at
    one by one."""
    found = [
        _text(ID, rows.column(ID).to_pylist()),
        _text(CONTENT_HASH, _hex(rows)),
        schema_pb2.FieldData(
            type=schema_pb2.Int64,
            field_name=ROW_HASH,
            scalars=schema_pb2.ScalarField(long_data=schema_pb2.LongArray(data=rows.column(ROW_HASH).to_pylist())),
        ),
        schema_pb2.FieldData(
            type=schema_pb2.JSON,
            field_name=DYNAMIC,
            is_dynamic=True,
            scalars=schema_pb2.ScalarField(json_data=schema_pb2.JSONArray(data=dynamic(rows, shape.columns))),
        ),
    ]
    vectors = matrix(rows, shape)
    body = np.ascontiguousarray(_little_endian(vectors)).tobytes()
    if shape.dtype == "binary":
        field = schema_pb2.VectorField(dim=dim_of(shape), binary_vector=body)
    elif shape.dtype == "float16":
        field = schema_pb2.VectorField(dim=shape.dim, float16_vector=body)
    else:
        packed = schema_pb2.FloatArray.FromString(b"\x0a" + _varint(len(body)) + body)
        field = schema_pb2.VectorField(dim=shape.dim, float_vector=packed)
    kind = int(VECTORS[shape.dtype])
    return [*found, schema_pb2.FieldData(type=kind, field_name=shape.embedding, vectors=field)]


def _text(name: str, texts: list[str]) -> Any:
    data = schema_pb2.ScalarField(string_data=schema_pb2.StringArray(data=texts))
    return schema_pb2.FieldData(type=schema_pb2.VarChar, field_name=name, scalars=data)


def _hex(rows: pa.Table) -> list[str]:
    return [value.hex() for value in rows.column(CONTENT_HASH).to_pylist()]


def _little_endian(vectors: NDArray[Any]) -> NDArray[Any]:
    return vectors.astype(vectors.dtype.newbyteorder("<"), copy=False)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def dim_of(shape: Shape) -> int:
    """Return the dimensions that Milvus is told: vectors of bits have whole bytes."""
    return -(-shape.dim // 8) * 8 if shape.dtype == "binary" else shape.dim


def import_file(rows: pa.Table, shape: Shape) -> pa.Buffer:
    """Return a Parquet file that Milvus imports. It takes vectors as lists, and refuses lists of a fixed size. Float16
    vectors are lists of their bytes."""
    vectors = np.ascontiguousarray(_little_endian(matrix(rows, shape)))
    if shape.dtype == "float16":
        vectors = vectors.view(np.uint8)
    width = vectors.shape[1]
    offsets = pa.array(np.arange(rows.num_rows + 1, dtype=np.int64) * width, pa.int64()).cast(pa.int32())
    table = pa.table(
        {
            ID: rows.column(ID),
            CONTENT_HASH: pa.array(_hex(rows), pa.string()),
            ROW_HASH: rows.column(ROW_HASH),
            shape.embedding: pa.ListArray.from_arrays(offsets, pa.array(vectors.reshape(-1))),
            DYNAMIC: pa.array([text.decode() for text in dynamic(rows, shape.columns)], pa.string()),
        }
    )
    out = pa.BufferOutputStream()
    # Vectors don't compress, and a dictionary of them is only built to be thrown away.
    pq.write_table(table, out, compression="none", use_dictionary=False, write_statistics=False)
    return out.getvalue()


def keys(found: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Return KEYS of rows as a query returns them."""
    return pa.table(
        {
            ID: [row[ID] for row in found],
            CONTENT_HASH: [bytes.fromhex(row[CONTENT_HASH]) for row in found],
            ROW_HASH: [row[ROW_HASH] for row in found],
        },
        schema=KEYS,
    )


def restored(found: Sequence[Mapping[str, Any]], shape: Shape) -> pa.Table:
    """Return rows of a query as `shape.schema` has them."""
    columns: dict[str, Any] = {name: keys(found).column(name) for name in KEYS.names}
    for field in shape.columns:
        columns[field.name] = values.restored([row.get(field.name) for row in found], field.type)
    flat = np.concatenate([_vector(row[shape.embedding], shape) for row in found]) if found else np.zeros(0)
    flat = flat.astype(shape.vector.value_type.to_pandas_dtype(), copy=False)
    columns[shape.embedding] = pa.FixedSizeListArray.from_arrays(
        pa.array(flat, shape.vector.value_type), type=shape.vector
    )
    return pa.table({name: columns[name] for name in shape.schema.names}, schema=shape.schema)


def _vector(value: Any, shape: Shape) -> NDArray[Any]:
    if shape.dtype == "float32":
        return np.asarray(value, np.float32)
    raw = b"".join(value) if isinstance(value, list) else value
    return np.frombuffer(raw, np.uint8 if shape.dtype == "binary" else np.dtype("<f2"))
