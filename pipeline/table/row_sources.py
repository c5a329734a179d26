"""Which span each row of a part belongs to: its column `source`, or a newer list that stands for it.

A row that its source still has stays where it is, though its file was written anew: only the number of its span may be
another one now. Such numbers go into a list beside the part, so that no part is written for them. Lists have names that
are used once and never change; a version names those that hold for it, and `clean` removes the others.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import StorageError
from pipeline.schema import SOURCE
from pipeline.storage import Folder
from pipeline.table import snapshot
from pipeline.table.part import Part

Numbers = np.ndarray[Any, np.dtype[np.int32]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Renumbering:
    """Rows of one part whose span has another number now."""

    part: Part
    rows: Numbers
    """Their indexes in the part."""
    numbers: Numbers
    output: str
    """Path of the new list."""


def of(table: Folder, part: Part) -> Numbers:
    """The number of each row's span, in the order of the part."""
    if part.row_sources is None:
        with table.open(part.location) as file:
            return _numbers(pq.read_table(file, columns=[SOURCE], use_threads=False))
    content = table.read(part.row_sources)
    if content is None:
        raise StorageError(f"table {table.url}: {part.row_sources} is gone, the table was damaged by hand")
    return _numbers(snapshot.read_parquet(content))


def _numbers(rows: pa.Table) -> Numbers:
    return np.asarray(rows.column(SOURCE).to_numpy(), np.int32)


def applied(table: Folder, part: Part, rows: pa.Table) -> pa.Table:
    """All rows of a part, with the numbers that hold now."""
    return rows if part.row_sources is None else numbered(rows, of(table, part))


def numbered(rows: pa.Table, numbers: Numbers) -> pa.Table:
    """The rows with these numbers of spans."""
    index = rows.schema.get_field_index(SOURCE)
    return rows.set_column(index, rows.schema.field(SOURCE), pa.array(numbers, pa.int32()))


def renumber(table: Folder, job: Renumbering) -> Part:
    """Write the new list; returns the part that names it."""
    numbers = of(table, job.part).copy()
    numbers[job.rows] = job.numbers
    table.write(job.output, snapshot.to_parquet(pa.table({SOURCE: pa.array(numbers, pa.int32())})))
    return replace(job.part, row_sources=job.output, sources=tuple(np.unique(numbers).tolist()))
