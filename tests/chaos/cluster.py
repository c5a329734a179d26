"""A Ray cluster of three nodes on this machine, of processes of their own: a head without CPUs and two that may be lost."""

import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from tests.chaos import processes
from tests.chaos.processes import Process

NODES, CPUS_PER_NODE = 2, 3
"""One alone has room for the encoders and for what feeds them."""
STOP_S = 30
PROGRAM = f"""
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(
    initialize_head=True, head_node_args=dict(num_cpus=0, object_store_memory=2**28, include_dashboard=False)
)
nodes = [cluster.add_node(num_cpus={CPUS_PER_NODE}, object_store_memory=2**28) for _ in range({NODES})]
cluster.wait_for_nodes()
print(cluster.address, *[node.all_processes["raylet"][0].process.pid for node in nodes], flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@dataclass(frozen=True)
class Cluster:
    address: str
    pid: int
    """The process that all others of the cluster are below."""
    nodes: tuple[Process, ...]
    """The raylets of the nodes that may be lost; their workers are below them."""


@contextmanager
def cluster(environment: Mapping[str, str]) -> Iterator[Cluster]:
    """Its workers have the environment given here, not that of who joins it."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        address, *raylets = process.stdout.readline().split()
        yield Cluster(address, process.pid, tuple(processes.process(int(pid)) for pid in raylets))
    finally:
        below = processes.descendants(process.pid)
        process.stdin.close()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
        processes.kill(below)
