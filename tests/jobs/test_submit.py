"""`ray job submit` of our commands to a real Ray head on this machine, with what it tells of how they ended."""

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pipeline.storage import Folder
from pipeline.table import lease, snapshot

ROOT = Path(__file__).parents[2]
RAY = Path(sys.executable).parent / "ray"
START_TIMEOUT_S = 90
TIMEOUT_S = 120


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
"""Ray asks all who talk to a cluster for its token."""


@pytest.fixture(scope="module")
def head() -> Iterator[str]:
    """The address that jobs are submitted to. All of the head's processes end with the tests."""
    names = ["port", "dashboard-port", "ray-client-server-port", "dashboard-agent-listen-port", "metrics-export-port"]
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # the paths of sockets are short
    command = [str(RAY), "start", "--head", "--block", "--disable-usage-stats", "--include-dashboard=true"]
    command += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--temp-dir={folder}", "--num-cpus=3"]
    command += [f"--object-store-memory={256 * 2**20}", *(f"--{name}={port}" for name, port in ports.items())]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        address = f"http://127.0.0.1:{ports['dashboard-port']}"
        wait_until_answers(address, process, folder / "log")
        yield address
    finally:
        end(process)
        shutil.rmtree(folder, ignore_errors=True)


def wait_until_answers(address: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    bearer = {"Authorization": f"Bearer {ENVIRONMENT['RAY_AUTH_TOKEN']}"}
    request = urllib.request.Request(f"{address}/api/version", headers=bearer)
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=5):
            return
        time.sleep(0.2)
    raise AssertionError(f"{address} did not answer in {START_TIMEOUT_S} s: {log.read_text()}")


def end(process: "subprocess.Popen[bytes]") -> None:
    """Each process of the head by its id, asked first."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.terminate()
    _, alive = psutil.wait_procs(family, timeout=5)
    for member in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    assert psutil.wait_procs(alive, timeout=10)[1] == []
    process.wait()


@pytest.fixture
def configured(tmp_path, tiny_model) -> Path:
    rows = [{"id": f"doc-{n}", "text": f"news about {n}"} for n in range(50)]
    (tmp_path / "corpus").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "corpus" / "rows.parquet")
    config = {
        "source": {"path": str(tmp_path / "corpus"), "id": "id", "text": "text"},
        "model": {"path": str(tiny_model)},
        "table": {"path": str(tmp_path / "table")},
        "resources": {"ray_address": "auto", "encoders": 1, "writers": 1},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    return tmp_path / "config.yaml"


def submit(head: str, *entrypoint: str) -> "subprocess.CompletedProcess[str]":
    """As the documentation says it, and a scheduler gives it."""
    return subprocess.run(
        [str(RAY), "job", "submit", "--address", head, "--", *entrypoint],
        capture_output=True, text=True, timeout=TIMEOUT_S, cwd="/", env=ENVIRONMENT,
    )  # fmt: skip


def printed(done: "subprocess.CompletedProcess[str]") -> dict:
    """The command's own result, among what Ray says of it."""
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return json.loads(line)


@pytest.mark.slow
@pytest.mark.timeout(6 * TIMEOUT_S)
def test_a_job_is_submitted_runs_on_the_cluster_and_tells_how_it_ended(head, configured):
    table = Folder(str(configured.parent / "table"))
    command = ("python", "-m", "jobs.reindex", str(configured), "--json")
    first = submit(head, *command)
    assert first.returncode == 0, first.stdout + first.stderr
    assert (printed(first)["version"], printed(first)["counts"]["rows"]) == (1, 50)
    with lease.held(table, "reindex"):
        beside = submit(head, *command)
    assert (beside.returncode, printed(beside)["published"]) == (0, False)
    assert f"process {os.getpid()} on" in printed(beside)["busy"]
    wrong = submit(head, *command, "--set", "source.text=nothing")
    assert wrong.returncode != 0
    assert "exit code 2" in wrong.stdout + wrong.stderr
    assert "nothing" in wrong.stdout + wrong.stderr
    assert snapshot.versions(table) == [1]
