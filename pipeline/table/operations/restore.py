"""An earlier version's rows as a new version: roll-forward only, by the same create-only commit as any other.

The new version holds its table: a scheduled run would bring back at once what was rolled back. Knows nothing of models,
sources or who asks.
"""

import uuid
from dataclasses import replace

from pipeline.errors import InputError
from pipeline.storage import Folder
from pipeline.table import layout, materialise, publication, rows, snapshot
from pipeline.table.compare import NEW, OLD
from pipeline.table.part import Part
from pipeline.table.snapshot import Counts, Snapshot


def roll_back(table: Folder, number: int) -> Snapshot:
    """Publish the rows of version `number` and hold the table; keeps 64 bytes in memory for each row that differs.

    Raises InputError for a version that isn't there, is the current one, or whose files were cleaned away or purged;
    CommitConflict if another run published first.
    """
    parent = materialise.finish(table)
    with publication.conflict_if_overtaken(table, parent, parent.fingerprint):
        version = _publish_rows_of(table, parent, number)
    materialise.materialise(table, version)
    return version


def _publish_rows_of(table: Folder, parent: Snapshot, number: int) -> Snapshot:
    if number == parent.version:
        raise InputError(f"version {number} is the current one of {table.url}: there is nothing to roll back")
    if number not in snapshot.versions(table):
        raise InputError(
            f"table {table.url} has no version {number} to roll back to; it has {snapshot.versions(table)}"
        )
    wanted = snapshot.read(table, number)
    nonce = uuid.uuid4().hex[:12]
    folder = layout.publication(nonce)
    parts = _restored(table, parent, wanted, folder, nonce)
    live, back = {part.path for part in parent.parts}, {part.path for part in parts}
    sides = [(part, OLD) for part in parent.parts if part.path not in back]
    sides += [(part, NEW) for part in parts if part.path not in live]
    difference = publication.compare_here(table, sides)
    # Against version 0 every row counts as new; rows that were never compared are in both versions.
    publication.write_changes(table, folder, parent, parts, ([part for part, _ in sides], difference))
    publication.write_dead_letters(table, folder, publication.dead_letters(table, wanted))
    untouched = sum(part.rows for part in parts if part.path in live)
    version = replace(
        wanted,
        version=parent.version + 1,
        parent=parent.version,
        publication=folder,
        run=f"roll back to version {number}",
        time=snapshot.utc_now(),
        rows_of=number,
        counts=Counts(
            rows=wanted.counts.rows,
            documents=wanted.counts.documents,
            new=difference.new,
            changed=difference.changed,
            deleted=len(difference.deletes),
            unchanged=difference.unchanged + untouched,
            reused=untouched,
            failed=wanted.counts.failed,
            skipped=wanted.counts.skipped,
        ),
        timings={},
        parts=tuple(parts),
    )
    publication.commit(table, version)
    return version


def _restored(table: Folder, parent: Snapshot, wanted: Snapshot, folder: str, nonce: str) -> list[Part]:
    """The wanted parts: those that still are live as they are, the others copied out of the trash under new names."""
    live = {part.path for part in parent.parts}
    places = rows.places(table)
    gone = [part.path for part in wanted.parts if part.path not in live and part.path not in places]
    gone += [part.owners for part in wanted.parts if part.owners is not None and table.size(part.owners) is None]
    if gone:
        raise InputError(
            f"version {wanted.version} of {table.url} can't be brought back: {len(gone)} of its {len(wanted.parts)} files "
            f"were cleaned away or purged, the first is {gone[0]}; nothing was published"
        )
    restored = []
    for index, part in enumerate(wanted.parts):
        if part.path in live:
            restored.append(part)
            continue
        staged = f"{folder}restored/part-{index:05d}.parquet"
        table.copy(places[part.path], staged)
        name = layout.data_part(part.partition, parent.version + 1, index, nonce)
        restored.append(replace(part, path=name, staged=staged))
    return restored


def release(table: Folder) -> Snapshot:
    """End the hold of the current version, which is returned. Raises InputError if it holds nothing."""
    current = materialise.finish(table)
    if not snapshot.is_held(table, current):
        raise InputError(
            f"table {table.url} is not held: version {current.version} was published as usual, or was released"
        )
    table.create_once(layout.released(current.version), uuid.uuid4().hex.encode())
    return current
