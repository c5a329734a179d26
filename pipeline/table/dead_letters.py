"""Source rows of a version that have no vector (schema.DEAD_LETTERS), in files beside the snapshot."""

from collections.abc import Iterable, Iterator

import pyarrow as pa

from pipeline import schema
from pipeline.storage import Folder
from pipeline.table import layout, rolling, snapshot
from pipeline.table.snapshot import Snapshot


def read(table: Folder, version: Snapshot) -> Iterator[pa.Table]:
    """The dead letters of a version, a file at a time: from beside the snapshot, or from its publication while the version
    isn't materialised."""
    staged, beside = f"{version.publication}dead_letters/", layout.dead_letters(version.version)
    places = {info.path.removeprefix(folder): info.path for folder in (staged, beside) for info in table.list(folder)}
    for name, path in places.items():
        # Another process may have brought it beside the snapshot since it was listed.
        yield snapshot.read_parquet(table.read(path) or table.read(beside + name))


def write(table: Folder, folder: str, rows: Iterable[pa.Table]) -> rolling.Written:
    """Write them into `folder`."""
    return rolling.write(table, folder, rows, schema.DEAD_LETTERS)
