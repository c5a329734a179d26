"""Real object stores as child processes on the loopback: moto's server, and rclone in front of a folder.

They differ where it hurts: moto honours If-None-Match, `rclone serve s3` doesn't and checks credentials.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import s3fs

START_TIMEOUT_S = 60


@dataclass(frozen=True, kw_only=True)
class S3Server:
    name: str
    storage_options: dict[str, Any] = field(repr=False)
    """What goes into `storage_options` of a source or a table."""
    exclusive_creates: bool

    def make_bucket(self, name: str) -> str:
        """Create a bucket; returns its URL."""
        s3fs.S3FileSystem(**self.storage_options, use_listings_cache=False).call_s3("create_bucket", Bucket=name)
        return f"s3://{name}"


@contextlib.contextmanager
def moto_server() -> Iterator[S3Server]:
    port = _free_port()
    program = "import sys; from moto.server import main; main(sys.argv[1:])"
    with _running([sys.executable, "-W", "ignore", "-c", program, "-H", "127.0.0.1", "-p", str(port)], port):
        yield S3Server(name="moto", storage_options=_options(port), exclusive_creates=True)


@contextlib.contextmanager
def rclone_server(tmp_path: Path) -> Iterator[S3Server]:
    """Buckets are the folders of `tmp_path`."""
    port = _free_port()
    options = _options(port)
    keys = f"{options['key']},{options['secret']}"
    command = [_rclone(), "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", keys]
    with _running([*command, "--config", os.devnull, str(tmp_path)], port):
        yield S3Server(name="rclone", storage_options=options, exclusive_creates=False)


def _options(port: int) -> dict[str, Any]:
    return {"key": "test-key", "secret": "test-secret", "endpoint_url": f"http://127.0.0.1:{port}"}


def _rclone() -> str:
    beside = Path(sys.executable).parent / "rclone"
    return str(beside) if beside.exists() else shutil.which("rclone") or "rclone"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _running(command: list[str], port: int) -> Iterator[None]:
    """The command as a child process that is ended on the way out, whatever happens in between."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_until_listening(process, port)
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_listening(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"{process.args!r} ended with code {process.returncode} before it listened")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise RuntimeError(f"{process.args!r} did not listen on port {port} within {START_TIMEOUT_S} s")
