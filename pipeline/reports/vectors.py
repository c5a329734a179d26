"""What the vectors of a pool of rows look like: their norms, how alike they are, and which are nearly the same.

A pool comes in. Figures go out, with the numbers that plots are drawn from. All comparisons are by cosine.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import schema
from pipeline.reports.pool import Pool

PAIRS = 20_000
"""So many random pairs of rows are compared."""
ASKED = 1_000
"""The nearest other row is found of so many rows."""
NEAR = 0.95
"""Two rows with a cosine from here on, and texts that differ, are near-duplicates."""
SHOWN = 8
_ROWS_AT_A_TIME = 8_192


@dataclass(frozen=True, kw_only=True)
class NearPair:
    cosine: float
    first: str
    second: str


@dataclass(frozen=True, kw_only=True, eq=False)
class VectorFigures:
    """The arrays are for plots, and not part of `to_dict`."""

    least_norm: float
    mean_norm: float
    most_norm: float
    norms: NDArray[np.float64]
    random_pairs: NDArray[np.float64]
    """They are the cosines of pairs of different rows."""
    nearest: NDArray[np.float64]
    """They are the cosines of some rows with the row of another text that is nearest to each."""
    repeated_rows: int
    """So many rows of the pool have the same text as a row before them."""
    most_repeated: tuple[tuple[str, int], ...]
    """They are (an id, how many rows have its text), the largest groups first."""
    near: tuple[NearPair, ...]
    """They are the nearest pairs of rows with different texts."""

    @property
    def near_share(self) -> float:
        """The share of the asked rows that have a near-duplicate in the pool."""
        return float((self.nearest >= NEAR).mean()) if len(self.nearest) else 0.0

    def to_dict(self) -> dict[str, Any]:
        return {
            "norms": {"least": self.least_norm, "mean": self.mean_norm, "most": self.most_norm},
            "random_pairs": _spread(self.random_pairs),
            "nearest": _spread(self.nearest),
            "near_share": self.near_share,
            "repeated_rows": self.repeated_rows,
            "near": [[pair.cosine, pair.first, pair.second] for pair in self.near],
        }


def look(pool: Pool, seed: int = 0) -> VectorFigures:
    """Take the figures of a pool with at least one row."""
    texts = pool.rows.column(schema.CONTENT_HASH).to_pylist()
    ids = pool.rows.column(schema.ID)
    counts = Counter(texts)
    most = [(text, count) for text, count in counts.most_common(SHOWN) if count > 1]
    random = np.random.default_rng(seed)
    asked = np.sort(random.choice(len(texts), min(ASKED, len(texts)), replace=False))
    nearest, cosines = _nearest_of_other_text(pool.unit, asked, _numbered(texts))
    order = [place for place in np.argsort(-cosines, kind="stable").tolist() if cosines[place] >= NEAR]
    pairs: dict[tuple[int, int], float] = {}
    for place in order:
        one, other = sorted((int(asked[place]), int(nearest[place])))
        pairs.setdefault((one, other), float(cosines[place]))
        if len(pairs) == SHOWN:
            break
    return VectorFigures(
        least_norm=float(pool.norms.min()),
        mean_norm=float(pool.norms.mean(dtype=np.float64)),
        most_norm=float(pool.norms.max()),
        norms=pool.norms.astype(np.float64),
        random_pairs=_random_pairs(pool.unit, random),
        nearest=cosines[cosines > -np.inf].astype(np.float64),
        repeated_rows=len(texts) - len(counts),
        most_repeated=tuple((ids[texts.index(text)].as_py(), count) for text, count in most),
        near=tuple(
            NearPair(cosine=cosine, first=ids[one].as_py(), second=ids[other].as_py())
            for (one, other), cosine in pairs.items()
        ),
    )


def _random_pairs(unit: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float64]:
    if len(unit) < 2:
        return np.empty(0)
    first = random.integers(len(unit), size=PAIRS)
    second = (first + random.integers(1, len(unit), size=PAIRS)) % len(unit)
    cosines: NDArray[np.float64] = np.einsum("ij,ij->i", unit[first], unit[second], dtype=np.float64)
    return cosines


def _numbered(texts: list[bytes]) -> NDArray[np.int64]:
    """Number the rows by their text."""
    numbers: dict[bytes, int] = {}
    return np.array([numbers.setdefault(text, len(numbers)) for text in texts], np.int64)


def _nearest_of_other_text(
    unit: NDArray[np.float32], asked: NDArray[np.int64], texts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return (the row of another text that is nearest to each asked row, their cosine). The cosine is minus infinity where
    there is no other text."""
    best, where = np.full(len(asked), -np.inf, np.float32), np.zeros(len(asked), np.int64)
    for start in range(0, len(unit), _ROWS_AT_A_TIME):
        cosines = unit[asked] @ unit[start : start + _ROWS_AT_A_TIME].T
        cosines[texts[asked][:, None] == texts[None, start : start + _ROWS_AT_A_TIME]] = -np.inf
        place = cosines.argmax(axis=1)
        found = np.take_along_axis(cosines, place[:, None], 1)[:, 0]
        better = found > best
        best[better], where[better] = found[better], start + place[better]
    return where, np.minimum(best, 1.0)


def _spread(values: NDArray[np.float64]) -> dict[str, float] | None:
    if not len(values):
        return None
    low, middle, high = np.percentile(values, [5, 50, 95]).tolist()
    return {"p5": low, "median": middle, "p95": high}
