"""What the live parts hold: the keys of their rows, where a text stands, and the vectors at some places.

Each function looks at one part by column projection; who looks at many, and where, is not known here.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import schema
from pipeline.errors import GateFailed
from pipeline.identity import id_hashes
from pipeline.storage import Folder
from pipeline.table import compare, diff, row_sources, snapshot
from pipeline.table.diff import LIVE, LIVE_FIRST, LIVE_KEY, Keys
from pipeline.table.part import Part

ROWS_PER_READ = 65_536

VECTOR = "vector"
STAGE, ERROR = "stage", "error"
"""Columns of a text that has no vector: where it failed, and why."""


def vectors_schema(vector: pa.DataType) -> pa.Schema:
    """The columns of a file of vectors by the hash of their text."""
    return pa.schema(
        [
            pa.field(schema.CONTENT_HASH, pa.binary(16), nullable=False),
            pa.field(VECTOR, vector),
            pa.field(schema.N_TOKENS, pa.int32()),
            pa.field(schema.TRUNCATED, pa.bool_()),
            pa.field(STAGE, pa.string()),
            pa.field(ERROR, pa.string()),
        ]
    )


def hash_words(hashes: pa.Array | pa.ChunkedArray) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """uint64[n, 2] of binary(16)."""
    chunks = hashes.chunks if isinstance(hashes, pa.ChunkedArray) else [hashes]
    words = [
        np.frombuffer(chunk.buffers()[1], np.uint64).reshape(-1, 2)[chunk.offset :][: len(chunk)] for chunk in chunks
    ]
    return np.concatenate([np.zeros((0, 2), np.uint64), *words])


def version_keys(table: Folder, part: Part, number: int, side: int) -> Iterator[compare.Keys]:
    """compare.KEY[n] of the part's rows, some at a time; `number` and `side` stand in each.

    Raises GateFailed if the file isn't what its record says.
    """
    with table.open(part.location) as file:
        reader = pq.ParquetFile(file)
        if reader.metadata.num_rows != part.rows:
            raise GateFailed(
                f"{part.location} holds {reader.metadata.num_rows} rows, its record says {part.rows}: nothing was published"
            )
        index = 0
        for batch in reader.iter_batches(ROWS_PER_READ, columns=compare.COLUMNS):
            yield compare.keys(pa.Table.from_batches([batch]), number, side, index)
            index += batch.num_rows


def keys(table: Folder, part: Part, number: int, *, chunked: bool) -> Iterator[Keys]:
    """LIVE_KEY[n] of the part's rows, some at a time. Raises GateFailed if the file isn't what the version says."""
    sources = row_sources.of(table, part)
    columns = [schema.ID, schema.CONTENT_HASH, schema.ROW_HASH, *([schema.CHUNK_INDEX] if chunked else [])]
    if len(sources) != part.rows:
        raise GateFailed(
            f"{part.location} has {len(sources)} rows, its version names {part.rows}: nothing was published"
        )
    index = 0
    for rows in _batches(table, part, columns):
        stop = index + rows.num_rows
        out = np.zeros(rows.num_rows, LIVE_KEY)
        out["id"] = id_hashes(rows.column(schema.ID))
        out["content"] = hash_words(rows.column(schema.CONTENT_HASH))
        out["row"] = rows.column(schema.ROW_HASH).to_numpy()
        out["part"], out["index"], out["source"] = number, np.arange(index, stop), sources[index:stop]
        first = rows.column(schema.CHUNK_INDEX).to_numpy() == 0 if chunked else True
        out["side"] = np.where(first, LIVE_FIRST, LIVE)
        yield out
        index = stop


def texts(table: Folder, part: Part, needed: np.ndarray[Any, np.dtype[np.uint64]]) -> dict[bytes, int]:
    """The texts of the part whose hashes may be among the words `needed`, each with the index of a row."""
    found: dict[bytes, int] = {}
    index = 0
    for rows in _batches(table, part, [schema.CONTENT_HASH]):
        column = rows.column(schema.CONTENT_HASH)
        for row in np.flatnonzero(diff.among(hash_words(column), needed)).tolist():
            found.setdefault(column[row].as_py(), index + row)
        index += rows.num_rows
    return found


@dataclass(frozen=True, kw_only=True, eq=False)
class Gathering:
    """Vectors to fetch from one part."""

    part: Part
    rows: np.ndarray[Any, np.dtype[np.int32]]
    """Their indexes, ascending."""
    embedding: str
    """Name of the column."""
    output: str


def gather(table: Folder, job: Gathering) -> str:
    """Write the vectors of these rows, by the hash of their text; returns the path of the file."""
    columns = [schema.CONTENT_HASH, job.embedding, schema.N_TOKENS, schema.TRUNCATED]
    pieces, start = [], 0
    for rows in _batches(table, job.part, columns):
        inside = job.rows[(job.rows >= start) & (job.rows < start + rows.num_rows)] - start
        pieces.append(rows.select(columns).take(pa.array(inside)))
        start += rows.num_rows
    found = pa.concat_tables(pieces)
    nothing = pa.nulls(found.num_rows, pa.string())
    table.write(
        job.output,
        snapshot.to_parquet(
            pa.table([*found.columns, nothing, nothing], schema=vectors_schema(found.schema.field(job.embedding).type))
        ),
    )
    return job.output


def _batches(table: Folder, part: Part, columns: Sequence[str]) -> Iterator[pa.Table]:
    with table.open(part.location) as file:
        reader = pq.ParquetFile(file)
        for batch in reader.iter_batches(ROWS_PER_READ, columns=list(columns), use_threads=False):
            yield pa.Table.from_batches([batch])


def vectors(table: Folder, paths: Iterable[str], hashes: Sequence[bytes]) -> pa.Table | None:
    """The rows for these texts in some files of vectors, each text once; None where no file is given."""
    wanted = pa.array(sorted(hashes), pa.binary(16))
    found = []
    for path in paths:
        content = table.read(path)
        if content is None:
            raise GateFailed(f"{path} of {table.url} is gone: nothing was published; start again")
        rows = snapshot.read_parquet(content)
        found.append(rows.filter(pc.is_in(rows.column(schema.CONTENT_HASH), wanted)))
    if not found:
        return None
    rows = pa.concat_tables(found)
    _, first = np.unique(
        np.array([item.as_py() for item in rows.column(schema.CONTENT_HASH)], object), return_index=True
    )
    return rows.take(pa.array(first))
