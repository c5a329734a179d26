"""The work of a feed: a generation is loaded, indexed, proven and shown, or the live one is synced.

Every step may be repeated: what a step did before it was stopped is found in the store.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline import progress
from pipeline.errors import GateFailed, InputError
from pipeline.feeds import load, verify
from pipeline.feeds.load import LoadWork
from pipeline.feeds.store import Loaded, Marker, Rejection
from pipeline.feeds.unit_rows import LoadUnit
from pipeline.feeds.verify import Differences
from pipeline.runs.feed_changes import Changes, Written
from pipeline.runs.feed_checks import DEEP_ROWS, look_deep, proven, still_right
from pipeline.runs.feed_opened import (
    check_deletes,
    check_failed,
    check_fit,
    drop_generation,
    forget_letters,
    letters_of,
    note_purges,
    reader_of,
    timed,
    write_letters,
)
from pipeline.runs.feed_plan import Adopt, Feed, Load, Nothing, Plan, Ready, Sync, Wishes, sync_of
from pipeline.runs.feed_summary import FeedSummary
from pipeline.table import snapshot
from pipeline.table.lease import Lease

if TYPE_CHECKING:
    from pipeline.execution.executor import Executor


@dataclass(eq=False)
class Work:
    feed: Feed
    executor: "Callable[[], Executor]"
    summary: FeedSummary
    wishes: Wishes
    lease: Lease

    def do(self, decided: Plan) -> None:
        match decided:
            case Load():
                self._show(self._caught_up(self._load(decided)))
            case Ready(marker=marker):
                self._ready(marker)
            case Sync():
                self._sync(decided)
            case Adopt(generation=generation):
                self._adopt(generation)

    def _alive(self) -> None:
        """Raise GateFailed if this feed lost its lease, because another one is at work by now."""
        if not self.lease.renew():
            raise GateFailed(
                f"feed {self.feed.name}: its lease ran out while it was stopped, and another feed took over: this one ends"
            )

    # --- a generation of its own

    def _load(self, decided: Load) -> Marker:
        found, marker, summary = self.feed, decided.marker, self.summary
        assert marker.target is not None
        if decided.replaces is not None:
            self._check_net_deletes(decided.replaces)
        found = replace(found, version=snapshot.read(found.table, marker.target))
        for old in decided.abandoned:
            drop_generation(found, old)
        notes = f"{found.folder}loads/{marker.generation}/"
        reader = reader_of(found)
        if not decided.begun:
            with timed(summary, "check"):
                check_fit(found, reader)
            load.forget(found.table, notes)
        found.store.create(found.shape, marker)
        units = load.units_of(reader, found.shape, marker.unit_bytes)
        if found.spec.index.defer is False:
            found.store.build_index(marker.generation, found.shape, lambda share: None)
        done = load.noted(found.table, notes)
        summary.action = f"loaded version {marker.target} into a new generation: {decided.reason}"
        summary.generation = marker.generation
        # The largest go first, so that all writers end at about the same time.
        todo = sorted((unit for unit in units if unit.name not in done), key=lambda unit: -unit.rows)
        if len(todo) < len(units):
            summary.notes.append(f"{len(units) - len(todo):,} of {len(units):,} units were loaded before")
        with timed(summary, "send"):
            done |= self._sent(found, marker, todo, notes)
        letters = [one for loaded in done.values() for one in loaded.rejected]
        self._refused(letters, len(letters))
        try:
            check_failed(found, letters, f"{marker.generation} is not shown, and the next feed loads anew")
        except GateFailed:
            # What it refused would stand in its notes for good, whatever becomes of the source.
            found.store.mark(replace(marker, refused=True), marker)
            raise
        after = replace(marker, applied=marker.target, applied_of=marker.target_of, target=None, target_of="")
        write_letters(found, after, letters)
        self._alive()
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
        run = progress.current()
        run.expect(units=len(todo), rows=rows)
        run.encoded(0, 0)
        for unit, loaded in self.executor().spread(load.load_unit, work, todo, rows=where, writers=writers):
            self._alive()
            done[unit.name] = loaded
            run.encoded(unit.rows, 0)
            run.recorded(unit.rows, len(loaded.rejected), True)
            self.summary.sent += loaded.rows
            self.summary.sent_bytes += loaded.rows * width
        return done

    def _ready(self, marker: Marker) -> None:
        """Show a generation that is loaded, after it was proven at the version that it is shown with."""
        self.summary.action = f"verified {marker.generation}"
        self.summary.rejected = letters_of(self.feed, marker)
        was_proven = marker.indexed and not marker.refused
        marker = self._caught_up(marker if was_proven else self._indexed(marker))
        if was_proven:
            marker = self._indexed(marker)
        self._show(marker)

    def _indexed(self, marker: Marker) -> Marker:
        """Build the index where it isn't built, and prove the generation."""
        found = replace(self.feed, version=snapshot.read(self.feed.table, marker.applied))
        if not marker.indexed:
            with timed(self.summary, "index"):
                found.store.build_index(marker.generation, found.shape, progress.current().reach)
        with timed(self.summary, "verify"):
            self.summary.verification = proven(found, marker)
        self.summary.generation = marker.generation
        if not self.summary.verification.passed:
            found.store.mark(replace(marker, refused=True), marker)
            raise GateFailed(
                f"feed {found.name}: {marker.generation} {self.summary.verification}; it is not shown: --rebuild loads anew, "
                "also with other settings of feeds.index, and a lower feeds.limits.min_recall lets an index pass"
            )
        after = replace(marker, indexed=True, refused=False)
        found.store.mark(after, marker)
        return after

    def _caught_up(self, marker: Marker) -> Marker:
        """Bring a generation that nobody sees to the version that is wanted by now."""
        needed = sync_of(self.feed, marker)
        return marker if isinstance(needed, Nothing) else self._synced(needed)

    def _show(self, marker: Marker) -> None:
        live = self.feed.live
        if live is not None and live.name == marker.generation:
            return
        if self.wishes.no_switch or (marker.hidden and not self.wishes.switch):
            self.summary.notes.append(f"{marker.generation} is ready and not shown: --switch shows it")
            return
        self._alive()
        with timed(self.summary, "switch"):
            self.feed.store.switch(marker.generation)
        self.feed.store.mark(replace(marker, shown=True, hidden=False), marker)
        self.summary.switched = True
        stays = [one.name for one in self.feed.generations if one.name != marker.generation and one.marker is not None]
        if live is not None:
            self.summary.notes.append(
                f"{', '.join(stays)} stay{'s' if len(stays) == 1 else ''}: --switch-back shows {live.name} again, --drop-old "
                "drops what is not shown"
            )

    # --- changes

    def _sync(self, decided: Sync) -> None:
        self.summary.action = f"synced from version {decided.marker.applied} to {self.feed.version.version}"
        self.summary.generation = decided.marker.generation
        self._synced(decided)

    def _synced(self, decided: Sync) -> Marker:
        found, before, summary = self.feed, decided.marker, self.summary
        if decided.compare:
            summary.notes.append(f"{decided.reason}: keys were compared instead")
        reader = reader_of(found)
        letters = {one.id: one for one in letters_of(found, before)}
        changes = Changes(found, reader, decided, tuple(letters))
        check_deletes(found, before, changes, allowed=self.wishes.allow_deletes)
        after = replace(
            before,
            applied=found.version.version,
            applied_of=found.version_of,
            target=None,
            target_of="",
            refused=False,
        )
        if not found.store.guarantees.atomic_marker:
            intent = replace(before, target=found.version.version, target_of=found.version_of)
            found.store.mark(intent, before)
            before = intent
        written = Written()
        with timed(summary, "send"), found.store.delta(found.shape, before, after) as delta:
            refused = changes.apply(delta, written, self._alive)
            new = [one for one in refused if one.id not in letters]
            for name in written.known:
                letters.pop(name, None)
            letters |= {one.id: one for one in refused}
            check_failed(found, list(letters.values()), "nothing was marked as applied; the next feed tries again")
            write_letters(found, after, list(letters.values()))
            self._alive()
            delta.commit()
        summary.sent, summary.deleted = summary.sent + written.sent, summary.deleted + written.deleted
        summary.sent_bytes += written.bytes
        self._refused(list(letters.values()), len(new))
        with timed(summary, "verify"):
            if decided.marker.refused:
                look_deep(found, after, summary, DEEP_ROWS, 0)
            else:
                summary.verification = still_right(found, before.generation, reader, written, tuple(letters))
        summary.read_bytes = reader.read_bytes
        forget_letters(found, after)
        if summary.verification is None or not summary.verification.passed:
            # So that a later feed doesn't find nothing to do.
            found.store.mark(replace(after, refused=True), after)
            raise GateFailed(
                f"feed {found.name}: {before.generation} {summary.verification}; --repair sends again what differs"
            )
        note_purges(found, decided.marker, summary)
        return after

    def _check_net_deletes(self, live: Marker) -> None:
        """A generation that takes the place of the live one deletes what it lacks."""
        changes = Changes(self.feed, reader_of(self.feed), Sync(marker=live), ())
        check_deletes(self.feed, live, changes, allowed=self.wishes.allow_deletes)

    def _refused(self, letters: list[Rejection], new: int) -> None:
        self.summary.rejected = letters
        self.summary.new_rejected += new

    # --- a generation that lost its marker

    def _adopt(self, generation: str) -> None:
        found, summary = self.feed, self.summary
        summary.action, summary.generation = f"took over {generation}", generation
        differences, rows, expected = verify.compare_keys(found.store, generation, reader_of(found))
        changed = len(differences.to_send) + len(differences.to_delete)
        if changed > max(10, expected // 2):
            raise InputError(
                f"{generation} has {rows:,} rows, and {changed:,} of them are not those of version {found.version.version}: "
                "it is not this table's; --rebuild loads all rows beside it"
            )
        known = next(one.marker for one in found.generations if one.name == generation)
        # Until all was seen to be right this says that a sync has begun, and from what, nobody knows.
        marker = Marker(
            generation=generation,
            shape=found.shape.in_words(),
            applied=found.version.version,
            applied_of=found.version_of,
            target=found.version.version,
            target_of="?",
            indexed=True,
            asked="adopt",
        )
        found.store.mark(marker, known)
        found.store.build_index(generation, found.shape, lambda share: None)
        after = replace(marker, target=None, target_of="", asked="")
        look_deep(found, marker, summary, DEEP_ROWS, 0)
        if summary.differs:
            repair_rows(found, marker, summary)
            look_deep(found, marker, summary, DEEP_ROWS, 0)
        if summary.differs:
            raise GateFailed(
                f"feed {found.name}: {generation} {summary.verification}; --rebuild loads all rows beside it"
            )
        found.store.mark(after, marker)
        self._show(after)


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
        letters = {one.id: one for one in letters_of(found, marker)}
        for rows in changes.rows(pa.array(differences.to_send, pa.string())):
            letters |= {one.id: one for one in changes.upsert(delta, rows, written)}
            check_failed(found, list(letters.values()), "nothing was repaired")
        write_letters(found, marker, list(letters.values()))
        delta.commit()
    found.store.build_index(marker.generation, found.shape, lambda share: None)
    summary.sent, summary.deleted, summary.sent_bytes = written.sent, written.deleted, written.bytes
    summary.action = f"repaired version {marker.applied}: {differences}"
