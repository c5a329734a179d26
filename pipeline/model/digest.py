"""A model folder in, one digest out: it changes when, and only when, a file that can change a vector does.

The sha256 of each file is remembered by (path, size, mtime_ns) in the user's cache folder, so that large weights are
read once. Knows no file format and no network.
"""

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_OTHER_RUNTIMES = frozenset(["onnx", "openvino"])
_OTHER_WEIGHTS = frozenset([".bin", ".h5", ".msgpack", ".ot"])
_Entry = list[Any]
"""[size, mtime_ns, sha256] of a file."""

_SETTLED_NS = 2_000_000_000
"""A file younger than this may change again without a new mtime, so its digest is not remembered."""


def folder_digest(folder: Path) -> str:
    """sha256 in hex over the sorted (relative path, sha256) pairs of the files that matter, wherever the folder is."""
    known = _load_cache()
    found: dict[str, _Entry] = {}
    pairs = []
    for file in vector_files(folder):
        stat = file.stat()
        key = str(file.absolute())
        entry = known.get(key, [])
        if entry[:2] != [stat.st_size, stat.st_mtime_ns]:
            entry = [stat.st_size, stat.st_mtime_ns, _file_digest(file)]
            if time.time_ns() - stat.st_mtime_ns > _SETTLED_NS:
                found[key] = entry
        pairs.append([file.relative_to(folder).as_posix(), entry[2]])
    if found:
        _save_cache({**_load_cache(), **found})
    return hashlib.sha256(json.dumps(sorted(pairs)).encode()).hexdigest()


def vector_files(folder: Path) -> list[Path]:
    """The files under `folder` that can change a vector, sorted.

    Hidden files, Markdown, other runtimes' folders and weights that a model.safetensors beside them supersedes can't.
    """
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in files if _can_change_a_vector(path, path.relative_to(folder)))


def _can_change_a_vector(path: Path, relative: Path) -> bool:
    if any(part.startswith(".") for part in relative.parts) or _OTHER_RUNTIMES.intersection(relative.parts[:-1]):
        return False
    if path.suffix in _OTHER_WEIGHTS:
        return not (path.parent / "model.safetensors").is_file()
    return path.suffix.lower() != ".md"


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _cache_file() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "embedding-pipeline" / "file_digests.json"


def _load_cache() -> dict[str, _Entry]:
    try:
        cache = json.loads(_cache_file().read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):  # RuntimeError: no home folder
        return {}
    return {path: entry for path, entry in cache.items() if _is_entry(entry)} if isinstance(cache, dict) else {}


def _is_entry(entry: object) -> bool:
    return isinstance(entry, list) and [type(item) for item in entry] == [int, int, str]


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
