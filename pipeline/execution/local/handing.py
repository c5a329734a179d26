"""Slices travel between processes of this machine as memory without a name, and only its handle goes through the pipe.

The sender writes a slice row once, and the process that works on it maps it. The driver in between maps nothing: it holds
the handle, and what it has to know of the slice. Such memory is gone with the last process that has it, however that one
ends. Where the system has none, and for small rows, the row itself goes through the pipe. This file knows no stages.
"""

import os
import sys
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import Any, TypeAlias

import pyarrow as pa

LEAST_BYTES = 16 * 2**10
"""Rows with fewer bytes go through the pipe as they are, since a handle costs as much as a copy of so many bytes."""
_HEAD = ("unit_id", "first_row", "num_rows", "refused")
"""The driver looks at these columns. The others may be too many bytes for a pipe whose other end is busy."""
CAN_HAND = sys.platform == "linux"


class Memory:
    """A handle of memory without a name, which is closed when nobody has this object any more."""

    def __init__(self, handle: int) -> None:
        self.handle = handle
        weakref.finalize(self, os.close, handle)

    @staticmethod
    def of(row: pa.Table) -> "Memory":
        """Write the row. Raises OSError where there is no memory for it."""
        memory = Memory(os.memfd_create("slice", os.MFD_CLOEXEC))
        with pa.OSFile(memory.path, "wb") as file, pa.ipc.new_stream(file, row.schema) as writer:
            writer.write_table(row)
        return memory

    @property
    def path(self) -> str:
        return f"/proc/self/fd/{self.handle}"

    def row(self) -> pa.Table:
        """Map the row. It stays when the handle is closed."""
        with pa.memory_map(self.path) as file:
            return pa.ipc.open_stream(file).read_all()


@dataclass(frozen=True, kw_only=True, eq=False)
class Handed:
    """It is a slice row in the hands of a process that doesn't look into it."""

    head: pa.Table
    """It is the row with nothing but the columns that the driver looks at."""
    memory: Memory


Row: TypeAlias = pa.Table | Handed


@dataclass(frozen=True)
class _Coming:
    """It stands in a message for a row whose handle comes behind it."""

    head: pa.Table


def head(row: Row) -> pa.Table:
    """Return what a process can know of a row without mapping it."""
    return row.head if isinstance(row, Handed) else row


def opened(row: Row) -> pa.Table:
    """Return the whole row."""
    return row.memory.row() if isinstance(row, Handed) else row


def send(connection: Connection, message: tuple[Any, ...]) -> None:
    """Send a message, in which slice rows may stand. Raises OSError where the other process is gone."""
    handed = [_handed(item) if isinstance(item, pa.Table) else item for item in message]
    connection.send(tuple(_Coming(item.head) if isinstance(item, Handed) else item for item in handed))
    for item in handed:
        if isinstance(item, Handed):
            reduction.send_handle(connection, item.memory.handle, None)


def receive(connection: Connection) -> tuple[Any, ...]:
    """Return the next message, with `Handed` in place of large rows. Raises EOFError or OSError where none comes."""
    return tuple(_received(connection, connection.recv()))


def _received(connection: Connection, message: tuple[Any, ...]) -> Iterator[Any]:
    for item in message:
        if isinstance(item, _Coming):
            try:
                yield Handed(head=item.head, memory=Memory(reduction.recv_handle(connection)))
            except RuntimeError as error:  # The sender ended between the message and the handle.
                raise EOFError from error
        else:
            yield item


def _handed(row: pa.Table) -> Row:
    if not CAN_HAND or row.nbytes < LEAST_BYTES:
        return row
    try:
        memory = Memory.of(row)
    except OSError:
        return row
    return Handed(head=row.select([name for name in _HEAD if name in row.column_names]), memory=memory)
