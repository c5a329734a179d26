"""A cleaning that asks for everything, whatever its age, as steps: pipeline.table.operations.vacuum.

Unfinished files are always taken: in truth only those that are older than ten minutes, which makes the model's cleaning
the worse enemy.
"""

from tests.protocol.rules import Rules
from tests.protocol.state import CLEANING, DATA, SOURCES, TRASH, UNFINISHED, WORK, File, Process, State, Version
from tests.protocol.steps import Outcomes, step

NEEDED = (*WORK, SOURCES)
"""What a run under way may need."""


@step("pipeline.table.operations.vacuum:_look")
def list_all(state: State, me: Process, rules: Rules) -> Outcomes:
    litter = _litter(state, me.parent, rules)
    yield f"{len(litter)} files may go", state.go(me, "check_version", held=litter)


@step("pipeline.table.operations.vacuum:_look")
def check_version(state: State, me: Process, rules: Rules) -> Outcomes:
    if not rules.lists_first and not me.noted:
        # The wrong order: what is listed later may be of a version that has come meanwhile.
        yield "the order is wrong", state.go(me, "list_late", noted=(("late",),))
    elif len(state.versions) != me.parent:
        yield "somebody has published", state.end(me, "conflict")
    else:
        yield "", state.go(me, "look_at_lease", noted=())


@step("pipeline.table.operations.vacuum:_look")
def list_late(state: State, me: Process, rules: Rules) -> Outcomes:
    yield "", state.go(me, "look_at_lease", held=_litter(state, me.parent, rules), noted=())


@step("pipeline.table.lease:holder")
def look_at_lease(state: State, me: Process, rules: Rules) -> Outcomes:
    litter = me.held
    if state.holder("reindex") and rules.spares_work:
        litter = tuple(path for path in litter if not path.startswith(NEEDED) or UNFINISHED in path)
    if any(path.startswith(NEEDED) for path in litter) and rules.announces:
        yield "", state.go(me, "announce", held=litter)
    else:
        yield "", _deleting(state, me, litter)


@step("pipeline.table.announcement:standing")
def announce(state: State, me: Process, rules: Rules) -> Outcomes:
    named = tuple(path for path in me.held if path.startswith(NEEDED))
    yield f"{len(named)} files", state.write(f"{CLEANING}{me.name}", named).go(me, "list_again")


@step("pipeline.table.operations.vacuum:_look")
def list_again(state: State, me: Process, rules: Rules) -> Outcomes:
    again = _litter(state, me.parent, rules)
    both = tuple(path for path in me.held if path in again)
    yield f"{len(both)} files may still go", state.go(me, "check_again", held=both)


@step("pipeline.table.operations.vacuum:_look")
def check_again(state: State, me: Process, rules: Rules) -> Outcomes:
    litter = me.held
    if state.holder("reindex"):
        litter = tuple(path for path in litter if not path.startswith(NEEDED) or UNFINISHED in path)
    if len(state.versions) != me.parent:
        yield "somebody has published", state.delete([f"{CLEANING}{me.name}"]).end(me, "conflict")
    else:
        yield "", _deleting(state, me, litter)


def _deleting(state: State, me: Process, litter: tuple[str, ...]) -> State:
    paths = tuple((path,) for path in litter)
    return state.go(me, "delete_litter" if paths else "end_announcement", todo=paths, held=())


@step("pipeline.table.operations.vacuum:clean")
def delete_litter(state: State, me: Process, rules: Rules) -> Outcomes:
    """One file after the other: between two of them anything may happen, for as long as it likes."""
    (path,), *rest = me.todo
    yield path, state.delete([path]).go(me, "delete_litter" if rest else "end_announcement", todo=tuple(rest))


@step("pipeline.table.announcement:_withdraw")
def end_announcement(state: State, me: Process, rules: Rules) -> Outcomes:
    """Its own, and those of dead cleanings of which nothing is left to delete."""
    over = [
        file.path
        for file in state.below(CLEANING)
        if file.path == f"{CLEANING}{me.name}" or not any(state.has(path) for path in file.content)
    ]
    yield "", state.delete(over).end(me, "cleaned")


def _litter(state: State, current: int, rules: Rules) -> tuple[str, ...]:
    kept = state.versions[current - 2 : current] if rules.keeps_previous else state.versions[current - 1 : current]
    today = state.day if rules.store_clock else state.day + 1
    at_work = any(file.day >= today and _is_work(file, current) for file in state.below(*NEEDED))
    if not rules.spares_work:
        at_work = False
    found = [file for file in state.below("") if _may_go(file, kept, at_work=at_work)]
    order = {True: 0, False: 1}
    return tuple(file.path for file in sorted(found, key=lambda file: (order[file.path.startswith(DATA)], file.path)))


def _is_work(file: File, current: int) -> bool:
    if file.path.startswith(SOURCES):
        return int(file.path.removeprefix(SOURCES).partition("-")[0]) > current
    return file.path.startswith(WORK)


def _may_go(file: File, kept: tuple[Version, ...], *, at_work: bool) -> bool:
    path = file.path
    if UNFINISHED in path:
        return True
    if path.startswith(DATA):
        return path not in {part.path for part in kept[-1].parts}
    if path.startswith(TRASH):
        return path.removeprefix(TRASH).partition("/")[2] not in {part.path for one in kept for part in one.parts}
    if path.startswith(SOURCES):
        return path not in {part.sources for one in kept for part in one.parts} and not at_work
    return path.startswith(WORK) and not at_work
