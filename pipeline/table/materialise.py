"""Bring `data/` and the lists in `meta/` into the state that a committed snapshot describes.

Idempotent and roll-forward only: every step may be repeated, by the publisher or by the next run of any command. New
parts stand in `data/` before superseded ones leave it, so that a row is never missing from both.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from pipeline.errors import StorageError
from pipeline.storage import Folder
from pipeline.table import layout, snapshot
from pipeline.table.part import Part, materialised, parts_to_table
from pipeline.table.snapshot import Snapshot, to_parquet

COPIERS = 16


def finish(table: Folder) -> Snapshot:
    """The current snapshot, after everything that its publisher left undone is done."""
    current = snapshot.current(table)
    if current.version and table.size(layout.done(current.version)) is None:
        materialise(table, current)
    return current


def materialise(table: Folder, version: Snapshot) -> None:
    """Ends with `<n>.done`; a process that was overtaken by a later version removes what it put in the later one's way."""
    parent = snapshot.read(table, version.parent)
    superseded = _superseded(parent, version)
    _copy_all(table, [(part.staged, part.path) for part in version.parts if part.staged], version)
    _copy_all(table, [(part.path, layout.trash(version.version) + part.path) for part in superseded])
    table.delete(part.path for part in superseded)
    _copy_lists(table, version)
    table.write(layout.done(version.version), b"")
    _remove_staged(table, version)
    _yield_to_later(table, version)


def _superseded(parent: Snapshot, version: Snapshot) -> list[Part]:
    live = {part.path for part in version.parts}
    return [part for part in parent.parts if part.path not in live]


def _copy_all(table: Folder, pairs: Iterable[tuple[str, str]], needed_by: Snapshot | None = None) -> None:
    """Copies what is not there yet; a source may be gone, because an earlier attempt moved it on.

    Raises StorageError if the version `needed_by` lacks both files, and is the current one: a later one moves them on too.
    """

    def copy(pair: tuple[str, str]) -> None:
        source, target = pair
        size, present = table.size(source), table.size(target)
        if size is None and present is None and needed_by and needed_by.version == max(snapshot.versions(table)):
            raise StorageError(
                f"table {table.url}: neither {source} nor {target} is there; the table was damaged by hand, or by a second "
                "publisher on a store that doesn't keep two apart: bring one of the two back from a copy"
            )
        if size is not None and present != size:
            table.copy(source, target)

    _in_parallel(copy, pairs)


def _copy_lists(table: Folder, version: Snapshot) -> None:
    """Parts, sources, changes and dead letters move from the publication beside the snapshot."""
    number, folder = version.version, version.publication
    table.write(layout.parts_list(number), to_parquet(parts_to_table(map(materialised, version.parts))))
    table.write(layout.sources_list(number), to_parquet(version.sources))
    pairs = []
    for name, target in (("changes/", layout.changes(number)), ("dead_letters/", layout.dead_letters(number))):
        prefix = folder + name
        pairs += [(info.path, target + info.path.removeprefix(prefix)) for info in table.list(prefix)]
    _copy_all(table, pairs, version)


def _remove_staged(table: Folder, version: Snapshot) -> None:
    """Only what this version published: its publication, and all that was staged for its live units."""
    live = version.live_units()
    published = [
        info.path
        for info in table.list(layout.STAGING)
        if info.path.startswith(version.publication) or layout.staged_unit(info.path) in live
    ]
    # Records last: a record whose parts are gone is invalid and gets deleted, parts without a record are orphans.
    table.delete(path for path in published if not path.startswith(layout.RECORDS))
    table.delete(path for path in published if path.startswith(layout.RECORDS))


def _yield_to_later(table: Folder, version: Snapshot) -> None:
    latest = snapshot.current(table)
    if latest.version != version.version:
        live = {part.path for part in latest.parts}
        table.delete(part.path for part in version.parts if part.path not in live)


def _in_parallel(work: Callable[[tuple[str, str]], None], pairs: Iterable[tuple[str, str]]) -> None:
    with ThreadPoolExecutor(COPIERS) as pool:
        for _ in pool.map(work, pairs):
            pass
