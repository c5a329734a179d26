"""The seams at which a simulation takes hold of the program: its storage, its clock, its random names, and its threads.

Nothing else of the program is replaced. What the tiny model computes is remembered, since it is what costs time.
"""

import contextlib
import functools
import random
import secrets
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from pipeline.encoder.encoder import Encoder, build_encoder
from pipeline.encoder.tokenizer import Tokenizer
from pipeline.model import digest
from pipeline.model.folder import EncoderSpec
from pipeline.storage import disk, retry, stores
from pipeline.table import lease, materialise, publication, readiness, record, status
from pipeline.table.lease import Lease
from pipeline.table.operations import compact, merge_rows
from tests import inline
from tests.simulation.file_system import FileSystem
from tests.simulation.object_store import ObjectStore
from tests.simulation.scheduler import Scheduler

MANY_SMALL = 3
"""So many small parts are merged, so that tables of a few rows have merges."""


@contextlib.contextmanager
def simulated(scheduler: Scheduler, objects: ObjectStore, files: FileSystem, chance: random.Random) -> Iterator[None]:
    """The program works on these while the block runs."""
    clock = scheduler.clock
    waiting = {"clock": lambda: clock.now, "sleep": clock.advance}
    threads = mock.Mock(wraps=threading, Thread=functools.partial(_LeaseThread, scheduler))
    with contextlib.ExitStack() as stack:
        put = functools.partial(_put, stack)
        stack.enter_context(mock.patch.dict(stores._STORES, memory=objects.connect))
        stack.enter_context(mock.patch.dict(retry.persistently.__kwdefaults__, waiting))
        put(disk, "os", files)
        stack.enter_context(mock.patch.object(disk, "open", files.open_file, create=True))
        put(readiness, "os", files)
        put(lease, "threading", threads)
        put(lease, "time", mock.Mock(monotonic=lambda: clock.now, sleep=clock.advance))
        put(publication, "SETTLE_S", 0.0)
        # One thread each: the order of operations is the scheduler's alone.
        for module, name in ((materialise, "COPIERS"), (record, "READERS"), (status, "READERS"), (compact, "READERS")):
            put(module, name, 1)
        put(compact, "REWRITERS", 1)
        put(merge_rows, "MANY_SMALL", MANY_SMALL)
        put(uuid, "uuid4", lambda: uuid.UUID(int=chance.getrandbits(128), version=4))
        put(secrets, "token_hex", lambda size=32: f"{chance.getrandbits(8 * size):0{2 * size}x}")
        put(random, "uniform", lambda low, high: high)
        put(digest, "_load_cache", dict)
        put(digest, "_save_cache", lambda entries: None)
        put(inline, "built", _built)
        yield


def _put(stack: contextlib.ExitStack, module: Any, name: str, value: Any) -> None:
    stack.enter_context(mock.patch.object(module, name, value))


class _LeaseThread:
    """The thread that renews a lease: its work is done between two operations of the process, when it is time."""

    def __init__(
        self, scheduler: Scheduler, target: Callable[..., None], args: tuple[Lease, threading.Event], **_: Any
    ) -> None:
        self._scheduler, (self._lease, self._ended) = scheduler, args
        self._due = 0.0

    def start(self) -> None:
        self._due = self._scheduler.clock.now + self._lease.seconds / lease.RENEWALS
        self._wait()

    def join(self) -> None:
        pass

    def _wait(self) -> None:
        # memory://<process>/.. and /sim/<process>/..
        process = self._scheduler.processes.get(self._lease.table.url.split("/")[2])
        if process is not None:
            process.meanwhile = self._look

    def _look(self) -> bool:
        """Whether there is nothing more to do."""
        if self._ended.is_set():
            return True
        # A thread would wait while the holder renews by itself; this one is the holder's own.
        if self._scheduler.clock.now >= self._due and not self._lease.going_on.locked():
            self._due = self._scheduler.clock.now + self._lease.seconds / lease.RENEWALS
            with lease._told("can't renew"):
                return not self._lease.renew()
        return False


class _Remembering:
    """The engine, which computes a row of tokens only once."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.name, self.dim = engine.name, engine.dim
        self._known: dict[bytes, NDArray[np.float32]] = {}

    def encode(self, ids: NDArray[np.int32], lengths: NDArray[np.int32]) -> NDArray[np.float32]:
        out = []
        for row, length in zip(ids, lengths.tolist(), strict=True):
            key = row[:length].tobytes()
            if key not in self._known:
                self._known[key] = self._engine.encode(row[None, :length], np.array([length], np.int32))[0]
            out.append(self._known[key])
        return np.stack(out)


@functools.lru_cache(maxsize=8)
def _built(encoder: EncoderSpec) -> tuple[Encoder, Tokenizer]:
    made = build_encoder(encoder, "cpu", 1)
    return Encoder(_Remembering(made.engine), made.budget_tokens), Tokenizer(encoder, 1)
