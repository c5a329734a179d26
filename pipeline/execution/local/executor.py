"""This machine does the work without Ray: small pieces in this process, slices in worker processes.

This process loads no torch. Whatever needs it runs in a worker process.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace

import numpy as np

from pipeline import progress
from pipeline.config import ResourceSpec
from pipeline.encoder.tokenizer import Tokenizer
from pipeline.errors import PipelineError, RunError
from pipeline.execution.costs import ENCODER_START_S, LIGHT_S, LIGHT_THREADS
from pipeline.execution.executor import Do, Expected, Flowing, Given, Item, Job, Result, RowComparison
from pipeline.execution.local.log import WorkerLog
from pipeline.execution.local.pool import LocalFlow
from pipeline.execution.pools import ALONE, Pools, choose_pools
from pipeline.machine.child import Child, how_it_ended
from pipeline.machine.quotas import cores, memory_bytes
from pipeline.stages import row_keys
from pipeline.stages.flow import EMBED, Flow, OnProgress
from pipeline.stages.row_keys import KeyResult, KeyTask
from pipeline.stages.worker_spec import WorkerSpec
from pipeline.table import diff, scan
from pipeline.table.compare import Difference
from pipeline.table.diff import KEPT, WANTED_KEY, Keys, RowDifference
from pipeline.table.part import Part
from pipeline.table.workers import compare_here
from pipeline.work import Task

MEMORY_SHARE = 0.8
"""Workers may have this share of the memory that the machine, or the container, has in all."""
DRIVER_BYTES = 512 * 2**20
"""The driver and the process that reads and writes hold about so many bytes."""


class LocalExecutor:
    """It implements execution.executor.Executor."""

    def __init__(self, resources: ResourceSpec) -> None:
        self._resources = resources
        self.description = ""

    def __enter__(self) -> "LocalExecutor":
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing, since every call ended its own processes."""

    def pools(self, job: Job) -> Pools:
        """Take one encoder per core that the memory has room for, or a single one where a second would take longer to
        start than it saves. That one has all cores where it starts without torch."""
        memory = memory_bytes()
        room = {"memory": MEMORY_SHARE * memory - DRIVER_BYTES} if memory is not None else {}
        found = choose_pools(self._resources, [{"CPU": cores() + 1, **room}], job.encoder_bytes, job.load)
        if self._is_light(job, found):
            return replace(found, encoders=1, cpus_per_encoder=min(cores(), LIGHT_THREADS), light=True)
        if self._resources.encoders == "auto" and job.expected_s * cores() < ENCODER_START_S:
            return replace(found, encoders=1)
        return found

    def _is_light(self, job: Job, found: Pools) -> bool:
        free = self._resources.encoders == "auto" and self._resources.cpus_per_encoder == "auto"
        little = job.expected_s * cores() <= LIGHT_S * min(cores(), LIGHT_THREADS)
        return free and little and found.device == "cpu" and job.may_be_light

    def expected(self, job: Job) -> Expected:
        pools = self.pools(job)
        return Expected(workers=f"{pools.describe()} of this machine, without Ray", pools=pools)

    def flow(self, job: Job, tasks: Sequence[Task], flow: Flow, on_progress: OnProgress | None) -> Flowing:
        pools = self.pools(job)
        if flow.encode is not None and flow.write is not None:
            self.description = f"{pools.describe()} of this machine, without Ray"
        limited = pools.at_most(flow.most_encoders, len(tasks))
        if flow.encode is not None:
            progress.current().start_encoders(f"{limited.describe_encoders()} of this machine")
        with LocalFlow(tasks, flow, job.worker_spec(pools), limited, on_progress) as running:
            yield from running.results()

    def with_all_cpus(self, job: Job, do: Callable[[Item, WorkerSpec, int], Result], item: Item) -> Result:
        """Do it in one worker process."""
        log = WorkerLog()
        child = Child("pipeline.execution.local.process", log.file)
        try:
            child.connection.send(("alone", job.worker_spec(self.pools(job)), EMBED))
            child.connection.send(("alone", do, item, cores()))
            kind, value = child.connection.recv()
        except (EOFError, OSError):
            raise RunError(f"the process that was to measure the model {how_it_ended(child.wait())}") from None
        finally:
            child.end()
            log.close(keep=False)
        if kind == "error":
            raise value if isinstance(value, PipelineError) else RunError(f"{type(value).__name__}: {value}")
        result: Result = value
        return result

    def for_each(
        self, job: Job, do: Do[Item, Result], items: Sequence[Item], *, seconds: float, heavy: bool = False
    ) -> Iterator[Result]:
        """Do the work in this process, one item after the other, or heavy ones in a thread per core."""
        if not items:
            return
        spec = job.worker_spec(ALONE)
        tokenizer = functools.cache(lambda: Tokenizer(spec.encode.encoder, 1))
        if not heavy or len(items) == 1:
            for item in items:
                yield from do(item, spec, tokenizer)
            return
        threads, waits = ThreadPoolExecutor(cores()), True
        try:
            for results in threads.map(lambda item: list(do(item, spec, tokenizer)), items):
                yield from results
        except KeyboardInterrupt:
            waits = False  # What is under way is staged at most, and no version will name it.
            raise
        finally:
            threads.shutdown(wait=waits, cancel_futures=True)

    def spread(
        self,
        do: Callable[[Item, Given], Iterator[Result]],
        given: Given,
        items: Sequence[Item],
        *,
        rows: int,
        writers: int | None = None,
    ) -> Iterator[Result]:
        """Do the work in threads, one per core without `writers`: libraries compute and wait outside of Python."""
        if not items:
            return
        threads, waits = ThreadPoolExecutor(min(len(items), writers or cores())), True
        try:
            working = [threads.submit(lambda item: list(do(item, given)), item) for item in items]
            for done in as_completed(working):
                yield from done.result()
        except KeyboardInterrupt:
            waits = False  # Pieces that are under way are repeated by the next run.
            raise
        finally:
            threads.shutdown(wait=waits, cancel_futures=True)

    def read_keys(self, job: Job, units: Sequence[KeyTask], *, num_keys: int) -> tuple[list[KeyResult], list[Keys]]:
        """The handle is the keys themselves."""
        known: list[KeyResult] = []
        keys: list[Keys] = []
        for found in self.for_each(job, row_keys.read_keys, units, seconds=0.0):
            known.append(found) if isinstance(found, KeyResult) else keys.append(found)
        return known, keys

    def compare_rows(self, job: Job, keys: Sequence[list[Keys]], comparison: RowComparison) -> Iterator[RowDifference]:
        """Compare in one bucket. Only live rows that a row of the units may replace are held."""
        new = np.concatenate([np.zeros(0, WANTED_KEY), *(some for found in keys for some in found)])
        new = new[~np.isin(new["unit"], list(comparison.skipped))]
        ids = diff.words(new["id"])
        live = [
            rows[(comparison.states[rows["source"]] != KEPT) | diff.among(rows["id"], ids)]
            for number, part in enumerate(comparison.parts)
            for rows in scan.keys(job.table, part, number, chunked=comparison.chunked)
        ]
        yield diff.compare(diff.joined([new, *live]), comparison.states, renewed=comparison.renewed)

    def compare_versions(self, job: Job, sides: Sequence[tuple[Part, int]], *, renewed: bool) -> Difference:
        return compare_here(job.table, sides, renewed=renewed)
