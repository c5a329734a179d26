"""Parquet: what the footer says of a file, and the rows of its row groups, decoded a few at a time.

Broken footers and pages become errors of the rows that they hold; only storage can fail here.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from pipeline.config import SourceSpec
from pipeline.errors import InputError
from pipeline.sources import filter
from pipeline.sources.column_types import plain_type, unite
from pipeline.sources.columns import (
    Block,
    RestLost,
    Unread,
    excluded_block,
    failed_block,
    partition_values,
    skipped_block,
)
from pipeline.sources.formats import batch as batches
from pipeline.sources.formats.content import HEAD_BYTES, lfs_pointer
from pipeline.sources.formats.form import Form, Look, Needed, unreadable
from pipeline.sources.lakehouse.columns import names_in_file, with_table_names
from pipeline.sources.spans import RowGroup
from pipeline.work import SourceFile, Span

_BUFFER_BYTES = 2**20
_INT96_UNIT = "us"
"""INT96 is an instant of any year; in nanoseconds Arrow has no room for those before 1678 and after 2262."""
_AS_WRITTEN: Mapping[str, Any] = {"coerce_int96_timestamp_unit": _INT96_UNIT}
_DATA_ERRORS = (pa.ArrowException, OSError, UnicodeError, OverflowError)
"""What pyarrow raises for broken data; failures of storage come through as errors of ours."""


def look(opened: BinaryIO, file: SourceFile, columns: Sequence[str], spec: SourceSpec) -> Look:
    """Not readable if the file is no Parquet file, or a broken one."""
    try:
        parquet = pq.ParquetFile(opened, pre_buffer=False, **_AS_WRITTEN)
        schema, metadata = parquet.schema_arrow, parquet.metadata
        # The sizes are those of all columns: a look at one column of a damaged footer ends the process (pyarrow 26 lets a
        # C++ exception out).
        sizes = [metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups)]
        row_groups = [RowGroup(rows=rows, size=size) for rows, size in zip(_counts(metadata), sizes, strict=True)]
        found = {name: schema.get_all_field_indices(name) for name in columns}
        return Look(
            names=schema.names,
            types={name: schema.field(places[0]).type for name, places in found.items() if places},
            row_groups=tuple(row_groups),
            duplicates=tuple(name for name, places in found.items() if len(places) > 1),
        )
    except _DATA_ERRORS as error:
        return unreadable(_reason(opened, error))


def _reason(opened: BinaryIO, error: BaseException) -> str:
    opened.seek(0)
    return lfs_pointer(opened.read(HEAD_BYTES)) or f"the file is no readable Parquet file: {_short(error)}"


def _counts(metadata: Any) -> list[int]:
    """Rows of each row group. A footer that disagrees with itself could claim any number of rows."""
    counts = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
    if min(counts, default=0) < 0 or sum(counts) != metadata.num_rows:
        raise pa.ArrowInvalid(f"the row groups hold {sum(counts)} rows, the file {metadata.num_rows}")
    return counts


def blocks(
    opened: BinaryIO, span: Span, schema: pa.Schema, spec: SourceSpec, max_row_bytes: int, needed: Needed
) -> Iterator[Block]:
    """All rows of the span in order. Row groups that are not `needed`, or that `spec.where` rules out by their
    statistics, are counted, not read.

    Columns that the file lacks are null. How many rows are decoded at a time depends on the file alone, so that rows
    before a broken page are the same ones every time.
    """
    try:
        parquet = pq.ParquetFile(opened, pre_buffer=False, buffer_size=_BUFFER_BYTES, **_AS_WRITTEN)
        metadata = parquet.metadata
        counts = _counts(metadata)
        names = names_in_file(parquet.schema_arrow, span.file, schema.names)
        constants = partition_values(span.file, schema)
    except _DATA_ERRORS as error:
        places = pa.nulls(1 if span.rows is None else span.rows, pa.int64())
        yield failed_block(schema, places, RestLost(_reason(opened, error)))
        return
    start, stop = (0, len(counts)) if span.kind == "file" else (span.start, span.stop)
    prunable = spec.where if _has_own_names(parquet.schema_arrow, names, schema) else None
    possible = _possible(opened, parquet.schema_arrow, schema, constants, prunable)
    first, before = 0, sum(counts[:start])
    for index in range(start, stop):
        rows, position = counts[index], before + first
        if not needed(first, rows):
            yield skipped_block(rows)
        elif possible is not None and index not in possible:
            yield excluded_block(rows)
        elif not names:
            yield from batches.constant_blocks(schema, constants, position, rows)
        else:
            batch_rows = batches.block_rows(metadata.row_group(index).total_byte_size, rows)
            columns = list(names.values())
            found = parquet.iter_batches(batch_rows, row_groups=[index], columns=columns, use_threads=False)
            as_planned = (with_table_names(batch, span.file, names) for batch in found)
            yield from _row_group(as_planned, rows, position, schema, constants, max_row_bytes)
        first += rows


def _row_group(
    found: Iterator[pa.RecordBatch],
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
            batch = next(found, None)
        except _DATA_ERRORS as broken:
            error = f"the row group can't be read from here on: {_short(broken)}"
            break
        if batch is None:
            break
        batch = batch.slice(0, rows - done)
        yield batches.block(batch, position + done, schema, constants, max_row_bytes)
        done += batch.num_rows
    for start in range(done, rows, batches.BLOCK_ROWS):
        count = min(batches.BLOCK_ROWS, rows - start)
        yield failed_block(schema, batches.positions(position + start, count), Unread(error))


# --- filters


def _has_own_names(found: pa.Schema, names: Mapping[str, str], schema: pa.Schema) -> bool:
    """Whether a column's name means in the file what it means in the plan, so that statistics can be asked by name."""
    return all(names.get(name) == (name if name in found.names else None) for name in schema.names)


def _possible(
    opened: BinaryIO, found: pa.Schema, schema: pa.Schema, constants: Mapping[str, pa.Scalar], text: str | None
) -> set[int] | None:
    """The row groups that may hold rows for which `where` is true; None if nothing can be said: all of them may.

    Types that the plan changes in more than width could compare otherwise here than they do there. Statistics say
    nothing of NaN, for which comparisons are false and their negation true.
    """
    if text is None:
        return None
    named = set(filter.columns(text))
    for item in schema:
        if item.name not in named or item.name not in found.names:
            continue
        kind, planned = plain_type(found.field(item.name).type), plain_type(item.type)
        if pa.types.is_floating(kind) or unite(kind, planned) != planned:
            return None
    columns = [item for item in found if item.name in named]
    folders = [pa.field(name, constants[name].type) for name in sorted(named & constants.keys() - set(found.names))]
    guarantee = pads.scalar(True)
    for item in folders:
        here = pads.field(item.name) == constants[item.name]
        guarantee = guarantee & (here if constants[item.name].is_valid else pads.field(item.name).is_null())
    try:
        options = pads.ParquetReadOptions(**_AS_WRITTEN)
        fragment = pads.ParquetFileFormat(read_options=options).make_fragment(opened, partition_expression=guarantee)
        inside = pa.schema([*columns, *folders])
        kept = fragment.subset(filter=filter.expression(text, inside), schema=inside)
        return {group.id for group in kept.row_groups}
    except (*_DATA_ERRORS, InputError):
        return None


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


FORM = Form(
    blocks=blocks, look=look, suffixes=(".parquet", ".pq"), packable=False, every=True, isolated=True, readahead_bytes=0
)
