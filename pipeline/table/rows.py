"""The rows of one version as an Arrow dataset: lazy, filterable, isolated from whatever is published meanwhile.

Comes in: a table's folder and a snapshot. Goes out: a `pyarrow.dataset.Dataset`, partition columns included.
"""

import functools
import operator
from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline.errors import InputError
from pipeline.storage import Folder
from pipeline.table import layout, snapshot
from pipeline.table.part import Part
from pipeline.table.snapshot import Snapshot

if TYPE_CHECKING:
    import pyarrow.dataset as pads


def dataset(table: Folder, version: Snapshot) -> "pads.Dataset":
    """Exactly the rows of `version`, whether its files stand in data/, wait in staging or were superseded.

    Raises InputError if files of an old version were cleaned away.
    """
    # It loads pandas where that is installed, a sixth of a second for those who need places or columns alone.
    import pyarrow.dataset as pads

    filesystem, root = table.arrow_filesystem()
    where = places(table)
    form, schema = pads.ParquetFileFormat(), schema_of(version)
    fragments = [
        form.make_fragment(f"{root}/{_place(part, where, table, version)}", filesystem, _partition(part, schema))
        for part in version.parts
    ]
    return pads.FileSystemDataset(fragments, schema, form, filesystem)


def places(table: Folder) -> dict[str, str]:
    """Path in data/ or staging -> where that file is now; where a part lies in several places, all copies are equal."""
    # Listed in the order in which files move: one that moves meanwhile is seen twice, not missed.
    here = {info.path: info.path for prefix in (layout.STAGING, layout.DATA) for info in table.list(prefix)}
    return {layout.trashed(info.path): info.path for info in table.list(layout.TRASH)} | here


def is_readable(table: Folder, version: Snapshot) -> bool:
    """Say whether all parts of a version are there, wherever they are."""
    where = places(table)
    return all(part.path in where or part.staged in where for part in version.parts)


def _place(part: Part, places: dict[str, str], table: Folder, version: Snapshot) -> str:
    for path in (part.path, part.staged):
        if path in places:
            return places[path]
    raise InputError(
        f"version {version.version} of {table.url} can't be read any more: {part.path} was cleaned away; read a newer version"
    )


def _partition(part: Part, schema: pa.Schema) -> "pads.Expression | None":
    import pyarrow.dataset as pads

    values = [
        pads.field(name).is_null() if value is None else pads.field(name) == pa.scalar(value, schema.field(name).type)
        for name, value in part.partition
    ]
    return functools.reduce(operator.and_, values) if values else None


def schema_of(version: Snapshot) -> pa.Schema:
    """The parts' columns, then the partition columns."""
    columns = snapshot.hex_to_schema(version.schema)
    source = snapshot.hex_to_schema(version.source_schema)
    partition = version.output_spec["partition_by"]
    partition_fields = [source.field(name) for name in partition if name not in columns.names]
    return pa.schema([*columns, *partition_fields], columns.metadata)
