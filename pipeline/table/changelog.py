"""What a version changes against its parent: rows of (id, op, content_hash, row_hash), in files beside the snapshot.

Comes in: parts, and the places of rows in them. Goes out: the list of changes, in the publication of a version. Which rows
differ is found by compare.py or diff.py.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import schema
from pipeline.storage import Folder
from pipeline.table import compare, rolling
from pipeline.table.part import Part

ROWS_PER_READ = 65_536

Positions = np.ndarray[Any, np.dtype[np.int32]]
"""int32[n, 2]: the number of a part in a list, and the index of a row in it."""


def write(table: Folder, folder: str, upserts: Iterable[pa.Table], deletes: Iterable[pa.Table]) -> rolling.Written:
    """Write the list into `folder`, from rows with id and hashes."""
    rows = itertools.chain(_with_op(upserts, "upsert"), _with_op(deletes, "delete"))
    return rolling.write(table, folder, rows, schema.CHANGES)


def _with_op(batches: Iterable[pa.Table], op: str) -> Iterator[pa.Table]:
    for rows in batches:
        yield rows.append_column("op", pa.array([op] * rows.num_rows)).select(schema.CHANGES.names)


def rows_at(table: Folder, parts: Sequence[Part], positions: Positions) -> Iterator[pa.Table]:
    """The id and hashes of the rows at these positions, a part at a time."""
    ordered = positions[np.lexsort((positions[:, 1], positions[:, 0]))]
    numbers, first = np.unique(ordered[:, 0], return_index=True)
    for number, indexes in zip(numbers.tolist(), np.split(ordered[:, 1], first[1:]), strict=False):
        with table.open(parts[number].location) as file:
            yield pq.read_table(file, columns=compare.COLUMNS, use_threads=False).take(pa.array(indexes))


def all_rows(table: Folder, part: Part) -> Iterator[pa.Table]:
    """The id and hashes of all rows of a part, some at a time."""
    with table.open(part.location) as file:
        for batch in pq.ParquetFile(file).iter_batches(ROWS_PER_READ, columns=compare.COLUMNS):
            yield pa.Table.from_batches([batch])
