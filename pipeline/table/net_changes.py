"""What changed between two versions of a table comes out as one row per id, whose last change counts.

The lists of changes of all versions in between come in. Nothing is cancelled: an id that came and went in between is a
delete, because whoever follows may have stopped halfway. Memory is bounded: many changes are parted by their ids on a
disk, and one bucket is held at a time.
"""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc as ipc
import pyarrow.parquet as pq

from pipeline import schema
from pipeline.errors import InputError
from pipeline.identity import id_hashes
from pipeline.storage import Folder
from pipeline.table import compare, layout, snapshot
from pipeline.table.row_reader import RowReader
from pipeline.table.snapshot import Snapshot

ROWS_HELD = 2_000_000
"""So many changes are held at once."""
LOOKS = 3
"""A list moves from a publication beside its snapshot while it is looked for."""

UPSERT, DELETE = "upsert", "delete"


class ListsMissing(InputError):
    """The lists of changes are not all there any more: compare with the table itself."""


def net_changes(table: Folder, since: int, until: Snapshot, held: int = ROWS_HELD) -> Iterator[pa.Table]:
    """Yield the changes from version `since` to `until`, schema.CHANGES, every id once. From 0 they are all rows.

    A purge erases ids from the lists of versions before it. Raises ListsMissing where that, or somebody, left a list
    between the two incomplete, and InputError for a version that isn't there.
    """
    if since == 0:
        reader = RowReader(table, until)
        for part in until.parts:
            for rows in reader.batches(part, compare.COLUMNS):
                yield rows.append_column("op", pa.array([UPSERT] * rows.num_rows)).select(schema.CHANGES.names)
        return
    known = snapshot.versions(table)
    if since not in known or since > until.version:
        raise InputError(f"there is no way from version {since} to {until.version}: table {table.url} has {known}")
    lists = [_files(table, version) for version in known if since < version <= until.version]
    rows = sum(count for _, count in lists)
    files = [name for names, _ in lists for name in names]
    if rows <= held:
        yield from _last(_read(table, files))
        return
    with tempfile.TemporaryDirectory(prefix="changes-") as folder:
        for bucket in _parted(table, files, Path(folder), -(-rows // held)):
            yield from _last(bucket)


def count_changes(table: Folder, since: int, until: int) -> int:
    """Return how many changes the lists between two versions hold, before any of them is left out for a later one.
    Raises ListsMissing."""
    return sum(_files(table, version)[1] for version in snapshot.versions(table) if since < version <= until)


def _files(table: Folder, number: int) -> tuple[list[str], int]:
    """Return the files of a version's list, and how many rows they have."""
    version = snapshot.read_alone(table, number)
    counts = version.counts
    expected = counts.new + counts.changed + counts.deleted
    rows = 0
    for _ in range(LOOKS):
        # The publication's copy goes when all files stand beside the snapshot.
        for folder in (f"{version.publication}changes/", layout.changes(number)):
            names = [info.path for info in table.list(folder)]
            rows = sum(filter(None, (_count(table, name) for name in names)))
            if rows == expected:
                return names, rows
    raise ListsMissing(
        f"the changes of version {number} of {table.url} are not complete any more: {rows:,} of {expected:,} are there, "
        "because rows were purged since, or files removed; compare with the rows themselves, or begin at version 0"
    )


def _count(table: Folder, path: str) -> int | None:
    content = table.read(path)
    return None if content is None else int(pq.ParquetFile(pa.BufferReader(content)).metadata.num_rows)


def _read(table: Folder, files: Sequence[str]) -> pa.Table:
    pieces = [snapshot.read_parquet(table.read(path)) for path in files]
    return pa.concat_tables([schema.CHANGES.empty_table(), *pieces])


def _parted(table: Folder, files: Sequence[str], folder: Path, buckets: int) -> Iterator[pa.Table]:
    """Yield the changes in so many buckets by id, each in the order of the lists."""
    writers = [ipc.new_file(str(folder / f"{number}.arrow"), schema.CHANGES) for number in range(buckets)]
    for path in files:
        rows = snapshot.read_parquet(table.read(path)).cast(schema.CHANGES)
        numbers = id_hashes(rows.column(schema.ID))[:, 0] % np.uint64(buckets)
        for number in np.unique(numbers).tolist():
            writers[number].write_table(rows.filter(pa.array(numbers == number)))
    for number, writer in enumerate(writers):
        writer.close()
        with pa.memory_map(str(folder / f"{number}.arrow")) as file:
            yield ipc.open_file(file).read_all()


def _last(rows: pa.Table) -> Iterator[pa.Table]:
    """Yield the last change of each id, by id."""
    if rows.num_rows:
        yield rows.take(pa.array(_last_places(id_hashes(rows.column(schema.ID))))).sort_by(schema.ID)


def _last_places(hashes: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    backwards = np.ascontiguousarray(hashes[::-1]).view([("a", np.uint64), ("b", np.uint64)]).reshape(-1)
    _, first = np.unique(backwards, return_index=True)
    return len(hashes) - 1 - first


def split(changes: pa.Table) -> tuple[pa.Table, pa.Array]:
    """Return (the upserts, the ids of the deletes)."""
    gone = pc.equal(changes.column("op"), DELETE)
    return changes.filter(pc.invert(gone)), changes.filter(gone).column(schema.ID).combine_chunks()
