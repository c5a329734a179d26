"""Files that are made of all rows and searched: an index of FAISS or usearch, or a database of DuckDB.

Each index knows rows by number, and a file beside it has their ids. Small tables are compared row by row. This file knows
nothing of how rows stand elsewhere, and imports a library when it is used.
"""

import importlib
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import extras
from pipeline.errors import InputError
from pipeline.feeds.store import Shape, matrix
from pipeline.schema import ID

EXACT_ROWS = 5_000
"""Fewer rows are compared one by one, which finds all."""
HNSW_M, HNSW_EF_CONSTRUCTION, HNSW_EF_SEARCH = 32, 200, 128
IDS_FILE = "ids.parquet"
DUCKDB_FILE, DUCKDB_TABLE = "rows.duckdb", "rows"
ROWS_FOLDER = "rows"
KEY = "key"
KEPT_SHARE = 0.7
"""An index with fewer rows of those that were ever added is built anew."""


class BesideRows(Protocol):
    """A file that is made of all rows, and is searched."""

    def build(self, folder: Path, shape: Shape, ids: pa.Array, vectors: NDArray[Any]) -> None: ...

    def change(self, before: Path, folder: Path, shape: Shape, gone: pa.Array, added: pa.Table) -> bool:
        """Make the file in `folder` of the one in `before`, without the ids `gone`, and with the rows that were added.
        Return False, and make nothing, where it is better built anew."""
        ...

    def search(self, folder: Path, shape: Shape, vectors: NDArray[np.float32], k: int) -> list[list[str]]: ...


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

    def change(self, before: Path, folder: Path, shape: Shape, gone: pa.Array, added: pa.Table) -> bool:
        """A graph of FAISS can't lose rows."""
        return False

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
    """`index.usearch` beside `ids.parquet`, which has the id of each key of the index; rows come and go in place."""

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
        pq.write_table(pa.table({KEY: pa.array(range(len(ids)), pa.uint64()), ID: ids}), folder / IDS_FILE)

    def change(self, before: Path, folder: Path, shape: Shape, gone: pa.Array, added: pa.Table) -> bool:
        """Keys are never used again, so that those which were given tell how many rows were removed."""
        held = pq.read_table(before / IDS_FILE)
        index = self._index(shape)
        index.load(str(before / self.file))
        is_gone = pc.is_in(held.column(ID), gone)
        first = pc.add(pc.max(held.column(KEY)), 1).as_py() or 0
        if len(held) + len(added) < KEPT_SHARE * (first + len(added)) or not index.size:
            return False
        for key in held.filter(is_gone).column(KEY).to_pylist():
            index.remove(key)
        keys = np.arange(first, first + len(added), dtype=np.uint64)
        if len(added):
            index.add(keys, matrix(added, shape))
        index.save(str(folder / self.file))
        new = pa.table({KEY: pa.array(keys), ID: added.column(ID)}, schema=held.schema)
        pq.write_table(pa.concat_tables([held.filter(pc.invert(is_gone)), new]), folder / IDS_FILE)
        return True

    def search(self, folder: Path, shape: Shape, vectors: NDArray[np.float32], k: int) -> list[list[str]]:
        held = pq.read_table(folder / IDS_FILE)
        names = dict(zip(held.column(KEY).to_pylist(), held.column(ID).to_pylist(), strict=True))
        index = self._index(shape)
        index.load(str(folder / self.file))
        index.expansion_search = HNSW_EF_SEARCH
        queries: Any = _bits(vectors, shape) if shape.dtype == "binary" else vectors
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
        files = str(folder / ROWS_FOLDER / "*.parquet").replace("'", "''")
        with package("duckdb").connect(str(folder / DUCKDB_FILE)) as database:
            has_rows = any((folder / ROWS_FOLDER).glob("*.parquet"))
            if has_rows:
                source = f"SELECT * REPLACE ({cast}) FROM read_parquet('{files}')"
            else:
                database.register("nothing", shape.schema.empty_table())
                source = f"SELECT * REPLACE ({cast}) FROM nothing"
            database.execute(f"CREATE TABLE {DUCKDB_TABLE} AS {source}")
            database.execute(f'CREATE UNIQUE INDEX by_id ON {DUCKDB_TABLE} ("{ID}")')

    def change(self, before: Path, folder: Path, shape: Shape, gone: pa.Array, added: pa.Table) -> bool:
        """Making the table anew takes seconds."""
        return False

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
