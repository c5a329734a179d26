"""The rows of a version are read with their partition columns, wherever the version's parts lie by now.

A version comes in. Rows of some of its parts, row groups or ids go out as Arrow tables, vectors as the table holds them
or as floats. Only columns that are asked for are read, and of a part that is searched for ids only the row groups that
have some.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import schema
from pipeline.arrays import cast_exactly
from pipeline.errors import StorageError
from pipeline.storage import Folder
from pipeline.table import layout, rows
from pipeline.table.part import Part
from pipeline.table.snapshot import Snapshot

ROWS_PER_READ = 8_192
BUFFER_BYTES = 4 * 2**20
"""A column is read in pieces of so many bytes."""


class RowReader:
    """It reads one version. Another process may publish or clean meanwhile: what was moved is found again."""

    def __init__(self, table: Folder, version: Snapshot) -> None:
        self.table, self.version = table, version
        self._moved: Mapping[str, str] = {}
        self.read_bytes = 0
        """So many bytes of columns were read, as the files hold them."""

    @functools.cached_property
    def schema(self) -> pa.Schema:
        """They are all columns of the version's rows, those of the folders among them."""
        return rows.schema_of(self.version)

    def batches(
        self, part: Part, columns: Sequence[str], groups: Sequence[int] | None = None, at_once: int = ROWS_PER_READ
    ) -> Iterator[pa.Table]:
        """Yield these columns of a part, or of some of its row groups, `at_once` rows at a time. A group is not held as a
        whole."""
        with self.open(part) as file:
            parquet = pq.ParquetFile(file, pre_buffer=False, buffer_size=BUFFER_BYTES)
            stored = [name for name in columns if name in parquet.schema_arrow.names]
            chosen = range(parquet.num_row_groups) if groups is None else groups
            for group in chosen:
                self._count(parquet, group, stored)
                for batch in parquet.iter_batches(at_once, [group], stored, use_threads=False):
                    yield self._complete(pa.Table.from_batches([batch]), part, columns)

    def groups(self, part: Part) -> list[int]:
        """Return how many rows each row group of the part has."""
        with self.open(part) as file:
            metadata = pq.ParquetFile(file).metadata
            return [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]

    def with_ids(self, ids: pa.Array, columns: Sequence[str], newer_than: int = 0) -> Iterator[pa.Table]:
        """Yield these columns, id among them, of the rows with these ids. Parts of versions after `newer_than` are looked
        through first, and the others only if ids are left."""
        left = pc.unique(ids)
        parts = sorted(self.version.parts, key=lambda part: (layout.version_of_part(part.path) or 0) <= newer_than)
        for part in parts:
            if not len(left):
                return
            for found in self._in_part(part, left, columns):
                yield found
                left = left.filter(pc.invert(pc.is_in(left, found.column(schema.ID).combine_chunks())))

    def _in_part(self, part: Part, ids: pa.Array, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Only row groups in which an id was found are read."""
        with self.open(part) as file:
            parquet = pq.ParquetFile(file)
            stored = [name for name in columns if name in parquet.schema_arrow.names]
            for group in range(parquet.num_row_groups):
                self._count(parquet, group, [schema.ID])
                here = parquet.read_row_group(group, [schema.ID], use_threads=False).column(schema.ID)
                found = pc.is_in(here, ids)
                if not pc.any(found).as_py():
                    continue
                self._count(parquet, group, stored)
                start = 0
                for batch in parquet.iter_batches(ROWS_PER_READ, [group], stored, use_threads=False):
                    some = pa.Table.from_batches([batch]).filter(found.slice(start, batch.num_rows))
                    start += batch.num_rows
                    if some.num_rows:
                        yield self._complete(some, part, columns)

    def _count(self, parquet: pq.ParquetFile, group: int, columns: Sequence[str]) -> None:
        metadata = parquet.metadata.row_group(group)
        tops = set(columns)
        for number in range(metadata.num_columns):
            column = metadata.column(number)
            if column.path_in_schema.split(".")[0] in tops:
                self.read_bytes += column.total_compressed_size

    def _complete(self, found: pa.Table, part: Part, columns: Sequence[str]) -> pa.Table:
        """Return the columns in their order and types, those of the part's folder among them."""
        if list(columns) == found.column_names:
            return found
        values = dict(part.partition)
        out: list[Any] = []
        for name in columns:
            if name in found.column_names:
                out.append(found.column(name))
            else:
                kind = self.schema.field(name).type
                out.append(cast_exactly(pa.array([values.get(name)] * found.num_rows), kind))
        return pa.table(out, schema=pa.schema([self.schema.field(name) for name in columns], self.schema.metadata))

    def open(self, part: Part) -> BinaryIO:
        """Open a part. Raises StorageError if it was cleaned away."""
        try:
            return self.table.open(self._moved.get(part.path, part.location))
        except StorageError:
            places = rows.places(self.table)
            found = next((places[path] for path in (part.path, part.staged) if path in places), None)
            if found is None:
                raise StorageError(
                    f"version {self.version.version} of {self.table.url} can't be read any more: {part.path} was cleaned "
                    "away; the same command goes on with a newer version"
                ) from None
            self._moved = {**self._moved, part.path: found}
            return self.table.open(found)
