"""Token lengths in, batches of row numbers out: sorted by length, longest first, each within a token budget.

Padded batches are matrices as wide as their longest row; packed ones hold one row behind the other.

Pure numpy; knows no tokens, no model and no device.
"""

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]
Lengths = NDArray[np.int64]
Rows = NDArray[np.int64]


def token_batches(lengths: Lengths, budget_tokens: int, overhead_tokens: int = 0) -> list[Rows]:
    """Row numbers in batches; every row in one of them, and rows * width <= budget_tokens unless it is a single row.

    Sorting keeps padding small, and longest first makes a budget that is too large show itself at once. A batch ends
    early where that saves more padding than the `overhead_tokens` that one more batch costs.
    """
    order = np.argsort(-lengths, kind="stable")
    widths = lengths[order]
    batches = []
    start = 0
    while start < len(order):
        stop = start + max(budget_tokens // max(int(widths[start]), 1), 1)
        stop = start + _cut(widths[start:stop], overhead_tokens)
        batches.append(order[start:stop])
        start = stop
    return batches


STEPS = 32
"""There are so many widths between a power of two and the next: rows that share one differ by at most 1/32 of it."""


def few_widths(lengths: Lengths, longest: int | None) -> Lengths:
    """The lengths rounded up, by a thirty-second of themselves at most, and never above `longest`: a corpus then has some
    dozens of widths instead of hundreds."""
    step = 1 << np.maximum(np.frexp(np.maximum(lengths, 1) - 1)[1].astype(np.int64) - 1 - (STEPS.bit_length() - 1), 0)
    rounded: Lengths = -(-lengths // step) * step
    return rounded if longest is None else np.maximum(lengths, np.minimum(rounded, longest))


LEAST_TOKENS = 8
"""A row of a packed batch counts as at least so many tokens, so that the rows of a batch are bounded as well."""


def packed_batches(lengths: Lengths, budget_tokens: int) -> list[Rows]:
    """Row numbers in batches, longest first; every row in one of them, packed_tokens <= budget_tokens unless it is a
    single row. Sorted all the same: rows of a length have vectors of a length to read, and work of a length to do."""
    order = np.argsort(-lengths, kind="stable")
    ends = np.cumsum(np.maximum(lengths[order], LEAST_TOKENS))
    batches = []
    start = 0
    while start < len(order):
        before = int(ends[start - 1]) if start else 0
        stop = max(int(np.searchsorted(ends, before + budget_tokens, side="right")), start + 1)
        batches.append(order[start:stop])
        start = stop
    return batches


def packed_tokens(lengths: Lengths) -> int:
    """Tokens of a packed batch of these rows, a short one counted as LEAST_TOKENS."""
    return int(np.maximum(lengths, LEAST_TOKENS).sum())


def padded_tokens(lengths: Lengths, batch: Rows) -> int:
    """Cells of the batch's token matrix: its rows times its longest row."""
    return len(batch) * int(lengths[batch].max(initial=0))


def _cut(widths: Lengths, overhead_tokens: int) -> int:
    """How many of these rows, longest first, to keep in one batch."""
    while True:
        saved = (widths[0] - widths) * np.arange(len(widths), 0, -1)
        best = int(saved.argmax())
        if saved[best] <= overhead_tokens:
            return len(widths)
        widths = widths[:best]
