"""Spans of formats that foreign libraries decode, read in a process of their own: a hostile file ends that one, not the run.

Comes in: an open file, a span, and what to read of it. Goes out: the blocks that the format gives, and one block of bad rows
where the process ended, took too long or wanted too much memory. The child has neither storage nor secrets: it asks its
parent for bytes, so that failures of storage stay those of the parent. Knows no format.

Run as a module it is the child.
"""

import atexit
import contextlib
import io
import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any, BinaryIO, cast

import numpy as np
import pyarrow as pa

from pipeline.arrays import holds_dictionary
from pipeline.config import SourceSpec
from pipeline.errors import PipelineError, RunError
from pipeline.machine.child import Child, connect, how_it_ended, limit_memory
from pipeline.sources.columns import Block
from pipeline.sources.formats import registry
from pipeline.sources.formats.form import Needed
from pipeline.work import Span

DEADLINE_S = 60.0
"""The longest that the child may be silent; what it asks for is no silence."""
MEMORY_BYTES = 960 * 2**20
"""The memory that a child may have for its data."""
_MESSAGE_ROWS, _MESSAGE_BYTES, _MESSAGE_BLOCKS = 64, 2**20, 64
"""Small blocks travel together: formats decode few rows at a time, and a file may have a row group for each of its rows. The
first message has so many rows, each further one of a span twice as many: what waits in a child that ends is lost."""
_FEWEST_BYTES = 2**16
"""Smaller pieces are asked for together with what follows them: each question wakes two processes."""
_START_S = 120.0
STARTS = 3
"""A process that ends before it answers for the first time is started so often."""


class Lost(Exception):
    """The process did not read the span to its end; the message says why."""


def blocks(
    opened: BinaryIO, span: Span, schema: pa.Schema, spec: SourceSpec, max_row_bytes: int, needed: Needed
) -> Iterator[Block]:
    """What `registry.blocks` gives, read by a child. Raises Lost where the child is lost, and what `opened` raises."""
    size = opened.seek(0, os.SEEK_END)
    child = _lease()
    if child is None:
        yield from registry.blocks(opened, span, schema, spec, max_row_bytes, needed)
        return
    idle = False
    try:
        # The child needs no way to the storage, and gets none.
        child.connection.send((span, schema, replace(spec, storage_options={}), max_row_bytes, needed, size))
        while True:
            kind, answer = child.receive()
            if kind == "read":
                offset, count = answer
                opened.seek(offset)
                child.connection.send_bytes(opened.read(count))
            elif kind == "blocks":
                goes_on = False
                try:
                    yield from map(_unpacked, answer)
                    goes_on = True
                finally:
                    with contextlib.suppress(
                        OSError
                    ):  # a child that died is noticed when its next answer is looked for
                        child.connection.send(goes_on)
                        idle = not goes_on
            elif kind == "end":
                idle = True
                return
            elif isinstance(answer, PipelineError):
                idle = True
                raise answer
            else:
                idle = True
                raise Lost(str(answer))
    except OSError as error:
        if isinstance(error, BrokenPipeError | ConnectionResetError):
            raise Lost(child.how_it_ended()) from None
        raise
    finally:
        if idle:
            _give_back(child)
        else:
            child.end()


# --- children


class _Reader(Child):
    """A process that runs this module, and the pipe to it."""

    def __init__(self) -> None:
        quiet = {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "1"}
        super().__init__(__name__, subprocess.DEVNULL, quiet)

    def receive(self, within_s: float | None = None) -> tuple[str, Any]:
        """The next message. Raises Lost when the child ended, or was silent for too long."""
        within_s = DEADLINE_S if within_s is None else within_s
        try:
            if self.connection.poll(within_s):
                message: tuple[str, Any] = self.connection.recv()
                return message
        except (EOFError, ConnectionResetError):
            raise Lost(self.how_it_ended()) from None
        raise Lost(f"reading it took more than {within_s:g} s without a row")

    def how_it_ended(self) -> str:
        return f"the process that read it {how_it_ended(self.wait())}"


_idle: list[_Reader] = []
_lock = threading.Lock()
_owner = os.getpid()


def _lease() -> _Reader | None:
    """A child that waits for work; None where this machine starts no processes for us, RunError when none comes up."""
    global _owner
    with _lock:
        if _owner != os.getpid():  # after a fork the children are the parent's
            _idle.clear()
            _owner = os.getpid()
        if _idle:
            return _idle.pop()
    reason = ""
    for _ in range(STARTS):
        try:
            child = _Reader()
        except OSError:  # it is no fault of the file, and reading it here is as good as before there were children
            return None
        try:
            child.receive(_START_S)
        except Lost as lost:
            reason = str(lost)
            child.end()
            continue
        return child
    raise RunError(f"a reader's process of its own doesn't start, {STARTS} times {reason}: is there memory for it?")


def _give_back(child: _Reader) -> None:
    with _lock:
        _idle.append(child)


@atexit.register
def close() -> None:
    """End the children that wait for work."""
    with _lock:
        children, _idle[:] = list(_idle) if _owner == os.getpid() else [], []
    for child in children:
        child.end()


# --- blocks on their way


def _packed(block: Block) -> tuple[Any, ...]:
    if block.columns is None:
        return (None, block.rows, block.positions, dict(block.errors), block.excluded)
    sink = pa.BufferOutputStream()
    # Pickled, a slice would travel with all that it was cut from.
    with pa.ipc.new_stream(sink, block.columns.schema) as writer:
        writer.write_table(block.columns)
    return (sink.getvalue().to_pybytes(), block.rows, block.positions, dict(block.errors), block.excluded)


def _unpacked(packed: tuple[Any, ...]) -> Block:
    raw, rows, positions, errors, excluded = packed
    columns = None if raw is None else pa.ipc.open_stream(raw).read_all()
    return Block(rows=rows, columns=columns, positions=positions, errors=errors, excluded=excluded)


# --- the child


class _Asked(io.RawIOBase):
    """The file as the parent has it open, read by asking."""

    def __init__(self, connection: Connection, size: int) -> None:
        self._connection = connection
        self._size = size
        self._place = 0
        self._held, self._held_from = b"", 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError("no place before the beginning of a file")
        self._place = base + offset
        return self._place

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(0, self._size - self._place)
        count = left if size is None or size < 0 else min(size, left)
        start = self._place - self._held_from
        if not 0 <= start <= len(self._held) - count:
            asked = max(count, min(left, _FEWEST_BYTES))
            self._connection.send(("read", (self._place, asked)))
            self._held, self._held_from, start = self._connection.recv_bytes(), self._place, 0
        data = self._held[start : start + count]
        if count > _FEWEST_BYTES:
            self._held = b""
        self._place += len(data)
        return data

    def readinto(self, buffer: Any, /) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def main(connection: Connection) -> None:
    """Spans, one after the other, until the pipe closes."""
    limit_memory(MEMORY_BYTES)
    connection.send(("ready", None))
    with contextlib.suppress(EOFError):
        while True:
            _answer(connection, *connection.recv())


def _answer(connection: Connection, span: Span, schema: pa.Schema, spec: SourceSpec, *rest: Any) -> None:
    max_row_bytes, needed, size = rest
    opened = cast(BinaryIO, _Asked(connection, size))
    ready: list[Block] = []
    try:
        rows, held, most = 0, 0, _MESSAGE_ROWS
        for block in registry.blocks(opened, span, schema, spec, max_row_bytes, needed):
            ready.append(block)
            rows, held = rows + block.rows, held + (0 if block.columns is None else block.columns.nbytes)
            if rows >= most or held >= _MESSAGE_BYTES or len(ready) >= _MESSAGE_BLOCKS:
                if not _sent(connection, ready):
                    return
                rows, held, most = 0, 0, 2 * most
    except (EOFError, BrokenPipeError):
        raise
    except PipelineError as error:
        last: tuple[str, Any] = ("raised", error)
    except MemoryError:
        last = ("raised", f"it needs more than {MEMORY_BYTES // 2**20} MiB of memory")
    except Exception as error:
        last = ("raised", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
    else:
        last = ("end", None)
    if _sent(connection, ready):
        connection.send(last)


def _sent(connection: Connection, ready: list[Block]) -> bool:
    """Send the blocks, and forget them; whether the parent wants more."""
    if not ready:
        return True
    connection.send(("blocks", [_packed(block) for block in _joined(ready)]))
    ready.clear()
    return bool(connection.recv())


def _joined(blocks: Sequence[Block]) -> Iterator[Block]:
    """The blocks, with those that follow each other and have columns as one: each costs whoever works on it as much as some
    hundred rows do. Dictionaries stay apart, since each block has its own."""
    for has_columns, some in itertools.groupby(blocks, key=lambda block: block.columns is not None):
        group = list(some)
        if not has_columns or len(group) == 1 or any(holds_dictionary(item.type) for item in group[0].columns.schema):
            yield from group
            continue
        firsts = np.cumsum([0, *(block.rows for block in group)]).tolist()
        yield Block(
            rows=firsts[-1],
            columns=pa.concat_tables([block.columns for block in group]).combine_chunks(),
            positions=pa.concat_arrays([block.positions for block in group]),
            errors={
                first + row: error
                for first, block in zip(firsts, group, strict=False)
                for row, error in block.errors.items()
            },
        )


if __name__ == "__main__":
    main(connect(sys.argv[1]))
