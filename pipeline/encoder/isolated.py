"""An engine in a process of its own, for rows that may end or hang the process they are encoded in.

Encoder spec and rows in, vectors out, as from any engine; a batch that costs the process raises EngineLost, and the next
one starts a new process. The child ends with its parent, is the first to go when memory runs out, and gets its settings by
pipe: command lines and environments are seen by all. Knows nothing of units and strikes.

Run as a module it is the child.
"""

import contextlib
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.encoder.deadline import Deadline
from pipeline.encoder.encoder import build_encoder
from pipeline.encoder.engines.base import EngineLost, OutOfMemory
from pipeline.errors import RunError
from pipeline.model.folder import EncoderSpec

STARTS = 3
"""A process that ends before it is ready is started so often: it has met no row yet."""
GRACE_S = 30.0
"""A child whose parent is gone ends by itself so long after the parent would have ended it."""
MEMORY_SHARE = 0.8
"""A child may use this share of the memory that is free when it starts; beyond it, its own allocations fail."""


class IsolatedEngine:
    """Implements engines.base.Engine in a child process that starts on first need; `close` ends it."""

    name = "isolated"

    def __init__(self, spec: EncoderSpec, device: str, threads: int, timeout_s: float) -> None:
        """`timeout_s`: the longest that the start, or one batch, may take."""
        self.dim = spec.dim
        self._built_from = spec, device, threads, timeout_s
        self._timeout_s = timeout_s
        self._child: _Child | None = None

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
        if kind == "refused":
            raise answer
        vectors: NDArray[np.float32] = answer
        return vectors

    def close(self) -> None:
        if self._child is not None:
            self._child.end()
            self._child = None

    def _started(self) -> "_Child":
        """A child that has its model; RunError when none comes up."""
        reason = ""
        for _ in range(STARTS):
            child = _Child()
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

    def _ask(self, child: "_Child", question: object) -> tuple[str, Any]:
        """Raises EngineLost, and has no child any more, when it ended or took too long."""
        try:
            child.connection.send(question)
            if child.connection.poll(self._timeout_s):
                answer: tuple[str, Any] = child.connection.recv()
                return answer
            reason, hung = f"gave no answer for {self._timeout_s:g} s (limits.unit_timeout_s)", True
        except (EOFError, OSError):
            reason, hung = _how_it_ended(child.wait()), False
        child.end()
        self._child = None
        raise EngineLost(reason, hung=hung)


class _Child:
    """A process that runs this module, and the pipe to it."""

    def __init__(self) -> None:
        self.connection, theirs = Pipe()
        # The parent may have found this package by other means than its environment.
        path = os.pathsep.join(dict.fromkeys([str(Path(__file__).parents[2]), *filter(None, sys.path)]))
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                env=os.environ | {"PYTHONPATH": path},
                stdin=subprocess.PIPE,  # closed by the parent's end, whatever ends it
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )

    def wait(self) -> int:
        """The exit status of a child that closed its pipe; one that only closed the pipe is ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(GRACE_S)
        self._process.kill()
        return self._process.wait()

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self.connection.close()


def _how_it_ended(status: int) -> str:
    if status >= 0:
        return f"ended with exit status {status}"
    name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
    return f"was ended by {name}" + (", most often for lack of memory" if name == "SIGKILL" else "")


def main(connection: Connection) -> None:
    """The child: spec and settings first, then batches until the pipe closes."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    spec, device, threads, timeout_s = connection.recv()
    try:
        with Deadline(timeout_s + GRACE_S):
            if device == "cpu":
                _limit_memory()
            engine = build_encoder(spec, device, threads).engine
    except Exception as error:
        connection.send(("refused", _sendable(error)))
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
        return "refused", _sendable(error)


def _sendable(error: Exception) -> Exception:
    """The error, or one that says the same: not every one survives pickling."""
    with contextlib.suppress(Exception):
        if isinstance(pickle.loads(pickle.dumps(error)), type(error)):
            return error
    return RuntimeError(f"{type(error).__name__}: {error}")


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


def _limit_memory() -> None:
    """A row that wants too much gets an error here; the system, or Ray, would end whole workers for it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    free = _free_memory()
    if free is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (int(free * MEMORY_SHARE),) * 2)


def _free_memory() -> int | None:
    """Bytes that this machine, or the container's limit, has left; None where the system doesn't say."""
    found = []
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) * 1024)
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):
        found.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return min(found, default=None)


if __name__ == "__main__":
    main(Connection(int(sys.argv[1])))
