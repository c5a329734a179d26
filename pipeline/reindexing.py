"""The parts of a reindex, from a spec to a published version: what differs by row, what of it must be encoded, what is
written. `pipeline.reindex` puts them in order.

Small work is done in this process; a cluster starts when there is enough to do, or something to encode.
"""

import contextlib
import functools
import math
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipeline import estimate, guard, identity, pools, run, wanted
from pipeline.config import ResourceSpec, RunSpec
from pipeline.errors import GateFailed, RunError
from pipeline.estimate import Rate
from pipeline.metrics import Progress, duration, per_second, size
from pipeline.planning import Task
from pipeline.run import Encoded, Prepared
from pipeline.stages import Settings, from_cell
from pipeline.storage import Folder, before_work
from pipeline.table import (
    commit,
    diff,
    layout,
    lease,
    live,
    materialise,
    owners,
    record,
    revision,
    rewrite,
    snapshot,
)
from pipeline.table.diff import GONE, KEPT, KEY, STALE, Fates, Found, Keys
from pipeline.table.live import Gathering
from pipeline.table.owners import Moves
from pipeline.table.part import Part
from pipeline.table.record import Effort, Record
from pipeline.table.revision import Revision, Upkeep
from pipeline.table.rewrite import Rewrite
from pipeline.table.snapshot import Counts, Snapshot, Tally
from pipeline.texts import read_wanted
from pipeline.tokenizing import Tokenizer
from pipeline.unit import Unit, lasting_name
from pipeline.wanted import Known, Order, Orders, Reading, Written

if TYPE_CHECKING:  # Ray loads only when there is work for it.
    from pipeline.dataflow import Cluster, ClusterWorkers

ROWS_HERE = 200_000
"""So many source rows are read, and ten times as many live ones looked through, before a cluster would have started."""
KEYS_HERE = 1_000_000
"""Wanted rows whose keys this process holds (57 bytes each); more meet the live ones in the cluster's shuffle."""
ORDER_ROWS = 8192
ORDER_BYTES = 256 * 2**20
"""Of the vectors of one piece of work that writes rows."""
SAMPLE_TEXTS = 512
"""Texts whose tokens are counted for a forecast."""


class Crew:
    """Who does the work of a run: this process, and a cluster from when there is enough to do."""

    def __init__(self, resources: ResourceSpec) -> None:
        self._resources = resources
        self._stack = contextlib.ExitStack()
        self._cluster: Cluster | None = None

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def cluster(self) -> "Cluster":
        if self._cluster is None:
            from pipeline.dataflow import Cluster

            self._cluster = self._stack.enter_context(Cluster(self._resources))
        return self._cluster

    @property
    def is_started(self) -> bool:
        return self._cluster is not None and self._cluster.started


class _Hands:
    """A crew at work on one prepared run."""

    def __init__(self, prepared: Prepared, crew: Crew) -> None:
        self._prepared, self._crew = prepared, crew
        self.settings = run.settings_for(prepared, pools.ALONE)
        self._tokenizer = functools.cache(lambda: Tokenizer(self.settings.encoder, 1))

    def each(
        self,
        do: Callable[[Any, Settings, Callable[[], Tokenizer]], Iterator[Any]],
        items: Sequence[Any],
        *,
        rows: int,
    ) -> Iterator[Any]:
        """What `do` gives for each item, in any order; `rows` are read for all of them."""
        if rows <= ROWS_HERE or len(items) < 2:
            for item in items:
                yield from do(item, self.settings, self._tokenizer)
        elif items:
            yield from self.workers().each(do, items)

    def workers(self) -> "ClusterWorkers":
        from pipeline.dataflow import ClusterWorkers

        prepared, cluster = self._prepared, self._crew.cluster()
        return ClusterWorkers(
            cluster,
            prepared.table,
            lambda: run.settings_for(prepared, cluster.pools()),
            prepared.spec.table.embedding_column,
        )

    def rewrite(self, jobs: Sequence[Rewrite]) -> list[Part]:
        if self._crew.is_started or sum(item.part.raw_bytes for job in jobs for item in job.inputs) > 256 * 2**20:
            return self.workers().rewrite(jobs)
        embedding = self._prepared.spec.table.embedding_column
        return [rewrite.rewrite(self._prepared.table, job, embedding) for job in jobs]

    def move(self, jobs: Sequence[Moves]) -> list[Part]:
        if sum(job.part.rows for job in jobs) > KEYS_HERE:
            return self.workers().move(jobs)
        return [owners.move(self._prepared.table, job) for job in jobs]


@contextlib.contextmanager
def alone(spec: RunSpec) -> Iterator[None]:
    """Have the table's lease. Raises TableBusy, before any work."""
    run.check_paths(spec)
    table = Folder(spec.table.path, spec.table.storage_options)
    with contextlib.ExitStack() as stack:
        with before_work():
            stack.enter_context(lease.held(table, "reindex", spec.limits.lease_s, spec.limits.wait_s))
        yield


def reindex(
    spec: RunSpec, crew: Crew, started: float, *, new_model: bool = False, allow_deletes: bool = False
) -> "Reindexed | run.Summary":
    """One attempt: raises SourceChanged where a file was replaced meanwhile, GateFailed where too much would be deleted."""
    prepared = run.prepare(spec, writes=True, new_model=new_model)
    if prepared.plan.changes_nothing:
        return nothing_to_do(prepared)
    if is_full(prepared):
        _check_deleted(prepared, None, allowed=allow_deletes)
        return _build(prepared, crew, started)
    planned = time.perf_counter()
    changes = find(prepared, crew, writes=True)
    found_s = time.perf_counter() - planned
    if changes.changes_nothing:
        return nothing_to_do(prepared, changes.stale_files, diff=found_s)
    _check_deleted(prepared, changes, allowed=allow_deletes)
    encoded = encode(prepared, crew, changes)
    timings = run.timings(prepared, encoded) | {"diff": found_s}
    version, upkeep, published = publish(prepared, crew, changes, uuid.uuid4().hex[:12], timings)
    total = {"total": time.perf_counter() - started}
    return summarise(prepared, changes, version, upkeep, encoded, timings | published | total)


def plan(
    spec: RunSpec,
    crew: Crew,
    *,
    new_model: bool = False,
    allow_deletes: bool = False,
    price_per_hour: float | None = None,
) -> "Forecast":
    """What `reindex` would do."""
    started = time.perf_counter()
    prepared = run.prepare(spec, writes=False, new_model=new_model)
    if prepared.plan.changes_nothing or is_full(prepared):
        found = forecast(prepared, None, price_per_hour, started)
    else:
        found = forecast(prepared, find(prepared, crew, writes=False), price_per_hour, started)
    return replace(found, refusal=None) if allow_deletes else found


def _check_deleted(prepared: Prepared, changes: "Changes | None", *, allowed: bool = False) -> None:
    """Of a table that is built anew only as many documents can be missing as its sources have less, when that is known."""
    rows = prepared.parent.counts.rows
    if changes is not None:
        deleted = len(changes.deletes)
    else:
        rows = prepared.parent.counts.documents
        known = prepared.survey.rows_known
        deleted = max(0, rows - known) if known is not None else 0
    limit = prepared.spec.limits.max_deleted_rows
    guard.check_deleted(
        prepared.table.url, rows=rows, deleted=deleted, files=len(prepared.files), limit=limit, allowed=allowed
    )


def is_full(prepared: Prepared) -> bool:
    """The table is to be built whole, by units: there is none yet, or it gets another model."""
    return not prepared.parent.version or prepared.renews


def _build(prepared: Prepared, crew: Crew, started: float) -> run.Summary:
    cluster = crew.cluster()
    prepared = run.calibrate(prepared, cluster)
    with Progress(units=len(prepared.plan.tasks), rows=prepared.rows_to_do) as progress:
        encoded = run.encode(prepared, cluster, progress)
    timings = run.timings(prepared, encoded)
    version, published = run.publish(prepared, cluster, uuid.uuid4().hex[:12], timings)
    total = {"total": time.perf_counter() - started}
    return run.summarise(prepared, version, encoded, timings | published | total)


# --- what differs


@dataclass(frozen=True, kw_only=True)
class StaleFile:
    """A source file that can't be read, or not to its end: its rows stay as they are."""

    path: str
    reason: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Changes:
    """What a run has to do, by row."""

    nonce: str
    folder: str
    """The publication's."""
    units: tuple[Unit, ...]
    """New to the table; the number of a span is its place in the unit."""
    numbers: tuple[tuple[int, ...], ...]
    """Of each unit's spans in the new version."""
    known: tuple[Known, ...]
    """What each unit comes to."""
    kept: frozenset[str]
    stale: Mapping[int, tuple[str, Tally]]
    stale_files: tuple[StaleFile, ...]
    drops_sources: bool
    """Some source of the live version is gone."""
    moved: Keys
    upserts: Keys
    deletes: Keys
    places: Mapping[bytes, tuple[int, int]]
    """Text that the table has -> part and row."""
    staged: Mapping[bytes, str]
    """Text that an earlier run encoded -> its staged file."""
    texts: tuple[Unit, ...]
    """Units of those that nobody has."""
    unchanged: int

    @property
    def new(self) -> int:
        return int((self.upserts["part"] < 0).sum())

    @property
    def changed(self) -> int:
        return len(self.upserts) - self.new

    @property
    def to_encode(self) -> int:
        """Distinct texts."""
        return sum(len(unit.hashes or ()) for unit in self.texts)

    @property
    def changes_nothing(self) -> bool:
        return not self.units and not self.drops_sources

    @property
    def removed(self) -> Keys:
        """PLACE[n]: live rows that leave their parts."""
        old = self.upserts[self.upserts["part"] >= 0]
        return np.concatenate([self.deletes, _places(old)])


def find(prepared: Prepared, crew: Crew, *, writes: bool) -> Changes:
    """Read the source files that are new or changed, compare their rows with the live ones, and look for texts that need no
    encoding. With `writes` dead letters are staged.

    Raises SourceChanged, StorageError, and GateFailed where an id stands twice.
    """
    hands = _Hands(prepared, crew)
    nonce = uuid.uuid4().hex[:12]
    read = _Read(prepared, hands, layout.publication(nonce) if writes else None)
    spans = [len(unit.spans) for unit in read.units]
    numbers: np.ndarray[Any, Any] | None = None
    found: list[Found] = []
    for bucket in read.compare():
        if len(bucket.duplicates):
            raise _duplicates(prepared, hands, read.units, bucket.duplicates)
        if numbers is None:
            # A bucket is a fair sample: where it is wrong for some rows, these are listed one by one.
            numbers = diff.adopt(bucket.matches, spans, read.fates)
        found.append(replace(bucket, matches=diff.moved(bucket.matches, spans, numbers)))
    total = diff.merge(found)
    if numbers is None:
        numbers = diff.adopt(total.matches, spans, read.fates)
    upserts = np.sort(total.upserts, order=["unit", "span", "position"])
    places, staged, texts = _vectors_for(prepared, hands, read.units, upserts, writes=writes)
    bounds = np.cumsum([0, *spans])
    good = [number for number in range(len(read.units)) if number not in read.skipped]
    moves = {number: place for place, number in enumerate(good)}
    upserts["unit"] = [moves[number] for number in upserts["unit"].tolist()]
    live_rows = sum(part.rows for part in prepared.parent.parts)
    return Changes(
        nonce=nonce,
        folder=layout.publication(nonce),
        units=tuple(read.units[number] for number in good),
        numbers=tuple(tuple(numbers[bounds[number] : bounds[number + 1]].tolist()) for number in good),
        known=tuple(read.known[number] for number in good),
        kept=read.kept,
        stale=_stale(prepared, read, total.left),
        stale_files=tuple(StaleFile(path=path, reason=reason) for path, reason in sorted(read.unread.items())),
        drops_sources=bool((read.fates == GONE).any()),
        moved=total.matches,
        upserts=upserts,
        deletes=total.deletes,
        places=places,
        staged=staged,
        texts=texts,
        unchanged=live_rows - len(total.deletes) - int((upserts["part"] >= 0).sum()),
    )


class _Read:
    """The units that are new, their rows' keys, and what that makes of the live sources.

    A unit with a span that can't be read gives way to one of its other spans: the rows of such a file stay in the table.
    """

    def __init__(self, prepared: Prepared, hands: _Hands, folder: str | None) -> None:
        self._prepared, self._hands, self._folder = prepared, hands, folder
        self.units: list[Unit] = []
        self.known: dict[int, Known] = {}
        self.skipped: set[int] = set()
        self.kept = prepared.plan.kept
        self.unread: dict[str, str] = {}
        """Path -> reason."""
        rows = sum(span.rows or 0 for unit in prepared.plan.added for span in unit.spans)
        unknown = any(span.rows is None for unit in prepared.plan.added for span in unit.spans)
        self._num_rows = min(max(rows, prepared.survey.rows_estimate if unknown else 0), prepared.survey.rows_estimate)
        self._on_cluster = self._num_rows > KEYS_HERE
        self._keys: list[Keys] = [np.zeros(0, KEY)]
        self._datasets: list[Any] = []
        readable: Sequence[Unit] = prepared.plan.added
        while readable:
            readable = self._read(readable)
        self.fates = self._fates()

    def _read(self, units: Sequence[Unit]) -> list[Unit]:
        """Read the rows of these units; returns what is left of those that can't be read whole."""
        first = len(self.units)
        numbered = [replace(unit, sources=tuple(range(len(unit.spans)))) for unit in units]
        self.units += numbered
        readings = [
            Reading(unit=unit, number=number, folder=self._folder) for number, unit in enumerate(numbered, first)
        ]
        if self._on_cluster:
            known, dataset = self._hands.workers().read_keys(readings)
            self._datasets.append(dataset)
        else:
            known = []
            for found in self._hands.each(wanted.keys, readings, rows=self._num_rows):
                known.append(found) if isinstance(found, Known) else self._keys.append(found)
        left = []
        for item in known:
            self.known[item.number] = item
            if item.unread:
                self.skipped.add(item.number)
                left += self._without_unread(self.units[item.number], item.unread)
        return left

    def _without_unread(self, unit: Unit, unread: Mapping[int, str]) -> list[Unit]:
        self.unread |= {unit.spans[number].file.path: reason for number, reason in unread.items()}
        spans = tuple(span for number, span in enumerate(unit.spans) if number not in unread)
        if not spans:
            return []
        unit_id = identity.unit_id(spans, self._prepared.output, self._prepared.vectors.fingerprint)
        if unit_id in self._prepared.parent.live_units():
            self.kept |= {unit_id}
            return []
        return [Unit(unit_id=unit_id, spans=spans, sources=tuple(range(len(spans))))]

    def _fates(self) -> Fates:
        """Rows of a file that can't be read stay. They may be those of any file that vanished if nobody knows it yet."""
        rows = self._prepared.parent.sources.select(["source", "path", "unit_id"]).to_pylist()
        fates = np.full(max((row["source"] for row in rows), default=-1) + 1, diff.FREE, np.int8)
        unread = {lasting_name(path) for path in self.unread}
        present = {file.name for file in self._prepared.files}
        known = {lasting_name(row["path"]) for row in rows}
        strangers = bool(unread - known)
        for row in rows:
            name = lasting_name(row["path"])
            if row["unit_id"] in self.kept:
                fates[row["source"]] = KEPT
            elif name in unread or (strangers and name not in present):
                fates[row["source"]] = STALE
            else:
                fates[row["source"]] = GONE
        return fates

    def compare(self) -> Iterator[Found]:
        """The difference, in one bucket or many."""
        parent = self._prepared.parent
        parts = parent.parts
        live_rows = sum(part.rows for part in parts)
        renewed = parent.output != self._prepared.output
        chunked = _is_chunked(parent)
        if self._on_cluster:
            yield from self._hands.workers().diff(
                self._datasets,
                frozenset(self.skipped),
                parts,
                self.fates,
                renewed=renewed,
                chunked=chunked,
                num_keys=self._num_rows + live_rows,
            )
            return
        keys = np.concatenate(self._keys)
        keys = keys[~np.isin(keys["group"], list(self.skipped))]
        scan = _Scan(ids=diff.words(keys["id"]), fates=self.fates, chunked=chunked)
        items = [(scan, part, number) for number, part in enumerate(parts)]
        found = self._hands.each(_live_keys, items, rows=live_rows // 10)
        yield diff.compare(np.concatenate([keys, *found]), self.fates, renewed=renewed)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Scan:
    """Which live rows matter: those of sources that are not kept, and those with one of the ids."""

    ids: Any
    """diff.words"""
    fates: Fates
    chunked: bool


def _live_keys(item: tuple[_Scan, Part, int], settings: Settings, tokenizer: Callable[[], Tokenizer]) -> Iterator[Keys]:
    scan, part, number = item
    for keys in live.keys(settings.open_table(), part, number, chunked=scan.chunked):
        yield keys[(scan.fates[keys["more"]] != KEPT) | diff.among(keys["id"], scan.ids)]


def _is_chunked(version: Snapshot) -> bool:
    return bool(version.version) and "chunk_index" in snapshot.hex_to_schema(version.schema).names


def _places(rows: Keys) -> Keys:
    out = np.zeros(len(rows), diff.PLACE)
    out["part"], out["index"] = rows["part"], rows["index"]
    return out


def _stale(prepared: Prepared, read: _Read, left: Keys) -> dict[int, tuple[str, Tally]]:
    """What is left of each source that can't be read; one of which nothing is left goes."""
    numbers = np.flatnonzero(read.fates == STALE)
    if not len(numbers):
        return {}
    letters: dict[int, int] = {}
    for rows in commit.dead_letters(prepared.table, prepared.parent):
        for number in rows.column("source").to_pylist():
            letters[number] = letters.get(number, 0) + 1
    rows_of = {int(row["source"]): (int(row["rows"]), int(row["documents"])) for row in left}
    unit_of = {row["source"]: row["unit_id"] for row in prepared.parent.sources.to_pylist()}
    stale = {}
    for number in numbers.tolist():
        rows, documents = rows_of.get(number, (0, 0))
        tally = Tally(rows=rows, documents=documents, failed=letters.get(number, 0))
        unit = unit_of[number]
        # Called stale once, it keeps that name.
        stale[number] = (identity.stale_id(unit, [number]), tally)
    return stale


def _duplicates(prepared: Prepared, hands: _Hands, units: Sequence[Unit], rows: Keys) -> GateFailed:
    """Reads some of the rows again for their ids."""
    number = int(rows["unit"][0])
    some = wanted.only(units[number], rows[rows["unit"] == number][:200])
    names: set[str] = set()
    for piece in read_wanted(some, hands.settings):
        names.update(piece.documents.column("id").to_pylist())
    shown = ", ".join(repr(name) for name in sorted(names)[:5])
    return GateFailed(
        f"{len(rows)} rows share their id with another row, for example {shown} in {units[number].spans[0].file.path!r}: "
        "nothing was published; make source.id unique, or set source.id: null to number rows by file and position"
    )


# --- vectors


def _vectors_for(
    prepared: Prepared, hands: _Hands, units: Sequence[Unit], upserts: Keys, *, writes: bool
) -> tuple[dict[bytes, tuple[int, int]], dict[bytes, str], tuple[Unit, ...]]:
    """(text -> part and row that has its vector, text -> staged file, units of the texts that nobody has)."""
    places: dict[bytes, tuple[int, int]] = {}
    own = upserts[upserts["same_text"]]
    for row in own:
        places.setdefault(row["content"].tobytes(), (int(row["part"]), int(row["index"])))
    others = upserts[~upserts["same_text"]]
    missing = {content.tobytes() for content in others["content"]} - places.keys()
    staged = _staged_texts(prepared, missing, writes=writes) if missing else {}
    missing -= staged.keys()
    if missing:
        words = diff.words(np.frombuffer(b"".join(missing), np.uint64).reshape(-1, 2))
        items = [(words, part, number) for number, part in enumerate(prepared.parent.parts)]
        for number, texts in hands.each(
            _live_texts, items, rows=sum(part.rows for part in prepared.parent.parts) // 10
        ):
            for content in texts.keys() & missing:
                places.setdefault(content, (number, texts[content]))
        missing -= places.keys()
    return places, staged, tuple(_text_units(prepared, units, others, missing))


def _live_texts(
    item: tuple[Any, Part, int], settings: Settings, tokenizer: Callable[[], Tokenizer]
) -> Iterator[tuple[int, dict[bytes, int]]]:
    words, part, number = item
    yield number, live.texts(settings.open_table(), part, words)


def _staged_texts(prepared: Prepared, wanted: set[bytes], *, writes: bool = True) -> dict[bytes, str]:
    """Of these texts those that earlier runs encoded, each with its staged file."""
    found: dict[bytes, str] = {}
    for item in record.read_texts(prepared.table, prepared.vectors.fingerprint, writes=writes):
        for part in item.parts:
            rows = snapshot.read_parquet(prepared.table.read(part.path))
            found |= dict.fromkeys(set(rows.column("content_hash").to_pylist()) & wanted, part.path)
    return found


def _text_units(prepared: Prepared, units: Sequence[Unit], upserts: Keys, missing: set[bytes]) -> Iterator[Unit]:
    """Each text in the unit that has it first."""
    left = set(missing)
    for number in np.unique(upserts["unit"]).tolist():
        rows = upserts[upserts["unit"] == number]
        chosen = []
        hashes = []
        for index, content in enumerate(rows["content"]):
            item = content.tobytes()
            if item in left:
                left.remove(item)
                hashes.append(item)
                chosen.append(index)
        if hashes:
            hashes.sort()
            unit = wanted.only(units[number], rows[chosen])
            yield replace(unit, unit_id=identity.texts_id(hashes, prepared.vectors.fingerprint), hashes=tuple(hashes))


def encode(prepared: Prepared, crew: Crew, changes: Changes) -> Encoded:
    """Encode the texts that nobody has; everything finished is recorded in staging, whatever happens.

    Raises what `run.encode` raises.
    """
    if not changes.texts:
        return run.NOTHING_ENCODED
    with Progress(units=len(changes.texts), rows=changes.to_encode) as progress:
        return run.encode(encoding(prepared, changes), crew.cluster(), progress)


def encoding(prepared: Prepared, changes: Changes) -> Prepared:
    """The run whose units are those of the texts."""
    return replace(prepared, plan=replace(prepared.plan, added=changes.texts, retried={}, records={}))


def tasks(changes: Changes) -> tuple[Task, ...]:
    """What there is to encode."""
    return tuple(Task(unit=unit, done=()) for unit in changes.texts)


# --- the new version


def publish(
    prepared: Prepared, crew: Crew, changes: Changes, name: str, timings: Mapping[str, float]
) -> tuple[Snapshot, Upkeep, dict[str, float]]:
    """Write the rows, commit the version and bring the folder into its state; returns the version, what it did to the
    files, and the seconds it took.

    Raises RunError where texts are missing or too many rows failed, GateFailed, SourceChanged, and CommitConflict when
    overtaken.
    """
    started = time.perf_counter()
    table, parent = prepared.table, prepared.parent
    commit.check_current(table, parent, prepared.vectors.fingerprint)
    hands = _Hands(prepared, crew)
    staged, records = _all_staged(prepared, changes)
    written = list(hands.each(wanted.write, _orders(prepared, hands, changes, staged), rows=len(changes.upserts)))
    made = _revision(prepared, hands, changes, written, records)
    tally = sum((tally for _, tally in made.added), Tally())
    tally += sum((tally for _, tally in made.stale.values()), Tally())
    tally += sum((kept for unit, kept in parent.tallies().items() if unit in made.kept), Tally())
    run.check_failed(prepared, tally.failed, tally.documents + tally.failed)
    assembled = time.perf_counter()
    description = run.description(prepared, name, timings)
    version, upkeep = revision.publish(table, parent, made, description, hands, changes.folder, changes.nonce)
    committed = time.perf_counter()
    materialise.materialise(table, version)
    seconds = {
        "assemble": assembled - started,
        "commit": committed - assembled,
        "materialise": time.perf_counter() - committed,
    }
    return version, upkeep, seconds


def _all_staged(prepared: Prepared, changes: Changes) -> tuple[dict[bytes, str], list[Record]]:
    """(text -> staged file, the records of these files), after everything is encoded."""
    needed = changes.staged.keys() | {item for unit in changes.texts for item in unit.hashes or ()}
    if not needed:
        return {}, []
    found: dict[bytes, str] = {}
    records = []
    for item in record.read_texts(prepared.table, prepared.vectors.fingerprint):
        own: set[bytes] = set()
        for part in item.parts:
            rows = snapshot.read_parquet(prepared.table.read(part.path))
            own = (set(rows.column("content_hash").to_pylist()) & needed) - found.keys()
            found |= dict.fromkeys(own, part.path)
        if own:
            records.append(item)
    if len(found) < len(needed):
        raise RunError(f"{len(needed) - len(found)} texts have no record after the run: start again to finish them")
    return found, records


def _orders(prepared: Prepared, hands: _Hands, changes: Changes, staged: Mapping[bytes, str]) -> list[Orders]:
    """The rows to write, in pieces; the vectors that the table has are copied out of its parts first."""
    gathered = _gather(prepared, hands, changes)
    stored = run.stored_vector_bytes(prepared)
    most = max(1, min(ORDER_ROWS, ORDER_BYTES // stored))
    pieces: list[list[Order]] = []
    room = 0
    for number in np.unique(changes.upserts["unit"]).tolist():
        rows = changes.upserts[changes.upserts["unit"] == number]
        for some in _by_document(rows, max(most, ORDER_BYTES // stored)):
            if room < len(some):
                pieces.append([])
                room = most
            room -= len(some)
            pieces[-1].append(wanted.order_of(changes.units[number], number, changes.numbers[number], some))
    orders = []
    for index, piece in enumerate(pieces):
        texts = {content.tobytes() for order in piece for content in order.upserts["content"]}
        files = {gathered[changes.places[text][0]] if text in changes.places else staged[text] for text in texts}
        orders.append(
            Orders(orders=tuple(piece), vectors=tuple(sorted(files)), output=f"{changes.folder}rows/{index:06d}")
        )
    return orders


def _by_document(rows: Keys, most: int) -> Iterator[Keys]:
    """Pieces of at most so many rows, or of one document."""
    starts = np.flatnonzero(
        np.concatenate([[True], (rows[1:][["span", "position"]] != rows[:-1][["span", "position"]])])
    )
    begin = 0
    bounds = [*starts[1:].tolist(), len(rows)]
    for place, stop in enumerate(bounds):
        following = bounds[place + 1] if place + 1 < len(bounds) else None
        if following is None or following - begin > most:
            yield rows[begin:stop]
            begin = stop


def _gather(prepared: Prepared, hands: _Hands, changes: Changes) -> dict[int, str]:
    """Part -> the file with its vectors that other rows need."""
    rows_of: dict[int, set[int]] = {}
    for part, row in changes.places.values():
        rows_of.setdefault(part, set()).add(row)
    parent = prepared.parent
    jobs = [
        Gathering(
            part=parent.parts[part],
            rows=np.array(sorted(rows), np.int32),
            embedding=str(parent.embeddings[0]["column"]),
            output=f"{changes.folder}vectors/{part:06d}.parquet",
        )
        for part, rows in sorted(rows_of.items())
    ]
    list(hands.each(_gathered, jobs, rows=sum(job.part.rows for job in jobs)))
    return {part: job.output for part, job in zip(sorted(rows_of), jobs, strict=True)}


def _gathered(job: Gathering, settings: Settings, tokenizer: Callable[[], Tokenizer]) -> Iterator[str]:
    yield live.gather(settings.open_table(), job)


def _revision(
    prepared: Prepared, hands: _Hands, changes: Changes, written: Sequence[Written], records: Sequence[Record]
) -> Revision:
    lost_ids = np.concatenate([np.zeros((0, 2), np.uint64), *(item.lost_ids for item in written)])
    lost_places = _live_places(prepared, hands, lost_ids)
    names = {row.tobytes() for row in lost_ids}
    stays = np.array([row.tobytes() not in names for row in changes.upserts["id"]], bool)
    upserts = changes.upserts[stays]
    lost: dict[int, Tally] = {}
    for item in written:
        for number, tally in item.lost.items():
            lost[number] = lost.get(number, Tally()) + tally
    added = [
        (replace(unit, sources=numbers), _less(known.tally, lost.get(place, Tally())))
        for place, (unit, numbers, known) in enumerate(zip(changes.units, changes.numbers, changes.known, strict=True))
    ]
    return Revision(
        added=added,
        kept=changes.kept,
        stale=changes.stale,
        moved=changes.moved,
        removed=np.unique(np.concatenate([changes.removed, lost_places])),
        deleted=np.unique(np.concatenate([changes.deletes, lost_places])),
        fresh=[part for item in written for part in item.parts],
        letters=_letters(prepared, changes, written),
        new=int((upserts["part"] < 0).sum()),
        changed=int((upserts["part"] >= 0).sum()),
        failed_new=sum(tally.failed for _, tally in added),
        effort=sum((item.effort for item in records), Effort()),
        bad_vectors=sum(item.bad_vectors for item in records),
        done=frozenset(item.unit_id for item in records) | {unit.unit_id for unit in changes.units},
    )


def _less(known: Tally, lost: Tally) -> Tally:
    """`lost` counts documents that failed after all."""
    return Tally(
        rows=known.rows - lost.rows,
        documents=known.documents - lost.documents,
        failed=known.failed + lost.documents,
        skipped=known.skipped,
    )


def _live_places(prepared: Prepared, hands: _Hands, ids: Any) -> Keys:
    """Where rows with these ids stand, if any do."""
    if not len(ids):
        return np.zeros(0, diff.PLACE)
    nothing = np.full(1, KEPT, np.int8)
    wanted_ids = {row.tobytes() for row in ids}
    found = [np.zeros(0, diff.PLACE)]
    highest = max(prepared.parent.sources.column("source").to_pylist(), default=0)
    scan = _Scan(ids=diff.words(ids), fates=np.repeat(nothing, highest + 1), chunked=_is_chunked(prepared.parent))
    items = [(scan, part, number) for number, part in enumerate(prepared.parent.parts)]
    for keys in hands.each(_live_keys, items, rows=sum(part.rows for part in prepared.parent.parts) // 10):
        exact = keys[np.array([row.tobytes() in wanted_ids for row in keys["id"]], bool)]
        places = np.zeros(len(exact), diff.PLACE)
        places["part"], places["index"] = exact["group"], exact["place"]
        found.append(places)
    return np.concatenate(found)


def _letters(prepared: Prepared, changes: Changes, written: Sequence[Written]) -> Iterator[pa.Table]:
    for known, numbers in zip(changes.known, changes.numbers, strict=True):
        for path in known.letters:
            yield wanted.numbered(snapshot.read_parquet(prepared.table.read(path)), numbers)
    for item in written:
        for path in item.letters:
            yield snapshot.read_parquet(prepared.table.read(path))


# --- summaries


@dataclass(frozen=True, kw_only=True)
class Reindexed:
    """What a reindex did, for a person (`str`) and for machines (`to_dict`)."""

    table: str
    version: int
    published: bool
    counts: Counts
    to_encode: int
    """Distinct texts that this run had to encode."""
    upkeep: Upkeep
    stale_files: tuple[StaleFile, ...]
    docs_per_s: float
    seconds: Mapping[str, float]
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        return 3 if self.stale_files or (self.published and self.counts.failed_new) else 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"exit_code": self.exit_code}

    def __str__(self) -> str:
        counts, upkeep = self.counts, self.upkeep
        if not self.published:
            lines = [f"nothing to do: {self.table} is at version {self.version} with {counts.rows:,} rows"]
        else:
            seconds = ", ".join(f"{name} {value:.1f}" for name, value in self.seconds.items())
            lines = [
                f"published version {self.version} of {self.table}",
                f"  rows       {counts.rows:,}: {counts.new:,} new, {counts.changed:,} changed, {counts.deleted:,} deleted, "
                f"{counts.unchanged:,} untouched",
                f"  failed     {counts.failed:,} without a vector ({counts.failed_new:,} of them in files that were read)"
                + (f"; see {self.table}/{layout.dead_letters(self.version)}" if counts.failed else ""),
                f"  texts      {self.to_encode:,} encoded, {counts.new + counts.changed - self.to_encode:,} rows with a "
                f"vector that was there, {per_second(self.docs_per_s)} docs/s",
                f"  files      {upkeep.written:,} written ({size(upkeep.written_bytes)}), {upkeep.rewritten:,} of the table "
                f"written anew ({size(upkeep.rewritten_bytes)}), {upkeep.dropped:,} dropped, {upkeep.untouched:,} untouched "
                f"({size(upkeep.untouched_bytes)}); {size(upkeep.kept_bytes)} stay in the trash until --clean",
                f"  seconds    {seconds}",
            ]
        lines += [f"  stale      {item.path}: {item.reason}; its rows stay" for item in self.stale_files[:5]]
        if len(self.stale_files) > 5:
            lines.append(f"  stale      {len(self.stale_files) - 5:,} more files that can't be read")
        return "\n".join(lines + [f"  note       {note}" for note in self.notes])


def summarise(
    prepared: Prepared,
    changes: Changes,
    version: Snapshot,
    upkeep: Upkeep,
    encoded: Encoded,
    timings: Mapping[str, float],
) -> Reindexed:
    notes = [*prepared.encoder.notes, *([f"ran {encoded.pools}"] if encoded.pools else [])]
    if not prepared.exclusive:
        notes.append(run.NOT_EXCLUSIVE)
    return Reindexed(
        table=prepared.table.url,
        version=version.version,
        published=version.version != prepared.parent.version,
        counts=version.counts,
        to_encode=changes.to_encode,
        upkeep=upkeep,
        stale_files=changes.stale_files,
        docs_per_s=encoded.rows / encoded.seconds if encoded.seconds else 0.0,
        seconds=timings,
        notes=tuple(notes),
    )


def nothing_to_do(prepared: Prepared, stale_files: Sequence[StaleFile] = (), **seconds: float) -> Reindexed:
    """The summary of a run that changed nothing."""
    return Reindexed(
        table=prepared.table.url,
        version=prepared.parent.version,
        published=False,
        counts=prepared.parent.counts,
        to_encode=0,
        upkeep=Upkeep(untouched=len(prepared.parent.parts)),
        stale_files=tuple(stale_files),
        docs_per_s=0.0,
        seconds={"plan": prepared.plan_s, **seconds},
    )


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a reindex would do, for a person (`str`) and for machines (`to_dict`)."""

    table: str
    version: int
    """The current one."""
    full: bool
    """The table would be built whole: there is none yet, or its model is another."""
    new: int
    changed: int
    deleted: int
    unchanged: int
    reusable: int
    """New and changed rows with a text that has a vector, or that another of them has."""
    to_encode: int
    """Distinct texts; of a full build the rows."""
    tokens: int
    """About so many, from a sample."""
    seconds: float | None
    """Of starting and encoding, at the rate of an earlier run; None where there was none."""
    price: float | None
    parts_rewritten: int
    bytes_rewritten: int
    stale_files: tuple[StaleFile, ...] = ()
    changes_pending: bool = True
    plan_s: float = 0.0
    rate: Rate | None = None
    """Of that run."""
    refusal: str | None = None
    """Why a run would publish nothing."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"plan for {self.table} (now at version {self.version})"]
        if self.full:
            lines.append(f"  build      all of {self.to_encode:,} rows, about {self.tokens:,} tokens")
        elif self.changes_pending:
            lines += [
                f"  rows       {self.new:,} new, {self.changed:,} changed, {self.deleted:,} deleted, "
                f"{self.unchanged:,} unchanged",
                f"  texts      {self.to_encode:,} to encode (about {self.tokens:,} tokens), {self.reusable:,} rows with a "
                "vector that is there",
                f"  files      {self.parts_rewritten:,} of the table to write anew ({size(self.bytes_rewritten)})",
            ]
        if self.changes_pending and self.seconds is not None and self.rate is not None:
            price = f", {self.price:,.2f} at this price" if self.price is not None else ""
            lines.append(
                f"  encoding   about {duration(self.seconds)}, at the {self.rate.tokens_per_s:,.0f} tokens/s of version "
                f"{self.rate.version}{price}"
            )
        lines += [f"  stale      {item.path}: {item.reason}; its rows stay" for item in self.stale_files[:5]]
        lines += [f"  refused    {self.refusal}"] if self.refusal else []
        lines += [
            f"  planned in {duration(self.plan_s)}",
            "  changes pending" if self.changes_pending else "  nothing to do",
        ]
        return "\n".join(lines)


def forecast(prepared: Prepared, changes: Changes | None, price_per_hour: float | None, started: float) -> Forecast:
    """`changes` is None for a full build, or where nothing changed."""
    full = changes is None and not prepared.plan.changes_nothing
    tokens = _count_tokens(prepared, changes) if changes is not None else 0
    if full:
        per_row = _tokens_per_row(prepared)
        tokens = round(prepared.survey.rows_estimate * per_row)
    expected = estimate.estimate(tokens, _history(prepared), price_per_hour)
    losing = np.unique(changes.removed["part"]).tolist() if changes is not None else []
    return Forecast(
        table=prepared.table.url,
        version=prepared.parent.version,
        full=full,
        new=changes.new if changes else prepared.survey.rows_estimate if full and not prepared.parent.version else 0,
        changed=changes.changed
        if changes
        else prepared.survey.rows_estimate
        if full and prepared.parent.version
        else 0,
        deleted=len(changes.deletes) if changes else 0,
        unchanged=changes.unchanged if changes else 0 if full else prepared.parent.counts.rows,
        reusable=len(changes.upserts) - changes.to_encode if changes else 0,
        to_encode=changes.to_encode if changes else prepared.survey.rows_estimate if full else 0,
        tokens=tokens,
        seconds=expected.seconds,
        price=expected.price,
        parts_rewritten=len(losing),
        bytes_rewritten=sum(prepared.parent.parts[number].size for number in losing),
        stale_files=changes.stale_files if changes else (),
        changes_pending=full or (changes is not None and not changes.changes_nothing),
        plan_s=round(time.perf_counter() - started, 3),
        rate=expected.rate,
        refusal=_refusal(prepared, changes),
    )


def _refusal(prepared: Prepared, changes: Changes | None) -> str | None:
    try:
        _check_deleted(prepared, changes)
    except GateFailed as error:
        return str(error)
    return None


def _history(prepared: Prepared) -> list[Snapshot]:
    last = prepared.parent.version
    first = max(1, last - estimate.VERSIONS + 1)
    return [snapshot.read_alone(prepared.table, number) for number in range(first, last + 1)]


def _tokens_per_row(prepared: Prepared) -> float:
    """Of the version's rows, if it has any; else a guess of a short paragraph."""
    for number in range(prepared.parent.version, 0, -1):
        counts = snapshot.read_alone(prepared.table, number).counts
        if counts.tokens and counts.new + counts.changed:
            return counts.tokens / (counts.new + counts.changed)
    return 64.0


def _count_tokens(prepared: Prepared, changes: Changes) -> int:
    """Of the texts to encode, from a sample of them."""
    from pipeline import texts

    if not changes.texts:
        return 0
    settings = run.settings_for(prepared, pools.ALONE)
    tokenizer = Tokenizer(settings.encoder, 1)
    chosen = [changes.texts[number] for number in np.linspace(0, len(changes.texts) - 1, 4).astype(int)]
    tokens = counted = 0
    for unit in dict.fromkeys(chosen):
        most = math.ceil(SAMPLE_TEXTS / 4)
        step = max(1, len(unit.only or ()) // most)
        some = replace(unit, only=(unit.only or ())[::step])
        for row in texts.read(Task(unit=some, done=()), settings, tokenizer):
            found = from_cell(row, "documents")
            tokens += sum(found.column("n_tokens").to_pylist())
            counted += found.num_rows
    return round(tokens / max(1, counted) * changes.to_encode)
