"""A feed brings a store to a version of the table: it loads, syncs, verifies, shows and repairs.

A `RunSpec` and the name of a feed come in. The story of a night: the marker in the store says what it holds; a plan follows
from it (feed_plan.py); a load fills a new generation beside the live one, or a sync sends the net changes to the live one
(feed_work.py); what was written is read back (feed_checks.py); then readers are shown it. A feed that was stopped anywhere
goes on from what stands in the store. This file knows no database.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.config import RunSpec
from pipeline.errors import InputError
from pipeline.feeds.shape import shape_of
from pipeline.feeds.store import Marker
from pipeline.runs.feed_changes import Changes
from pipeline.runs.feed_checks import DEEP_ROWS, look_deep
from pipeline.runs.feed_observed import observed_feed
from pipeline.runs.feed_opened import (
    begun,
    check_deletes,
    check_fit,
    drop_generation,
    generations_of,
    letters_of,
    live_marker,
    opened,
    reader_of,
    told,
    why_nothing,
)
from pipeline.runs.feed_plan import Adopt, Feed, Load, Nothing, Ready, Sync, Wishes, check_table, plan
from pipeline.runs.feed_summary import FeedSummary
from pipeline.runs.feed_work import Work, repair_rows
from pipeline.table import lease, snapshot

if TYPE_CHECKING:
    from pipeline.execution.executor import Executor

LOOKS = 3
"""A look back is made so often at most, where a feed ends amid it."""


def feed(spec: RunSpec, name: str, executor: "Callable[[], Executor]", wishes: Wishes | None = None) -> FeedSummary:
    """Bring the store of the feed to the table's version, and return what was done. The executor is made if there is a
    load. Raises PipelineError."""
    with opened(spec, name, wishes) as found, observed_feed(spec, found, summary := begun(found)):
        decided = plan(found, wishes or Wishes())
        if isinstance(decided, Nothing):
            summary.generation = decided.marker.generation
            summary.rejected = letters_of(found, decided.marker)
            return summary
        work = f"feed {name}"
        with lease.held(found.table, work, found.spec.limits.lease_s, 0, f"{found.folder}leases/") as held:
            # Another feed may have worked between the look and the lease.
            found = replace(found, generations=generations_of(found.store, found.spec))
            decided = plan(found, wishes or Wishes())
            if isinstance(decided, Nothing):
                summary.generation = decided.marker.generation
            else:
                Work(found, executor, summary, wishes or Wishes(), held).do(decided)
        return summary


def forecast(spec: RunSpec, name: str, wishes: Wishes | None = None) -> FeedSummary:
    """Return what `feed` would do now, exactly. It writes nothing. Raises what `feed` would refuse."""
    with opened(spec, name, wishes) as found:
        summary = begun(found)
        summary.planned = True
        decided = plan(found, wishes or Wishes())
        summary.pending = not isinstance(decided, Nothing)
        match decided:
            case Nothing(marker=marker) | Ready(marker=marker):
                summary.action = (
                    "nothing to do" if isinstance(decided, Nothing) else "would verify and show what is loaded"
                )
                summary.generation = marker.generation
            case Load(reason=reason, marker=marker):
                summary.action = f"would load a new generation: {reason}"
                summary.generation = marker.generation if decided.begun else ""
                summary.sent = found.version.counts.rows
                if decided.replaces is not None:
                    gone = Changes(found, reader_of(found), Sync(marker=decided.replaces), ())
                    check_deletes(found, decided.replaces, gone, allowed=(wishes or Wishes()).allow_deletes)
                check_fit(found, reader_of(found))
            case Sync(marker=marker):
                _forecast_sync(found, decided, summary, allowed=(wishes or Wishes()).allow_deletes)
            case Adopt(generation=generation):
                summary.action, summary.generation = "would compare and take over a generation", generation
        return summary


def _forecast_sync(found: Feed, decided: Sync, summary: FeedSummary, *, allowed: bool) -> None:
    marker = decided.marker
    summary.generation = marker.generation
    summary.action = f"would sync from version {marker.applied} to {found.version.version}"
    reader = reader_of(found)
    changes = Changes(found, reader, decided, ())
    for upserts, _ in changes.ids():
        summary.sent += len(upserts)
    summary.deleted = check_deletes(found, marker, changes, allowed=allowed)
    summary.read_bytes = reader.read_bytes


def status(spec: RunSpec, name: str) -> FeedSummary:
    """Return what stands in the store, without a comparison."""
    with opened(spec, name, None, writes=False) as found:
        summary = begun(found)
        summary.planned = True
        live = found.live
        marker = live.marker if live else None
        if live is None:
            summary.action = why_nothing(found)
        elif marker is None:
            summary.action = f"shows {live.name}, which has no marker"
        else:
            behind = "" if marker.applied == found.version.version else f", the table is at {found.version.version}"
            summary.action = f"shows version {marker.applied}{behind}"
            summary.generation = live.name
        for one in found.generations:
            if one is not live:
                summary.notes.append(f"{one.name} is not shown: {_state(one.marker)}")
        return summary


def _state(marker: Marker | None) -> str:
    if marker is None:
        return "it has no marker"
    if marker.refused:
        return "it was found to differ"
    if not marker.applied:
        return f"a load of version {marker.target} that has not ended"
    return f"version {marker.applied}" + ("" if marker.indexed else ", not proven yet")


def verified(spec: RunSpec, name: str, *, rows: int = DEEP_ROWS, seed: int = 0, repair: bool = False) -> FeedSummary:
    """Read the live generation back and compare it with the version that it should be. With `repair` what differs is sent
    again, and the comparison is made once more."""
    with opened(spec, name, None, writes=repair) as found:
        summary = begun(found)
        marker = live_marker(found)
        check_table(found, marker)
        at = replace(found, version=snapshot.read(found.table, marker.applied))
        if marker.shape != at.shape.in_words():
            at = replace(at, shape=shape_of(at.version, at.spec, at.store.guarantees))
            if marker.shape != at.shape.in_words():
                raise InputError(
                    f"{marker.generation} was loaded with other settings than the configuration has now: verify it with "
                    "those, or feed with --new-generation"
                )
        summary.version, summary.generation = marker.applied, marker.generation
        summary.action = f"verified version {marker.applied}"
        if marker.target is not None:
            raise InputError(
                f"a sync of {marker.generation} from version {marker.applied} to {marker.target} has not ended: run the feed, "
                "then verify"
            )
        for _ in range(LOOKS):
            look_deep(at, marker, summary, rows, seed)
            now = live_marker(replace(found, generations=generations_of(found.store, found.spec)))
            if now == marker or not summary.differs:
                break
            # A feed ended meanwhile, and what was read was of two versions.
            marker = now
            at = replace(at, version=snapshot.read(found.table, marker.applied))
            summary.version, summary.action = marker.applied, f"verified version {marker.applied}"
        if repair and summary.differs:
            with lease.held(at.table, f"repair feed {name}", at.spec.limits.lease_s, 0, f"{at.folder}leases/"):
                repair_rows(at, marker, summary)
                look_deep(at, marker, summary, rows, seed)
        elif summary.differs:
            summary.notes.append("--repair sends again what differs")
        if repair and marker.refused and not summary.differs:
            at.store.mark(replace(marker, refused=False), marker)
        return summary


def switch_back(spec: RunSpec, name: str) -> FeedSummary:
    """Show the generation before the live one again."""
    with opened(spec, name, None) as found:
        summary = begun(found)
        names = [one.name for one in found.generations if one.marker is not None and one.marker.indexed]
        live = found.live
        earlier = names[: names.index(live.name)] if live is not None and live.name in names else names
        if not earlier:
            raise InputError(f"feed {name}: there is no earlier generation to show; there are {names or 'none'}")
        with lease.held(found.table, f"feed {name}", found.spec.limits.lease_s, 0, f"{found.folder}leases/"):
            found.store.switch(earlier[-1])
        summary.action, summary.switched, summary.generation = "shows the generation before", True, earlier[-1]
        marker = next(one.marker for one in found.generations if one.name == earlier[-1])
        summary.version = marker.applied if marker else 0
        return summary


def drop_old(spec: RunSpec, name: str) -> FeedSummary:
    """Drop all generations that readers don't see."""
    with opened(spec, name, None) as found:
        summary = begun(found)
        if found.live is None:
            raise InputError(f"feed {name} {why_nothing(found)}; drop the others after that, so that something is left")
        with lease.held(found.table, f"feed {name}", found.spec.limits.lease_s, 0, f"{found.folder}leases/"):
            dropped = [one.name for one in generations_of(found.store, found.spec) if not one.live]
            for old in dropped:
                drop_generation(found, old)
        summary.action = f"dropped {', '.join(dropped) or 'nothing'}"
        summary.generations = tuple(told(one) for one in generations_of(found.store, found.spec))
        return summary
