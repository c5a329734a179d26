"""A store with one table, the corpus that it follows, and what happened to them. Here processes run and are judged.

A command that ends may say so only in one of the ways that the documentation gives; anything else is a violation.
"""

import contextlib
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import CommitConflict, InputError, PipelineError, TableBusy
from tests.simulation.corpus import Corpus
from tests.simulation.file_system import FileSystem
from tests.simulation.object_store import ObjectStore
from tests.simulation.scheduler import Clock, Crashed, Process, Scheduler, Turn
from tests.simulation.watch import Violation, Watch

KINDS = ("objects", "disk", "disk without links")
"""A bucket; a disk; a disk that refuses hard links."""


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What the store is like."""

    kind: str = "objects"
    page: int = 1000
    """Objects to a page of a listing."""
    late_s: float = 0.0
    """A listing of the bucket shows a new object so many seconds late."""


class World:
    def __init__(self, seed: int, models: dict[str, Path], conditions: Conditions) -> None:
        self.chance = random.Random(seed)
        self.conditions = conditions
        self.scheduler = Scheduler(Clock())
        self.objects = ObjectStore(self.scheduler, page=conditions.page, late_s=conditions.late_s)
        self.files = FileSystem(self.scheduler, links=conditions.kind == "disk")
        self.place: ObjectStore | FileSystem = self.objects if conditions.kind == "objects" else self.files
        self.watch = Watch(self.place)
        self.place.watching = self.watch
        self.corpus = Corpus(self.chance, models)
        self.corpus.store(self.objects)
        self.told: list[str] = []
        """What happened, in words."""
        self.violations: list[str] = []
        self.scheduler.jumps_only_unless(self.files.is_written)

    def url(self, process: str) -> str:
        """The table as one process addresses it."""
        return f"memory://{process}/table" if self.conditions.kind == "objects" else f"/sim/{process}/table"

    def say(self, what: str) -> None:
        self.told.append(what)
        self.scheduler.log.append(f"--- {what}")

    def violated(self, what: str) -> None:
        if what not in self.violations:
            self.violations.append(what)

    def later(self, seconds: float) -> None:
        self.scheduler.clock.advance(seconds)
        self.say(f"{seconds:g} s later")

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """What is done in the block leaves no trace in the bucket, its clock and its chances."""
        chance, now, objects = self.chance.getstate(), self.scheduler.clock.now, dict(self.objects.objects)
        writes = self.objects.writes
        try:
            yield
        finally:
            self.chance.setstate(chance)
            self.scheduler.clock.now, self.objects.objects, self.objects.writes = now, objects, writes

    def together(
        self, processes: Sequence[Process], schedule: Iterable[Turn] = (), on_turn: Callable[[], None] = lambda: None
    ) -> None:
        """Run these processes to their ends, and judge how they ended."""
        self.scheduler.run(processes, schedule, on_turn)
        for process in processes:
            self.say(f"{process.name} after {process.operations} operations: {_shown(process.result)}")
            self._judge(process, alone=len(processes) == 1)
        for violation in self.watch.violations:
            self.violated(violation)

    def alone(self, name: str, work: Callable[[], Any]) -> Any:
        """Run a command to its end, with nothing in its way; returns what it returned or raised."""
        process = Process(name, work)
        self.together([process])
        return process.result

    def _judge(self, process: Process, *, alone: bool) -> None:
        result = process.result
        if not isinstance(result, BaseException) or isinstance(result, Crashed):
            return
        text = str(result)
        disturbed = not alone or bool(process.answers) or self.conditions.late_s > 0
        # There the next publisher carries out what a dead one had begun.
        disturbed |= self.conditions.kind == "disk without links" and isinstance(result, CommitConflict)
        if isinstance(result, Violation):
            self.violated(text)
        elif not isinstance(result, PipelineError):
            self.violated(f"{process.name} raised {type(result).__name__}: {text}")
        elif "this is a bug" in text or "damaged" in text:
            self.violated(f"{process.name}: {text}")
        elif not isinstance(result, TableBusy | InputError) and not disturbed:
            self.violated(f"{process.name}, alone and undisturbed: {type(result).__name__}: {text}")


def _shown(result: Any) -> str:
    if isinstance(result, BaseException):
        return f"{type(result).__name__}: {str(result)[:200]}"
    version = getattr(result, "version", None)
    return "done" if version is None else f"version {getattr(version, 'version', version)}"
