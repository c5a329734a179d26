"""What every engine offers: token ids in, one float32 vector per row out.

Tokenizing, batching and retries stand above it.
"""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class OutOfMemory(Exception):
    """The batch did not fit into the device's memory; a smaller one may."""


class EngineLost(Exception):
    """The process that the engine lives in ended or hung over the batch; a new one stands ready for the next."""

    def __init__(self, reason: str, *, hung: bool) -> None:
        super().__init__(reason)
        self.hung = hung


class Engine(Protocol):
    dim: int
    """Width of a vector."""

    def encode(self, ids: NDArray[np.int32], lengths: NDArray[np.int32]) -> NDArray[np.float32]:
        """ids int32 [n, width], lengths int32 [n] in 1..width -> vectors float32 [n, dim], in the order of the rows.

        Cells of `ids` past a row's length are never attended to. Raises OutOfMemory where fewer rows may fit, EngineLost
        where its process was lost over them, RunError where the device itself is lost, anything else where the rows are at
        fault.
        """
        ...
