"""Pairs of vectors whose cosine reaches a threshold, by exact comparison of all with all.

A few directions, in which the vectors differ most, are compared first, together with the length of what is left: no cosine
is higher than this tells. Only pairs that may reach the threshold are compared in full. This file knows no tables.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.table.neighbours import Vectors

_DIRECTIONS = 63
_ROWS, _OTHERS = 1_024, 8_192
"""So many vectors are compared with so many others at once: 32 MiB of cosines."""
_SLACK = np.float32(2e-5)
"""Cosines in float32 are wrong by less."""
_PAIRS_AT_ONCE = 65_536


@dataclass(frozen=True, eq=False)
class Found:
    first: NDArray[np.int64]
    second: NDArray[np.int64]
    """The rows of each pair; the first is the smaller number."""
    cosine: Vectors
    """They are float32[n], highest first."""
    total: int
    """So many pairs there are; the lists have the `most` best of them."""


def pairs(units: Vectors, threshold: float, most: int, groups: NDArray[np.int64] | None = None) -> Found:
    """Return the pairs of rows of float32[n, dim], all of length one, whose cosine is `threshold` or more.

    Two rows of one of the `groups`, int64[n], are no pair.
    """
    short = _shortened(units)
    kept = _Best(most)
    for start in range(0, len(units), _ROWS):
        for left in range(start, len(units), _OTHERS):
            bounds = short[start : start + _ROWS] @ short[left : left + _OTHERS].T
            one, other = np.nonzero(bounds >= np.float32(threshold) - _SLACK)
            one, other = one + start, other + left
            after = one < other if groups is None else (one < other) & (groups[one] != groups[other])
            kept.add(units, one[after], other[after], threshold)
    return kept.found()


def _shortened(units: Vectors) -> Vectors:
    """Return float32[n, few]: coordinates along the main directions, and the length of the rest.

    The product of two is at least the product of the whole vectors, since the rests' is at most that of their lengths.
    """
    if units.shape[1] <= _DIRECTIONS + 1 or not len(units):
        return units
    sample = units[:: max(1, len(units) // 16_384)]
    _, axes = np.linalg.eigh(sample.T @ sample)
    main = units @ axes[:, -_DIRECTIONS:].astype(np.float32)
    rest = np.sqrt(np.maximum(np.einsum("ij,ij->i", units, units) - np.einsum("ij,ij->i", main, main), 0))
    return np.concatenate([main, rest[:, None].astype(np.float32)], axis=1)


class _Best:
    """It counts pairs and keeps the best of them."""

    def __init__(self, most: int) -> None:
        self._most, self._total = most, 0
        self._first = self._second = np.zeros(0, np.int64)
        self._cosine = np.zeros(0, np.float32)

    def add(self, units: Vectors, one: NDArray[np.int64], other: NDArray[np.int64], threshold: float) -> None:
        for start in range(0, len(one), _PAIRS_AT_ONCE):
            a, b = one[start : start + _PAIRS_AT_ONCE], other[start : start + _PAIRS_AT_ONCE]
            cosine = np.einsum("ij,ij->i", units[a], units[b])
            high = cosine >= np.float32(threshold) - np.float32(1e-6)
            self._total += int(high.sum())
            self._first = np.concatenate([self._first, a[high]])
            self._second = np.concatenate([self._second, b[high]])
            self._cosine = np.concatenate([self._cosine, cosine[high]])
            if len(self._first) > 4 * self._most + _PAIRS_AT_ONCE:
                self._cut()

    def _cut(self) -> None:
        order = np.lexsort((self._second, self._first, -self._cosine))[: self._most]
        self._first, self._second, self._cosine = self._first[order], self._second[order], self._cosine[order]

    def found(self) -> Found:
        self._cut()
        return Found(self._first, self._second, np.minimum(self._cosine, np.float32(1)), self._total)
