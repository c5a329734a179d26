"""Rows of unknown number come in, and go out into files of bounded size: how lists of changes and dead letters are written.

Memory is bounded by one file. Nothing is known here of what the rows mean.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import pyarrow as pa

from pipeline.storage import Folder
from pipeline.table import snapshot

FILE_BYTES = 64 * 2**20
"""A file is written when its rows have so many bytes in memory."""


class Written(NamedTuple):
    rows: int
    files: list[str]
    """Their paths."""


def write(table: Folder, folder: str, batches: Iterable[pa.Table], columns: pa.Schema) -> Written:
    """Write `<folder>part-*.parquet` with these columns. No rows make no file."""
    waiting: list[pa.Table] = []
    rows = 0
    files: list[str] = []
    for batch in batches:
        waiting.append(batch.cast(columns))
        if sum(held.nbytes for held in waiting) >= FILE_BYTES:
            _write_file(table, folder, files, waiting)
            waiting = []
        rows += batch.num_rows
    _write_file(table, folder, files, waiting)
    return Written(rows, files)


def _write_file(table: Folder, folder: str, files: list[str], batches: Sequence[pa.Table]) -> None:
    """The new file joins the `files`."""
    rows = pa.concat_tables(batches) if batches else None
    if rows is not None and rows.num_rows:
        path = f"{folder}part-{len(files):05d}.parquet"
        table.write(path, snapshot.to_parquet(rows))
        files.append(path)
