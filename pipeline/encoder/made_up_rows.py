"""Rows of made-up token ids, as long as a table's: what an encoder's settings are measured with.

Lengths come in, rows go out. It knows no texts and no encoder.
"""

import numpy as np
from numpy.typing import NDArray

from pipeline.encoder.token_rows import TokenRows
from pipeline.model.folder import EncoderSpec


class Sample:
    """It gives rows of made-up ids that are as long as a table's."""

    def __init__(self, lengths: NDArray[np.int64], spec: EncoderSpec) -> None:
        self._lengths = np.minimum(lengths, spec.max_seq_length or 512)
        self.quantiles = _widths(self._lengths)
        self.widths = sorted(set(self.quantiles))
        self._chance = np.random.default_rng(0)

    def of_width(self, width: int, count: int) -> TokenRows:
        """Rows that a batch of this width would hold: they are not all alike, so that some of it is padding."""
        lengths = np.full(count, width)
        lengths[count // 2 :] = max(1, width - 1)
        return self._rows(lengths)

    def mixed(self, tokens: int) -> TokenRows:
        """About so many tokens, in rows as long as the table's."""
        count = max(1, round(tokens / self._lengths.mean()))
        return self._rows(self._chance.choice(self._lengths, count))

    def _rows(self, lengths: NDArray[np.int64]) -> TokenRows:
        # Tokens 1 to 99 are words or special ones in every vocabulary. Equal rows would be encoded once.
        return TokenRows.of([self._chance.integers(1, 100, int(length)).astype(np.int32) for length in lengths])


def _widths(lengths: NDArray[np.int64]) -> list[int]:
    """The widths of rows that an eighth, a half and seven eighths of the tokens lie below."""
    ordered = np.sort(lengths)
    share = np.cumsum(ordered) / ordered.sum()
    return [int(ordered[np.searchsorted(share, part)]) for part in (0.125, 0.5, 0.875)]
