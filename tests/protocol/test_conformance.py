"""The program takes the ways of the model: whatever real commands do to the files of a table, the model can do, too.

Real commands work on a real table on a disk, one of them stopped before any of its operations while the other goes on. Each
change of a file is written down by its process and its kind; then it is looked for a way of the model with these changes in
this order, which ends as the commands ended. Steps that change nothing may stand anywhere in the way.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import pytest

from pipeline.errors import CommitConflict, InputError, RunError
from pipeline.storage import Folder
from pipeline.table import layout, materialise
from pipeline.table.operations import purge, restore, vacuum
from pipeline.table.operations.vacuum import Litter
from pipeline.table.snapshot import Snapshot
from tests.protocol.model import first_state, successors_under
from tests.protocol.rules import ALL, Rules
from tests.protocol.state import State, opened
from tests.table import test_races, turns
from tests.table.test_publish import make_unit, stage
from tests.table.test_races import embed, one_thread_each  # noqa: F401
from tests.table.turns import ENDLESS, InTurn, take_turns

Change = tuple[str, str]
"""put or delete, and the kind of file."""
Event = tuple[str, Change]
"""The process, and what it changes."""

UNITS = {name.lower(): [f"{name.lower()}{name}"] for name in "ABCDS"}
"""Each unit has a row, and a partition of its own: so it is a part."""
KINDS = {
    r"staging/parts/": "staging/parts",
    r"staging/records/": "staging/records",
    r"staging/cleanings?/": "staging/cleanings",
    r"staging/publications/[^/]+/(parts|sources|consumed)\.parquet|staging/publications/.+/lists": "lists",
    r"staging/publications/[^/]+/changes": "staged changes",
    r"staging/publications/[^/]+/restored": "restored",
    r"staging/publications/[^/]+/purged": "purged",
    r"data/": "data",
    r"meta/trash/": "trash",
    r"meta/changes/0*(\d+)": "changes of",
    r"meta/parts/0*(\d+)": "parts of",
    r"meta/versions/\d+\.json": "version",
    r"meta/versions/\d+\.done": "done",
}


def kind_of(path: str) -> str | None:
    """None for files that the model knows nothing of: leases, looks at the clock, lists of sources."""
    for pattern, kind in KINDS.items():
        match = re.match(pattern, path)
        if match:
            return f"{kind} {match[1]}" if kind.endswith(" of") else kind
    return None


# --- the program


class Recording(InTurn):
    """Writes down what its process changes, and takes its turn. A change that changes nothing is none."""

    events: list[Event]
    old: frozenset[str]
    """Files that look two days older than they are."""

    def _changed(self, what: str, path: str) -> None:
        kind = kind_of(path)
        if kind is not None:
            self.events.append((self.process, (what, kind)))

    def list(self, prefix="", temporary=False):
        listed = super().list(prefix, temporary)
        return [
            replace(info, modified=info.modified - 2 * vacuum.DAY_S) if info.path in self.old else info
            for info in listed
        ]

    def write(self, path, data):
        self._take()
        before = Folder.read(self, path)
        Folder.write(self, path, data)
        if before != bytes(data):
            self._changed("put", path)

    def create_once(self, path, data):
        self._take()
        before = Folder.size(self, path)
        standing = Folder.create_once(self, path, data)
        if before is None and standing is None:
            self._changed("put", path)
        return standing

    def copy(self, source, target):
        self._take()
        before = Folder.read(self, target)
        Folder.copy(self, source, target)
        if before != Folder.read(self, target):
            self._changed("put", target)

    def delete(self, paths):
        for path in paths:
            self._take()
            there = Folder.size(self, path) is not None
            Folder.delete(self, [path])
            if there:
                self._changed("delete", path)


def history(table: Folder) -> None:
    """Three versions and staged work, as in the first state of the model."""
    for names in ("ab", "bc", "bd"):
        embed(table, {name: UNITS[name] for name in names})
    stage(table, make_unit(f"{test_races.MODEL}-s", 7), UNITS["s"], attempt="earlier")


COMMANDS = {
    "embed": lambda table: embed(table, {name: UNITS[name] for name in "bs"}),
    "rollback 1": lambda table: restore.roll_back(table, 1),
    "rollback 2": lambda table: restore.roll_back(table, 2),
    "clean": lambda table: vacuum.clean(table, 0),
    "purge x": lambda table: purge.purge(table, ["xX"]),
    "finish": materialise.finish,
}


def said(kind: str, result: Any) -> str:
    """How the model has it."""
    match result:
        case CommitConflict():
            return "conflict"
        case RunError():
            return "start again"
        case InputError():
            return "unavailable"
        case Litter():
            return "cleaned"
        case purge.Purged():
            return "not complete" if result.left else "erased"
        case Snapshot():
            return "finished" if kind == "finish" else "published"
    raise AssertionError(f"{kind} ended with {result!r}")


def perform(
    table: Folder, kinds: Sequence[str], operations: int, old: Iterable[str], monkeypatch: pytest.MonkeyPatch
) -> tuple[list[Event], tuple[str, ...], bool]:
    """(what the processes changed, how they ended, whether the first one had ended before it was to be stopped)."""
    events: list[Event] = []
    monkeypatch.setattr(Recording, "events", events, raising=False)
    monkeypatch.setattr(Recording, "old", frozenset(old), raising=False)
    monkeypatch.setattr(turns, "InTurn", Recording)
    names = "pqr"[: len(kinds)]
    processes = {name: COMMANDS[kind] for name, kind in zip(names, kinds, strict=True)}
    schedule = [("p", operations), *((name, ENDLESS) for name in names[1:])]
    ended, taken = take_turns(table, processes, schedule)
    sayings = tuple(said(kind, ended[name]) for name, kind in zip(names, kinds, strict=True))
    return events, sayings, taken["p"] <= operations


# --- the model


class Way(NamedTuple):
    """How far a way has come: the state, and what each process has yet to change, or may go on changing, in its step."""

    state: State
    owed: tuple[frozenset[Change], ...]
    allowed: tuple[frozenset[Change], ...]


def changes(before: State, after: State) -> frozenset[Change]:
    """What a step changes; unfinished files are nothing yet."""
    one, other = opened(before.files), opened(after.files)
    put = {path for path, file in other.items() if path not in one or one[path].content != file.content}
    found = {("put", kind_of(path)) for path in put if ".tmp-" not in path}
    found |= {("delete", kind_of(path)) for path in one.keys() - other.keys() if ".tmp-" not in path}
    found |= {("put", "version")} if before.versions != after.versions else set()
    assert all(kind for _, kind in found), found
    return frozenset(found)  # type: ignore[arg-type]


def steps(way: Way, rules: Rules) -> Iterator[tuple[int, Way, frozenset[Change]]]:
    """The steps of processes that owe nothing: (which process, the way after it, what it changes)."""
    for label, after in successors_under(rules)(way.state):
        place = "pqr".find(label[0]) if label[1:3] == " (" else -1
        if place < 0 or way.owed[place]:
            continue  # the world: no time passes while real commands are tried
        changed = changes(way.state, after)
        owed = (*way.owed[:place], changed, *way.owed[place + 1 :])
        allowed = (*way.allowed[:place], changed, *way.allowed[place + 1 :])
        yield place, Way(after, owed, allowed), changed


def silent(ways: Iterable[Way], rules: Rules) -> set[Way]:
    """These ways, and those that go on by steps that change nothing."""
    found = set(ways)
    waiting = list(found)
    while waiting:
        way = waiting.pop()
        for _, after, changed in steps(way, rules):
            # What the process may still repeat of its last step with changes, it may repeat after silent ones no more.
            if not changed and after not in found:
                found.add(after)
                waiting.append(after)
    return found


def taken_by(ways: Iterable[Way], event: Event, rules: Rules) -> set[Way]:
    """The ways that go on with this change."""
    process, change = event
    place = "pqr".index(process)
    found = set()
    for way in ways:
        # What a step of the model deletes at once, two real processes may delete together.
        for one in range(len(way.owed)) if change[0] == "delete" else (place,):
            if change in way.allowed[one]:
                owed = way.owed[one] - {change}
                found.add(way._replace(owed=(*way.owed[:one], owed, *way.owed[one + 1 :])))
        for who, after, changed in steps(way, rules):
            if who == place and change in changed:
                owed = changed - {change}
                found.add(after._replace(owed=(*after.owed[:place], owed, *after.owed[place + 1 :])))
    return found


def followed(first: State, events: Sequence[Event], sayings: Sequence[str], rules: Rules = ALL) -> str:
    """Why no way of the model goes like this; nothing if one does."""
    none = (frozenset[Change](),) * len(first.processes)
    ways = {Way(first, none, none)}
    for number, event in enumerate(events):
        reached = silent(ways, rules)
        ways = taken_by(reached, event, rules)
        if not ways:
            places = {tuple(process.at or process.said for process in way.state.processes) for way in reached}
            return f"the model can't do {event}: it stands at {sorted(places)} after {events[:number]}"
    ended = {tuple(process.said for process in way.state.processes) for way in silent(ways, rules) if not any(way.owed)}
    return "" if tuple(sayings) in ended else f"the commands ended with {sayings}, the model with one of {ended}"


# --- tests


@pytest.fixture
def begun(tmp_path, monkeypatch) -> Callable[..., Folder]:
    """Makes a table with the history; where a purge works on it, the row that is purged is all that unit A holds."""

    def make(name: str, kinds: Sequence[str]) -> Folder:
        monkeypatch.setattr(test_races, "IDS", UNITS | ({"a": ["xX"]} if "purge x" in kinds else {}))
        table = Folder(str(tmp_path / name))
        history(table)
        return table

    return make


def staged(table: Folder) -> list[str]:
    return [info.path for info in table.list(layout.STAGING)]


def first(kinds: tuple[str, ...], *, is_old: bool) -> State:
    state = first_state(kinds, "A" if "purge x" in kinds else "", row_sources=False, whole=True)
    return state if is_old else state._replace(day=0)


@pytest.mark.parametrize("is_old", [False, True], ids=["young", "old"])
@pytest.mark.parametrize("kind", COMMANDS)
def test_a_command_alone_takes_a_way_of_the_model(kind, is_old, begun, monkeypatch):
    table = begun("table", [kind])
    events, sayings, _ = perform(table, [kind], ENDLESS, staged(table) if is_old else (), monkeypatch)
    assert events or kind in ("finish", "clean")
    assert followed(first((kind,), is_old=is_old), events, sayings) == ""


@pytest.mark.parametrize(
    "step", [pytest.param(15, id="every fifteenth"), pytest.param(1, id="each", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
    "kinds",
    [("embed", "clean"), ("clean", "embed"), ("embed", "rollback 2"), ("rollback 1", "clean"), ("purge x", "embed")],
    ids=" by ".join,
)
def test_two_commands_at_once_take_a_way_of_the_model(kinds, step, begun, monkeypatch):
    for operations in range(0, 1000, step):
        table = begun(str(operations), kinds)
        events, sayings, ended = perform(table, kinds, operations, staged(table), monkeypatch)
        assert followed(first(kinds, is_old=True), events, sayings) == "", operations
        if ended:
            return


@pytest.mark.parametrize(
    ("kind", "rule"),
    [
        ("clean", "announces"),
        ("embed", "keeps_superseded"),
        ("embed", "done_last"),
        ("rollback 1", "copies_back"),
        ("purge x", "oldest_list_first"),
    ],
)
def test_a_model_without_a_guard_does_not_go_as_the_program_does(kind, rule, begun, monkeypatch):
    """So the comparison can fail, and the program has the guard."""
    table = begun("table", [kind])
    events, sayings, _ = perform(table, [kind], ENDLESS, staged(table), monkeypatch)
    assert followed(first((kind,), is_old=True), events, sayings, ALL.without(rule)) != ""
