"""What has to happen to a store follows from the markers in it, the table's versions and the shape that is asked for.

Nothing is written here. Each decision is one of the plans below, or an InputError that says which flag allows what.
"""

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import InputError
from pipeline.feed_spec import FeedSpec
from pipeline.feeds.store import Generation, Marker, Shape, Store, number_of
from pipeline.storage import Folder
from pipeline.table import layout, rows, snapshot
from pipeline.table.net_changes import ListsMissing, count_changes
from pipeline.table.snapshot import Snapshot

FEW_ROWS = 10_000
"""So many changed rows are sent as changes, whatever share of the table they are."""


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """These are the flags of the command."""

    new_generation: bool = False
    no_switch: bool = False
    switch: bool = False
    rebuild: bool = False
    adopt: bool = False
    allow_deletes: bool = False
    to: int | None = None


@dataclass(frozen=True, kw_only=True)
class Nothing:
    """The store holds the version."""

    marker: Marker


@dataclass(frozen=True, kw_only=True)
class Load:
    """A generation is loaded whole, then shown. One that was begun goes on."""

    reason: str
    marker: Marker
    """It says what the generation will be. A generation that was begun has it already."""
    begun: bool = False
    abandoned: tuple[str, ...] = ()
    """These generations were begun for the same purpose and lead nowhere any more. They are dropped."""
    replaces: Marker | None = None
    """It takes the place of the live generation, which has this marker, because too much changed in it."""


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A generation is loaded, and has to be indexed, verified or shown yet."""

    marker: Marker


@dataclass(frozen=True, kw_only=True)
class Sync:
    """The live generation is brought to the version by its changes, or by comparing all keys."""

    marker: Marker
    compare: bool = False
    """All keys are compared, because changes alone don't tell."""
    reason: str = ""
    """It says why keys are compared."""
    changes: int = 0
    """The lists hold so many changes, before any is left out for a later one."""


@dataclass(frozen=True, kw_only=True)
class Adopt:
    """A generation without a marker is taken over after its keys were compared."""

    generation: str


Plan = Nothing | Load | Ready | Sync | Adopt


@dataclass(frozen=True, kw_only=True)
class Feed:
    """It is a feed as it is found: what it should hold, and what its store has."""

    name: str
    spec: FeedSpec
    table: Folder
    version: Snapshot
    """The store should hold this version."""
    version_of: str
    shape: Shape
    store: Store = field(repr=False)
    generations: Sequence[Generation]

    @property
    def folder(self) -> str:
        """The feed keeps its notes in this folder below the table."""
        return f"meta/feeds/{self.name}/"

    @property
    def live(self) -> Generation | None:
        return next((found for found in self.generations if found.live), None)


def version_of(table: Folder, number: int) -> str:
    """Return what identifies a version beyond its number. A table that was built anew, or restored, has other ones."""
    content = table.read(layout.snapshot(number))
    return "" if content is None else hashlib.sha256(content).hexdigest()[:16]


def plan(feed: Feed, wishes: Wishes) -> Plan:
    """Decide. Raises InputError where somebody has to decide first."""
    if wishes.adopt:
        return _adopt(feed)
    if wishes.rebuild:
        return _load(feed, "it is rebuilt", wishes, "rebuild")
    live = feed.live
    _check_marked(feed)
    if live is None:
        return _first(feed, wishes)
    assert live.marker is not None
    check_table(feed, live.marker)
    if wishes.switch:
        return _switch(feed, live.marker)
    if live.marker.shape != feed.shape.in_words():
        return _another_shape(feed, live.marker, wishes)
    if wishes.new_generation:
        return _load(feed, "a new generation was asked for", wishes, "new generation")
    return _sync(feed, live.marker, wishes)


def _sync(feed: Feed, marker: Marker, wishes: Wishes) -> Plan:
    found = sync_of(feed, marker)
    if isinstance(found, Nothing) or found.compare:
        return found
    changes = found.changes
    limit = feed.spec.limits.max_changed_rows
    share = limit * feed.version.counts.rows if limit < 1 else limit
    if changes > max(FEW_ROWS, share) and feed.store.guarantees.atomic_switch:
        reason = f"{changes:,} rows changed, more than feeds.limits.max_changed_rows ({limit:g})"
        return _load(feed, reason, wishes, "", replaces=marker)
    return found


def sync_of(feed: Feed, marker: Marker) -> Nothing | Sync:
    """Say how a generation gets to the version that is wanted. Raises InputError where that lies behind it."""
    if marker.refused:
        return Sync(marker=marker, compare=True, reason="the last look found differences")
    if marker.applied == feed.version.version and marker.target is None:
        return Nothing(marker=marker)
    if marker.target is not None and version_of(feed.table, marker.target) != marker.target_of:
        return Sync(marker=marker, compare=True, reason="a sync had begun towards a version that the table has no more")
    if max(marker.applied, marker.target or 0) > feed.version.version:
        raise InputError(
            f"the store holds version {max(marker.applied, marker.target or 0)}, and {feed.version.version} is asked for: a "
            "feed goes forward only; leave --to out, or roll the table back, which makes a newer version"
        )
    try:
        changes = count_changes(feed.table, marker.applied, feed.version.version)
    except ListsMissing:
        return Sync(marker=marker, compare=True, reason="the lists of changes are not complete")
    return Sync(marker=marker, changes=changes)


def _first(feed: Feed, wishes: Wishes) -> Plan:
    ready = [one.marker for one in feed.generations if one.marker and one.marker.shape == feed.shape.in_words()]
    if ready and ready[-1].applied:
        check_table(feed, ready[-1])
        if _usable(feed, ready[-1]):
            return Ready(marker=ready[-1])
    return _load(feed, "the store holds nothing yet", wishes, "")


def _switch(feed: Feed, live: Marker) -> Ready | Load:
    """Find the generation that --switch shows: the newest one of the wanted shape that readers don't see."""
    wanted = feed.shape.in_words()
    for other in reversed(feed.generations):
        marker = other.marker
        if other.live or marker is None or marker.refused or marker.shape != wanted or not _usable(feed, marker):
            continue
        if marker.applied:
            return Ready(marker=marker)
        return Load(reason="a load was begun", marker=marker, begun=True)
    raise InputError(f"there is no generation to show in place of {live.generation}: --new-generation loads one")


def _another_shape(feed: Feed, live: Marker, wishes: Wishes) -> Plan:
    wanted = feed.shape.in_words()
    told = "; ".join(differences(live.shape, wanted))
    for other in reversed(feed.generations):
        marker = other.marker
        if other.live or marker is None or marker.refused or marker.shape != wanted:
            continue
        if not marker.applied:
            if _usable(feed, marker):
                return Load(reason="a load was begun", marker=marker, begun=True)
            continue
        if not wishes.new_generation:
            raise InputError(
                f"the live generation {live.generation} differs from what is asked for ({told}), and {other.name} is as asked "
                "for but not shown: --switch shows it"
            )
        if not marker.shown and _usable(feed, marker):
            return Ready(marker=marker)
    if not wishes.new_generation:
        raise InputError(
            f"the live generation {live.generation} differs from what is asked for ({told}): --new-generation loads all rows "
            "beside it, verifies them and shows them in its place"
        )
    return _load(feed, told, wishes, "new generation")


def _load(feed: Feed, reason: str, wishes: Wishes, asked: str, replaces: Marker | None = None) -> Load | Ready:
    """Go on with a generation that was begun by the same command and that nobody has seen yet, else begin one. Of a first
    load any one that was begun will do."""
    others = [one.marker for one in feed.generations if one.marker is not None and not one.live]
    same = [marker for marker in others if marker.asked == asked or (not asked and feed.live is None)]
    usable = [one for one in same if not one.refused and not one.shown and _usable(feed, one)]
    newer = number_of(feed.live.name) if feed.live else 0
    going_on = next((one for one in reversed(usable) if number_of(one.generation) > newer), None)
    lost = [one for one in same if not one.shown and not one.hidden and one != going_on]
    abandoned = tuple(one.generation for one in lost if one.refused or not one.indexed)
    if going_on is not None and going_on.applied:
        return Ready(marker=going_on)
    if going_on is not None:
        return Load(reason=reason, marker=going_on, begun=True, abandoned=abandoned, replaces=replaces)
    number = 1 + max((number_of(one.name) for one in feed.generations), default=0)
    name = feed.spec.name.rpartition(".")[2]
    marker = Marker(
        generation=f"{name}__g{number}_{secrets.token_hex(4)}",
        shape=feed.shape.in_words(),
        applied=0,
        applied_of="",
        target=feed.version.version,
        target_of=feed.version_of,
        unit_bytes=feed.spec.limits.bytes_in_flight,
        asked=asked,
        hidden=wishes.no_switch,
    )
    return Load(reason=reason, marker=marker, abandoned=abandoned, replaces=replaces)


def _usable(feed: Feed, marker: Marker) -> bool:
    """Say whether a generation leads to what is asked for. A load ends at its own version, and changes follow; so that
    version must be readable until the generation was proven."""
    number, known = (marker.applied, marker.applied_of) if marker.applied else (marker.target or 0, marker.target_of)
    return (
        marker.shape == feed.shape.in_words()
        and 0 < number <= feed.version.version
        and version_of(feed.table, number) == known
        and ((marker.indexed and not marker.refused) or rows.is_readable(feed.table, snapshot.read(feed.table, number)))
    )


def _adopt(feed: Feed) -> Adopt:
    adopting = [one for one in feed.generations if one.marker is not None and one.marker.asked == "adopt"]
    unmarked = adopting or [one for one in feed.generations if one.marker is None]
    live = [one for one in unmarked if one.live]
    if len(live or unmarked) != 1:
        raise InputError(
            f"--adopt takes over a generation without a marker, and the store has {len(unmarked)} of them: "
            f"{', '.join(one.name for one in unmarked) or 'none'}"
        )
    return Adopt(generation=(live or unmarked)[0].name)


def _check_marked(feed: Feed) -> None:
    live = feed.live
    lost = [one.name for one in feed.generations if one.marker is None and (one.live or live is None)]
    if lost:
        raise InputError(
            f"{lost[-1]} stands in the store without a marker that says what it holds: --adopt compares it with the table and "
            "takes it over, --rebuild loads all rows beside it"
        )


def check_table(feed: Feed, marker: Marker) -> None:
    """Raise InputError unless the marker tells of a version that this table has."""
    newest = max(snapshot.versions(feed.table), default=0)
    if marker.applied > newest:
        raise InputError(
            f"the store holds version {marker.applied} of the table, which has only {newest}: the table was restored or built "
            "anew, or the store belongs to another one; --rebuild loads all rows of this table beside it"
        )
    if marker.applied and version_of(feed.table, marker.applied) != marker.applied_of:
        raise InputError(
            f"the store holds a version {marker.applied} that is not this table's: the table was built anew, or the store "
            "belongs to another one; --rebuild loads all rows of this table beside it"
        )


def differences(live: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Say what differs between two shapes in words."""
    return [
        "another model or other settings of it" if name == "fingerprint" else f"{name} {live.get(name)} -> {value}"
        for name, value in wanted.items()
        if live.get(name) != value
    ]
