"""Ray's only home: starts or joins a cluster, sizes the pools, and runs units through the stages as Ray Data rows.

One row is one slice: `from_items(units) -> read + tokenize (tasks) -> encode (actors) -> write (tasks)`. What a stage does
stands in stages/; this file only says where it runs. Secrets reach workers through a zero-CPU actor of the run, because
Ray shows constructor arguments in clear text.
"""

import functools
import json
import logging
import math
import os
import pickle
import re
import socket
import sys
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

# Read by Ray at import and inherited by its workers: no phoning home, no progress bars of its own, no metrics agent.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("RAY_enable_metrics_collection", "0")
# Workers are as important as whatever else runs here; Ray would have them wait for everything (nice 15).
os.environ.setdefault("RAY_worker_niceness", "0")
# Ray Data makes actors in a way that Ray reports as an error on stderr (ray-project/ray#53727).
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
# A driver started by `uv run` would make every worker start through uv.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")

import ray
import ray._private.worker as ray_worker
import ray.data
from ray import cloudpickle
from ray.data import ActorPoolStrategy, TaskPoolStrategy
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline import errors
from pipeline.config import ResourceSpec
from pipeline.encoder import probes
from pipeline.encoder.batch_size import best_budget
from pipeline.encoder.deadline import Deadline
from pipeline.encoder.encoder import Encoder, build_encoder
from pipeline.encoder.isolated import IsolatedEngine
from pipeline.encoder.tokenizer import Tokenizer
from pipeline.errors import ConfigError, InputError, PipelineError, RunError
from pipeline.execution.pools import Pools
from pipeline.execution.ray.monitor import Monitor
from pipeline.execution.strikes import Worker
from pipeline.runs.plan import Task
from pipeline.stages import distinct_texts, row_writer
from pipeline.stages import encode as stages
from pipeline.stages.encode import Settings
from pipeline.stages.row_writer import Known, Reading
from pipeline.storage import Folder
from pipeline.table import compare, diff, layout, row_sources, scan
from pipeline.table.calibration import Measurement
from pipeline.table.compare import Difference
from pipeline.table.diff import LIVE_KEY, WANTED_KEY, RowDifference, SourceStates
from pipeline.table.operations import compact as rewriting
from pipeline.table.operations.compact import Rewrite
from pipeline.table.part import Part
from pipeline.table.record import Effort
from pipeline.table.row_sources import Renumbering
from pipeline.table.workers import WorkersHere

OBJECT_STORE_BYTES = 2 * 2**30
"""For a local Ray: a slice is at most 64 MiB of text and 64 MiB of vectors, and few are in flight."""
TASKS_PER_ENCODER = 2
"""Slices at an encoder: one in work, one at hand."""
MOST_CPUS_PER_TASK = 0.99
"""Reading must not ask for as many CPUs as an encoder, or Ray makes one stage of both where their pools are of one size."""
KEYS_HERE = 1_000_000
"""Up to this many rows are compared in the driver (64 bytes each); more go through the shuffle."""
KEYS_PER_BUCKET = 4_000_000
DIFF_KEYS_PER_BUCKET = 2_000_000
POLL_S = 0.5
CONNECT_S = 5.0
CLAIM_EVERY_S = 0.02

MOST_STRIKES = 5
"""Workers that one piece of work may end before the run ends instead. Ray would start new ones for ever."""
STALLED_TIMEOUTS = 8
"""Nothing moves for so many unit_timeout_s: three rows of a slice that hang, one after the other, take seven."""

MOST_THREADS = 8
"""Of the process that quantises a model: more wait for each other."""
CALIBRATION_ENCODERS = 4
"""For a thousand texts: more would take longer to start than they save."""

SliceKey = tuple[str, int]
"""Unit and first row."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What the driver learns of a slice: it was recorded, or it was refused."""

    unit_id: str
    num_rows: int
    failed: int
    last: bool
    effort: Effort
    encoder: str
    engine: str
    encode_start: float
    encode_stop: float
    """Unix seconds."""
    refused: str | None

    @property
    def source_changed(self) -> bool:
        return (self.refused or "").startswith(stages.SOURCE_CHANGED)


@dataclass(frozen=True, kw_only=True)
class Busy:
    """When the encoders worked."""

    first_start: float
    """Unix seconds of the first slice."""
    share: float
    """Of the time between each encoder's first and last slice, the share that it was encoding."""


def busy_time(reports: Sequence[Report]) -> Busy:
    """Over the slices of one run; all zero where nothing was encoded."""
    spans: dict[str, list[Report]] = {}
    for report in reports:
        spans.setdefault(report.encoder, []).append(report)
    alive_s = sum(max(r.encode_stop for r in own) - min(r.encode_start for r in own) for own in spans.values())
    busy_s = sum(report.encode_stop - report.encode_start for report in reports)
    return Busy(
        first_start=min((report.encode_start for report in reports), default=time.time()),
        share=busy_s / alive_s if alive_s else 0.0,
    )


class Cluster:
    """A Ray cluster for the time of a run: a fresh local one, or the one at `ray_address`. Starts on first need."""

    def __init__(self, spec: ResourceSpec) -> None:
        self._spec = spec
        self.started = False
        self.start_s = 0.0
        self._print = ray_worker.print_to_stdstream

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *_: object) -> None:
        if self.started:
            ray.shutdown()
            ray_worker.print_to_stdstream = self._print

    def start(self) -> None:
        """Raises ConfigError if the address doesn't answer."""
        if self.started:
            return
        started = time.perf_counter()
        if ray.is_initialized():
            raise InputError("this process already runs a Ray session: close it with ray.shutdown() first")
        try:
            with _muted_stderr():
                _init_ray(self._spec.ray_address)
        except (ConnectionError, ValueError) as error:
            raise ConfigError(
                f"resources.ray_address {self._spec.ray_address!r} does not answer: {_first_line(error)}"
            ) from None
        # Whatever log_to_driver says, Ray tells of workers that died on stdout, in the middle of what --json prints.
        ray_worker.print_to_stdstream = lambda data, ignore_prefix: None
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        # It counts units; a unit gives as many slices as there are encoders, and more.
        warnings.filterwarnings("ignore", "The minimum number of concurrent actors", UserWarning)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        # Comparing a table with itself must not depend on how much memory the object store has.
        context.use_disk_based_hash_shuffle = True
        self.started = True
        self.start_s = time.perf_counter() - started

    def pools(self) -> Pools:
        self.start()
        return choose_pools(self._spec, [node["Resources"] for node in ray.nodes() if node["Alive"]])

    def check_reachable(self, table: Folder) -> None:
        """A table on a local path must be the same folder on every node; raises InputError naming a node where it isn't."""
        nodes = [node for node in ray.nodes() if node["Alive"]]
        if not table.is_local or len(nodes) < 2:
            return
        probe = f"{layout.STAGING}node-probe-{uuid.uuid4().hex[:12]}"
        table.write(probe, b"")
        try:
            for node in nodes:
                seen = ray.remote(_sees).options(num_cpus=0, scheduling_strategy=_on_node(node["NodeID"]))
                if not ray.get(seen.remote(table.url, probe)):
                    raise InputError(
                        f"table.path {table.url!r} is a local folder that node {node['NodeManagerHostname']} doesn't "
                        "share: give a shared folder or an s3:// address"
                    )
        finally:
            table.delete([probe])


def _init_ray(address: str | None) -> None:
    """Join the cluster at the address; without one start a fresh local Ray, whatever RAY_ADDRESS or left-overs say."""
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is not None:
        _check_answers(address)
        ray.init(address=address, **quiet)
        return
    ray.init(
        address="local",
        # One logical CPU more than there are cores: reading and writing mostly wait, encoders take the cores.
        num_cpus=_cores() + 1,
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        **quiet,
    )


def _check_answers(address: str) -> None:
    """Raises ConnectionError if nobody listens at host:port: Ray itself would try for more than five minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon:
        return  # "auto" and "local" are Ray's to resolve, which it does at once.
    try:
        socket.create_connection((host, int(port)), CONNECT_S).close()
    except OSError as error:
        raise ConnectionError(str(error)) from None


@contextmanager
def _muted_stderr() -> Iterator[None]:
    """Ray's C++ side says on stderr that it took its log level from the environment; what fails is raised all the same."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def choose_pools(spec: ResourceSpec, nodes: Sequence[Mapping[str, float]]) -> Pools:
    """Fill in `auto` from the CPUs and GPUs of each node. A CPU encoder has one thread: two in step wait for each other
    whenever anything else runs on a core (measured: 2 x 1 thread gave 1.2 times the rate of 1 x 2 on two cores).

    Raises ConfigError for what the cluster can't give: Ray itself would wait for it for ever.
    """
    cpus, gpus = int(sum(node.get("CPU", 0) for node in nodes)), sum(node.get("GPU", 0) for node in nodes)
    gpus_each = _given(spec.gpus_per_encoder, otherwise=1.0 if gpus else 0.0)
    cpus_each = int(_given(spec.cpus_per_encoder, otherwise=1))
    room = sum(_encoders_on(node, cpus_each, gpus_each) for node in nodes)
    # A logical CPU stays for reading and writing: encoders on all of them would wait for their input for ever.
    room = min(room, (cpus - 1) // cpus_each)
    encoders = int(_given(spec.encoders, otherwise=max(1, room)))
    if encoders > room:
        raise ConfigError(
            f"resources ask for {encoders} encoders of {cpus_each} CPUs and {gpus_each:g} GPUs each; the cluster's "
            f"{cpus} CPUs (one of them kept for reading and writing) and {gpus:g} GPUs have room for {room}: lower "
            "encoders, cpus_per_encoder or gpus_per_encoder"
        )
    spare = cpus - encoders * cpus_each
    tokenizers = int(_given(spec.tokenizers, otherwise=_auto_tokenizers(gpus_each > 0, encoders, spare)))
    writers = int(_given(spec.writers, otherwise=max(1, encoders // 4)))
    per_task = min(MOST_CPUS_PER_TASK, spare / (tokenizers + writers))
    return Pools(
        device="cuda" if gpus_each else "cpu",
        encoders=encoders,
        cpus_per_encoder=cpus_each,
        gpus_per_encoder=gpus_each,
        tokenizers=tokenizers,
        writers=writers,
        cpus_per_task=max(0.01, math.floor(per_task * 100) / 100),
    )


def _given(value: float | str, otherwise: float) -> float:
    return otherwise if isinstance(value, str) else value


def _encoders_on(node: Mapping[str, float], cpus_each: int, gpus_each: float) -> int:
    """Shares of a GPU are of one GPU: at 0.3 each of two has three encoders, and a seventh would wait for ever."""
    by_cpu, gpus = int(node.get("CPU", 0)) // cpus_each, int(node.get("GPU", 0))
    if not gpus_each:
        return by_cpu
    return min(by_cpu, gpus * int(1 / gpus_each + 1e-6) if gpus_each < 1 else gpus // int(gpus_each))


def _auto_tokenizers(on_gpu: bool, encoders: int, spare: float) -> int:
    """A core tokenizes 0.4 M tokens/s: more than 16 CPU encoders take, an eighth of what a GPU takes."""
    return max(1, min(8 * encoders, int(spare) - 1)) if on_gpu else max(1, encoders // 16)


def run_units(
    tasks: Sequence[Task], settings: Settings, pools: Pools, on_encoded: Callable[[int, int], None]
) -> Iterator[Report]:
    """Run all tasks through the flow; yields each slice when it is recorded or refused, in no particular order.

    `on_encoded(rows, tokens)` hears meanwhile, from another thread, what left the encoders. Raises RunError when a stage
    fails. Closing the iterator ends the flow.
    """
    unrecorded = pools.encoders * TASKS_PER_ENCODER + pools.writers
    with _monitored("run", settings, unrecorded, pools.encoders) as (run, monitor), _polled(monitor, on_encoded):
        yield from _reports(_build_flow(tasks, run, pools, settings.limits.unit_timeout_s))


@dataclass(frozen=True)
class ClusterSampler:
    """run.Sampler on a cluster. Raises RunError when a worker refuses, SourceChanged when a file isn't the planned one."""

    pools: Pools

    def measure(self, tasks: Sequence[Task], settings: Settings) -> Measurement:
        pools = replace(self.pools, encoders=min(self.pools.encoders, CALIBRATION_ENCODERS, len(tasks)))
        with _monitored("calibration", settings, sys.maxsize, pools.encoders) as (run, _):
            flow = _build_encoding(tasks, run, pools, settings.limits.unit_timeout_s, _read_sample, MeasureStage)
            return stages.measurement_of(_tables(flow))

    def read(self, tasks: Sequence[Task], settings: Settings) -> pa.Table:
        with _monitored("sample", settings) as (run, _):
            flow = _build_reading(tasks, run, self.pools, settings.limits.unit_timeout_s, _read_sample)
            return stages.sampled_tokens(_tables(flow))

    def quantise(self, tokens: pa.Table, settings: Settings) -> None:
        """On one worker, with all of a node's CPUs but one, MOST_THREADS at most."""
        cpus = max(int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"])
        threads = max(1, min(cpus - 1, MOST_THREADS))
        with _monitored("quantising", settings) as (run, _):
            ray.get(ray.remote(_quantise).options(num_cpus=threads).remote(tokens, run, threads))


@contextmanager
def _monitored(kind: str, settings: Settings, unrecorded: int = 0, encoders: int = 0) -> Iterator[tuple[str, Any]]:
    """(name, monitor) of some work on the cluster; its errors become ours, and the monitor ends with it."""
    run = f"embedding-{kind}-{uuid.uuid4().hex[:12]}"
    monitor = _start_monitor(run, settings, unrecorded, encoders)
    try:
        yield run, monitor
    except PipelineError:
        raise
    except Exception as error:
        raise _translate(error) from error
    finally:
        ray.kill(monitor)


def _tables(flow: "ray.data.Dataset") -> Iterator[pa.Table]:
    return iter(flow.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))


def _quantise(tokens: pa.Table, run: str, threads: int) -> None:
    stages.quantise(tokens, _settings(run), threads)


@contextmanager
def _polled(monitor: Any, on_encoded: Callable[[int, int], None]) -> Iterator[None]:
    """Fetches the encoders' progress until the block ends: slices are minutes apart, a person watches seconds."""
    stop = threading.Event()

    def poll() -> None:
        while not stop.wait(POLL_S):
            rows, tokens = ray.get(monitor.take_progress.remote())
            if rows:
                on_encoded(rows, tokens)

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _build_flow(tasks: Sequence[Task], run: str, pools: Pools, timeout_s: float) -> "ray.data.Dataset":
    return _build_encoding(tasks, run, pools, timeout_s, _read_and_tokenize, EncodeStage).map_batches(
        _write,
        batch_size=1,
        batch_format="pyarrow",
        fn_kwargs={"run": run},
        num_cpus=pools.cpus_per_task,
        compute=TaskPoolStrategy(size=pools.writers),
    )


def _build_encoding(
    tasks: Sequence[Task],
    run: str,
    pools: Pools,
    timeout_s: float,
    read: Callable[..., Iterator[pa.Table]],
    encode: "type[EncodeStage]",
) -> "ray.data.Dataset":
    """Pool sizes are given for each stage, and other CPUs: Ray fuses reading into encoders that look like it, which then wait
    for it."""
    return _build_reading(tasks, run, pools, timeout_s, read).map_batches(
        encode,
        batch_size=1,
        batch_format="pyarrow",
        fn_constructor_kwargs={"run": run},
        num_cpus=pools.cpus_per_encoder,
        num_gpus=pools.gpus_per_encoder or None,
        compute=ActorPoolStrategy(size=pools.encoders, max_tasks_in_flight_per_actor=TASKS_PER_ENCODER),
    )


def _build_reading(
    tasks: Sequence[Task], run: str, pools: Pools, timeout_s: float, read: Callable[..., Iterator[pa.Table]]
) -> "ray.data.Dataset":
    items = [{"task": pickle.dumps(task)} for task in tasks]
    units = ray.data.from_items(items, override_num_blocks=len(items))
    # A block is what Ray hands from stage to stage: at this size every slice is one of its own.
    units.context.target_max_block_size = units.context.target_min_block_size = 1
    units.context.execution_no_progress_timeout_s = STALLED_TIMEOUTS * timeout_s
    # Ray would read every worker's memory map once a second, and stop its page faults meanwhile.
    units.context.memory_usage_poll_interval_s = None
    return units.map_batches(
        read,
        batch_size=1,
        batch_format="pyarrow",
        fn_kwargs={"run": run},
        num_cpus=pools.cpus_per_task,
        compute=TaskPoolStrategy(size=pools.tokenizers),
    )


def _reports(flow: "ray.data.Dataset") -> Iterator[Report]:
    for batch in _tables(flow):
        for row in batch.to_pylist():
            yield Report(
                unit_id=row["unit_id"],
                num_rows=row["num_rows"] or 0,
                failed=row["failed"] or 0,
                last=bool(row["last"]),
                effort=Effort(**json.loads(row["effort"])) if row["effort"] else Effort(),
                encoder=row["encoder"] or "",
                engine=row["engine"] or "",
                encode_start=row["encode_start"] or time.time(),
                encode_stop=row["encode_stop"] or time.time(),
                refused=row["refused"],
            )


def _start_monitor(run: str, settings: Settings, unrecorded: int = 0, encoders: int = 0) -> Any:
    """Doesn't wait for its process: the encoders' take longer to start."""

    def alive_nodes() -> frozenset[str]:  # in here Ray sends it as it stands, without all that this file imports
        return frozenset(node["NodeID"] for node in ray.nodes() if node["Alive"])

    here = _on_node(ray.get_runtime_context().get_node_id())
    options = {"name": run, "num_cpus": 0, "scheduling_strategy": here}
    monitor = ray.remote(Monitor).options(**options).remote(alive_nodes, unrecorded, encoders)
    # By a method, not the constructor: Ray keeps and shows what actors are made with.
    monitor.put_settings.remote(cloudpickle.dumps(settings))
    return monitor


@functools.cache
def _worker() -> Worker:
    """This process."""
    return Worker(uuid.uuid4().hex, ray.get_runtime_context().get_node_id())


def _read_and_tokenize(batch: pa.Table, run: str) -> Iterator[pa.Table]:
    yield from _read(batch, run, distinct_texts.read)


def _read_sample(batch: pa.Table, run: str) -> Iterator[pa.Table]:
    yield from _read(batch, run, stages.read_sample)


def _read(
    batch: pa.Table, run: str, read: Callable[[Task, Settings, Tokenizer], Iterator[pa.Table]]
) -> Iterator[pa.Table]:
    monitor, settings = ray.get_actor(run), _settings(run)
    for item in batch.column("task").to_pylist():
        task: Task = pickle.loads(item)
        work = ("read", task.unit.unit_id)
        strikes = ray.get(monitor.begin.remote(work, _worker()))
        if strikes >= MOST_STRIKES:
            yield stages.refuse(
                task.unit.unit_id, _fatal("read", strikes, [span.file.path for span in task.unit.spans])
            )
            continue
        slices = read(task, settings, _tokenizer(run))
        while True:
            try:
                with Deadline(settings.limits.unit_timeout_s):  # not while the next stage takes its time
                    piece = next(slices, None)
            except PipelineError as error:
                piece = stages.refuse(task.unit.unit_id, str(error))
                slices = iter(())
            if piece is None:
                break
            yield piece
        monitor.end.remote(work)


class EncodeStage:
    """An encoder actor: loads the model once, proves it on the probe texts, then encodes slices.

    What goes wrong while it starts is kept and given as the answer to every slice: an actor that raises here would be
    started again for ever. A slice that an actor died of is encoded in a process of its own.
    """

    def __init__(self, run: str) -> None:
        self._run, self._monitor = run, ray.get_actor(run)
        self._encoder: Encoder | None = None
        self._refused = ""
        try:
            self._settings = settings = _settings(run)
            died = ray.get(self._monitor.starting.remote(_worker()))
            if died >= MOST_STRIKES:
                raise RunError(
                    f"{died} encoders died while they loaded the model: is there memory for it on every node?"
                )
            with Deadline(settings.limits.unit_timeout_s):
                settings = self._settings = replace(settings, encoder=settings.encoder_here())
                encoder = build_encoder(settings.encoder, settings.device, settings.encoder_threads)
                if settings.measure_budget:
                    given = settings.encoder, settings.device, settings.encoder_threads
                    encoder.budget_tokens = best_budget(encoder, *given)
                self._prove(encoder)
            self._encoder = encoder
        except PipelineError as error:
            self._refused = str(error)
        except Exception as error:
            self._refused = f"{type(error).__name__}: {_first_line(error)}"
        self._monitor.ready.remote(_worker())

    def __call__(self, batch: pa.Table) -> pa.Table:
        if self._encoder is None:
            return self._refuse(batch, f"encoder: {self._refused}")
        key = _key(batch)
        # Ray holds encoders back by bytes in its object store, which are far from what is dear here: encoded rows.
        while (strikes := ray.get(self._monitor.claim.remote(key, _worker()))) is None:
            time.sleep(CLAIM_EVERY_S)
        if strikes >= MOST_STRIKES:
            return self._refuse(batch, _fatal("encode", strikes, batch.column("paths")[0].as_py() or []))
        timeout_s = self._settings.limits.unit_timeout_s
        if strikes:
            encoded = self._encode_apart(batch, self._encoder, timeout_s)
        else:
            with Deadline(timeout_s) as deadline:
                encoded = self._encode(batch, self._encoder, deadline.renew)
        self._monitor.end.remote(("encode", key))
        return encoded

    def _encode_apart(self, batch: pa.Table, encoder: Encoder, timeout_s: float) -> pa.Table:
        """A suspect ends a child of this process, not this process, and of its rows only those that do so fail."""
        settings = self._settings
        with IsolatedEngine(settings.encoder, settings.device, settings.encoder_threads, timeout_s) as engine:
            apart = Encoder(engine, encoder.budget_tokens, encoder.overhead_tokens)
            return self._encode(batch, apart, lambda: None)

    def _encode(self, batch: pa.Table, encoder: Encoder, on_batch: Callable[[], None]) -> pa.Table:
        rows = tokens = 0
        told = time.monotonic()

        def on_progress(new_rows: int, new_tokens: int) -> None:
            nonlocal rows, tokens, told
            on_batch()
            rows, tokens = rows + new_rows, tokens + new_tokens
            if time.monotonic() - told >= POLL_S:  # a call costs a core half a millisecond, a batch takes ten
                self._monitor.add_progress.remote(rows, tokens)
                rows, tokens, told = 0, 0, time.monotonic()

        try:
            return stages.encode(batch, encoder, self._settings, _worker().name, on_progress)
        except RunError as error:
            return self._refuse(batch, f"encoder: {error}")
        finally:
            if rows:
                self._monitor.add_progress.remote(rows, tokens)

    def _refuse(self, batch: pa.Table, reason: str) -> pa.Table:
        return stages.refuse(batch.column("unit_id")[0].as_py(), reason)

    def _prove(self, encoder: Encoder) -> None:
        prove(encoder, self._settings, _tokenizer(self._run))


class MeasureStage(EncodeStage):
    """The same actor where only the ranges of the vectors are wanted."""

    def _encode(self, batch: pa.Table, encoder: Encoder, on_batch: Callable[[], None]) -> pa.Table:
        return stages.measure(batch, encoder, self._settings, on_batch)

    def _refuse(self, batch: pa.Table, reason: str) -> pa.Table:
        return stages.measured(None, reason)

    def _prove(self, encoder: Encoder) -> None:
        """Nothing to compare with: the fingerprint of the vectors is known only when their ranges are."""


def _fatal(stage: str, strikes: int, paths: Sequence[str]) -> str:
    """Why a run ends over a unit or slice that workers die of; a strike more isn't worth its time."""
    files = ", ".join(repr(path) for path in paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
    return (
        f"{strikes} workers died, or hung for limits.unit_timeout_s, as they were to {stage} rows of {files}: is there memory "
        "for it? Ray's logs say more; nothing was published, finished work is kept"
    )


def prove(encoder: Encoder, settings: Settings, tokenizer: Tokenizer) -> None:
    """Encode the probe texts and compare with the table's vectors, or with those of the first encoder of this model.

    Raises RunError when they differ.
    """
    vectors = encoder.encode(tokenizer.tokenize(list(probes.TEXTS)), None).vectors
    expected = settings.probes
    if not expected:
        standing = settings.open_table().create_once(
            layout.probe_vectors(settings.fingerprint), probes.to_json(vectors)
        )
        expected = probes.from_json(standing) if standing is not None else ()
    if expected:
        probes.check(vectors, expected, settings.encoder.precision)


def _write(batch: pa.Table, run: str) -> pa.Table:
    monitor, settings, key = ray.get_actor(run), _settings(run), _key(batch)
    strikes = ray.get(monitor.begin.remote(("write", key), _worker()))
    if strikes >= MOST_STRIKES:
        batch = stages.refuse(key[0], _fatal("write", strikes, batch.column("paths")[0].as_py() or []))
    try:
        with Deadline(settings.limits.unit_timeout_s):
            report = distinct_texts.write(batch, settings)
    except PipelineError as error:
        report = stages.write(stages.refuse(key[0], str(error)), settings)
    monitor.release.remote(key)
    return report


def _key(row: pa.Table) -> SliceKey:
    return row.column("unit_id")[0].as_py(), row.column("first_row")[0].as_py()


@functools.lru_cache(maxsize=2)
def _settings(run: str) -> Settings:
    monitor = ray.get_actor(run)
    while (given := ray.get(monitor.get_settings.remote())) is None:  # the driver's call may still be on its way
        time.sleep(CLAIM_EVERY_S)
    settings: Settings = cloudpickle.loads(given)
    pa.set_cpu_count(settings.tokenizer_threads)  # in each worker Arrow would take all cores
    return replace(settings, encoder=settings.encoder.here())


@functools.lru_cache(maxsize=2)
def _tokenizer(run: str) -> Tokenizer:
    settings = _settings(run)
    return Tokenizer(settings.encoder, settings.tokenizer_threads)


class ClusterWorkers:
    """Does the parallel parts of a commit: small ones in this process, large ones on the cluster."""

    def __init__(self, cluster: Cluster, table: Folder, settings: Callable[[], Settings], embedding: str) -> None:
        self._cluster, self._table, self._settings, self._embedding = cluster, table, settings, embedding

    def rewrite(self, jobs: Sequence[Rewrite]) -> list[Part]:
        if rewriting.fit_here(jobs):
            return self._here().rewrite(jobs)
        items = [{"job": pickle.dumps(job)} for job in jobs]
        # A CPU each: what holds whole parts shall not run more often at a time than there are cores.
        found = self._stream(lambda run: _items(items).map_batches(_rewrite, **_light(run) | {"num_cpus": 1}))
        return [pickle.loads(row["part"]) for row in found]

    def renumber(self, jobs: Sequence[Renumbering]) -> list[Part]:
        if sum(job.part.rows for job in jobs) <= KEYS_HERE:
            return self._here().renumber(jobs)
        return list(self.each(_renumber, jobs))

    def _here(self) -> WorkersHere:
        return WorkersHere(self._table, self._embedding)

    def each(self, do: "Do[Any, Any]", items: Sequence[Any]) -> Iterator[Any]:
        """What `do` gives for each of the items, on the cluster, in no particular order."""
        rows = [{"item": pickle.dumps((do, item))} for item in items]
        for row in self._stream(lambda run: _items(rows).map_batches(_do, **_light(run))):
            yield pickle.loads(row["result"])

    def read_keys(self, readings: Sequence[Reading]) -> tuple[list[Known], "ray.data.Dataset"]:
        """What the rows of some units come to, and their keys, which stay on the cluster."""
        items = [{"item": pickle.dumps(reading)} for reading in readings]
        self._cluster.start()
        with _monitored("commit", self._settings()) as (run, _):
            read = _items(items).map_batches(_wanted_keys, **_light(run)).materialize()
            known = read.map_batches(_known, batch_size=None, batch_format="pyarrow", num_cpus=0.5)
            return [pickle.loads(row["known"]) for row in known.iter_rows()], read

    def diff(
        self,
        read: Sequence["ray.data.Dataset"],
        skipped: frozenset[int],
        parts: Sequence[Part],
        states: SourceStates,
        *,
        renewed: bool,
        chunked: bool,
        num_keys: int,
    ) -> Iterator[RowDifference]:
        """The difference of wanted rows and the rows of `parts`, a bucket at a time; units `skipped` want nothing."""
        num_buckets = max(1, math.ceil(num_keys / DIFF_KEYS_PER_BUCKET))
        items = [{"item": pickle.dumps((part, number, chunked))} for number, part in enumerate(parts)]

        def flow(run: str) -> "ray.data.Dataset":
            kwargs = {"skipped": skipped}
            keys = [
                dataset.map_batches(_wanted_of, batch_size=None, batch_format="pyarrow", fn_kwargs=kwargs, num_cpus=0.5)
                for dataset in read
            ]
            if items:
                keys.append(_items(items).map_batches(_live_keys, **_light(run)))
            return diffed(keys[0].union(*keys[1:]), num_buckets, states, renewed=renewed)

        yield from map(found_of, self._stream(flow))

    def compare(self, sides: Sequence[tuple[Part, int]], *, renewed: bool = False) -> Difference:
        num_rows = sum(part.rows for part, _ in sides)
        if num_rows <= KEYS_HERE:
            return self._here().compare(sides, renewed=renewed)
        num_buckets = math.ceil(num_rows / KEYS_PER_BUCKET)
        items = [{"part": pickle.dumps((part, number, side))} for number, (part, side) in enumerate(sides)]

        def flow(run: str) -> "ray.data.Dataset":
            return _compared(_items(items).map_batches(_part_keys, **_light(run)), num_buckets, renewed=renewed)

        found = self._stream(flow)
        return compare.merge([pickle.loads(row["difference"]) for row in found])

    def _stream(self, flow: Callable[[str], "ray.data.Dataset"]) -> Iterator[dict[str, Any]]:
        self._cluster.start()
        with _monitored("commit", self._settings()) as (run, _):
            yield from flow(run).iter_rows()


Item = TypeVar("Item")
Result = TypeVar("Result")
Do = Callable[[Item, Settings, Callable[[], Tokenizer]], Iterator[Result]]
"""A piece of work on one item, by the settings of the run; the tokenizer is made when it is asked for."""


def _items(items: Sequence[dict[str, bytes]]) -> "ray.data.Dataset":
    return ray.data.from_items(list(items), override_num_blocks=len(items))


def _light(run: str) -> dict[str, Any]:
    """How a stage runs that mostly waits for storage, an item at a time."""
    return {"batch_size": 1, "batch_format": "pyarrow", "fn_kwargs": {"run": run}, "num_cpus": 0.5}


def _do(batch: pa.Table, run: str) -> Iterator[pa.Table]:
    for work in batch.column("item").to_pylist():
        do, item = pickle.loads(work)
        for result in do(item, _settings(run), functools.partial(_tokenizer, run)):
            yield pa.table({"result": pa.array([pickle.dumps(result)], pa.large_binary())})


def _renumber(job: Renumbering, settings: Settings, tokenizer: Callable[[], Tokenizer]) -> Iterator[Part]:
    yield row_sources.renumber(settings.open_table(), job)


def _wanted_keys(batch: pa.Table, run: str) -> Iterator[pa.Table]:
    for item in batch.column("item").to_pylist():
        for found in row_writer.keys(pickle.loads(item), _settings(run), functools.partial(_tokenizer, run)):
            if isinstance(found, Known):
                known = pa.array([pickle.dumps(found)], pa.large_binary())
                yield pa.table({"key": pa.nulls(1, pa.binary(WANTED_KEY.itemsize)), "known": known})
            elif len(found):
                yield pa.table({"key": _cells(found), "known": pa.nulls(len(found), pa.large_binary())})


def _known(batch: pa.Table) -> pa.Table:
    return batch.select(["known"]).filter(batch.column("known").is_valid())


def _wanted_of(batch: pa.Table, skipped: frozenset[int]) -> pa.Table:
    keys = _keys_of(batch.filter(batch.column("key").is_valid()), WANTED_KEY)
    return in_buckets(keys[~np.isin(keys["unit"], list(skipped))])


def _live_keys(batch: pa.Table, run: str) -> Iterator[pa.Table]:
    for item in batch.column("item").to_pylist():
        part, number, chunked = pickle.loads(item)
        for keys in scan.keys(_settings(run).open_table(), part, number, chunked=chunked):
            yield in_buckets(keys)


def in_buckets(keys: np.ndarray[Any, Any]) -> pa.Table:
    """Rows with the same id have the same `bucket`: its first half, for Ray hashes what it distributes by; numbers from 0 up
    would come several to a block."""
    return pa.table({"bucket": keys["id"][:, 0].astype(np.int64), "key": _cells(keys)})


def diffed(keys: "ray.data.Dataset", num_buckets: int, states: SourceStates, *, renewed: bool) -> "ray.data.Dataset":
    """All rows with an id meet in one block of `num_buckets`; a block is compared at once."""
    return keys.repartition(num_buckets, keys=["bucket"]).map_batches(
        _diff_block,
        batch_size=None,
        batch_format="pyarrow",
        fn_kwargs={"states": states, "renewed": renewed},
        num_cpus=0.5,
    )


def found_of(row: Mapping[str, Any]) -> RowDifference:
    found: RowDifference = pickle.loads(row["found"])
    return found


def _diff_block(batch: pa.Table, states: SourceStates, renewed: bool) -> pa.Table:
    found = diff.compare(_keys_of(batch, LIVE_KEY), states, renewed=renewed)
    return pa.table({"found": pa.array([pickle.dumps(found)], pa.large_binary())})


def _cells(keys: np.ndarray[Any, Any]) -> pa.Array:
    """A cell for each key."""
    width = pa.binary(keys.dtype.itemsize)
    return pa.Array.from_buffers(width, len(keys), [None, pa.py_buffer(np.ascontiguousarray(keys).tobytes())])


def _keys_of(batch: pa.Table, kind: "np.dtype[np.void]") -> np.ndarray[Any, Any]:
    cells = [np.frombuffer(chunk.buffers()[1], kind)[chunk.offset :][: len(chunk)] for chunk in _chunks(batch)]
    return np.concatenate([np.zeros(0, kind), *cells])


def _rewrite(batch: pa.Table, run: str) -> pa.Table:
    settings = _settings(run)
    jobs = [pickle.loads(job) for job in batch.column("job").to_pylist()]
    parts = [rewriting.rewrite(settings.open_table(), job, settings.table.embedding_column) for job in jobs]
    return pa.table({"part": pa.array([pickle.dumps(part) for part in parts], pa.binary())})


def _part_keys(batch: pa.Table, run: str) -> Iterator[pa.Table]:
    for item in batch.column("part").to_pylist():
        part, number, side = pickle.loads(item)
        for rows in scan.version_keys(_settings(run).open_table(), part, number, side):
            yield in_buckets(rows)


def _compared(keys: "ray.data.Dataset", num_buckets: int, *, renewed: bool) -> "ray.data.Dataset":
    """As in `diffed`."""
    return keys.repartition(num_buckets, keys=["bucket"]).map_batches(
        _compare_block, batch_size=None, batch_format="pyarrow", fn_kwargs={"renewed": renewed}, num_cpus=0.5
    )


def _compare_block(batch: pa.Table, renewed: bool) -> pa.Table:
    found = compare.compare(_keys_of(batch, compare.KEY), renewed=renewed)
    return pa.table({"difference": pa.array([pickle.dumps(found)], pa.binary())})


def _chunks(batch: pa.Table) -> list[pa.Array]:
    return [chunk for chunk in batch.column("key").chunks if len(chunk)]


def _sees(url: str, probe: str) -> bool:
    return Folder(url, {}).size(probe) is not None


def _on_node(node_id: str) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node_id, soft=False)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _translate(error: BaseException) -> PipelineError:
    """The error of ours that a worker raised, out of Ray's wrappings; anything else as a RunError of one line."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, PipelineError):
            return seen
        cause = getattr(seen, "cause", None)
        seen = cause if isinstance(cause, BaseException) else seen.__cause__
    # Ray Data wraps what a stage raises in an error whose cause is lost when it is pickled; its text has the traceback.
    told = re.search(r"^pipeline\.errors\.(\w+): (.*)$", str(error), re.MULTILINE)
    kind = getattr(errors, told[1], None) if told else None
    if told and isinstance(kind, type) and issubclass(kind, PipelineError):
        return kind(told[2])
    return RunError(f"a worker failed: {type(error).__name__}: {_last_line(error)}; Ray's logs have the details")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
