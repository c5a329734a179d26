"""A table follows its sources by row, at the cost of what changed.

A prepared run comes in, with an executor. A published version and its summary go out. Differences are found by
row_changes.py, and rows get into a version by row_publication.py. An embedding run goes this way, too, when columns of
its table take other types: its units would all be new ones.
"""

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace

from pipeline import progress
from pipeline.execution.costs import READ_ROWS_PER_S
from pipeline.execution.executor import Executor
from pipeline.execution.part_workers import PartWorkers
from pipeline.model.folder import check_model_unchanged
from pipeline.progress import Phase
from pipeline.runs.encode_units import description, encode_units, pace, timings
from pipeline.runs.guard import check_unread, check_version
from pipeline.runs.prepared import Prepared
from pipeline.runs.row_changes import Changes, check_deleted, find
from pipeline.runs.row_publication import all_staged, revision_of, write_tasks
from pipeline.runs.summary import NOTHING_ENCODED, Encoded
from pipeline.stages import row_writer
from pipeline.table import materialise
from pipeline.table.operations import merge_rows
from pipeline.table.operations.merge_rows import Upkeep
from pipeline.table.record import Effort
from pipeline.table.snapshot import Snapshot, Tally


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """It is what a run by row did."""

    changes: Changes
    version: Snapshot
    """It is the parent where nothing changed."""
    upkeep: Upkeep
    encoded: Encoded
    seconds: Mapping[str, float]


def publish_changes(prepared: Prepared, executor: Executor, started: float, *, allow_deletes: bool) -> Outcome:
    """Find what changed, encode the texts that have no vector, and publish the version.

    The run `started` at this reading of time.perf_counter. Raises GateFailed where too much would be deleted, and
    what the steps raise.
    """
    planned = time.perf_counter()
    progress.current().begin(Phase.COMPARING)
    changes = find(prepared, executor, writes=True)
    found_s = time.perf_counter() - planned
    check_unread(prepared, changes.stale_files)
    if changes.changes_nothing:
        _check_missing(prepared, changes)
        return Outcome(
            changes=changes,
            version=prepared.parent,
            upkeep=Upkeep(untouched=len(prepared.parent.parts)),
            encoded=NOTHING_ENCODED,
            seconds={"plan": prepared.plan_s, "diff": found_s},
        )
    check_deleted(prepared, changes, allowed=allow_deletes)
    encoded = encode_texts(prepared, executor, changes)
    seconds = timings(prepared, encoded) | {"diff": found_s}
    name = uuid.uuid4().hex[:12]
    version, upkeep, published = publish_rows(prepared, executor, changes, name, seconds | pace(encoded))
    total = {"total": time.perf_counter() - started}
    return Outcome(
        changes=changes, version=version, upkeep=upkeep, encoded=encoded, seconds=seconds | published | total
    )


def _check_missing(prepared: Prepared, changes: Changes) -> None:
    """Raise RunError where nothing would be published, and files that can't be read hold too many rows."""
    missing = sum(item.rows for item in changes.stale_files)
    if not missing:
        return
    tally = sum(prepared.parent.tallies().values(), Tally())
    failed, unread = tally.failed + missing, changes.stale_files
    check_version(prepared, failed=failed, total=tally.documents + failed, effort=Effort(), unread=unread)


def encode_texts(prepared: Prepared, executor: Executor, changes: Changes) -> Encoded:
    """Encode the texts that have no vector. Every finished slice is recorded in staging, whatever happens afterwards.

    Raises what `encode_units` raises.
    """
    return encode_units(for_texts(prepared, changes), executor) if changes.texts else NOTHING_ENCODED


def for_texts(prepared: Prepared, changes: Changes) -> Prepared:
    """Return the run as far as it encodes texts."""
    return replace(prepared, plan=replace(prepared.plan, added=changes.texts, retried={}, records={}))


def publish_rows(
    prepared: Prepared, executor: Executor, changes: Changes, name: str, timings: Mapping[str, float]
) -> tuple[Snapshot, Upkeep, dict[str, float]]:
    """Write the rows, commit the version and materialise it.

    Return the version, what it did to the files, and the seconds it took. Raises RunError where texts are missing or
    too many rows failed, GateFailed, SourceChanged, and CommitConflict when another run published meanwhile.
    """
    started = time.perf_counter()
    progress.current().begin(Phase.WRITING)
    table, parent = prepared.table, prepared.parent
    with changes.publication.guarded(prepared.vectors.fingerprint):
        changes.publication.check_current(prepared.vectors.fingerprint)
        staged, records = all_staged(prepared, changes)
        tasks = write_tasks(prepared, executor, changes, staged)
        seconds = len(changes.upserts) / READ_ROWS_PER_S
        written = list(executor.for_each(prepared, row_writer.write_upserts, tasks, seconds=seconds))
        made = revision_of(prepared, executor, changes, written, records)
    tally = sum((tally for _, tally in made.added), Tally())
    tally += sum((tally for _, tally in made.stale.values()), Tally())
    tally += sum((kept for unit, kept in parent.tallies().items() if unit in made.kept), Tally())
    unread = changes.stale_files
    failed = tally.failed + sum(item.rows for item in unread)
    check_version(prepared, failed=failed, total=tally.documents + failed, effort=made.effort, unread=unread)
    assembled = time.perf_counter()
    progress.current().begin(Phase.COMMITTING)
    check_model_unchanged(prepared.encoder)
    workers = PartWorkers(executor, prepared)
    version, upkeep = merge_rows.publish(changes.publication, made, description(prepared, name, timings), workers)
    committed = time.perf_counter()
    materialise.materialise(table, version)
    return (
        version,
        upkeep,
        {
            "assemble": assembled - started,
            "commit": committed - assembled,
            "materialise": time.perf_counter() - committed,
        },
    )
