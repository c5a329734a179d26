"""Arrow IPC, as a stream (what `datasets` saves) or as a file (Feather V2): its types, and its rows by record batch.

A broken or truncated file is the rows before and one bad row for the rest; only storage can fail here.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import pyarrow as pa

from pipeline.config import SourceSpec
from pipeline.sources.columns import Block, RestLost, failed_block, partition_values, skipped_block
from pipeline.sources.formats import batch as batches
from pipeline.sources.formats.content import HEAD_BYTES, lfs_pointer
from pipeline.sources.formats.form import Form, Look, Needed, unreadable
from pipeline.work import SourceFile, Span

_MAGIC = b"ARROW1"
_MAGIC_BYTES = 8
_CONTINUATION = b"\xff\xff\xff\xff"
_END_OF_STREAM = _CONTINUATION + b"\0\0\0\0"
_DATA_ERRORS = (pa.ArrowException, OSError, UnicodeError, OverflowError)
"""What pyarrow raises for broken data; failures of storage come through as errors of ours."""


class _Broken(Exception):
    """The rest of the file can't be read; the message says why."""


def look(opened: BinaryIO, file: SourceFile, columns: Sequence[str], spec: SourceSpec) -> Look:
    try:
        schema = _schema(opened)
        places = {name: schema.get_all_field_indices(name) for name in columns}
        return Look(
            names=schema.names,
            types={name: schema.field(found[0]).type for name, found in places.items() if found},
            duplicates=tuple(name for name, found in places.items() if len(found) > 1),
        )
    except _DATA_ERRORS as error:
        return unreadable(_reason(opened, error))


def _reason(opened: BinaryIO, error: BaseException) -> str:
    opened.seek(0)
    return lfs_pointer(opened.read(HEAD_BYTES)) or f"the file is no readable Arrow file: {_short(error)}"


def _schema(opened: BinaryIO) -> pa.Schema:
    """The schema in the footer of a file, and in the first message of a stream or of a file whose footer is lost: what
    stands between the first bytes and the first message differs from writer to writer."""
    is_file = _is_file(opened)
    if is_file:
        with contextlib.suppress(*_DATA_ERRORS):
            schema = pa.ipc.open_file(_source(opened)).schema
            _check_names(schema)
            return schema
    opened.seek(_MAGIC_BYTES if is_file else 0)
    with pa.ipc.open_stream(_source(opened)) as reader:
        _check_names(reader.schema)
        return reader.schema


def _is_file(opened: BinaryIO) -> bool:
    opened.seek(0)
    return opened.read(len(_MAGIC)) == _MAGIC


def _source(opened: BinaryIO) -> pa.PythonFile:
    return pa.PythonFile(_Clamped(opened), mode="r")


class _Clamped:
    """Reads no further than the file goes: a broken length must not make Python allocate as much at once."""

    closed = False

    def __init__(self, opened: BinaryIO) -> None:
        self._opened = opened
        place = opened.tell()
        self._size = opened.seek(0, 2)
        opened.seek(place)
        self.tell, self.seek = opened.tell, opened.seek

    def read(self, size: int) -> bytes:
        return self._opened.read(max(0, min(size, self._size - self._opened.tell())))

    def close(self) -> None:
        """The file is its opener's to close."""


# --- rows


def blocks(
    opened: BinaryIO, span: Span, schema: pa.Schema, spec: SourceSpec, max_row_bytes: int, needed: Needed
) -> Iterator[Block]:
    """All rows in order. A record batch is held whole, as the format has it; its rows leave in small blocks."""
    constants = partition_values(span.file, schema)
    first = 0
    try:
        for batch in _record_batches(opened, schema.names):
            rows = batch.num_rows
            if not needed(first, rows):
                yield skipped_block(rows)
            elif not batch.num_columns:
                yield from batches.constant_blocks(schema, constants, first, rows)
            else:
                yield from _blocks(batch, first, schema, constants, max_row_bytes)
            first += rows
    except _Broken as broken:
        yield failed_block(schema, batches.positions(first, 1), RestLost(broken))


def _blocks(
    batch: pa.RecordBatch, first: int, schema: pa.Schema, constants: Any, max_row_bytes: int
) -> Iterator[Block]:
    error = _bad_column(batch)  # first: even the sizes of values are read through their offsets
    rows = batch.num_rows
    step = batches.block_rows(batch.nbytes, rows)
    for start in range(0, rows, step):
        count = min(step, rows - start)
        if error is not None:
            yield failed_block(schema, batches.positions(first + start, count), error)
        else:
            yield batches.block(batch.slice(start, count), first + start, schema, constants, max_row_bytes)


def _bad_column(batch: pa.RecordBatch) -> str | None:
    """What makes all rows of the batch bad. Raises _Broken for a structure that must not be touched.

    Nothing in the format vouches for offsets and indices; reading values through bad ones is reading anywhere.
    """
    for name, values in zip(batch.schema.names, batch.columns, strict=True):
        try:
            values.validate(full=True)
        except pa.ArrowException as error:
            if "UTF8" not in str(error):
                raise _Broken(f"the file can't be read from here on: column {name!r}: {_short(error)}") from None
            # Offsets of plain strings are checked before the characters: their rows can be told apart.
            if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
                return f"column {name!r} is not valid UTF-8 somewhere in this record batch"
    return None


def _record_batches(opened: BinaryIO, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The record batches, with the columns that have these names.

    Raises _Broken after the last one that can be read, if it isn't the last of all.
    """
    try:
        present = _schema(opened)
        places = [found[0] for name in names if (found := present.get_all_field_indices(name))]
        options = pa.ipc.IpcReadOptions(included_fields=places, use_threads=False)
        if not _is_file(opened):
            opened.seek(0)
            yield from _stream(opened, options, places)
            _check_end(opened)
            return
        try:
            reader = pa.ipc.open_file(_source(opened), options=options)
        except _DATA_ERRORS as error:
            # Without its footer a file still is a stream.
            opened.seek(_MAGIC_BYTES)
            yield from _stream(opened, options, places)
            raise _Broken(f"the file's footer can't be read: {_short(error)}") from None
        for index in range(reader.num_record_batches):
            yield _projected(reader.get_batch(index), places)
    except _DATA_ERRORS as error:
        opened.seek(0)
        pointer = lfs_pointer(opened.read(HEAD_BYTES))
        raise _Broken(pointer or f"the file can't be read from here on: {_short(error)}") from None


def _stream(opened: BinaryIO, options: Any, places: Sequence[int]) -> Iterator[pa.RecordBatch]:
    with pa.ipc.open_stream(_source(opened), options=options) as reader:
        while True:
            try:
                batch = reader.read_next_batch()
            except StopIteration:
                return
            yield _projected(batch, places)


def _projected(batch: pa.RecordBatch, places: Sequence[int]) -> pa.RecordBatch:
    # No included fields means all of them to Arrow.
    projected = batch if places else batch.select([])
    _check_names(projected.schema)
    return projected


def _check_names(kind: Any) -> None:
    """Raises UnicodeDecodeError here for broken names of columns and fields, and not wherever they are used."""
    fields = kind if isinstance(kind, pa.Schema) else [kind.field(index) for index in range(kind.num_fields)]
    for item in fields:
        _ = item.name
        _check_names(item.type)


def _check_end(opened: BinaryIO) -> None:
    """pyarrow takes the end of a truncated stream for its end, and stops at the mark of the end whatever follows."""
    stop = opened.tell()
    more = opened.read(1)
    opened.seek(0)
    marked = opened.read(len(_CONTINUATION)) == _CONTINUATION  # not so before Arrow 0.15
    opened.seek(max(0, stop - len(_END_OF_STREAM)))
    if more:
        raise _Broken(f"the stream ends here, but data follows (byte {stop})")
    if marked and opened.read(len(_END_OF_STREAM)) != _END_OF_STREAM:
        raise _Broken("the stream is truncated: the file ends without the mark of its end")


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


FORM = Form(blocks=blocks, look=look, suffixes=(".arrow", ".feather"), packable=False, every=True, isolated=True)
