"""What no kept version needs goes, once it is old: orphans, old trash, abandoned staging.

Kept are the current version and the one before it: both can be read, and the table rolled back. Snapshots and the lists in
`meta/` always stay, lists of row sources that no kept version names apart. What a run under way needs stays whatever the age
that was asked for. Age is told by the store's clock.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

from pipeline.errors import CommitConflict
from pipeline.storage import Folder
from pipeline.storage.file import TEMPORARY, FileInfo
from pipeline.table import announcement, clock, layout, lease, materialise, snapshot
from pipeline.table.snapshot import Snapshot

DAY_S = 86_400.0
OLD_DAYS = 7.0
AT_WORK_S = DAY_S
"""Work of a run that is younger means that the run may be under way, or about to go on: none of its work is touched."""


@dataclass(frozen=True, kw_only=True)
class Litter:
    """Files that may go, by what they are."""

    orphans: tuple[FileInfo, ...] = ()
    """Files in data/ that no version names, unfinished files anywhere, and lists of row sources that no kept version names."""
    trash: tuple[FileInfo, ...] = ()
    """Superseded parts that no kept version holds."""
    staging: tuple[FileInfo, ...] = ()
    """Work of runs that never published."""
    leases: tuple[FileInfo, ...] = ()
    """All but the last: they are done with."""
    kept: tuple[FileInfo, ...] = ()
    """These superseded parts stay in the trash. They are too young, or a kept version holds them."""

    @property
    def files(self) -> tuple[FileInfo, ...]:
        return (*self.orphans, *self.trash, *self.staging, *self.leases)

    def among(self, other: "Litter") -> "Litter":
        """Those files that are litter by both looks."""
        paths = {info.path for info in (*other.files, *other.kept)}
        kept = {
            item.name: tuple(info for info in getattr(self, item.name) if info.path in paths) for item in fields(self)
        }
        return Litter(**kept)


def clean(table: Folder, older_than_days: float = OLD_DAYS, *, dry_run: bool = False) -> Litter:
    """Delete what is older and not needed; returns it. Finishes what a publisher left undone first.

    Raises CommitConflict, and deletes nothing, if another run published meanwhile.
    """
    old_s = older_than_days * DAY_S
    if dry_run:
        return _look(table, snapshot.current(table), old_s, dry_run=True)
    current = materialise.finish(table)
    litter = _look(table, current, old_s)
    with announcement.standing(
        table, [info.path for info in litter.files if info.path.startswith(_PUBLISHABLE)]
    ) as told:
        if told:
            # A run that began since the first look shows in the second, or sees what is announced.
            litter = litter.among(_look(table, current, old_s))
        # A record whose parts are gone is invalid, parts without a record are orphans: either is safe to stop at.
        table.delete(info.path for info in litter.files)
    return litter


def _look(table: Folder, current: Snapshot, old_s: float, *, dry_run: bool = False) -> Litter:
    """What may go now. Raises CommitConflict if there is a later version than the current one."""
    # Listed before the version is read again: whatever a later version needs is then either not listed, or named by it.
    listed = table.list(temporary=True)
    now = max((info.modified for info in listed), default=0.0) if dry_run else clock.now(table)
    if max(snapshot.versions(table), default=0) != current.version:
        raise CommitConflict(f"another run published {table.url} meanwhile: nothing was deleted, start again")
    before = snapshot.read(table, current.version - 1) if current.version > 1 else snapshot.empty()
    at_work = _is_at_work(listed, current.version, now) or lease.holder(table, now) is not None
    return _litter(listed, (current, before), now, old_s, at_work=at_work)


def _is_at_work(listed: Sequence[FileInfo], current: int, now: float) -> bool:
    """Whether something says that a run is under way."""
    return any(info.modified > now - AT_WORK_S and _is_work(info.path, current) for info in listed)


def _litter(listed: Sequence[FileInfo], kept: Sequence[Snapshot], now: float, old_s: float, *, at_work: bool) -> Litter:
    """What may go; of the `kept` versions the first is the current one."""
    current = kept[0]
    live = {part.path for part in current.parts}
    parts = {part.path for version in kept for part in version.parts}
    lists = {part.row_sources for version in kept for part in version.parts}
    orphans, trash, staging, leases, stays = [], [], [], [], []
    last_lease = max((layout.lease_number(info.path) or 0 for info in listed), default=0)
    for info in listed:
        path = info.path
        young = info.modified > now - max(old_s, _least_age(path))
        if path.startswith(layout.TRASH) and (young or layout.trashed(path) in parts):
            stays.append(info)
        if young:
            continue
        if (
            _is_unfinished(path)
            or (path.startswith(layout.DATA) and path not in live)
            or (path.startswith(layout.ROW_SOURCES) and path not in lists and not at_work)
        ):
            orphans.append(info)
        elif path.startswith(layout.TRASH) and layout.trashed(path) not in parts:
            trash.append(info)
        elif path.startswith(layout.STAGING) and not path.startswith(_kept_in_staging(at_work=at_work)):
            staging.append(info)
        elif (layout.lease_number(path) or last_lease) < last_lease:
            leases.append(info)
    return Litter(
        orphans=tuple(orphans), trash=tuple(trash), staging=tuple(staging), leases=tuple(leases), kept=tuple(stays)
    )


_WORK = (layout.RECORDS, layout.STAGED_PARTS, layout.PUBLICATIONS)
_NEEDED = (*_WORK, layout.PROBES)
_PUBLISHABLE = (*_WORK, layout.ROW_SOURCES)
"""What a version may name, or be made of, that a run has not published yet."""


def _kept_in_staging(*, at_work: bool) -> tuple[str, ...]:
    """Announcements end by themselves, or with a later cleaning."""
    return (layout.CLEANINGS, *(_NEEDED if at_work else ()))


def _is_work(path: str, current: int) -> bool:
    """What a run can go on from, or is about to publish: a list of row sources beyond the current version is of one, too."""
    return path.startswith(_WORK) or (layout.row_sources_version(path) or 0) > current


def _least_age(path: str) -> float:
    """In seconds, whatever age was asked for. A young file may be one that is being written, or by which a process looks at
    the clock. The probes' vectors are all that a build has in staging until its first slice is done."""
    if path.startswith(layout.PROBES):
        return AT_WORK_S
    return clock.WRITING_S if _is_unfinished(path) or path.startswith(layout.STAGING) else 0.0


def _is_unfinished(path: str) -> bool:
    return path.rpartition("/")[2].startswith(TEMPORARY)
