"""An engine in a process of its own, for rows that may end or hang the process they are encoded in.

Encoder spec and rows in, vectors out, as from any engine; a batch that costs the process raises EngineLost, and the next
one starts a new process. The child ends with its parent, is the first to go when memory runs out, and gets its settings by
pipe: command lines and environments are seen by all. Knows nothing of units and strikes.

Run as a module it is the child.
"""

import contextlib
import sys
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.encoder.deadline import Deadline
from pipeline.encoder.encoder import build_encoder
from pipeline.encoder.engines.base import DeviceLost, EngineLost, OutOfMemory
from pipeline.errors import RunError
from pipeline.machine.child import GRACE_S, Child, connect, how_it_ended, limit_memory, sendable
from pipeline.model.folder import EncoderSpec

STARTS = 3
"""A process that ends before it is ready is started so often: it has met no row yet."""


class IsolatedEngine:
    """Implements engines.base.Engine in a child process that starts on first need; `close` ends it."""

    name = "isolated"

    def __init__(self, spec: EncoderSpec, device: str, threads: int, timeout_s: float) -> None:
        """`timeout_s`: the longest that the start, or one batch, may take."""
        self.dim = spec.dim
        self._built_from = spec, device, threads, timeout_s
        self._timeout_s = timeout_s
        self._child: Child | None = None

    def __enter__(self) -> "IsolatedEngine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def encode(self, ids: NDArray[np.int32], lengths: NDArray[np.int32]) -> NDArray[np.float32]:
        """Do what engines.base.Engine.encode says. Raises EngineLost when the process ended or hung over this batch."""
        if self._child is None:
            self._child = self._started()
        kind, answer = self._ask(self._child, (ids, lengths))
        if kind == "out of memory":
            raise OutOfMemory(answer)
        if isinstance(answer, DeviceLost):  # The next batch gets a process that has the device anew.
            self.close()
            raise EngineLost(f"lost its device: {answer}", hung=False)
        if kind == "refused":
            raise answer
        vectors: NDArray[np.float32] = answer
        return vectors

    def close(self) -> None:
        if self._child is not None:
            self._child.end()
            self._child = None

    def _started(self) -> Child:
        """A child that has its model; RunError when none comes up."""
        reason = ""
        for _ in range(STARTS):
            child = Child(__name__)
            try:
                kind, answer = self._ask(child, self._built_from)
            except EngineLost as lost:
                reason = str(lost)
                continue
            if kind == "ready":
                return child
            child.end()
            raise answer
        raise RunError(
            f"an encoder's process of its own doesn't start, {STARTS} times it {reason}: is there memory for it?"
        )

    def _ask(self, child: Child, question: object) -> tuple[str, Any]:
        """Raises EngineLost, and has no child any more, when it ended or took too long."""
        try:
            child.connection.send(question)
            if child.connection.poll(self._timeout_s):
                answer: tuple[str, Any] = child.connection.recv()
                return answer
            reason, hung = f"gave no answer for {self._timeout_s:g} s (limits.unit_timeout_s)", True
        except (EOFError, OSError):
            reason, hung = how_it_ended(child.wait()), False
        child.end()
        self._child = None
        raise EngineLost(reason, hung=hung)


def main(connection: Connection) -> None:
    """The child: spec and settings first, then batches until the pipe closes."""
    spec, device, threads, timeout_s = connection.recv()
    try:
        with Deadline(timeout_s + GRACE_S):
            if device == "cpu":
                limit_memory()
            engine = build_encoder(spec, device, threads, packs=False).engine
    except Exception as error:
        connection.send(("refused", sendable(error)))
        return
    connection.send(("ready", None))
    with contextlib.suppress(EOFError):
        while True:
            ids, lengths = connection.recv()
            with Deadline(timeout_s + GRACE_S):
                connection.send(_answer(engine, ids, lengths))


def _answer(engine: Any, ids: NDArray[np.int32], lengths: NDArray[np.int32]) -> tuple[str, Any]:
    try:
        return "vectors", engine.encode(ids, lengths)
    except OutOfMemory as error:
        return "out of memory", str(error)
    except Exception as error:
        return "refused", sendable(error)


if __name__ == "__main__":
    main(connect(sys.argv[1]))
