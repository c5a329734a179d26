"""A Ray of this machine starts for this process alone: it is told what the container has, and listens to nobody else.

The environment and the machine's bounds come in. A Ray that is running goes out, or none of its processes is left. Joining
a cluster that somebody else started is not the work of this file, but for the signals that Ray would take over.
"""

import contextlib
import logging
import os
import signal
import site
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil  # It comes with Ray.
import ray
import ray._private.ray_constants as ray_constants
import ray._private.utils as ray_utils
import ray.job_config
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR

from pipeline.errors import ConfigError, RunError
from pipeline.machine.folders import why_unusable
from pipeline.machine.quotas import cores, memory_bytes

LOOPBACK = "127.0.0.1"
OBJECT_STORE_BYTES = 2 * 2**30
"""A local Ray has an object store of so many bytes at most. A slice is at most 64 MiB of text and 64 MiB of vectors, and
few are in flight. What doesn't fit is spilled to the disk."""
OBJECT_STORE_SHARE = 0.3
"""The object store has at most this share of the memory of the machine, or of the container."""
LEAST_OBJECT_STORE_BYTES = 96 * 2**20
"""Ray refuses a store that is much smaller."""
WORKERS_SHARE = 0.5
"""Ray's workers may have this share of that memory."""
MOST_FOLDER_BYTES = 40
"""The paths of sockets have at most 107 bytes. Ray appends `/session_2026-11-30_13-25-14_123456_1234567`,
`/sockets/plasma_store`, and a number where there is one already."""
SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")
END_TIMEOUT_S = 3.0
PACKAGES = Path(__file__).parents[3]
"""This folder holds the package that runs here."""
QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}


def start_local() -> None:
    """Start a fresh Ray, whatever RAY_ADDRESS or left-overs say.

    When this is interrupted, or fails, no process of it is left. Raises ConfigError where Ray finds no folder, and RunError
    where it does not start.
    """
    folder, spilling = session_folder()
    started = time.time()
    try:
        with _loopback():
            ray.init(
                address="local",
                # There is one logical CPU more than cores, since reading and writing mostly wait while encoders compute.
                num_cpus=cores() + 1,
                include_dashboard=False,
                job_config=same_package(),
                _node_ip_address=LOOPBACK,
                _temp_dir=folder,
                **({"object_spilling_directory": spilling} if spilling else {}),
                **memory_settings(memory_bytes()),
                **QUIET,
            )
    except BaseException as error:
        end_half_started(started)
        if not isinstance(error, Exception):
            raise
        said = (str(error).strip().splitlines() or [""])[0]
        raise RunError(
            f"a Ray of this machine does not start ({type(error).__name__}: {said}): its logs below {folder} may say why"
        ) from None


class _Fixed(list[str]):
    """Ray extends the list by the working directory, and workers put what it holds before all other folders."""

    def extend(self, paths: Iterable[str]) -> None:
        pass


def same_package() -> ray.job_config.JobConfig | None:
    """Return what makes workers import this package, whatever the working directory holds under its name.

    None stands for a submitted job, of which Ray knows the folder.
    """
    if RAY_JOB_CONFIG_JSON_ENV_VAR in os.environ:
        return None
    installed = [*site.getsitepackages(), site.getusersitepackages()]
    config = ray.job_config.JobConfig()
    config._py_driver_sys_path = _Fixed([] if str(PACKAGES) in installed else [str(PACKAGES)])
    return config


def memory_settings(memory: int | None) -> dict[str, int]:
    """Return how many bytes the object store and the workers of a local Ray have, of so many that there are."""
    if memory is None:
        return {"object_store_memory": OBJECT_STORE_BYTES}
    store = max(LEAST_OBJECT_STORE_BYTES, min(OBJECT_STORE_BYTES, int(OBJECT_STORE_SHARE * memory)))
    return {"object_store_memory": store, "_memory": max(1, int(WORKERS_SHARE * memory))}


@contextlib.contextmanager
def signals_left_alone() -> Iterator[None]:
    """Within the block Ray takes no signal over: in a notebook they are the user's, and a command has its own way to end."""
    ours = ray_utils.set_sigterm_handler
    ray_utils.set_sigterm_handler = lambda handler: None
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        ray_utils.set_sigterm_handler = ours
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                if handler is not None and signal.getsignal(number) is not handler:
                    signal.signal(number, handler)


@contextlib.contextmanager
def _loopback() -> Iterator[None]:
    """Let Ray take the loopback address at its word. It would look for the one that other machines see, and its ports,
    which run what they are sent, would be open to them."""
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


# --- folders


def session_folder() -> tuple[str, str | None]:
    """Return the folder for Ray's sockets and logs, and one for spilled objects where these must go elsewhere.

    It is below RAY_TMPDIR or TMPDIR, unless that path is too long for sockets or can't be written. Raises ConfigError
    where no other folder will do.
    """
    given = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or SHORT_FOLDERS[0]
    reasons = []
    for base in dict.fromkeys([os.path.abspath(given), *SHORT_FOLDERS]):
        for name in ("ray", f"ray-{os.getuid()}"):  # Another user's /tmp/ray may be closed to this one.
            folder = os.path.join(base, name)
            if reason := _why_no_session(folder):
                reasons.append(reason)
                continue
            elsewhere = base != os.path.abspath(given) and not why_unusable(Path(given))
            return folder, os.path.abspath(given) if elsewhere else None
    raise ConfigError(
        f"Ray finds no folder for its sockets ({reasons[0]}): set RAY_TMPDIR to one that can be written, whose path has at "
        f"most {MOST_FOLDER_BYTES - len('/ray')} bytes"
    )


def _why_no_session(folder: str) -> str:
    size = len(os.fsencode(folder))
    if size > MOST_FOLDER_BYTES:
        return f"{folder!r} is {size - MOST_FOLDER_BYTES} bytes too long"
    return why_unusable(Path(folder))


# --- what is left of a start


def end_half_started(since: float) -> None:
    """End what `ray.init` started in this process since that Unix time, in whatever state it is."""
    with contextlib.suppress(Exception):
        ray.shutdown()
    while family := _family(since):
        for process in family:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(family, timeout=END_TIMEOUT_S)
        if time.time() - since > END_TIMEOUT_S + 60:
            return


def _family(since: float) -> list[Any]:
    """Return the children of this process that run files of Ray, with all below them. The user's own are left alone."""
    home = os.path.dirname(ray.__file__)
    found: list[Any] = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            ours = child.create_time() >= since - 1 and child.status() != psutil.STATUS_ZOMBIE
            if ours and any(home in argument for argument in child.cmdline()):
                found += [child, *child.children(recursive=True)]
    return found
