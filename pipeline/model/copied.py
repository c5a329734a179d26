"""A model folder in an object store in, a folder on this node with exactly those files out.

A copy is made once per node, under a lock, and named for what is in it: the address, and each file's path, size and
version. It appears by a rename, so that a killed copy leaves nothing that could be taken for a whole one.
"""

import contextlib
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.errors import InputError, SourceChanged, StorageError
from pipeline.machine.folders import cache_folder
from pipeline.model.cache import locked
from pipeline.model.digest import vector_file_names
from pipeline.storage import Options, list_pattern, pinned

_READAHEAD_BYTES = 32 * 2**20


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    name: str
    """The path relative to the model folder, with "/"."""
    path: str
    """URL."""
    size: int
    version: str


def list_model(url: str, options: Options) -> tuple[ModelFile, ...]:
    """The files below `url` that can change a vector, sorted by name, each in the version it has now.

    Raises InputError where nothing is found, or where a name would leave the folder.
    """
    if any(character in url for character in "*?["):
        raise InputError(f"model.path {url!r} is a pattern; give the address of one folder")
    try:
        found = {_name(file.path, url): file for file in list_pattern(url, options)}
    except InputError as error:
        raise InputError(f"model.path {url!r}: {error}") from None
    names = vector_file_names(found)
    if not names:
        raise InputError(f"model.path {url!r} holds no model files; give the folder with modules.json")
    return tuple(
        ModelFile(name=name, path=found[name].path, size=found[name].size, version=found[name].version)
        for name in names
    )


def _name(path: str, url: str) -> str:
    folder, path = (place.partition("://")[2].strip("/") for place in (url, path))
    if path == folder:
        raise InputError("this is a file; give the folder that holds modules.json")
    name = path.removeprefix(folder + "/")
    parts = name.split("/")
    if name == path or "\0" in name or "\\" in name or any(part in ("", ".", "..") for part in parts):
        raise InputError(f"the store lists {name!r}, which is no path inside it: remove that object")
    return name


def copied_folder(url: str, files: Sequence[ModelFile], options: Options) -> Path:
    """The folder on this node with these files of the model at `url`: made by now, or made by this call.

    Raises StorageError if a file is no longer the listed version, or can't be read or written.
    """
    content = json.dumps([url.rstrip("/"), [[file.name, file.version, file.size] for file in files]])
    key = hashlib.sha256(content.encode()).hexdigest()[:32]
    try:
        folder = cache_folder() / "models" / key
        if _is_whole(folder, files):
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_suffix(".lock")):
            if not _is_whole(folder, files):
                _copy(folder, files, options)
        return folder
    except SourceChanged:
        raise StorageError(
            f"a file of the model at {url!r} was replaced after this run had begun: start again to take the new model"
        ) from None
    except (OSError, RuntimeError) as error:  # RuntimeError: no home folder
        reason = getattr(error, "strerror", None) or error
        raise StorageError(
            f"the model at {url!r} can't be copied to the cache of node {platform.node()!r} ({reason}): "
            "make room there, or set XDG_CACHE_HOME to a folder that can be written"
        ) from None


def _is_whole(folder: Path, files: Sequence[ModelFile]) -> bool:
    """Whether all files have their sizes. A copy that a crash of the machine, or a person, damaged is made again."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return all((folder / file.name).stat().st_size == file.size for file in files)
    return False


def _copy(folder: Path, files: Sequence[ModelFile], options: Options) -> None:
    """Only under the lock: a partial folder that stands there was left by a process that is gone."""
    partial = folder.with_suffix(".partial")
    for old in (partial, folder):
        shutil.rmtree(old, ignore_errors=True)
    partial.mkdir()
    for file in files:
        target = partial / PurePosixPath(file.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        with pinned(file, options, _READAHEAD_BYTES) as source, target.open("wb") as copy:
            shutil.copyfileobj(source, copy, _READAHEAD_BYTES)
        if target.stat().st_size != file.size:
            raise StorageError(f"{file.path!r} ended after {target.stat().st_size} of {file.size} bytes: start again")
    os.rename(partial, folder)
