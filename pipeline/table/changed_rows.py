"""The changes between two versions come out with the rows themselves, vectors as floats, for those who follow a table.

It joins net_changes.py, which knows what changed, with row_reader.py, which knows where rows lie.
"""

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import schema
from pipeline.arrays import decode
from pipeline.errors import StorageError
from pipeline.storage import Folder
from pipeline.table.net_changes import net_changes, split
from pipeline.table.row_reader import RowReader
from pipeline.table.snapshot import Snapshot
from pipeline.table.vectors import vectors

OP = "op"


def changes(table: Folder, since: int, until: Snapshot, *, with_rows: bool = False) -> Iterator[pa.Table]:
    """Yield schema.CHANGES from version `since` to `until`, every id once; with the rows also all columns of the table,
    which are null for a delete. Raises what net_changes raises."""
    changed = net_changes(table, since, until)
    if not with_rows:
        yield from changed
        return
    reader = RowReader(table, until)
    columns = reader.schema.names
    out = pa.schema([schema.CHANGES.field(OP), *_as_floats(until, reader.schema)])
    for some in changed:
        upserts, gone = split(some)
        deletes = some.filter(pc.equal(some.column(OP), "delete")) if len(gone) else None
        if deletes is not None:
            yield pa.table([_column(deletes, field) for field in out], schema=out)
        found = 0
        for rows in reader.with_ids(upserts.column(schema.ID).combine_chunks(), columns, newer_than=since):
            found += rows.num_rows
            yield with_floats(rows, until).add_column(0, out.field(0), pa.array(["upsert"] * rows.num_rows)).cast(out)
        check_found(table, until, upserts.num_rows, found)


def check_found(table: Folder, version: Snapshot, wanted: int, found: int) -> None:
    if found != wanted:
        raise StorageError(
            f"{table.url}: of {wanted:,} changed rows {found:,} are in version {version.version}: the table was "
            "damaged by hand"
        )


def with_floats(rows: pa.Table, version: Snapshot) -> pa.Table:
    """Return the rows with their vectors as float32[dim], and dictionaries decoded."""
    name = str(version.embeddings[0]["column"])
    found = vectors(rows, name)
    kind = _floats(found.shape[1])
    column = pa.FixedSizeListArray.from_arrays(pa.array(found.reshape(-1), pa.float32()), type=kind)
    arrays = [column if field.name == name else plain(rows.column(field.name)) for field in rows.schema]
    return pa.table(arrays, names=rows.schema.names)


def plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the values themselves, where they stand in dictionaries."""
    kind = plain_type(column.type)
    return pa.chunked_array([decode(chunk) for chunk in column.chunks], kind)


def plain_type(kind: pa.DataType) -> pa.DataType:
    return decode(pa.nulls(0, kind)).type


def _floats(dim: int) -> pa.DataType:
    return pa.list_(pa.field("element", pa.float32(), nullable=False), dim)


def _as_floats(version: Snapshot, columns: pa.Schema) -> list[pa.Field]:
    embedding = version.embeddings[0]
    return [
        pa.field(field.name, _floats(embedding["dim"]) if field.name == embedding["column"] else plain_type(field.type))
        for field in columns
    ]


def _column(deletes: pa.Table, field: pa.Field) -> pa.Array:
    if field.name in deletes.column_names:
        return deletes.column(field.name).combine_chunks().cast(field.type)
    return pa.nulls(deletes.num_rows, field.type)
