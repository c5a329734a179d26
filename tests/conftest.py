"""Fixtures that tests share: the tiny model, the S3 servers, one Ray cluster for the suite."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Before anything imports a library that reads them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ.setdefault("RAY_enable_metrics_collection", "0")

from tests import slow
from tests.servers import AzServer, GsServer, S3Server, az_server, gs_server, has_azurite, moto_server, rclone_server
from tests.tiny import build_tiny_model

# A person's run looks for new examples; a machine's verdict is the same for the same code.
settings.register_profile("same", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("same")

SHARED_RAY = "ray_address"
"""A cluster takes seconds to start and a core to keep: tests that join it run one after the other, in one process."""


HEAVY_SERVERS = ("milvus", "chroma")
"""They take ten seconds to start and work on when nobody asks: each runs for one process of the suite."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    measured = slow.slow()
    for item in items:
        if item.nodeid in measured:
            item.add_marker(pytest.mark.slow)
        for server in HEAVY_SERVERS:
            if f"test_{server}" in item.nodeid or f"[{server}" in item.nodeid:
                item.add_marker(pytest.mark.xdist_group(server))
        if SHARED_RAY in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group(SHARED_RAY))


DATA = Path(os.environ.get("PIPELINE_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
"""Real corpora that are not part of the project."""


@pytest.fixture(scope="session")
def corpora() -> Path:
    if not (DATA / "corpora").is_dir():
        pytest.skip(f"the evaluation corpora are not at {DATA}: set PIPELINE_TEST_DATA to their folder")
    return DATA / "corpora"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def moto() -> Iterator[S3Server]:
    with moto_server() as server:
        yield server


@pytest.fixture(scope="session")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with rclone_server(tmp_path_factory.mktemp("rclone")) as server:
        yield server


@pytest.fixture(scope="session")
def gs() -> Iterator[GsServer]:
    with gs_server() as server:
        server.make_bucket("bucket")
        yield server


@pytest.fixture(scope="session")
def az(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AzServer]:
    if not has_azurite():
        pytest.skip("azurite-blob is missing: npm install -g azurite")
    with az_server(tmp_path_factory.mktemp("azurite")) as server:
        server.make_bucket("bucket")
        yield server


@pytest.fixture(scope="session")
def ray_address() -> Iterator[str]:
    """A running cluster that the runs of the suite join, each as a job of its own."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 3, "object_store_memory": 512 * 2**20, "include_dashboard": False},
    )
    yield cluster.address
    cluster.shutdown()
