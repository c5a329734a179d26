"""A child process that answers questions over a pipe: how it is started, how it ends, and what it owes its parent.

The child ends with its parent and gets what it has to know by the pipe: command lines and environments are seen by all.
This file knows nothing of models, slices and runs.
"""

import contextlib
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import IO

from pipeline.machine.quotas import free_memory_bytes

GRACE_S = 30.0
"""A child that only closed its pipe is ended so many seconds later."""
MEMORY_SHARE = 0.8
"""A child may take this share of the memory that is free when it starts: its allocations fail before the machine's do."""


class Child:
    """A process that runs a module of this package, and the pipe to it."""

    def __init__(
        self, module: str, stderr: IO[bytes] | int | None = None, environment: Mapping[str, str] | None = None
    ) -> None:
        """`stderr` is where the child's stderr goes; None is where this process's goes. `environment` is set for the child
        alone. Raises OSError where the machine starts no process."""
        self.connection, theirs = Pipe()
        # The parent may have found this package by other means than its environment.
        path = os.pathsep.join(dict.fromkeys([str(Path(__file__).parents[2]), *filter(None, sys.path)]))
        with theirs:
            self._process = subprocess.Popen(
                # Without -P a pipeline.py in the working directory would come before this package.
                [sys.executable, "-P", "-m", module, str(theirs.fileno())],
                env=os.environ | {"PYTHONPATH": path, **(environment or {})},
                stdin=subprocess.PIPE,  # closed by the parent's end, whatever ends it
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                pass_fds=[theirs.fileno()],
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait(self) -> int:
        """The exit status of a child that closed its pipe; one that only closed the pipe is ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(GRACE_S)
        self._process.kill()
        return self._process.wait()

    def end(self) -> None:
        """End the process. It ends by itself where this one may not end it: its stdin is closed."""
        assert self._process.stdin is not None
        for step in (self._process.stdin.close, self.connection.close, self._process.kill):
            with contextlib.suppress(OSError):
                step()
        self._process.wait()


def how_it_ended(status: int) -> str:
    """`ended with exit status 1`, `was ended by SIGKILL, ..`: after the word "it"."""
    if status >= 0:
        return f"ended with exit status {status}"
    name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
    return f"was ended by {name}" + (", most often for lack of memory" if name == "SIGKILL" else "")


def connect(argument: str) -> Connection:
    """The child's end of the pipe, from its command line; from now on the child ends with its parent.

    Ctrl-C, and SIGTERM from those who end a whole group or container, reach children as well. The parent ends them: one
    that ended by itself would be taken for one that its work ended, and that work would count as bad.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    return Connection(int(argument))


def sendable(error: Exception) -> Exception:
    """The error, or one that says the same: not every one survives pickling."""
    with contextlib.suppress(Exception):
        if isinstance(pickle.loads(pickle.dumps(error)), type(error)):
            return error
    return RuntimeError(f"{type(error).__name__}: {error}")


def limit_memory(most: int | None = None) -> None:
    """A row that wants too much gets an error here; the system, or Ray, would end whole workers for it.

    The process may have `most` bytes for its data, or a share of the memory that is free.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    free = free_memory_bytes() if most is None else None
    limit = int(free * MEMORY_SHARE) if free is not None else most
    if limit is not None:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(1)
