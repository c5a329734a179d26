"""A purge of one row, as steps: pipeline.table.operations.purge and erasure. The last letter of its kind is the row's id."""

from tests.protocol.publishing import data_name, failed, folder, kept_parts, part_version
from tests.protocol.rules import Rules
from tests.protocol.state import (
    CHANGES,
    DATA,
    PARTS,
    PARTS_LISTS,
    PUBLICATIONS,
    RECORDS,
    TRASH,
    UNFINISHED,
    Content,
    File,
    Part,
    Process,
    State,
)
from tests.protocol.steps import Outcomes, step


def tells(content: Content, row: str) -> bool:
    """Whether a file of this content tells of the row."""
    return any(item.lstrip("+-") == row for item in content)


def holding(files: list[File], row: str) -> list[str]:
    return [file.path for file in files if tells(file.content, row)]


def erased_by(me: Process) -> str:
    return me.kind[-1]


@step("pipeline.table.operations.purge:_forget_staged")
def look_at_staged(state: State, me: Process, rules: Rules) -> Outcomes:
    files = state.below(PARTS)
    looked, found = tuple(file.path for file in files), tuple(holding(files, erased_by(me)))
    noted = (looked, found)
    at = "forget_records" if found and rules.forgets_records else "look_at_attempts"
    if not rules.erases_staged_last:
        state = state.delete(found)
    yield f"{len(found)} hold it", state.go(me, at, noted=noted)


@step("pipeline.table.operations.purge:_forget_staged")
def forget_records(state: State, me: Process, rules: Rules) -> Outcomes:
    gone = [file.path for file in state.below(RECORDS) if set(file.content) & set(me.noted[1])]
    yield "", state.delete(gone).go(me, "look_at_attempts")


@step("pipeline.table.operations.erasure:open_attempts")
def look_at_attempts(state: State, me: Process, rules: Rules) -> Outcomes:
    attempts = tuple(
        path
        for path, files in _attempts(state).items()
        if max(file.epoch for file in files) >= me.parent and holding(files, erased_by(me))
    )
    yield f"{len(attempts)} hold it", state.go(me, "write_purged", noted=(*me.noted, attempts))


@step("pipeline.table.operations.purge:_publish_without")
def write_purged(state: State, me: Process, rules: Rules) -> Outcomes:
    """Live parts are written anew without the row; one that has no other is left out."""
    row, parent = erased_by(me), kept_parts(state.version(me.parent))
    held = [part for part in parent if tells(part.rows, row)]
    missing = [part.path for part in parent if not state.has(part.path)]  # all of them are read
    _, found, attempts = me.noted
    if missing:
        yield f"{missing[0]} is gone", failed(state, me, "damaged")
        return
    if not held and not (rules.fences and (found or attempts)):
        yield "nothing to publish", state.go(me, "delete_staged")
        return
    smaller = []
    for part in held:
        rows = tuple(other for other in part.rows if other != row)
        if rows:
            staged = f"{folder(me, rules)}purged-{len(smaller)}"
            state = state.write(staged, rows)
            smaller.append(Part(data_name(me, f"P{len(smaller)}", rules), rows, staged=staged))
    parts = (*(part for part in parent if part not in held), *smaller)
    yield f"{len(held)} parts lose it", state.go(me, "write_changes", parts=parts, then="delete_staged")


@step("pipeline.table.operations.purge:purge")
def delete_staged(state: State, me: Process, rules: Rules) -> Outcomes:
    at = "look_for_unfinished" if rules.unfinished_first else "look_for_all"
    yield "", state.delete(me.noted[1]).go(me, at)


@step("pipeline.table.operations.erasure:_erase_unfinished")
def look_for_unfinished(state: State, me: Process, rules: Rules) -> Outcomes:
    found = tuple(path for path in holding(state.below(""), erased_by(me)) if UNFINISHED in path)
    yield f"{len(found)} hold it", state.go(me, "erase_unfinished" if found else "look_for_all", held=found)


@step("pipeline.table.operations.erasure:_erase_unfinished")
def erase_unfinished(state: State, me: Process, rules: Rules) -> Outcomes:
    """How old they are is not modelled: either may be."""
    yield "they are old", state.delete(me.held).go(me, "look_for_all", held=())
    yield "they are young, and counted", state.go(me, "look_for_all", held=(), noted=(*me.noted, ("left",)))


@step("pipeline.table.operations.erasure:erase")
def look_for_all(state: State, me: Process, rules: Rules) -> Outcomes:
    """All that will be erased is found by one listing; it is then done file by file."""
    row, published = erased_by(me), bool(me.parts)
    current = me.parent + published
    looked, _, attempts, *left = me.noted
    closed = attempts if published else ()
    live = {part.path for part in state.version(current).parts}
    todo: list[tuple[str, ...]] = []
    for path, files in _attempts(state).items():
        if (path in closed or max(file.epoch for file in files) < current) and holding(files, row):
            todo.append(("delete", *(file.path for file in files)))
    finished = [file for file in state.below(DATA, TRASH) if UNFINISHED not in file.path]
    parts = [path for path in holding(finished, row) if path not in live and part_version(path) <= current]
    own = f"{CHANGES}{current}" if published else ""
    changes = [file for file in state.below(CHANGES) if file.path != own and UNFINISHED not in file.path]
    lists = [path for path in holding(changes, row) if int(path.removeprefix(CHANGES)) <= current]
    if (parts or lists) and rules.purges_alone:
        todo.append(("take lease",))
    if parts or (lists and rules.forgets_cleaned):
        todo += [("read", path) for path in holding(state.below(PARTS_LISTS), row)]
    todo += [("delete", *parts)] if parts else []
    todo += [("read", path) for path in (lists if rules.oldest_list_first else reversed(lists))]
    if not rules.unfinished_first:
        todo += [("delete", path) for path in holding(state.below(""), row) if UNFINISHED in path]
    after = me._replace(todo=tuple(todo), noted=(looked, *left), parts=(), version=current if published else 0)
    yield "", state.go(after, "erase" if todo else "look_for_copies")


def _erased(state: State, me: Process) -> State:
    """One thing is done; the lease is given back after the last one."""
    rest = me.todo[1:]
    return (state if rest else state.free(me.name)).go(me, "erase" if rest else "look_for_copies", todo=rest, held=())


@step("pipeline.table.operations.erasure:_erase_parts_and_lists")
def erase(state: State, me: Process, rules: Rules) -> Outcomes:
    what, *paths = me.todo[0]
    if what == "take lease":
        if not state.holder("purge"):  # else it waits
            yield "has the lease", _erased(state.take("purge", me.name), me)
    elif what == "delete":
        yield ", ".join(paths), _erased(state.delete(paths), me)
    elif rules.purges_alone and rules.renews and state.holder("purge") != me.name:
        yield "has lost the lease", state.end(me, "not complete")
    else:
        file = state.file(paths[0])
        assert file is not None, "no list is ever deleted"
        yield f"reads {paths[0]}", state.go(me, "write_anew", held=file.content)


@step("pipeline.table.operations.erasure:_write_anew")
def write_anew(state: State, me: Process, rules: Rules) -> Outcomes:
    path = me.todo[0][1]
    staying = tuple(item for item in me.held if item.lstrip("+-") != erased_by(me))
    yield path, _erased(state.write(path, staying), me)


@step("pipeline.table.operations.erasure:_still_held")
def look_for_copies(state: State, me: Process, rules: Rules) -> Outcomes:
    """Whoever copied the row before it was erased shows in an attempt, or in a later version."""
    current = me.version or me.parent
    files = [file for file in state.below("") if file.path.startswith(PUBLICATIONS) or UNFINISHED in file.path]
    if not rules.looks_for_unfinished:
        files = [file for file in files if UNFINISHED not in file.path]
    left = bool(holding(files, erased_by(me)))
    if len(state.versions) != current:
        left = left or any(
            tells(part.rows, erased_by(me)) and (state.has(part.path) or state.has(part.staged))
            for part in state.current.parts
        )
    yield "finds some" if left else "finds none", state.go(me, "look_at_staged_again", held=("left",) if left else ())


@step("pipeline.table.operations.purge:purge")
def look_at_staged_again(state: State, me: Process, rules: Rules) -> Outcomes:
    again = [file for file in state.below(PARTS) if file.path not in me.noted[0]]
    left = bool(me.held or me.noted[1:] or holding(again, erased_by(me)))
    said = "not complete" if left and rules.counts_left else "erased"
    yield said, state.end(me, said)


def _attempts(state: State) -> dict[str, list[File]]:
    found: dict[str, list[File]] = {}
    for file in state.below(PUBLICATIONS):
        name = file.path.removeprefix(PUBLICATIONS).partition("/")[0]
        found.setdefault(f"{PUBLICATIONS}{name}/", []).append(file)
    return found
