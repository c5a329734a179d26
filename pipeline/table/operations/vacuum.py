"""What no kept version needs goes, once it is old: orphans, old trash, abandoned staging.

Kept are the current version and the one before it: both can be read, and the table rolled back. Snapshots and the lists in
`meta/` always stay. Age is told by the store's clock.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.errors import CommitConflict
from pipeline.storage import Folder
from pipeline.storage.file import TEMPORARY, FileInfo
from pipeline.table import clock, layout, materialise, snapshot

DAY_S = 86_400.0
OLD_DAYS = 7.0
AT_WORK_S = DAY_S
"""Something younger in staging means that a run may be under way, or about to go on: its finished work is not touched."""


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

    @property
    def files(self) -> tuple[FileInfo, ...]:
        return (*self.orphans, *self.trash, *self.staging, *self.leases)


def clean(table: Folder, older_than_days: float = OLD_DAYS, *, dry_run: bool = False) -> Litter:
    """Delete what is older and not needed; returns it. Finishes what a publisher left undone first.

    Raises CommitConflict, and deletes nothing, if another run published meanwhile.
    """
    current = snapshot.current(table) if dry_run else materialise.finish(table)
    # Listed before the version is read again: whatever a later version needs is then either not listed, or named by it.
    listed = table.list(temporary=True)
    now = max((info.modified for info in listed), default=0.0) if dry_run else clock.now(table)
    if max(snapshot.versions(table), default=0) != current.version:
        raise CommitConflict(f"another run published {table.url} meanwhile: nothing was deleted, start again")
    before = snapshot.read(table, current.version - 1) if current.version > 1 else snapshot.empty()
    litter = _litter(listed, current, before, now - older_than_days * DAY_S, now - AT_WORK_S)
    if not dry_run:
        # A record whose parts are gone is invalid, parts without a record are orphans: either is safe to stop at.
        table.delete(info.path for info in litter.files)
    return litter


def _litter(
    listed: Sequence[FileInfo],
    current: snapshot.Snapshot,
    before: snapshot.Snapshot,
    old_before: float,
    at_work_after: float,
) -> Litter:
    live = {part.path for part in current.parts}
    kept = live | {part.path for part in before.parts}
    lists = {part.row_sources for version in (current, before) for part in version.parts}
    staged = [info for info in listed if _is_work(info.path)]
    at_work = any(info.modified > at_work_after for info in staged)
    orphans, trash, staging, leases = [], [], [], []
    last_lease = max((layout.lease_number(info.path) or 0 for info in listed), default=0)
    for info in listed:
        if info.modified > old_before:
            continue
        if (
            info.path.rpartition("/")[2].startswith(TEMPORARY)
            or (info.path.startswith(layout.DATA) and info.path not in live)
            or (info.path.startswith(layout.ROW_SOURCES) and info.path not in lists and not at_work)
        ):
            orphans.append(info)
        elif info.path.startswith(layout.TRASH) and layout.trashed(info.path) not in kept:
            trash.append(info)
        elif info.path.startswith(layout.STAGING) and not (at_work and _is_work(info.path)):
            staging.append(info)
        elif (layout.lease_number(info.path) or last_lease) < last_lease:
            leases.append(info)
    return Litter(orphans=tuple(orphans), trash=tuple(trash), staging=tuple(staging), leases=tuple(leases))


def _is_work(path: str) -> bool:
    """What a run can go on from, or is about to publish."""
    return path.startswith((layout.RECORDS, layout.STAGED_PARTS, layout.PUBLICATIONS))
