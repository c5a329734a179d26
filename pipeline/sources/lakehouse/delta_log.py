"""The files of a Delta table's log: those that make up one version, copied to a folder of this disk.

Comes in: the table's folder, and a version or none. Goes out: a `Log`. A version is the newest checkpoint that is not
younger, and the commits after it; nothing else of the log is read. Knows how these files are named, and where they
speak of deletion vectors.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipeline.errors import InputError
from pipeline.storage import FileInfo, NoMatch, Options, list_all, open_pinned

LOG = "_delta_log"
_COMMIT = re.compile(r"(\d{20})\.json")
_CHECKPOINT = re.compile(r"(\d{20})\.checkpoint(?:\.(\d{10})\.(\d{10})|\.([0-9a-f-]{36}))?\.(?:parquet|json)")
_SIDECARS = "_sidecars"
_THREADS = 16


@dataclass(frozen=True, kw_only=True)
class Log:
    """A copy of the part of a log that makes up a version."""

    folder: Path
    """The folder of a table that has no data files."""
    version: int
    newest_first: tuple[Path, ...]
    """The commits from the newest to the oldest, and then the files of the checkpoint."""

    def deletion_vectors(self, paths: Collection[str]) -> Mapping[str, Mapping[str, Any]]:
        """The descriptors of the deletion vectors of these live files, by path; a file without one is left out.

        A live file's last action is an `add`, and says which vector counts.
        """
        found: dict[str, Mapping[str, Any] | None] = {}
        for path in self.newest_first:
            here = {add["path"]: add.get("deletionVector") for add in _adds(path) if add["path"] in paths}
            found = here | found
        return {path: vector for path, vector in found.items() if vector}


def copied(root: str, version: int | None, options: Options, folder: Path) -> Log:
    """Copy what makes up the version, or the newest one. Raises InputError for a folder without a log, and for a
    version that the log doesn't have any more or not yet."""
    listed = _listed(root, options)
    commits = {int(match[1]): file for name, file in listed.items() if (match := _COMMIT.fullmatch(name))}
    checkpoints = _checkpoints(listed)
    known = sorted({*commits, *checkpoints})
    if not known:
        raise InputError(f"Delta table {root!r} has a {LOG}, but neither commits nor checkpoints are in it")
    target = known[-1] if version is None else version
    start = max((number for number in checkpoints if number <= target), default=-1)
    needed = range(start + 1, target + 1)
    if target not in known or any(number not in commits for number in needed):
        first = min(checkpoints, default=0 if 0 in commits else known[-1])
        raise InputError(
            f"source.snapshot is {target}, but Delta table {root!r} has no such version: its log reaches from version "
            f"{0 if 0 in commits else first} to {known[-1]}"
        )
    after = [commits[number] for number in reversed(needed)]
    chosen = {file.path.rpartition("/")[2]: file for file in [*after, *checkpoints.get(start, ())]}
    sidecars = {f"{_SIDECARS}/{name.rpartition('/')[2]}": file for name, file in listed.items() if _SIDECARS in name}
    chosen |= sidecars if start >= 0 else {}
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(lambda pair: _copy(pair[1], folder / LOG / pair[0], options), chosen.items()))
    return Log(folder=folder, version=target, newest_first=tuple(folder / LOG / name for name in chosen))


def _listed(root: str, options: Options) -> dict[str, FileInfo]:
    """The files of the log, by their names below it."""
    place = f"{root.rstrip('/')}/{LOG}"
    try:
        found = list_all(place, options)
    except NoMatch:
        raise InputError(
            f"source.path 'delta:{root}' leads to no Delta table: there is no {LOG} with a log in {root!r}; give "
            "the folder that holds it"
        ) from None
    return {file.path.partition(f"/{LOG}/")[2]: file for file in (*found.files, *found.hidden)}


def _checkpoints(listed: Mapping[str, FileInfo]) -> dict[int, Sequence[FileInfo]]:
    """The files of each checkpoint that is whole, by version; one in one piece is taken before one in several."""
    pieces: dict[tuple[int, int, str], list[FileInfo]] = {}
    for name, file in listed.items():
        if match := _CHECKPOINT.fullmatch(name):
            pieces.setdefault((int(match[1]), int(match[3] or 1), match[4] or ""), []).append(file)
    whole: dict[int, Sequence[FileInfo]] = {}
    for (version, count, _), files in sorted(pieces.items()):
        if len(files) == count:
            whole.setdefault(version, files)
    return whole


def _copy(file: FileInfo, target: Path, options: Options) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with open_pinned(file, options) as opened:
        target.write_bytes(opened.read())


def _adds(path: Path) -> Iterator[Mapping[str, Any]]:
    """The `add` actions of a file of the log."""
    if path.suffix == ".json":
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.strip() and (add := json.loads(line).get("add")):
                yield add
        return
    file = pq.ParquetFile(path)
    if "add" in file.schema_arrow.names:
        for batch in file.iter_batches(columns=["add.path", "add.deletionVector"], use_threads=False):
            yield from (add for add in batch.column("add").to_pylist() if add and add["path"])
