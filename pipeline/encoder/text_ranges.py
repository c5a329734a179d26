"""Texts in, ranges of consecutive texts out, of about so many characters each. Knows no tokenizer."""

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def text_lengths(texts: Sequence[str]) -> NDArray[np.int64]:
    """[n]: characters per text."""
    return np.fromiter(map(len, texts), np.int64, len(texts))


def text_ranges(lengths: NDArray[np.int64], chars: int) -> list[tuple[int, int]]:
    """[start, stop) of ranges in order that hold every text. A range has less than 2 * `chars` characters, or it is one
    text."""
    if not len(lengths):
        return []
    block = np.cumsum(lengths) // chars
    begins = (block[1:] != block[:-1]) | (lengths[:-1] > chars)
    bounds = [0, *(np.flatnonzero(begins) + 1).tolist(), len(lengths)]
    return list(itertools.pairwise(bounds))
