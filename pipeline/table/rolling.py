"""Rows of unknown number come in, and go out into files of bounded size: how lists of changes and dead letters are written.

Memory is bounded by one file. Nothing is known here of what the rows mean.
"""

from collections.abc import Iterable, Sequence

import pyarrow as pa

from pipeline.storage import Folder
from pipeline.table import snapshot

FILE_BYTES = 64 * 2**20
"""A file is written when its rows have so many bytes in memory."""


def write(table: Folder, folder: str, batches: Iterable[pa.Table], columns: pa.Schema) -> int:
    """Write `<folder>part-*.parquet` with these columns; returns the number of rows. No rows make no file."""
    waiting: list[pa.Table] = []
    rows = files = 0
    for batch in batches:
        waiting.append(batch.cast(columns))
        if sum(held.nbytes for held in waiting) >= FILE_BYTES:
            files, waiting = _write_file(table, folder, files, waiting), []
        rows += batch.num_rows
    _write_file(table, folder, files, waiting)
    return rows


def _write_file(table: Folder, folder: str, number: int, batches: Sequence[pa.Table]) -> int:
    """Returns the number of the next file."""
    rows = pa.concat_tables(batches) if batches else None
    if rows is None or not rows.num_rows:
        return number
    table.write(f"{folder}part-{number:05d}.parquet", snapshot.to_parquet(rows))
    return number + 1
