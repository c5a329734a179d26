"""A thing that can be made again is made once on a node, and kept in the folder of this node for such things."""

import atexit
import contextlib
import fcntl
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pipeline.machine.folders import cache_folder, new_temporary_folder


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process on this node at a time; the system ends the lock with the process."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def is_kept(kind: str, *keys: str) -> bool:
    """Whether `kept` would find a folder of one of these keys made."""
    with contextlib.suppress(OSError, RuntimeError):
        return _found(cache_folder() / kind, keys) is not None
    return False


def _found(parent: Path, keys: Sequence[str]) -> Path | None:
    return next((parent / key for key in keys if (parent / key).exists()), None)


def kept(kind: str, key: str, make: Callable[[Path], None], *, or_else: Sequence[str] = ()) -> Path:
    """The folder `kind/key` of the cache, or one whose key of `or_else` serves as well. Where there is none yet,
    `make(folder)` fills it first, and it appears whole.

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
    keys = (key, *or_else)
    found = _found(parent, keys)
    if found is None:
        with locked(lock):
            found = _found(parent, keys)
            if found is None:
                found, partial = parent / key, Path(tempfile.mkdtemp(dir=parent))
                try:
                    make(partial)
                    partial.rename(found)
                finally:
                    shutil.rmtree(partial, ignore_errors=True)
    return found
