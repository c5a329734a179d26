"""Slices flow through worker processes of this machine: some read and write, the others encode.

Tasks, a flow and what workers have to know come in. What the last stage gives goes out. The driver loads no torch and
looks into no slice (handing.py). It gives out pieces of work, counts what workers die of, and starts new ones. A slice that
ended a worker is encoded in a process of its own, as on a cluster.
"""

import contextlib
import math
import time
import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import wait
from typing import Any

import pyarrow as pa

from pipeline.errors import PipelineError, RunError
from pipeline.execution.local import handing
from pipeline.execution.local.handing import Handed, Row
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
LOADING: Work = ("load",)
PRODUCTS = {"OPENBLAS_NUM_THREADS": "1"}
"""An engine on numpy has a thread for each batch, which numpy's own threads would only wait for."""
QUICK_S = 1.0
"""An encoder that takes less for a slice is given the next one before it has answered. It would wait for as long as an
answer and a question take, which is nothing beside a slice of minutes."""
STARVED_S = 1.0
"""Encoders that had nothing to do for so long, while all processes that read were at it, get one more. One takes as long to
start."""
STARTED_S = 3.0
"""A process that reads has started after so many seconds at the latest, though its first slice may take much longer."""
STALLED_TIMEOUTS = 8
"""The flow ends if no answer comes for so many unit_timeout_s. Three rows of a slice that hang one after the other
take seven."""


class _Process:
    """It is a worker process and the work that it was asked to do."""

    def __init__(self, spec: WorkerSpec, flow: Flow, log: WorkerLog) -> None:
        self.worker = Worker(uuid.uuid4().hex, HERE)
        self.child = Child("pipeline.execution.local.process", log.file, PRODUCTS)
        self.asked: deque[tuple[Work, Row | None]] = deque()
        """They are the questions without an answer, each with the slice row that it is about. The process works on the
        oldest."""
        self.reading: _Reading | None = None
        """The process has this task open."""
        self.has_answered, self.created = False, time.monotonic()
        self.since = time.monotonic()
        """Since then it has been at its oldest question."""
        with contextlib.suppress(OSError):  # A process that died is noticed by its closed pipe.
            self.child.connection.send((self.worker.name, spec, flow))

    @property
    def is_at_work(self) -> bool:
        """It has something to do, and has started by now."""
        return bool(self.asked) and (self.has_answered or time.monotonic() > self.created + STARTED_S)

    def ask(self, work: Work, *question: Any, row: Row | None = None) -> None:
        self.asked.append((work, row))
        with contextlib.suppress(OSError):
            handing.send(self.child.connection, question)


class _Reading:
    """It is a task that is being read, and knows which rows of it were given out as slices."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self._handed: list[tuple[int, int]] = []

    def hand_out(self, row: pa.Table) -> None:
        """Note the row, of which the head is enough."""
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
        self._waiting: deque[Row] = deque()
        self._encoded: deque[Row] = deque()
        self._done: deque[Row] = deque()
        self._attempts = Attempts()
        self._log = WorkerLog()
        self._lights: list[_Process] = []
        """They read and write."""
        self._encoders: list[_Process] = []
        self._encode_s = math.inf
        """The last slice was encoded in so many seconds."""
        self._starving, self._starved_s, self._looked = False, 0.0, time.monotonic()
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
                yield handing.opened(self._done.popleft())
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
        return [*self._lights, *self._encoders]

    def _is_busy(self) -> bool:
        waits = self._todo or self._waiting or self._encoded or any(process.reading for process in self._lights)
        return bool(waits) or any(work != LOADING for process in self._processes() for work, _ in process.asked)

    def _unrecorded(self) -> int:
        """Slices that are encoded, or given to an encoder, and not recorded: what a crash can cost."""
        return len(self._encoded) + sum(row is not None for one in self._processes() for _, row in one.asked)

    # --- handing out

    def _hand_out(self) -> None:
        if self._flow.encode is not None:
            self._start_encoders()
            self._feed_encoders()
        if (not self._lights and (self._encoded or self._todo)) or self._needs_another():
            self._lights.append(_Process(self._spec, self._flow, self._log))
        for light in self._lights:
            if not light.asked:
                self._ask_light(light)
        idle = any(not encoder.asked for encoder in self._encoders) and not self._waiting
        self._starving = bool(idle and self._todo and all(light.is_at_work for light in self._lights))

    def _feed_encoders(self) -> None:
        """Give each encoder a slice, and a second one where the next question would come too late."""
        for held in range(TASKS_PER_ENCODER if self._encode_s < QUICK_S else 1):
            for process in self._encoders:
                if not self._waiting or self._unrecorded() >= self._most_unrecorded:
                    return
                # A whole row could fill the pipe, and the process reads from it only when it has answered.
                if len(process.asked) == held and (not held or self._may_queue(process, self._waiting[0])):
                    row = self._waiting.popleft()
                    work = ("encode", slice_row.key_of(handing.head(row)))
                    if not held:
                        process.since = time.monotonic()
                    process.ask(work, "encode", row, self._begin(work, process), row=row)

    def _may_queue(self, process: _Process, row: Row) -> bool:
        is_loading = process.asked[0][0] == LOADING
        return isinstance(row, Handed) and not is_loading

    def _ask_light(self, light: _Process) -> None:
        """Give a process its next work. Writing goes first, because what is recorded is safe."""
        if self._encoded:
            row = self._encoded.popleft()
            work: Work = ("write", slice_row.key_of(handing.head(row)))
            light.ask(work, "write", row, self._begin(work, light), row=row)
        elif not self._wants_slices():
            return
        elif light.reading is not None:
            light.ask(("read", light.reading.task.unit.unit_id), "next")
        elif self._todo:
            light.reading = _Reading(self._todo.popleft())
            self._ask_to_read(light, light.reading)

    def _wants_slices(self) -> bool:
        coming = sum(work[0] == "read" for light in self._lights for work, _ in light.asked)
        return bool(len(self._waiting) + coming < TASKS_PER_ENCODER * self._pools.encoders)

    def _needs_another(self) -> bool:
        """Say whether one more process is to read and write, because encoders have had nothing to do for a second."""
        now = time.monotonic()
        self._starved_s += now - self._looked if self._starving else 0.0
        self._looked = now
        if self._starved_s < STARVED_S or len(self._lights) >= self._pools.tokenizers + self._pools.writers:
            return False
        self._starved_s = 0.0
        return True

    def _ask_to_read(self, light: _Process, reading: _Reading) -> None:
        work = ("read", reading.task.unit.unit_id)
        light.ask(work, "read", reading.rest(), self._begin(work, light))

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
        """Start encoders beside the reader, as many as will have slices by what is known of the tasks, and another one
        when there is more to do than those that exist can take."""
        free = sum(not process.asked or process.asked[0][0] == LOADING for process in self._encoders)
        reads = self._todo or any(light.reading for light in self._lights)
        expected = len(self._waiting) if self._encoders or not reads else max(1, self._slices_to_come())
        for _ in range(min(expected - free, self._pools.encoders - len(self._encoders))):
            process = _Process(self._spec, self._flow, self._log)
            self._encoders.append(process)
            process.ask(LOADING, "load", self._died_loading)

    def _slices_to_come(self) -> int:
        """Count the slices of tasks that nobody reads yet, as far as their rows are known."""
        rows = [task.rows_to_do for task in self._todo]
        return sum(-(-count // self._spec.read.slice_rows) for count in rows if count is not None)

    # --- hearing

    def _hear(self, process: _Process) -> None:
        try:
            kind, value = handing.receive(process.child.connection)
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
        work, _ = process.asked.popleft()
        process.has_answered = True
        if work == LOADING:
            self._died_loading = 0
        elif work[0] == "read":
            self._heard_slice(process, work, value)
        elif work[0] == "encode":
            self._attempts.end(work)
            now = time.monotonic()
            self._encode_s, process.since = now - process.since, now
            (self._encoded if self._flow.write is not None else self._done).append(value)
        else:
            self._attempts.end(work)
            self._done.append(value)

    def _heard_slice(self, light: _Process, work: Work, row: Row | None) -> None:
        """Take a slice row from a process that reads. None ends the task."""
        assert light.reading is not None
        if row is None:
            self._attempts.end(work)
            light.reading = None
            return
        light.reading.hand_out(handing.head(row))
        if handing.head(row).column("refused")[0].is_valid:
            self._done.append(self._refused(handing.opened(row)))
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
        """Replace a process that died. Its work is given out again, with a strike against what it was doing."""
        process.child.end()
        begun = process.asked.popleft() if process.asked else None
        for work, row in reversed(process.asked):  # It never began with these.
            self._attempts.end(work)
            self._waiting.extendleft([row] if row is not None else [])
        if process in self._lights:
            self._bury_light(process, begun)
            return
        self._encoders.remove(process)
        if begun is None:
            return
        work, row = begun
        if work == LOADING:
            self._died_loading += 1
            if self._died_loading > MOST_STRIKES:
                raise RunError("encoders die before they are ready: nothing was published, finished work is kept")
        elif row is not None:
            self._waiting.appendleft(row)

    def _bury_light(self, process: _Process, begun: tuple[Work, Row | None] | None) -> None:
        self._lights.remove(process)
        if begun is not None and begun[1] is not None:
            self._encoded.appendleft(begun[1])
        if process.reading is not None:
            another = _Process(self._spec, self._flow, self._log)
            self._lights.append(another)
            another.reading = process.reading
            self._ask_to_read(another, process.reading)
