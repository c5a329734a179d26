"""Parquet: what the footer says of a file, and the rows of its row groups, decoded a few at a time.

Broken footers and pages become errors of the rows that they hold; only storage can fail here.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.columns import Block, conform, failed_block, partition_values, row_bytes, skipped_block
from pipeline.spans import RowGroup
from pipeline.unit import Span

FOOTER_READAHEAD_BYTES = 2**16
READAHEAD_BYTES = 0
"""Column chunks are read through buffers of their own, each at its own place."""
_BUFFER_BYTES = 2**20
_BATCH_BYTES = 4 * 2**20
_MAX_BATCH_ROWS = 512
_DATA_ERRORS = (pa.ArrowException, OSError, UnicodeError, OverflowError)
"""What pyarrow raises for broken data; failures of storage come through as errors of ours."""


@dataclass(frozen=True, kw_only=True)
class Footer:
    names: Sequence[str]
    """Of all columns."""
    types: Mapping[str, pa.DataType]
    """Of the columns asked for that the file has."""
    row_groups: tuple[RowGroup, ...]
    duplicates: tuple[str, ...]
    """Columns asked for that the file has more than once."""


def read_footer(file: BinaryIO, columns: Sequence[str]) -> Footer | None:
    """None if the file is no Parquet file, or a broken one."""
    try:
        parquet = pq.ParquetFile(file, pre_buffer=False)
        schema, metadata = parquet.schema_arrow, parquet.metadata
        leaves = _leaves(metadata, columns)
        row_groups = [
            RowGroup(rows=rows, size=_size(metadata.row_group(index), leaves))
            for index, rows in enumerate(_counts(metadata))
        ]
    except _DATA_ERRORS:
        return None
    found = {name: schema.get_all_field_indices(name) for name in columns}
    return Footer(
        names=schema.names,
        types={name: schema.field(places[0]).type for name, places in found.items() if places},
        row_groups=tuple(row_groups),
        duplicates=tuple(name for name, places in found.items() if len(places) > 1),
    )


def _counts(metadata: Any) -> list[int]:
    """Rows of each row group. A footer that disagrees with itself could claim any number of rows."""
    counts = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
    if min(counts, default=0) < 0 or sum(counts) != metadata.num_rows:
        raise pa.ArrowInvalid(f"the row groups hold {sum(counts)} rows, the file {metadata.num_rows}")
    return counts


def _leaves(metadata: Any, columns: Sequence[str]) -> list[int]:
    wanted = set(columns)
    paths = [metadata.schema.column(index).path for index in range(metadata.num_columns)]
    return [index for index, path in enumerate(paths) if path in wanted or path.partition(".")[0] in wanted]


def _size(group: Any, leaves: Sequence[int]) -> int:
    return sum(group.column(index).total_uncompressed_size for index in leaves)


def blocks(
    file: BinaryIO, span: Span, schema: pa.Schema, max_row_bytes: int, needed: Callable[[int, int], bool]
) -> Iterator[Block]:
    """All rows of the span in order. Row groups for which `needed(first, count)` is false are counted, not read.

    Columns that the file lacks are null. How many rows are decoded at a time depends on the file alone, so that rows
    before a broken page are the same ones every time.
    """
    try:
        parquet = pq.ParquetFile(file, pre_buffer=False, buffer_size=_BUFFER_BYTES)
        metadata = parquet.metadata
        counts = _counts(metadata)
        present = [name for name in schema.names if name in parquet.schema_arrow.names]
        constants = partition_values(span.file, schema)
        leaves = _leaves(metadata, present)
    except _DATA_ERRORS as error:
        places = pa.nulls(1 if span.rows is None else span.rows, pa.int64())
        yield failed_block(schema, places, f"the file is no readable Parquet file: {_short(error)}")
        return
    start, stop = (0, len(counts)) if span.kind == "file" else (span.start, span.stop)
    first = 0
    for index in range(start, stop):
        rows, position = counts[index], sum(counts[:index])
        if not needed(first, rows):
            yield skipped_block(rows)
        elif not present:
            yield from _absent(schema, constants, position, rows)
        else:
            batch_rows = _batch_rows(_size(metadata.row_group(index), leaves), rows)
            batches = parquet.iter_batches(batch_rows, row_groups=[index], columns=present, use_threads=False)
            yield from _row_group(batches, rows, position, schema, constants, max_row_bytes)
        first += rows


def _batch_rows(size: int, rows: int) -> int:
    return max(1, min(_MAX_BATCH_ROWS, _BATCH_BYTES * rows // max(1, size)))


def _row_group(
    batches: Iterator[pa.RecordBatch],
    rows: int,
    position: int,
    schema: pa.Schema,
    constants: Mapping[str, pa.Scalar],
    max_row_bytes: int,
) -> Iterator[Block]:
    """Exactly `rows` rows, whatever the pages hold."""
    done = 0
    error = "the row group holds fewer rows than its footer says"
    while done < rows:
        try:
            batch = next(batches, None)
        except _DATA_ERRORS as broken:
            error = f"the row group can't be read from here on: {_short(broken)}"
            break
        if batch is None:
            break
        batch = batch.slice(0, rows - done)
        yield _block(batch, position + done, schema, constants, max_row_bytes)
        done += batch.num_rows
    for start in range(done, rows, _MAX_BATCH_ROWS):
        stop = min(start + _MAX_BATCH_ROWS, rows)
        yield failed_block(schema, _positions(position + start, stop - start), error)


def _absent(schema: pa.Schema, constants: Mapping[str, pa.Scalar], position: int, rows: int) -> Iterator[Block]:
    """Rows of a file that has none of the columns."""
    for start in range(0, rows, _MAX_BATCH_ROWS):
        count = min(_MAX_BATCH_ROWS, rows - start)
        columns = pa.table([_constant(item, constants, count) for item in schema], schema=schema)
        yield Block(rows=count, columns=columns, positions=_positions(position + start, count))


def _constant(item: pa.Field, constants: Mapping[str, pa.Scalar], rows: int) -> pa.Array:
    return pa.repeat(constants.get(item.name, pa.scalar(None, item.type)), rows)


def _block(
    batch: pa.RecordBatch, position: int, schema: pa.Schema, constants: Mapping[str, pa.Scalar], max_row_bytes: int
) -> Block:
    errors: dict[int, str] = {}
    columns = []
    for item in schema:
        if item.name not in batch.schema.names:
            columns.append(_constant(item, constants, batch.num_rows))
            continue
        values, misfits = conform(batch.column(item.name), item.type)
        columns.append(values)
        for row, reason in misfits.items():
            errors.setdefault(row, f"column {item.name!r} {reason}")
    table = pa.table(columns, schema=schema)
    if table.nbytes > max_row_bytes:
        table = _without_large_rows(table, max_row_bytes, errors)
    return Block(rows=batch.num_rows, columns=table, positions=_positions(position, batch.num_rows), errors=errors)


def _without_large_rows(table: pa.Table, max_row_bytes: int, errors: dict[int, str]) -> pa.Table:
    large = np.flatnonzero(row_bytes(table, max_row_bytes) > max_row_bytes)
    if not len(large):
        return table
    for row in large.tolist():
        errors[row] = f"the row is larger than limits.max_row_bytes ({max_row_bytes})"
    kept = np.arange(table.num_rows)
    return table.take(pa.array(np.ma.masked_array(kept, np.isin(kept, large)), pa.int64()))


def _positions(first: int, count: int) -> pa.Array:
    return pa.array(np.arange(first, first + count, dtype=np.int64))


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
