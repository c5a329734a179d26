"""A new version by row: parts lose the rows that go, new rows come in parts of their own, all other files stay.

Comes in: what a comparison of wanted and live rows found (`Revision`). Goes out: the committed snapshot. The vectors of
rows that stay are copied, never encoded; rows whose file was written anew get the number of its span without being touched
(row_sources.py).
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import schema
from pipeline.arrays import table_of
from pipeline.errors import GateFailed
from pipeline.table import changelog, dead_letters, layout, snapshot
from pipeline.table.diff import Keys
from pipeline.table.operations import compact
from pipeline.table.operations.compact import Input
from pipeline.table.part import Part, raw_bytes
from pipeline.table.publication import Description, Publication
from pipeline.table.record import Effort
from pipeline.table.row_sources import Renumbering
from pipeline.table.snapshot import Counts, Snapshot, Tally
from pipeline.table.workers import Workers
from pipeline.work import Unit

SMALL_SHARE = 8
"""A part is small below this fraction, an eighth, of a full one."""
MANY_SMALL = 8
"""So many small parts of a partition are merged when new rows join them; fewer are left alone."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Revision:
    """What changes against the parent."""

    added: Sequence[tuple[Unit, Tally]]
    """Units that are new to the table, under the numbers of their spans."""
    kept: frozenset[str]
    """Live units that stay."""
    unchanged: frozenset[int]
    """Sources of the added units that were not read again: their rows and dead letters stay."""
    stale: Mapping[int, tuple[str, Tally]]
    """Sources that stay though they can't be read: the unit that they make up now."""
    moved: Keys
    """diff.MATCH[n]: rows that stay, `source` is their new number."""
    removed: Keys
    """diff.PLACE[n]: live rows that leave their parts, deleted or written anew."""
    deleted: Keys
    """diff.PLACE[n]: the removed rows whose id is gone."""
    fresh: Sequence[Part]
    """Staged parts of the new rows."""
    dead_letters: Iterable[pa.Table]
    """Dead letters of the added units, under the numbers of their spans."""
    new: int
    changed: int
    failed_new: int
    effort: Effort
    bad_vectors: int
    done: frozenset[str]
    """Units whose staged work is used up."""


@dataclass(frozen=True, kw_only=True)
class Upkeep:
    """What a revision did to the files of the table."""

    rewritten: int = 0
    """Live parts that were written anew without some rows, or merged."""
    rewritten_bytes: int = 0
    dropped: int = 0
    """Live parts of which no row is left."""
    untouched: int = 0
    untouched_bytes: int = 0
    written: int = 0
    written_bytes: int = 0
    """Both count the parts that are new."""
    kept_bytes: int = 0
    """Bytes of superseded parts, which stay in the trash until `--clean`."""


def publish(
    publication: Publication, revision: Revision, description: Description, workers: Workers
) -> tuple[Snapshot, Upkeep]:
    """Commit the version; the publication's folder holds the fresh parts.

    Raises GateFailed (nothing was published), CommitConflict (another run published first; the records stay).
    """
    with publication.guarded(description.fingerprint):
        publication.check_current(description.fingerprint)
        _check_vectors(revision)
        parts, upkeep = _assemble(publication, revision, workers)
        sources = _sources(publication.parent, revision)
        rows = sum(part.rows for part in parts)
        _check_rows(rows, sources)
        _write_changes(publication, revision)
        failed = publication.write_dead_letters(_letters(publication, revision))
        counts = _count(rows, sources, revision, failed)
        version = publication.version(description, [*_with_units(parts, sources)], sources, counts)
        publication.commit(version, revision.done)
    return version, upkeep


def _check_vectors(revision: Revision) -> None:
    if revision.bad_vectors:
        raise GateFailed(
            f"{revision.bad_vectors} vectors are not finite or are zero: nothing was published; check the model's weights"
        )


def _check_rows(rows: int, sources: pa.Table) -> None:
    expected = snapshot.total(sources).rows
    if rows != expected:
        raise GateFailed(
            f"the new version would have {rows} rows where {expected} were expected: nothing was published; this is a bug, "
            "keep the staging folder for a report"
        )


# --- parts


@dataclass(frozen=True, kw_only=True, eq=False)
class _Touched:
    """Live parts, by their number in the parent, that do not stay as they are; the three sets have no part in common."""

    losing: set[int]
    """They lose some rows."""
    small: set[int]
    """They are merged with others."""
    dropped: set[int]
    """They lose all rows."""

    @property
    def rewritten(self) -> set[int]:
        return self.losing | self.small

    @property
    def all(self) -> set[int]:
        return self.rewritten | self.dropped


def _assemble(publication: Publication, revision: Revision, workers: Workers) -> tuple[list[Part], Upkeep]:
    parent, removed = publication.parent, _by_part(revision.removed)
    losing = {number for number, rows in removed.items() if len(rows) < parent.parts[number].rows}
    dropped = removed.keys() - losing
    staying = [part for number, part in enumerate(parent.parts) if number not in dropped]
    full = compact.full_bytes(raw_bytes([*staying, *revision.fresh]))
    small = _small_beside(parent, revision.fresh, losing | dropped, full // SMALL_SHARE)
    touched = _Touched(losing=losing, small=small, dropped=dropped)
    parts = _renumbered(publication, revision, touched, workers)
    inputs = [
        Input(
            part=parts[number],
            removed=np.sort(removed[number]["index"]).astype(np.int32).tobytes() if number in removed else b"",
        )
        for number in sorted(touched.rewritten)
    ]
    as_is, rewrites = compact.choose([Input(part=part) for part in revision.fresh], inputs, full, publication)
    written = publication.named(as_is + workers.rewrite(rewrites) if rewrites else as_is)
    untouched = [part for number, part in enumerate(parts) if number not in touched.all]
    return untouched + written, _upkeep(parent, touched, untouched, written)


def _renumbered(publication: Publication, revision: Revision, touched: _Touched, workers: Workers) -> list[Part]:
    """The live parts, with new lists where rows have another number now."""
    live = publication.parent.parts
    jobs = [
        Renumbering(
            part=live[number],
            rows=rows["index"],
            numbers=rows["source"],
            # What is rewritten needs its list for that moment only.
            output=publication.staged("owners", number)
            if number in touched.rewritten
            else publication.row_sources_list(number),
        )
        for number, rows in sorted(_by_part(revision.moved).items())
    ]
    renumbered = {part.path: part for part in (workers.renumber(jobs) if jobs else ())}
    return [renumbered.get(part.path, part) for part in live]


def _upkeep(parent: Snapshot, touched: _Touched, untouched: Sequence[Part], written: Sequence[Part]) -> Upkeep:
    return Upkeep(
        rewritten=len(touched.rewritten),
        rewritten_bytes=sum(parent.parts[number].size for number in touched.rewritten),
        dropped=len(touched.dropped),
        untouched=len(untouched),
        untouched_bytes=sum(part.size for part in untouched),
        written=len(written),
        written_bytes=sum(part.size for part in written),
        kept_bytes=sum(parent.parts[number].size for number in touched.all),
    )


def _by_part(rows: Keys) -> dict[int, Keys]:
    order = rows[np.argsort(rows["part"], kind="stable")]
    numbers, first = np.unique(order["part"], return_index=True)
    return dict(zip(numbers.tolist(), np.split(order, first[1:]) if len(first) else [], strict=True))


def _small_beside(parent: Snapshot, fresh: Iterable[Part], others: set[int], small_bytes: int) -> set[int]:
    """Live parts below so many bytes, where new rows join so many of them in their partition that they are better merged;
    none of the `others`."""
    joined = {part.partition for part in fresh}
    small: dict[layout.Partition, set[int]] = {}
    for number, part in enumerate(parent.parts):
        if part.raw_bytes < small_bytes and part.partition in joined and number not in others:
            small.setdefault(part.partition, set()).add(number)
    return set().union(*(numbers for numbers in small.values() if len(numbers) >= MANY_SMALL))


def _with_units(parts: Iterable[Part], sources: pa.Table) -> Iterator[Part]:
    """A number may stand for another unit now."""
    unit_of = dict(zip(sources.column("source").to_pylist(), sources.column("unit_id").to_pylist(), strict=True))
    for part in parts:
        yield replace(part, units=tuple(sorted({unit_of[number] for number in part.sources})))


# --- lists


def _sources(parent: Snapshot, revision: Revision) -> pa.Table:
    kept = parent.sources.filter(
        pc.is_in(parent.sources.column("unit_id"), pa.array(sorted(revision.kept), pa.string()))
    )
    rows = [row for unit, tally in revision.added for row in snapshot.span_rows(unit, tally)]
    for row in parent.sources.to_pylist() if revision.stale else ():
        if row["source"] in revision.stale:
            unit, tally = revision.stale[row["source"]]
            rows.append(row | {"unit_id": unit} | snapshot.tally_columns(tally))
    added = table_of(rows, snapshot.SOURCES)
    return pa.concat_tables([kept, added]).sort_by([(schema.SOURCE, "ascending")])


def _letters(publication: Publication, revision: Revision) -> Iterator[pa.Table]:
    """The dead letters of sources that stay as they are, and those of the added units."""
    parent = publication.parent
    others = revision.unchanged | revision.stale.keys()
    stay = [
        row["source"]
        for row in parent.sources.select(["source", "unit_id"]).to_pylist()
        if row["unit_id"] in revision.kept or row["source"] in others
    ]
    numbers = pa.array(stay, pa.int32())
    kept = (
        rows.filter(pc.is_in(rows.column(schema.SOURCE), numbers))
        for rows in dead_letters.read(publication.table, parent)
    )
    return itertools.chain(kept, revision.dead_letters)


def _write_changes(publication: Publication, revision: Revision) -> None:
    table = publication.table
    upserts = (rows for part in revision.fresh for rows in changelog.all_rows(table, part))
    places = np.stack([revision.deleted["part"], revision.deleted["index"]], axis=1)
    publication.write_changed_rows(upserts, changelog.rows_at(table, publication.parent.parts, places))


def _count(rows: int, sources: pa.Table, revision: Revision, failed: int) -> Counts:
    tally = snapshot.total(sources)
    written = sum(part.rows for part in revision.fresh)
    return Counts(
        rows=rows,
        documents=tally.documents,
        new=revision.new,
        changed=revision.changed,
        deleted=len(revision.deleted),
        unchanged=rows - written,
        reused=rows - written,
        encoded=revision.effort.rows_encoded,
        failed=failed,
        failed_new=revision.failed_new,
        skipped=tally.skipped,
        tokens=revision.effort.tokens,
        truncated=revision.effort.truncated,
    )
