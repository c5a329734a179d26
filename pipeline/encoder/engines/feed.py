"""Rows of token ids in, batches as an engine wants them out: padded to a matrix, or packed one behind the other.

Knows what kinds of engines there are; knows no vectors, no errors and no retries.
"""

import functools
from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.encoder.batching import Ids, Lengths, Rows, few_widths, packed_batches, padded_tokens, token_batches
from pipeline.encoder.engines.base import Answer, CompilingEngine, Engine, PackingEngine, StreamingEngine


class Feed(Protocol):
    in_flight: int
    """Batches to start before the first is asked for its vectors."""

    def batches(self, lengths: Lengths, budget_tokens: int, overhead_tokens: int) -> list[Rows]:
        """Row numbers in batches of `size` <= budget_tokens each, a single row excepted."""
        ...

    def size(self, lengths: Lengths) -> int:
        """Tokens that the engine goes through for a batch of these rows, whatever fills it up included."""
        ...

    def start(self, ids: Ids, starts: NDArray[np.int64], lengths: Lengths) -> Answer:
        """Begin with the rows that stand at `starts` in ids, int32 [all tokens]. Raises what the engine raises."""
        ...


def feed_for(engine: Engine) -> Feed:
    return PackedFeed(engine) if isinstance(engine, PackingEngine) else PaddedFeed(engine)


class PaddedFeed:
    """Matrices as wide as the longest row of the batch, or a little wider where each width has its price."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.in_flight = engine.in_flight if isinstance(engine, StreamingEngine) else 1
        self._widths: Callable[[Lengths], Lengths] = _exact
        if isinstance(engine, CompilingEngine):
            self._widths = functools.partial(few_widths, longest=engine.longest)

    def batches(self, lengths: Lengths, budget_tokens: int, overhead_tokens: int) -> list[Rows]:
        return token_batches(self._widths(lengths), budget_tokens, overhead_tokens)

    def size(self, lengths: Lengths) -> int:
        return padded_tokens(self._widths(lengths), np.arange(len(lengths)))

    def start(self, ids: Ids, starts: NDArray[np.int64], lengths: Lengths) -> Answer:
        """0 stands beyond a row's end."""
        column = np.arange(self._widths(lengths).max())
        cells = ids.take(starts[:, None] + column, mode="clip")
        matrix = np.where(column < lengths[:, None], cells, np.int32(0))
        if isinstance(self._engine, StreamingEngine):
            return self._engine.start(matrix, lengths.astype(np.int32))
        return functools.partial(self._engine.encode, matrix, lengths.astype(np.int32))


def _exact(lengths: Lengths) -> Lengths:
    return lengths


class PackedFeed:
    """The rows one behind the other."""

    def __init__(self, engine: PackingEngine) -> None:
        self._engine = engine
        self.in_flight = engine.in_flight

    def batches(self, lengths: Lengths, budget_tokens: int, overhead_tokens: int) -> list[Rows]:
        return packed_batches(lengths, budget_tokens)

    def size(self, lengths: Lengths) -> int:
        return self._engine.size(lengths)

    def start(self, ids: Ids, starts: NDArray[np.int64], lengths: Lengths) -> Answer:
        ends = np.cumsum(lengths)
        cells = np.arange(ends[-1]) + np.repeat(starts - (ends - lengths), lengths)
        return self._engine.start_packed(ids[cells], lengths.astype(np.int32))
