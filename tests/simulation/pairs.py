"""Every stop point of pairs of commands: one is stopped before each of its operations while the other runs whole.

The table is checked where the first one stands still, which is what its death there would leave. Then it goes on, the
table is checked again, and a third command must bring it up to date. A pair begins with one of three tables: `new` has no
version yet, `held` was rolled back, and `old` has versions, trash, dead letters, small parts, and a dead run's staged work.
"""

import copy
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.simulation import commands
from tests.simulation.checks import check_as_fresh, check_table
from tests.simulation.commands import Work
from tests.simulation.histories import check_done, command
from tests.simulation.scheduler import ENDLESS, Process, Turn
from tests.simulation.seams import simulated
from tests.simulation.world import Conditions, World

RUNS = ("embed", "reindex", "reindex --new-model")
PAIRS = (
    *(("new", a, b) for a in (*RUNS, "clean", "purge") for b in (*RUNS, "clean", "purge", "status")),
    *(
        ("held", a, b)
        for a, b in (("release", "rollback"), ("release", "purge"), ("release", "embed"), ("release", "clean"))
    ),
    *(
        ("held", a, b)
        for a, b in (("rollback", "release"), ("purge", "release"), ("clean", "release"), ("reindex", "release"))
    ),
    *(
        ("old", a, b)
        for a in (*RUNS, "embed --retry-failed", "clean", "purge", "rollback", "verify", "status", "read")
        for b in (*RUNS, "embed --retry-failed", "clean", "purge", "rollback", "verify", "status", "read")
    ),
)
"""The table that a pair begins with, who is stopped, and who runs meanwhile."""


def name_of(pair: tuple[str, str, str]) -> str:
    """Such as "old: reindex | clean"."""
    return f"{pair[0]}: {pair[1]} | {pair[2]}"


@dataclass(frozen=True)
class Case:
    table: str
    stopped: str
    other: str
    at: int
    """The operation before which it is stopped, from 0."""
    conditions: Conditions

    def __str__(self) -> str:
        return f"{self.table}: {self.stopped} stopped at {self.at} | {self.other}"


def every_case(
    pair: tuple[str, str, str], conditions: Conditions, models: dict[str, Path], every: int = 1
) -> Iterator[tuple[Case, World]]:
    """Live through each stop point of a pair, or each `every`-th one."""
    beginning = _Beginning(pair[0], conditions, models)
    at = sum(map(ord, "".join(pair))) % every
    while True:
        case = Case(*pair, at, conditions)
        world, operations = beginning.lived(case)
        yield case, world
        if operations <= at:
            return
        at += every


class _Beginning:
    """A table to begin with, of which each case gets a copy."""

    def __init__(self, kind: str, conditions: Conditions, models: dict[str, Path]) -> None:
        self._kind, self._conditions, self._models = kind, conditions, models
        world = self._world = World(1, models, conditions)
        world.corpus.settings["source"]["where"] = None
        world.corpus.settings["table"]["partition_by"] = []
        with simulated(world.scheduler, world.objects, world.files, world.chance):
            self._prepare(world)
        assert not world.violations, world.violations

    def _prepare(self, world: World) -> None:
        if self._kind != "new":
            world.alone("embed", commands.embed(world, "embed"))
            for _ in range(3):
                _edit(world)
                world.alone("reindex", commands.reindex(world, "reindex"))
        if self._kind == "held":
            world.alone("rollback", commands.roll_back(world, "rollback", world.watch.current - 1))
        _edit(world)
        world.together([Process("embed", commands.embed(world, "embed"), dies_at=40)])
        _edit(world)
        world.later(1000)

    def _copy(self, case: Case) -> World:
        world = World(1, self._models, self._conditions)
        begun = self._world
        world.chance = random.Random(str(case))
        world.scheduler.clock.now = begun.scheduler.clock.now
        world.corpus = copy.deepcopy(begun.corpus)
        world.objects.objects = dict(begun.objects.objects)
        world.objects.writes = begun.objects.writes  # No object gets a version that an earlier one had.
        world.files._root = copy.deepcopy(begun.files._root)
        world.watch.versions = dict(begun.watch.versions)
        return world

    def lived(self, case: Case) -> tuple[World, int]:
        """What came of a case, and how many operations the stopped command had."""
        world = self._copy(case)
        with simulated(world.scheduler, world.objects, world.files, world.chance):
            stopped = Process("stopped", _started(world, case.stopped, "stopped"))
            other = Process("other", _after_an_edit(world, case.other))
            turns = [Turn("stopped", case.at), Turn("other", ENDLESS)] if case.at else [Turn("other", ENDLESS)]
            left = [len(turns)]

            def on_turn() -> None:
                left[0] -= 1
                if not left[0]:
                    check_table(world)

            world.together([stopped, other], turns, on_turn)
            check_table(world)
            _go_on(world)
        return world, stopped.operations


def _edit(world: World) -> None:
    world.corpus.edit()
    world.corpus.store(world.objects)


def _started(world: World, name: str, process: str) -> Work:
    """The command, which reads the configuration when it starts."""
    known = sorted(world.watch.versions[world.watch.current].rows) if world.watch.current else world.corpus.ids()
    makers: dict[str, Callable[[], Work]] = {
        "purge": lambda: commands.purge(world, process, known[:1]),
        "rollback": lambda: commands.roll_back(world, process, max(1, world.watch.current - 1)),
        "reindex --new-model": lambda: commands.reindex(world, process, new_model=True, model="B"),
    }
    return lambda: makers.get(name, lambda: command(world, name, process))()()


def _after_an_edit(world: World, name: str) -> Work:
    def work() -> object:
        # Its own chance: the edit is the same whatever the stopped one did before.
        world.corpus.chance = random.Random(name)
        _edit(world)
        return _started(world, name, "other")()

    return work


def _go_on(world: World) -> None:
    """The next run brings the table up to date, whoever died or lost."""
    world.later(400)
    if world.alone("release", commands.release(world, "release")) is None:
        world.violated("a release gave nothing")
    result = world.alone("reindex --new-model", commands.reindex(world, "reindex --new-model", new_model=True))
    if isinstance(result, BaseException):
        world.violated(f"the next run fails: {type(result).__name__}: {result}")
    check_done(world)
    check_table(world)
    check_as_fresh(world)
