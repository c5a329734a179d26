"""A file of a lakehouse table may be older than the names of the table's columns: here is told which column is which.

Comes in: the schema that a Parquet file has, and what the table's log says of its columns. Goes out: the file's own
names. Opens nothing.
"""

from collections.abc import Collection, Iterable, Mapping

import pyarrow as pa

from pipeline.work import LakeColumn, SourceFile

_FIELD_ID = b"PARQUET:field_id"


def names_in_file(found: pa.Schema, file: SourceFile, wanted: Iterable[str]) -> dict[str, str]:
    """The names that the file has for the columns that are wanted, without those that it lacks.

    Raises pa.ArrowInvalid for a file that numbers no columns in a table that knows them by number alone.
    """
    if file.logged is None:
        return {name: name for name in wanted if name in found.names}
    known = {column.name: column for column in file.logged.snapshot.columns}
    numbers = {number: item.name for item in found if (number := _number(item)) is not None}
    names = {name: _name(known[name], numbers, found.names) for name in wanted if name in known}
    return {name: theirs for name, theirs in names.items() if theirs is not None}


def with_table_names(batch: pa.RecordBatch, file: SourceFile, names: Mapping[str, str]) -> pa.RecordBatch:
    """The batch with the table's names for the file's columns, and with its instants as such: INT96, in which Spark writes
    them, doesn't say that it is UTC."""
    if file.logged is None:
        return batch
    ours = {theirs: name for name, theirs in names.items()}
    kinds = {column.name: column.type for column in file.logged.snapshot.columns}
    renamed = [ours[name] for name in batch.schema.names]
    columns = [_as_instant(values, kinds[name]) for name, values in zip(renamed, batch.columns, strict=True)]
    return pa.RecordBatch.from_arrays(columns, names=renamed)


def _as_instant(values: pa.Array, kind: pa.DataType) -> pa.Array:
    local = pa.types.is_timestamp(values.type) and values.type.tz is None
    is_instant = local and pa.types.is_timestamp(kind) and kind.tz is not None
    return values.cast(pa.timestamp(values.type.unit, "UTC")) if is_instant else values


def _number(item: pa.Field) -> int | None:
    number = (item.metadata or {}).get(_FIELD_ID)
    return None if number is None else int(number)


def _name(column: LakeColumn, numbers: Mapping[int, str], names: Collection[str]) -> str | None:
    if column.field_id is not None and numbers:
        return numbers.get(column.field_id)
    if column.field_id is not None and not column.names:
        raise pa.ArrowInvalid("the file doesn't number its columns, and the table has no names for such files")
    return next((name for name in column.names if name in names), None)
