"""A real Chroma server for tests, on the loopback: the program of the package chromadb."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipeline.feed_spec import FeedSpec
from tests.feeds.milvus_place import TYPES
from tests.feeds.stores import Place
from tests.servers import _end_with_parent, _free_port

START_S = 60


class ChromaServer:
    """A server of its own, which ends with this process."""

    def __init__(self, folder: Path) -> None:
        chroma = Path(sys.executable).parent / "chroma"
        if not chroma.exists():
            pytest.skip("chromadb is missing: pip install -e '.[dev]'")
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [str(chroma), "run", "--host", "127.0.0.1", "--port", str(port), "--path", str(folder)]
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        environment = {**os.environ, "ANONYMIZED_TELEMETRY": "False"}
        self.process = subprocess.Popen(command, cwd=folder, env=environment, preexec_fn=_end_with_parent, **quiet)
        give_up = time.monotonic() + START_S
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/api/v2/heartbeat").is_success:
                    break
            if time.monotonic() > give_up or self.process.poll() is not None:
                raise RuntimeError(f"{command} did not answer within {START_S} s")
            time.sleep(0.05)
        import chromadb
        from chromadb.config import Settings

        self.client = chromadb.HttpClient("127.0.0.1", port, settings=Settings(anonymized_telemetry=False))

    def stop(self) -> None:
        from pipeline.feeds.chroma_server import _sessions

        for session in _sessions(self.client):
            session.close()
        self.client.close()
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="session")
def chroma_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChromaServer]:
    server = ChromaServer(tmp_path_factory.mktemp("chroma"))
    yield server
    server.stop()


@pytest.fixture
def chroma_places(chroma_server: ChromaServer) -> Callable[[], contextlib.AbstractContextManager[Place]]:
    """Makes places; the contract names generations docs__g.., so each has the server to itself."""

    @contextlib.contextmanager
    def make() -> Iterator[Place]:
        _clear(chroma_server.client)
        yield Place(
            kind="chroma",
            spec=FeedSpec(store="chroma", url=chroma_server.url, name="docs"),
            forget_marker=lambda name: _forget(chroma_server.client, name),
            dtypes=("float32",),
            types=TYPES,
            client=chroma_server.client,
        )
        _clear(chroma_server.client)

    return make


def _forget(client: Any, generation: str) -> None:
    (collection,) = [
        one for one in client.list_collections() if one.metadata["embedding_feed_generation"] == generation
    ]
    collection.modify(metadata={"embedding_feed": "docs", "embedding_feed_generation": generation})


def _clear(client: Any) -> None:
    for collection in client.list_collections():
        client.delete_collection(collection.name)
