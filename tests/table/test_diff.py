"""The comparison of wanted and live rows, against one that a person can follow."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.table import diff
from pipeline.table.diff import (
    FREE,
    GONE,
    KEPT,
    LIVE,
    LIVE_FIRST,
    LIVE_KEY,
    MATCH,
    STALE,
    UNCHANGED,
    WANTED,
    WANTED_KEY,
)

rows = st.fixed_dictionaries({"id": st.integers(0, 8), "content": st.integers(0, 2), "row": st.integers(0, 1)})
live_rows = st.lists(
    st.tuples(rows, st.sampled_from([0, 1, 2, 3, 5]), st.booleans()), max_size=8, unique_by=lambda item: item[0]["id"]
)
STATES = np.array([KEPT, GONE, STALE, GONE, FREE, UNCHANGED], np.int8)


def to_keys(live, wanted) -> np.ndarray:
    of_live, of_wanted = np.zeros(len(live), LIVE_KEY), np.zeros(len(wanted), WANTED_KEY)
    for index, (row, source, first) in enumerate(live):
        of_live[index] = (
            (row["id"], 1),
            (row["content"], 2),
            row["row"],
            5,
            index,
            source,
            LIVE_FIRST if first else LIVE,
        )
    for index, (row, span) in enumerate(wanted):
        of_wanted[index] = ((row["id"], 1), (row["content"], 2), row["row"], 7, span, index, WANTED)
    return diff.joined([of_live, of_wanted])


@given(live=live_rows, wanted=st.lists(st.tuples(rows, st.integers(0, 2)), max_size=8), data=st.data())
def test_every_row_is_told_as_what_it_is(live, wanted, data):
    keys = to_keys(live, wanted)
    order = data.draw(st.permutations(range(len(keys))))
    buckets = data.draw(st.sampled_from([1, 3]))
    renewed = data.draw(st.booleans())
    keys = keys[list(order)]
    pieces = [keys[keys["id"][:, 0] % buckets == bucket] for bucket in range(buckets)]
    found = diff.merge(diff.compare(piece, STATES, renewed=renewed) for piece in pieces)

    times = Counter(row["id"] for row, _ in wanted)
    unread = (KEPT, UNCHANGED)
    kept = {row["id"] for row, source, _ in live if STATES[source] in unread}
    others = {
        row["id"]: (index, row, source) for index, (row, source, _) in enumerate(live) if STATES[source] not in unread
    }
    twice, matches, upserts = set(), set(), set()
    for position, (row, span) in enumerate(wanted):
        if times[row["id"]] > 1 or row["id"] in kept:
            twice.add((span, position))
            continue
        index, old, source = others.get(row["id"], (-1, None, -1))
        if old == row and not renewed:
            matches.add((index, source, span))
        else:
            upserts.add((position, span, index, old is not None and old["content"] == row["content"]))
    unwanted = [(index, source, first) for index, (row, source, first) in enumerate(live) if row["id"] not in times]
    assert {(r["span"], r["position"]) for r in found.duplicates} == twice
    assert {(r["index"], r["source"], r["span"]) for r in found.matches} == matches
    assert {(r["position"], r["span"], r["index"], r["same_text"]) for r in found.upserts} == upserts
    assert {r["index"] for r in found.deletes} == {index for index, source, _ in unwanted if STATES[source] == GONE}
    stays = [(source, first) for _, source, first in unwanted if STATES[source] == STALE]
    stays += [(source, first) for _, source, first in live if STATES[source] == UNCHANGED]
    left, firsts = Counter(source for source, _ in stays), Counter(source for source, first in stays if first)
    assert {int(r["source"]): int(r["rows"]) for r in found.left} == dict(left)
    assert {int(r["source"]): int(r["documents"]) for r in found.left} == {source: firsts[source] for source in left}


@given(
    pairs=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1), st.sampled_from([1, 2, 3])), max_size=30),
)
def test_numbers_are_each_of_one_span_and_moved_rows_are_those_of_another(pairs):
    spans = [2, 2, 2]
    matches = np.zeros(len(pairs), MATCH)
    for index, (unit, span, source) in enumerate(pairs):
        matches[index] = (0, index, source, unit, span)
    numbers = diff.adopt(matches, spans, STATES)
    assert len(set(numbers.tolist())) == len(numbers) == 6
    # Neither that of a kept source nor that of one that is stale, nor one that goes and was not taken over whole.
    assert not {0, 2} & set(numbers.tolist())
    moved = diff.moved(matches, spans, numbers)
    expected = {
        index: numbers[2 * unit + span]
        for index, (unit, span, source) in enumerate(pairs)
        if numbers[2 * unit + span] != source
    }
    assert dict(zip(moved["index"].tolist(), moved["source"].tolist(), strict=True)) == expected
    counted = Counter((2 * unit + span, source) for unit, span, source in pairs if source != 2)
    if counted:
        (span, source), most = counted.most_common(1)[0]
        if list(counted.values()).count(most) == 1:
            assert numbers[span] == source


@given(
    pairs=st.lists(st.tuples(st.integers(0, 2), st.sampled_from([1, 3])), max_size=10),
    unchanged=st.sets(st.integers(0, 2)),
)
def test_spans_that_did_not_change_keep_their_numbers_and_no_other_gets_them(pairs, unchanged):
    matches = np.zeros(len(pairs), MATCH)
    for index, (unit, source) in enumerate(pairs):
        matches[index] = (0, index, source, unit, 0)
    states = np.array([UNCHANGED, GONE, UNCHANGED, GONE, UNCHANGED, FREE], np.int8)
    kept = {(unit, 1): 2 * unit for unit in sorted(unchanged)}
    numbers = diff.adopt(matches, [2, 2, 2], states, kept)
    assert len(set(numbers.tolist())) == 6
    for unit in range(3):
        assert unit not in unchanged or numbers[2 * unit + 1] == 2 * unit
    assert not {0, 2, 4} & set(np.delete(numbers, [2 * unit + 1 for unit in sorted(unchanged)]).tolist())


@given(st.lists(st.integers(0, 50)), st.lists(st.integers(0, 50)))
def test_none_that_is_among_the_words_is_missed(some, others):
    hashes = np.array([(item, 9) for item in others], np.uint64).reshape(-1, 2)
    words = diff.words(np.array([(item, 9) for item in some], np.uint64).reshape(-1, 2))
    assert diff.among(hashes, words).tolist() == [item in some for item in others]
