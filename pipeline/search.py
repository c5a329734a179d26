"""The rows of a published version nearest to a vector, by exact comparison with every row: for a look, not for serving."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage import Folder
from pipeline.table.snapshot import Snapshot

SCORE = "score"
ROWS_PER_READ = 16_384

Vector = np.ndarray[Any, np.dtype[np.float32]]


def nearest(table: Folder, version: Snapshot, vector: Vector, num_rows: int) -> pa.Table:
    """The `num_rows` rows with the highest cosine to `vector` (float32[dim]), best first; all columns but the embedding,
    and `score`. Memory is bounded by a batch of rows."""
    embedding = str(version.embeddings[0]["column"])
    best: pa.Table | None = None
    for part in version.parts:
        with table.open(part.location) as file:
            for batch in pq.ParquetFile(file).iter_batches(ROWS_PER_READ):
                scored = _scored(pa.Table.from_batches([batch]), embedding, vector)
                best = _top(scored if best is None else pa.concat_tables([best, scored]), num_rows)
    return best if best is not None else pa.table({SCORE: pa.array([], pa.float32())})


def _scored(rows: pa.Table, embedding: str, vector: Vector) -> pa.Table:
    column = rows.column(embedding).combine_chunks()
    matrix = column.flatten().to_numpy().astype(np.float32).reshape(len(column), -1)
    norms = np.linalg.norm(matrix, axis=1) * np.linalg.norm(vector)
    scores = matrix @ vector / np.maximum(norms, 1e-12)
    return rows.drop_columns([embedding]).append_column(SCORE, pa.array(scores.astype(np.float32)))


def _top(rows: pa.Table, num_rows: int) -> pa.Table:
    return rows.sort_by([(SCORE, "descending")]).slice(0, num_rows)
