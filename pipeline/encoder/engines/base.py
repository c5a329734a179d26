"""What every engine offers: token ids in, one float32 vector per row out.

Tokenizing, batching and retries stand above it.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import RunError


class OutOfMemory(Exception):
    """The batch did not fit into the device's memory; a smaller one may."""


class EngineLost(Exception):
    """The process that the engine lives in ended or hung over the batch; a new one stands ready for the next."""

    def __init__(self, reason: str, *, hung: bool) -> None:
        super().__init__(reason)
        self.hung = hung


class DeviceLost(RunError):
    """The device, or this process's hold on it, is of no use any more. A new process may get it, or another device."""


class Engine(Protocol):
    name: str
    """Summaries show the engine by this name."""
    dim: int
    """Width of a vector."""

    def encode(self, ids: NDArray[np.int32], lengths: NDArray[np.int32]) -> NDArray[np.float32]:
        """ids int32 [n, width], lengths int32 [n] in 1..width -> vectors float32 [n, dim], in the order of the rows.

        Cells of `ids` past a row's length are never attended to. Raises OutOfMemory where fewer rows may fit, EngineLost
        where its process was lost over them, DeviceLost where the device itself is lost, anything else where the rows are
        at fault, or on a GPU may be.
        """
        ...


Answer = Callable[[], NDArray[np.float32]]
"""A call waits for the vectors of a batch that was started, and returns them; it raises what Engine.encode raises."""


@runtime_checkable
class StreamingEngine(Engine, Protocol):
    """Takes the next batches before it has answered the last, so that its device need not wait for them."""

    in_flight: int
    """Batches to have in work at a time."""

    def start(self, ids: NDArray[np.int32], lengths: NDArray[np.int32]) -> Answer:
        """Begin to encode, with the arguments of `encode`. This may raise at once what the answer would raise."""
        ...


@runtime_checkable
class CompilingEngine(Engine, Protocol):
    """Makes code for each shape of a matrix that it sees first, in the time of some hundred tokens: the fewer, the
    better."""

    longest: int | None
    """Tokens that a row may be padded to; None where there is no limit."""


@dataclass(frozen=True, kw_only=True)
class GraphForm:
    """It is one way to compute a graph. All ways give the model's vectors."""

    fused_from: int | None
    """Attention is fused in batches of at least this width; 0 means in all, None in none."""
    bfloat16: bool = False
    """What stands between the int8 products of an int8 graph is computed in bfloat16, not float32."""


@runtime_checkable
class FormingEngine(Engine, Protocol):
    """Computes its graph in several forms; which is faster depends on the processor and on the width of the rows."""

    may_fuse: bool
    """False where only attention that is not fused gives the model's vectors."""
    may_bfloat16: bool
    """True where the graph is in int8 and the processor has instructions for bfloat16."""
    form: GraphForm
    """It may be set anew between batches."""

    def settle(self, form: GraphForm) -> None:
        """Set `form` for good, and give back what it needs no longer."""
        ...


@runtime_checkable
class PackingEngine(Engine, Protocol):
    """Also takes the rows of a batch one behind the other, without padding between them."""

    in_flight: int

    def size(self, lengths: NDArray[np.int64]) -> int:
        """Tokens that a batch of rows of these lengths is computed as: theirs, and what fills up a constant size."""
        ...

    def start_packed(self, ids: NDArray[np.int32], lengths: NDArray[np.int32]) -> Answer:
        """ids int32 [sum of lengths], lengths int32 [n], each 1 or more; else as StreamingEngine.start."""
        ...


@runtime_checkable
class SeveralWays(Engine, Protocol):
    """Its model may take rows in other ways on the same device; which is faster depends on the device and the rows."""

    def others(self) -> Iterable[Engine]:
        """The engines that take them otherwise and were seen to give the same vectors. They share the model's weights, and
        seeing it may take a second for each."""
        ...

    def forget(self) -> None:
        """Give back the memory of what is made anew when it is needed."""
        ...
