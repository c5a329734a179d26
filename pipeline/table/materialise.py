"""Bring `data/` and the lists in `meta/` into the state that a committed snapshot describes.

Idempotent and roll-forward only: every step may be repeated, by the publisher or by the next run of any command. New
parts stand in `data/` before superseded ones leave it, so that a row is never missing from both.
"""

from collections.abc import Iterable
from dataclasses import replace

from pipeline.errors import StorageError
from pipeline.storage import Folder
from pipeline.storage.parallel import in_parallel
from pipeline.table import layout, record, snapshot
from pipeline.table.part import materialised, parts_to_table
from pipeline.table.snapshot import Snapshot, to_parquet

COPIERS = 16


def finish(table: Folder) -> Snapshot:
    """The current snapshot, after everything that its publisher left undone is done."""
    current = snapshot.current(table)
    if current.version and table.size(layout.done(current.version)) is None:
        return materialise(table, current)
    # A process that was stopped amid an earlier version may have gone on, and died.
    _remove_dead(table, current)
    return _in_data(current)


def materialise(table: Folder, version: Snapshot) -> Snapshot:
    """Ends with `<n>.done`, and goes on to the latest version, which is returned: a process that was stopped and overtaken
    would leave in `data/` what it copied there too late."""
    while True:
        parent = snapshot.read(table, version.parent)
        _copy_all(table, [(part.staged, part.path) for part in version.parts if part.staged], version)
        superseded = _superseded(parent, version)
        _copy_all(table, [(path, layout.trash(version.version) + path) for path in superseded])
        table.delete(superseded)
        _copy_lists(table, version)
        _remove_dead(table, version)
        _remove_staged(table, version)
        table.write(layout.done(version.version), b"")
        latest = max(snapshot.versions(table))
        if latest == version.version:
            return _in_data(version)
        version = snapshot.read(table, latest)


def _in_data(version: Snapshot) -> Snapshot:
    """It was read while its parts lay in staging."""
    return replace(version, parts=tuple(map(materialised, version.parts)))


def _superseded(parent: Snapshot, version: Snapshot) -> list[str]:
    live = {part.path for part in version.parts}
    return [part.path for part in parent.parts if part.path not in live]


def _remove_dead(table: Folder, version: Snapshot) -> None:
    """What a process that was overtaken left in `data/`: parts of this version's number or a lower one that it doesn't name.
    No later one will: names are never used twice."""
    live = {part.path for part in version.parts}
    numbers = {info.path: layout.version_of_part(info.path) for info in table.list(layout.DATA)}
    dead = {path: n for path, n in numbers.items() if n is not None and n <= version.version and path not in live}
    # What a version named went to the trash when it was superseded; if it was purged from there, it must not come back.
    # A purge may have taken the folder from the name of such a part.
    trashed = {_name(part.path) for n in set(dead.values()) for part in snapshot.read(table, n).parts}
    _copy_all(table, [(path, layout.trash(version.version) + path) for path in dead if _name(path) not in trashed])
    table.delete(dead)


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _copy_all(table: Folder, pairs: Iterable[tuple[str, str]], needed_by: Snapshot | None = None) -> None:
    """Copies what is not there yet; a source may be gone, at any moment, because another process moved it on.

    Raises StorageError if the version `needed_by` lacks both files, and is the current one: a later one moves them on too.
    """

    def copy(pair: tuple[str, str]) -> None:
        source, target = pair
        size, present = table.size(source), table.size(target)
        if size is not None and present != size:
            try:
                table.copy(source, target)
                return
            except StorageError:
                if table.size(source) is not None:
                    raise
            size, present = None, table.size(target)
        if size is None and present is None and needed_by and needed_by.version == max(snapshot.versions(table)):
            raise StorageError(
                f"table {table.url}: neither {source} nor {target} is there; the table was damaged by hand, or by a second "
                "publisher on a store that doesn't keep two apart: bring one of the two back from a copy"
            )

    for _ in in_parallel(copy, pairs, COPIERS):
        pass


def _copy_lists(table: Folder, version: Snapshot) -> None:
    """Parts, sources, changes and dead letters move from the publication beside the snapshot."""
    number, folder = version.version, version.publication
    # Created once: whoever comes late must not bring back the values that a purge has taken out of it.
    table.create_once(
        layout.parts_list(number), to_parquet(parts_to_table(map(materialised, version.parts))).to_pybytes()
    )
    table.write(layout.sources_list(number), to_parquet(version.sources))
    pairs = []
    for name, target in (("changes/", layout.changes(number)), ("dead_letters/", layout.dead_letters(number))):
        prefix = folder + name
        pairs += [(info.path, target + info.path.removeprefix(prefix)) for info in table.list(prefix)]
    _copy_all(table, pairs, version)


def _remove_staged(table: Folder, version: Snapshot) -> None:
    """Only what this version's publisher found staged, and its publication: not what a later run staged meanwhile."""
    consumed, own = snapshot.Consumed(table, version), version.publication
    gone = table.gather(
        layout.STAGING,
        lambda files: sorted(info.path for info in files if info in consumed or info.path.startswith(own)),
    )
    record.delete_staged(table, [path for path in gone if not path.startswith(own)])
    # Last, as it lists what was to go.
    table.delete(path for path in gone if path.startswith(own))
