"""The size of slices is chosen with which the last encoder is done soonest.

The rows of the units to do come in, and the size of slices goes out. This file is pure, and knows no files, no Ray
and no model.
"""

import heapq
import math
from collections.abc import Sequence

FEW_ROUNDS = 8
"""Beyond so many slices per encoder, one more or less makes no difference."""
LEAST_ROWS = 128
COST_ROWS = 100
"""A slice costs as much as so many rows by itself. Rows are sorted by length within their slice, so that more slices
pad more."""


def evened(most: int, units: Sequence[int], encoders: int) -> int:
    """Return the rows of a slice, at most `most`. Every unit is cut into such slices and a rest, and encoders take
    them in turn."""
    if not 0 < sum(units) <= FEW_ROUNDS * encoders * most:
        return most
    sizes = {math.ceil(rows / pieces) for rows in sorted(set(units))[-3:] for pieces in range(1, 2 * FEW_ROUNDS + 1)}
    fitting = [most, *sorted((size for size in sizes if LEAST_ROWS <= size < most), reverse=True)]
    return min(fitting, key=lambda size: _end(size, units, encoders))


def _end(size: int, units: Sequence[int], encoders: int) -> int:
    """Return when the last encoder is done, counted in rows."""
    free = [0] * encoders
    for rows in units:
        for start in range(0, rows, size):
            heapq.heapreplace(free, free[0] + min(size, rows - start) + COST_ROWS)
    return max(free)
