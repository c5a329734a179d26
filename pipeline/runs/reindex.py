"""A reindex lets the table follow its sources by row, at the cost of what changed.

A spec and an executor come in. A published version and its summary go out. Differences are found by row_changes.py,
and rows get into a version by row_publication.py. Encoding and whole builds are the work of embed.py.
"""

import contextlib
import functools
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import replace

from pipeline.config import RunSpec
from pipeline.execution.costs import READ_ROWS_PER_S
from pipeline.execution.executor import Executor
from pipeline.execution.part_workers import PartWorkers
from pipeline.model.folder import check_model_unchanged
from pipeline.runs.embed import description, embed_units, encode_units, pace, planned_again, timings
from pipeline.runs.forecast import Forecast, forecast
from pipeline.runs.guard import check_unread, check_version
from pipeline.runs.prepare import check_paths, prepare
from pipeline.runs.prepared import Prepared
from pipeline.runs.reindex_summary import Reindexed, nothing_to_reindex, summarise_rows
from pipeline.runs.row_changes import Changes, check_built, check_deleted, find
from pipeline.runs.row_publication import all_staged, revision_of, write_tasks
from pipeline.runs.summary import NOTHING_ENCODED, Encoded, Summary
from pipeline.stages import row_writer
from pipeline.storage import Folder, before_work
from pipeline.table import lease, materialise
from pipeline.table.operations import merge_rows
from pipeline.table.operations.merge_rows import Upkeep
from pipeline.table.snapshot import Snapshot, Tally


@contextlib.contextmanager
def alone(spec: RunSpec) -> Iterator[None]:
    """Hold the table's lease. Raises TableBusy before any work."""
    check_paths(spec)
    table = Folder(spec.table.path, spec.table.storage_options)
    with contextlib.ExitStack() as stack:
        with before_work():
            stack.enter_context(lease.held(table, "reindex", spec.limits.lease_s, spec.limits.wait_s))
        yield


def reindex(
    spec: RunSpec, executor: Executor, *, new_model: bool = False, allow_deletes: bool = False
) -> Reindexed | Summary:
    """Bring the table up to date while the caller holds the lease. Raises GateFailed where too much would be deleted."""
    started = time.perf_counter()

    def once() -> Reindexed | Summary:
        prepared = prepare(spec, writes=True, new_model=new_model)
        if prepared.plan.changes_nothing:
            return nothing_to_reindex(prepared)
        if prepared.is_full:
            check_deleted(prepared, None, allowed=allow_deletes)
            return embed_units(
                prepared, executor, started, functools.partial(check_built, prepared, allowed=allow_deletes)
            )
        return _by_row(prepared, executor, started, allow_deletes=allow_deletes)

    return planned_again(once)


def _by_row(prepared: Prepared, executor: Executor, started: float, *, allow_deletes: bool) -> Reindexed:
    planned = time.perf_counter()
    changes = find(prepared, executor, writes=True)
    found_s = time.perf_counter() - planned
    check_unread(prepared, changes.stale_files)
    if changes.changes_nothing:
        return nothing_to_reindex(prepared, changes.stale_files, diff=found_s)
    check_deleted(prepared, changes, allowed=allow_deletes)
    encoded = encode_texts(prepared, executor, changes)
    seconds = timings(prepared, encoded) | {"diff": found_s}
    name = uuid.uuid4().hex[:12]
    version, upkeep, published = publish_rows(prepared, executor, changes, name, seconds | pace(encoded))
    total = {"total": time.perf_counter() - started}
    return summarise_rows(prepared, changes, version, upkeep, encoded, seconds | published | total)


def plan(
    spec: RunSpec,
    executor: Executor,
    *,
    new_model: bool = False,
    allow_deletes: bool = False,
    price_per_hour: float | None = None,
) -> Forecast:
    """Forecast what `reindex` would do."""
    started = time.perf_counter()
    prepared = prepare(spec, writes=False, new_model=new_model)
    nothing = prepared.plan.changes_nothing or prepared.is_full
    changes = None if nothing else find(prepared, executor, writes=False)
    found = forecast(prepared, changes, price_per_hour, started)
    return replace(found, refusal=None) if allow_deletes else found


def encode_texts(prepared: Prepared, executor: Executor, changes: Changes) -> Encoded:
    """Encode the texts that have no vector. Every finished slice is recorded in staging, whatever happens afterwards.

    Raises what `encode_units` raises.
    """
    if not changes.texts:
        return NOTHING_ENCODED
    plan = replace(prepared.plan, added=changes.texts, retried={}, records={})
    return encode_units(replace(prepared, plan=plan), executor)


def publish_rows(
    prepared: Prepared, executor: Executor, changes: Changes, name: str, timings: Mapping[str, float]
) -> tuple[Snapshot, Upkeep, dict[str, float]]:
    """Write the rows, commit the version and materialise it.

    Return the version, what it did to the files, and the seconds it took. Raises RunError where texts are missing or
    too many rows failed, GateFailed, SourceChanged, and CommitConflict when another run published meanwhile.
    """
    started = time.perf_counter()
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
