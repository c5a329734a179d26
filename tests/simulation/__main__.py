"""Live through random histories, and through every stop point of pairs of commands; exit code 1 if anything was violated.

python -m tests.simulation --histories 1000 --seed 1           histories 1 to 1000
python -m tests.simulation --histories 1 --seed 7 --log        one of them, with each operation
python -m tests.simulation --pairs objects --every 1           every stop point of all pairs, in a bucket
python -m tests.simulation --pairs disk --every 5 --only "old: reindex | clean"     of one pair, on a disk
"""

import argparse
import concurrent.futures
import logging
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.simulation.histories import STEPS, history
from tests.simulation.pairs import PAIRS, every_case, name_of
from tests.simulation.world import KINDS, Conditions, World
from tests.tiny import build_tiny_model


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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--histories", type=int, default=0, metavar="N")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="the first history's")
    parser.add_argument("--steps", type=int, default=STEPS, metavar="N", help="of each history")
    parser.add_argument(
        "--pairs", choices=KINDS, action="append", default=[], help="all pairs of commands on such a store"
    )
    parser.add_argument("--every", type=int, default=1, metavar="N", help="each N-th stop point of a pair")
    parser.add_argument(
        "--only", metavar="PAIR", help='pairs whose name has this in it, such as "old: reindex | clean"'
    )
    parser.add_argument("--share", default="0/1", metavar="I/N", help="each N-th pair from the I-th on")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), metavar="N", help="processes")
    parser.add_argument("--log", action="store_true", help="print each operation")
    parser.add_argument("--most", type=int, default=5, metavar="N", help="end after so many violations")
    arguments = parser.parse_args()
    started, failed = time.monotonic(), 0
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        models = {name: build_tiny_model(Path(folder) / name, seed=seed) for seed, name in enumerate("AB")}
        for done in in_parallel(_tasks(arguments, models), arguments.workers):
            counts += done.counts
            failed += done.failed
            if done.report:
                print("\n".join(done.report), flush=True)
            if failed >= arguments.most:
                break
    told = ", ".join(f"{count:,} {name}" for name, count in counts.items())
    print(f"{told} in {time.monotonic() - started:.0f} s: {failed} with violations", flush=True)
    return 1 if failed else 0


def _tasks(arguments: argparse.Namespace, models: dict[str, Path]) -> list[Task]:
    seeds = range(arguments.seed, arguments.seed + arguments.histories)
    tasks = [Task(models=models, seed=seed, steps=arguments.steps, log=arguments.log) for seed in seeds]
    first, step = map(int, arguments.share.split("/"))
    pairs = [pair for pair in PAIRS if (arguments.only or "") in name_of(pair)][first::step]
    return tasks + [
        Task(models=models, pair=pair, kind=kind, every=arguments.every, log=arguments.log)
        for kind in arguments.pairs
        for pair in pairs
    ]


if __name__ == "__main__":
    sys.exit(main())
