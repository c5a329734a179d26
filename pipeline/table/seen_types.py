"""What a table's columns hold so far: a type of which no value was ever seen can become any other.

Comes in: a version and a column. Goes out: the column's type, null wherever all parts have nothing but nulls. Only the
footers of the parts are read.
"""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.arrays import is_list
from pipeline.storage import Folder
from pipeline.table.part import Part
from pipeline.table.snapshot import Snapshot


def seen_type(table: Folder, version: Snapshot, column: str, kind: pa.DataType) -> pa.DataType:
    """The type of the column, which is `kind`, with null in place of strings that no row has."""
    seen: set[str] = set()
    for part in version.parts:
        seen |= _seen_in_partition(part, column) or _seen_in_file(table, part, column)
    return _known(kind, column, seen)


def largest_integer(table: Folder, version: Snapshot, column: str) -> int:
    """The largest absolute value of an integer in the column, at any depth; 0 where there is none, or nothing is known."""
    largest = 0
    for part in version.parts:
        with table.open(part.location) as file:
            metadata = pq.read_metadata(file)
        for leaf in _leaves(metadata, column):
            if leaf.statistics is not None and leaf.statistics.has_min_max and leaf.physical_type in ("INT32", "INT64"):
                bounds = (leaf.statistics.min_raw, leaf.statistics.max_raw)
                largest = max(largest, *(abs(bound) for bound in bounds))
    return largest


def _known(kind: pa.DataType, path: str, seen: set[str]) -> pa.DataType:
    """`path` is the name that Parquet has for the value."""
    if pa.types.is_struct(kind):
        fields = [item.with_type(_known(item.type, f"{path}.{item.name}", seen)) for item in kind]
        return pa.struct(fields)
    if is_list(kind) and not pa.types.is_fixed_size_list(kind):
        item = kind.value_field
        return pa.list_(item.with_type(_known(item.type, f"{path}.list.element", seen)))
    # A column without a value is a string; what was ever planned as something else keeps that.
    return pa.null() if pa.types.is_string(kind) and path not in seen else kind


def _seen_in_partition(part: Part, column: str) -> set[str]:
    values = [value for name, value in part.partition if name == column]
    return {column} if any(value is not None for value in values) else set()


def _seen_in_file(table: Folder, part: Part, column: str) -> set[str]:
    """The leaves of the column that some row has."""
    with table.open(part.location) as file:
        metadata = pq.read_metadata(file)
    return {str(leaf.path_in_schema) for leaf in _leaves(metadata, column) if _may_have_values(leaf.statistics)}


def _may_have_values(statistics: Any) -> bool:
    """Where statistics say nothing, a value may be there."""
    return statistics is None or bool(statistics.num_values) or not statistics.has_null_count


def _leaves(metadata: pq.FileMetaData, column: str) -> Iterator[Any]:
    """What the footer says of each leaf of the column in each row group."""
    for group in range(metadata.num_row_groups):
        for index in range(metadata.num_columns):
            leaf = metadata.row_group(group).column(index)
            path = str(leaf.path_in_schema)
            if path == column or path.startswith(f"{column}."):
                yield leaf
