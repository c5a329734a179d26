"""Slices flow through Ray Data: one row is one slice, from tasks through reading, encoding and writing.

Tasks, a flow and what workers have to know come in. What the last stage gives goes out. Secrets reach workers through
a zero-CPU actor of the run, because Ray shows in clear text what tasks and actors are made with.
"""

import pickle
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray import cloudpickle
from ray.data import ActorPoolStrategy, TaskPoolStrategy

from pipeline.errors import PipelineError
from pipeline.execution.executor import Flowing
from pipeline.execution.pools import TASKS_PER_ENCODER, Pools
from pipeline.execution.ray import workers
from pipeline.execution.ray.cluster import on_node, translate
from pipeline.execution.ray.monitor import Monitor
from pipeline.stages.flow import EMBED, Flow, OnProgress
from pipeline.stages.worker_spec import WorkerSpec
from pipeline.work import Task

POLL_S = 0.5
STALLED_TIMEOUTS = 8
"""Ray ends a flow if nothing moves for so many unit_timeout_s. Three rows of a slice that hang one after the other
take seven."""


def run_flow(
    tasks: Sequence[Task], flow: Flow, spec: WorkerSpec, pools: Pools, on_progress: OnProgress | None
) -> Flowing:
    """Yield what the last stage gives for each slice, in no particular order. Closing the iterator ends the flow.

    `on_progress` hears, from another thread, what left the encoders. Raises PipelineError when a stage fails.
    """
    with (
        monitored("run", spec, flow, pools.most_unrecorded, pools.encoders) as (run, monitor),
        _polled(monitor, on_progress),
    ):
        yield from _tables(run_stages(tasks, run, pools, flow, spec.limits.unit_timeout_s))


@contextmanager
def monitored(
    kind: str, spec: Any, flow: Flow = EMBED, unrecorded: int = 0, encoders: int = 0
) -> Iterator[tuple[str, Any]]:
    """Yield (name, monitor) of some work on the cluster. Its errors become ours, and the monitor ends with it. Workers get
    the spec from it, which is a WorkerSpec wherever a model is needed."""
    run = f"embedding-{kind}-{uuid.uuid4().hex[:12]}"
    monitor = _start_monitor(run, spec, flow, unrecorded, encoders)
    try:
        yield run, monitor
    except PipelineError:
        raise
    except Exception as error:
        raise translate(error) from error
    finally:
        ray.kill(monitor)


def _start_monitor(run: str, spec: Any, flow: Flow, unrecorded: int, encoders: int) -> Any:
    """Start the monitor without waiting for its process, since the encoders' processes take longer to start."""

    def alive() -> frozenset[str]:  # Ray sends it by value here, without all that this file imports.
        return frozenset(node["NodeID"] for node in ray.nodes() if node["Alive"])

    here = on_node(ray.get_runtime_context().get_node_id())
    options = {"name": run, "num_cpus": 0, "scheduling_strategy": here}
    monitor = ray.remote(Monitor).options(**options).remote(alive, unrecorded, encoders)
    # They are given by a method, because Ray keeps and shows what actors are constructed with.
    monitor.put_settings.remote(cloudpickle.dumps((spec, flow)))
    return monitor


@contextmanager
def _polled(monitor: Any, on_progress: OnProgress | None) -> Iterator[None]:
    """Fetch the encoders' progress until the block ends. Slices are minutes apart, and a person watches seconds."""
    if on_progress is None:
        yield
        return
    stop = threading.Event()

    def take() -> None:
        rows, tokens = ray.get(monitor.take_progress.remote())
        if rows:
            on_progress(rows, tokens)

    def poll() -> None:
        while not stop.wait(POLL_S):
            take()

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    take()  # What was told since the last poll; of a short run that is all.


def run_stages(tasks: Sequence[Task], run: str, pools: Pools, flow: Flow, timeout_s: float) -> "ray.data.Dataset":
    """Run the stages that the flow has.

    Each stage gets a pool size, and other CPUs than an encoder. Ray would fuse reading into encoders that look like
    it, and these would then wait for it.
    """
    light: dict[str, Any] = {
        "batch_size": 1,
        "batch_format": "pyarrow",
        "fn_kwargs": {"run": run},
        "num_cpus": pools.cpus_per_task,
    }
    items = [{"task": pickle.dumps(task)} for task in tasks]
    rows = ray.data.from_items(items, override_num_blocks=len(items))
    # Ray passes blocks from stage to stage. At this size every slice is a block of its own.
    rows.context.target_max_block_size = rows.context.target_min_block_size = 1
    rows.context.execution_no_progress_timeout_s = STALLED_TIMEOUTS * timeout_s
    # Ray would read every worker's memory map once a second, and stop its page faults meanwhile.
    rows.context.memory_usage_poll_interval_s = None
    rows = rows.map_batches(workers.read_stage, compute=TaskPoolStrategy(size=pools.tokenizers), **light)
    if flow.encode is not None:
        rows = rows.map_batches(
            workers.EncodeStage,
            batch_size=1,
            batch_format="pyarrow",
            fn_constructor_kwargs={"run": run},
            num_cpus=pools.cpus_per_encoder,
            num_gpus=pools.gpus_per_encoder or None,
            compute=ActorPoolStrategy(
                size=pools.encoders,
                max_tasks_in_flight_per_actor=TASKS_PER_ENCODER,
                max_concurrent_calls_per_actor=pools.slices_at_once,
                enable_true_multi_threading=pools.slices_at_once > 1,
            ),
        )
    if flow.write is not None:
        rows = rows.map_batches(workers.write_stage, compute=TaskPoolStrategy(size=pools.writers), **light)
    return rows


def _tables(flow: "ray.data.Dataset") -> Iterator[pa.Table]:
    return iter(flow.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
