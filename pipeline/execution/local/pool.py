"""Slices flow through worker processes of this machine: one reads and writes, the others encode.

Tasks, a flow and what workers have to know come in. What the last stage gives goes out. The driver loads no torch. It
gives out one piece of work at a time, counts what workers die of, and starts new ones. A slice that ended a worker is
encoded in a process of its own, as on a cluster.
"""

import contextlib
import time
import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import wait

import pyarrow as pa

from pipeline.errors import PipelineError, RunError
from pipeline.execution.local.log import WorkerLog
from pipeline.execution.pools import TASKS_PER_ENCODER, Pools
from pipeline.execution.strikes import Attempts, Work, Worker
from pipeline.execution.worker import MOST_STRIKES
from pipeline.machine.child import Child
from pipeline.stages import slice_row
from pipeline.stages.flow import Flow, OnProgress
from pipeline.stages.worker_spec import WorkerSpec
from pipeline.work import Task

HERE = "this machine"
STALLED_TIMEOUTS = 8
"""The flow ends if no answer comes for so many unit_timeout_s. Three rows of a slice that hang one after the other
take seven."""


class _Process:
    """It is a worker process and the work that it is doing."""

    def __init__(self, spec: WorkerSpec, flow: Flow, log: WorkerLog) -> None:
        self.worker = Worker(uuid.uuid4().hex, HERE)
        self.child = Child("pipeline.execution.local.process", log.file)
        self.work: Work | None = None
        """It is the last question without an answer. It is None for an idle process."""
        self.row: pa.Table | None = None
        """The process was asked about this slice row."""
        with contextlib.suppress(OSError):  # A process that died is noticed by its closed pipe.
            self.child.connection.send((self.worker.name, spec, flow))

    def ask(self, work: Work, *question: object, row: pa.Table | None = None) -> None:
        self.work, self.row = work, row
        with contextlib.suppress(OSError):
            self.child.connection.send(question)


class _Reading:
    """It is a task that is being read, and knows which rows of it were given out as slices."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self._handed: list[tuple[int, int]] = []

    def hand_out(self, row: pa.Table) -> None:
        first = row.column("first_row")[0].as_py()
        if first is not None:
            self._handed.append((first, first + (row.column("num_rows")[0].as_py() or 0)))

    def rest(self) -> Task:
        """Return the task without the rows that were given out, for a reader that takes over."""
        return replace(self.task, done=tuple(sorted([*self.task.done, *self._handed])))


class LocalFlow:
    """It is one run of a flow. Leaving the block ends its processes."""

    def __init__(
        self, tasks: Sequence[Task], flow: Flow, spec: WorkerSpec, pools: Pools, on_progress: OnProgress | None
    ) -> None:
        self._flow, self._spec, self._pools, self._on_progress = flow, spec, pools, on_progress
        self._todo = deque(tasks)
        self._reading: _Reading | None = None
        self._waiting: deque[pa.Table] = deque()
        self._encoded: deque[pa.Table] = deque()
        self._done: deque[pa.Table] = deque()
        self._attempts = Attempts()
        self._log = WorkerLog()
        self._reader: _Process | None = None
        self._encoders: list[_Process] = []
        self._died_loading = 0
        self._most_unrecorded = pools.most_unrecorded

    def __enter__(self) -> "LocalFlow":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for process in self._processes():
            process.child.end()
        self._log.close(keep=kind is not None and issubclass(kind, RunError))

    def results(self) -> Iterator[pa.Table]:
        """Yield what the last stage gives for each slice, in no particular order."""
        heard = time.monotonic()
        while True:
            self._hand_out()
            while self._done:
                yield self._done.popleft()
            if not self._is_busy():
                return
            ready = wait([process.child.connection for process in self._processes()], timeout=1.0)
            for process in [one for one in self._processes() if one.child.connection in ready]:
                heard = time.monotonic()
                self._hear(process)
            if time.monotonic() - heard > STALLED_TIMEOUTS * self._spec.limits.unit_timeout_s:
                raise RunError(
                    "no worker of this machine answers any more: nothing was published, finished work is kept"
                )

    def _processes(self) -> list[_Process]:
        return [*([self._reader] if self._reader else []), *self._encoders]

    def _is_busy(self) -> bool:
        waits = self._todo or self._reading or self._waiting or self._encoded
        return bool(waits) or any(process.work and process.work[0] != "load" for process in self._processes())

    def _unrecorded(self) -> int:
        """Slices that are encoded, or are being encoded, and not recorded: what a crash can cost."""
        return len(self._encoded) + sum(bool(process.work) and process.row is not None for process in self._processes())

    # --- handing out

    def _hand_out(self) -> None:
        if self._flow.encode is not None:
            self._start_encoders()
        for process in self._encoders:
            if process.work is None and self._waiting and self._unrecorded() < self._most_unrecorded:
                row = self._waiting.popleft()
                work = ("encode", slice_row.key_of(row))
                process.ask(work, "encode", row, self._begin(work, process), row=row)
        reads = bool(self._todo or self._reading) and len(self._waiting) < TASKS_PER_ENCODER * self._pools.encoders
        if not reads and not self._encoded:
            return
        if self._reader is None:
            self._reader = _Process(self._spec, self._flow, self._log)
        if self._reader.work is None:
            self._ask_reader(self._reader)

    def _ask_reader(self, reader: _Process) -> None:
        """Give the reader its next work. Writing goes first, because what is recorded is safe."""
        if self._encoded:
            row = self._encoded.popleft()
            work: Work = ("write", slice_row.key_of(row))
            reader.ask(work, "write", row, self._begin(work, reader), row=row)
        elif self._reading is not None:
            reader.ask(("read", self._reading.task.unit.unit_id), "next")
        else:
            self._reading = _Reading(self._todo.popleft())
            self._ask_to_read(reader, self._reading)

    def _ask_to_read(self, reader: _Process, reading: _Reading) -> None:
        work = ("read", reading.task.unit.unit_id)
        reader.ask(work, "read", reading.rest(), self._begin(work, reader))

    def _begin(self, work: Work, process: _Process) -> int:
        """Return the strikes against the work that the process begins now. Raises RunError where not even a refusal
        came back."""
        strikes = self._attempts.begin(work, process.worker, {HERE})
        if strikes > MOST_STRIKES:
            raise RunError(
                f"{strikes} workers of this machine died before they could answer: nothing was published, finished work is "
                f"kept; {self._log.where}"
            )
        return strikes

    def _start_encoders(self) -> None:
        """Start the first encoder beside the reader, and another one when there is more to do than those that exist
        can take."""
        free = sum(process.work is None or process.work[0] == "load" for process in self._encoders)
        expected = len(self._waiting) if self._encoders or not (self._todo or self._reading) else 1
        for _ in range(min(expected - free, self._pools.encoders - len(self._encoders))):
            process = _Process(self._spec, self._flow, self._log)
            self._encoders.append(process)
            process.ask(("load",), "load", self._died_loading)

    # --- hearing

    def _hear(self, process: _Process) -> None:
        try:
            kind, value = process.child.connection.recv()
        except (EOFError, OSError):
            self._bury(process)
            return
        if kind == "progress":
            if self._on_progress is not None:
                self._on_progress(*value)
            return
        if kind == "error":
            raise (
                value
                if isinstance(value, PipelineError)
                else RunError(
                    f"a worker failed: {type(value).__name__}: {value}; nothing was published, finished work is kept"
                )
            )
        work, process.work, process.row = process.work, None, None
        assert work is not None
        if work[0] == "load":
            self._died_loading = 0
        elif work[0] == "read":
            self._heard_slice(work, value)
        elif work[0] == "encode":
            self._attempts.end(work)
            (self._encoded if self._flow.write is not None else self._done).append(value)
        else:
            self._attempts.end(work)
            self._done.append(value)

    def _heard_slice(self, work: Work, row: pa.Table | None) -> None:
        """Take a slice row from the reader. None ends the task."""
        assert self._reading is not None
        if row is None:
            self._attempts.end(work)
            self._reading = None
            return
        self._reading.hand_out(row)
        if row.column("refused")[0].is_valid:
            self._done.append(self._refused(row))
        else:
            (self._waiting if self._flow.encode is not None else self._done).append(row)

    def _refused(self, row: pa.Table) -> pa.Table:
        """Return what the last stage says of a slice row that the first one refused."""
        if self._flow.write is not None:
            return slice_row.refused_report(row)
        if self._flow.encode is not None:
            return self._flow.refuse(slice_row.key_of(row)[0], row.column("refused")[0].as_py())
        return row

    def _bury(self, process: _Process) -> None:
        """Replace a process that died. Its work is given out again, with a strike against it."""
        process.child.end()
        work, row = process.work, process.row
        if process is self._reader:
            self._reader = None
            if row is not None:
                self._encoded.appendleft(row)
            if self._reading is not None:
                self._reader = _Process(self._spec, self._flow, self._log)
                self._ask_to_read(self._reader, self._reading)
            return
        self._encoders.remove(process)
        if work == ("load",):
            self._died_loading += 1
            if self._died_loading > MOST_STRIKES:
                raise RunError("encoders die before they are ready: nothing was published, finished work is kept")
        elif row is not None:
            self._waiting.appendleft(row)
