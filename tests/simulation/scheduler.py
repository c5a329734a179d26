"""Processes take turns at the operations of a store: a schedule says who goes on, and for how many operations.

Each process is a thread that works only while it is its turn. It enters every operation here, which is where it waits, dies,
or hears that its answer will be lost. The order of all operations follows from the schedule alone.
"""

import itertools
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

ENDLESS = 10**9
STUCK_S = 60.0
"""A process that has its turn and enters nothing for so long waits for another one, which can't come."""
STEP_S = 0.25
"""An operation takes so long by the store's clock."""


class Crashed(BaseException):
    """The process is dead. Nothing catches it, and whatever its `finally` blocks try does nothing any more."""

    def __init__(self, name: str, *, now: bool) -> None:
        super().__init__(name)
        self.now = now
        """It dies amid this very operation, and was not dead before."""


class Answer(Enum):
    """What becomes of an operation."""

    GIVEN = "given"
    LOST = "lost"
    """It is done, and the process hears of an error."""
    REFUSED = "refused"
    """It is not done, and the process hears of an error."""


@dataclass
class Clock:
    """The store's clock, in Unix seconds; it stamps all files."""

    now: float = 1_700_000_000.0

    def advance(self, seconds: float) -> None:
        self.now += seconds


@dataclass(frozen=True)
class Turn:
    """What happens next: a process goes on for some operations, or the clock jumps."""

    process: str
    """Empty for a jump of the clock."""
    operations: int = ENDLESS
    seconds: float = 0.0


@dataclass(eq=False)
class Process:
    name: str
    work: Callable[[], Any]
    dies_at: int | None = None
    """The number of the operation at which it dies, from 1."""
    answers: Mapping[int, Answer] = field(default_factory=dict)
    """What becomes of its operations, by number, where they are not simply done."""
    operations: int = 0
    left: int = 0
    dead: bool = False
    ended: bool = False
    result: Any = None
    """What it returned or raised."""
    resume: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    meanwhile: Callable[[], bool] | None = None
    """What another thread of it does between two of its operations, until it says that it is done."""


class Scheduler:
    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.processes: dict[str, Process] = {}
        self.log: list[str] = []
        self._back = threading.Semaphore(0)
        self._is_busy: Callable[[], bool] = lambda: False

    def jumps_only_unless(self, busy: Callable[[], bool]) -> None:
        """Let the clock make no leap while `busy` says that a write is under way, which takes no longer than a minute."""
        self._is_busy = busy

    def enter(self, name: str, what: str, path: str) -> Answer:
        """Begin an operation. Raises Crashed; whoever is no process of a schedule is let through."""
        process = self.processes.get(name)
        if process is None:
            self.clock.advance(STEP_S / 100)
            return Answer.GIVEN
        self._do_meanwhile(process)
        if process.dead:
            raise Crashed(name, now=False)
        if process.left == 0:
            self._back.release()
            process.resume.acquire()
            if process.dead:
                raise Crashed(name, now=False)
        process.left -= 1
        process.operations += 1
        self.clock.advance(STEP_S)
        dies = process.operations == process.dies_at
        answer = process.answers.get(process.operations, Answer.GIVEN)
        note = " DIES" if dies else "" if answer is Answer.GIVEN else f" {answer.value}"
        self.log.append(f"{name:>10} {process.operations:4} {what:8} {path}{note}")
        if dies:
            process.dead = True
            raise Crashed(name, now=True)
        return answer

    def _do_meanwhile(self, process: Process) -> None:
        waiting, process.meanwhile = process.meanwhile, None  # its own operations come by here, too
        if waiting is not None and not process.dead and not waiting():
            process.meanwhile = waiting

    def run(
        self, processes: Iterable[Process], schedule: Iterable[Turn], on_turn: Callable[[], None] = lambda: None
    ) -> None:
        """Let all of them come to their end: by the schedule, then one after the other. `on_turn` is called between turns."""
        self.processes = {process.name: process for process in processes}
        threads = [
            threading.Thread(target=self._live, args=(process,), name=process.name, daemon=True)
            for process in self.processes.values()
        ]
        for thread in threads:
            thread.start()
        for turn in itertools.chain(schedule, map(Turn, self.processes)):
            if not turn.process:
                self._jump(turn.seconds)
            elif turn.process in self.processes and not self.processes[turn.process].ended:
                self._give(self.processes[turn.process], turn.operations)
            on_turn()
        for thread in threads:
            thread.join(STUCK_S)
        self.processes = {}

    def cut_power(self) -> None:
        """All of them die where they stand."""
        for process in self.processes.values():
            process.dead = True

    def _jump(self, seconds: float) -> None:
        self.clock.advance(min(seconds, 60.0) if self._is_busy() else seconds)
        self.log.append(f"{'clock':>10}      {seconds:g} s later")

    def _give(self, process: Process, operations: int) -> None:
        process.left = operations
        process.resume.release()
        if not self._back.acquire(timeout=STUCK_S):
            raise TimeoutError(f"{process.name} is stuck after {self.log[-1:]}")

    def _live(self, process: Process) -> None:
        process.resume.acquire()
        try:
            process.result = process.work()
        except BaseException as error:
            process.result = error
        process.ended = True
        self._back.release()
