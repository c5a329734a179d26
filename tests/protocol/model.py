"""The model as a whole: the first table, who works on it, what may happen next, and what must hold in every state.

The first table has three versions. Of the first, part A lies in the trash of version 2; of the second, part C in that of
version 3; B is live in all of them, D came with the third. An earlier run that died left a unit staged. Processes of one
kind begin in the order of their names: they are all alike, and any other order is the same under other names.
"""

import functools
from collections.abc import Callable, Iterator

from tests.protocol import cleaning, publishing, purging, runs  # noqa: F401 - they enter their steps
from tests.protocol.explore import Explored, explore
from tests.protocol.publishing import difference
from tests.protocol.purging import erased_by, tells
from tests.protocol.rules import ALL, Rules
from tests.protocol.state import (
    CHANGES,
    DATA,
    ERASED,
    PARTS,
    PARTS_LISTS,
    PUBLICATIONS,
    RECORDS,
    SOURCES,
    TRASH,
    UNFINISHED,
    File,
    Part,
    Process,
    State,
    Version,
    number_of,
)
from tests.protocol.steps import STEPS

LAST_DAY = 2
FIRST_STEPS = {
    "embed": ("finish", "plan_embed"),
    "reindex": ("take_lease", "read_live_part"),
    "rollback": ("finish", "plan_rollback"),
    "clean": ("finish", "list_all"),
    "purge": ("finish", "look_at_staged"),
    "finish": ("finish", "finished"),
}
"""Kind without its argument -> the first step, and the one after materialising what is not done yet."""


def first_state(kinds: tuple[str, ...], holders: str = "D", *, row_sources: bool = True, whole: bool = False) -> State:
    """`holders` are the units that have the row which is purged: of A, C, D and S, the staged one. With `whole` they have no
    other."""

    def rows(unit: str) -> tuple[str, ...]:
        erased = (ERASED,) if unit in holders else ()
        others = ("y",) if unit == "A" and "purge y" in kinds else ()
        return erased if erased and whole else (unit.lower(), *erased, *others)

    def part(version: int, unit: str, of: int) -> Part:
        sources = f"{SOURCES}{of}-{unit}" if unit == "B" and row_sources else ""
        return Part(f"{DATA}{version}-{unit}", rows(unit), sources=sources)

    versions = (
        Version(1, "1", (part(1, "B", 1), part(1, "A", 1))),
        Version(2, "2", (part(1, "B", 2), part(2, "C", 2))),
        Version(3, "3", (part(1, "B", 3), part(3, "D", 3))),
    )
    files = [File(f"{DATA}1-B", rows("B")), File(f"{DATA}3-D", rows("D"))]
    files += [File(f"{TRASH}2/{DATA}1-A", rows("A")), File(f"{TRASH}3/{DATA}2-C", rows("C"))]
    files += [File(f"{PARTS}s-0", rows("S")), File(f"{RECORDS}s", (f"{PARTS}s-0",))]
    before: frozenset[str] = frozenset()
    for version in versions:
        files.append(File(f"meta/versions/{version.number}.done"))
        files.append(File(f"{CHANGES}{version.number}", difference(before, version.rows)))
        files.append(File(f"{PARTS_LISTS}{version.number}", (ERASED,) if ERASED in version.rows else ()))
        files += [File(one.sources) for one in version.parts if one.sources]
        before = version.rows
    processes = tuple(_process(name, kind) for name, kind in zip("pqr", kinds, strict=False))
    return State(1, number_of(files), versions, (), processes)


def _process(name: str, kind: str) -> Process:
    at, then = FIRST_STEPS[kind.partition(" ")[0]]
    return Process(name, kind, at, then)


# --- what may happen


def successors_under(rules: Rules) -> Callable[[State], Iterator[tuple[str, State]]]:
    def successors(state: State) -> Iterator[tuple[str, State]]:
        waiting: set[str] = set()
        for process in state.processes:
            if not process.at or process.kind in waiting:
                continue
            if process.at in ("finish", "take_lease") and not process.parent:
                waiting.add(process.kind)  # those of its kind that come after it begin later
            yield from _steps_of(process, state, rules)
        yield from _world(state, rules)

    return successors


def _steps_of(process: Process, state: State, rules: Rules) -> Iterator[tuple[str, State]]:
    if process.at == "finished":
        yield f"{process.name} ({process.kind}): ends", state.end(process, "finished")
        return
    for note, after in STEPS[process.at](state, process, rules):
        yield f"{process.name} ({process.kind}): {process.at.replace('_', ' ')}{': ' if note else ''}{note}", after


AMID_COMMIT = ("check_files", "heed_cleanings", "create")


def _world(state: State, rules: Rules) -> Iterator[tuple[str, State]]:
    """Time passes: a lease that is not renewed runs out, also that of a process which is only stopped; work grows old."""
    for process in state.processes:
        rewriting = process.at == "write_anew" and rules.rewrites_within_its_lease
        if process.at and not rewriting and any(name == process.name for _, name in state.leases):
            yield f"the lease of {process.name} runs out", state.free(process.name)
    cleaners = any(process.at and process.kind == "clean" for process in state.processes)
    committing = any(process.at in AMID_COMMIT for process in state.processes) and rules.commits_within_a_day
    if cleaners and state.day < LAST_DAY and not committing:
        yield "a day passes", state._replace(day=state.day + 1)


# --- what must hold


def broken(state: State, is_end: bool) -> str:
    """What does not hold in a state; nothing if all does."""
    erasing = frozenset(erased_by(process) for process in state.processes if process.kind.startswith("purge"))
    fault = _of_the_table(state._replace(day=0, leases=(), processes=()), erasing)
    checks = (_damaged, _two_authors, _not_erased, *((_at_end,) if is_end else ()))
    return fault or next((fault for check in checks if (fault := check(state))), "")


@functools.lru_cache(maxsize=2**18)
def _of_the_table(table: State, erasing: frozenset[str]) -> str:
    """What is wrong with the files and the versions, whoever works on them."""
    return _missing(table, erasing) or _otherwise(table) or _unlike_changes(table)


def _damaged(state: State) -> str:
    return next((f"{one.name} finds the table damaged" for one in state.processes if one.said == "damaged"), "")


def _missing(state: State, erasing: frozenset[str]) -> str:
    """All files that the current version and the one before it name are there, and the lists of every version. Parts of the
    one before may be gone where they held a row that is being erased."""
    for version in state.versions[-2:]:
        is_current = version is state.current
        for part in version.parts:
            if part.sources and not state.has(part.sources):
                return f"version {version.number} names {part.sources}, which is gone"
            if not _places(state, part) and (is_current or not any(tells(part.rows, row) for row in erasing)):
                return f"version {version.number} names {part.path}, which is gone"
    for version in state.versions[2:]:
        beside, staged = f"{PARTS_LISTS}{version.number}", f"{version.publication}lists"
        if not (state.has(beside) or state.has(staged)):
            return f"the lists of version {version.number} are gone"
    return ""


def _places(state: State, part: Part) -> list[File]:
    """Where a part is: staged, in data/, or in the trash."""
    places = [path for path in (part.staged, part.path) if path]
    found = [file for path in places if (file := state.file(path))]
    return found or [file for file in state.below(TRASH) if file.path.endswith(f"/{part.path}")]


def _otherwise(state: State) -> str:
    """A version stays what it was: where its files are there, they hold what they held when it was committed."""
    for version in state.versions:
        for part in version.parts:
            for file in _places(state, part):
                if file.content != part.rows:
                    return f"{file.path} of version {version.number} holds {file.content}, not {part.rows}"
    return ""


def _unlike_changes(state: State) -> str:
    """Whoever follows the lists of changes holds the rows of the current version."""
    rows: set[str] = set()
    for version in state.versions:
        beside, staged = state.file(f"{CHANGES}{version.number}"), state.file(f"{version.publication}changes")
        file = beside or staged
        if file is None:
            return f"the changes of version {version.number} are gone"
        for item in file.content:
            rows.discard(item[1:])
            if item[0] == "+":
                rows.add(item[1:])
    if rows != state.current.rows:
        return f"the changes come to {sorted(rows)}, version {state.current.number} has {sorted(state.current.rows)}"
    return ""


def _two_authors(state: State) -> str:
    """A process published if and only if it says so."""
    for process in state.processes:
        if process.said == "published" and state.version(process.parent + 1).author != process.name:
            return f"{process.name} says that it published version {process.parent + 1}, which is another's"
        if process.said in ("conflict", "start again") and process.name in {one.author for one in state.versions}:
            return f"{process.name} published, and says that it did not"
    numbers = [version.number for version in state.versions]
    return "" if numbers == list(range(1, len(numbers) + 1)) else f"there are versions {numbers}"


def _not_erased(state: State) -> str:
    """Once a purge said that it is complete, no file tells of the row: but its own list of changes, and what a process had in
    memory and writes into an attempt that can't be committed any more."""
    for process in state.processes:
        if process.said != "erased":
            continue
        row = erased_by(process)
        own = f"{CHANGES}{process.version}"
        late = tuple(f"{PUBLICATIONS}{one.name}/" for one in state.processes if one.parent < len(state.versions))
        for file in state.below(""):
            if tells(file.content, row) and file.path != own and not file.path.startswith(late):
                return f"{process.name} said that {row} is erased, and {file.path} holds it"
    return ""


def _at_end(state: State) -> str:
    """When all have ended, data/ is the current version."""
    found = {file.path for file in state.below(DATA)}
    named = {part.path for part in state.current.parts}
    if found != named:
        return f"data/ holds {sorted(found)}, version {state.current.number} names {sorted(named)}"
    unfinished = [file.path for file in state.below("") if UNFINISHED in file.path]
    return f"{unfinished} are left" if unfinished else ""


def explored(*scenario: str, rules: Rules = ALL) -> Explored[State]:
    """All that these processes can do to the first table; the scenario is as in scenarios.py."""
    *kinds, holders = scenario
    return explore(first_state(tuple(kinds), holders.removeprefix("/")), successors_under(rules), broken)
