"""A unit of work becomes slices: documents that can be embedded, and dead letters for the rows that can't.

Which rows a unit has, their order and their numbers depend on the files alone, so that rows an earlier run recorded can
be left out. Bad data never raises; SourceChanged and StorageError do.
"""

import bisect
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import LimitSpec, SourceSpec
from pipeline.errors import one_line
from pipeline.schema import DEAD_LETTERS, ID, POSITION, SOURCE, TEXT
from pipeline.sources import filter
from pipeline.sources.columns import (
    Block,
    RestLost,
    Unread,
    WrongType,
    column_names,
    folder_misfits,
    join_ids,
    row_bytes,
    to_ids,
)
from pipeline.sources.span_reader import span_blocks
from pipeline.work import NO_PLACE, Slice, Span, Unfit, Unit, Unreadable

SLICE_BYTES = 64 * 2**20
"""A slice holds at most so many bytes of text and kept columns."""
SPARSE_ROWS = 256
"""A slice covers at most so many times its rows, however few of them `where` lets through: what was read is recorded."""

_REASON_LENGTH = 300

Intervals = Sequence[tuple[int, int]]
Needed = Callable[[int, int], bool]
_Numbers = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """Consecutive rows of a unit, all from one span and all to do, and those of them that `where` lets through."""

    first_row: int
    num_rows: int
    block: Block | None
    """The rows let through; None if there are none."""
    places: _Numbers
    """Where each of these stands among the piece's rows."""
    sizes: _Numbers
    """Bytes of each of these."""
    span: Span
    source: int
    span_row: int
    """The place of its first row in the span."""

    @property
    def stop_row(self) -> int:
        return self.first_row + self.num_rows

    @property
    def let_through(self) -> int:
        return len(self.places)

    def split(self, count: int) -> tuple["_Piece", "_Piece | None"]:
        """The piece that ends before the row let through after `count` of them, and the rest."""
        if self.block is None or count >= self.let_through:
            return self, None
        at = int(self.places[count])
        head = replace(
            self,
            num_rows=at,
            block=self.block.slice(0, count),
            places=self.places[:count],
            sizes=self.sizes[:count],
        )
        rest = replace(
            self,
            first_row=self.first_row + at,
            num_rows=self.num_rows - at,
            span_row=self.span_row + at,
            block=self.block.slice(count, self.let_through),
            places=self.places[count:] - at,
            sizes=self.sizes[count:],
        )
        return head, rest


@dataclass(frozen=True, kw_only=True)
class SliceSpec:
    """How the rows of a unit are read, and how large a slice of them may be."""

    source: SourceSpec
    schema: pa.Schema
    """The columns of the source, with the types that their values take."""
    carried: Sequence[str]
    """The kept and partition columns, which go into the documents as they are."""
    partition_by: Sequence[str] = ()
    """The carried columns whose values name folders of the table."""
    limits: LimitSpec
    rows: int
    """A slice has at most so many rows."""
    bytes: int = SLICE_BYTES
    """A slice has at most so many bytes of text and carried columns, unless it has a single row."""

    @property
    def columns(self) -> pa.Schema:
        """The columns that are read from the files."""
        return _read_columns(self.schema, self.source, self.carried)


def read_slices(unit: Unit, spec: SliceSpec, done: Intervals = ()) -> Iterator[Slice]:
    """The slices of a unit, of the rows that no interval [first, stop) of `done` holds.

    The last one says that it is the last; where nothing else is left to say, it is empty. Raises SourceChanged and
    StorageError.
    """
    pending = _Pending(0)
    for todo, stop_row in _pieces(unit, spec, done):
        rest = todo
        while rest is not None:
            if not pending.num_rows:
                pending = _Pending(rest.first_row)
            fitting = pending.fitting(rest, spec.rows, spec.bytes)
            if fitting is not None:
                head, rest = rest.split(fitting)
                pending.add(head)
            else:
                yield _slice(unit, pending, spec, last=False)
                pending = _Pending(pending.stop_row)
        if pending.stop_row < stop_row:  # rows that an earlier run recorded
            if pending.num_rows:
                yield _slice(unit, pending, spec, last=False)
            pending = _Pending(stop_row)
    yield _slice(unit, pending, spec, last=True)


class _Pending:
    """The slice that is being filled: rows [first_row, stop_row) of the unit."""

    def __init__(self, first_row: int) -> None:
        self.first_row = self.stop_row = first_row
        self.pieces: list[_Piece] = []
        """The pieces that have rows let through."""
        self.rows = self.bytes = 0
        """The rows let through, and their bytes."""

    @property
    def num_rows(self) -> int:
        return self.stop_row - self.first_row

    def add(self, piece: _Piece) -> None:
        self.stop_row = piece.stop_row
        if piece.let_through:
            self.pieces.append(piece)
            self.rows += piece.let_through
            self.bytes += int(piece.sizes.sum())

    def fitting(self, piece: _Piece, slice_rows: int, slice_bytes: int) -> int | None:
        """How many of its rows let through can be added; None if the slice must be finished first."""
        if self.stop_row != piece.first_row or self.num_rows >= SPARSE_ROWS * slice_rows:
            return None
        left = int(np.searchsorted(np.cumsum(piece.sizes), slice_bytes - self.bytes, side="right"))
        fitting = min(slice_rows - self.rows, left)
        if fitting or not piece.let_through:
            return fitting
        return None if self.rows else 1


def first_spans(
    groups: Sequence[tuple[Span, ...]], schema: pa.Schema, spec: SourceSpec, keep: Sequence[str], limits: LimitSpec
) -> list[tuple[Span, ...]]:
    """The spans that hold the first `spec.limit` rows that pass `spec.where`; the last one is cut to the row.

    Reads as far as that where the files don't say how many rows they have.
    """
    if spec.limit is None:
        return list(groups)
    left = spec.limit
    columns = _read_columns(schema, spec, keep)
    taken: dict[Span, Span] = {}
    for span in sorted((span for group in groups for span in group), key=lambda span: (span.file.path, span.start)):
        if not left:
            break
        taken[span], matching = _first_rows(span, left, columns, spec, limits)
        left -= matching
    chosen = [tuple(taken[span] for span in group if span in taken) for group in groups]
    return [group for group in chosen if group]


def _first_rows(span: Span, count: int, columns: pa.Schema, spec: SourceSpec, limits: LimitSpec) -> tuple[Span, int]:
    """The span, cut after the row that is the `count`th to pass `where`, and how many of its rows pass."""
    chosen = spec.where is not None or bool(span.file.logged and span.file.logged.deletes)
    if not chosen and span.rows is not None:
        return (span, span.rows) if span.rows <= count else (replace(span, take=count, rows=count), count)
    rows = matching = 0
    for block in span_blocks(span, columns, spec, limits, functools.partial(_always, chosen)):
        passing = _let_through(block, spec) if chosen else np.arange(block.rows)
        if matching + len(passing) > count:
            take = rows + int(passing[count - matching])
            return replace(span, take=take, rows=take), count
        rows, matching = rows + block.rows, matching + len(passing)
    return replace(span, rows=rows), matching


def _read_columns(schema: pa.Schema, source: SourceSpec, carried: Sequence[str]) -> pa.Schema:
    return pa.schema([schema.field(name) for name in column_names(source, carried)])


# --- rows of the sources


def _pieces(unit: Unit, spec: SliceSpec, done: Intervals) -> Iterator[tuple[_Piece | None, int]]:
    """The rows to do, and each time how many rows of the unit have gone by."""
    row = 0
    columns = spec.columns
    for span, source in zip(unit.spans, unit.sources, strict=True):
        only, span_start = _only(unit, source), row
        for block in span_blocks(span, columns, spec.source, spec.limits, _needed(done, row)):
            stop = row + block.rows
            for start, end in _gaps(done, row, stop):
                part = block.slice(start - row, end - row) if block.columns is not None else None
                yield _piece(part, (start, end), span_start, span, source, spec.source, only), end
            row = stop
            yield None, row


def _piece(
    block: Block | None,
    rows: tuple[int, int],
    span_start: int,
    span: Span,
    source: int,
    spec: SourceSpec,
    only: pa.Array | None,
) -> _Piece:
    """The rows [first, stop) of the unit, whose span begins at row `span_start`. `block` is None where `where` rules out
    all of them unseen."""
    places = _let_through(block, spec, only) if block is not None else np.zeros(0, np.int64)
    if block is not None and len(places) < block.rows:
        block = _taken(block, places) if len(places) else None
    sizes = row_bytes(block.columns) if block is not None else np.zeros(0, np.int64)
    return _Piece(
        first_row=rows[0],
        num_rows=rows[1] - rows[0],
        block=block,
        places=places,
        sizes=sizes,
        span=span,
        source=source,
        span_row=rows[0] - span_start,
    )


def _taken(block: Block, places: _Numbers) -> Block:
    rows = pa.array(places)
    return Block(
        rows=len(places),
        columns=block.columns.take(rows),
        positions=block.positions.take(rows),
        errors={new: block.errors[old] for new, old in enumerate(places.tolist()) if old in block.errors},
    )


def _only(unit: Unit, source: int) -> pa.Array | None:
    """The positions in a source that the unit is about; None for all."""
    if unit.only is None:
        return None
    return pa.array([position for number, position in unit.only if number == source], pa.int64())


def _let_through(block: Block, spec: SourceSpec, only: pa.Array | None = None) -> _Numbers:
    """The rows for which `where` holds, and bad ones: nobody knows whether it would hold for them. Of these those at the
    positions `only`, and none that a lakehouse table's log deletes."""
    if block.excluded:
        return np.zeros(0, np.int64)
    passing = np.ones(block.rows, bool)
    if spec.where is not None:
        passing = filter.matches(block.columns, spec.where)
        passing[list(block.errors)] = True
    if only is not None:
        passing &= pc.is_in(pc.fill_null(block.positions, NO_PLACE), only).to_numpy(zero_copy_only=False)
    if block.deleted is not None:
        passing &= ~block.deleted
    return np.flatnonzero(passing)


def _needed(done: Intervals, base: int) -> Needed:
    """Whether any of `count` rows from `first` on, counted from `base`, is to do; other processes can be asked too."""
    return functools.partial(_is_needed, done, base)


def _is_needed(done: Intervals, base: int, first: int, count: int) -> bool:
    return next(_gaps(done, base + first, base + first + count), None) is not None


def _always(answer: bool, first: int, count: int) -> bool:
    return answer


def _gaps(done: Intervals, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """The parts of [start, stop) outside the sorted, disjoint intervals."""
    index = bisect.bisect_right(done, start, key=lambda interval: interval[1])
    while start < stop:
        first, end = done[index] if index < len(done) else (stop, stop)
        if start < min(first, stop):
            yield start, min(first, stop)
        start, index = max(start, end), index + 1


# --- slices


def _slice(unit: Unit, pending: _Pending, spec: SliceSpec, *, last: bool) -> Slice:
    blocks = [(piece, piece.block) for piece in pending.pieces if piece.block is not None]
    sorted_out = [_sort_out(piece, block, spec) for piece, block in blocks]
    nothing = _documents_schema(spec.columns, spec.carried).empty_table()
    documents = pa.concat_tables([nothing, *(documents for documents, _ in sorted_out)])
    dead_letters = pa.concat_tables([DEAD_LETTERS.empty_table(), *(letters for _, letters in sorted_out)])
    return Slice(
        unit_id=unit.unit_id,
        first_row=pending.first_row,
        num_rows=pending.num_rows,
        skipped=pending.num_rows - documents.num_rows - dead_letters.num_rows,
        broken=any(isinstance(error, RestLost) for _, block in blocks for error in block.errors.values()),
        unread={
            piece.source: _unreadable(piece, place, error)
            for piece, block in blocks
            for place, error in block.errors.items()
            if isinstance(error, Unread)
        },
        unfit=_unfit(blocks, spec.source),
        last=last,
        documents=documents.combine_chunks(),
        dead_letters=dead_letters.combine_chunks(),
    )


def _unfit(blocks: Sequence[tuple[_Piece, Block]], spec: SourceSpec) -> Unfit | None:
    """The rows that don't fit types which planning found; those that `source.schema` asks for are meant so."""
    found = [
        (piece, block, row, error)
        for piece, block in blocks
        for row, error in sorted(block.errors.items())
        if isinstance(error, WrongType) and error.column not in spec.schema
    ]
    if not found:
        return None
    piece, block, row, error = found[0]
    at = f"{piece.span.file.path!r} at {block.positions[row].as_py()}"
    return Unfit(rows=len(found), column=error.column, example=one_line(f"{at}: {error}", _REASON_LENGTH))


def _unreadable(piece: _Piece, place: int, error: Unread) -> Unreadable:
    """`place` is that of the bad row among the rows let through."""
    read = piece.span_row + int(piece.places[place]) if isinstance(error, RestLost) else None
    return Unreadable(reason=one_line(error, _REASON_LENGTH), rows_read=read)


def _documents_schema(columns: pa.Schema, carried: Sequence[str]) -> pa.Schema:
    return pa.schema(
        [
            pa.field(ID, pa.string()),
            pa.field(TEXT, pa.large_string()),
            *(columns.field(name) for name in carried),
            pa.field(SOURCE, pa.int32()),
            pa.field(POSITION, pa.int64()),
        ]
    )


def _sort_out(piece: _Piece, block: Block, spec: SliceSpec) -> tuple[pa.Table, pa.Table]:
    """(documents, dead letters): every row of the block is in one of them, unless its text is null and may be."""
    source, columns, rows = spec.source, block.columns, block.rows
    ids = _ids(block, piece.span.file.name, source)
    texts = _texts(columns, source)
    errors = dict(block.errors)
    skipped = set(np.flatnonzero(texts.is_null()).tolist() if source.on_null == "skip" else ()) - errors.keys()
    for row in np.flatnonzero(ids.is_null()).tolist():
        errors.setdefault(row, f"the id (column {_quoted(source.id_columns)}) is null")
    for row in np.flatnonzero(texts.is_null()).tolist():
        errors.setdefault(row, f"the text (column {_quoted(source.text_columns)}) is null")
    for name in spec.partition_by:
        for row, reason in folder_misfits(name, columns.column(name)).items():
            errors.setdefault(row, f"the partition column {name!r} {reason}")
    sources = pa.repeat(pa.scalar(piece.source, pa.int32()), rows)
    schema = _documents_schema(columns.schema, spec.carried)
    carried = [columns.column(name) for name in spec.carried]
    documents = pa.table([ids, texts, *carried, sources, block.positions], schema=schema)
    if not errors:
        return documents, DEAD_LETTERS.empty_table()
    bad = pa.array(sorted(errors.keys() - skipped), pa.int64())
    letters = pa.table(
        [
            ids.take(bad),
            sources.take(bad),
            pa.repeat(piece.span.file.path, len(bad)),
            block.positions.take(bad),
            pa.repeat("read", len(bad)),
            pa.array([one_line(errors[row]) for row in bad.to_pylist()], pa.string()),
            texts.take(bad),
        ],
        schema=DEAD_LETTERS,
    )
    good = np.ones(rows, bool)
    good[list(errors)] = False
    return documents.filter(pa.array(good)), letters


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))


def _ids(block: Block, file: str, spec: SourceSpec) -> pa.Array:
    if spec.id_columns:
        return join_ids([_array(to_ids(block.columns.column(name)), pa.string()) for name in spec.id_columns])
    made = [None if position is None else f"{file}:{position}" for position in block.positions.to_pylist()]
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
