"""The parts of a reindex, from a spec to a published version; `pipeline.reindex` puts them in order.

What differs stands in row_changes.py, who does the work in crew.py; here it is encoded, written and published.
"""

import contextlib
import functools
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.config import RunSpec
from pipeline.encoder.tokenizer import Tokenizer
from pipeline.errors import RunError
from pipeline.execution.crew import Crew, Hands
from pipeline.progress import Progress, per_second, size
from pipeline.runs import prepare
from pipeline.runs.forecast import Forecast, forecast
from pipeline.runs.plan import Task
from pipeline.runs.prepare import Encoded, Prepared
from pipeline.runs.row_changes import Changes, StaleFile, check_built, check_deleted, find, live_places
from pipeline.stages import row_writer
from pipeline.stages.encode import Settings
from pipeline.stages.row_writer import Order, Orders, Written
from pipeline.storage import Folder, before_work
from pipeline.table import layout, lease, materialise, record, scan, snapshot
from pipeline.table.diff import Keys
from pipeline.table.operations import merge_rows
from pipeline.table.operations.merge_rows import Revision, Upkeep
from pipeline.table.record import Effort, Record
from pipeline.table.scan import Gathering
from pipeline.table.snapshot import Counts, Snapshot, Tally

ORDER_ROWS = 8192
ORDER_BYTES = 256 * 2**20
"""Of the vectors of one piece of work that writes rows."""


@contextlib.contextmanager
def alone(spec: RunSpec) -> Iterator[None]:
    """Have the table's lease. Raises TableBusy, before any work."""
    prepare.check_paths(spec)
    table = Folder(spec.table.path, spec.table.storage_options)
    with contextlib.ExitStack() as stack:
        with before_work():
            stack.enter_context(lease.held(table, "reindex", spec.limits.lease_s, spec.limits.wait_s))
        yield


def reindex(
    spec: RunSpec, crew: Crew, started: float, *, new_model: bool = False, allow_deletes: bool = False
) -> "Reindexed | prepare.Summary":
    """One attempt: raises SourceChanged where a file was replaced meanwhile, GateFailed where too much would be deleted."""
    prepared = prepare.prepare(spec, writes=True, new_model=new_model)
    if prepared.plan.changes_nothing:
        return nothing_to_do(prepared)
    if is_full(prepared):
        check_deleted(prepared, None, allowed=allow_deletes)
        return _build(prepared, crew, started, functools.partial(check_built, prepared, allowed=allow_deletes))
    planned = time.perf_counter()
    changes = find(prepared, crew, writes=True)
    found_s = time.perf_counter() - planned
    if changes.changes_nothing:
        return nothing_to_do(prepared, changes.stale_files, diff=found_s)
    check_deleted(prepared, changes, allowed=allow_deletes)
    encoded = encode(prepared, crew, changes)
    timings = prepare.timings(prepared, encoded) | {"diff": found_s}
    name = uuid.uuid4().hex[:12]
    version, upkeep, published = publish(prepared, crew, changes, name, timings | prepare.pace(encoded))
    total = {"total": time.perf_counter() - started}
    return summarise(prepared, changes, version, upkeep, encoded, timings | published | total)


def plan(
    spec: RunSpec,
    crew: Crew,
    *,
    new_model: bool = False,
    allow_deletes: bool = False,
    price_per_hour: float | None = None,
) -> Forecast:
    """What `reindex` would do."""
    started = time.perf_counter()
    prepared = prepare.prepare(spec, writes=False, new_model=new_model)
    if prepared.plan.changes_nothing or is_full(prepared):
        found = forecast(prepared, None, price_per_hour, started)
    else:
        found = forecast(prepared, find(prepared, crew, writes=False), price_per_hour, started)
    return replace(found, refusal=None) if allow_deletes else found


def is_full(prepared: Prepared) -> bool:
    """The table is to be built whole, by units: there is none yet, or it gets another model."""
    return not prepared.parent.version or prepared.renews


def _build(prepared: Prepared, crew: Crew, started: float, check: Callable[[Tally], None]) -> prepare.Summary:
    cluster = crew.cluster()
    prepared = prepare.calibrate(prepared, cluster)
    with Progress(units=len(prepared.plan.tasks), rows=prepared.rows_to_do) as progress:
        encoded = prepare.encode(prepared, cluster, progress)
    timings = prepare.timings(prepared, encoded)
    version, published = prepare.publish(
        prepared, cluster, uuid.uuid4().hex[:12], timings | prepare.pace(encoded), check
    )
    total = {"total": time.perf_counter() - started}
    return prepare.summarise(prepared, version, encoded, timings | published | total)


# --- encoding


def encode(prepared: Prepared, crew: Crew, changes: Changes) -> Encoded:
    """Encode the texts that nobody has; everything finished is recorded in staging, whatever happens.

    Raises what `run.encode` raises.
    """
    if not changes.texts:
        return prepare.NOTHING_ENCODED
    with Progress(units=len(changes.texts), rows=changes.to_encode) as progress:
        return prepare.encode(encoding(prepared, changes), crew.cluster(), progress)


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
    hands = Hands(prepared, crew)
    with changes.publication.guarded(prepared.vectors.fingerprint):
        changes.publication.check_current(prepared.vectors.fingerprint)
        staged, records = _all_staged(prepared, changes)
        written = list(
            hands.each(row_writer.write, _orders(prepared, hands, changes, staged), rows=len(changes.upserts))
        )
        made = _revision(prepared, hands, changes, written, records)
    tally = sum((tally for _, tally in made.added), Tally())
    tally += sum((tally for _, tally in made.stale.values()), Tally())
    tally += sum((kept for unit, kept in parent.tallies().items() if unit in made.kept), Tally())
    prepare.check_failed(prepared, tally.failed, tally.documents + tally.failed)
    assembled = time.perf_counter()
    description = prepare.description(prepared, name, timings)
    version, upkeep = merge_rows.publish(changes.publication, made, description, hands)
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


def _orders(prepared: Prepared, hands: Hands, changes: Changes, staged: Mapping[bytes, str]) -> list[Orders]:
    """The rows to write, in pieces; the vectors that the table has are copied out of its parts first."""
    gathered = _gather(prepared, hands, changes)
    stored = prepare.stored_vector_bytes(prepared)
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
            pieces[-1].append(row_writer.order_of(changes.units[number], number, changes.numbers[number], some))
    orders = []
    for index, piece in enumerate(pieces):
        texts = {content.tobytes() for order in piece for content in order.upserts["content"]}
        files = {gathered[changes.places[text][0]] if text in changes.places else staged[text] for text in texts}
        orders.append(
            Orders(
                orders=tuple(piece),
                vectors=tuple(sorted(files)),
                output=f"{changes.publication.folder}rows/{index:06d}",
            )
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


def _gather(prepared: Prepared, hands: Hands, changes: Changes) -> dict[int, str]:
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
            output=changes.publication.staged("vectors", part),
        )
        for part, rows in sorted(rows_of.items())
    ]
    list(hands.each(_gathered, jobs, rows=sum(job.part.rows for job in jobs)))
    return {part: job.output for part, job in zip(sorted(rows_of), jobs, strict=True)}


def _gathered(job: Gathering, settings: Settings, tokenizer: Callable[[], Tokenizer]) -> Iterator[str]:
    yield scan.gather(settings.open_table(), job)


def _revision(
    prepared: Prepared, hands: Hands, changes: Changes, written: Sequence[Written], records: Sequence[Record]
) -> Revision:
    lost_ids = np.concatenate([np.zeros((0, 2), np.uint64), *(item.lost_ids for item in written)])
    lost_places = live_places(prepared, hands, lost_ids)
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


def _letters(prepared: Prepared, changes: Changes, written: Sequence[Written]) -> Iterator[pa.Table]:
    for known, numbers in zip(changes.known, changes.numbers, strict=True):
        for path in known.letters:
            yield row_writer.numbered(snapshot.read_parquet(prepared.table.read(path)), numbers)
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
    reusable: int
    """New and changed rows with a text that has a vector, or that another of them has."""
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
                f"  texts      {self.to_encode:,} encoded, {self.reusable:,} rows with a "
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
    if prepared.vectors.int8 is not None:
        notes.append(str(prepared.vectors.int8))
    if not prepared.exclusive:
        notes.append(prepare.NOT_EXCLUSIVE)
    return Reindexed(
        table=prepared.table.url,
        version=version.version,
        published=version.version != prepared.parent.version,
        counts=version.counts,
        to_encode=changes.to_encode,
        reusable=len(changes.upserts) - changes.to_encode,
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
        reusable=0,
        upkeep=Upkeep(untouched=len(prepared.parent.parts)),
        stale_files=tuple(stale_files),
        docs_per_s=0.0,
        seconds={"plan": prepared.plan_s, **seconds},
    )
