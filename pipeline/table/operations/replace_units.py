"""A new version by whole units: finished ones come in with their records, live ones stay or go.

Comes in: the work of a run. Goes out: the committed snapshot, after the parts were merged, compared with the live ones, and
passed the gate. Nothing is encoded here; a row that comes or goes does so with its unit.
"""

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import schema
from pipeline.arrays import table_of
from pipeline.errors import GateFailed
from pipeline.storage import Folder
from pipeline.table import changelog, dead_letters, snapshot
from pipeline.table.compare import BOTH, NEW, OLD, Difference
from pipeline.table.operations import compact
from pipeline.table.operations.compact import Input, NewNumbers
from pipeline.table.part import Part, raw_bytes
from pipeline.table.publication import Description, Publication
from pipeline.table.record import Effort, Record
from pipeline.table.snapshot import Counts, Snapshot, Tally
from pipeline.table.workers import Workers
from pipeline.work import Unit


@dataclass(frozen=True, kw_only=True)
class Totals:
    """What records add up to."""

    tally: Tally = field(default_factory=Tally)
    num_rows: int = 0
    """Source rows that they cover."""
    bad_vectors: int = 0
    effort: Effort = field(default_factory=Effort)

    def __add__(self, other: "Totals") -> "Totals":
        return Totals(
            tally=self.tally + other.tally,
            num_rows=self.num_rows + other.num_rows,
            bad_vectors=self.bad_vectors + other.bad_vectors,
            effort=self.effort + other.effort,
        )


@dataclass(frozen=True)
class Done:
    """Units with their records, which are looked up each time that somebody goes through them."""

    units: Sequence[Unit]
    records: Mapping[str, Sequence[Record]]

    def __iter__(self) -> Iterator[tuple[Unit, Sequence[Record]]]:
        return ((unit, self.records[unit.unit_id]) for unit in self.units)


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a run brings to the commit."""

    done: Iterable[tuple[Unit, Sequence[Record]]]
    """Units that are new to the table, each with a complete chain of records. They can be gone through several times."""
    kept: frozenset[str]
    """Live units that stay."""
    retried: Mapping[str, Sequence[Record]] = field(default_factory=dict)
    """Kept units of whose dead letters some fail no more: the complete chain of records of trying these again."""

    @property
    def unit_ids(self) -> frozenset[str]:
        """The units that its records are staged under."""
        again = (record.unit_id for records in self.retried.values() for record in records)
        return frozenset(itertools.chain((unit.unit_id for unit, _ in self.done), again))

    @functools.cached_property
    def new(self) -> Totals:
        """What the records of the new units add up to."""
        return sum((totals_of(records) for _, records in self.done), Totals())

    @functools.cached_property
    def again(self) -> Totals:
        """What the records of trying dead letters again add up to."""
        return sum(map(totals_of, self.retried.values()), Totals())

    def kept_tallies(self, parent: Snapshot) -> dict[str, Tally]:
        """What each kept unit comes to now."""
        kept = {unit: tally for unit, tally in parent.tallies().items() if unit in self.kept}
        return kept | {unit: retried(kept[unit], tally_of(records)) for unit, records in self.retried.items()}

    def tally(self, parent: Snapshot) -> Tally:
        """What all units come to together."""
        return sum(self.kept_tallies(parent).values(), self.new.tally)


def retried(before: Tally, again: Tally) -> Tally:
    """What a unit comes to whose failed rows were tried `again`; its other rows count as left out there. A row that can be
    read now may be left out, too."""
    return Tally(
        rows=before.rows + again.rows,
        documents=before.documents + again.documents,
        failed=again.failed,
        skipped=before.skipped + before.failed - again.documents - again.failed,
    )


def mends(before: Tally, again: Tally, *, placed: bool) -> bool:
    """Whether some of a unit's failed rows, tried `again`, fail no more, and each of its rows was met.

    A file that was broken may be read further than before, and then holds rows that nobody tried. Where failed rows are not
    all `placed` by their position, one that is missing now was left out or never found: nobody knows.
    """
    missing = before.failed - again.documents - again.failed
    met = again.source_rows == before.source_rows and (missing == 0 or (missing > 0 and placed))
    return met and again.failed < before.failed


def tally_of(records: Sequence[Record]) -> Tally:
    return Tally(
        rows=sum(record.rows for record in records),
        documents=sum(record.documents for record in records),
        failed=sum(record.failed for record in records),
        skipped=sum(record.skipped for record in records),
    )


def totals_of(records: Sequence[Record]) -> Totals:
    return Totals(
        tally=tally_of(records),
        num_rows=sum(record.num_rows for record in records),
        bad_vectors=sum(record.bad_vectors for record in records),
        effort=sum((record.effort for record in records), Effort()),
    )


def publish(publication: Publication, work: Work, description: Description, workers: Workers) -> Snapshot:
    """Commit the version.

    Raises GateFailed (nothing was published), CommitConflict (another run published first; the records stay).
    """
    with publication.guarded(description.fingerprint):
        version = _next_version(publication, work, description, workers)
        publication.commit(version, work.unit_ids)
    return version


def _next_version(publication: Publication, work: Work, description: Description, workers: Workers) -> Snapshot:
    parent = publication.parent
    parts = _assemble(publication, work, workers)
    # The hashes of a row know nothing of the model.
    renewed = bool(parent.version) and parent.fingerprint != description.fingerprint
    compared, difference = _difference(parent, parts, workers, renewed=renewed)
    _check_ids(publication.table, compared, difference)
    _check_gate(parts, work, parent)
    publication.write_changes(compared, difference)
    failed = publication.write_dead_letters(_letters(publication, work))
    counts = _count(parts, difference, work, parent, failed)
    return publication.version(description, parts, _sources(parent, work), counts)


# --- parts


def _assemble(publication: Publication, work: Work, workers: Workers) -> list[Part]:
    """The parts of the new version; new ones have their final name and still lie in staging."""
    parent = publication.parent
    dropped = frozenset(
        number for unit, numbers in parent.units().items() if unit not in work.kept for number in numbers
    )
    staged = [
        Input(part=part, new_numbers=tuple(sorted(_new_numbers(unit, record).items())))
        for unit, records in work.done
        for record in records
        for part in record.parts
    ]
    staged += [
        Input(part=replace(part, units=(unit,)))
        for unit, records in work.retried.items()
        for record in records
        for part in record.parts
    ]
    losing = compact.without_sources(parent.parts, dropped)
    untouched = [part for part in parent.parts if dropped.isdisjoint(part.sources)]
    full = compact.full_bytes(raw_bytes([*untouched, *(item.part for item in [*staged, *losing])]))
    as_is, jobs = compact.choose(staged, losing, full, publication)
    fresh = as_is + workers.rewrite(jobs) if jobs else as_is
    return untouched + publication.named(fresh)


def _new_numbers(unit: Unit, record: Record) -> NewNumbers:
    """A slice that another plan wrote numbers its spans otherwise."""
    pairs = zip(record.sources, unit.sources, strict=True)
    return {written: planned for written, planned in pairs if written != planned}


def _difference(
    parent: Snapshot, parts: Sequence[Part], workers: Workers, *, renewed: bool
) -> tuple[list[Part], Difference]:
    """Every part that either state has, and the difference of the two states over them."""
    before = {part.path for part in parent.parts}
    after = {part.path for part in parts}
    sides = [(part, BOTH if part.path in before else NEW) for part in parts]
    sides += [(part, OLD) for part in parent.parts if part.path not in after]
    return [part for part, _ in sides], workers.compare(sides, renewed=renewed)


# --- gate


def _check_ids(table: Folder, compared: Sequence[Part], difference: Difference) -> None:
    twice = difference.duplicates
    if not len(twice):
        return
    names = {name for rows in changelog.rows_at(table, compared, twice[:200]) for name in rows[schema.ID].to_pylist()}
    shown = ", ".join(repr(name) for name in sorted(names)[:5])
    raise GateFailed(
        f"{len(twice)} rows share their id with another row, for example {shown}: nothing was published; make source.id "
        "unique, or set source.id: null to number rows by file and position"
    )


def _check_gate(parts: Sequence[Part], work: Work, parent: Snapshot) -> None:
    bad = work.new.bad_vectors + work.again.bad_vectors
    if bad:
        raise GateFailed(f"{bad} vectors are not finite or are zero: nothing was published; check the model's weights")
    expected, actual = work.tally(parent).rows, sum(part.rows for part in parts)
    covered, told = work.new.num_rows, work.new.tally.source_rows
    if actual != expected or covered != told:
        raise GateFailed(
            f"the new version would have {actual} rows where {expected} were expected, and of {covered} source rows "
            f"{told} are accounted for: nothing was published; this is a bug, keep the staging folder for a report"
        )


# --- lists


def _letters(publication: Publication, work: Work) -> Iterator[pa.Table]:
    """All dead letters of the new version: those of kept units and the new ones."""
    parent = publication.parent
    untouched = work.kept - work.retried.keys()
    numbers = pa.array([row["source"] for row in parent.sources.to_pylist() if row["unit_id"] in untouched], pa.int32())
    kept = (
        rows.filter(pc.is_in(rows.column(schema.SOURCE), numbers))
        for rows in dead_letters.read(publication.table, parent)
    )
    return itertools.chain(kept, _new_letters(publication.table, work))


def _new_letters(table: Folder, work: Work) -> Iterator[pa.Table]:
    done = ((record, _new_numbers(unit, record)) for unit, records in work.done for record in records)
    again: Iterator[tuple[Record, NewNumbers]] = (
        (record, {}) for records in work.retried.values() for record in records
    )
    for record, new_numbers in itertools.chain(done, again):
        if record.dead_letters:
            yield compact.renumbered(snapshot.read_parquet(table.read(record.dead_letters[0])), new_numbers)


def _sources(parent: Snapshot, work: Work) -> pa.Table:
    """The spans of all live units, by number."""
    kept = parent.sources.filter(pc.is_in(parent.sources.column("unit_id"), pa.array(sorted(work.kept), pa.string())))
    if work.retried:
        kept = snapshot.with_tallies(kept, work.kept_tallies(parent))
    rows = (row for unit, records in work.done for row in snapshot.span_rows(unit, tally_of(records)))
    added = table_of(rows, snapshot.SOURCES)
    both = pa.concat_tables([kept, added])
    # Sorting makes a copy, and a first version numbers its spans in order.
    in_order = bool((np.diff(both.column(schema.SOURCE).to_numpy()) > 0).all())
    return both if in_order else both.sort_by([(schema.SOURCE, "ascending")])


def _count(parts: Sequence[Part], difference: Difference, work: Work, parent: Snapshot, failed: int) -> Counts:
    tally, encoded, effort = work.tally(parent), work.new.tally + work.again.tally, work.new.effort + work.again.effort
    return Counts(
        rows=sum(part.rows for part in parts),
        documents=tally.documents,
        new=difference.new,
        changed=difference.changed,
        deleted=len(difference.deletes),
        unchanged=difference.unchanged,
        reused=tally.rows - encoded.rows,
        encoded=effort.rows_encoded,
        failed=failed,
        failed_new=work.new.tally.failed,
        skipped=tally.skipped,
        tokens=effort.tokens,
        truncated=effort.truncated,
    )
