"""A reindex lets the table follow its sources by row, under the table's lease.

A spec and an executor come in. A published version and its summary go out, or a forecast of them. The work by row is
that of by_row.py, and whole builds are the work of by_units.py. An embedding run (embed.py) does the same without a
schedule's guards.
"""

import contextlib
import functools
import time
from collections.abc import Iterator

from pipeline.config import RunSpec
from pipeline.execution.executor import Executor
from pipeline.runs import by_row
from pipeline.runs.by_units import embed_units
from pipeline.runs.forecast import Forecast, forecast
from pipeline.runs.held import held
from pipeline.runs.prepare import check_paths, planned_again, prepare
from pipeline.runs.reindex_summary import Reindexed, nothing_to_reindex, summarise_rows
from pipeline.runs.row_changes import check_built, check_deleted, find
from pipeline.runs.summary import Summary
from pipeline.storage import Folder


@contextlib.contextmanager
def alone(spec: RunSpec) -> Iterator[None]:
    """Hold the table's lease. Raises TableBusy before any work."""
    check_paths(spec)
    with held(Folder(spec.table.path, spec.table.storage_options), "reindex", spec.limits):
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
        done = by_row.publish_changes(prepared, executor, started, allow_deletes=allow_deletes)
        if done.changes.changes_nothing:
            return nothing_to_reindex(prepared, done.changes.stale_files, done.seconds)
        return summarise_rows(prepared, done)

    return planned_again(once)


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
    return forecast(prepared, changes, executor, started, price_per_hour=price_per_hour, allow_deletes=allow_deletes)
