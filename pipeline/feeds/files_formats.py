"""Formats of files that vector databases and libraries take: which columns rows have in them, and what they refuse.

Rows stand in Parquet files, whose columns each format has in its own way. FAISS, usearch and DuckDB get a file of
their own beside them: see files_indexes.py. This file knows neither revisions nor markers.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.feeds.files_indexes import ROWS_FOLDER, BesideRows, DuckDb, Faiss, Usearch
from pipeline.feeds.store import KEYS, Shape, matrix
from pipeline.schema import CONTENT_HASH, ID, ROW_HASH


@dataclass(frozen=True, kw_only=True)
class Format:
    """How one kind of files holds rows."""

    package: str | None = None
    """It is imported where a file beside the rows is made or searched."""
    dtypes: tuple[str, ...] = ("float32",)
    takes: Callable[[pa.DataType], bool]
    """It tells whether a column of this type comes back as it was."""
    rows_folder: Callable[[str, Mapping[str, Any]], str] = lambda name, options: ROWS_FOLDER
    """Of the feed's name and options, it makes the folder of Parquet files in a revision."""
    encode: Callable[[pa.Table, Shape], pa.Table] = lambda rows, shape: rows
    decode: Callable[[pa.Table, Shape], pa.Table] = lambda rows, shape: as_sent(rows, shape)
    key_columns: tuple[str, ...] = tuple(KEYS.names)
    """A file has the keys of its rows in these columns, and `keys` makes KEYS of them."""
    keys: Callable[[pa.Table], pa.Table] = lambda rows: rows.select(KEYS.names)
    unfit: Callable[[pa.Table], Mapping[int, str]] = lambda rows: {}
    beside: BesideRows | None = None
    describe: Callable[[Shape, str, int], Mapping[str, Any]] | None = None
    """It makes the JSON of a file of descriptions, VDF_META.json."""


def as_sent(rows: pa.Table, shape: Shape) -> pa.Table:
    """Give rows the types that they came with, of the columns that are there."""
    columns = {}
    for name in rows.column_names:
        field = shape.schema.field(name)
        column = rows.column(name)
        if name == shape.embedding:
            chunks = [pa.FixedSizeListArray.from_arrays(chunk.flatten(), type=field.type) for chunk in column.chunks]
            columns[name] = pa.chunked_array(chunks, field.type)
        else:
            columns[name] = column if column.type == field.type else column.cast(field.type)
    wanted = pa.schema([shape.schema.field(name) for name in columns])
    return pa.Table.from_arrays(list(columns.values()), schema=wanted)


# --- how rows look to Pinecone, Milvus and VDF


def _as_lists(rows: pa.Table, shape: Shape) -> pa.ChunkedArray:
    """Return vectors as list<float>: importers refuse lists of a fixed size."""
    values = matrix(rows, shape)
    offsets = pa.array(np.arange(len(values) + 1, dtype=np.int32) * values.shape[1])
    return pa.chunked_array([pa.ListArray.from_arrays(offsets, pa.array(values.reshape(-1)))])


def _to_milvus(rows: pa.Table, shape: Shape) -> pa.Table:
    """Content hashes are text: Milvus has no bytes."""
    contents = pa.array([value.hex() for value in rows.column(CONTENT_HASH).to_pylist()], pa.string())
    rows = rows.set_column(rows.schema.get_field_index(CONTENT_HASH), CONTENT_HASH, contents)
    place = rows.schema.get_field_index(shape.embedding)
    return rows.set_column(place, shape.embedding, _as_lists(rows, shape))


def _with_bytes(rows: pa.Table) -> pa.Table:
    values = pa.array([bytes.fromhex(value) for value in rows.column(CONTENT_HASH).to_pylist()], pa.binary(16))
    return rows.set_column(rows.schema.get_field_index(CONTENT_HASH), CONTENT_HASH, values)


def _from_milvus(rows: pa.Table, shape: Shape) -> pa.Table:
    return as_sent(_with_bytes(rows) if CONTENT_HASH in rows.column_names else rows, shape)


def _to_pinecone(rows: pa.Table, shape: Shape) -> pa.Table:
    """`id`, `values`, and `metadata` as JSON; nulls are left out of it, as Pinecone wants."""
    others = rows.drop_columns([ID, shape.embedding])
    metadata = []
    for row in others.to_pylist():
        row[CONTENT_HASH], row[ROW_HASH] = row[CONTENT_HASH].hex(), str(row[ROW_HASH])
        metadata.append(json.dumps({key: value for key, value in row.items() if value is not None}, ensure_ascii=False))
    values = _as_lists(rows, shape)
    return pa.table({"id": rows.column(ID), "values": values, "metadata": pa.array(metadata, pa.string())})


def _from_pinecone(rows: pa.Table, shape: Shape) -> pa.Table:
    if "metadata" not in rows.column_names:
        return rows
    found = [json.loads(text) for text in rows.column("metadata").to_pylist()]
    keys = _keys_of_pinecone(rows)
    columns: dict[str, Any] = {name: keys.column(name) for name in KEYS.names}
    columns[shape.embedding] = rows.column("values")
    for field in shape.columns:
        columns[field.name] = pa.chunked_array([pa.array([row.get(field.name) for row in found], field.type)])
    return as_sent(pa.table({name: columns[name] for name in shape.schema.names}), shape)


def _keys_of_pinecone(rows: pa.Table) -> pa.Table:
    found = [json.loads(text) for text in rows.column("metadata").to_pylist()]
    contents = pa.array([bytes.fromhex(row[CONTENT_HASH]) for row in found], pa.binary(16))
    numbers = pa.array([int(row[ROW_HASH]) for row in found], pa.int64())
    return pa.table({ID: rows.column("id"), CONTENT_HASH: contents, ROW_HASH: numbers})


PINECONE_ID_BYTES, PINECONE_METADATA_BYTES, PINECONE_EXACT = 512, 40 * 1024, 2**53


def _unfit_for_pinecone(rows: pa.Table) -> Mapping[int, str]:
    reasons = {}
    names = [name for name in rows.column_names if not pa.types.is_fixed_size_list(rows.schema.field(name).type)]
    for number, row in enumerate(rows.select(names).to_pylist()):
        reason = _unfit_row_for_pinecone(row)
        if reason:
            reasons[number] = reason
    return reasons


def _unfit_row_for_pinecone(row: Mapping[str, Any]) -> str:
    if not 0 < len(row[ID].encode()) <= PINECONE_ID_BYTES or "\0" in row[ID]:
        return f"its id has {len(row[ID].encode())} bytes; Pinecone takes 1 to {PINECONE_ID_BYTES}, and no NUL"
    for name, value in row.items():
        if name in (ID, ROW_HASH, CONTENT_HASH):
            continue
        if isinstance(value, float) and not math.isfinite(value):
            return f"{name} is {value}, which JSON does not have"
        if isinstance(value, int) and abs(value) > PINECONE_EXACT:
            return f"{name} is {value}, and Pinecone's numbers are exact up to 2^53 only"
    size = len(json.dumps(row, default=str, ensure_ascii=False).encode())
    if size > PINECONE_METADATA_BYTES:
        return f"its metadata has {size} bytes; Pinecone takes {PINECONE_METADATA_BYTES}"
    return ""


MILVUS_TEXT_BYTES = 65_535


def _unfit_for_milvus(rows: pa.Table) -> Mapping[int, str]:
    reasons: dict[int, str] = {}
    for name in rows.column_names:
        if pa.types.is_string(rows.schema.field(name).type):
            for number, value in enumerate(rows.column(name).to_pylist()):
                if value is not None and len(value.encode()) > MILVUS_TEXT_BYTES:
                    reasons[number] = f"{name} has {len(value.encode())} bytes; Milvus takes {MILVUS_TEXT_BYTES}"
                elif name == ID and not value:
                    reasons[number] = "its id is empty; Milvus wants a key"
    return reasons


def _describe_vdf(shape: Shape, name: str, rows: int) -> Mapping[str, Any]:
    """Return the contents of VDF_META.json."""
    entry = {
        "namespace": "",
        "index_name": name,
        "total_vector_count": rows,
        "exported_vector_count": rows,
        "dimensions": shape.dim,
        "model_name": shape.fingerprint,
        "vector_columns": [shape.embedding],
        "data_path": name,
        "metric": {"cosine": "Cosine", "dot": "Dot", "euclidean": "Euclid"}[shape.metric],
        "index_config": {},
    }
    return {
        "version": "library_version",
        "file_structure": [name, "VDF_META.json"],
        "author": "embedding-pipeline",
        "exported_from": "embedding-pipeline",
        "indexes": {name: [entry]},
        "id_column": ID,
    }


def _any_type(kind: pa.DataType) -> bool:
    """Parquet files of pyarrow bring these back as they were."""
    if pa.types.is_struct(kind):
        return kind.num_fields > 0 and all(_any_type(field.type) for field in kind)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _any_type(kind.value_type)
    names = (
        "string",
        "large_string",
        "binary",
        "large_binary",
        "boolean",
        "integer",
        "floating",
        "date32",
        "decimal128",
    )
    return any(getattr(pa.types, f"is_{name}")(kind) for name in names) or (
        pa.types.is_timestamp(kind) and kind.unit in ("us", "ms", "ns")
    )


def _flat_type(kind: pa.DataType) -> bool:
    names = ("string", "boolean", "integer", "float32", "float64")
    return any(getattr(pa.types, f"is_{name}")(kind) for name in names)


def _milvus_type(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind):
        return _flat_type(kind.value_type)
    return _flat_type(kind) and not pa.types.is_unsigned_integer(kind)


def _pinecone_type(kind: pa.DataType) -> bool:
    return _flat_type(kind) or (pa.types.is_list(kind) and pa.types.is_string(kind.value_type))


def _no_half(kind: pa.DataType) -> bool:
    return _any_type(kind) and not pa.types.is_float16(kind)


def _namespace(name: str, options: Mapping[str, Any]) -> str:
    return f"import/{options.get('namespace', name)}"


FORMATS: Mapping[str, Format] = {
    "faiss": Format(package="faiss", dtypes=("float32", "float16", "binary"), takes=_any_type, beside=Faiss()),
    "usearch": Format(package="usearch", dtypes=("float32", "float16", "binary"), takes=_any_type, beside=Usearch()),
    "duckdb": Format(package="duckdb", takes=_no_half, beside=DuckDb()),
    "pinecone": Format(
        takes=_pinecone_type,
        rows_folder=_namespace,
        encode=_to_pinecone,
        decode=_from_pinecone,
        key_columns=("id", "metadata"),
        keys=_keys_of_pinecone,
        unfit=_unfit_for_pinecone,
    ),
    "milvus": Format(
        takes=_milvus_type, encode=_to_milvus, decode=_from_milvus, keys=_with_bytes, unfit=_unfit_for_milvus
    ),
    "vdf": Format(takes=_no_half, rows_folder=lambda name, options: name, describe=_describe_vdf),
}


def read(path: Path, form: Format, shape: Shape, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Yield the rows of one Parquet file as they were sent, or some of their columns."""
    file = pq.ParquetFile(path)
    apart = columns is not None and set(columns) <= set(file.schema_arrow.names)
    for batch in file.iter_batches(columns=list(columns) if apart and columns is not None else None):
        rows = form.decode(pa.Table.from_batches([batch]), shape)
        yield rows if columns is None else rows.select(list(columns))


def read_keys(path: Path, form: Format) -> Iterator[pa.Table]:
    """Yield KEYS of the rows of one Parquet file."""
    for batch in pq.ParquetFile(path).iter_batches(columns=list(form.key_columns)):
        rows = form.keys(pa.Table.from_batches([batch]))
        yield pa.Table.from_arrays([rows.column(name) for name in KEYS.names], schema=KEYS)
