"""A seeded pool of a version's rows is drawn, so that a report reads a bounded part of any table.

A version comes in. Its rows with their vectors go out: all of them where they fit, else stretches of rows from parts that the
seed chooses. What was left out is told in a sentence.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import schema
from pipeline.table.part import Part
from pipeline.table.row_reader import RowReader
from pipeline.table.vectors import vectors

MOST_ROWS = 200_000
MOST_BYTES = 320 * 2**20
"""The vectors of a pool take at most so many bytes as float32."""
FEWEST_PARTS = 32
"""The rows of a pool come from so many parts at least, where there are as many."""
SEED = 0
_COLUMNS = [schema.ID, schema.CONTENT_HASH, schema.N_TOKENS, schema.TRUNCATED]


@dataclass(frozen=True, eq=False)
class Pool:
    """It holds n rows of a version."""

    rows: pa.Table
    """It has the columns id, content_hash, n_tokens and truncated."""
    unit: NDArray[np.float32]
    """[n, dim] are the vectors, each divided by its length. A vector of zeros stays as it is."""
    norms: NDArray[np.float32]
    """[n] are the lengths of the vectors."""
    total: int
    """The version has so many rows."""
    parts: tuple[int, int]
    """(so many parts were looked into, of so many)."""

    @property
    def is_whole(self) -> bool:
        return bool(self.rows.num_rows == self.total)

    def __str__(self) -> str:
        """Say which rows these are."""
        if self.is_whole:
            return f"all {self.total:,} rows"
        return (
            f"a sample of {self.rows.num_rows:,} of {self.total:,} rows, from {self.parts[0]:,} of {self.parts[1]:,} files "
            f"(seed {SEED})"
        )


def draw(reader: RowReader, seed: int = SEED, most_rows: int = MOST_ROWS, most_bytes: int = MOST_BYTES) -> Pool:
    """Draw the pool of a version that has rows. Raises StorageError where a part was cleaned away."""
    version = reader.version
    embedding = version.embeddings[0]
    dim = int(embedding["dim"])
    total = sum(part.rows for part in version.parts)
    wanted = min(total, most_rows, max(1, most_bytes // (4 * dim)))
    rows, unit, norms = [], np.empty((wanted, dim), np.float32), np.empty(wanted, np.float32)
    looked, done = 0, 0
    columns = [*_COLUMNS, str(embedding["column"])]
    for part, most in _shares(version.parts, wanted, seed):
        looked += 1
        for some in _stretch(reader, part, columns, min(most, wanted - done), seed):
            stop = done + some.num_rows
            found = vectors(some, columns[-1])
            norms[done:stop] = np.linalg.norm(found, axis=1)
            np.divide(found, np.maximum(norms[done:stop, None], 1e-12), out=unit[done:stop])
            rows.append(some.select(_COLUMNS))
            done = stop
        if done == wanted:
            break
    return Pool(
        rows=pa.concat_tables(rows).combine_chunks(),
        unit=unit[:done],
        norms=norms[:done],
        total=total,
        parts=(looked, len(version.parts)),
    )


def _shares(parts: Sequence[Part], wanted: int, seed: int) -> Iterator[tuple[Part, int]]:
    """Yield the parts in an order of the seed, each with how many of its rows the pool takes at most."""
    if wanted == sum(part.rows for part in parts):
        yield from ((part, part.rows) for part in parts)
        return
    order = np.random.default_rng(seed).permutation(len(parts)).tolist()
    left, places = wanted, min(len(parts), FEWEST_PARTS)
    for place, number in enumerate(order):
        # Small parts leave room that the following ones share.
        most = min(parts[number].rows, -(-left // max(1, places - place)))
        yield parts[number], most
        left -= most


def _stretch(reader: RowReader, part: Part, columns: list[str], most: int, seed: int) -> Iterator[pa.Table]:
    """Yield at most so many rows of a part, from a row group of the seed's choice on."""
    left = most
    groups: Sequence[int] | None = None
    if most < part.rows:
        sizes = reader.groups(part)
        first = int(np.random.default_rng(seed).integers(len(sizes)))
        groups = [*range(first, len(sizes)), *range(first)]
    for some in reader.batches(part, columns, groups):
        yield some.slice(0, left)
        left -= some.num_rows
        if left <= 0:
            return
