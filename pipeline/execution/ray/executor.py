"""This executor works on a Ray cluster, which starts, or is joined, when there is work for it."""

import contextlib
import math
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
import ray.data
from ray.data import TaskPoolStrategy

from pipeline import progress
from pipeline.config import ResourceSpec
from pipeline.execution.executor import Do, Expected, Flowing, Given, Item, Job, Result, RowComparison, where_of
from pipeline.execution.pools import Pools
from pipeline.execution.ray import shuffle, workers
from pipeline.execution.ray.cluster import Cluster, alive_nodes
from pipeline.execution.ray.flow import monitored, run_flow
from pipeline.execution.ray.shuffle import items_of, light
from pipeline.stages.flow import Flow, OnProgress
from pipeline.stages.row_keys import KeyResult, KeyTask
from pipeline.stages.worker_spec import WorkerSpec
from pipeline.table import compare
from pipeline.table.compare import Difference
from pipeline.table.diff import RowDifference
from pipeline.table.part import Part
from pipeline.work import Task

KEYS_PER_BUCKET = 4_000_000
"""One worker compares about so many keys of two versions at once."""
DIFF_KEYS_PER_BUCKET = 2_000_000
"""One worker compares about so many keys of units and live rows at once."""


class RayExecutor:
    """It implements execution.executor.Executor. Leaving the block ends a local Ray, or leaves the cluster."""

    def __init__(self, resources: ResourceSpec) -> None:
        self._resources = resources
        self._stack = contextlib.ExitStack()
        self._cluster = Cluster(resources)
        self.description = ""

    def __enter__(self) -> "RayExecutor":
        self._stack.enter_context(self._cluster)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def pools(self, job: Job) -> Pools:
        return self._cluster.pools(job.encoder_bytes, job.load)

    def expected(self, job: Job) -> Expected:
        """Look at pools only where the cluster has started already."""
        where = where_of(self._resources)
        pools = self.pools(job) if self._cluster.started else None
        return Expected(workers=f"{pools.describe()} on {where}" if pools is not None else where, pools=pools)

    def flow(self, job: Job, tasks: Sequence[Task], flow: Flow, on_progress: OnProgress | None) -> Flowing:
        pools = self.pools(job)
        self._cluster.check_reachable(job.table)
        if flow.encode is not None and flow.write is not None:
            self.description = f"{pools.describe()} on {where_of(self._resources)}"
        limited = pools.at_most(flow.most_encoders, len(tasks))
        if flow.encode is not None:
            progress.current().start_encoders(f"{limited.describe_encoders()} on {where_of(self._resources)}")
        return run_flow(tasks, flow, job.worker_spec(pools), limited, on_progress)

    def with_all_cpus(self, job: Job, do: Callable[[Item, WorkerSpec, int], Result], item: Item) -> Result:
        """Do it on one worker, with all of a node's CPUs but one."""
        spec = job.worker_spec(self._cluster.pools())
        cpus = max(int(node["Resources"].get("CPU", 0)) for node in alive_nodes())
        threads = max(1, cpus - 1)
        with monitored("alone", spec) as (run, _):
            result: Result = ray.get(
                ray.remote(workers.do_alone).options(num_cpus=threads).remote(do, item, run, threads)
            )
        return result

    def for_each(
        self, job: Job, do: Do[Item, Result], items: Sequence[Item], *, seconds: float, heavy: bool = False
    ) -> Iterator[Result]:
        pairs = [(do, item) for item in items]
        # Each takes a CPU, so that no more whole parts are in memory than there are cores.
        cpus = {"num_cpus": 1} if heavy else {}
        for row in self._rows(job, lambda run: items_of(pairs).map_batches(workers.do_each, **light(run) | cpus)):
            yield pickle.loads(row["result"])

    def spread(
        self,
        do: Callable[[Item, Given], Iterator[Result]],
        given: Given,
        items: Sequence[Item],
        *,
        rows: int,
        writers: int | None = None,
    ) -> Iterator[Result]:
        self._cluster.start()
        size = {"compute": TaskPoolStrategy(size=writers)} if writers else {}
        with monitored("feed", given) as (run, _):
            pairs = items_of([(do, item) for item in items])
            options: dict[str, Any] = light(run) | {"num_cpus": 1} | size
            for row in pairs.map_batches(workers.do_given, **options).iter_rows():
                yield pickle.loads(row["result"])

    def read_keys(
        self, job: Job, units: Sequence[KeyTask], *, num_keys: int
    ) -> tuple[list[KeyResult], "ray.data.Dataset"]:
        """Leave the keys on the cluster. Their handle is a data set."""
        with monitored("keys", job.worker_spec(self._cluster.pools())) as (run, _):
            keys = items_of(units).map_batches(shuffle.unit_keys, **light(run)).materialize()
            return shuffle.known_of(keys), keys

    def compare_rows(
        self, job: Job, keys: Sequence["ray.data.Dataset"], comparison: RowComparison
    ) -> Iterator[RowDifference]:
        num_buckets = max(1, math.ceil(comparison.num_keys / DIFF_KEYS_PER_BUCKET))
        items = [(part, number, comparison.chunked) for number, part in enumerate(comparison.parts)]

        def flow(run: str) -> "ray.data.Dataset":
            sides = [shuffle.without_skipped(some, comparison.skipped) for some in keys]
            if items:
                sides.append(items_of(items).map_batches(shuffle.live_keys, **light(run)))
            both = sides[0].union(*sides[1:])
            return shuffle.diffed(both, num_buckets, comparison.states, renewed=comparison.renewed)

        yield from map(shuffle.found_of, self._rows(job, flow))

    def compare_versions(self, job: Job, sides: Sequence[tuple[Part, int]], *, renewed: bool) -> Difference:
        num_buckets = max(1, math.ceil(sum(part.rows for part, _ in sides) / KEYS_PER_BUCKET))
        items = [(part, number, side) for number, (part, side) in enumerate(sides)]

        def flow(run: str) -> "ray.data.Dataset":
            keys = items_of(items).map_batches(shuffle.part_keys, **light(run))
            all_new = compare.is_all_new(side for _, side in sides)
            return shuffle.compared(keys, num_buckets, renewed=renewed, all_new=all_new)

        return compare.merge([pickle.loads(row["difference"]) for row in self._rows(job, flow)])

    def _rows(self, job: Job, flow: Callable[[str], "ray.data.Dataset"]) -> Iterator[dict[str, Any]]:
        with monitored("commit", job.worker_spec(self._cluster.pools())) as (run, _):
            yield from flow(run).iter_rows()
