"""Wanted rows against live ones, a bucket at a time: what stays, what is written, what goes, which ids stand twice.

Rows travel as fixed-width keys (hashes, never strings). Pure: where keys come from and who runs the buckets is not known
here. Keys of both kinds have the same size, so that they travel in one array; their `side` tells them apart. A live row is
looked at by the state of its source: `KEPT` (not read again), `GONE` (read again, or vanished) or `STALE` (can't be read
now: its rows stay); a number that no source has is `FREE`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

KEPT, GONE, STALE, FREE, UNCHANGED = 0, 1, 2, 3, 4
LIVE, LIVE_FIRST, WANTED = 0, 1, 2
"""The side of a key; a first row is a document's only one or its first chunk."""

Keys = np.ndarray[Any, np.dtype[np.void]]
SourceStates = np.ndarray[Any, np.dtype[np.int8]]
"""The state of each source of the live version, by number."""

LIVE_KEY = np.dtype(
    [
        ("id", np.uint64, 2),
        ("content", np.uint64, 2),
        ("row", np.int64),
        ("part", np.int32),
        ("index", np.int32),
        ("source", np.int64),
        ("side", np.int8),
    ]
)
"""A row of the table: its hashes, where it stands, and the number of its source."""

WANTED_KEY = np.dtype(
    [
        ("id", np.uint64, 2),
        ("content", np.uint64, 2),
        ("row", np.int64),
        ("unit", np.int32),
        ("span", np.int32),
        ("position", np.int64),
        ("side", np.int8),
    ]
)
"""A row that a unit wants: its hashes, the number of the unit in the run, the place of the span in the unit, and the
position of its document in the span."""

MATCH = np.dtype(
    [("part", np.int32), ("index", np.int32), ("source", np.int32), ("unit", np.int32), ("span", np.int32)]
)
"""A live row that is wanted as it is, and who wants it."""

UPSERT = np.dtype(
    [
        ("id", np.uint64, 2),
        ("content", np.uint64, 2),
        ("unit", np.int32),
        ("span", np.int32),
        ("position", np.int64),
        ("part", np.int32),
        ("index", np.int32),
        ("same_text", np.bool_),
    ]
)
"""A wanted row to write. `part` and `index` are those of the live row with its id, else -1."""

PLACE = np.dtype([("part", np.int32), ("index", np.int32)])
ROW = np.dtype([("unit", np.int32), ("span", np.int32), ("position", np.int64)])
LEFT = np.dtype([("source", np.int32), ("rows", np.int64), ("documents", np.int64)])


@dataclass(frozen=True, kw_only=True, eq=False)
class RowDifference:
    """The difference within some buckets."""

    matches: Keys
    """MATCH[n]: live rows that stay as they are."""
    upserts: Keys
    """UPSERT[n]: wanted rows that are to be written."""
    deletes: Keys
    """PLACE[n]: live rows that nobody wants any more."""
    left: Keys
    """LEFT[n]: how many live rows each unchanged source has, and how many of each stale one nobody else wants."""
    duplicates: Keys
    """ROW[n]: wanted rows whose id another wanted row has, or a row of a source that is not read again."""


def joined(keys: Iterable[Keys]) -> Keys:
    """LIVE_KEY[n] of arrays of both kinds; a wanted key in it is read by `view(WANTED_KEY)`."""
    return np.concatenate([np.zeros(0, LIVE_KEY), *(some.view(LIVE_KEY) for some in keys)])


def compare(keys: Keys, states: SourceStates, *, renewed: bool = False) -> RowDifference:
    """The difference within one bucket; `keys` holds every row of the bucket, of both kinds, in any order. Where all is
    `renewed`, nothing stays as it is."""
    keys = keys[np.lexsort((keys["side"], keys["id"][:, 1], keys["id"][:, 0]))]
    as_live, as_wanted = keys.view(LIVE_KEY), keys.view(WANTED_KEY)
    same = np.zeros(len(keys), bool)
    same[1:] = (keys["id"][1:] == keys["id"][:-1]).all(axis=1)
    group = np.cumsum(~same) - 1
    groups = int(group[-1]) + 1 if len(keys) else 0
    is_wanted = keys["side"] == WANTED
    state = np.full(len(keys), KEPT, np.int8)
    state[~is_wanted] = states[as_live["source"][~is_wanted]]
    is_unread = (state == KEPT) | (state == UNCHANGED)
    wanted_in = np.bincount(group[is_wanted], minlength=groups)
    kept_in = np.bincount(group[~is_wanted & is_unread], minlength=groups)
    partner_of = np.full(groups, -1)
    candidates = np.flatnonzero(~is_wanted & ~is_unread)
    partner_of[group[candidates]] = candidates

    twice = is_wanted & ((wanted_in + kept_in)[group] > 1)
    wanted = as_wanted[is_wanted & ~twice]
    partner = partner_of[group[is_wanted & ~twice]]
    known = partner >= 0
    live = as_live[partner] if len(keys) else as_live
    same_text = known & (wanted["content"] == live["content"]).all(axis=1)
    stays = same_text & (wanted["row"] == live["row"]) & (not renewed)

    unwanted = ~is_wanted & (wanted_in[group] == 0)
    deleted, double = as_live[unwanted & (state == GONE)], as_wanted[twice]
    return RowDifference(
        matches=_matches(wanted[stays], live[stays]),
        upserts=_upserts(wanted[~stays], live[~stays], known[~stays], same_text[~stays]),
        deletes=_columns(PLACE, part=deleted["part"], index=deleted["index"]),
        left=_left(as_live[(unwanted & (state == STALE)) | (~is_wanted & (state == UNCHANGED))]),
        duplicates=_columns(ROW, unit=double["unit"], span=double["span"], position=double["position"]),
    )


def _columns(kind: "np.dtype[np.void]", **columns: Any) -> Keys:
    out = np.zeros(len(next(iter(columns.values()))), kind)
    for name, values in columns.items():
        out[name] = values
    return out


def _matches(wanted: Keys, live: Keys) -> Keys:
    return _columns(
        MATCH, part=live["part"], index=live["index"], source=live["source"], unit=wanted["unit"], span=wanted["span"]
    )


def _upserts(wanted: Keys, live: Keys, known: Any, same_text: Any) -> Keys:
    return _columns(
        UPSERT,
        id=wanted["id"],
        content=wanted["content"],
        unit=wanted["unit"],
        span=wanted["span"],
        position=wanted["position"],
        part=np.where(known, live["part"], -1),
        index=np.where(known, live["index"], -1),
        same_text=same_text,
    )


def _left(live: Keys) -> Keys:
    sources, where = np.unique(live["source"], return_inverse=True)
    firsts = np.bincount(where[live["side"] == LIVE_FIRST], minlength=len(sources))
    return _columns(LEFT, source=sources, rows=np.bincount(where, minlength=len(sources)), documents=firsts)


def merge(found: Iterable[RowDifference]) -> RowDifference:
    """The difference of all buckets together."""
    items = list(found)

    def all_of(name: str, kind: "np.dtype[np.void]") -> Keys:
        return np.concatenate([np.zeros(0, kind), *(getattr(item, name) for item in items)])

    left = all_of("left", LEFT)
    sources, where = np.unique(left["source"], return_inverse=True)
    rows, documents = np.zeros(len(sources), np.int64), np.zeros(len(sources), np.int64)
    np.add.at(rows, where, left["rows"])
    np.add.at(documents, where, left["documents"])
    return RowDifference(
        matches=all_of("matches", MATCH),
        upserts=all_of("upserts", UPSERT),
        deletes=all_of("deletes", PLACE),
        left=_columns(LEFT, source=sources, rows=rows, documents=documents),
        duplicates=all_of("duplicates", ROW),
    )


def words(hashes: Any) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """The first halves of some hashes, sorted, each once: enough to leave out nearly all rows that have none of them."""
    return np.unique(hashes[:, 0])


def among(hashes: Any, sorted_words: np.ndarray[Any, np.dtype[np.uint64]]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which hashes may be among those that the words were taken of; no hash that is among them is missed."""
    if not len(sorted_words):
        return np.zeros(len(hashes), bool)
    at = np.minimum(np.searchsorted(sorted_words, hashes[:, 0]), len(sorted_words) - 1)
    return np.asarray(sorted_words[at] == hashes[:, 0])


# --- the numbers of the spans


def adopt(
    matches: Keys, spans: Sequence[int], states: SourceStates, unchanged: Mapping[tuple[int, int], int] | None = None
) -> np.ndarray[Any, np.dtype[np.int32]]:
    """A number for each span of the units, which have so many `spans` each. A span gets the number of the source most of
    whose matched rows it took over, if that is free, so that these need no other; else one that no live source has.
    `unchanged` maps the (unit, span) of those that keep their numbers to these.

    Decided on some of the matches it holds for all: rows that it is wrong for get another number each.
    """
    first = np.concatenate([[0], np.cumsum(spans)]).astype(np.int64)
    numbers = np.full(int(first[-1]), -1, np.int32)
    for (unit, span), number in (unchanged or {}).items():
        numbers[first[unit] + span] = number
    gone = matches[states[matches["source"]] == GONE]
    pairs = np.stack([first[gone["unit"]] + gone["span"], gone["source"]], axis=1)
    distinct, counts = np.unique(pairs, axis=0, return_counts=True)
    taken: set[int] = set()
    for span, number in distinct[np.argsort(-counts, kind="stable")].tolist():
        if numbers[span] < 0 and number not in taken:
            numbers[span] = number
            taken.add(number)
    left = np.flatnonzero(numbers < 0)
    free = np.concatenate([np.flatnonzero(states == FREE), np.arange(len(states), len(states) + len(left))])
    numbers[left] = free[: len(left)]
    return numbers


def moved(matches: Keys, spans: Sequence[int], numbers: np.ndarray[Any, np.dtype[np.int32]]) -> Keys:
    """MATCH[n]: the matches whose row has another number than its span; `source` is the number of the span now."""
    first = np.concatenate([[0], np.cumsum(spans)]).astype(np.int64)
    out = matches.copy()
    out["source"] = numbers[first[matches["unit"]] + matches["span"]]
    changed: Keys = out[out["source"] != matches["source"]]
    return changed
