"""Texts in, out those whose every character was proven: two tokenizers give the same ids wherever it stands.

Releases of a library know different versions of Unicode: what is a letter to one is punctuation, a mark or nothing at
all to the other. A character is proven when it is first met. This file knows no tokenizer.
"""

import sys
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.encoder.text_ranges import text_lengths

Agree = Callable[[list[str]], NDArray[np.bool_]]
"""It says of each text whether both tokenizers take it and give the same ids."""

_PLACES = "{c} a{c}b A{c}B 1{c}2 !{c}! {c}{c} a {c}b a{c} b  {c}  a\n{c}\n '{c}, "
_AMONG_MARKS = "a\u0323{c}b a\u0301{c}b a{c}\u0323b a{c}\u0301b 가{c}中{c} {c}"
_SURROUNDINGS = _PLACES + _AMONG_MARKS
"""The character begins and ends it, so that both edges of a text are among its places. Marks below and above are there
because a mark changes places with one of another class."""
_AT_ONCE = 1024
"""So many characters are proven in one call."""
_UNKNOWN, _PROVEN, _OTHER = range(3)


class Alphabet:
    """It grows with the texts that it is asked about."""

    def __init__(self, agree: Agree) -> None:
        self._agree = agree
        self._states = np.zeros(sys.maxunicode + 1, np.uint8)
        """[every character]: _UNKNOWN, _PROVEN or _OTHER."""
        self._prove(np.arange(128))
        self._ascii = bool((self._states[:128] == _PROVEN).all())

    def covers(self, texts: Sequence[str]) -> NDArray[np.bool_]:
        """[n]: all characters of the text are proven."""
        covered = np.ones(len(texts), np.bool_)
        rows = [row for row, text in enumerate(texts) if not (self._ascii and text.isascii())]
        if not rows:
            return covered
        some = [texts[row] for row in rows]
        codes = np.frombuffer("".join(some).encode("utf-32-le", "surrogatepass"), "<u4")
        states = self._states[codes]
        if not states.all():
            met = np.zeros(len(self._states), np.bool_)
            met[codes] = True
            self._prove(np.flatnonzero(met & (self._states == _UNKNOWN)))
            states = self._states[codes]
        if (other := states == _OTHER).any():
            before = np.concatenate([[0], np.cumsum(other)])
            stops = np.cumsum(text_lengths(some))
            covered[rows] = before[stops] == before[np.append(0, stops[:-1])]
        return covered

    def _prove(self, codes: NDArray[np.int64]) -> None:
        for start in range(0, len(codes), _AT_ONCE):
            some = codes[start : start + _AT_ONCE]
            characters = list(map(chr, some.tolist()))
            same = self._agree(characters)
            same &= self._agree([_SURROUNDINGS.replace("{c}", character) for character in characters])
            self._states[some] = np.where(same, _PROVEN, _OTHER)
