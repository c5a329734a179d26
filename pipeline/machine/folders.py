"""The folders of this machine that a process may fill: one for what can be made again, and temporary ones.

The environment comes in, and folders that can be written go out. Where the usual one can't be, because there is no home, or
it is read-only, or TMPDIR leads nowhere, the next best one is taken and that is said once. Nothing is known here of what is
kept.
"""

import contextlib
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import InputError, StorageError

NAME = "embedding-pipeline"
SHARED_MEMORY = "/dev/shm"
"""Containers with read-only disks have at least this one."""

_log = logging.getLogger(__name__)
_told: set[str] = set()


def cache_folder() -> Path:
    """Return the folder where this program keeps what can be made again.

    It is in XDG_CACHE_HOME where that is set, else in the user's home, or among the temporary files where the home can't
    be written. Raises RuntimeError where there is none of them.
    """
    given = os.environ.get("XDG_CACHE_HOME")
    if given:
        if reason := why_unusable(Path(given) / NAME):
            _tell_once(
                f"the cache in XDG_CACHE_HOME can't be used ({reason}): each process makes anew what it would keep"
            )
        return Path(given) / NAME
    try:
        folder = Path.home() / ".cache" / NAME
        reason = why_unusable(folder)
    except RuntimeError as error:
        reason = str(error)
    else:
        if not reason:
            return folder
    other = _cache_among_temporary_files()
    _tell_once(f"the cache in the home folder can't be used ({reason}): {other} is, or set XDG_CACHE_HOME to a folder")
    return other


def why_unusable(folder: Path) -> str:
    """Say why files can't be made in a folder, which is made where it is not there. Return "" where they can."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return f"{error.filename or folder}: {error.strerror or error}"
    return "" if os.access(folder, os.W_OK | os.X_OK) else f"{folder}: it can't be written"


def _cache_among_temporary_files() -> Path:
    """Return a folder of this user alone: others could put files there that this process would believe."""
    try:
        folder = Path(temporary_root()) / f"{NAME}-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except (OSError, InputError) as error:
        raise RuntimeError(str(error)) from None
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise RuntimeError(f"{folder} belongs to others: set XDG_CACHE_HOME to a folder that can be written")
    return folder


def temporary_root() -> str:
    """Return the folder that temporary files stand in. Raises InputError where none can be written."""
    try:
        return tempfile.gettempdir()
    except FileNotFoundError:
        if os.access(SHARED_MEMORY, os.W_OK | os.X_OK):
            return SHARED_MEMORY
        raise InputError(
            f"no folder for temporary files can be written (TMPDIR is {os.environ.get('TMPDIR')!r}): set TMPDIR to one"
        ) from None


def new_temporary_folder() -> Path:
    """Make a folder of this process, which removes it. Raises InputError, and StorageError where the disk is full."""
    root = temporary_root()
    try:
        return Path(tempfile.mkdtemp(prefix=f"{NAME}-", dir=root))
    except OSError as error:
        raise StorageError(
            f"no temporary folder can be made in {root!r} ({error.strerror or error}): make room there, or set TMPDIR to "
            "another folder"
        ) from None


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield a new folder that is gone, with all that is in it, when the block is left."""
    folder = new_temporary_folder()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _tell_once(message: str) -> None:
    if message not in _told:
        _told.add(message)
        _log.warning("%s", message)
