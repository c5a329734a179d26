"""A slice travels from stage to stage as a one-row Arrow table.

This file says what stands in its cells, and what the driver is told of it. What the next stage needs travels as Arrow
IPC in `large_binary` cells, which Ray neither opens nor splits. The file knows no files, no model and no Ray.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import schema
from pipeline.errors import one_line
from pipeline.table.record import Effort, unread_from_json, unread_to_json
from pipeline.work import Unfit, Unreadable

FLOW = pa.schema(
    [
        pa.field("unit_id", pa.string()),
        pa.field("first_row", pa.int64()),
        pa.field("num_rows", pa.int64()),
        pa.field("skipped", pa.int64()),
        pa.field("broken", pa.bool_()),
        pa.field("last", pa.bool_()),
        pa.field("sources", pa.list_(pa.int32())),
        pa.field("paths", pa.list_(pa.string())),
        pa.field("documents", pa.large_binary()),
        pa.field("chunks", pa.large_binary()),
        pa.field("tokens", pa.large_binary()),
        pa.field("vectors", pa.large_binary()),
        pa.field("bad_vectors", pa.int64()),
        pa.field("dead_letters", pa.large_binary()),
        pa.field("effort", pa.string()),
        pa.field("encoder", pa.string()),
        pa.field("engine", pa.string()),
        pa.field("encode_start", pa.float64()),
        pa.field("encode_stop", pa.float64()),
        pa.field("refused", pa.string()),
        pa.field("texts", pa.bool_()),
        pa.field("unread", pa.string()),
        pa.field("unfit", pa.string()),
        pa.field("told", pa.string()),
    ]
)
"""It travels between stages, with one row per slice.

`texts` says that the slice is of a unit of that kind. `refused` says why a unit, or the whole run, can't go on.
`encoder`, `engine` and the Unix times say who encoded it, with what, and when. `vectors` are the table's codes, the
shortest form they have. `unread` names the sources that can't be read to their end, and `unfit` tells of rows that are
of another type than their columns, both as JSON. `told` is what a person should be told of the tokenizer.
"""

REPORT = pa.schema(
    [
        pa.field("unit_id", pa.string()),
        pa.field("first_row", pa.int64()),
        pa.field("num_rows", pa.int64()),
        pa.field("failed", pa.int64()),
        pa.field("last", pa.bool_()),
        pa.field("effort", pa.string()),
        pa.field("encoder", pa.string()),
        pa.field("engine", pa.string()),
        pa.field("encode_start", pa.float64()),
        pa.field("encode_stop", pa.float64()),
        pa.field("refused", pa.string()),
        pa.field("unread", pa.string()),
        pa.field("unfit", pa.string()),
        pa.field("told", pa.string()),
    ]
)
"""The write stage tells this to the driver for each slice."""

SOURCE_CHANGED = "source changed: "
"""A refusal begins so if another plan can mend it."""


def key_of(row: pa.Table) -> tuple[str, int]:
    """Return (unit id, first row), by which a slice is known."""
    return row.column("unit_id")[0].as_py(), row.column("first_row")[0].as_py()


def refuse(unit_id: str, reason: str) -> pa.Table:
    """Return the FLOW row that ends a run with this reason."""
    return flow_row(unit_id=unit_id, refused=reason)


def refused_report(row: pa.Table) -> pa.Table:
    """Return the REPORT row of a slice row that was refused."""
    return pa.Table.from_pylist([{name: row.column(name)[0].as_py() for name in ("unit_id", "refused")}], REPORT)


def dead_letters_of(documents: pa.Table, failed: Mapping[int, str], stage: str, paths: Mapping[int, str]) -> pa.Table:
    """Return DEAD_LETTERS for the failed documents of a table."""
    rows = (
        documents.select([schema.ID, schema.SOURCE, schema.POSITION, schema.TEXT])
        .take(pa.array(sorted(failed), pa.int64()))
        .to_pylist()
    )
    reasons = (one_line(failed[index]) for index in sorted(failed))
    return pa.Table.from_pylist(
        [
            row | {"path": paths[row[schema.SOURCE]], "stage": stage, "error": reason}
            for row, reason in zip(rows, reasons, strict=True)
        ],
        schema.DEAD_LETTERS,
    )


def without(num_rows: int, failed: Mapping[int, str]) -> np.ndarray[Any, Any]:
    """Return the indexes of the rows that didn't fail."""
    good = np.ones(num_rows, bool)
    good[list(failed)] = False
    return np.flatnonzero(good)


def to_ipc(table: pa.Table) -> pa.Buffer:
    """Return the table as Arrow IPC. Its size is counted first, since a stream that grows copies itself again and again."""
    counted = pa.MockOutputStream()
    _write_ipc(table, counted)
    written = pa.allocate_buffer(counted.size())
    _write_ipc(table, pa.FixedSizeBufferWriter(written))
    return written


def _write_ipc(table: pa.Table, sink: pa.NativeFile) -> None:
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


def from_cell(row: pa.Table, name: str) -> pa.Table:
    """Return the Arrow table in a cell, without a copy."""
    return pa.ipc.open_stream(buffer(row, name)).read_all()


def buffer(row: pa.Table, name: str) -> pa.Buffer:
    return row.column(name)[0].as_buffer()


def cell(buffer: pa.Buffer) -> pa.Array:
    """Return a one-row large_binary array around a buffer, without a copy."""
    offsets = pa.py_buffer(np.array([0, buffer.size], np.int64))
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, buffer])


def flow_row(**values: Any) -> pa.Table:
    columns: Sequence[pa.Array] = [
        cell(values[name]) if isinstance(values.get(name), pa.Buffer) else pa.array([values.get(name)], kind)
        for name, kind in zip(FLOW.names, FLOW.types, strict=True)
    ]
    return pa.table(columns, schema=FLOW)


def unread_cell(unread: Mapping[int, Unreadable]) -> str | None:
    """Return what `unread` holds of a slice. Most slices have nothing there."""
    return json.dumps(unread_to_json(unread)) if unread else None


def unread_of(value: str | None) -> dict[int, Unreadable]:
    """Return the unreadable sources by number, of a cell that `unread_cell` made."""
    return unread_from_json(json.loads(value)) if value else {}


def unfit_cell(unfit: Unfit | None) -> str | None:
    """Return what `unfit` holds of a slice."""
    return json.dumps(asdict(unfit)) if unfit is not None else None


def unfit_of(value: str | None) -> Unfit | None:
    """Return what `unfit_cell` made a cell of."""
    return Unfit(**json.loads(value)) if value else None


def effort_to_json(effort: Effort) -> str:
    return json.dumps(asdict(effort))


def effort_of(row: pa.Table) -> Effort:
    return Effort(**json.loads(row.column("effort")[0].as_py()))
