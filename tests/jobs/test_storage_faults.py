"""A run through a store that fails: a few faults change nothing, a fault that stays ends the run in words and in time."""

import json
import subprocess
import time
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pipeline.storage import Folder
from tests import faulty
from tests.faulty import encoded, said
from tests.inline import read_table, same_rows
from tests.proxy import EXPIRED, HANG, Proxy, fault_proxy
from tests.servers import S3Server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROWS, UNIT_ROWS = 1200, 100
IN_FLIGHT = (2 * 2 + 1 + 1) * UNIT_ROWS
"""Two encoders and a writer."""


@pytest.fixture(params=["moto", "rclone"])
def server(request) -> S3Server:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    rows = [{"id": f"doc-{n}", "text": f"document about {n % 1100}", "label": n % 3} for n in range(ROWS)]
    for index in range(6):
        pq.write_table(pa.Table.from_pylist(rows[index::6]), folder / f"{index}.parquet")
    return folder


@pytest.fixture(scope="module")
def undisturbed(corpus, tiny_model, tmp_path_factory) -> pa.Table:
    folder = tmp_path_factory.mktemp("undisturbed")
    started = start(folder, str(corpus), tiny_model, str(folder / "table"), {})
    assert started.wait(120) == 0, said(folder)
    return read_table(folder / "table")


def test_five_of_a_hundred_requests_fail_and_the_table_is_the_same(server, corpus, tiny_model, undisturbed, tmp_path):
    bucket = filled(server, corpus, "few")
    with fault_proxy(server.storage_options["endpoint_url"], rate=0.05, seed=5) as proxy:
        run = through(proxy, server, bucket, tiny_model, tmp_path)
        assert run.wait(300) == 0, said(tmp_path)
        print(
            f"{server.name}: {sum(proxy.requests.values())} requests {dict(proxy.requests)}, faults {dict(proxy.faulty)}"
        )
        assert sum(proxy.faulty.values()) >= 3
    same_rows(rows_in(server, bucket), undisturbed)
    assert encoded(tmp_path) == ROWS


@pytest.mark.parametrize("moment", ["from the start", "amid encoding", "at the commit"])
def test_a_fault_that_stays_ends_the_run_in_time_and_it_goes_on_when_the_fault_is_gone(
    moment, server, corpus, tiny_model, undisturbed, tmp_path
):
    run_into_outage(("slowdown", "reset", "cut", "lost"), moment, server, corpus, tiny_model, undisturbed, tmp_path)


@pytest.mark.parametrize("moment", ["amid encoding", "at the commit"])
def test_so_does_a_store_that_goes_mute(moment, moto, corpus, tiny_model, undisturbed, tmp_path):
    run_into_outage((HANG,), moment, moto, corpus, tiny_model, undisturbed, tmp_path)


@pytest.mark.parametrize("moment", ["from the start", "amid encoding", "at the commit"])
def test_keys_that_expire_end_the_run_at_once_and_it_goes_on_with_new_ones(
    moment, moto, corpus, tiny_model, undisturbed, tmp_path
):
    run_into_outage((EXPIRED,), moment, moto, corpus, tiny_model, undisturbed, tmp_path)
    assert "the keys expired: start the same command again with new ones" in said(tmp_path)


def run_into_outage(faults, moment, server, corpus, tiny_model, undisturbed, tmp_path) -> None:
    bucket = filled(server, corpus, f"{moment.replace(' ', '-')}-{faults[0]}")
    table = Folder(f"{bucket}/table", server.storage_options)
    reached = {
        "from the start": lambda: True,
        "amid encoding": lambda: len(table.list("staging/records")) >= 2,
        "at the commit": lambda: bool(table.list("staging/publications")),
    }[moment]
    with fault_proxy(server.storage_options["endpoint_url"], seed=5, faults=faults) as proxy:
        proxy.rate = 1.0 if moment == "from the start" else 0.0
        run = through(proxy, server, bucket, tiny_model, tmp_path)
        while not reached():
            assert run.poll() is None, said(tmp_path)
            time.sleep(0.01)
        proxy.rate, began = 1.0, time.monotonic()
        wrong = faults == (EXPIRED,) and moment == "from the start"  # told before any work
        assert run.wait(180) == (2 if wrong else 1), said(tmp_path)
        took = time.monotonic() - began
        print(f"{server.name}, {moment}, {faults[0]}: exit 1 after {took:.0f} s, {sum(proxy.faulty.values())} faults")
        assert took < (60 if faults == (EXPIRED,) else 120)
        assert "start the same command again" in said(tmp_path)
        assert "Traceback" not in said(tmp_path)
        proxy.rate = 0.0
        assert through(proxy, server, bucket, tiny_model, tmp_path).wait(300) == 0, said(tmp_path)
    same_rows(rows_in(server, bucket), undisturbed)
    assert encoded(tmp_path) - ROWS <= IN_FLIGHT


def filled(server: S3Server, corpus: Path, name: str) -> str:
    """A bucket with the corpus; returns its URL."""
    bucket = server.make_bucket(f"outage-{name}")
    for path in corpus.iterdir():
        Folder(f"{bucket}/corpus", server.storage_options).write(path.name, path.read_bytes())
    return bucket


def through(proxy: Proxy, server: S3Server, bucket: str, model: Path, folder: Path) -> "subprocess.Popen[bytes]":
    options = server.storage_options | {"endpoint_url": proxy.url}
    return start(folder, f"{bucket}/corpus/*.parquet", model, f"{bucket}/table", options)


def start(folder: Path, source: str, model: Path, table: str, options: dict) -> "subprocess.Popen[bytes]":
    config = {
        "source": {"path": source, "id": "id", "text": "text", "storage_options": options},
        "model": {"path": str(model)},
        "table": {"path": table, "partition_by": ["label"], "storage_options": options},
        "resources": {"encoders": 2, "writers": 1},
        "limits": {"unit_rows": UNIT_ROWS},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return faulty.start(folder, SLOW="pipeline.encoder.engines.torch:TorchEngine.start:0.1")


def rows_in(server: S3Server, bucket: str) -> pa.Table:
    filesystem = fsspec.filesystem("s3", **json.loads(json.dumps(server.storage_options)), skip_instance_cache=True)
    return read_table(f"{bucket.removeprefix('s3://')}/table", filesystem)
