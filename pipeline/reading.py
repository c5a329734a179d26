"""A unit of work becomes slices: documents that can be embedded, and dead letters for the rows that can't.

Which rows a unit has, their order and their numbers depend on the files alone, so that rows an earlier run recorded can
be left out. Bad data never raises; SourceChanged and StorageError do.
"""

import bisect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import jsonl, parquet
from pipeline.columns import Block, column_names, row_bytes, to_ids
from pipeline.config import LimitSpec, SourceSpec
from pipeline.schema import DEAD_LETTERS, ID, POSITION, SOURCE, TEXT
from pipeline.storage import check_unchanged, is_remote, pinned
from pipeline.unit import Slice, Span, Unit

SLICE_BYTES = 64 * 2**20
"""Of text and kept columns."""
_FORMATS = {"parquet": parquet, "jsonl": jsonl, "jsonl.gz": jsonl}
"""A format has `blocks` and `READAHEAD_BYTES`."""

Intervals = Sequence[tuple[int, int]]


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """Consecutive rows of a unit, all from one span and all either done or to do."""

    first_row: int
    block: Block
    sizes: np.ndarray[Any, np.dtype[np.int64]]
    span: Span
    source: int

    @property
    def stop_row(self) -> int:
        return self.first_row + self.block.rows

    def rows(self, start: int, stop: int) -> "_Piece":
        return _Piece(
            first_row=self.first_row + start,
            block=self.block.slice(start, stop),
            sizes=self.sizes[start:stop],
            span=self.span,
            source=self.source,
        )


def read_slices(
    unit: Unit,
    schema: pa.Schema,
    spec: SourceSpec,
    keep: Sequence[str],
    limits: LimitSpec,
    slice_rows: int,
    done: Intervals,
) -> Iterator[Slice]:
    """Slices of at most `slice_rows` rows and 64 MiB, of the rows that no interval [first, stop) of `done` holds.

    The last one says that it is the last; where nothing else is left to say, it is empty. `schema` is the survey's,
    `keep` names kept and partition columns. Raises SourceChanged and StorageError.
    """
    wanted = pa.schema([schema.field(name) for name in column_names(spec.id, spec.text_columns, keep)])
    stop_row = 0
    pending: list[_Piece] = []
    for todo, stop_row in _pieces(unit, wanted, spec, limits, done):  # noqa: B007 - the last one counts the unit
        rest = todo
        while rest is not None:
            fitting = _fitting_rows(rest, pending, slice_rows)
            if fitting:
                pending.append(rest.rows(0, fitting))
                rest = rest.rows(fitting, rest.block.rows) if fitting < rest.block.rows else None
            else:
                yield _slice(unit, pending[0].first_row, pending, wanted, spec, keep, last=False)
                pending = []
    if pending and pending[-1].stop_row < stop_row:
        yield _slice(unit, pending[0].first_row, pending, wanted, spec, keep, last=False)
        pending = []
    first_row = pending[0].first_row if pending else stop_row
    yield _slice(unit, first_row, pending, wanted, spec, keep, last=True)


# --- rows of the sources


def _pieces(
    unit: Unit, wanted: pa.Schema, spec: SourceSpec, limits: LimitSpec, done: Intervals
) -> Iterator[tuple[_Piece | None, int]]:
    """The rows to do, and each time how many rows of the unit have gone by."""
    row = 0
    for span, source in zip(unit.spans, unit.sources, strict=True):
        for block in _blocks(span, wanted, spec, limits, _needed(done, row)):
            stop = row + block.rows
            for start, end in _gaps(done, row, stop):
                part = block.slice(start - row, end - row)
                sizes = row_bytes(part.columns, limits.max_row_bytes)
                yield _Piece(first_row=start, block=part, sizes=sizes, span=span, source=source), end
            row = stop
            yield None, row


def _blocks(
    span: Span, wanted: pa.Schema, spec: SourceSpec, limits: LimitSpec, needed: Callable[[int, int], bool]
) -> Iterator[Block]:
    form = _FORMATS[span.file.format]
    with pinned(span.file, spec.storage_options, form.READAHEAD_BYTES) as opened:
        for block in form.blocks(opened, span, wanted, limits.max_row_bytes, needed):
            if not is_remote(span.file.path):
                # Before anybody records what was read, not only at the end of the file.
                check_unchanged(span.file, spec.storage_options)
            yield block


def _needed(done: Intervals, base: int) -> Callable[[int, int], bool]:
    """Whether any of `count` rows from `first` on, counted from `base`, is to do."""
    return lambda first, count: next(_gaps(done, base + first, base + first + count), None) is not None


def _gaps(done: Intervals, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """The parts of [start, stop) outside the sorted, disjoint intervals."""
    index = bisect.bisect_right(done, start, key=lambda interval: interval[1])
    while start < stop:
        first, end = done[index] if index < len(done) else (stop, stop)
        if start < min(first, stop):
            yield start, min(first, stop)
        start, index = max(start, end), index + 1


# --- slices


def _fitting_rows(piece: _Piece, pending: Sequence[_Piece], slice_rows: int) -> int:
    """How many of its first rows the pending slice can take; 0 if it must be finished first."""
    if pending and pending[-1].stop_row != piece.first_row:
        return 0
    rows = sum(earlier.block.rows for earlier in pending)
    left_bytes = SLICE_BYTES - sum(int(earlier.sizes.sum()) for earlier in pending)
    fitting = int(np.searchsorted(np.cumsum(piece.sizes), left_bytes, side="right"))
    return min(slice_rows - rows, fitting if pending else max(1, fitting))


def _slice(
    unit: Unit,
    first_row: int,
    pieces: Sequence[_Piece],
    wanted: pa.Schema,
    spec: SourceSpec,
    keep: Sequence[str],
    *,
    last: bool,
) -> Slice:
    sorted_out = [_sort_out(piece, spec, keep) for piece in pieces]
    nothing = _documents_schema(wanted, keep).empty_table()
    return Slice(
        unit_id=unit.unit_id,
        first_row=first_row,
        num_rows=sum(piece.block.rows for piece in pieces),
        last=last,
        documents=pa.concat_tables([nothing, *(documents for documents, _ in sorted_out)]).combine_chunks(),
        dead_letters=pa.concat_tables(
            [DEAD_LETTERS.empty_table(), *(letters for _, letters in sorted_out)]
        ).combine_chunks(),
    )


def _documents_schema(wanted: pa.Schema, keep: Sequence[str]) -> pa.Schema:
    carried = [wanted.field(name) for name in keep]
    return pa.schema(
        [
            pa.field(ID, pa.string()),
            pa.field(TEXT, pa.large_string()),
            *carried,
            pa.field(SOURCE, pa.int32()),
            pa.field(POSITION, pa.int64()),
        ]
    )


def _sort_out(piece: _Piece, spec: SourceSpec, keep: Sequence[str]) -> tuple[pa.Table, pa.Table]:
    """(documents, dead letters): every row of the piece is in one of them."""
    block, rows = piece.block, piece.block.rows
    columns = block.columns
    ids = _ids(block, piece.span.file.path, spec)
    texts = _texts(columns, spec)
    errors = dict(block.errors)
    for row in np.flatnonzero(ids.is_null()).tolist():
        errors.setdefault(row, f"the id (column {spec.id!r}) is null")
    for row in np.flatnonzero(texts.is_null()).tolist():
        errors.setdefault(row, f"the text (column {', '.join(map(repr, spec.text_columns))}) is null")
    sources = pa.repeat(pa.scalar(piece.source, pa.int32()), rows)
    schema = _documents_schema(columns.schema, keep)
    carried = [columns.column(name) for name in keep]
    documents = pa.table([ids, texts, *carried, sources, block.positions], schema=schema)
    if not errors:
        return documents, DEAD_LETTERS.empty_table()
    bad = pa.array(sorted(errors), pa.int64())
    letters = pa.table(
        [
            ids.take(bad),
            sources.take(bad),
            pa.repeat(piece.span.file.path, len(bad)),
            block.positions.take(bad),
            pa.repeat("read", len(bad)),
            pa.array([errors[row] for row in bad.to_pylist()], pa.string()),
            texts.take(bad),
        ],
        schema=DEAD_LETTERS,
    )
    good = np.ones(rows, bool)
    good[bad.to_numpy()] = False
    return documents.filter(pa.array(good)), letters


def _ids(block: Block, path: str, spec: SourceSpec) -> pa.Array:
    if spec.id is not None:
        return _array(to_ids(block.columns.column(spec.id)), pa.string())
    made = [None if position is None else f"{path}:{position}" for position in block.positions.to_pylist()]
    return pa.array(made, pa.string())


def _texts(columns: pa.Table, spec: SourceSpec) -> pa.Array:
    """Text columns joined by a line feed, nulls skipped; null where all are."""
    parts = [_array(columns.column(name), pa.large_string()) for name in spec.text_columns]
    if len(parts) == 1:
        return parts[0]
    some = np.logical_or.reduce([part.is_valid().to_numpy(zero_copy_only=False) for part in parts])
    # Arrow's join drops rows in which all values are null, so it gets none of them.
    filled = [part.filter(pa.array(some)) for part in parts]
    joined = pc.binary_join_element_wise(*filled, pa.scalar("\n", pa.large_string()), null_handling="skip")
    return joined.take(pa.array(np.cumsum(some) - 1, pa.int64(), mask=~some))


def _array(values: pa.ChunkedArray | pa.Array, kind: pa.DataType) -> pa.Array:
    combined = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    return combined.cast(kind)
