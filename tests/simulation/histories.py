"""Random histories: commands, edits, changes of the configuration, deaths, lost answers and leaps of the clock.

A seed decides their order. Every step is checked, and in the end the table must be able to go on.
"""

from collections.abc import Callable
from pathlib import Path

from pipeline.errors import InputError, TableBusy
from pipeline.storage import Folder
from pipeline.table import layout, snapshot
from tests.simulation import checks, commands
from tests.simulation.checks import CHECKER, check_as_fresh, check_table
from tests.simulation.commands import Work
from tests.simulation.scheduler import Answer, Crashed, Process, Turn
from tests.simulation.seams import simulated
from tests.simulation.watch import TABLE
from tests.simulation.world import KINDS, Conditions, World

DAY_S = 86_400.0
STEPS = 7
LONGEST = 150
"""Few commands have more operations than this on a store."""
PUBLISHING = ("embed", "embed --retry-failed", "reindex", "reindex --new-model")


def history(seed: int, models: dict[str, Path], steps: int = STEPS) -> World:
    """Live through a history; what was violated stands in the world that is returned."""
    world = World(seed, models, _conditions(seed))
    with simulated(world.scheduler, world.objects, world.files, world.chance):
        story = _Story(world)
        for number in range(steps):
            story.step(first=number == 0)
            check_table(world)
            story.check_erased()
            if world.violations:
                return world
        recover(world)
        story.check_erased()
    return world


def _conditions(seed: int) -> Conditions:
    kind = KINDS[(0, 1, 0, 1, 0, 1, 0, 2)[seed % 8]]
    return Conditions(kind=kind, page=(1000, 3)[seed // 8 % 2], late_s=(0.0, 0.0, 0.0, 2.0)[seed // 16 % 4])


class _Story:
    def __init__(self, world: World) -> None:
        self._world = world
        self._erased: set[str] = set()
        """Ids of which a purge said that nothing is left."""

    def step(self, *, first: bool) -> None:
        world, chance = self._world, self._world.chance
        if not first:
            self._edit()
        draw = chance.random()
        if draw < 0.25 and not first:
            self._together()
        else:
            name = "embed" if first else self._choose()
            process = Process(name, self._work(name, name))
            if chance.random() < 0.35:
                process.dies_at = chance.randint(1, LONGEST)
            elif chance.random() < 0.2:
                process.answers = self._faults()
            world.together([process])
            self._judge_alone(process)

    def _edit(self) -> None:
        world, chance = self._world, self._world.chance
        if chance.random() < 0.7:
            world.say(f"edit: {world.corpus.edit()}")
        if chance.random() < 0.2:
            world.say(f"configure: {world.corpus.configure()}")
        world.corpus.store(world.objects)
        if chance.random() < 0.3:
            world.later(chance.choice([60, 400, 700, DAY_S / 2, 1.2 * DAY_S, 8 * DAY_S]))

    def _choose(self) -> str:
        names = {
            "embed": 4, "reindex": 6, "embed --retry-failed": 1, "reindex --new-model": 1.5, "purge": 1.2, "rollback": 1,
            "release": 0.7, "clean": 1, "clean --older-than 7": 0.3, "verify": 0.3, "status": 0.2, "read": 0.2,
        }  # fmt: skip
        return self._world.chance.choices(list(names), list(names.values()))[0]

    def _work(self, name: str, process: str) -> Work:
        world, chance = self._world, self._world.chance
        if name == "purge":
            known = {row.partition("#")[0] for version in world.watch.versions.values() for row in version.rows}
            ids = sorted(known | set(world.corpus.ids()))
            chosen = chance.sample(ids, min(len(ids), chance.randint(1, 2))) or ["nobody"]
            world.say(f"{process} {', '.join(chosen)}")
            self._pending = chosen
            return commands.purge(world, process, chosen)
        if name == "rollback":
            number = max(1, world.watch.current - chance.choice([1, 1, 2, 3]))
            world.say(f"{process} {number}")
            return commands.roll_back(world, process, number)
        return command(world, name, process)

    def _faults(self) -> dict[int, Answer]:
        """A few answers, or all for a while: what a store's library gives up on."""
        chance = self._world.chance
        answer = chance.choice([Answer.LOST, Answer.REFUSED])
        first = chance.randint(1, LONGEST)
        return dict.fromkeys(range(first, first + chance.choice([1, 1, 2, 300])), answer)

    def _together(self) -> None:
        world, chance = self._world, self._world.chance
        names = [f"{self._choose()} ({letter})" for letter in "ABC"[: chance.choice([2, 2, 3])]]
        processes = [Process(name, self._work(name.rpartition(" ")[0], name)) for name in names]
        for process in processes:
            if chance.random() < 0.25:
                process.dies_at = chance.randint(1, LONGEST)
            elif chance.random() < 0.1:
                process.answers = self._faults()
        schedule = [
            Turn("", seconds=chance.choice([60.0, 400.0, 3600.0]))
            if chance.random() < 0.1
            else Turn(chance.choice(names), chance.choice([1, 2, 5, 10, 20, 40]))
            for _ in range(chance.randint(2, 25))
        ]
        if chance.random() < 0.3:
            processes.append(Process("edit", self._edit_source))
            schedule.insert(chance.randint(0, len(schedule)), Turn("edit"))
        world.together(processes, schedule, self._power(len(schedule)))

    def _edit_source(self) -> None:
        """Under the hands of those who read it."""
        self._world.say(f"edit: {self._world.corpus.edit()}")
        self._world.corpus.store(self._world.objects)

    def _power(self, turns: int) -> Callable[[], None]:
        """On a disk the power may fail at one of the turns."""
        world, chance = self._world, self._world.chance
        if world.place is not world.files or chance.random() > 0.2:
            return lambda: None
        left = [chance.randint(1, turns)]

        def on_turn() -> None:
            left[0] -= 1
            if not left[0]:
                world.say("the power fails")
                world.scheduler.cut_power()
                world.files.cut_power(chance)
                world.watch.after_a_power_cut()

        return on_turn

    # --- what a command promised

    def _judge_alone(self, process: Process) -> None:
        world, name, result = self._world, process.name, process.result
        disturbed = bool(process.answers) or world.conditions.late_s > 0
        if name == "purge" and not isinstance(result, BaseException) and not result.left:
            self._erased |= set(self._pending)
        if name == "purge" and isinstance(result, InputError) and not disturbed:
            self._erased |= set(self._pending)
        if name in PUBLISHING and not isinstance(result, BaseException) and not world.conditions.late_s:
            check_done(world)
            check_as_fresh(world)

    def check_erased(self) -> None:
        """What was erased stays so, but for the lists of changes that tell of it."""
        world = self._world
        for path in checks.traces(world, self._erased, world.watch.versions) if self._erased else ():
            world.violated(f"{path} tells of an erased row again")


def command(world: World, name: str, process: str) -> Work:
    """The work of a command without arguments of its own, by the name that a history tells."""
    makers: dict[str, Callable[[], Work]] = {
        "embed": lambda: commands.embed(world, process),
        "embed --retry-failed": lambda: commands.embed(world, process, retry_failed=True),
        "reindex": lambda: commands.reindex(world, process),
        "reindex --new-model": lambda: commands.reindex(world, process, new_model=True),
        "release": lambda: commands.release(world, process),
        "clean": lambda: commands.clean(world, process),
        "clean --older-than 7": lambda: commands.clean(world, process, older_than_days=7.0),
        "verify": lambda: commands.verify(world, process),
        "status": lambda: commands.status(world, process),
        "read": lambda: commands.read(world, process),
    }
    return makers[name]()


def check_done(world: World) -> None:
    """When a command that publishes has ended by itself, data/ has the files of the current version and nothing else."""
    table = Folder(world.url(CHECKER))
    current = snapshot.current(table)
    files, parts = sorted(info.path for info in table.list(layout.DATA)), sorted(part.path for part in current.parts)
    if files != parts:
        world.violated(f"data/ has {files}, version {current.version} names {parts}")
    if current.version and table.size(layout.done(current.version)) is None:
        world.violated(f"version {current.version} is not materialised")


def recover(world: World) -> None:
    """Whatever happened, the next commands succeed: the table follows its source, is sound, and gets rid of its litter."""
    world.objects.late_s = 0.0
    world.later(400)  # leases of the dead run out
    table = Folder(world.url(CHECKER))
    if snapshot.is_held(table, snapshot.current(table)):
        _must(world, "release", commands.release(world, "release"))
    last = commands.reindex(world, "reindex --new-model", new_model=True)
    if world.conditions.kind == "disk without links" and isinstance(
        world.alone("reindex --new-model", last), TableBusy
    ):
        world.later(400)  # there a lease that its dead owner had begun to write counts from when another one finds it
    _must(world, "reindex --new-model", last)
    check_done(world)
    check_table(world)
    check_as_fresh(world)
    before = world.watch.current
    _must(world, "reindex", commands.reindex(world, "reindex"))
    if world.watch.current != before:
        world.violated("a second reindex published again, though nothing had changed")
    if world.corpus.settings["table"]["keep_text"] and before and world.watch.versions[before].rows:
        verified = _must(world, "verify", commands.verify(world, "verify"))
        if not getattr(verified, "passed", True):
            world.violated(f"verify failed: {verified}")
    _check_litter(world)


def _check_litter(world: World) -> None:
    world.later(2 * DAY_S)
    _must(world, "clean", commands.clean(world, "clean"))
    check_table(world)
    parts = {part.path for version in world.watch.kept() for part in version.parts}
    for key in world.place.names():
        path = key.removeprefix(TABLE)
        if not key.startswith(TABLE) or not path.startswith((layout.STAGING, layout.DATA, layout.TRASH)):
            continue
        if (
            path.startswith(layout.STAGING)
            or (layout.trashed(path) if path.startswith(layout.TRASH) else path) not in parts
        ):
            world.violated(f"{path} is litter, and stays")


def _must(world: World, name: str, work: Work) -> object:
    result = world.alone(name, work)
    if isinstance(result, BaseException) and not isinstance(result, Crashed):
        world.violated(f"{name} does not succeed in the end: {type(result).__name__}: {result}")
    return result
