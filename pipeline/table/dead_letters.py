"""Dead letters are source rows of a version that have no vector (schema.DEAD_LETTERS), in files beside the snapshot."""

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import schema
from pipeline.errors import one_line
from pipeline.storage import Folder
from pipeline.table import layout, rolling, snapshot
from pipeline.table.snapshot import Snapshot

SHOWN = 3
"""A message tells so many reasons."""


def read(table: Folder, version: Snapshot) -> Iterator[pa.Table]:
    """Yield the dead letters of a version, a file at a time. They come from beside the snapshot, or from its publication
    while the version isn't materialised."""
    staged, beside = f"{version.publication}dead_letters/", layout.dead_letters(version.version)
    places = {info.path.removeprefix(folder): info.path for folder in (staged, beside) for info in table.list(folder)}
    for name, path in places.items():
        # Another process may have brought it beside the snapshot since it was listed.
        yield snapshot.read_parquet(table.read(path) or table.read(beside + name))


def reasons(letters: Iterable[pa.Table]) -> tuple[str, ...]:
    """Tell the first few: which file, which row if it has an id, and why."""
    rows = (row for rows in letters for row in rows.slice(0, SHOWN).to_pylist())
    return tuple(map(_told, itertools.islice(rows, SHOWN)))


def _told(row: Mapping[str, Any]) -> str:
    return f"{_place(row)}: {one_line(row['error'], 200)}"


def places(letters: pa.Table) -> list[str]:
    """Tell of each which file, and which row if it has an id."""
    return [_place(row) for row in letters.select(["path", "id"]).to_pylist()]


def _place(row: Mapping[str, Any]) -> str:
    name = f" (id {one_line(row['id'], 100)!r})" if row["id"] is not None else ""
    return f"{row['path']!r}{name}"


def of_sources(letters: Iterable[pa.Table], sources: Collection[int]) -> Iterator[pa.Table]:
    """Yield the dead letters of these sources alone, by their numbers."""
    numbers = pa.array(sorted(sources), pa.int32())
    return (rows.filter(pc.is_in(rows.column(schema.SOURCE), numbers)) for rows in letters)


def write(table: Folder, folder: str, rows: Iterable[pa.Table]) -> rolling.Written:
    """Write them into `folder`."""
    return rolling.write(table, folder, rows, schema.DEAD_LETTERS)
