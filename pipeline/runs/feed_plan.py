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
from pipeline.feeds.store import Generation, Marker, Shape, Store
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
    """These generations were begun for something else, and are dropped."""


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A generation is loaded, and has to be indexed, verified or shown yet."""

    marker: Marker


@dataclass(frozen=True, kw_only=True)
class Sync:
    """The live generation is brought to the version by its changes, or by comparing all keys."""

    marker: Marker
    compare: bool = False
    """The lists of changes are not complete, so keys are compared."""


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
        return _load(feed, "it is rebuilt")
    live = feed.live
    _check_marked(feed)
    if live is None:
        return _first(feed)
    assert live.marker is not None
    _check_table(feed, live.marker)
    if live.marker.shape != feed.shape.in_words():
        return _another_shape(feed, live.marker, wishes)
    if wishes.new_generation:
        return _load(feed, "a new generation was asked for")
    return _sync(feed, live.marker)


def _sync(feed: Feed, marker: Marker) -> Plan:
    if marker.applied == feed.version.version and marker.target is None:
        return Nothing(marker=marker)
    if marker.target is not None and version_of(feed.table, marker.target) != marker.target_of:
        # A sync had begun towards a version that the table lost since: rows may be of it.
        return Sync(marker=marker, compare=True)
    if max(marker.applied, marker.target or 0) > feed.version.version:
        raise InputError(
            f"the store holds version {max(marker.applied, marker.target or 0)}, and --to asks for {feed.version.version}: a "
            "feed goes forward only; roll the table back instead, which makes a newer version"
        )
    try:
        changes = count_changes(feed.table, marker.applied, feed.version.version)
    except ListsMissing:
        return Sync(marker=marker, compare=True)
    limit = feed.spec.limits.max_changed_rows
    share = limit * feed.version.counts.rows if limit < 1 else limit
    if changes > max(FEW_ROWS, share) and feed.store.guarantees.atomic_switch:
        return _load(feed, f"{changes:,} rows changed, more than feeds.limits.max_changed_rows ({limit:g})")
    return Sync(marker=marker)


def _first(feed: Feed) -> Plan:
    ready = [one.marker for one in feed.generations if one.marker and one.marker.shape == feed.shape.in_words()]
    if ready and ready[-1].applied:
        _check_table(feed, ready[-1])
        if _usable(feed, ready[-1]):
            return Ready(marker=ready[-1])
    return _load(feed, "the store holds nothing yet")


def _another_shape(feed: Feed, live: Marker, wishes: Wishes) -> Plan:
    wanted = feed.shape.in_words()
    told = "; ".join(differences(live.shape, wanted))
    for other in reversed(feed.generations):
        if other.live or other.marker is None or other.marker.refused or other.marker.shape != wanted:
            continue
        if other.marker.applied and not (wishes.switch or wishes.new_generation):
            raise InputError(
                f"the live generation {live.generation} differs from what is asked for ({told}), and {other.name} is as asked "
                "for but not shown: --switch shows it"
            )
        if other.marker.applied and _usable(feed, other.marker):
            return Ready(marker=other.marker)
        return _load(feed, "a load was begun")
    if not (wishes.new_generation or wishes.switch):
        raise InputError(
            f"the live generation {live.generation} differs from what is asked for ({told}): --new-generation loads all rows "
            "beside it, verifies them and shows them in its place"
        )
    return _load(feed, told)


def _load(feed: Feed, reason: str) -> Load | Ready:
    """Go on with a load that was begun for this shape and a version that can be read, else begin one."""
    newer = number_of(feed.live.name) if feed.live else 0
    for one in reversed(feed.generations):
        marker = one.marker
        if marker and marker.applied and not marker.refused and number_of(one.name) > newer and _usable(feed, marker):
            return Ready(marker=marker)
    others = [one for one in feed.generations if one.marker is not None and not one.live]
    begun = [one for one in others if one.marker and (one.marker.refused or not one.marker.indexed)]
    loading = [one.marker for one in begun if one.marker and not one.marker.refused and not one.marker.applied]
    usable = [marker for marker in loading if _usable(feed, marker)]
    abandoned = tuple(one.name for one in begun if not usable or one.name != usable[-1].generation)
    if usable:
        return Load(reason=reason, marker=usable[-1], begun=True, abandoned=abandoned)
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
    )
    return Load(reason=reason, marker=marker, abandoned=abandoned)


def _usable(feed: Feed, marker: Marker) -> bool:
    """Say whether a generation leads to what is asked for. A load ends at its own version, and changes follow; so that
    version must be readable until the generation was proven."""
    number, known = (marker.applied, marker.applied_of) if marker.applied else (marker.target or 0, marker.target_of)
    return (
        marker.shape == feed.shape.in_words()
        and 0 < number <= feed.version.version
        and version_of(feed.table, number) == known
        and (marker.indexed or rows.is_readable(feed.table, snapshot.read(feed.table, number)))
    )


def number_of(generation: str) -> int:
    digits = generation.rpartition("__g")[2].partition("_")[0]
    return int(digits) if digits.isdigit() else 0


def _adopt(feed: Feed) -> Adopt:
    unmarked = [one for one in feed.generations if one.marker is None]
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


def _check_table(feed: Feed, marker: Marker) -> None:
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
    words = {"fingerprint": "the model"}
    found = []
    for name, value in wanted.items():
        if live.get(name) != value:
            told = "" if name == "fingerprint" else f" {live.get(name)} -> {value}"
            found.append(f"{words.get(name, name)}{told}" if told else "another model or other settings of it")
    return found
