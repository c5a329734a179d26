"""The stages of a flow, and work on single items, run in Ray's processes.

Each worker asks the run's monitor, by the run's name, for what it has to know. Ray keeps and shows what tasks and
actors are made with, and a worker's spec holds secrets.
"""

import functools
import pickle
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pyarrow as pa
import ray
from ray import cloudpickle

from pipeline.encoder.tokenizer import Tokenizer
from pipeline.execution.strikes import Worker
from pipeline.execution.worker import SliceEncoder, read_task, write_row
from pipeline.stages import slice_row
from pipeline.stages.flow import Flow
from pipeline.stages.worker_spec import WorkerSpec
from pipeline.work import Task

CLAIM_EVERY_S = 0.02


def read_stage(batch: pa.Table, run: str) -> Iterator[pa.Table]:
    """Yield the slices of tasks. An Arrow table with a column `task` of pickled tasks comes in."""
    monitor = ray.get_actor(run)
    spec, flow = given(run)
    for item in batch.column("task").to_pylist():
        task: Task = pickle.loads(item)
        work = ("read", task.unit.unit_id)
        strikes = ray.get(monitor.begin.remote(work, this_worker()))
        yield from read_task(task, spec, flow, tokenizer(run), strikes)
        monitor.end.remote(work)


class EncodeStage:
    """It is an encoder actor."""

    def __init__(self, run: str) -> None:
        self._monitor = ray.get_actor(run)
        spec, flow = given(run)
        self._encoder = SliceEncoder(flow, this_worker().name, self._tell)
        self._is_recorded = flow.write is not None
        died = ray.get(self._monitor.starting.remote(this_worker()))
        self._encoder.load(spec, died)
        self._monitor.ready.remote(this_worker())

    def __call__(self, batch: pa.Table) -> pa.Table:
        key = slice_row.key_of(batch)
        # Ray holds encoders back by bytes in its object store, but encoded rows are what a crash must not cost.
        while (strikes := ray.get(self._monitor.claim.remote(key, this_worker()))) is None:
            time.sleep(CLAIM_EVERY_S)
        answer = self._encoder.encode(batch, strikes)
        self._monitor.end.remote(("encode", key))
        if not self._is_recorded:
            self._monitor.release.remote(key)
        return answer

    def _tell(self, rows: int, tokens: int) -> None:
        self._monitor.add_progress.remote(rows, tokens)


def write_stage(batch: pa.Table, run: str) -> pa.Table:
    monitor, key = ray.get_actor(run), slice_row.key_of(batch)
    spec, flow = given(run)
    strikes = ray.get(monitor.begin.remote(("write", key), this_worker()))
    report = write_row(batch, spec, flow, strikes)
    monitor.release.remote(key)
    return report


def do_each(batch: pa.Table, run: str) -> Iterator[pa.Table]:
    """Do each of the pickled pairs (function, item) in a column `item`. They give rows with a pickled `result`."""
    spec, _ = given(run)
    for work in batch.column("item").to_pylist():
        do, item = pickle.loads(work)
        for result in do(item, spec, functools.partial(tokenizer, run)):
            yield pa.table({"result": pa.array([pickle.dumps(result)], pa.large_binary())})


def do_alone(do: Any, item: Any, run: str, threads: int) -> Any:
    return do(item, given(run)[0], threads)


def do_given(batch: pa.Table, run: str) -> Iterator[pa.Table]:
    """Do each of the pickled pairs (function, item) with what the run gives. They give rows with a pickled `result`."""
    work, _ = sent(run)
    for item in batch.column("item").to_pylist():
        do, what = pickle.loads(item)
        for result in do(what, work):
            yield pa.table({"result": pa.array([pickle.dumps(result)], pa.large_binary())})


@functools.lru_cache(maxsize=2)
def sent(run: str) -> tuple[Any, Flow]:
    """Return what the run's monitor has for its workers."""
    monitor = ray.get_actor(run)
    while (settings := ray.get(monitor.get_settings.remote())) is None:  # The driver's call may still be on its way.
        time.sleep(CLAIM_EVERY_S)
    work: tuple[Any, Flow] = cloudpickle.loads(settings)
    return work


@functools.lru_cache(maxsize=2)
def given(run: str) -> tuple[WorkerSpec, Flow]:
    """Return what the run gives its workers, with all files of the model on this node."""
    spec: WorkerSpec
    spec, flow = sent(run)
    pa.set_cpu_count(spec.read.threads)  # Arrow would take all cores in each worker.
    return replace(spec, encode=replace(spec.encode, encoder=spec.encode.encoder.here())), flow


@functools.lru_cache(maxsize=2)
def tokenizer(run: str) -> Tokenizer:
    spec, _ = given(run)
    return Tokenizer(spec.encode.encoder, spec.read.threads, spec.read.expected_chars)


@functools.cache
def this_worker() -> Worker:
    return Worker(uuid.uuid4().hex, ray.get_runtime_context().get_node_id())
