"""The work of a feed: a generation is loaded, indexed, proven and shown, or the live one is synced.

Every step may be repeated: what a step did before it was stopped is found in the store.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline.errors import GateFailed, InputError
from pipeline.feeds import load, verify
from pipeline.feeds.load import LoadUnit, LoadWork
from pipeline.feeds.store import Loaded, Marker, Rejection
from pipeline.feeds.verify import Differences
from pipeline.progress import Progress
from pipeline.runs.feed_changes import Changes, Written
from pipeline.runs.feed_checks import DEEP_ROWS, look_deep, proven, still_right
from pipeline.runs.feed_opened import (
    check_deletes,
    check_failed,
    check_fit,
    drop_generation,
    letters_of,
    reader_of,
    timed,
    write_letters,
)
from pipeline.runs.feed_plan import Adopt, Feed, Load, Plan, Ready, Sync, Wishes
from pipeline.runs.feed_summary import FeedSummary
from pipeline.table import snapshot

if TYPE_CHECKING:
    from pipeline.execution.executor import Executor


@dataclass(eq=False)
class Work:
    feed: Feed
    executor: "Callable[[], Executor]"
    summary: FeedSummary
    wishes: Wishes

    def do(self, decided: Plan) -> None:
        match decided:
            case Load():
                marker = self._load(decided)
                self._show(self._caught_up(marker))
            case Ready(marker=marker):
                self.summary.action = "verified and shown what was loaded"
                self._show(self._caught_up(self._indexed(marker)))
            case Sync():
                self._sync(decided)
            case Adopt(generation=generation):
                self._adopt(generation)

    # --- a generation of its own

    def _load(self, decided: Load) -> Marker:
        found, marker, summary = self.feed, decided.marker, self.summary
        assert marker.target is not None
        found = replace(found, version=snapshot.read(found.table, marker.target))
        for old in decided.abandoned:
            drop_generation(found, old)
        notes = f"{found.folder}loads/{marker.generation}/"
        reader = reader_of(found)
        if not decided.begun:
            with timed(summary, "check"):
                check_fit(found, reader, ())
            load.forget(found.table, notes)
        found.store.create(found.shape, marker)
        units = load.units_of(reader, found.shape, marker.unit_bytes)
        if found.spec.index.defer is False:
            found.store.build_index(marker.generation, found.shape, lambda share: None)
        done = load.noted(found.table, notes)
        summary.action = f"loaded version {marker.target} into a new generation: {decided.reason}"
        summary.generation = marker.generation
        todo = [unit for unit in units if unit.name not in done]
        if len(todo) < len(units):
            summary.notes.append(f"{len(units) - len(todo):,} of {len(units):,} units were loaded before")
        with timed(summary, "send"):
            done |= self._sent(found, marker, todo, notes)
        letters = [one for loaded in done.values() for one in loaded.rejected]
        self._refused(letters, len(letters))
        check_failed(found, letters, f"{marker.generation} is not shown; what helps is said with each")
        after = replace(marker, applied=marker.target, applied_of=marker.target_of, target=None, target_of="")
        write_letters(found, marker.generation, letters)
        with timed(summary, "finish"):
            receipts = load.receipts_of([done[unit.name] for unit in units])
            found.store.finish_load(found.shape, marker, after, receipts)
        load.forget(found.table, notes)
        return self._indexed(after)

    def _sent(self, found: Feed, marker: Marker, todo: Sequence[LoadUnit], notes: str) -> dict[str, Loaded]:
        work = LoadWork(
            table=found.table,
            version=found.version.version,
            spec=found.spec,
            generation=marker.generation,
            shape=found.shape,
            notes=notes,
        )
        width = found.shape.vector.list_size * found.shape.vector.value_type.bit_width // 8
        rows = sum(unit.rows for unit in todo)
        asked = found.spec.limits.writers
        writers = None if isinstance(asked, str) else asked
        done: dict[str, Loaded] = {}
        # A store that wants few rows a second is sent them from one place, where one clock counts them.
        where = rows if found.spec.limits.rate == "auto" else 0
        with Progress(units=len(todo), rows=rows) as progress:
            progress.encoded(0, 0)
            for unit, loaded in self.executor().spread(load.load_unit, work, todo, rows=where, writers=writers):
                done[unit.name] = loaded
                progress.encoded(unit.rows, 0)
                progress.recorded(unit.rows, len(loaded.rejected), True)
                self.summary.sent += loaded.rows
                self.summary.sent_bytes += loaded.rows * width
        return done

    def _indexed(self, marker: Marker) -> Marker:
        """Build the index and prove the generation, unless that was done."""
        if marker.indexed:
            return marker
        found = replace(self.feed, version=snapshot.read(self.feed.table, marker.applied))
        with timed(self.summary, "index"):
            found.store.build_index(marker.generation, found.shape, lambda share: None)
        with timed(self.summary, "verify"):
            self.summary.verification = proven(found, marker)
        self.summary.generation = marker.generation
        if not self.summary.verification.passed:
            found.store.mark(replace(marker, refused=True), marker)
            raise GateFailed(
                f"feed {found.name}: {marker.generation} {self.summary.verification}; it is not shown: feed again with "
                "--rebuild, or change feeds.index or feeds.limits.min_recall where the index is at fault"
            )
        after = replace(marker, indexed=True, refused=False)
        found.store.mark(after, marker)
        return after

    def _caught_up(self, marker: Marker) -> Marker:
        """Bring a generation that nobody sees to the version that is wanted by now."""
        if marker.applied == self.feed.version.version and marker.target is None:
            return marker
        return self._synced(Sync(marker=marker))

    def _show(self, marker: Marker) -> None:
        live = self.feed.live
        if live is not None and live.name == marker.generation:
            return
        if self.wishes.no_switch:
            self.summary.notes.append(f"{marker.generation} is ready and not shown: --switch shows it")
            return
        with timed(self.summary, "switch"):
            self.feed.store.switch(marker.generation)
        self.summary.switched = True
        if live is not None:
            self.summary.notes.append(f"{live.name} stays: --switch-back shows it again, --drop-old drops it")

    # --- changes

    def _sync(self, decided: Sync) -> None:
        self.summary.action = f"synced from version {decided.marker.applied} to {self.feed.version.version}"
        if decided.compare:
            self.summary.notes.append("the lists of changes are not complete: keys were compared instead")
        self.summary.generation = decided.marker.generation
        self._synced(decided)

    def _synced(self, decided: Sync) -> Marker:
        found, before, summary = self.feed, decided.marker, self.summary
        reader = reader_of(found)
        letters = {one.id: one for one in letters_of(found, before.generation)}
        changes = Changes(found, reader, decided, tuple(letters))
        deletes = sum(len(gone) for _, gone in changes.ids())
        check_deletes(found, before, deletes, allowed=self.wishes.allow_deletes)
        after = replace(
            before,
            applied=found.version.version,
            applied_of=found.version_of,
            target=None,
            target_of="",
        )
        if not found.store.guarantees.atomic_marker:
            intent = replace(before, target=found.version.version, target_of=found.version_of)
            found.store.mark(intent, before)
            before = intent
        written = Written()
        with timed(summary, "send"), found.store.delta(found.shape, before, after) as delta:
            refused = changes.apply(delta, written)
            new = [one for one in refused if one.id not in letters]
            for name in written.known:
                letters.pop(name, None)
            letters |= {one.id: one for one in refused}
            check_failed(found, list(letters.values()), "nothing was marked as applied; the next feed tries again")
            write_letters(found, before.generation, list(letters.values()))
            delta.commit()
        summary.sent, summary.deleted = summary.sent + written.sent, summary.deleted + written.deleted
        summary.sent_bytes += written.bytes
        self._refused(list(letters.values()), len(new))
        with timed(summary, "verify"):
            summary.verification = still_right(found, before.generation, reader, written, tuple(letters))
        summary.read_bytes = reader.read_bytes
        if not summary.verification.passed:
            raise GateFailed(
                f"feed {found.name}: {before.generation} {summary.verification}; --repair sends again what differs"
            )
        return after

    def _refused(self, letters: list[Rejection], new: int) -> None:
        self.summary.rejected = letters
        self.summary.new_rejected += new

    # --- a generation that lost its marker

    def _adopt(self, generation: str) -> None:
        found, summary = self.feed, self.summary
        summary.action, summary.generation = f"took over {generation}", generation
        marker = Marker(
            generation=generation,
            shape=found.shape.in_words(),
            applied=found.version.version,
            applied_of=found.version_of,
            indexed=True,
        )
        differences, rows, expected = verify.compare_keys(found.store, generation, reader_of(found))
        changed = len(differences.to_send) + len(differences.to_delete)
        if changed > max(0.5 * expected, 10) and changed > expected // 2:
            raise InputError(
                f"{generation} has {rows:,} rows, and {changed:,} of them are not those of version {found.version.version}: "
                "it is not this table's; --rebuild loads all rows beside it"
            )
        found.store.build_index(generation, found.shape, lambda share: None)
        found.store.mark(marker, None)
        look_deep(found, marker, summary, DEEP_ROWS, 0)
        if summary.differs:
            repair_rows(found, marker, summary)
            look_deep(found, marker, summary, DEEP_ROWS, 0)
        self._show(marker)


def repair_rows(found: Feed, marker: Marker, summary: FeedSummary) -> None:
    """Send exactly the rows that differ."""
    assert summary.verification is not None
    differences: Differences = summary.verification.differences
    if not differences:
        return
    reader = reader_of(found)
    written = Written()
    with timed(summary, "send"), found.store.delta(found.shape, marker, marker) as delta:
        if differences.to_delete:
            delta.delete(pa.array(differences.to_delete, pa.string()))
            written.deleted = len(differences.to_delete)
        changes = Changes(found, reader, Sync(marker=marker), ())
        for rows in changes.rows(pa.array(differences.to_send, pa.string())):
            refused = changes.upsert(delta, rows, written)
            check_failed(found, refused, "nothing was repaired")
        delta.commit()
    found.store.build_index(marker.generation, found.shape, lambda share: None)
    summary.sent, summary.deleted, summary.sent_bytes = written.sent, written.deleted, written.bytes
    summary.action = f"repaired version {marker.applied}: {differences}"
