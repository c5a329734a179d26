"""This machine does a piece of work where that is quicker than a cluster's start, else Ray does it.

Two executors stand behind one interface. The thresholds are those of costs.py. Ray is imported when there is work for
it.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pipeline.config import ResourceSpec
from pipeline.execution.costs import CLUSTER_START_S, KEYS_HERE, LOCAL_ENCODING_S, SEND_ROWS_HERE
from pipeline.execution.executor import (
    Do,
    Executor,
    Expected,
    Flowing,
    Given,
    Item,
    Job,
    Result,
    RowComparison,
    where_of,
)
from pipeline.execution.local.executor import LocalExecutor
from pipeline.execution.pools import Pools
from pipeline.machine.processor import has_gpus
from pipeline.progress import duration
from pipeline.stages.flow import Flow, OnProgress
from pipeline.stages.row_keys import KeyResult, KeyTask
from pipeline.stages.worker_spec import WorkerSpec
from pipeline.table.compare import Difference
from pipeline.table.diff import RowDifference
from pipeline.table.part import Part
from pipeline.work import Task

if TYPE_CHECKING:
    from pipeline.execution.ray.executor import RayExecutor

GPUS = "GPUs"
"""They are a reason for a cluster, however little there is to encode."""


class ExecutorBySize:
    """It implements execution.executor.Executor. Leaving the block ends what was started."""

    def __init__(self, resources: ResourceSpec) -> None:
        self._resources = resources
        self._stack = contextlib.ExitStack()
        self._local = LocalExecutor(resources)
        self._ray: RayExecutor | None = None
        self._reason = ""

    def __enter__(self) -> "ExecutorBySize":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def description(self) -> str:
        said = (self._ray.description if self._ray is not None else "") or self._local.description
        return f"{said} ({self._reason})" if said and self._reason else said

    def pools(self, job: Job) -> Pools:
        return self._encoding(job).pools(job)

    def flow(self, job: Job, tasks: Sequence[Task], flow: Flow, on_progress: OnProgress | None) -> Flowing:
        return self._encoding(job).flow(job, tasks, flow, on_progress)

    def with_all_cpus(self, job: Job, do: Callable[[Item, WorkerSpec, int], Result], item: Item) -> Result:
        return self._encoding(job).with_all_cpus(job, do, item)

    def for_each(
        self, job: Job, do: Do[Item, Result], items: Sequence[Item], *, seconds: float, heavy: bool = False
    ) -> Iterator[Result]:
        here = seconds <= CLUSTER_START_S or len(items) < 2
        return self._either(here).for_each(job, do, items, seconds=seconds, heavy=heavy)

    def spread(
        self,
        do: Callable[[Item, Given], Iterator[Result]],
        given: Given,
        items: Sequence[Item],
        *,
        rows: int,
        writers: int | None = None,
    ) -> Iterator[Result]:
        here = self._resources.ray_address is None or rows <= SEND_ROWS_HERE or len(items) < 2
        return self._either(here).spread(do, given, items, rows=rows, writers=writers)

    def read_keys(self, job: Job, units: Sequence[KeyTask], *, num_keys: int) -> tuple[list[KeyResult], Any]:
        """The handle says which executor has the keys."""
        executor = self._either(num_keys <= KEYS_HERE)
        known, keys = executor.read_keys(job, units, num_keys=num_keys)
        return known, (executor, keys)

    def compare_rows(self, job: Job, keys: Sequence[Any], comparison: RowComparison) -> Iterator[RowDifference]:
        executors = [executor for executor, _ in keys]
        executor = executors[0] if executors else self._local
        return executor.compare_rows(job, [some for _, some in keys], comparison)

    def compare_versions(self, job: Job, sides: Sequence[tuple[Part, int]], *, renewed: bool) -> Difference:
        here = sum(part.rows for part, _ in sides) <= KEYS_HERE
        return self._either(here).compare_versions(job, sides, renewed=renewed)

    def _either(self, here: bool) -> Executor:
        return self._local if here else self._on_ray()

    def _encoding(self, job: Job) -> Executor:
        """Choose the executor that reads, encodes and writes slices."""
        if self._ray is not None and self._ray.description:
            return self._ray
        here, reason = self._choice(job)
        self._reason = f"{reason} were expected" if reason.endswith("encoding") else reason
        return self._either(here)

    def _choice(self, job: Job) -> tuple[bool, str]:
        """Return (this machine encodes without Ray, why)."""
        if self._resources.ray_address is not None:
            return False, ""
        if self._wants_gpus():
            return False, GPUS
        return job.expected_s <= LOCAL_ENCODING_S, f"about {duration(max(1.0, job.expected_s))} of encoding"

    def expected(self, job: Job) -> Expected:
        here, reason = self._choice(job)
        # Asking for Ray's executor would import Ray.
        found = self._local.expected(job) if here else Expected(workers=where_of(self._resources), pools=None)
        if reason == GPUS:
            return replace(found, workers=f"{found.workers} ({reason})")
        return replace(found, guess=reason)

    def _wants_gpus(self) -> bool:
        asked = self._resources.gpus_per_encoder
        return bool(asked) if not isinstance(asked, str) else has_gpus()

    def _on_ray(self) -> "RayExecutor":
        if self._ray is None:
            from pipeline.execution.ray.executor import RayExecutor

            self._ray = self._stack.enter_context(RayExecutor(self._resources))
        return self._ray
