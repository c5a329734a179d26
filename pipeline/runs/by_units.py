"""A run by units encodes what has no record, commits, and updates the folder.

A prepared run and an executor come in. A published version and its summary go out. Tables that are built whole go this
way, because there is none yet or because they get another model, and so do dead letters that are tried again.
"""

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from pipeline import progress
from pipeline.errors import RunError
from pipeline.execution.executor import Executor
from pipeline.execution.part_workers import PartWorkers
from pipeline.model.folder import check_model_unchanged
from pipeline.progress import Phase
from pipeline.runs import plan as planning
from pipeline.runs import unread_files
from pipeline.runs.calibrate import calibrate
from pipeline.runs.encode_units import description, encode_units, pace, timings
from pipeline.runs.guard import check_version
from pipeline.runs.plan import Plan
from pipeline.runs.prepared import Prepared
from pipeline.runs.summary import Summary, summarise
from pipeline.runs.unread_files import UnreadFile
from pipeline.table import materialise, record, snapshot
from pipeline.table.operations import replace_units
from pipeline.table.publication import Publication
from pipeline.table.snapshot import Snapshot

Check = Callable[[snapshot.Tally], None]
"""It looks at all rows of the new version before it is committed, and raises what stands against it."""


def embed_units(prepared: Prepared, executor: Executor, started: float, check: Check = lambda tally: None) -> Summary:
    """Run a plan by units to its end. The run `started` at this reading of time.perf_counter."""
    prepared = calibrate(prepared, executor)
    encoded = encode_units(prepared, executor)
    seconds = timings(prepared, encoded)
    name = uuid.uuid4().hex[:12]
    version, unread, published = publish_units(prepared, executor, name, seconds | pace(encoded), check)
    total = {"total": time.perf_counter() - started}
    return summarise(prepared, version, encoded, seconds | published | total, unread)


def publish_units(
    prepared: Prepared,
    executor: Executor,
    run: str,
    timings: Mapping[str, float],
    check: Check = lambda tally: None,
) -> tuple[Snapshot, tuple[UnreadFile, ...], dict[str, float]]:
    """Commit the version and materialise it. Return it with the files that can't be read and the seconds that it took.

    Where a run only tried dead letters again, and all of them failed again, there is nothing to commit and the parent
    is returned. Raises RunError when slices are missing, too many rows or files failed or a limit is passed. Raises what
    `check` raises of all rows of the new version, and CommitConflict when another run published meanwhile.
    """
    started = time.perf_counter()
    progress.current().begin(Phase.COMMITTING)
    version, unread = _commit(prepared, executor, run, timings, check)
    if version is prepared.parent:
        return version, (), {}
    committed = time.perf_counter()
    materialise.materialise(prepared.table, version)
    return version, unread, {"commit": committed - started, "materialise": time.perf_counter() - committed}


def _commit(
    prepared: Prepared, executor: Executor, run: str, timings: Mapping[str, float], check: Check
) -> tuple[Snapshot, tuple[UnreadFile, ...]]:
    """Return the new version, or the parent where there is nothing to commit, and the files that can't be read. The records
    are not held any longer than this takes."""
    table = prepared.table
    units = [*prepared.plan.added, *prepared.plan.retried.values()]
    plan = planning.with_records(prepared.plan, record.read_all(table, [unit.unit_id for unit in units]))
    attempt = Publication(table, prepared.parent)
    attempt.check_current(prepared.vectors.fingerprint)
    if plan.tasks:
        raise RunError(f"{len(plan.tasks)} units have no complete record after the run: start again to finish them")
    retried = _recovered(prepared.parent, plan)
    work = replace_units.Work(done=replace_units.Done(plan.added, plan.records), kept=plan.kept, retried=retried)
    # A record that gave nothing is deleted, or the next run would take its unit for done.
    record.forget(table, [again.unit_id for unit, again in plan.retried.items() if unit not in retried])
    if not plan.added and not plan.dropped and not retried:
        return prepared.parent, ()
    tally = work.tally(prepared.parent)
    unread = unread_files.of_records(prepared, plan)
    # The units of an earlier version know the rows of all their files together.
    failed = tally.failed + max(_lost_rows(prepared.parent, plan), sum(item.rows for item in unread))
    effort = work.new.effort + work.again.effort
    check_version(prepared, failed=failed, total=tally.documents + failed, effort=effort, unread=unread)
    check(replace(tally, failed=failed))
    check_model_unchanged(prepared.encoder)
    workers = PartWorkers(executor, prepared)
    version = replace_units.publish(attempt, work, description(prepared, run, timings), workers)
    return version, unread


def _recovered(parent: Snapshot, plan: Plan) -> dict[str, Sequence[record.Record]]:
    """Map each unit to its new records, if some of its dead letters now have a vector or are left out."""
    if not plan.retried:
        return {}
    before = parent.tallies()
    found = {unit: (again, plan.records[again.unit_id]) for unit, again in plan.retried.items()}
    return {
        unit: items
        for unit, (again, items) in found.items()
        if replace_units.mends(before[unit], replace_units.tally_of(items), placed=again.is_placed)
    }


def _lost_rows(parent: Snapshot, plan: Plan) -> int:
    """Count the rows that broken files had in the table and no longer give. One dead letter stands for many of them."""
    broken = {
        span.file.path
        for unit in plan.added
        if any(item.broken for item in plan.records[unit.unit_id])
        for span in unit.spans
    }
    broken_units = {row["unit_id"] for row in parent.sources.to_pylist() if row["path"] in broken}
    lost = plan.dropped & broken_units
    before = sum(tally.source_rows for unit, tally in parent.tallies().items() if unit in lost)
    after = sum(
        item.num_rows
        for unit in plan.added
        if any(span.file.path in broken for span in unit.spans)
        for item in plan.records[unit.unit_id]
    )
    return max(0, before - after)
