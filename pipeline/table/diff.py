"""Wanted rows against live ones, a bucket at a time: what stays, what is written, what goes, which ids stand twice.

Rows travel as fixed-width keys (hashes, never strings). Pure: where keys come from and who runs the buckets is not known
here. A live row is looked at by what becomes of its source: `KEPT` (not read again), `GONE` (read again, or vanished) or
`STALE` (can't be read now: its rows stay); the number of none is `FREE`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

KEPT, GONE, STALE, FREE = 0, 1, 2, 3
LIVE, LIVE_FIRST, WANTED = 0, 1, 2
"""The side of a key; a first row is a document's only one or its first chunk."""

Keys = np.ndarray[Any, np.dtype[np.void]]
Fates = np.ndarray[Any, np.dtype[np.int8]]
"""What becomes of each source of the live version, by number."""

KEY = np.dtype(
    [
        ("id", np.uint64, 2),
        ("content", np.uint64, 2),
        ("row", np.int64),
        ("group", np.int32),
        ("place", np.int32),
        ("more", np.int64),
        ("side", np.int8),
    ]
)
"""`group`, `place` and `more` are part, index and source of a live row, and unit, span and position of a wanted one."""

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
class Found:
    """The difference within some buckets."""

    matches: Keys
    """MATCH[n]"""
    upserts: Keys
    """UPSERT[n]"""
    deletes: Keys
    """PLACE[n]: live rows that nobody wants any more."""
    left: Keys
    """LEFT[n]: of each stale source the live rows that nobody else wants."""
    duplicates: Keys
    """ROW[n]: wanted rows whose id another wanted row or a row of a kept source has."""


def compare(keys: Keys, fates: Fates, *, renewed: bool = False) -> Found:
    """The difference within one bucket; `keys` holds every row of the bucket, in any order. Where all is `renewed`, nothing
    stays as it is."""
    keys = keys[np.lexsort((keys["side"], keys["id"][:, 1], keys["id"][:, 0]))]
    same = np.zeros(len(keys), bool)
    same[1:] = (keys["id"][1:] == keys["id"][:-1]).all(axis=1)
    group = np.cumsum(~same) - 1
    groups = int(group[-1]) + 1 if len(keys) else 0
    is_wanted = keys["side"] == WANTED
    fate = np.full(len(keys), KEPT, np.int8)
    fate[~is_wanted] = fates[keys["more"][~is_wanted]]
    wanted_in = np.bincount(group[is_wanted], minlength=groups)
    kept_in = np.bincount(group[~is_wanted & (fate == KEPT)], minlength=groups)
    partner_of = np.full(groups, -1)
    candidates = np.flatnonzero(~is_wanted & (fate != KEPT))
    partner_of[group[candidates]] = candidates

    twice = is_wanted & ((wanted_in + kept_in)[group] > 1)
    wanted = keys[is_wanted & ~twice]
    partner = partner_of[group[is_wanted & ~twice]]
    known = partner >= 0
    live = keys[partner] if len(keys) else keys
    same_text = known & (wanted["content"] == live["content"]).all(axis=1)
    stays = same_text & (wanted["row"] == live["row"]) & (not renewed)

    unwanted = ~is_wanted & (wanted_in[group] == 0)
    return Found(
        matches=_matches(wanted[stays], live[stays]),
        upserts=_upserts(wanted[~stays], live[~stays], known[~stays], same_text[~stays]),
        deletes=_columns(PLACE, part=keys["group"][unwanted & (fate == GONE)], index=keys["place"][unwanted & (fate == GONE)]),
        left=_left(keys[unwanted & (fate == STALE)]),
        duplicates=_columns(ROW, unit=keys["group"][twice], span=keys["place"][twice], position=keys["more"][twice]),
    )  # fmt: skip


def _columns(kind: "np.dtype[np.void]", **columns: Any) -> Keys:
    out = np.zeros(len(next(iter(columns.values()))), kind)
    for name, values in columns.items():
        out[name] = values
    return out


def _matches(wanted: Keys, live: Keys) -> Keys:
    return _columns(
        MATCH, part=live["group"], index=live["place"], source=live["more"], unit=wanted["group"], span=wanted["place"]
    )


def _upserts(wanted: Keys, live: Keys, known: Any, same_text: Any) -> Keys:
    return _columns(
        UPSERT,
        id=wanted["id"],
        content=wanted["content"],
        unit=wanted["group"],
        span=wanted["place"],
        position=wanted["more"],
        part=np.where(known, live["group"], -1),
        index=np.where(known, live["place"], -1),
        same_text=same_text,
    )


def _left(stale: Keys) -> Keys:
    sources, where = np.unique(stale["more"], return_inverse=True)
    firsts = np.bincount(where[stale["side"] == LIVE_FIRST], minlength=len(sources))
    return _columns(LEFT, source=sources, rows=np.bincount(where, minlength=len(sources)), documents=firsts)


def merge(found: Iterable[Found]) -> Found:
    """The difference of all buckets together."""
    items = list(found)

    def joined(name: str, kind: "np.dtype[np.void]") -> Keys:
        return np.concatenate([np.zeros(0, kind), *(getattr(item, name) for item in items)])

    left = joined("left", LEFT)
    sources, where = np.unique(left["source"], return_inverse=True)
    rows, documents = np.zeros(len(sources), np.int64), np.zeros(len(sources), np.int64)
    np.add.at(rows, where, left["rows"])
    np.add.at(documents, where, left["documents"])
    return Found(
        matches=joined("matches", MATCH),
        upserts=joined("upserts", UPSERT),
        deletes=joined("deletes", PLACE),
        left=_columns(LEFT, source=sources, rows=rows, documents=documents),
        duplicates=joined("duplicates", ROW),
    )


def words(hashes: Any) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """The first halves of some hashes, sorted, each once: enough to leave out nearly all rows that have none of them."""
    return np.unique(hashes[:, 0])


def among(hashes: Any, sorted_words: np.ndarray[Any, np.dtype[np.uint64]]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which hashes may be among those that `words` was taken of; none that is is missed."""
    if not len(sorted_words):
        return np.zeros(len(hashes), bool)
    at = np.minimum(np.searchsorted(sorted_words, hashes[:, 0]), len(sorted_words) - 1)
    return np.asarray(sorted_words[at] == hashes[:, 0])


# --- who owns what


def adopt(matches: Keys, spans: Sequence[int], fates: Fates) -> np.ndarray[Any, np.dtype[np.int32]]:
    """A number for each span of the units, which have so many `spans` each: that of the source most of whose matched rows
    it took over, so that these need no other, where it is free; else one that no live source has.

    Decided on some of the matches it holds for all: rows that it is wrong for get another number each.
    """
    first = np.concatenate([[0], np.cumsum(spans)]).astype(np.int64)
    numbers = np.full(int(first[-1]), -1, np.int32)
    gone = matches[fates[matches["source"]] == GONE]
    pairs = np.stack([first[gone["unit"]] + gone["span"], gone["source"]], axis=1)
    distinct, counts = np.unique(pairs, axis=0, return_counts=True)
    taken: set[int] = set()
    for span, number in distinct[np.argsort(-counts, kind="stable")].tolist():
        if numbers[span] < 0 and number not in taken:
            numbers[span] = number
            taken.add(number)
    left = np.flatnonzero(numbers < 0)
    free = np.concatenate([np.flatnonzero(fates == FREE), np.arange(len(fates), len(fates) + len(left))])
    numbers[left] = free[: len(left)]
    return numbers


def moved(matches: Keys, spans: Sequence[int], numbers: np.ndarray[Any, np.dtype[np.int32]]) -> Keys:
    """MATCH[n] of those whose row has another number than its span, which stands in `source` now."""
    first = np.concatenate([[0], np.cumsum(spans)]).astype(np.int64)
    out = matches.copy()
    out["source"] = numbers[first[matches["unit"]] + matches["span"]]
    changed: Keys = out[out["source"] != matches["source"]]
    return changed
