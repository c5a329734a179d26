"""A feed is opened: its table, its store, the shape of its rows and what stands in the store; and what bounds it.

The rows that a store refuses are the feed's dead letters, and are kept below the table, generation by generation.
"""

import contextlib
import json
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import progress, schema
from pipeline.config import RunSpec
from pipeline.errors import GateFailed, InputError
from pipeline.feed_spec import FeedSpec
from pipeline.feeds import load
from pipeline.feeds.registry import open_store
from pipeline.feeds.shape import columns_of, shape_of, shaped
from pipeline.feeds.store import Generation, Marker, Rejection, Store
from pipeline.progress import Phase
from pipeline.runs.feed_plan import Feed, Wishes, version_of
from pipeline.runs.feed_summary import FeedSummary, lacking
from pipeline.storage import Folder
from pipeline.storage.file import FileInfo
from pipeline.table import snapshot
from pipeline.table.row_reader import RowReader
from pipeline.typed_yaml import check_filled

if TYPE_CHECKING:
    from pipeline.runs.feed_changes import Changes


@contextlib.contextmanager
def opened(spec: RunSpec, name: str, wishes: Wishes | None, *, writes: bool = True) -> Iterator[Feed]:
    """Open a feed while the block runs. What only looks is not asked for rights to write. Raises InputError."""
    if name not in spec.feeds:
        raise InputError(f"the configuration has no feed {name!r}; it has {', '.join(spec.feeds) or 'none'}")
    own = spec.feeds[name]
    check_filled(f"feeds.{name}", own.url, own.options)
    table = Folder(spec.table.path, spec.table.storage_options)
    current = snapshot.current(table)
    if not current.version:
        raise InputError(f"table {spec.table.path!r} has no published version: run `python -m jobs.embed` first")
    wanted = wishes.to if wishes is not None and wishes.to is not None else current.version
    version = current if wanted == current.version else snapshot.read(table, wanted)
    if not version.version:
        raise InputError(f"--to is {wanted}; give the number of a version of the table")
    store = open_store(own)
    try:
        shape = shape_of(version, own, store.guarantees)
        if writes:
            store.check(shape)
        yield Feed(
            name=name,
            spec=own,
            table=table,
            version=version,
            version_of=version_of(table, version.version),
            shape=shape,
            store=store,
            generations=generations_of(store, own),
        )
    finally:
        load.close_places()
        store.close()


def generations_of(store: Store, spec: FeedSpec) -> list[Generation]:
    """Return the generations that a feed made, by their names, and none of what somebody named alike."""
    name = re.escape(spec.name.rpartition(".")[2])
    return [one for one in store.generations() if re.fullmatch(rf"{name}__g\d+_[0-9a-f]+", one.name)]


def begun(found: Feed) -> FeedSummary:
    return FeedSummary(
        feed=found.name,
        store=found.spec.store,
        name=found.spec.name,
        version=found.version.version,
        generations=tuple(told(one) for one in found.generations),
        guarantees=found.store.guarantees,
        notes=lacking(found.store.guarantees),
    )


def told(one: Generation) -> dict[str, Any]:
    marker = one.marker
    return {
        "name": one.name,
        "live": one.live,
        "version": marker.applied if marker else None,
        "target": marker.target if marker else None,
        "ready": bool(marker and marker.indexed),
    }


def live_marker(found: Feed) -> Marker:
    live = found.live
    if live is None:
        raise InputError(f"feed {found.name} {why_nothing(found)}")
    if live.marker is None:
        raise InputError(f"{live.name} stands in the store without a marker: --adopt compares it and takes it over")
    return live.marker


def why_nothing(found: Feed) -> str:
    """Say why readers of a feed's name find nothing, and what to do about it."""
    command = f"`python -m jobs.feed CONFIG.yaml {found.name}`"
    markers = [one.marker for one in found.generations if one.marker is not None and one.marker.applied]
    if not markers:
        return f"shows no generation: load it first, with {command}"
    newest = markers[-1].generation
    if any(marker.shown for marker in markers):
        return f"shows no generation, though {newest} stands there: {found.spec.name!r} was removed; {command} shows it again"
    return f"shows no generation yet: {newest} is loaded, and {command[:-1]} --switch` shows it"


def reader_of(found: Feed) -> RowReader:
    return RowReader(found.table, found.version)


def drop_generation(found: Feed, generation: str) -> None:
    found.store.drop(generation)
    load.forget(found.table, f"{found.folder}loads/{generation}/")
    found.table.delete([info.path for info in _letters(found, generation)])


PHASES = {
    "check": Phase.READING,
    "send": Phase.SENDING,
    "finish": Phase.COMMITTING,
    "index": Phase.INDEXING,
    "verify": Phase.VERIFYING,
    "switch": Phase.SWITCHING,
}
"""They are the phases of a feed, by the names that its summary has for them."""


@contextlib.contextmanager
def timed(summary: FeedSummary, name: str) -> Iterator[None]:
    """Count the seconds of a phase, which begins now."""
    started = time.perf_counter()
    run = progress.current()
    run.expect(units=None, rows=None)
    run.begin(PHASES[name], summary.feed)
    try:
        yield
    finally:
        summary.seconds[name] = summary.seconds.get(name, 0.0) + time.perf_counter() - started


# --- dead letters and limits


def letters_of(found: Feed, marker: Marker) -> list[Rejection]:
    """Return the rows of the version that a generation holds which its store refused."""
    content = found.table.read(_letters_path(found, marker))
    return [] if content is None else [Rejection(**one) for one in json.loads(content)]


def write_letters(found: Feed, marker: Marker, letters: Sequence[Rejection]) -> None:
    """Write them before the marker tells of the version: those of the one before stay until they are forgotten."""
    ordered = sorted(letters, key=lambda one: one.id)
    found.table.write(_letters_path(found, marker), json.dumps([asdict(one) for one in ordered], indent=1).encode())


def forget_letters(found: Feed, marker: Marker) -> None:
    """Remove the dead letters of all versions but the one that the generation holds."""
    own = _letters_path(found, marker)
    found.table.delete([info.path for info in _letters(found, marker.generation) if info.path != own])


def _letters_path(found: Feed, marker: Marker) -> str:
    return f"{found.folder}dead_letters/{marker.generation}/{marker.applied:06d}.json"


def _letters(found: Feed, generation: str) -> list[FileInfo]:
    return found.table.list(f"{found.folder}dead_letters/{generation}/")


def note_purges(found: Feed, before: Marker, summary: FeedSummary) -> None:
    """Say that a purge has not reached generations which nobody sees."""
    others = [one.name for one in found.generations if one.name != before.generation]
    versions = [one for one in snapshot.versions(found.table) if before.applied < one <= found.version.version]
    if others and any(snapshot.read_alone(found.table, one).run == "purge" for one in versions):
        summary.notes.append(
            f"rows were purged, and {', '.join(others)} may hold them yet: --drop-old drops what is not shown"
        )


def check_failed(found: Feed, rejected: Sequence[Rejection], what: str) -> None:
    limit = found.spec.limits.max_failed_rows
    most = limit * found.version.counts.rows if limit < 1 else limit
    if len(rejected) > most:
        told = "; ".join(f"{one.id!r}: {one.reason}" for one in rejected[:3])
        raise GateFailed(
            f"feed {found.name}: the store refuses {len(rejected):,} rows, more than feeds.limits.max_failed_rows ({limit:g}) "
            f"allows: {told}; {what}"
        )


def check_fit(found: Feed, reader: RowReader) -> None:
    """Look through ids and columns before the first write. Raises InputError where too many rows don't fit."""
    limit = found.spec.limits.max_failed_rows
    most = limit * found.version.counts.rows if limit < 1 else limit
    names = columns_of(found.shape, vectors=False)
    count, first = 0, list[str]()
    for part in reader.version.parts:
        for rows in reader.batches(part, names):
            reasons = found.store.unfit(shaped(rows, found.shape))
            count += len(reasons)
            ids = rows.column(schema.ID)
            first += [f"{ids[row].as_py()!r}: {reason}" for row, reason in sorted(reasons.items())[: 3 - len(first)]]
    if count > most:
        raise InputError(
            f"feed {found.name}: {count:,} rows don't fit into the store, more than feeds.limits.max_failed_rows ({limit:g}) "
            f"allows: {'; '.join(first)}; change them in the source, leave the column out of feeds.columns, or raise the "
            "limit, which makes dead letters of them"
        )


def check_deletes(found: Feed, marker: Marker, changes: "Changes", *, allowed: bool) -> int:
    """Return how many ids would be deleted. Raises InputError where more rows go than the limit allows."""
    deletes = sum(len(gone) for _, gone in changes.ids())
    limit = found.spec.limits.max_deleted_rows
    rows = snapshot.read_alone(found.table, marker.applied).counts.rows
    most = limit * rows if limit < 1 else limit
    if allowed or deletes <= most:
        return deletes
    # Rows that came and went since were never sent.
    ids = pa.concat_arrays([pa.array([], pa.string()), *(gone.cast(pa.string()) for _, gone in changes.ids())])
    held = (keys.column(schema.ID) for keys in found.store.keys(marker.generation))
    present = sum(pc.sum(pc.is_in(some, ids)).as_py() or 0 for some in held)
    if present > most:
        command = f"`python -m jobs.feed CONFIG.yaml {found.name} --allow-deletes`"
        raise InputError(
            f"feed {found.name}: {present:,} of {rows:,} rows would be deleted from the store, more than "
            f"feeds.limits.max_deleted_rows ({limit:g}): if that is right, start {command}"
        )
    return deletes
