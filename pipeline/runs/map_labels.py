"""Words that tell what lies where on a map: for each of its regions those that its texts have and others lack.

Points and texts come in, labels go out. This file knows no tables.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.table.words import COMMON, words

_REGIONS = 48
_ROUNDS = 12
_LEAST_ROWS = 8
_TEXTS_READ = 20_000
_CHARACTERS_READ = 400


@dataclass(frozen=True, kw_only=True)
class Label:
    text: str
    x: float
    y: float


def labels(points: NDArray[np.float32], texts: Sequence[str], seed: int = 0) -> list[Label]:
    """Return the labels of float32[n, 2], those of the largest regions first; there are none for few texts."""
    if not texts or len(texts) < 4 * _LEAST_ROWS:
        return []
    draw = np.random.default_rng(seed)
    chosen = np.sort(draw.choice(len(texts), min(len(texts), _TEXTS_READ), replace=False))
    some = points[chosen]
    count = max(2, min(_REGIONS, len(chosen) // (2 * _LEAST_ROWS)))
    region = _regions(some, count, draw)
    counts = [Counter[str]() for _ in range(count)]
    for number, row in zip(region.tolist(), chosen.tolist(), strict=True):
        counts[number].update({word for word in words(texts[row][:_CHARACTERS_READ]) if _is_telling(word)})
    everywhere = sum(counts, Counter[str]())
    sizes = np.bincount(region, minlength=count)
    found = []
    for number in np.argsort(-sizes, kind="stable").tolist():
        named = _telling(counts[number], everywhere, int(sizes[number]), len(chosen))
        if named and sizes[number] >= _LEAST_ROWS:
            x, y = np.median(some[region == number], axis=0).tolist()
            found.append(Label(text=", ".join(named), x=x, y=y))
    return found


def _regions(points: NDArray[np.float32], count: int, draw: np.random.Generator) -> NDArray[np.int64]:
    """Return int64[n], the region of each point, by k-means."""
    centres = points[draw.choice(len(points), count, replace=False)].astype(np.float64)
    own = np.zeros(len(points), np.int64)
    for _ in range(_ROUNDS):
        own = np.argmin(((points[:, None, :] - centres[None, :, :]) ** 2).sum(axis=2), axis=1)
        sizes = np.bincount(own, minlength=count)
        filled = sizes > 0
        for axis in (0, 1):
            sums = np.bincount(own, points[:, axis], count)
            centres[filled, axis] = sums[filled] / sizes[filled]
    return own


def _is_telling(word: str) -> bool:
    return word not in COMMON and not word.isdigit() and (len(word) > 2 or not word.isascii())


def _telling(here: Counter[str], everywhere: Counter[str], size: int, total: int) -> list[str]:
    """Return up to two words that many texts here have, and few elsewhere."""
    scored = [
        (count / size * math.log(count * total / (size * everywhere[word])), word)
        for word, count in here.items()
        if count >= max(3, 0.04 * size) and count * total > 1.5 * size * everywhere[word]
    ]
    named: list[str] = []
    for _, word in sorted(scored, key=lambda item: (-item[0], item[1])):
        # A plural beside its singular tells nothing more.
        if not any(word[:4] == other[:4] for other in named):
            named.append(word)
    return named[:2]
