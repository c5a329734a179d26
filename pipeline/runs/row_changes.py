"""The changes of a reindex are found by row.

The source files that are new or changed are read, and no other file of their units. Their rows are compared with the
live ones, and vectors are looked for. Texts without a vector are left to encode. A prepared run and an executor come
in. `Changes` go out. Only dead letters are written, into staging.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline import identity
from pipeline.errors import GateFailed
from pipeline.execution.executor import Executor, RowComparison
from pipeline.execution.pools import ALONE
from pipeline.runs import guard, unread_files
from pipeline.runs import plan as planning
from pipeline.runs.prepared import Prepared
from pipeline.runs.row_vectors import vectors_for
from pipeline.runs.unchanged_spans import UnchangedPart, UnchangedSpans, unchanged_spans
from pipeline.runs.unread_files import UnreadFile
from pipeline.stages.read import slices_of
from pipeline.stages.row_keys import KeyResult, KeyTask, only, with_spans
from pipeline.table import dead_letters, diff, snapshot
from pipeline.table.diff import GONE, KEPT, STALE, UNCHANGED, Keys, RowDifference, SourceStates
from pipeline.table.publication import Publication
from pipeline.table.snapshot import Snapshot, Tally
from pipeline.work import Unit, Unreadable, lasting_name


@dataclass(frozen=True, kw_only=True, eq=False)
class Changes:
    """It says what a run has to do, by row."""

    publication: Publication
    """It holds what was staged for this run."""
    units: tuple[Unit, ...]
    """They are new to the table. The number of a span is its place in the unit."""
    numbers: tuple[tuple[int, ...], ...]
    """They are the numbers of each unit's spans in the new version."""
    known: tuple[KeyResult, ...]
    """It holds the counts of each unit's rows that were read."""
    unchanged_spans: tuple[UnchangedPart, ...]
    """They are the spans of each unit that were not read again."""
    kept: frozenset[str]
    """They are the live units that stay as they are."""
    stale: Mapping[int, tuple[str, Tally]]
    """It maps each source that can't be read to the name and the counts of what is left of it."""
    stale_files: tuple[UnreadFile, ...]
    """They can't be read to their end. The rows that the table has of them stay as they are."""
    drops_sources: bool
    """Some source of the live version is gone."""
    moved: Keys
    """They are the live rows that stay, but whose source has another number now."""
    upserts: Keys
    """They are the new and changed rows, as UPSERT[n]."""
    deletes: Keys
    """They are the live rows that the sources no longer have, as PLACE[n]."""
    places: Mapping[bytes, tuple[int, int]]
    """It maps a text that the table has to its part and row."""
    staged: Mapping[bytes, str]
    """It maps a text that an earlier run encoded to its staged file."""
    texts: tuple[Unit, ...]
    """They are units of the texts that have no vector yet."""
    unchanged: int

    @property
    def new(self) -> int:
        return int((self.upserts["part"] < 0).sum())

    @property
    def changed(self) -> int:
        return len(self.upserts) - self.new

    @property
    def to_encode(self) -> int:
        """So many distinct texts have to be encoded."""
        return sum(len(unit.hashes or ()) for unit in self.texts)

    @property
    def changes_nothing(self) -> bool:
        return not self.units and not self.drops_sources

    @property
    def removed(self) -> Keys:
        """They are the live rows that leave their parts, as PLACE[n]."""
        old = self.upserts[self.upserts["part"] >= 0]
        return np.concatenate([self.deletes, places_of(old)])


def check_deleted(prepared: Prepared, changes: Changes | None, *, allowed: bool = False) -> None:
    """Raise GateFailed where more rows would be deleted than `limits.max_deleted_rows` lets.

    The `changes` are None for a full build. Such a build can delete no more documents than its sources have fewer, if
    that is known.
    """
    rows = prepared.parent.counts.rows
    if changes is not None:
        deleted = len(changes.deletes)
    else:
        rows = prepared.parent.counts.documents
        known = prepared.survey.rows_known
        deleted = max(0, rows - known) if known is not None else 0
    _guard(prepared, rows, deleted, allowed)


def check_built(prepared: Prepared, tally: Tally, *, allowed: bool = False) -> None:
    """Raise GateFailed where a full build deleted too many rows. They are counted after it, because not all formats
    tell their rows before."""
    before = prepared.parent.counts.documents
    _guard(prepared, before, max(0, before - tally.documents - tally.failed), allowed)


def _guard(prepared: Prepared, rows: int, deleted: int, allowed: bool) -> None:
    limit = prepared.spec.limits.max_deleted_rows
    guard.check_deletion_limit(
        prepared.table.url, rows=rows, deleted=deleted, files=len(prepared.corpus.files), limit=limit, allowed=allowed
    )


def find(prepared: Prepared, executor: Executor, *, writes: bool) -> Changes:
    """Read the source files that changed, compare their rows with the live ones, and look for vectors.

    With `writes` dead letters are staged. Raises SourceChanged, StorageError, GateFailed where an id stands twice,
    and CommitConflict where another run published meanwhile, because that moves files.
    """
    publication = Publication(prepared.table, prepared.parent)
    with publication.guarded(prepared.vectors.fingerprint):
        return _find(prepared, publication, executor, writes=writes)


def _find(prepared: Prepared, publication: Publication, executor: Executor, *, writes: bool) -> Changes:
    read = _Read(prepared, executor, publication.folder if writes else None)
    spans = [len(unit.spans) for unit in read.units]
    numbers: np.ndarray[Any, Any] | None = None
    found: list[RowDifference] = []
    for bucket in read.compare():
        if len(bucket.duplicates):
            raise _duplicates(prepared, read.units, bucket.duplicates)
        if numbers is None:
            # The first bucket is a fair sample. Rows for which its numbers are wrong are listed one by one.
            numbers = diff.adopt(bucket.matches, spans, read.states, read.unchanged_numbers())
        found.append(replace(bucket, matches=diff.moved(bucket.matches, spans, numbers)))
    total = diff.merge(found)
    if numbers is None:
        numbers = diff.adopt(total.matches, spans, read.states, read.unchanged_numbers())
    upserts = np.sort(total.upserts, order=["unit", "span", "position"])
    places, staged, texts = vectors_for(prepared, executor, read.units, upserts, writes=writes)
    bounds = np.cumsum([0, *spans])
    good = [number for number in range(len(read.units)) if number not in read.skipped]
    moves = {number: place for place, number in enumerate(good)}
    upserts["unit"] = [moves[number] for number in upserts["unit"].tolist()]
    live_rows = sum(part.rows for part in prepared.parent.parts)
    live, failed = _left_by_source(total.left), _failed_by_source(prepared, read)
    stale = _stale(prepared, read, live, failed)
    return Changes(
        publication=publication,
        units=tuple(read.units[number] for number in good),
        numbers=tuple(tuple(numbers[bounds[number] : bounds[number + 1]].tolist()) for number in good),
        known=tuple(read.known[number] for number in good),
        unchanged_spans=tuple(read.unchanged.part_of(read.units[number], live, failed) for number in good),
        kept=read.kept,
        stale=stale,
        stale_files=unread_files.of_reindex(prepared, read.unread, _vanished_rows(prepared, read, stale)),
        drops_sources=bool((read.states == GONE).any()),
        moved=total.matches,
        upserts=upserts,
        deletes=total.deletes,
        places=places,
        staged=staged,
        texts=texts,
        unchanged=live_rows - len(total.deletes) - int((upserts["part"] >= 0).sum()),
    )


class _Read:
    """It reads the keys of the new units, and knows what becomes of the live sources.

    A unit with a span that can't be read gives way to one of its other spans. The rows of such a file stay in the
    table.
    """

    def __init__(self, prepared: Prepared, executor: Executor, folder: str | None) -> None:
        self._prepared, self._executor, self._folder = prepared, executor, folder
        self.units: list[Unit] = []
        self.known: dict[int, KeyResult] = {}
        self.skipped: set[int] = set()
        self.kept = prepared.plan.kept
        self.unread: dict[str, str] = {}
        """It maps a path to the reason why it can't be read."""
        self.unchanged = unchanged_spans(
            prepared.plan, prepared.parent, prepared.target.output, prepared.vectors.fingerprint
        )
        self._num_rows = _rows_to_read(prepared, self.unchanged)
        self._num_wanted = _num_wanted(prepared, self._num_rows)
        self._num_keys = self._num_wanted + _num_affected(prepared)
        self._keys: list[Any] = []
        """They are handles of the keys that were read. Only the executor knows what they are."""
        readable: Sequence[Unit] = prepared.plan.added
        while readable:
            readable = self._read(readable)
        guard.check_unfit(prepared, [item.unfit for item in self.known.values() if item.unfit is not None])
        self.states = self._source_states()

    def _read(self, units: Sequence[Unit]) -> list[Unit]:
        """Read the rows of these units. Return what is left of the units that can't be read whole."""
        first = len(self.units)
        numbered = [replace(unit, sources=tuple(range(len(unit.spans)))) for unit in units]
        self.units += numbered
        readings = []
        for number, unit in enumerate(numbered, first):
            unchanged = self.unchanged.of(unit)
            to_read = [place for place in unit.sources if place not in unchanged]
            if to_read:
                readings.append(KeyTask(unit=with_spans(unit, to_read), number=number, folder=self._folder))
            else:
                self.known[number] = KeyResult(number=number, tally=Tally(), unread={}, dead_letters=(), unfit=None)
        if not readings:
            return []
        known, keys = self._executor.read_keys(self._prepared, readings, num_keys=self._num_keys)
        self._keys.append(keys)
        left = []
        for item in known:
            self.known[item.number] = item
            if item.unread:
                self.skipped.add(item.number)
                left += self._without_unread(self.units[item.number], item.unread)
        return left

    def _without_unread(self, unit: Unit, unread: Mapping[int, Unreadable]) -> list[Unit]:
        self.unread |= {unit.spans[number].file.path: item.reason for number, item in unread.items()}
        spans = tuple(span for number, span in enumerate(unit.spans) if number not in unread)
        if not spans:
            return []
        unit_id = identity.unit_id(spans, self._prepared.target.output, self._prepared.vectors.fingerprint)
        if unit_id in self._prepared.parent.live_units():
            self.kept |= {unit_id}
            return []
        return [Unit(unit_id=unit_id, spans=spans, sources=tuple(range(len(spans))))]

    def unchanged_numbers(self) -> dict[tuple[int, int], int]:
        """Map the (number of the unit, place of the span) of each span that was not read again to its number in the
        table."""
        return {
            (number, place): source
            for number, unit in enumerate(self.units)
            if number not in self.skipped
            for place, source in self.unchanged.of(unit).items()
        }

    def _source_states(self) -> SourceStates:
        """Say what becomes of each live source.

        The rows of a file that can't be read stay. If that file is unknown to the table, its rows may be those of any
        file that vanished, so these stay, too.
        """
        rows = self._prepared.parent.sources.select(["source", "path", "unit_id"]).to_pylist()
        states = np.full(max((row["source"] for row in rows), default=-1) + 1, diff.FREE, np.int8)
        unread = {lasting_name(path) for path in self.unread}
        present = {file.name for file in self._prepared.corpus.files}
        known = {lasting_name(row["path"]) for row in rows}
        strangers = bool(unread - known)
        unchanged = set(self.unchanged_numbers().values())
        for row in rows:
            name = lasting_name(row["path"])
            if row["unit_id"] in self.kept:
                states[row["source"]] = KEPT
            elif row["source"] in unchanged:
                states[row["source"]] = UNCHANGED
            elif name in unread or (strangers and name not in present):
                states[row["source"]] = STALE
            else:
                states[row["source"]] = GONE
        return states

    def compare(self) -> Iterator[RowDifference]:
        """Yield the difference, in one bucket or many."""
        parent = self._prepared.parent
        parts = parent.parts
        renewed = planning.shape(parent.output_spec) != planning.shape(self._prepared.target.output_spec)
        if renewed and self.unread:
            path, reason = min(self.unread.items())
            raise GateFailed(
                f"the columns or partitions of table {self._prepared.table.url} change, so that all rows are written anew, "
                f"but {path!r} can't be read ({reason}), and its rows can't stay: nothing was published; mend the file, or "
                "take it out of the source, and start again"
            )
        comparison = RowComparison(
            skipped=frozenset(self.skipped),
            parts=parts,
            states=self.states,
            renewed=renewed,
            chunked=is_chunked(parent),
            num_keys=self._num_wanted + sum(part.rows for part in parts),
        )
        yield from self._executor.compare_rows(self._prepared, self._keys, comparison)


def _rows_to_read(prepared: Prepared, unchanged: UnchangedSpans | None = None) -> int:
    """Count the rows of the new units without their unchanged spans. It is an estimate by the files' sizes where only
    reading can tell."""
    known = [unchanged.of(unit) if unchanged is not None else {} for unit in prepared.plan.added]
    spans = [
        span
        for unit, places in zip(prepared.plan.added, known, strict=True)
        for place, span in enumerate(unit.spans)
        if place not in places
    ]
    unknown = {span.file.path: span.file.size for span in spans if span.rows is None}
    total = sum(file.size for file in prepared.corpus.files)
    estimate = prepared.survey.rows_estimate
    more = math.ceil(estimate * sum(unknown.values()) / total) if unknown and total else 0
    return min(sum(span.rows or 0 for span in spans) + more, estimate)


def _num_wanted(prepared: Prepared, rows: int) -> int:
    """Estimate the keys of these rows, with as many chunks to a document as in the table."""
    counts = prepared.parent.counts
    return math.ceil(rows * max(1.0, counts.rows / max(1, counts.documents)))


def _num_affected(prepared: Prepared) -> int:
    """Count the live rows whose file is read again or gone."""
    return sum(tally.rows for unit, tally in prepared.parent.tallies().items() if unit not in prepared.plan.kept)


def is_chunked(version: Snapshot) -> bool:
    return bool(version.version) and "chunk_index" in snapshot.hex_to_schema(version.schema).names


def places_of(rows: Keys) -> Keys:
    out = np.zeros(len(rows), diff.PLACE)
    out["part"], out["index"] = rows["part"], rows["index"]
    return out


def _left_by_source(left: Keys) -> dict[int, tuple[int, int]]:
    """Map the numbers of sources to the (rows, documents) that stay of them."""
    return {int(row["source"]): (int(row["rows"]), int(row["documents"])) for row in left}


def _failed_by_source(prepared: Prepared, read: _Read) -> dict[int, int]:
    """Map the numbers of sources to their dead letters. They are read only where some of them stay."""
    if not np.isin(read.states, [STALE, UNCHANGED]).any():
        return {}
    letters = dead_letters.read(prepared.table, prepared.parent)
    return dict(Counter(number for rows in letters for number in rows.column("source").to_pylist()))


def _stale(
    prepared: Prepared, read: _Read, live: Mapping[int, tuple[int, int]], failed: Mapping[int, int]
) -> dict[int, tuple[str, Tally]]:
    """Return what is left of each source that can't be read. A source with nothing left is dropped."""
    numbers = np.flatnonzero(read.states == STALE).tolist()
    if not numbers:
        return {}
    unit_of = {row["source"]: row["unit_id"] for row in prepared.parent.sources.to_pylist()}
    stale = {}
    for number in numbers:
        rows, documents = live.get(number, (0, 0))
        tally = Tally(rows=rows, documents=documents, failed=failed.get(number, 0))
        # A unit that was called stale once keeps that name.
        stale[number] = (identity.stale_id(unit_of[number], [number]), tally)
    return stale


def _vanished_rows(prepared: Prepared, read: _Read, stale: Mapping[int, tuple[str, Tally]]) -> int:
    """Count the documents that stay though their file is gone, because an unknown file can't be read."""
    unread = {lasting_name(path) for path in read.unread}
    name_of = {row["source"]: lasting_name(row["path"]) for row in prepared.parent.sources.to_pylist()}
    return sum(tally.documents for number, (_, tally) in stale.items() if name_of[number] not in unread)


def _duplicates(prepared: Prepared, units: Sequence[Unit], rows: Keys) -> GateFailed:
    """Return the error about rows that share their id. It reads some of the rows again for their ids."""
    number = int(rows["unit"][0])
    some = only(units[number], rows[rows["unit"] == number][:200])
    names: set[str] = set()
    for piece in slices_of(some, prepared.worker_spec(ALONE)):
        names.update(piece.documents.column("id").to_pylist())
    shown = ", ".join(repr(name) for name in sorted(names)[:5])
    return GateFailed(
        f"{len(rows)} rows share their id with another row, for example {shown} in {units[number].spans[0].file.path!r}: "
        "nothing was published; make source.id unique, or set source.id: null to number rows by file and position"
    )
