"""Purging erases rows for good: it publishes a version without them, then erases every older file that still holds them.

Ids come in, and a table of chunks takes the ids of documents, too. Two things are left of them. The new version's list of
changes names them as deleted, for those who follow it, until they are purged once more. What a run under way has written
is counted. This file encodes nothing and knows no sources. A row that stays in its source comes back when its file is read
again.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import schema
from pipeline.errors import InputError
from pipeline.storage import Folder
from pipeline.table import dead_letters, layout, materialise, row_sources, snapshot
from pipeline.table.compare import NEW, OLD
from pipeline.table.operations import erasure
from pipeline.table.operations.erasure import Wanted
from pipeline.table.part import Part, distinct_sources, encode_part, encoding_of
from pipeline.table.publication import Publication
from pipeline.table.snapshot import Counts, Snapshot, Tally
from pipeline.table.workers import compare_here


@dataclass(frozen=True, kw_only=True)
class Purged:
    version: int
    """It is the current version now."""
    rows: int
    """So many rows left the table."""
    dead_letters: int
    """So many dead letters left the table."""
    files: int
    """So many files of older versions and of staging were erased, or written anew without the rows."""
    left: int
    """So many files may hold some of the rows yet, because a run under way or a version that came meanwhile may need them.
    The erasure is complete if it is 0."""


def purge(table: Folder, ids: Sequence[str]) -> Purged:
    """Erase these rows. If it is stopped anywhere, the same call finishes it.

    It reads the id column of every part, and holds one part at a time. Raises InputError if nothing of the rows is found
    anywhere, and CommitConflict if another run published first.
    """
    parent = materialise.finish(table)
    # Nobody knows whether a table without a version is to have chunks.
    chunked = not parent.version or schema.DOC_ID in snapshot.hex_to_schema(parent.schema).names
    wanted = Wanted(ids=pa.array(sorted(set(ids)), pa.string()), chunked=chunked)
    publication = Publication(table, parent)
    with publication.guarded():
        looked, staged = _forget_staged(table, wanted)
        attempts = erasure.open_attempts(table, parent, wanted)
        version, rows, letters = _publish_without(publication, wanted, anyway=bool(staged or attempts))
    published = version.version != parent.version
    if published:
        materialise.materialise(table, version)
    table.delete(staged)
    erased = erasure.erase(
        table,
        version,
        wanted,
        closed=attempts if published else (),
        own=layout.changes(version.version) if published else None,
    )
    # A report that is left after this list was made is of an earlier version than the current one, and taken back.
    reports = [info.path for info in table.list(layout.REPORTS)]
    table.delete(reports)
    again = [info for info in table.list(layout.STAGED_PARTS) if info.path not in looked]
    left = erased.left + len(erasure.holding(table, again, wanted))
    files = len(staged) + erased.files
    if not (rows or letters or files or left):
        raise InputError(
            f"table {table.url} holds none of the {len(wanted.ids)} ids, the first is {ids[0]!r}: give them as the id "
            "column has them"
        )
    return Purged(version=version.version, rows=rows, dead_letters=letters, files=files + len(reports), left=left)


def _forget_staged(table: Folder, wanted: Wanted) -> tuple[set[str], list[str]]:
    """Return (all staged files, those with the ids), and delete the records of the latter.

    Those files go when another version is there. Until then a run that read their records may publish them. Later runs
    don't, because the records are gone, and a record whose parts are gone would be invalid anyway.
    """
    listed = table.list(layout.STAGED_PARTS)
    found = erasure.holding(table, listed, wanted)
    units = {layout.staged_unit(path) for path in found}
    table.delete(info.path for info in table.list(layout.RECORDS) if layout.staged_unit(info.path) in units)
    return {info.path for info in listed}, found


def _publish_without(publication: Publication, wanted: Wanted, *, anyway: bool) -> tuple[Snapshot, int, int]:
    """Return (the version without the rows, how many left it, how many of its dead letters did).

    The version is the parent where that has none of the rows, unless a version is wanted anyway.
    """
    table, parent = publication.table, publication.parent
    held = [part for part in parent.parts if erasure.holds(table, part.path, wanted)]
    letters = [(rows, wanted.among(rows)) for rows in dead_letters.read(table, parent)]
    num_letters = sum(pc.sum(found).as_py() or 0 for _, found in letters)
    if not held and not num_letters and not (anyway and parent.version):
        return parent, 0, 0
    gone = _Gone()
    smaller = publication.named(_without(publication, held, wanted, gone))
    for rows, found in letters:
        gone.letters.update(rows.filter(found).column(schema.SOURCE).to_pylist())
    publication.write_dead_letters(rows.filter(pc.invert(found)) for rows, found in letters)
    sides = [(part, OLD) for part in held] + [(part, NEW) for part in smaller]
    difference = compare_here(table, sides)
    publication.write_changes([part for part, _ in sides], difference)
    tally = sum(gone.by_unit(parent).values(), Tally())
    counts = Counts(
        rows=parent.counts.rows - tally.rows,
        documents=parent.counts.documents - tally.documents,
        deleted=len(difference.deletes),
        unchanged=parent.counts.rows - tally.rows,
        reused=parent.counts.rows - tally.rows,
        failed=parent.counts.failed - num_letters,
        skipped=parent.counts.skipped + tally.documents + tally.failed,
    )
    version = publication.version_like(
        parent,
        run="purge",
        # A hold goes on, one that was ended stays so.
        rows_of=parent.rows_of if snapshot.is_held(table, parent) else None,
        counts=counts,
        gate=dict(parent.gate) | {"rows": counts.rows},
        parts=(*(part for part in parent.parts if part not in held), *smaller),
        sources=_amended(parent, gone),
    )
    publication.commit(version)
    return version, tally.rows, num_letters


class _Gone:
    """It counts what leaves the table, by the number of its source."""

    def __init__(self) -> None:
        self.rows: Counter[int] = Counter()
        self.documents: Counter[int] = Counter()
        self.letters: Counter[int] = Counter()

    def add(self, leaving: pa.Table) -> None:
        """Count these rows of a part."""
        self.rows.update(leaving.column(schema.SOURCE).to_pylist())
        if schema.DOC_ID in leaving.column_names:
            # A document's first chunk stands for it, as in the count of the whole.
            leaving = leaving.filter(pc.equal(leaving.column(schema.CHUNK_INDEX), 0))
        self.documents.update(leaving.column(schema.SOURCE).to_pylist())

    def by_unit(self, parent: Snapshot) -> dict[str, Tally]:
        found: dict[str, Tally] = {}
        for unit, numbers in parent.units().items():
            rows, documents, failed = (
                sum(counter[number] for number in numbers) for counter in (self.rows, self.documents, self.letters)
            )
            if rows or failed:
                found[unit] = Tally(rows=rows, documents=documents, failed=failed)
        return found


def _without(publication: Publication, held: Sequence[Part], wanted: Wanted, gone: _Gone) -> Iterator[Part]:
    """Stage and yield the parts without the rows. A part that has no others is left out."""
    table, embedding = publication.table, str(publication.parent.embeddings[0]["column"])
    for index, part in enumerate(held):
        with table.open(part.path) as file:
            opened = pq.ParquetFile(file)
            encoding = encoding_of(opened, embedding)
            rows = row_sources.applied(table, part, opened.read(use_threads=False))
        found = wanted.among(rows)
        gone.add(rows.filter(found))
        staying = rows.filter(pc.invert(found))
        if not staying.num_rows:
            continue
        content, staged = encode_part(staying, embedding, encoding), publication.staged("purged", index)
        table.write(staged, content)
        yield replace(
            part,
            path=staged,
            staged=None,
            size=content.size,
            rows=staying.num_rows,
            raw_bytes=staying.nbytes,
            sources=distinct_sources(staying),
            row_sources=None,
        )


def _amended(parent: Snapshot, gone: _Gone) -> pa.Table:
    """Return the list of sources with the counts of units as they are now. What was purged counts as left out, as if it
    had been filtered."""
    before = parent.tallies()
    left = {
        unit: Tally(
            rows=before[unit].rows - tally.rows,
            documents=before[unit].documents - tally.documents,
            failed=before[unit].failed - tally.failed,
            skipped=before[unit].skipped + tally.documents + tally.failed,
        )
        for unit, tally in gone.by_unit(parent).items()
    }
    return snapshot.with_tallies(parent.sources, left)
