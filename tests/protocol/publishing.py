"""The commit and the moving of files after it, as steps: what every command does that publishes a version.

The order and the guards are those of pipeline.table.publication and pipeline.table.materialise.
"""

from tests.protocol.rules import Rules
from tests.protocol.state import (
    CHANGES,
    CLEANING,
    DATA,
    ERASED,
    PARTS,
    PARTS_LISTS,
    PUBLICATIONS,
    RECORDS,
    TRASH,
    Content,
    Part,
    Process,
    State,
    Version,
)
from tests.protocol.steps import Outcomes, copied, name_of, step


def folder(me: Process, rules: Rules) -> str:
    """The publication of an attempt; without names of their own two attempts at one version share it."""
    return f"{PUBLICATIONS}{me.name if rules.own_names else me.parent + 1}/"


def data_name(me: Process, unit: str, rules: Rules) -> str:
    return f"{DATA}{me.parent + 1}-{unit}" + (f"-{me.name}" if rules.own_names else "")


def difference(before: frozenset[str], after: frozenset[str]) -> Content:
    """A list of changes."""
    return (*(f"-{row}" for row in sorted(before - after)), *(f"+{row}" for row in sorted(after - before)))


# --- the commit


@step("pipeline.table.publication:Publication.write_changed_rows")
def write_changes(state: State, me: Process, rules: Rules) -> Outcomes:
    after = frozenset(row for part in me.parts for row in part.rows)
    changes = difference(state.version(me.parent).rows, after)
    if me.kind.startswith("rollback") and not rules.tells_changes:
        changes = ()
    written = state.write(f"{folder(me, rules)}changes", changes)
    yield "", written.go(me, "write_lists" if rules.marks_first else "check_files")


@step("pipeline.table.snapshot:write_lists")
def write_lists(state: State, me: Process, rules: Rules) -> Outcomes:
    consumed = (f"{RECORDS}s",) if any("s" in part.rows for part in me.parts if part.staged) else ()
    consumed += tuple(part.staged for part in me.parts if part.staged.startswith(PARTS))
    written = state.write(f"{folder(me, rules)}lists", consumed)
    yield "", written.go(me, "check_files" if rules.marks_first else "create")


@step("pipeline.table.publication:Publication.check_files")
def check_files(state: State, me: Process, rules: Rules) -> Outcomes:
    """The listings of staging, of data/ and of the row sources are one step: whatever is deleted after a listing may as well
    be deleted after all three."""
    after = "create" if rules.marks_first else "write_lists"
    missing = [part.path for part in me.parts if not (state.has(part.path) or (part.staged and state.has(part.staged)))]
    missing += [part.sources for part in me.parts if part.sources and not state.has(part.sources)]
    if rules.checks_lists:
        missing += [path for path in (f"{folder(me, rules)}changes",) if not state.has(path)]
    if missing and rules.checks_files:
        yield f"{missing[0]} is gone", failed(state, me)
    elif rules.heeds_cleanings and state.below(CLEANING):
        seen = tuple(file.path for file in state.below(CLEANING))
        yield "all are there, but a cleaning is under way", state.go(me, "heed_cleanings", held=seen)
    else:
        yield "all are there", state.go(me, after)


@step("pipeline.table.publication:Publication.heed_cleanings")
def heed_cleanings(state: State, me: Process, rules: Rules) -> Outcomes:
    announced = [state.file(path) for path in me.held]
    if None in announced:
        yield "a cleaning has ended meanwhile: looks again", state.go(me, "check_files", held=())
        return
    named = {path for file in announced if file is not None for path in file.content}
    own = folder(me, rules)
    needed = {part.staged for part in me.parts} | {part.sources for part in me.parts}
    if named & needed or any(path.startswith(own) for path in named):
        # The next run must not go on from what will be deleted.
        records = [path for path in named if path.startswith(RECORDS)]
        yield "it will take what the version names", failed(state.delete(records), me)
    else:
        yield "it leaves what the version names", state.go(me, "create", held=())


def failed(state: State, me: Process, said: str = "start again") -> State:
    """As in Publication.guarded: whatever fails is a conflict where somebody published meanwhile."""
    return state.end(me, said if len(state.versions) == me.parent else "conflict")


@step("pipeline.table.publication:Publication.create")
def create(state: State, me: Process, rules: Rules) -> Outcomes:
    number = me.parent + 1
    made = Version(number, name_of(folder(me, rules)[:-1]), me.parts)
    if len(state.versions) == me.parent:
        yield f"version {number} is there", state._replace(versions=(*state.versions, made)).go(me, "read_back")
        return
    if not rules.creates_once:
        over = (*state.versions[: number - 1], made, *state.versions[number:])
        yield f"version {number} is written over", state._replace(versions=over).go(me, "read_back")
    if not rules.reads_back:
        yield "the answer is lost, and taken for a yes", materialised(state, me, number, me.then, rules)
    yield f"version {number} is another's", state.end(me, "conflict")


@step("pipeline.storage.folder:Folder.create_once")
def read_back(state: State, me: Process, rules: Rules) -> Outcomes:
    """Also what an answer that was lost is resolved by."""
    number = me.parent + 1
    if state.version(number).parts == me.parts:
        yield f"version {number} is its own", materialised(state, me, number, me.then, rules)
    else:
        yield f"version {number} is another's", state.end(me, "conflict")


# --- materialising


@step("pipeline.table.materialise:finish")
def finish(state: State, me: Process, rules: Rules) -> Outcomes:
    current = state.current
    if not state.has(f"meta/versions/{current.number}.done"):
        yield f"version {current.number} is not done", materialised(state, me, current.number, me.then, rules)
    else:
        # Listing and deleting are one step here: names are never used twice, so what is dead stays so.
        yield "", state.delete(_dead(state, current)).go(me, me.then, version=0, parent=current.number)


def materialised(state: State, me: Process, number: int, then: str, rules: Rules) -> State:
    """The process begins to materialise a version, and goes on with `then`."""
    version = state.version(number)
    pairs = tuple((part.staged, part.path) for part in version.parts if part.staged)
    me = me._replace(version=number, then=then, held=(), todo=pairs)
    at = "copy_in" if rules.done_last else "write_done"
    return state.go(me, at) if pairs or not rules.done_last else _superseding(state, me, rules)


@step("pipeline.table.materialise:_copy_all")
def copy_in(state: State, me: Process, rules: Rules) -> Outcomes:
    if not me.todo:
        yield "", _superseding(state, me, rules)
        return
    note, after, over = copied(state, me, me.todo[0])
    if over is None and me.version == len(state.versions):
        yield f"{note}, and so is {me.todo[0][1]}", state.end(me, "damaged")
    elif over is False:
        yield note, after
    else:
        rest = me._replace(todo=me.todo[1:], held=())
        yield note, after.go(rest, "copy_in") if rest.todo else _superseding(after, rest, rules)


def _superseding(state: State, me: Process, rules: Rules) -> State:
    gone = _superseded(state, me.version)
    pairs = tuple((path, f"{TRASH}{me.version}/{path}") for path in gone) if rules.keeps_superseded else ()
    return state.go(me, "copy_to_trash" if pairs else "delete_superseded", todo=pairs, held=())


def _superseded(state: State, number: int) -> list[str]:
    live = {part.path for part in state.version(number).parts}
    return [part.path for part in state.version(number - 1).parts if part.path not in live]


@step("pipeline.table.materialise:_copy_all")
def copy_to_trash(state: State, me: Process, rules: Rules) -> Outcomes:
    note, after, over = copied(state, me, me.todo[0])
    if over is False:
        yield note, after
    else:
        rest = me._replace(todo=me.todo[1:], held=())
        yield note, after.go(rest, "copy_to_trash" if rest.todo else "delete_superseded")


@step("pipeline.table.materialise:materialise")
def delete_superseded(state: State, me: Process, rules: Rules) -> Outcomes:
    yield "", state.delete(_superseded(state, me.version)).go(me, "copy_lists", todo=())


@step("pipeline.table.materialise:_copy_lists")
def copy_lists(state: State, me: Process, rules: Rules) -> Outcomes:
    """The list of parts tells of a row whose partition is its own, by the value of that partition."""
    version = state.version(me.version)
    path = f"{PARTS_LISTS}{me.version}"
    told = (ERASED,) if ERASED in version.rows else ()
    written = state if state.has(path) and rules.creates_lists_once else state.write(path, told)
    pair = (f"{version.publication}changes", f"{CHANGES}{me.version}")
    yield "", written.go(me, "copy_changes", todo=(pair,), held=())


@step("pipeline.table.materialise:_copy_lists")
def copy_changes(state: State, me: Process, rules: Rules) -> Outcomes:
    note, after, over = copied(state, me, me.todo[0])
    yield note, after if over is False else after.go(me, "remove_dead", todo=(), held=())


@step("pipeline.table.materialise:_remove_dead")
def remove_dead(state: State, me: Process, rules: Rules) -> Outcomes:
    yield "", state.delete(_dead(state, state.version(me.version))).go(me, "remove_staged")


def _dead(state: State, version: Version) -> list[str]:
    live = {part.path for part in version.parts}
    return [
        file.path
        for file in state.below(DATA)
        if part_version(file.path) <= version.number and file.path not in live and ".tmp-" not in file.path
    ]


def part_version(path: str) -> int:
    """The version that brought a part into data/."""
    return int(name_of(path).partition("-")[0])


@step("pipeline.table.materialise:_remove_staged")
def remove_staged(state: State, me: Process, rules: Rules) -> Outcomes:
    lists = state.file(f"{state.version(me.version).publication}lists")
    yield "", state.delete(lists.content if lists else ()).go(me, "remove_publication")


@step("pipeline.table.materialise:_remove_staged")
def remove_publication(state: State, me: Process, rules: Rules) -> Outcomes:
    own = [file.path for file in state.below(state.version(me.version).publication) if ".tmp-" not in file.path]
    yield "", state.delete(own).go(me, "write_done" if rules.done_last else "go_on")


@step("pipeline.table.materialise:materialise")
def write_done(state: State, me: Process, rules: Rules) -> Outcomes:
    done = state.write(f"meta/versions/{me.version}.done")
    yield f"version {me.version} is done", done.go(me, "go_on" if rules.done_last else "copy_in")


@step("pipeline.table.materialise:materialise")
def go_on(state: State, me: Process, rules: Rules) -> Outcomes:
    """To the latest version: a process that was overtaken would leave what it copied too late."""
    latest = len(state.versions)
    if latest != me.version and rules.goes_on:
        yield f"version {latest} has come meanwhile", materialised(state, me, latest, me.then, rules)
    elif me.then == "published":
        yield "", state.end(me._replace(version=me.parent + 1), "published")
    else:
        # The version that is current now is the parent of what comes, but for a purge, which has published already.
        parent = me.parent if me.parts else latest
        yield "", state.go(me, me.then, parent=parent)


def kept_parts(version: Version) -> tuple[Part, ...]:
    """Parts under the names that they have once they are in data/."""
    return tuple(part._replace(staged="") for part in version.parts)
