"""What every engine offers: token ids in, one float32 vector per row out.

Tokenizing, batching and retries stand above it.
"""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class OutOfMemory(Exception):
    """The batch did not fit into the device's memory; a smaller one may."""


class Engine(Protocol):
    dim: int
    """Width of a vector."""

    def encode(self, ids: NDArray[np.int32], lengths: NDArray[np.int32]) -> NDArray[np.float32]:
        """ids int32 [n, width], lengths int32 [n] in 1..width -> vectors float32 [n, dim], in the order of the rows.

        Cells of `ids` past a row's length are never attended to. Raises OutOfMemory where fewer rows may fit, RunError
        where the device itself is lost, anything else where the rows are at fault.
        """
        ...
