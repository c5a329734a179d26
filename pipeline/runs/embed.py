"""An embedding run makes a table equal to its sources, under the table's lease.

A spec and an executor come in. A published version and its summary go out. A table that exists is followed by row, at the
cost of what changed (by_row.py). A table that is built whole goes by units (by_units.py), and so do dead letters that are
tried again. A reindex (reindex.py) does the same with the guards that a schedule needs.
"""

import time
from collections.abc import Collection
from dataclasses import replace

from pipeline.config import RunSpec
from pipeline.execution.executor import Executor
from pipeline.runs import by_row
from pipeline.runs.by_units import embed_units
from pipeline.runs.forecast import forecast
from pipeline.runs.held import held
from pipeline.runs.plan_summary import PlanSummary, summarise_plan
from pipeline.runs.prepare import planned_again, prepare
from pipeline.runs.prepared import Prepared
from pipeline.runs.reindex_summary import sources_read, summarise_embedded_rows
from pipeline.runs.row_changes import find
from pipeline.runs.summary import Summary, both, nothing_to_do
from pipeline.table import snapshot


def embed(spec: RunSpec, executor: Executor, *, retry_failed: bool = False, new_model: bool = False) -> Summary:
    """Make the table equal to its sources. After a kill at any moment, the same call goes on.

    Where nothing is to do, nothing is written. Raises TableBusy where another run that gives signs of life has the table and
    does not give it back within `limits.wait_s`, and other PipelineErrors.
    """
    started = time.perf_counter()

    def planned() -> Prepared:
        return prepare(spec, writes=True, retry_failed=retry_failed, new_model=new_model)

    def once() -> Summary:
        prepared = planned()
        if prepared.plan.changes_nothing:
            return nothing_to_do(prepared)
        # A run that died on another machine can't be seen to be dead: the same command goes on when its lease runs out.
        with held(prepared.table, "embed", spec.limits, outlasts=True):
            if max(snapshot.versions(prepared.table), default=0) != prepared.parent.version:
                prepared = planned()  # Another run published before this one had the table.
            return _done(prepared, executor, started, retry_failed=retry_failed)

    return planned_again(once)


def plan(spec: RunSpec, executor: Executor, *, retry_failed: bool = False, new_model: bool = False) -> PlanSummary:
    """Return what `embed` would do, with exact counts of rows where it would go by row."""
    started = time.perf_counter()
    prepared = prepare(spec, writes=False, retry_failed=retry_failed, new_model=new_model)
    if not _goes_by_row(prepared):
        return summarise_plan(prepared, executor)
    changes = find(prepared, executor, writes=False)
    planned = summarise_plan(prepared, executor, forecast(prepared, changes, executor, started, allow_deletes=True))
    if not retry_failed:
        return planned
    more = sum(part.tally.failed for part in changes.unchanged_spans)
    pending = planned.changes_pending or bool(more)
    return replace(planned, rows_to_retry=planned.rows_to_retry + more, changes_pending=pending)


def _done(prepared: Prepared, executor: Executor, started: float, *, retry_failed: bool) -> Summary:
    if prepared.plan.changes_nothing:
        return nothing_to_do(prepared)
    if not _goes_by_row(prepared):
        return embed_units(prepared, executor, started)
    done = by_row.publish_changes(prepared, executor, started, allow_deletes=True)
    summary = summarise_embedded_rows(prepared, done)
    if not retry_failed:
        return summary
    again = _only_retries(prepared, sources_read(done.changes))
    return both(summary, embed_units(again, executor, started)) if again.plan.retried else summary


def _goes_by_row(prepared: Prepared) -> bool:
    """Say whether the table is followed by row. It is built by units, and so are dead letters tried again."""
    return not prepared.is_full and bool(prepared.plan.added or prepared.plan.dropped)


def _only_retries(before: Prepared, read: Collection[int]) -> Prepared:
    """Plan to try dead letters again after all else was published by row.

    Units whose dead letters are all of sources that were `read` just now are left alone. So is a source that changed
    meanwhile: the next run sees it.
    """
    again = prepare(before.spec, writes=True, retry_failed=True)
    retried = {
        unit: rows
        for unit, rows in again.plan.retried.items()
        if any(source not in read for source, _ in rows.only or ())
    }
    plan = replace(again.plan, added=(), dropped=frozenset(), kept=again.parent.live_units(), retried=retried)
    return replace(again, plan=plan)
