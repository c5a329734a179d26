"""A run by units, a run by rows and a rollback, as steps up to the commit.

An embed takes the last part out of the table and brings unit `s`, whose staged work an earlier run left behind. A reindex
writes the last part anew with row `e` added, and gives the first part another list of row sources. A rollback brings back
the version in its name. All begin with `finish`, and commit by publishing.py.
"""

from tests.protocol.publishing import data_name, failed, folder, kept_parts
from tests.protocol.rules import Rules
from tests.protocol.state import DATA, PARTS, RECORDS, SOURCES, TRASH, Part, Process, State
from tests.protocol.steps import Outcomes, copied, name_of, step

RECORD = f"{RECORDS}s"


# --- embed


@step("pipeline.table.record:read_all")
def plan_embed(state: State, me: Process, rules: Rules) -> Outcomes:
    record = state.file(RECORD)
    if "s" in state.version(me.parent).rows:
        yield "", state.end(me, "nothing to do")
    elif record is not None and state.has(record.content[0]):
        yield "the staged work of an earlier run is valid", state.go(me, "read_records")
    elif record is not None:
        yield "a record without its parts", state.delete([RECORD]).go(me, "stage_part")
    else:
        yield "", state.go(me, "stage_part")


@step("pipeline.stages.write:write_parts")
def stage_part(state: State, me: Process, rules: Rules) -> Outcomes:
    yield "", state.write(f"{PARTS}s-{me.name}", ("s",)).go(me, "create_record")


@step("pipeline.table.record:create")
def create_record(state: State, me: Process, rules: Rules) -> Outcomes:
    standing = state if state.has(RECORD) else state.write(RECORD, (f"{PARTS}s-{me.name}",))
    yield "", standing.go(me, "read_records")


@step("pipeline.runs.by_units:publish_units")
def read_records(state: State, me: Process, rules: Rules) -> Outcomes:
    """The new part is published as it was staged, like all that are large enough."""
    record = state.file(RECORD)
    part = state.file(record.content[0]) if record else None
    if len(state.versions) != me.parent:
        yield "somebody has published", state.end(me, "conflict")
    elif part is None:
        yield "no complete record", state.delete([RECORD]).end(me, "start again")
    else:
        new = Part(data_name(me, "S", rules), part.content, staged=part.path)
        parts = (*kept_parts(state.version(me.parent))[:-1], new)
        yield "", state.go(me, "write_changes", parts=parts, then="published")


# --- reindex


@step("pipeline.table.lease:take")
def take_lease(state: State, me: Process, rules: Rules) -> Outcomes:
    if state.holder("reindex"):
        yield f"{state.holder('reindex')} has it", state.end(me, "busy")
    else:
        yield "", state.take("reindex", me.name).go(me, "finish")


@step("pipeline.table.operations.compact:rewrite")
def read_live_part(state: State, me: Process, rules: Rules) -> Outcomes:
    part = kept_parts(state.version(me.parent))[-1]
    here = state.file(part.path)
    if "e" in state.version(me.parent).rows:
        yield "", state.end(me, "nothing to do")
    elif here is None:
        yield f"{part.path} is gone", failed(state, me)
    else:
        yield part.path, state.go(me, "write_merged", held=here.content)


@step("pipeline.table.operations.compact:rewrite")
def write_merged(state: State, me: Process, rules: Rules) -> Outcomes:
    path, rows = f"{folder(me, rules)}merged", (*me.held, "e")
    first, *others = kept_parts(state.version(me.parent))[:-1]
    new = Part(data_name(me, "M", rules), rows, staged=path)
    parts = (first, *others, new)
    at = "write_row_sources" if first.sources else "write_changes"
    yield "", state.write(path, rows).go(me, at, held=(), parts=parts, then="published")


@step("pipeline.table.row_sources:renumber")
def write_row_sources(state: State, me: Process, rules: Rules) -> Outcomes:
    first, *others = me.parts
    path = _row_sources(me, first, rules)
    parts = (first._replace(sources=path), *others)
    yield "", state.write(path).go(me, "write_changes", parts=parts)


def _row_sources(me: Process, part: Part, rules: Rules) -> str:
    return data_name(me, name_of(part.path).split("-")[1], rules).replace(DATA, SOURCES)


# --- rolling back


@step("pipeline.table.operations.restore:_restored")
def plan_rollback(state: State, me: Process, rules: Rules) -> Outcomes:
    """Where the parts of the wanted version are now; those that are not live are copied under new names."""
    wanted = kept_parts(state.version(int(me.kind[-1])))
    live = {part.path for part in state.version(me.parent).parts}
    lists = {part.sources for part in state.version(me.parent).parts}
    me = me._replace(then="published")
    parts: list[Part] = []
    copies: list[tuple[str, str]] = []
    for part in wanted:
        if part.sources and not state.has(part.sources):
            yield f"{part.sources} is gone", failed(state, me, "unavailable")
            return
        if part.sources not in lists:
            own = _row_sources(me, part, rules)
            copies.append((part.sources, own))
            part = part._replace(sources=own)
        if part.path not in live:
            place = _place(state, part.path)
            if not place:
                yield f"{part.path} is gone", failed(state, me, "unavailable")
                return
            unit = name_of(part.path).split("-")[1]
            staged = f"{folder(me, rules)}restored-{unit}"
            if rules.copies_back:
                copies.append((place, staged))
                part = part._replace(path=data_name(me, unit, rules), staged=staged)
            else:
                part = part._replace(staged=place)
        parts.append(part)
    me = me._replace(parts=tuple(parts), todo=tuple(copies))
    yield "", state.go(me, "restore" if copies else "write_changes")


@step("pipeline.table.operations.restore:_copy")
def restore(state: State, me: Process, rules: Rules) -> Outcomes:
    note, after, over = copied(state, me, me.todo[0])
    if over is None:
        yield note, failed(state, me, "unavailable")
    elif over is False:
        yield note, after
    else:
        rest = me._replace(todo=me.todo[1:], held=())
        yield note, after.go(rest, "restore" if rest.todo else "write_changes")


def _place(state: State, path: str) -> str:
    """Where a part is: in data/, or in the trash of some version."""
    if state.has(path):
        return path
    return next((file.path for file in state.below(TRASH) if file.path.endswith(f"/{path}")), "")
