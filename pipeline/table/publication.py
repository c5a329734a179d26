"""From finished units to a new version: merge, compare, pass the gate, and create the snapshot: that one write commits.

Everything before it lies in staging under a name of this attempt and can be thrown away; everything after it is
materialise.py's. Who runs rewrites and comparisons (this process or a cluster) is given by the caller.
"""

import contextlib
import itertools
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import schema
from pipeline.errors import CommitConflict, GateFailed
from pipeline.storage import Folder
from pipeline.storage.file import FileInfo
from pipeline.table import compare, layout, snapshot
from pipeline.table.compare import KEPT, NEW, OLD, Difference
from pipeline.table.operations import compact
from pipeline.table.operations.compact import Input, Renumbering, Rewrite
from pipeline.table.part import Part, raw_bytes
from pipeline.table.record import Record
from pipeline.table.snapshot import Counts, Snapshot, Tally
from pipeline.work import Unit

ROLLING_BYTES = 64 * 2**20
"""Bytes in memory of a file of changes or dead letters."""
KEYS_PER_READ = 65_536
SETTLE_S = 3.0
"""How long a racer's write may be under way to a store that doesn't keep two apart."""
MAX_KEY_BYTES = 1000
"""Of a whole key in S3, with room to spare."""


class Workers(Protocol):
    """Who does the heavy, parallel parts of a commit."""

    def rewrite(self, jobs: Sequence[Rewrite]) -> list[Part]: ...

    def compare(self, sides: Sequence[tuple[Part, int]], *, renewed: bool = False) -> Difference:
        """The difference over all rows of the parts, each on its side; `part` in it indexes `sides`."""
        ...


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a run brings to the commit."""

    done: Sequence[tuple[Unit, Sequence[Record]]]
    """Units that are new to the table, each with a complete chain of records."""
    kept: frozenset[str]
    """Live units that stay."""
    retried: Mapping[str, Sequence[Record]] = field(default_factory=dict)
    """Of the kept units those of whose dead letters some fail no more: the complete chain of records of trying these again."""

    @property
    def records(self) -> list[Record]:
        return [
            record for records in (*(records for _, records in self.done), *self.retried.values()) for record in records
        ]

    def kept_tallies(self, parent: Snapshot) -> dict[str, Tally]:
        """Of each kept unit, as it is now."""
        kept = {unit: tally for unit, tally in parent.tallies().items() if unit in self.kept}
        return kept | {unit: retried(kept[unit], tally_of(records)) for unit, records in self.retried.items()}

    def tally(self, parent: Snapshot) -> Tally:
        """Of all units together."""
        return sum((tally_of(records) for _, records in self.done), sum(self.kept_tallies(parent).values(), Tally()))


def retried(before: Tally, again: Tally) -> Tally:
    """Of a unit whose failed rows were tried `again`, in which its other rows count as left out. A row that can be read now
    may be left out, too."""
    return Tally(
        rows=before.rows + again.rows,
        documents=before.documents + again.documents,
        failed=again.failed,
        skipped=before.skipped + before.failed - again.documents - again.failed,
    )


def mends(before: Tally, again: Tally, *, placed: bool) -> bool:
    """Whether some of a unit's failed rows, tried `again`, fail no more, and each of its rows was met: a file that was broken
    may be read further than before, and then holds rows that nobody tried. Of failed rows that are not all `placed` by their
    position, one that is missing now was left out or never found: nobody knows."""
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


@dataclass(frozen=True, kw_only=True)
class Description:
    """What the snapshot says of the run, beside what it derives from the work."""

    run: str
    time: str
    fingerprint: str
    fingerprint_of: Mapping[str, Any]
    output: str
    output_spec: Mapping[str, Any]
    embedding: str
    """Name of the embedding column."""
    embeddings: tuple[Mapping[str, Any], ...]
    part_schema: pa.Schema
    source_schema: pa.Schema
    probes: tuple[tuple[float, ...], ...]
    timings: Mapping[str, float]


def publish(table: Folder, parent: Snapshot, work: Work, description: Description, workers: Workers) -> Snapshot:
    """Commit the version after `parent`.

    Raises GateFailed (nothing was published), CommitConflict (another run published first; the records stay).
    """
    with conflict_if_overtaken(table, parent, description.fingerprint):
        version = _next_version(table, parent, work, description, workers)
        commit(table, version, frozenset(record.unit_id for record in work.records))
    return version


def _next_version(table: Folder, parent: Snapshot, work: Work, description: Description, workers: Workers) -> Snapshot:
    nonce = uuid.uuid4().hex[:12]
    folder = layout.publication(nonce)
    parts = _assemble(table, parent, work, folder, nonce, workers)
    # The hashes of a row know nothing of the model.
    renewed = bool(parent.version) and parent.fingerprint != description.fingerprint
    difference = _difference(parent, parts, workers, renewed=renewed)
    _check_gate(table, parts, difference, work, parent)
    write_changes(table, folder, parent, parts, difference)
    failed = _write_dead_letters(table, folder, parent, work)
    sources = _sources(parent, work)
    counts = _count(parts, difference, work, parent, failed)
    return next_snapshot(parent, folder, description, parts, sources, counts)


def next_snapshot(
    parent: Snapshot, folder: str, description: Description, parts: Sequence[Part], sources: pa.Table, counts: Counts
) -> Snapshot:
    """The version after `parent`, which passed its gate; `folder` is its publication's."""
    return Snapshot(
        version=parent.version + 1,
        parent=parent.version,
        publication=folder,
        run=description.run,
        time=description.time,
        fingerprint=description.fingerprint,
        fingerprint_of=description.fingerprint_of,
        output=description.output,
        output_spec=description.output_spec,
        embeddings=description.embeddings,
        schema=snapshot.schema_to_hex(description.part_schema),
        schema_text=str(description.part_schema.remove_metadata()),
        source_schema=snapshot.schema_to_hex(description.source_schema),
        probes=description.probes,
        counts=counts,
        gate={"duplicate_ids": 0, "bad_vectors": 0, "rows": sum(part.rows for part in parts)},
        timings=description.timings,
        parts=tuple(parts),
        sources=sources,
    )


def commit(table: Folder, version: Snapshot, done: Set[str] = frozenset()) -> None:
    """Its lists, a look at its staged parts, and the write that makes it the current version; what is staged of the units
    `done` goes when it is materialised.

    Raises GateFailed where a part is missing, CommitConflict where there is such a version already.
    """
    staged = table.list(layout.STAGING)
    check_staged(staged, version.parts)
    consumed = [info for info in staged if layout.staged_unit(info.path) in done]
    snapshot.write_lists(table, version.publication, version.parts, version.sources, consumed)
    create(table, version)


@contextlib.contextmanager
def conflict_if_overtaken(table: Folder, parent: Snapshot, fingerprint: str) -> Iterator[None]:
    """Whatever goes wrong is a CommitConflict where another run published after `parent`: it may have moved any file."""
    try:
        yield
    except Exception:
        check_current(table, parent, fingerprint)
        raise


def check_current(table: Folder, parent: Snapshot, fingerprint: str) -> None:
    """Raises CommitConflict if a version was published after `parent`; `fingerprint` is of the vectors that come too late."""
    if max(snapshot.versions(table), default=0) != parent.version:
        raise _overtaken(table, parent.version + 1, fingerprint)


def _overtaken(table: Folder, number: int, fingerprint: str) -> CommitConflict:
    first = f"another run published version {number} of {table.url} first"
    if snapshot.read_alone(table, number).fingerprint == fingerprint:
        return CommitConflict(f"{first}; what was encoded is kept: start again")
    return CommitConflict(
        f"{first}, with another model or other model settings: vectors of two models don't compare; start again with another "
        "table.path, or with the settings of that version"
    )


def _assemble(table: Folder, parent: Snapshot, work: Work, folder: str, nonce: str, workers: Workers) -> list[Part]:
    """The parts of the new version; new ones have their final name and still lie in staging."""
    dropped = _dropped_sources(parent, work.kept)
    staged = [
        Input(part=part, renumbering=tuple(sorted(_renumbering(unit, record).items())))
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
    as_is, jobs = compact.choose(staged, losing, full, folder)
    fresh = as_is + workers.rewrite(jobs) if jobs else as_is
    return untouched + named(table, parent.version + 1, fresh, nonce)


def named(table: Folder, version: int, fresh: Sequence[Part], nonce: str) -> list[Part]:
    """Staged parts under the names that they will have; those without rows are left out."""
    parts = [
        replace(
            part,
            path=layout.data_part(part.partition, version, index, nonce),
            staged=part.location,
        )
        for index, part in enumerate(part for part in fresh if part.rows)
    ]
    _check_names(table, parts)
    return parts


def _check_names(table: Folder, parts: Sequence[Part]) -> None:
    """Before the commit: a name that storage refuses could never be materialised."""
    for part in parts:
        name = max(part.path.split("/"), key=lambda piece: len(piece.encode()))
        if len(name.encode()) > schema.MAX_FOLDER_BYTES or len(table.url) + len(part.path.encode()) > MAX_KEY_BYTES:
            raise GateFailed(
                f"the path with the partition folder {name[:80]!r}.. is longer than storage allows "
                f"({schema.MAX_FOLDER_BYTES} bytes a folder, {MAX_KEY_BYTES} in all): nothing was published; partition by a "
                "column with shorter values"
            )


def _dropped_sources(parent: Snapshot, kept: frozenset[str]) -> frozenset[int]:
    return frozenset(number for unit, numbers in parent.units().items() if unit not in kept for number in numbers)


def _renumbering(unit: Unit, record: Record) -> Renumbering:
    pairs = zip(record.sources, unit.sources, strict=True)
    return {written: planned for written, planned in pairs if written != planned}


def _difference(
    parent: Snapshot, parts: Sequence[Part], workers: Workers, *, renewed: bool
) -> tuple[list[Part], Difference]:
    """Every part that either state has, and the difference of the two states over them."""
    before = {part.path for part in parent.parts}
    after = {part.path for part in parts}
    sides = [(part, KEPT if part.path in before else NEW) for part in parts]
    sides += [(part, OLD) for part in parent.parts if part.path not in after]
    return [part for part, _ in sides], workers.compare(sides, renewed=True) if renewed else workers.compare(sides)


def part_keys(table: Folder, part: Part, number: int, side: int) -> Iterator[compare.Keys]:
    """The keys of a part's rows, read by column projection. Raises GateFailed if the file isn't what its record says."""
    with table.open(part.location) as file:
        reader = pq.ParquetFile(file)
        if reader.metadata.num_rows != part.rows:
            raise GateFailed(
                f"{part.location} holds {reader.metadata.num_rows} rows, its record says {part.rows}: nothing was published"
            )
        index = 0
        for batch in reader.iter_batches(KEYS_PER_READ, columns=compare.COLUMNS):
            yield compare.keys(pa.Table.from_batches([batch]), number, side, index)
            index += batch.num_rows


def compare_here(table: Folder, sides: Sequence[tuple[Part, int]], *, renewed: bool = False) -> Difference:
    """The comparison in this process, as one bucket."""
    found = [rows for number, (part, side) in enumerate(sides) for rows in part_keys(table, part, number, side)]
    return compare.compare(np.concatenate([np.zeros(0, compare.KEY), *found]), renewed=renewed)


def _check_gate(
    table: Folder, parts: Sequence[Part], found: tuple[list[Part], Difference], work: Work, parent: Snapshot
) -> None:
    all_parts, difference = found
    if len(difference.duplicates):
        names = _ids_at(table, all_parts, difference.duplicates[:200])
        shown = ", ".join(repr(name) for name in sorted(set(names))[:5])
        raise GateFailed(
            f"{len(difference.duplicates)} rows share their id with another row, for example {shown}: nothing was "
            "published; make source.id unique, or set source.id: null to number rows by file and position"
        )
    bad = sum(record.bad_vectors for record in work.records)
    if bad:
        raise GateFailed(f"{bad} vectors are not finite or are zero: nothing was published; check the model's weights")
    expected, actual = work.tally(parent).rows, sum(part.rows for part in parts)
    done = sum((tally_of(records) for _, records in work.done), Tally())
    covered = sum(record.num_rows for _, records in work.done for record in records)
    if actual != expected or covered != done.source_rows:
        raise GateFailed(
            f"the new version would have {actual} rows where {expected} were expected, and of {covered} source rows "
            f"{done.source_rows} are accounted for: nothing was published; this is a bug, keep the staging folder for a report"
        )


def _ids_at(table: Folder, parts: Sequence[Part], positions: np.ndarray[Any, Any]) -> list[str]:
    rows = rows_at(table, parts, positions)
    return [name for batch in rows for name in batch.column(schema.ID).to_pylist()]


def rows_at(table: Folder, parts: Sequence[Part], positions: np.ndarray[Any, Any]) -> Iterator[pa.Table]:
    """The id and hashes of rows at (part, index), a part at a time."""
    for number in np.unique(positions[:, 0]).tolist():
        indexes = np.sort(positions[positions[:, 0] == number, 1])
        with table.open(parts[number].location) as file:
            yield pq.read_table(file, columns=compare.COLUMNS, use_threads=False).take(pa.array(indexes))


def write_changes(
    table: Folder, folder: str, parent: Snapshot, parts: Sequence[Part], found: tuple[list[Part], Difference]
) -> None:
    """The list of changes against the parent; `found` is the difference of the two, and the parts that it indexes."""
    all_parts, difference = found
    if parent.version == 0:
        upserts: Iterator[pa.Table] = (rows for part in parts for rows in all_rows(table, part))
    else:
        upserts = rows_at(table, all_parts, difference.upserts)
    deletes = rows_at(table, all_parts, difference.deletes)
    write_change_lists(table, folder, upserts, deletes)


def write_change_lists(table: Folder, folder: str, upserts: Iterable[pa.Table], deletes: Iterable[pa.Table]) -> None:
    """From rows with id and hashes."""
    rows = [(_with_op(batch, "upsert") for batch in upserts), (_with_op(batch, "delete") for batch in deletes)]
    _write_rolling(table, f"{folder}changes/", (batch for source in rows for batch in source), schema.CHANGES)


def all_rows(table: Folder, part: Part) -> Iterator[pa.Table]:
    with table.open(part.location) as file:
        for batch in pq.ParquetFile(file).iter_batches(KEYS_PER_READ, columns=compare.COLUMNS):
            yield pa.Table.from_batches([batch])


def _with_op(rows: pa.Table, op: str) -> pa.Table:
    return rows.append_column("op", pa.array([op] * rows.num_rows)).select(schema.CHANGES.names).cast(schema.CHANGES)


def _write_dead_letters(table: Folder, folder: str, parent: Snapshot, work: Work) -> int:
    """All dead letters of the new version: those of kept units and the new ones. Returns how many there are."""
    untouched = work.kept - work.retried.keys()
    numbers = pa.array([row["source"] for row in parent.sources.to_pylist() if row["unit_id"] in untouched], pa.int32())
    kept = (rows.filter(pc.is_in(rows.column(schema.SOURCE), numbers)) for rows in dead_letters(table, parent))
    return write_dead_letters(table, folder, itertools.chain(kept, _new_dead_letters(table, work)))


def dead_letters(table: Folder, version: Snapshot) -> Iterator[pa.Table]:
    """Those of a version, a file at a time: from beside the snapshot, or from its publication while it isn't materialised."""
    staged, beside = f"{version.publication}dead_letters/", layout.dead_letters(version.version)
    places = {info.path.removeprefix(folder): info.path for folder in (staged, beside) for info in table.list(folder)}
    for name, path in places.items():
        # Another process may have brought it beside the snapshot since it was listed.
        yield snapshot.read_parquet(table.read(path) or table.read(beside + name))


def write_dead_letters(table: Folder, folder: str, rows: Iterable[pa.Table]) -> int:
    """Into a publication; returns how many there are."""
    return _write_rolling(table, f"{folder}dead_letters/", rows, schema.DEAD_LETTERS)


def _new_dead_letters(table: Folder, work: Work) -> Iterator[pa.Table]:
    done = [(record, _renumbering(unit, record)) for unit, records in work.done for record in records]
    again: list[tuple[Record, Renumbering]] = [(record, {}) for records in work.retried.values() for record in records]
    for record, renumbering in [*done, *again]:
        if record.dead_letters:
            yield compact.renumbered(snapshot.read_parquet(table.read(record.dead_letters[0])), renumbering)


def _write_rolling(table: Folder, folder: str, batches: Iterable[pa.Table], columns: pa.Schema) -> int:
    """`part-*.parquet` files of bounded size; returns the number of rows written. No rows, no file."""
    waiting: list[pa.Table] = []
    total = files = 0
    for batch in batches:
        waiting.append(batch.cast(columns))
        if sum(rows.nbytes for rows in waiting) >= ROLLING_BYTES:
            files, waiting = _write_file(table, folder, files, waiting), []
        total += batch.num_rows
    _write_file(table, folder, files, waiting)
    return total


def _write_file(table: Folder, folder: str, number: int, batches: Sequence[pa.Table]) -> int:
    rows = pa.concat_tables(batches) if batches else None
    if rows is None or not rows.num_rows:
        return number
    table.write(f"{folder}part-{number:05d}.parquet", snapshot.to_parquet(rows))
    return number + 1


def _sources(parent: Snapshot, work: Work) -> pa.Table:
    """Spans of all live units, by number."""
    kept = parent.sources.filter(pc.is_in(parent.sources.column("unit_id"), pa.array(sorted(work.kept), pa.string())))
    if work.retried:
        kept = snapshot.with_tallies(kept, work.kept_tallies(parent))
    rows = [row for unit, records in work.done for row in snapshot.span_rows(unit, tally_of(records))]
    added = pa.Table.from_pylist(rows, snapshot.SOURCES)
    return pa.concat_tables([kept, added]).sort_by([(schema.SOURCE, "ascending")])


def _count(
    parts: Sequence[Part], found: tuple[list[Part], Difference], work: Work, parent: Snapshot, failed: int
) -> Counts:
    _, difference = found
    records, tally = work.records, work.tally(parent)
    return Counts(
        rows=sum(part.rows for part in parts),
        documents=tally.documents,
        new=difference.new,
        changed=difference.changed,
        deleted=len(difference.deletes),
        unchanged=difference.unchanged,
        reused=tally.rows - sum(record.rows for record in records),
        encoded=sum(record.effort.rows_encoded for record in records),
        failed=failed,
        failed_new=sum(record.failed for _, found in work.done for record in found),
        skipped=tally.skipped,
        tokens=sum(record.effort.tokens for record in records),
        truncated=sum(record.effort.truncated for record in records),
    )


def check_staged(staged: Sequence[FileInfo], parts: Sequence[Part]) -> None:
    """Every staged part that the snapshot will name is there with its size."""
    sizes = {info.path: info.size for info in staged}
    for part in parts:
        if part.staged and sizes.get(part.staged) != part.size:
            raise GateFailed(
                f"staged part {part.staged} has {sizes.get(part.staged)} bytes where {part.size} were written: nothing was "
                "published; start again"
            )


def create(table: Folder, version: Snapshot) -> None:
    """The commit. Raises CommitConflict if there is such a version already."""
    path, content = layout.snapshot(version.version), version.to_json()
    exclusive = table.creates_exclusively()
    standing = table.create_once(path, content)
    if standing is None and not exclusive:
        # The store tells every racer that it won: the one whose bytes stand has, once all writes have arrived.
        time.sleep(SETTLE_S)
    if standing is not None or table.read(path) != content:
        raise _overtaken(table, version.version, version.fingerprint)
