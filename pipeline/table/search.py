"""The rows of a published version nearest to a vector, by exact comparison with every row: for a look, not for serving."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.encoder.similarities import similarities
from pipeline.storage import Folder
from pipeline.table import calibration
from pipeline.table.quantize import dequantize
from pipeline.table.snapshot import Snapshot

SCORE = "score"
ROWS_PER_READ = 16_384

Vector = np.ndarray[Any, np.dtype[np.float32]]


def nearest(
    table: Folder,
    version: Snapshot,
    vector: Vector,
    num_rows: int,
    function: str = "cosine",
    where: Mapping[str, Any] | None = None,
) -> pa.Table:
    """The `num_rows` rows most similar to `vector` (float32[dim]), best first; all columns but the embedding, and `score`.

    With `where` only rows whose columns, those of the folders among them, equal these values are compared.

    `function` is one of pipeline.encoder.similarities. Codes count as the vectors that they stand for: signs, of binary
    ones. Memory is bounded by a batch of rows.

    Raises InputError if the ranges of an int8 or uint8 table are gone.
    """
    embedding = version.embeddings[0]
    made = calibration.stored(table, embedding)
    vectors = _Stored(embedding["column"], embedding["dtype"], embedding["dim"], made.ranges if made else None)
    best: pa.Table | None = None
    for part in version.parts:
        folder = dict(part.partition)
        if any(name in folder and folder[name] != value for name, value in (where or {}).items()):
            continue
        with table.open(part.location) as file:
            for batch in pq.ParquetFile(file).iter_batches(ROWS_PER_READ):
                rows = pa.Table.from_batches([batch])
                for name, value in (where or {}).items():
                    if name not in folder:
                        rows = rows.filter(pc.equal(rows.column(name), pa.scalar(value)))
                scored = _scored(rows, vectors, vector, function)
                best = _top(scored if best is None else pa.concat_tables([best, scored]), num_rows)
    return best if best is not None else pa.table({SCORE: pa.array([], pa.float32())})


@dataclass(frozen=True, eq=False)
class _Stored:
    """How a table has its vectors."""

    column: str
    dtype: str
    dim: int
    ranges: Vector | None
    """float32[2, dim] of int8 and uint8."""


def _scored(rows: pa.Table, stored: _Stored, vector: Vector, function: str) -> pa.Table:
    column = rows.column(stored.column).combine_chunks()
    codes = column.flatten().to_numpy().reshape(len(column), column.type.list_size)
    matrix = dequantize(codes, stored.dtype, stored.dim, stored.ranges)
    scores = similarities(matrix, vector, function)[:, 0]
    return rows.drop_columns([stored.column]).append_column(SCORE, pa.array(scores))


def _top(rows: pa.Table, num_rows: int) -> pa.Table:
    return rows.sort_by([(SCORE, "descending")]).slice(0, num_rows)
