"""Texts are let through by their characters, each asked about once; ranges and rows keep their order."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.encoder.alphabet import Alphabet
from pipeline.encoder.text_ranges import text_lengths, text_ranges
from pipeline.encoder.token_rows import TokenRows

UNCOMMON = "é한🙂\u2e43\U00032d6e\ud800"
"""Characters that no other one is proven among."""
LETTERS = "ab \n\x00中" + UNCOMMON


def alphabet(others: str, asked: list[str]) -> Alphabet:
    def agree(texts: list[str]) -> np.ndarray:
        asked.extend(texts)
        return np.array([not set(text) & set(others) for text in texts], np.bool_)

    return Alphabet(agree)


@given(
    batches=st.lists(st.lists(st.text(LETTERS, max_size=6), max_size=8), max_size=4),
    others=st.text(UNCOMMON, max_size=3),
)
def test_a_text_is_covered_if_no_character_of_it_is_another_one(batches, others):
    asked = []
    known = alphabet(others, asked)
    for texts in batches:
        assert known.covers(texts).tolist() == [not set(text) & set(others) for text in texts]
    single = [text for text in asked if len(text) == 1]
    assert len(single) == len(set(single)), "each character is asked about once"
    assert set("".join(itertools.chain.from_iterable(batches))) <= set(single)


def test_a_character_is_asked_about_alone_and_among_others():
    asked = []
    alphabet("", asked).covers(["é"])
    alone, among = asked[-2:]
    assert alone == "é"
    for place in ("aéb", "1é2", " é ", "éé", "é\u0301", "\u0323é", "!é!"):
        assert place in among
    assert among[0] == among[-1] == "é"


@given(lengths=st.lists(st.integers(0, 30)), chars=st.integers(1, 12))
def test_ranges_hold_every_text_and_are_as_long_as_asked(lengths, chars):
    texts = ["x" * length for length in lengths]
    ranges = text_ranges(text_lengths(texts), chars)
    assert [row for start, stop in ranges for row in range(start, stop)] == list(range(len(texts)))
    for start, stop in ranges:
        assert stop == start + 1 or sum(lengths[start:stop]) < 2 * chars
    for (start, _), (_, stop) in itertools.pairwise(ranges):
        assert sum(lengths[start:stop]) >= min(chars, max(lengths[start:stop])), "two neighbours would fit into one"


ROWS = st.lists(st.lists(st.integers(0, 9), max_size=4), max_size=6)


@given(first=ROWS, second=ROWS, data=st.data())
def test_rows_are_placed_where_they_belong(first, second, data):
    length = data.draw(st.integers(max(len(first), len(second)), 12))
    expected, failed, pieces = [[]] * length, {0: "no text"} if length else {}, []
    for number, rows in enumerate((first, second)):
        places = data.draw(st.permutations(range(length)))[: len(rows)]
        piece = TokenRows.of([np.array(row, np.int32) for row in rows])
        piece.truncated[:] = number
        if rows and not rows[0]:
            piece.failed[0] = f"piece {number}"
        pieces.append((places, piece))
        for row, (place, ids) in enumerate(zip(places, rows, strict=True)):
            expected[place] = ids
            failed.pop(place, None)
            if row in piece.failed:
                failed[place] = piece.failed[row]
    placed = TokenRows.placed(pieces, length, {0: "no text"} if length else None)
    assert [placed.ids[start:stop].tolist() for start, stop in itertools.pairwise(placed.offsets)] == expected
    assert placed.failed == failed
    second_places = set(pieces[1][0])
    assert [bool(flag) for flag in placed.truncated] == [place in second_places for place in range(length)]
