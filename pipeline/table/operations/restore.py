"""An earlier version's rows as a new version: roll-forward only, by the same create-only commit as any other.

The new version holds its table: a scheduled run would bring back at once what was rolled back. Knows nothing of models,
sources or who asks.
"""

import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa

from pipeline import schema
from pipeline.errors import InputError, StorageError
from pipeline.storage import Folder
from pipeline.table import dead_letters, layout, materialise, rows, snapshot
from pipeline.table.compare import NEW, OLD
from pipeline.table.part import Part
from pipeline.table.publication import Publication
from pipeline.table.snapshot import Counts, Snapshot, Tally
from pipeline.table.workers import compare_here


def roll_back(table: Folder, number: int) -> Snapshot:
    """Publish the rows of version `number` and hold the table; keeps 64 bytes in memory for each row that differs.

    Raises InputError for a version that isn't there, is the current one, or whose files were cleaned away or purged;
    CommitConflict if another run published first.
    """
    publication = Publication(table, materialise.finish(table))
    with publication.guarded():
        version = _publish_rows_of(publication, number)
    materialise.materialise(table, version)
    return version


def _publish_rows_of(publication: Publication, number: int) -> Snapshot:
    table, parent = publication.table, publication.parent
    wanted = _version_to_restore(table, parent, number)
    parts = _restored(publication, wanted)
    # The hashes of a row know nothing of the model.
    renewed = wanted.fingerprint != parent.fingerprint
    live, back = {part.path for part in parent.parts}, {part.path for part in parts}
    sides = [(part, OLD) for part in parent.parts if part.path not in back]
    sides += [(part, NEW) for part in parts if part.path not in live]
    difference = compare_here(table, sides, renewed=renewed)
    publication.write_changes([part for part, _ in sides], difference)
    publication.write_dead_letters(dead_letters.read(table, wanted))
    # Rows that were not compared are in both versions.
    untouched = sum(part.rows for part in parts if part.path in live)
    sources, purged = _without_purged_letters(table, wanted)
    counts = Counts(
        rows=wanted.counts.rows,
        documents=wanted.counts.documents,
        new=difference.new,
        changed=difference.changed,
        deleted=len(difference.deletes),
        unchanged=difference.unchanged + untouched,
        reused=untouched,
        failed=wanted.counts.failed - purged,
        skipped=wanted.counts.skipped + purged,
    )
    run = f"roll back to version {number}"
    version = publication.version_like(
        wanted, run=run, rows_of=number, counts=counts, parts=tuple(parts), sources=sources
    )
    publication.commit(version)
    return version


def _version_to_restore(table: Folder, parent: Snapshot, number: int) -> Snapshot:
    if number == parent.version:
        raise InputError(f"version {number} is the current one of {table.url}: there is nothing to roll back")
    if number not in snapshot.versions(table):
        raise InputError(
            f"table {table.url} has no version {number} to roll back to; it has {snapshot.versions(table)}"
        )
    return snapshot.read(table, number)


def _restored(publication: Publication, wanted: Snapshot) -> list[Part]:
    """The wanted parts: those that still are live as they are, the others copied out of the trash under new names. So are
    lists of row sources that the parent doesn't name: a cleaning may take these at any moment."""
    table = publication.table
    live = {part.path for part in publication.parent.parts}
    live_lists = {part.row_sources for part in publication.parent.parts}
    places = rows.places(table)
    gone = [part.path for part in wanted.parts if part.path not in live and part.path not in places]
    lists = [part.row_sources for part in wanted.parts if part.row_sources is not None]
    gone += [path for path in lists if table.size(path) is None]
    if gone:
        raise _cannot_restore(table, wanted, gone)
    staying: list[Part] = []
    copies: list[Part] = []
    for index, part in enumerate(wanted.parts):
        if part.row_sources is not None and part.row_sources not in live_lists:
            own = publication.row_sources_list(index)
            _copy(table, wanted, part.row_sources, own)
            part = replace(part, row_sources=own)
        if part.path in live:
            staying.append(part)
            continue
        staged = publication.staged("restored", len(copies))
        _copy(table, wanted, places[part.path], staged)
        copies.append(replace(part, path=staged, staged=None))
    return staying + publication.named(copies)


def _without_purged_letters(table: Folder, wanted: Snapshot) -> tuple[pa.Table, int]:
    """(the wanted list of sources, how many of the dead letters that it counts were purged since); these are left out now, as
    they are of the version that a purge publishes."""
    left = Counter(
        number for letters in dead_letters.read(table, wanted) for number in letters.column(schema.SOURCE).to_pylist()
    )
    numbers = wanted.units()
    amended: dict[str, Tally] = {}
    purged = 0
    for unit, tally in wanted.tallies().items():
        gone = tally.failed - sum(left[number] for number in numbers[unit])
        if gone:
            amended[unit] = replace(tally, failed=tally.failed - gone, skipped=tally.skipped + gone)
            purged += gone
    return snapshot.with_tallies(wanted.sources, amended) if amended else wanted.sources, purged


def _copy(table: Folder, wanted: Snapshot, source: str, target: str) -> None:
    try:
        table.copy(source, target)
    except StorageError:
        if table.size(source) is not None:
            raise
        raise _cannot_restore(table, wanted, [source]) from None  # a cleaning took it since it was listed


def _cannot_restore(table: Folder, wanted: Snapshot, gone: Sequence[str]) -> InputError:
    return InputError(
        f"version {wanted.version} of {table.url} can't be brought back: {len(gone)} of its {len(wanted.parts)} files "
        f"were cleaned away or purged, the first is {gone[0]}; nothing was published"
    )


def release(table: Folder) -> Snapshot:
    """End the hold of the current version, which is returned. Raises InputError if it holds nothing."""
    current = materialise.finish(table)
    if not snapshot.is_held(table, current):
        raise InputError(
            f"table {table.url} is not held: version {current.version} was published as usual, or was released"
        )
    table.create_once(layout.released(current.version), uuid.uuid4().hex.encode())
    return current
