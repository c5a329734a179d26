"""A thing that can be made again is made once on a node, and kept in the folder of this node for such things."""

import atexit
import contextlib
import fcntl
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.machine.folders import cache_folder, new_temporary_folder


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process on this node at a time; the system ends the lock with the process."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def is_kept(kind: str, key: str) -> bool:
    """Whether `kept` would find the folder made."""
    with contextlib.suppress(OSError, RuntimeError):
        return (cache_folder() / kind / key).exists()
    return False


def kept(kind: str, key: str, make: Callable[[Path], None]) -> Path:
    """The folder `kind/key` of the cache. Where it is not there yet, `make(folder)` fills it first, and it appears whole.

    Where the cache can't be written, this is a new folder of this process alone, which takes it along when it ends.
    """
    try:
        parent = cache_folder() / kind
        parent.mkdir(parents=True, exist_ok=True)
        lock = parent / ".lock"
        lock.touch()
    except (OSError, RuntimeError):
        folder = new_temporary_folder()
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
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
