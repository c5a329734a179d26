"""A run has a Ray cluster for its time, and Ray's errors become ours.

The cluster is a fresh local one, or the one at an address.
"""

import contextlib
import logging
import os
import re
import socket
import sys
import time
import uuid
import warnings
from collections.abc import Iterator
from typing import Any

import ray
import ray._private.worker as ray_worker
import ray.data
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline import errors, progress
from pipeline.config import ResourceSpec
from pipeline.errors import ConfigError, InputError, PipelineError, RunError
from pipeline.execution.executor import LOCAL
from pipeline.execution.pools import USUAL, Load, Pools, choose_pools
from pipeline.execution.ray.session import QUIET, same_package, signals_left_alone, start_local
from pipeline.progress import Phase
from pipeline.storage import Folder
from pipeline.table import layout

CONNECT_S = 5.0


class Cluster:
    """It is a Ray cluster for the time of a run: a fresh local one, or the one at `ray_address`. It starts on first
    need."""

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
        """Start or join Ray. Raises ConfigError if the address doesn't answer."""
        if self.started:
            return
        started = time.perf_counter()
        if ray.is_initialized():
            raise InputError("this process already runs a Ray session: close it with ray.shutdown() first")
        try:
            what = _what(self._spec.ray_address)
            with progress.current().during(Phase.STARTING, what), _muted_stderr(), signals_left_alone():
                _init_ray(self._spec.ray_address)
        except (ConnectionError, ValueError) as error:
            raise ConfigError(
                f"resources.ray_address {self._spec.ray_address!r} does not answer: {first_line(error)}"
            ) from None
        # Whatever log_to_driver says, Ray tells of workers that died on stdout, in the middle of what --json prints.
        ray_worker.print_to_stdstream = lambda data, ignore_prefix: None
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        # Ray warns by counting units, but a unit gives as many slices as there are encoders, and more.
        warnings.filterwarnings("ignore", "The minimum number of concurrent actors", UserWarning)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        # Comparing a table with itself must not depend on how much memory the object store has.
        context.use_disk_based_hash_shuffle = True
        self.started = True
        self.start_s = time.perf_counter() - started

    def pools(self, encoder_bytes: int = 0, load: Load = USUAL) -> Pools:
        """Return the pools of a run whose encoders hold about so many bytes each, and whose rows cost so much."""
        self.start()
        return choose_pools(self._spec, [node["Resources"] for node in alive_nodes()], encoder_bytes, load)

    def check_reachable(self, table: Folder) -> None:
        """Raise InputError that names a node where a table on a local path is not the same folder."""
        nodes = alive_nodes()
        if not table.is_local or len(nodes) < 2:
            return
        probe = f"{layout.STAGING}node-probe-{uuid.uuid4().hex[:12]}"
        table.write(probe, b"")
        try:
            for node in nodes:
                seen = ray.remote(_sees).options(num_cpus=0, scheduling_strategy=on_node(node["NodeID"]))
                if not ray.get(seen.remote(table.url, probe)):
                    raise InputError(
                        f"table.path {table.url!r} is a local folder that node {node['NodeManagerHostname']} doesn't "
                        "share: give a shared folder or an s3:// address"
                    )
        finally:
            table.delete([probe])


def _what(address: str | None) -> str:
    """Return what starts, in a word or two for people."""
    return "Ray on this machine" if address in (None, LOCAL) else "work on the Ray cluster"


def _init_ray(address: str | None) -> None:
    """Join the cluster at the address. For None or `local`, start a fresh Ray."""
    if address in (None, LOCAL):
        start_local()
        return
    assert address is not None
    _check_answers(address)
    try:
        # A client's server knows no class of ours.
        ray.init(address=address, job_config=None if address.startswith("ray://") else same_package(), **QUIET)
    except KeyboardInterrupt:
        with contextlib.suppress(Exception):
            ray.shutdown()
        raise


def _check_answers(address: str) -> None:
    """Raise ConnectionError if nobody listens at host:port. Ray itself would try for more than five minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon:
        return  # "auto" is Ray's to resolve, which it does at once.
    try:
        socket.create_connection((host, int(port)), CONNECT_S).close()
    except OSError as error:
        raise ConnectionError(str(error)) from None


@contextlib.contextmanager
def _muted_stderr() -> Iterator[None]:
    """Mute stderr, where Ray's C++ side says that it took its log level from the environment. What fails is raised
    all the same."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def alive_nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _sees(url: str, probe: str) -> bool:
    return Folder(url, {}).size(probe) is not None


def on_node(node_id: str) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node_id, soft=False)


def translate(error: BaseException) -> PipelineError:
    """Return the error of ours that a worker raised, without Ray's wrappings, or anything else as a RunError of one
    line."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, PipelineError):
            return seen
        cause = getattr(seen, "cause", None)
        seen = cause if isinstance(cause, BaseException) else seen.__cause__
    # Ray Data wraps what a stage raises in an error whose cause is lost when it is pickled. Its text has the traceback.
    told = re.search(r"^pipeline\.errors\.(\w+): (.*)$", str(error), re.MULTILINE)
    kind = getattr(errors, told[1], None) if told else None
    if told and isinstance(kind, type) and issubclass(kind, PipelineError):
        return kind(told[2])
    return RunError(f"a worker failed: {type(error).__name__}: {_last_line(error)}; Ray's logs have the details")


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
