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
_CLUSTERS_LOOKED_INTO = 10
"""Among more, each vector is compared with those of so many clusters, whose centres are nearest to it."""
_TRAINING_ROWS = 16_384
_ROUNDS = 6
_BLOCK_NUMBERS = 2**22


def unit(vectors: Vectors) -> Vectors:
    """Return float32[n, dim], each vector divided by its length; a vector of zeros stays as it is."""
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))[:, None]
    return np.asarray(vectors / np.maximum(lengths, np.float32(1e-12)), np.float32)


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
        return _among(units, everything, everything, wanted)[0]
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
    """Return the nearest among the vectors of some clusters around each vector."""
    centres = _centres(units, max(2, round(len(units) ** 0.5)), draw)
    looked = min(_CLUSTERS_LOOKED_INTO, len(centres))
    probes = nearest_of(units, centres, looked)
    own = np.argmax(_pairwise(units, centres, probes), axis=1)
    members = _grouped(probes[np.arange(len(units)), own], len(centres))
    askers = _grouped(probes.ravel(), len(centres))
    scores = np.full((len(units), looked, wanted), -np.inf, np.float32)
    found = np.zeros((len(units), looked, wanted), np.int32)
    for rows, asking in zip(members, askers, strict=True):
        if len(rows):
            best = _among(units, asking // looked, rows, min(wanted, len(rows)))
            scores[asking // looked, asking % looked, : best[0].shape[1]] = best[1]
            found[asking // looked, asking % looked, : best[0].shape[1]] = best[0]
    flat, numbers = scores.reshape(len(units), -1), found.reshape(len(units), -1)
    top = _top(flat, wanted)
    order = np.argsort(-np.take_along_axis(flat, top, axis=1), axis=1, kind="stable")
    return np.take_along_axis(numbers, np.take_along_axis(top, order, axis=1), axis=1)


def _grouped(numbers: Numbers, groups: int) -> list[Numbers]:
    """Return for each number below `groups` where it stands, in ascending order."""
    order = np.argsort(numbers, kind="stable").astype(np.int32)
    return np.split(order, np.cumsum(np.bincount(numbers, minlength=groups))[:-1])


def _pairwise(units: Vectors, centres: Vectors, probes: Numbers) -> Vectors:
    """Return float32[n, probes], the similarity of each vector to the centres that it probes."""
    scores = np.empty(probes.shape, np.float32)
    for place in range(probes.shape[1]):
        scores[:, place] = np.einsum("ij,ij->i", units, centres[probes[:, place]])
    return scores


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


def _among(units: Vectors, rows: Numbers, candidates: Numbers, wanted: int) -> tuple[Numbers, Vectors]:
    """Return int32[len(rows), wanted], the nearest of the candidates to each of the rows, nearest first, and their
    similarities. A row itself comes last, as minus infinity."""
    others = units[candidates]
    found = np.empty((len(rows), wanted), np.int32)
    similar = np.empty((len(rows), wanted), np.float32)
    step = max(1, _BLOCK_NUMBERS // len(candidates))
    for start in range(0, len(rows), step):
        some = rows[start : start + step]
        scores = units[some] @ others.T
        scores[candidates[None, :] == some[:, None]] = -np.inf
        top = _top(scores, wanted)
        best = np.take_along_axis(scores, top, axis=1)
        order = np.argsort(-best, axis=1, kind="stable")
        found[start : start + step] = candidates[np.take_along_axis(top, order, axis=1)]
        similar[start : start + step] = np.take_along_axis(best, order, axis=1)
    return found, similar


def _top(scores: NDArray[Any], count: int) -> NDArray[np.int64]:
    if count >= scores.shape[1]:
        return np.tile(np.arange(scores.shape[1]), (len(scores), 1))
    if count == 1:
        return np.asarray(np.argmax(scores, axis=1)[:, None], np.int64)
    best: NDArray[np.int64] = np.argpartition(scores, scores.shape[1] - count, axis=1)[:, -count:]
    return best
