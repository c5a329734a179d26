"""Record batches, as Parquet and Arrow IPC give them, become blocks of the planned columns."""

from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa

from pipeline.sources.columns import Block, WrongType, conform, row_bytes

BLOCK_ROWS = 64
"""Few, because nobody knows before it is decoded how large a row is: a dictionary holds a text once for all of its rows."""
BLOCK_BYTES = 4 * 2**20


def block_rows(size: int, rows: int) -> int:
    """How many of `rows` rows, which are `size` bytes together, make a block."""
    return max(1, min(BLOCK_ROWS, BLOCK_BYTES * rows // max(1, size)))


def block(
    batch: pa.RecordBatch, position: int, schema: pa.Schema, constants: Mapping[str, pa.Scalar], max_row_bytes: int
) -> Block:
    """Columns that the batch lacks are `constants`, or null; rows over the limit are errors and all null."""
    errors: dict[int, str] = {}
    columns = []
    for item in schema:
        if item.name not in batch.schema.names:
            columns.append(_constant(item, constants, batch.num_rows))
            continue
        values, misfits = conform(batch.column(item.name), item.type)
        columns.append(values)
        for row, reason in misfits.items():
            errors.setdefault(row, misfit(item.name, f"column {item.name!r} {reason}"))
    table = pa.table(columns, schema=schema)
    if table.nbytes > max_row_bytes:
        table = _without_large_rows(table, max_row_bytes, errors)
    return Block(rows=batch.num_rows, columns=table, positions=positions(position, batch.num_rows), errors=errors)


def misfit(name: str, error: str) -> str:
    """The error of a row whose value doesn't fit; text in another encoding is text all the same."""
    return error if "UTF-8" in error else WrongType(error, name)


def constant_blocks(schema: pa.Schema, constants: Mapping[str, pa.Scalar], position: int, rows: int) -> Iterator[Block]:
    """Rows of a file that has none of the columns."""
    for start in range(0, rows, BLOCK_ROWS):
        count = min(BLOCK_ROWS, rows - start)
        columns = pa.table([_constant(item, constants, count) for item in schema], schema=schema)
        yield Block(rows=count, columns=columns, positions=positions(position + start, count))


def positions(first: int, count: int) -> pa.Array:
    return pa.array(np.arange(first, first + count, dtype=np.int64))


def _constant(item: pa.Field, constants: Mapping[str, pa.Scalar], rows: int) -> pa.Array:
    return pa.repeat(constants.get(item.name, pa.scalar(None, item.type)), rows)


def _without_large_rows(table: pa.Table, max_row_bytes: int, errors: dict[int, str]) -> pa.Table:
    large = np.flatnonzero(row_bytes(table) > max_row_bytes)
    if not len(large):
        return table
    for row in large.tolist():
        errors[row] = f"the row is larger than limits.max_row_bytes ({max_row_bytes})"
    kept = np.arange(table.num_rows)
    return table.take(pa.array(np.ma.masked_array(kept, np.isin(kept, large)), pa.int64()))
