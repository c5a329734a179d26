"""The store's index is asked for the neighbours of some rows, and its answers are compared with exact scores.

The exact scores are computed from the table, so that a store can't agree with itself. An answer counts if fewer than ten
rows are really nearer. Of a large table a part of the rows is looked through, and those that are nearer there stand for
more.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import schema
from pipeline.encoder.similarities import similarities
from pipeline.feeds.shape import shaped
from pipeline.feeds.store import Shape, Store, matrix
from pipeline.table.row_reader import RowReader

NEAREST = 10
ROWS_COMPARED = 2_000_000
"""So many rows of a table are compared at most."""
TIE = 1e-5
"""Scores that differ by less may stand in either order."""


@dataclass(frozen=True, kw_only=True)
class Recall:
    share: float
    """The index found this share of the ten nearest rows."""
    best: float
    """This share of the queries had a row first that no other is nearer than."""
    queries: int


def measure(
    store: Store, generation: str, shape: Shape, reader: RowReader, queries: pa.Table, excluded: Collection[str] = ()
) -> Recall | None:
    """Ask for the neighbours of the queries, which are rows as the shape has them. Return None where there are none.

    Rows with `excluded` ids are not in the store.
    """
    if not queries.num_rows:
        return None
    vectors = floats(queries, shape)
    answers = store.search(generation, shape, vectors, NEAREST)
    scores = _scores(store, generation, shape, vectors, answers)
    nearer = np.zeros(scores.shape)
    compared, total = 0, sum(part.rows for part in reader.version.parts) - len(excluded)
    for some in _rows(reader, shape, frozenset(excluded)):
        found = similarities(vectors, some, _function(shape))
        # Scores are float32: of long vectors under dot they differ by more in their last digits.
        nearer += (found[:, None, :] > (scores + TIE * np.maximum(1, np.abs(scores)))[:, :, None]).sum(axis=2)
        compared += len(some)
    nearer *= total / max(1, compared)
    right = np.isfinite(scores) & (nearer < NEAREST)
    return Recall(
        share=float(right.sum() / (len(answers) * max(1, min(NEAREST, total)))),
        best=float((np.isfinite(scores[:, 0]) & (nearer[:, 0] < 1)).mean()),
        queries=len(answers),
    )


def _scores(
    store: Store, generation: str, shape: Shape, vectors: NDArray[np.float32], answers: list[list[str]]
) -> NDArray[np.float32]:
    """Return float32[queries, NEAREST], the exact score of each answer. It is NaN where there is none, and for an id that
    comes twice."""
    rows = store.get(generation, shape, sorted({name for ids in answers for name in ids}))
    places = {name: row for row, name in enumerate(rows.column(schema.ID).to_pylist())}
    known = floats(rows, shape)
    scores = np.full((len(answers), NEAREST), np.nan, np.float32)
    for query, ids in enumerate(answers):
        here = [places[name] for name in dict.fromkeys(ids) if name in places][:NEAREST]
        if here:
            scores[query, : len(here)] = similarities(vectors[query], known[here], _function(shape))[0]
    return scores


def _rows(reader: RowReader, shape: Shape, excluded: frozenset[str]) -> Iterator[NDArray[np.float32]]:
    """Yield the vectors of the table, or of parts of it from all over it."""
    parts = list(reader.version.parts)
    np.random.default_rng(0).shuffle(parts)
    compared = 0
    for part in parts:
        for rows in reader.batches(part, [schema.ID, shape.embedding]):
            if compared >= ROWS_COMPARED:
                return
            compared += rows.num_rows
            if excluded:
                ids = rows.column(schema.ID).to_pylist()
                rows = rows.filter(pa.array([name not in excluded for name in ids]))
            yield floats(shaped(rows, shape), shape)


def floats(rows: pa.Table, shape: Shape) -> NDArray[np.float32]:
    """Return float32[n, dim] of rows as the shape has them; bits are +1 and -1."""
    values = matrix(rows, shape)
    if shape.dtype == "binary":
        return np.unpackbits(values, axis=1)[:, : shape.dim].astype(np.float32) * 2 - 1
    return values.astype(np.float32)


def _function(shape: Shape) -> str:
    """With +1 and -1 the dot product counts bits that are the same."""
    return "dot" if shape.metric == "hamming" else shape.metric
