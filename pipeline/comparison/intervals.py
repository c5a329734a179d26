"""Means with intervals, by a seeded bootstrap over queries."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2_000
_AT_A_TIME = 100
SHARE = 0.95
"""An interval holds this share of the means of resampled queries."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    mean: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """The interval is all on one side of zero."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def interval(values: Sequence[float], seed: int) -> Interval:
    """Return the mean of at least one value, with its interval. The same seed resamples the same places, so that differences
    of paired values can be given, too."""
    found = np.asarray(values, np.float64)
    random = np.random.default_rng(seed)
    blocks = (random.integers(len(found), size=(_AT_A_TIME, len(found))) for _ in range(RESAMPLES // _AT_A_TIME))
    means = np.concatenate([found[places].mean(axis=1) for places in blocks])
    low, high = np.quantile(means, [(1 - SHARE) / 2, (1 + SHARE) / 2]).tolist()
    return Interval(mean=float(found.mean()), low=low, high=high)
