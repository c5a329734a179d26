"""Each vector's nearest others by cosine: exactly among few vectors, by clusters among many.

Vectors come in, the row numbers of each one's neighbours go out. This file knows no tables and no files.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
Numbers = NDArray[np.int32]

EXACT_ROWS = 16_384
"""Up to so many vectors each one is compared with all others."""
_CANDIDATES = 6_000
"""Among more, each vector is compared with about so many, those of the clusters around its own."""
_TRAINING_ROWS = 16_384
_ROUNDS = 6
_BLOCK_NUMBERS = 2**22


def unit(vectors: Vectors) -> Vectors:
    """Return float32[n, dim], each vector divided by its length; a vector of zeros stays as it is."""
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))[:, None]
    return vectors / np.maximum(lengths, np.float32(1e-12))


def nearest_others(units: Vectors, count: int, seed: int = 0) -> Numbers:
    """Return int32[n, min(count, n - 1)], the nearest rows of each row of float32[n, dim], nearest first, itself left out.

    The vectors have length one. Among more than EXACT_ROWS some neighbours are missed, because they lie in clusters that are
    not looked into.
    """
    wanted = min(count, len(units) - 1)
    if wanted < 1:
        return np.zeros((len(units), 0), np.int32)
    if len(units) <= EXACT_ROWS:
        everything = np.arange(len(units), dtype=np.int32)
        return _among(units, everything, everything, wanted)
    return _by_clusters(units, wanted, np.random.default_rng(seed))


def nearest_of(units: Vectors, others: Vectors, count: int) -> Numbers:
    """Return int32[n, count], for each vector of float32[n, dim] the nearest of `others`, float32[m, dim], in no order."""
    found = np.empty((len(units), count), np.int32)
    step = max(1, _BLOCK_NUMBERS // len(others))
    for start in range(0, len(units), step):
        scores = units[start : start + step] @ others.T
        found[start : start + step] = _top(scores, count)
    return found


def _by_clusters(units: Vectors, wanted: int, draw: np.random.Generator) -> Numbers:
    centres = _centres(units, max(2, round(len(units) ** 0.5)), draw)
    own = nearest_of(units, centres, 1)[:, 0]
    order = np.argsort(own, kind="stable").astype(np.int32)
    stops = np.cumsum(np.bincount(own, minlength=len(centres)))
    members = np.split(order, stops[:-1])
    found = np.empty((len(units), wanted), np.int32)
    for number, rows in enumerate(members):
        if len(rows):
            candidates = _around(centres, number, members, max(_CANDIDATES, wanted + 1))
            found[rows] = _among(units, rows, candidates, wanted)
    return found


def _centres(units: Vectors, count: int, draw: np.random.Generator) -> Vectors:
    """Find the centres of clusters by spherical k-means on a sample."""
    sample = units[draw.choice(len(units), min(len(units), _TRAINING_ROWS), replace=False)]
    centres = sample[:count].copy()
    for _ in range(_ROUNDS):
        own = nearest_of(sample, centres, 1)[:, 0]
        order = np.argsort(own, kind="stable")
        sizes = np.bincount(own, minlength=count)
        filled = np.flatnonzero(sizes)
        starts = (np.cumsum(sizes) - sizes)[filled]
        centres[filled] = unit(np.add.reduceat(sample[order], starts, axis=0))
    return centres


def _around(centres: Vectors, number: int, members: list[Numbers], least: int) -> Numbers:
    """Return the rows of the clusters nearest to a centre, its own first, until they are `least` or all."""
    nearest = np.argsort(-(centres @ centres[number]), kind="stable")
    nearest = np.concatenate([[number], nearest[nearest != number]])
    enough = np.searchsorted(np.cumsum([len(members[each]) for each in nearest]), least) + 1
    return np.concatenate([members[each] for each in nearest[:enough]])


def _among(units: Vectors, rows: Numbers, candidates: Numbers, wanted: int) -> Numbers:
    """Return int32[len(rows), wanted], the nearest of the candidates to each of the rows, nearest first."""
    others = units[candidates]
    found = np.empty((len(rows), wanted), np.int32)
    step = max(1, _BLOCK_NUMBERS // len(candidates))
    for start in range(0, len(rows), step):
        some = rows[start : start + step]
        scores = units[some] @ others.T
        scores[candidates[None, :] == some[:, None]] = -np.inf
        top = _top(scores, wanted)
        order = np.argsort(-np.take_along_axis(scores, top, axis=1), axis=1, kind="stable")
        found[start : start + step] = candidates[np.take_along_axis(top, order, axis=1)]
    return found


def _top(scores: NDArray[Any], count: int) -> NDArray[np.int64]:
    if count >= scores.shape[1]:
        return np.tile(np.arange(scores.shape[1]), (len(scores), 1))
    if count == 1:
        return np.argmax(scores, axis=1)[:, None]
    return np.argpartition(scores, scores.shape[1] - count, axis=1)[:, -count:]
