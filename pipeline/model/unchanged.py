"""What is loaded of a model folder is what its digest was made of, or an error says that the folder changed.

Comes in: the folder, the digest that the run was planned with, and a function that loads something of it into memory of
this process. The files' states (inode, size, both times) and the digest are looked at before and after the function has
run: a write in between shows in the states, whoever puts the old time of modification back. What the function returns
must hold no mapping of a file, since a mapping changes together with its file.

The cost is a stat of each file: digests are remembered, so that files are read again only where their state is new, or so
young that they may change without a new time. Nothing is copied.
"""

import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pipeline.errors import ModelChanged
from pipeline.model.digest import folder_digest, vector_files

Loaded = TypeVar("Loaded")

_ATTEMPTS = 3
"""A folder may be touched without a change (a backup, a new link to a file): it is loaded again then, so often."""

_States = dict[str, tuple[int, ...]]


def load_unchanged(folder: Path, digest: str, load: Callable[[], Loaded]) -> Loaded:
    """What `load()` returns, made from files that have this digest. Raises ModelChanged where they don't, or keep changing.

    An error of `load` passes through where the folder stayed as it was; else it is the change that is told.
    """
    for _ in range(_ATTEMPTS):
        before = _states(folder)
        check_digest(folder, digest)
        try:
            loaded = load()
        except Exception:
            check_digest(folder, digest)
            if _states(folder) == before:
                raise
            continue
        check_digest(folder, digest)
        if _states(folder) == before:
            return loaded
    raise ModelChanged(
        f"the model in {str(folder)!r} on node {platform.node()!r} is written to again and again while it is loaded: start "
        "again when it is whole, and write a new model into a folder of its own"
    )


def check_digest(folder: Path, digest: str) -> None:
    """Raises ModelChanged unless the folder's files have this digest."""
    try:
        found = folder_digest(folder)
    except OSError as error:
        found = f"none, {error.strerror or error}"
    if found != digest:
        raise ModelChanged(
            f"the model in {str(folder)!r} on node {platform.node()!r} is no longer the one that this run was planned with "
            f"(digest {found[:40] if ' ' in found else found[:12]}, expected {digest[:12]}): put it back, or start again to "
            "plan with the new one; write a new model into a folder of its own"
        )


def _states(folder: Path) -> _States:
    try:
        return {str(file): _state(file) for file in vector_files(folder)}
    except OSError:
        return {}  # the digest says what is wrong


def _state(file: Path) -> tuple[int, ...]:
    status = os.stat(file)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
