"""A feed is opened: its table, its store, the shape of its rows and what stands in the store; and what bounds it.

The rows that a store refuses are the feed's dead letters, and are kept below the table, generation by generation.
"""

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from pipeline import schema
from pipeline.config import RunSpec
from pipeline.errors import GateFailed, InputError
from pipeline.feeds import load
from pipeline.feeds.registry import open_store
from pipeline.feeds.shape import columns_of, shape_of, shaped
from pipeline.feeds.store import Generation, Marker, Rejection
from pipeline.runs.feed_plan import Feed, Wishes, version_of
from pipeline.runs.feed_summary import FeedSummary, lacking
from pipeline.storage import Folder
from pipeline.table import snapshot
from pipeline.table.row_reader import RowReader
from pipeline.typed_yaml import check_filled


@contextlib.contextmanager
def opened(spec: RunSpec, name: str, wishes: Wishes | None) -> Iterator[Feed]:
    if name not in spec.feeds:
        raise InputError(f"the configuration has no feed {name!r}; it has {', '.join(spec.feeds) or 'none'}")
    own = spec.feeds[name]
    check_filled(f"feeds.{name}", own.url, own.options)
    table = Folder(spec.table.path, spec.table.storage_options)
    current = snapshot.current(table)
    if not current.version:
        raise InputError(f"table {spec.table.path!r} has no published version: run jobs.embed first")
    wanted = wishes.to if wishes is not None and wishes.to is not None else current.version
    version = current if wanted == current.version else snapshot.read(table, wanted)
    if not version.version:
        raise InputError(f"--to is {wanted}; give the number of a version of the table")
    store = open_store(own)
    try:
        shape = shape_of(version, own, store.guarantees)
        store.check(shape)
        yield Feed(
            name=name,
            spec=own,
            table=table,
            version=version,
            version_of=version_of(table, version.version),
            shape=shape,
            store=store,
            generations=store.generations(),
        )
    finally:
        load.close_places()
        store.close()


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
        raise InputError(f"feed {found.name} shows no generation: load it first")
    if live.marker is None:
        raise InputError(f"{live.name} stands in the store without a marker: --adopt compares it and takes it over")
    return live.marker


def reader_of(found: Feed) -> RowReader:
    return RowReader(found.table, found.version)


def drop_generation(found: Feed, generation: str) -> None:
    found.store.drop(generation)
    load.forget(found.table, f"{found.folder}loads/{generation}/")
    found.table.delete([f"{found.folder}dead_letters/{generation}.json"])


@contextlib.contextmanager
def timed(summary: FeedSummary, name: str) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        summary.seconds[name] = summary.seconds.get(name, 0.0) + time.perf_counter() - started


# --- dead letters and limits


def letters_of(found: Feed, generation: str) -> list[Rejection]:
    """Return the rows of a generation's version that its store refused."""
    content = found.table.read(f"{found.folder}dead_letters/{generation}.json")
    return [] if content is None else [Rejection(**one) for one in json.loads(content)]


def write_letters(found: Feed, generation: str, letters: Sequence[Rejection]) -> None:
    ordered = sorted(letters, key=lambda one: one.id)
    content = json.dumps([asdict(one) for one in ordered], indent=1).encode()
    found.table.write(f"{found.folder}dead_letters/{generation}.json", content)


def check_failed(found: Feed, rejected: Sequence[Rejection], what: str) -> None:
    limit = found.spec.limits.max_failed_rows
    most = limit * found.version.counts.rows if limit < 1 else limit
    if len(rejected) > most:
        told = "; ".join(f"{one.id!r}: {one.reason}" for one in rejected[:3])
        raise GateFailed(
            f"feed {found.name}: the store refuses {len(rejected):,} rows, more than feeds.limits.max_failed_rows ({limit:g}) "
            f"allows: {told}; {what}"
        )


def check_fit(found: Feed, reader: RowReader, columns: Sequence[str]) -> None:
    """Look through ids and columns before the first write. Raises InputError where too many rows don't fit."""
    limit = found.spec.limits.max_failed_rows
    most = limit * found.version.counts.rows if limit < 1 else limit
    names = list(columns) or columns_of(found.shape, vectors=False)
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


def check_deletes(found: Feed, marker: Marker, deletes: int, *, allowed: bool) -> None:
    limit = found.spec.limits.max_deleted_rows
    rows = snapshot.read_alone(found.table, marker.applied).counts.rows
    if not allowed and deletes > (limit * rows if limit < 1 else limit):
        raise InputError(
            f"feed {found.name}: {deletes:,} of {rows:,} rows would be deleted from the store, more than "
            f"feeds.limits.max_deleted_rows ({limit:g}): give --allow-deletes if that is right"
        )
