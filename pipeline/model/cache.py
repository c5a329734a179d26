"""The folder of this node for what can be made again, and making a thing in it once."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path


def cache_folder() -> Path:
    """The folder where this program keeps what can be made again. Raises RuntimeError if the user has no home
    folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "embedding-pipeline"


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process on this node at a time; the system ends the lock with the process."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def kept(kind: str, key: str, make: Callable[[Path], None]) -> Path:
    """The folder `kind/key` of the cache. Where it is not there yet, `make(folder)` fills it first, and it appears whole.

    Where the cache can't be written, this is a new folder of this process alone.
    """
    try:
        parent = cache_folder() / kind
        parent.mkdir(parents=True, exist_ok=True)
        lock = parent / ".lock"
        lock.touch()
    except (OSError, RuntimeError):
        folder = Path(tempfile.mkdtemp(prefix="embedding-pipeline-"))
        make(folder)
        return folder
    folder = parent / key
    if not folder.exists():
        with locked(lock):
            if not folder.exists():
                partial = Path(tempfile.mkdtemp(dir=parent))
                try:
                    make(partial)
                    partial.rename(folder)
                finally:
                    shutil.rmtree(partial, ignore_errors=True)
    return folder
