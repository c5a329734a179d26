"""Many histories and pairs, on all cores: what came of each, and its report where something was violated."""

import concurrent.futures
import logging
import multiprocessing
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.simulation.histories import STEPS, history
from tests.simulation.pairs import every_case
from tests.simulation.world import Conditions, World


@dataclass(frozen=True, kw_only=True)
class Task:
    """A history, or a pair with all of its stop points."""

    models: dict[str, Path]
    seed: int = 0
    steps: int = STEPS
    pair: tuple[str, str, str] | None = None
    kind: str = "objects"
    every: int = 1
    log: bool = False


@dataclass(kw_only=True)
class Lived:
    """What came of a task."""

    counts: Counter[str] = field(default_factory=Counter)
    report: list[str] = field(default_factory=list)
    """Empty, unless something was violated or everything was to be told."""
    failed: int = 0

    def add(self, name: str, what: str, world: World, *, log: bool = False) -> None:
        self.counts[what] += 1
        self.counts["operations"] += sum(line[:3] not in ("---", "   ") for line in world.scheduler.log)
        self.counts["versions"] += world.watch.current
        if log or world.violations:
            self.report += ["", f"{name} on {world.conditions}", *(world.scheduler.log if log else world.told)]
            self.report += [f"  VIOLATED {violation}" for violation in world.violations[:10]]
        self.failed += bool(world.violations)


def lived(task: Task) -> Lived:
    logging.disable(logging.WARNING)
    out = Lived()
    if task.pair is None:
        out.add(f"seed {task.seed}", "histories", history(task.seed, task.models, task.steps), log=task.log)
    else:
        for case, world in every_case(task.pair, Conditions(kind=task.kind), task.models, task.every):
            if out.failed < 3:
                out.add(str(case), "stop points", world, log=task.log)
        out.counts["pairs"] += 1
    return out


def in_parallel(tasks: Iterable[Task], workers: int) -> Iterator[Lived]:
    if workers == 1:
        yield from map(lived, tasks)
        return
    with concurrent.futures.ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(lived, tasks)
