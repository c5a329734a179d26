"""Real object stores as child processes on the loopback: moto and rclone for S3, Google's and Azure's emulators.

They differ where it hurts: moto and Azurite honour "create only", `rclone serve s3` and gcp-storage-emulator don't.
Credentials are checked by rclone and Azurite. Azurite is an npm package: `azurite` has to be on the PATH.
"""

import base64
import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import fsspec.asyn
import s3fs
from gcsfs.core import GCSFileSystem

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


@dataclass(frozen=True, kw_only=True)
class GsServer:
    storage_options: dict[str, Any] = field(repr=False)

    def make_bucket(self, name: str) -> str:
        """Create a bucket; returns its URL."""
        GCSFileSystem(**self.storage_options, skip_instance_cache=True).call("POST", "b", json={"name": name})
        return f"gs://{name}"


@dataclass(frozen=True, kw_only=True)
class AzServer:
    storage_options: dict[str, Any] = field(repr=False)

    def make_bucket(self, name: str) -> str:
        """Create a container; returns its URL."""
        filesystem = fsspec.filesystem("abfs", **self.storage_options, skip_instance_cache=True)
        fsspec.asyn.sync(filesystem.loop, filesystem.service_client.create_container, name)
        return f"az://{name}"


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


@contextlib.contextmanager
def gs_server() -> Iterator[GsServer]:
    port = _free_port()
    command = [sys.executable, "-m", "gcp_storage_emulator", "start", "--in-memory", "--host", "127.0.0.1"]
    with _running([*command, "--port", str(port)], port):
        yield GsServer(storage_options={"endpoint_url": f"http://127.0.0.1:{port}", "token": "anon"})


def has_azurite() -> bool:
    return shutil.which("azurite-blob") is not None


@contextlib.contextmanager
def az_server(tmp_path: Path) -> Iterator[AzServer]:
    port = _free_port()
    # A newer client asks for a version of the API that an older Azurite doesn't know by name.
    command = [str(shutil.which("azurite-blob")), "--silent", "--disableTelemetry", "--skipApiVersionCheck"]
    account, key = "account", base64.b64encode(b"the key of the tests").decode()
    endpoint = f"http://127.0.0.1:{port}/{account}"
    connection = f"DefaultEndpointsProtocol=http;AccountName={account};AccountKey={key};BlobEndpoint={endpoint};"
    command += ["--location", str(tmp_path), "--blobHost", "127.0.0.1", "--blobPort", str(port)]
    with _running(command, port, AZURITE_ACCOUNTS=f"{account}:{key}"):
        yield AzServer(storage_options={"connection_string": connection})


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
def _running(command: list[str], port: int, **environment: str) -> Iterator[None]:
    """The command as a child process that is ended on the way out, whatever happens in between, and with this process."""
    mute = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env={**os.environ, **environment}, preexec_fn=_end_with_parent, **mute)
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


def _end_with_parent() -> None:
    """Tests that are killed leave no servers behind; Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _wait_until_listening(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"{process.args!r} ended with code {process.returncode} before it listened")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise RuntimeError(f"{process.args!r} did not listen on port {port} within {START_TIMEOUT_S} s")
