"""A real Milvus 2.3.5 for tests, as a process of its own: its programs come from the package milvus.

It answers on all interfaces, which this version can't be told to leave, on ports that were free a moment ago. Its intervals
are shorter than usual, or each test would wait seconds for a collection to be brought into memory.
"""

import contextlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.feed_spec import FeedSpec
from tests.feeds.stores import Place
from tests.servers import _end_with_parent, _free_port

START_S = 120
TYPES = [
    pa.string(), pa.large_string(), pa.int8(), pa.uint8(), pa.int16(), pa.uint16(), pa.int32(), pa.uint32(), pa.int64(),
    pa.uint64(), pa.float16(), pa.float32(), pa.float64(), pa.bool_(), pa.date32(), pa.timestamp("us"),
    pa.timestamp("us", "UTC"), pa.timestamp("s"), pa.decimal128(12, 3), pa.binary(), pa.list_(pa.int32()),
    pa.list_(pa.string()), pa.struct([pa.field("a", pa.int64()), pa.field("b", pa.list_(pa.string()))]),
]  # fmt: skip
_SHORTER = [
    (
        "\nqueryCoord:\n",
        "\nqueryCoord:\n  checkChannelInterval: 50\n  checkSegmentInterval: 50\n  leaderViewUpdateInterval: 1\n"
        "  updateNextTargetInterval: 1\n  checkNodeInReplicaInterval: 1\n",
    ),
    ("\n  checkInterval: 1000", "\n  checkInterval: 50"),
    ("\n  distPullInterval: 500", "\n  distPullInterval: 50"),
    ("\n  timeTickInterval: 200", "\n  timeTickInterval: 20"),
]


class MilvusServer:
    """A standalone server of its own, which ends with this process."""

    def __init__(self, folder: Path) -> None:
        package = pytest.importorskip("milvus", reason="Milvus ships its server for x86-64 Linux alone")
        data = Path(package.__file__).parent / "data"
        package._initialize_data_files(str(folder))
        port = _configured(data, folder)
        environment = {
            **os.environ,
            "DEPLOY_MODE": "STANDALONE",
            "METRICS_PORT": str(_free_port()),
            "MILVUS_RUN_DIR": str(folder / "run"),
            "LD_LIBRARY_PATH": str(folder / "bin"),
        }
        with (folder / "output").open("wb") as output:
            self.process = subprocess.Popen(
                [str(folder / "bin" / "milvus"), "run", "standalone"], cwd=folder, env=environment,
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, preexec_fn=_end_with_parent,
            )  # fmt: skip
        self.url = f"http://127.0.0.1:{port}"
        self.client = self._connected()

    def _connected(self) -> Any:
        from pymilvus import MilvusClient, MilvusException

        give_up = time.monotonic() + START_S
        while True:
            try:
                client = MilvusClient(self.url, timeout=2)
                client.list_collections(timeout=2)
                return client
            except MilvusException:
                if time.monotonic() > give_up or self.process.poll() is not None:
                    raise
                time.sleep(0.2)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def _configured(data: Path, folder: Path) -> int:
    """Write the configuration of a server whose files stand in `folder`. Returns its port."""
    ports: dict[str, int] = {}
    known = {"etcd_log_path": "etcd.log", "system_log_path": "logs", "etcd_data_dir": "data/etcd"}
    known |= {"local_storage_dir": "data", "rocksmq_data_dir": "data/rocksmq"}

    def value(match: re.Match[str]) -> str:
        name, default = match[1], match[2] or ""
        if name.endswith("_port"):
            ports[name] = _free_port()
            return str(ports[name])
        return str(folder / known[name]) if name in known else default.strip()

    text = re.sub(r"\{\{ *(\w+)(?:\(\w+\))?(?:: ([^}]*))? *\}\}", value, (data / "config.yaml.template").read_text())
    for old, new in _SHORTER:
        assert old in text
        text = text.replace(old, new, 1)
    client, peer = f"http://127.0.0.1:{ports['etcd_port']}", f"http://127.0.0.1:{_free_port()}"
    etcd = {"listen-client-urls": client, "advertise-client-urls": client, "listen-peer-urls": peer}
    etcd |= {"initial-advertise-peer-urls": peer, "initial-cluster": f"default={peer}"}
    (folder / "etcd.yaml").write_text("".join(f"{name}: {value}\n" for name, value in etcd.items()))
    text = text.replace("\netcd:\n", f"\netcd:\n  config:\n    path: {folder / 'etcd.yaml'}\n", 1)
    (folder / "configs").mkdir()
    for name in ("data", "logs", "run"):
        (folder / name).mkdir(exist_ok=True)
    (folder / "configs" / "milvus.yaml").write_text(text)
    shutil.copy(data / "glog.conf", folder / "configs")
    return ports["proxy_port"]


@pytest.fixture(scope="session")
def milvus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MilvusServer]:
    server = MilvusServer(tmp_path_factory.mktemp("milvus"))
    yield server
    server.stop()


Places = Callable[[], contextlib.AbstractContextManager[Place]]


@pytest.fixture
def milvus_places(milvus: MilvusServer) -> Places:
    return lambda: _place(milvus, {})


@pytest.fixture
def milvus_import_places(milvus: MilvusServer, tmp_path: Path) -> Places:
    return lambda: _place(milvus, {"import_folder": str(tmp_path / "imports")})


@contextlib.contextmanager
def _place(server: MilvusServer, options: dict[str, Any]) -> Iterator[Place]:
    """The contract names generations docs__g..: so that tests are apart, each has the server to itself."""
    from pipeline.feeds.milvus import MARKER

    _clear(server.client)
    spec = FeedSpec(store="milvus", url=server.url, name="docs", options=options)
    yield Place(
        kind="milvus",
        spec=spec,
        forget_marker=lambda name: server.client.alter_collection_properties(name, {MARKER: ""}),
        dtypes=("float32", "binary"),
        types=TYPES,
        client=server.client,
    )
    _clear(server.client)


def _clear(client: Any) -> None:
    for name in client.list_collections():
        for alias in client.describe_collection(name)["aliases"]:
            client.drop_alias(alias)
        client.drop_collection(name)
