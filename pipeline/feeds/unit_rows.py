"""The rows of a unit are read and looked through while those before them are on their way to the store.

A unit of a load comes in. Its rows go out as tables of a few megabytes, which is all of it that is in memory. This file
knows no store but by what it can't take.
"""

from collections.abc import Generator, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline import schema
from pipeline.feeds.ahead import ahead
from pipeline.feeds.shape import columns_of, shaped
from pipeline.feeds.store import Rejection, Shape, Store, matrix
from pipeline.table.row_reader import ROWS_PER_READ, RowReader

TABLE_BYTES = 3 * 2**20
"""A table has so many bytes of vectors at most, so that a processor's caches hold what is made of it."""


@dataclass(frozen=True, kw_only=True)
class LoadUnit:
    """It is a run of rows in one row group of a part."""

    name: str
    part: int
    """The part has this number in its version."""
    group: int
    start: int
    rows: int


class UnitRows:
    """The rows of a unit that the store can take. They are read anew whenever they are iterated over."""

    def __init__(self, reader: RowReader, store: Store, shape: Shape, unit: LoadUnit) -> None:
        self._reader, self._store, self._shape, self._unit = reader, store, shape, unit
        self.unfit: list[Rejection] = []
        """The store can't take these of the rows that were read."""

    def __iter__(self) -> Iterator[pa.Table]:
        self.unfit = []
        with ahead(self._fit()) as tables:
            yield from tables

    def _fit(self) -> Generator[pa.Table]:
        for rows in self._read():
            fit, unfit = without_unfit(self._store, rows, self._shape)
            self.unfit += unfit
            yield fit

    def _read(self) -> Iterator[pa.Table]:
        unit, shape, start = self._unit, self._shape, 0
        part = self._reader.version.parts[unit.part]
        at_once = max(1, min(ROWS_PER_READ, TABLE_BYTES // bytes_per_row(shape)))
        for rows in self._reader.batches(part, columns_of(shape, vectors=True), [unit.group], at_once):
            first, last = max(unit.start - start, 0), min(unit.start + unit.rows - start, rows.num_rows)
            if last > first:
                yield shaped(rows.slice(first, last - first), shape)
            start += rows.num_rows
            if start >= unit.start + unit.rows:
                break


def bytes_per_row(shape: Shape) -> int:
    """Return how many bytes the vector of a row has."""
    return max(1, int(shape.vector.list_size * shape.vector.value_type.bit_width) // 8)


def without_unfit(store: Store, rows: pa.Table, shape: Shape) -> tuple[pa.Table, list[Rejection]]:
    """Return the rows that the store can take, and the others with their reasons."""
    reasons = dict(store.unfit(rows))
    if shape.dtype != "binary" and rows.num_rows:
        # Half precision has no numbers beyond 65,504.
        for row in _not_finite(rows, shape):
            reasons.setdefault(row, f"its vector has a number that {shape.dtype} can't hold")
    if not reasons:
        return rows, []
    ids = rows.column(schema.ID).take(pa.array(sorted(reasons))).to_pylist()
    unfit = [Rejection(id=name, reason=reasons[row]) for name, row in zip(ids, sorted(reasons), strict=True)]
    return rows.filter(pa.array([row not in reasons for row in range(rows.num_rows)])), unfit


def _not_finite(rows: pa.Table, shape: Shape) -> list[int]:
    """Return the rows whose vectors hold NaN or infinite numbers."""
    found, start = list[int](), 0
    for batch in rows.to_batches():
        vectors = matrix(pa.Table.from_batches([batch]), shape)
        # A sum is finite only if all numbers are. It is quick, and may overflow.
        suspect = np.flatnonzero(~np.isfinite(vectors.sum(axis=1, dtype=np.float32)))
        found += [start + int(row) for row in suspect if not np.isfinite(vectors[row]).all()]
        start += batch.num_rows
    return found
