"""Formats of files that vector databases and libraries take: how rows look in them, and the index beside the rows.

Rows stand in Parquet files, whose columns each format has in its own way. FAISS, usearch and DuckDB get a file of
their own beside them, made of all rows. This file knows neither revisions nor markers.
"""

import importlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import extras
from pipeline.errors import InputError
from pipeline.feeds.store import KEYS, Shape, matrix
from pipeline.schema import CONTENT_HASH, ID, ROW_HASH

EXACT_ROWS = 5_000
"""Fewer rows are compared one by one, which finds all."""
HNSW_M, HNSW_EF_CONSTRUCTION, HNSW_EF_SEARCH = 32, 200, 128
IDS_FILE = "ids.parquet"
DUCKDB_FILE, DUCKDB_TABLE = "rows.duckdb", "rows"


class BesideRows(Protocol):
    """A file that is made of all rows, and is searched."""

    def build(self, folder: Path, shape: Shape, ids: pa.Array, vectors: NDArray[Any]) -> None: ...

    def search(self, folder: Path, shape: Shape, vectors: NDArray[np.float32], k: int) -> list[list[str]]: ...


@dataclass(frozen=True, kw_only=True)
class Format:
    """How one kind of files holds rows."""

    package: str | None = None
    """It is imported where a file beside the rows is made or searched."""
    dtypes: tuple[str, ...] = ("float32",)
    takes: Callable[[pa.DataType], bool]
    """It tells whether a column of this type comes back as it was."""
    rows_folder: Callable[[str, Mapping[str, Any]], str] = lambda name, options: "rows"
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


def exact(shape: Shape, vectors: NDArray[Any], queries: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Return the numbers of the nearest vectors, best first, int64[queries, at most k], by comparing all."""
    if shape.dtype == "binary":
        bits = np.packbits(queries > 0, axis=1)
        counts = np.bitwise_count(vectors[None, :, :] ^ bits[:, None, :]).sum(axis=2, dtype=np.int64)
        scores = -counts.astype(np.float64)
    else:
        floats = vectors.astype(np.float32, copy=False)
        scores = (queries @ floats.T).astype(np.float64)
        if shape.metric == "cosine":
            lengths = np.linalg.norm(floats, axis=1)
            scores /= np.where(lengths == 0, 1, lengths)
        elif shape.metric == "euclidean":
            scores = 2 * scores - np.square(floats, dtype=np.float64).sum(axis=1)
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise InputError(f"options.format needs the package {name!r}: {extras.install('files')}") from None


def _write_ids(folder: Path, ids: pa.Array) -> None:
    pq.write_table(pa.table({ID: ids}), folder / IDS_FILE)


def _read_ids(folder: Path) -> list[str]:
    found: list[str] = pq.read_table(folder / IDS_FILE).column(ID).to_pylist()
    return found


def _unit_length(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.ascontiguousarray(vectors / np.where(lengths == 0, 1, lengths), np.float32)


class Faiss:
    """`index.faiss` beside `ids.parquet`, which has the id of each row number of the index."""

    file = "index.faiss"

    def build(self, folder: Path, shape: Shape, ids: pa.Array, vectors: NDArray[Any]) -> None:
        faiss = package("faiss")
        m = shape.index.m or HNSW_M
        is_exact = len(ids) < EXACT_ROWS or shape.index.kind == "none"
        if shape.dtype == "binary":
            bits = shape.vector.list_size * 8
            index = faiss.IndexBinaryFlat(bits) if is_exact else faiss.IndexBinaryHNSW(bits, m)
            values = vectors
        else:
            measure = faiss.METRIC_L2 if shape.metric == "euclidean" else faiss.METRIC_INNER_PRODUCT
            index = faiss.IndexFlat(shape.dim, measure) if is_exact else faiss.IndexHNSWFlat(shape.dim, m, measure)
            values = np.ascontiguousarray(vectors, np.float32)
            values = _unit_length(values) if shape.metric == "cosine" else values
        if not is_exact:
            index.hnsw.efConstruction = shape.index.ef_construction or HNSW_EF_CONSTRUCTION
            index.hnsw.efSearch = HNSW_EF_SEARCH
        index.add(values)
        (faiss.write_index_binary if shape.dtype == "binary" else faiss.write_index)(index, str(folder / self.file))
        _write_ids(folder, ids)

    def search(self, folder: Path, shape: Shape, vectors: NDArray[np.float32], k: int) -> list[list[str]]:
        faiss = package("faiss")
        names = _read_ids(folder)
        if shape.dtype == "binary":
            index = faiss.read_index_binary(str(folder / self.file))
            queries: Any = _bits(vectors, shape)
        else:
            index = faiss.read_index(str(folder / self.file))
            queries = _unit_length(vectors) if shape.metric == "cosine" else np.ascontiguousarray(vectors, np.float32)
        _, numbers = index.search(queries, min(k, len(names)))
        return [[names[number] for number in row if number >= 0] for row in numbers]


class Usearch:
    """`index.usearch` beside `ids.parquet`, which has the id of each key of the index."""

    file = "index.usearch"

    def _index(self, shape: Shape) -> Any:
        options = {"connectivity": shape.index.m, "expansion_add": shape.index.ef_construction}
        return package("usearch.index").Index(
            ndim=shape.vector.list_size * 8 if shape.dtype == "binary" else shape.dim,
            metric={"cosine": "cos", "dot": "ip", "euclidean": "l2sq", "hamming": "hamming"}[shape.metric],
            dtype={"float32": "f32", "float16": "f16", "binary": "b1"}[shape.dtype],
            expansion_search=HNSW_EF_SEARCH,
            **{key: value for key, value in options.items() if value is not None},
        )

    def build(self, folder: Path, shape: Shape, ids: pa.Array, vectors: NDArray[Any]) -> None:
        index = self._index(shape)
        if len(ids):
            index.add(np.arange(len(ids), dtype=np.uint64), vectors)
        index.save(str(folder / self.file))
        _write_ids(folder, ids)

    def search(self, folder: Path, shape: Shape, vectors: NDArray[np.float32], k: int) -> list[list[str]]:
        names = _read_ids(folder)
        index = self._index(shape)
        index.load(str(folder / self.file))
        index.expansion_search = HNSW_EF_SEARCH
        queries = _bits(vectors, shape) if shape.dtype == "binary" else vectors
        if shape.dtype == "float16":
            queries = vectors.astype(np.float16)
        is_exact = len(names) < EXACT_ROWS
        return [
            [names[int(key)] for key in index.search(query, min(k, len(names)), exact=is_exact).keys]
            for query in queries
        ]


class DuckDb:
    """`rows.duckdb` has one table, `rows`, with the vector as FLOAT[dim]; searches compare all rows."""

    def build(self, folder: Path, shape: Shape, ids: pa.Array, vectors: NDArray[Any]) -> None:
        cast = f'"{shape.embedding}"::FLOAT[{shape.dim}] AS "{shape.embedding}"'
        files = str(folder / "rows" / "*.parquet").replace("'", "''")
        with package("duckdb").connect(str(folder / DUCKDB_FILE)) as database:
            has_rows = any((folder / "rows").glob("*.parquet")) if (folder / "rows").is_dir() else False
            if has_rows:
                source = f"SELECT * REPLACE ({cast}) FROM read_parquet('{files}')"
            else:
                database.register("nothing", shape.schema.empty_table())
                source = f"SELECT * REPLACE ({cast}) FROM nothing"
            database.execute(f"CREATE TABLE {DUCKDB_TABLE} AS {source}")
            database.execute(f'CREATE UNIQUE INDEX by_id ON {DUCKDB_TABLE} ("{ID}")')

    def search(self, folder: Path, shape: Shape, vectors: NDArray[np.float32], k: int) -> list[list[str]]:
        functions = {"cosine": "array_cosine_distance", "euclidean": "array_distance", "dot": "-array_inner_product"}
        query = (
            f'SELECT "{ID}" FROM {DUCKDB_TABLE} ORDER BY '
            f'{functions[shape.metric]}("{shape.embedding}", ?::FLOAT[{shape.dim}]), "{ID}" LIMIT {k}'
        )
        with package("duckdb").connect(str(folder / DUCKDB_FILE), read_only=True) as database:
            return [[name for (name,) in database.execute(query, [v.tolist()]).fetchall()] for v in vectors]


def _bits(vectors: NDArray[np.float32], shape: Shape) -> NDArray[np.uint8]:
    return np.packbits(vectors > 0, axis=1)[:, : shape.vector.list_size]


# --- how rows look to Pinecone, Milvus and VDF


def _as_lists(rows: pa.Table, shape: Shape, name: str) -> pa.ChunkedArray:
    """Return vectors as list<float>: importers refuse lists of a fixed size."""
    values = matrix(rows, shape)
    offsets = pa.array(np.arange(len(values) + 1, dtype=np.int32) * values.shape[1])
    return pa.chunked_array([pa.ListArray.from_arrays(offsets, pa.array(values.reshape(-1)))])


def _to_milvus(rows: pa.Table, shape: Shape) -> pa.Table:
    """Content hashes are text: Milvus has no bytes."""
    contents = pa.array([value.hex() for value in rows.column(CONTENT_HASH).to_pylist()], pa.string())
    rows = rows.set_column(rows.schema.get_field_index(CONTENT_HASH), CONTENT_HASH, contents)
    place = rows.schema.get_field_index(shape.embedding)
    return rows.set_column(place, shape.embedding, _as_lists(rows, shape, shape.embedding))


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
    values = _as_lists(rows, shape, "values")
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
