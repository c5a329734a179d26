"""A Ray that a run starts for itself: to whom it listens, what it is told of the machine, and how it ends at a bad moment.

Both tests start processes of their own, and no cluster of the suite.
"""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.config import ResourceSpec
from pipeline.execution.costs import encoder_bytes
from pipeline.execution.pools import choose_pools
from pipeline.execution.ray import session
from pipeline.machine.quotas import cores, memory_bytes
from tests import faulty
from tests.chaos import processes
from tests.jobs.test_signals import configure, ends_tidily, start, until, write_corpus

PROGRAM = """
import json, os, signal, sys, psutil
from pipeline.config import ResourceSpec
from pipeline.execution.ray.cluster import Cluster, alive_nodes
before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
with Cluster(ResourceSpec(ray_address="local")) as cluster:
    cluster.start()
    after = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    import ray
    ray.get(ray.remote(lambda: 1).remote())
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    listening = [
        (" ".join(one.cmdline())[:80], each.laddr.ip)
        for one in family for each in one.net_connections("inet") if each.status == "LISTEN"
    ]
    session = ray._private.worker._global_node.get_session_dir_path()
    found = {"listening": listening, "same": before == after, "resources": alive_nodes()[0]["Resources"], "session": session}
found["left"] = [one.pid for one in psutil.Process().children(recursive=True)]
found["after"] = before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
print(json.dumps(found))
"""


@pytest.mark.slow
def test_it_listens_to_this_machine_alone_and_knows_its_bounds(tmp_path):
    folder = tmp_path / "a_rather_long_name_of_a_folder_as_clusters_give_them" / "job-1234567890"
    folder.mkdir(parents=True)
    around = faulty.environment(tmp_path, TMPDIR=str(folder))
    around.pop("RAY_TMPDIR", None)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=around, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found["listening"]) > 4
    outside = [one for one in found["listening"] if one[1].removeprefix("::ffff:") != "127.0.0.1" and one[1] != "::1"]
    assert not outside
    assert found["same"]
    assert found["after"]
    assert found["left"] == []
    told = session.memory_settings(memory_bytes())
    assert found["resources"]["CPU"] == cores() + 1
    assert found["resources"]["object_store_memory"] == told["object_store_memory"]
    assert found["resources"]["memory"] == told["_memory"]
    assert len(found["session"]) < 107 - len("/sockets/plasma_store")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_it_starts_leaves_no_process(number, tiny_model, tmp_path):
    write_corpus(tmp_path / "corpus", range(64))
    configure(tmp_path, tiny_model, ray_address="local")
    run = start(tmp_path, "reindex")
    until(lambda: any("gcs_server" in one.title for one in processes.descendants(run.pid)), run, tmp_path)
    seen = set(processes.descendants(run.pid))
    stop = time.monotonic() + random.uniform(0.0, 3.0)
    while time.monotonic() < stop and run.poll() is None:
        seen |= set(processes.descendants(run.pid))
        time.sleep(0.02)
    ends_tidily(run, number, tmp_path, group=False, within_s=8.0)
    for one in seen:
        deadline = time.monotonic() + 5
        while Path(f"/proc/{one.pid}").exists() and processes.process(one.pid) == one:
            assert time.monotonic() < deadline, one.title
            time.sleep(0.05)
    leases = [json.loads(path.read_text()) for path in (tmp_path / "table/meta/leases").glob("*.json")]
    assert leases
    assert all(each["released"] for each in leases)


# --- what it is told


@pytest.mark.parametrize("memory", [2**28, 2**30, 2**32, 2**36, None])
def test_object_store_and_workers_fit_into_the_memory(memory):
    told = session.memory_settings(memory)
    assert session.LEAST_OBJECT_STORE_BYTES <= told["object_store_memory"] <= session.OBJECT_STORE_BYTES
    if memory is not None and memory >= 2**30:
        assert told["object_store_memory"] + told["_memory"] < memory


def test_encoders_are_as_many_as_the_memory_holds():
    each = encoder_bytes(90 * 2**20)
    for cpus in (2, 4, 64):
        for gigabytes in (1, 2, 4, 8, 512):
            node = {"CPU": cpus + 1.0, "memory": gigabytes * 2.0**30}
            found = choose_pools(ResourceSpec(), [node], each).encoders
            assert found == max(1, min(cpus, int(node["memory"] // each)))
    assert choose_pools(ResourceSpec(encoders=8), [{"CPU": 9.0, "memory": 2.0**30}], each).encoders == 8
