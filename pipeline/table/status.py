"""How a table stands: its versions, what runs left in staging, its dead letters, its files. Reads lists only, writes nothing.

Comes in: a table's folder. Goes out: a Status, for a person (`str`) and for machines (`to_dict`).
"""

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from pipeline.errors import InputError, one_line
from pipeline.progress import counted, duration, size
from pipeline.storage import Folder
from pipeline.storage.file import FileInfo
from pipeline.storage.parallel import in_parallel
from pipeline.table import dead_letters, layout, lease, rows, snapshot
from pipeline.table.record import READERS

MOST_ERRORS = 5
MOST_ERROR_CHARACTERS = 120
LOOKED_INTO = 100
"""So many dead letters of an error are looked into for the places that have it."""
SHOWN_VERSIONS = 20


@dataclass(frozen=True, kw_only=True)
class VersionStatus:
    version: int
    time: str
    run: str
    rows: int
    new: int
    changed: int
    deleted: int
    failed: int
    rows_of: int | None
    """The version that it rolled the table back to."""
    materialised: bool


@dataclass(frozen=True, kw_only=True)
class StagedWork:
    units: int
    records: int
    publications: int
    files: int
    bytes: int
    youngest_s: float | None
    """Seconds since something was last written there, by this machine's clock."""


@dataclass(frozen=True, kw_only=True)
class Status:
    table: str
    versions: tuple[VersionStatus, ...]
    """Oldest first; the last is the current one."""
    held: bool
    worked_on: dict[str, Any] | None
    """Who has the table's lease, by this machine's clock."""
    staged: StagedWork
    failed_by_stage: dict[str, int]
    failed_most: tuple[tuple[str, int], ...]
    """The commonest errors of the current version's dead letters."""
    failed_first: dict[str, tuple[str, ...]]
    """It tells for each of these errors the first places that have it: files, with the ids of rows that have some."""
    live_files: int
    live_bytes: int
    orphan_files: int
    orphan_bytes: int
    """In data/, though no version names them, or not yet."""
    trash_files: int
    trash_bytes: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"{self.table} at version {self.versions[-1].version}" + (", held" if self.held else "")]
        if len(self.versions) > SHOWN_VERSIONS:
            lines.append(f"  .. {len(self.versions) - SHOWN_VERSIONS:,} older versions")
        lines += [f"  {_line(version)}" for version in self.versions[-SHOWN_VERSIONS:]]
        if self.held:
            lines.append("  held       runs publish nothing until `--release`")
        if self.worked_on is not None:
            at_work = "{work}, process {pid} on {host}, since {since}; its lease runs until {until}"
            lines.append(f"  at work    {at_work.format(**self.worked_on)}")
        staged = self.staged
        if staged.files:
            since = f", the last {duration(staged.youngest_s)} ago" if staged.youngest_s is not None else ""
            lines.append(
                f"  staging    {counted(staged.records, 'finished slice')} of {counted(staged.units, 'unit')}, "
                f"{counted(staged.publications, 'publication')}, {size(staged.bytes)}{since}"
            )
        if self.failed_by_stage:
            stages = ", ".join(f"{count:,} in {stage}" for stage, count in self.failed_by_stage.items())
            lines.append(f"  failed     {stages}")
            for error, count in self.failed_most:
                first = self.failed_first[error]
                more = ", .." if len(first) > dead_letters.SHOWN or count > LOOKED_INTO else ""
                shown = ", ".join(first[: dead_letters.SHOWN])
                lines += [f"             {count:,} x {error}", f"               in {shown}{more}"]
        lines.append(
            f"  files      {self.live_files:,} live with {size(self.live_bytes)}, {counted(self.orphan_files, 'orphan')} "
            f"with {size(self.orphan_bytes)}, {self.trash_files:,} in the trash with {size(self.trash_bytes)}"
        )
        return "\n".join(lines)


def _line(version: VersionStatus) -> str:
    changes = f"+{version.new:,} ~{version.changed:,} -{version.deleted:,}"
    note = f", rows of version {version.rows_of}" if version.rows_of is not None else ""
    note += "" if version.materialised else ", not materialised: the next run finishes it"
    return f"{version.version:>6}  {version.time}  {counted(version.rows, 'row')} ({changes}), {version.failed:,} failed{note}"


def status(table: Folder) -> Status:
    """Raises InputError where there is no version yet, telling what is staged."""
    listed = table.list()
    staged = _staged([info for info in listed if info.path.startswith(layout.STAGING)])
    numbers = snapshot.versions(table)
    if not numbers:
        work = f"; staging holds {counted(staged.records, 'finished slice')} of a run that goes on when it is started again"
        raise InputError(f"table {table.url} has no version yet{work if staged.records else ''}")
    done = {info.path for info in listed}
    current = snapshot.read(table, numbers[-1])
    live = {place for part in current.parts for place in (part.path, part.staged)}
    in_data = [info for info in listed if info.path.startswith(layout.DATA)]
    trash = [info for info in listed if info.path.startswith(layout.TRASH)]
    orphans = [info for info in in_data if info.path not in live]
    stages, errors, first = _failures(table, current)
    holder = lease.holder(table, time.time())
    versions = tuple(in_parallel(lambda number: _version(table, number, layout.done(number) in done), numbers, READERS))
    return Status(
        table=table.url,
        versions=versions,
        held=snapshot.is_held(table, current),
        worked_on=holder.to_dict() if holder else None,
        staged=staged,
        failed_by_stage=stages,
        failed_most=errors,
        failed_first=first,
        live_files=len(current.parts),
        live_bytes=sum(part.size for part in current.parts),
        orphan_files=len(orphans),
        orphan_bytes=sum(info.size for info in orphans),
        trash_files=len(trash),
        trash_bytes=sum(info.size for info in trash),
    )


def _version(table: Folder, number: int, materialised: bool) -> VersionStatus:
    found = snapshot.read_alone(table, number)
    counts = found.counts
    return VersionStatus(
        version=number,
        time=found.time,
        run=found.run,
        rows=counts.rows,
        new=counts.new,
        changed=counts.changed,
        deleted=counts.deleted,
        failed=counts.failed,
        rows_of=found.rows_of,
        materialised=materialised,
    )


def _staged(files: Sequence[FileInfo]) -> StagedWork:
    work = [info for info in files if info.path.startswith((layout.RECORDS, layout.STAGED_PARTS, layout.PUBLICATIONS))]
    records = [info for info in work if info.path.startswith(layout.RECORDS)]
    youngest = max((info.modified for info in work), default=None)
    return StagedWork(
        units=len({layout.staged_unit(info.path) for info in records}),
        records=len(records),
        publications=len(_folders(info.path for info in work if info.path.startswith(layout.PUBLICATIONS))),
        files=len(work),
        bytes=sum(info.size for info in work),
        youngest_s=max(0.0, time.time() - youngest) if youngest is not None else None,
    )


def _folders(paths: Iterable[str]) -> set[str]:
    return {path.removeprefix(layout.PUBLICATIONS).partition("/")[0] for path in paths}


def _failures(
    table: Folder, version: snapshot.Snapshot
) -> tuple[dict[str, int], tuple[tuple[str, int], ...], dict[str, tuple[str, ...]]]:
    """Return (dead letters by stage, the commonest errors with how many have them, the first places of each of these)."""
    stages: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    first: dict[str, list[str]] = {}
    looked_into: Counter[str] = Counter()
    for letters in dead_letters.read(table, version):
        stages.update(letters.column("stage").to_pylist())
        errors_here = letters.column("error").to_pylist()
        shown = {error: one_line(error, MOST_ERROR_CHARACTERS) for error in set(errors_here)}
        found = [shown[error] for error in errors_here]
        errors.update(found)
        wanted = _first_of_each(found, looked_into)
        for row, place in zip(wanted, dead_letters.places(letters.take(pa.array(wanted, pa.int64()))), strict=True):
            places = first.setdefault(found[row], [])
            if place not in places and len(places) <= dead_letters.SHOWN:
                places.append(place)
    most = tuple(errors.most_common(MOST_ERRORS))
    return dict(stages.most_common()), most, {error: tuple(first[error]) for error, _ in most}


def _first_of_each(errors: Sequence[str], looked_into: "Counter[str]") -> list[int]:
    """Return the numbers of the first rows of each error, and count them among those that are looked into."""
    chosen: list[int] = []
    for row, error in enumerate(errors):
        if looked_into[error] < LOOKED_INTO:
            looked_into[error] += 1
            chosen.append(row)
    return chosen


def files(table: Folder, number: int) -> list[dict[str, Any]]:
    """The parts of a version and where they are now; `place` is None for one that was cleaned away or purged.

    Raises InputError for a version that isn't there.
    """
    version = snapshot.read(table, number)
    places = rows.places(table)
    return [
        {"path": part.path, "rows": part.rows, "bytes": part.size}
        | {"place": places.get(part.path) or places.get(part.staged or "")}
        for part in version.parts
    ]
