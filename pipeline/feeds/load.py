"""A generation is filled in units, each a row group of a part or some rows of one, by several loaders side by side.

The units follow from the table's version alone, so that a restart finds the same ones. Whoever reads a unit sends it:
vectors don't travel between processes. A finished unit is noted below the table with its receipt. What a store knows of
units by itself is asked of nobody here.
"""

import functools
import json
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pipeline.feed_spec import FeedSpec
from pipeline.feeds.registry import open_store
from pipeline.feeds.store import Loaded, Loader, Rejection, Shape, Store
from pipeline.feeds.unit_rows import LoadUnit, UnitRows, bytes_per_row
from pipeline.storage import Folder
from pipeline.table import snapshot
from pipeline.table.row_reader import RowReader
from pipeline.table.snapshot import Snapshot

FEW_GROUPS = 4
"""A version with fewer row groups is cut within them, so that all loaders have something to do. A group is read from its
beginning for each piece."""
UNIT_BYTES = 16 * 2**20
"""A unit within a row group has so many bytes of vectors."""


@dataclass(frozen=True, kw_only=True)
class LoadWork:
    """It is all that a worker has to know. It holds secrets."""

    table: Folder
    version: int
    spec: FeedSpec
    generation: str
    shape: Shape
    notes: str
    """Finished units are noted in this folder below the table."""


def units_of(reader: RowReader, shape: Shape, unit_bytes: int) -> list[LoadUnit]:
    """Cut the version into units of at most so many bytes of vectors."""
    groups = [
        (number, group, rows)
        for number, part in enumerate(reader.version.parts)
        for group, rows in enumerate(reader.groups(part))
        if rows
    ]
    few = UNIT_BYTES if len(groups) < FEW_GROUPS else unit_bytes
    most = max(1, min(few, unit_bytes) // bytes_per_row(shape))
    return [
        LoadUnit(
            name=f"{reader.version.version}/{number}/{group}/{start}",
            part=number,
            group=group,
            start=start,
            rows=min(most, rows - start),
        )
        for number, group, rows in groups
        for start in range(0, rows, most)
    ]


def load_unit(unit: LoadUnit, work: LoadWork) -> Iterator[tuple[LoadUnit, Loaded]]:
    """Read a unit and send it. A worker keeps its connection for the next one."""
    place = _place(work)
    rows = UnitRows(place.reader, place.store, work.shape, unit)
    _paced(work).wait(unit.rows)
    loaded = place.loader.load(unit.name, rows)
    loaded = replace(loaded, rejected=(*rows.unfit, *loaded.rejected))
    note(work.table, work.notes, unit, loaded)
    yield unit, loaded


_PACES: dict[str, "Pace"] = {}
"""All threads of this process that load for one feed keep one pace."""


def _paced(work: LoadWork) -> "Pace":
    return _PACES.setdefault(work.notes, Pace(work.spec.limits.rate))


class Pace:
    """It makes those who send wait, so that all of them together send so many rows a second at most."""

    def __init__(self, rows_per_s: float | str) -> None:
        self._rate = None if isinstance(rows_per_s, str) else rows_per_s
        self._lock = threading.Lock()
        self._free_at = 0.0
        """At this time of the monotonic clock the next rows may go."""

    def wait(self, rows: int) -> None:
        if self._rate is None:
            return
        with self._lock:
            start = max(time.monotonic(), self._free_at)
            self._free_at = start + rows / self._rate
        time.sleep(max(0.0, start - time.monotonic()))


@dataclass(eq=False)
class _Place:
    work: LoadWork
    reader: RowReader
    store: Store
    loader: Loader

    def close(self) -> None:
        self.loader.close()
        self.store.close()


_PLACES: dict[int, _Place] = {}
"""Every thread of this process that loads has one."""


def _place(work: LoadWork) -> _Place:
    """Return this thread's reader and loader for the work."""
    thread = threading.get_ident()
    known = _PLACES.get(thread)
    if known is None or known.work != work:
        if known is not None:
            known.close()
        reader = RowReader(work.table, _version(work.table, work.version))
        store = open_store(work.spec)
        loader = store.loader(work.generation, work.shape)
        known = _PLACES[thread] = _Place(work=work, reader=reader, store=store, loader=loader)
    return known


def close_places() -> None:
    """Close what the threads of this process keep, when none of them loads any more."""
    for thread in list(_PLACES):
        _PLACES.pop(thread).close()
    _PACES.clear()


@functools.lru_cache(maxsize=2)
def _version(table: Folder, number: int) -> Snapshot:
    return snapshot.read(table, number)


# --- what is finished


def note(table: Folder, notes: str, unit: LoadUnit, loaded: Loaded) -> None:
    """Write down that a unit is durable in the store, or will be by its receipt."""
    content = {"unit": unit.name, "rows": loaded.rows, "receipt": loaded.receipt} | {
        "rejected": [asdict(one) for one in loaded.rejected]
    }
    table.write(f"{notes}{unit.name.replace('/', '-')}.json", json.dumps(content).encode())


def noted(table: Folder, notes: str) -> dict[str, Loaded]:
    """Return the finished units by their names."""
    found: dict[str, Loaded] = {}
    for info in table.list(notes):
        content = table.read(info.path)
        if content is None:
            continue
        raw: dict[str, Any] = json.loads(content)
        rejected = tuple(Rejection(**one) for one in raw["rejected"])
        found[raw["unit"]] = Loaded(rows=raw["rows"], receipt=raw["receipt"], rejected=rejected)
    return found


def forget(table: Folder, notes: str) -> None:
    """Remove the notes of a load that has ended, or that begins anew."""
    table.delete([info.path for info in table.list(notes)])


def receipts_of(loaded: Sequence[Loaded]) -> list[str]:
    return [one.receipt for one in loaded if one.receipt is not None]
