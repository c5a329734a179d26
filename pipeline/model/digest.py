"""A model folder in, one digest out: it changes when a file that can change a vector does.

Which files those are depends on their names alone, so that a folder, a package, a store and the Hub agree on them. The
sha256 of each file is remembered by (path, size, mtime_ns, ctime_ns) in the user's cache folder, so that large weights are
read once. Knows no file format and no network.
"""

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Set
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.machine.folders import cache_folder

_OTHER_RUNTIMES = frozenset(["onnx", "openvino", "coreml", "__pycache__"])
# fmt: off
_NEVER_READ = frozenset([
    ".h5", ".msgpack", ".ot", ".onnx", ".tflite", ".gguf",  # weights for other runtimes
    ".md", ".pdf", ".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp",
    ".py", ".pyc",  # a model's own code is never run
])
# fmt: on
_FOR_PEOPLE = frozenset(["readme", "license", "notice"])
_PICKLES = frozenset([".bin", ".pt", ".pth", ".ckpt"])
_SUPERSEDE_PICKLES = ("model.safetensors", "model.safetensors.index.json")
_Entry = list[Any]
"""[size, mtime_ns, ctime_ns, sha256] of a file. The ctime counts because tools set the mtime at will, and weights of one
architecture have one size."""

_remembered: dict[str, _Entry] = {}
"""The entries of this process, for where the cache folder can't be written."""

_SETTLED_NS = 2_000_000_000
"""A file younger than this may change again without a new mtime, so its digest is not remembered."""


def folder_digest(folder: Path) -> str:
    """sha256 in hex over the sorted (relative path, sha256) pairs of the files that matter, wherever the folder is."""
    known = _load_cache() | _remembered
    found: dict[str, _Entry] = {}
    pairs = []
    for file in vector_files(folder):
        stat = file.stat()
        key = str(file.absolute())
        entry = known.get(key, [])
        version = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
        if entry[:3] != version:
            entry = [*version, _file_digest(file)]
            if time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) > _SETTLED_NS:
                found[key] = entry
        pairs.append([file.relative_to(folder).as_posix(), entry[3]])
    if found:
        _remembered.update(found)
        _save_cache({**_load_cache(), **found})
    return hashlib.sha256(json.dumps(sorted(pairs)).encode()).hexdigest()


def vector_files(folder: Path) -> list[Path]:
    """The files under `folder` that can change a vector, sorted; links are followed."""
    names = (file.relative_to(folder).as_posix() for file in _files(folder))
    return sorted(folder / name for name in vector_file_names(names))


def vector_file_names(names: Iterable[str]) -> list[str]:
    """The names of a model's files that can change a vector, sorted; names are relative paths with "/".

    Hidden files, texts and pictures for people, code, other runtimes' files, and weights that a model.safetensors
    beside them supersedes can't. Leaving out any of these beforehand changes nothing in the result.
    """
    present = set(names)
    return sorted(name for name in present if _can_change_a_vector(PurePosixPath(name), present))


def _can_change_a_vector(path: PurePosixPath, present: Set[str]) -> bool:
    if any(part.startswith(".") for part in path.parts) or _OTHER_RUNTIMES.intersection(path.parts[:-1]):
        return False
    suffix = path.suffix.lower()
    if suffix in _NEVER_READ or path.stem.lower() in _FOR_PEOPLE:
        return False
    return suffix not in _PICKLES or not any(str(path.with_name(name)) in present for name in _SUPERSEDE_PICKLES)


def _files(folder: Path, above: frozenset[str] = frozenset()) -> Iterator[Path]:
    here = os.path.realpath(folder)
    if here in above:  # a link to a folder above goes round for ever
        return
    for entry in folder.iterdir():
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _files(entry, above | {here})
        elif entry.is_file():
            yield entry


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- what is kept on this machine


def _cache_file() -> Path:
    return cache_folder() / "file_digests.json"


def _load_cache() -> dict[str, _Entry]:
    try:
        cache = json.loads(_cache_file().read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):  # RuntimeError: no home folder
        return {}
    return {path: entry for path, entry in cache.items() if _is_entry(entry)} if isinstance(cache, dict) else {}


def _is_entry(entry: object) -> bool:
    return isinstance(entry, list) and [type(item) for item in entry] == [int, int, int, str]


def _save_cache(cache: Mapping[str, _Entry]) -> None:
    """Replace the cache file in one step, without files that are gone; one that can't be written is no error."""
    kept = {path: entry for path, entry in cache.items() if os.path.exists(path)}
    with contextlib.suppress(OSError, RuntimeError):
        target = _cache_file()
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, suffix=".tmp")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(kept, file)
            os.replace(name, target)
        except BaseException:
            os.unlink(name)
            raise
