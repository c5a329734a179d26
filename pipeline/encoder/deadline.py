"""Ends this process when it hangs, even in C code that never gives Python's lock back.

The clock is faulthandler's own thread, and there is one for the whole process. Threads that each have a deadline share it: one
that waits for another's turn hangs only if the other does.
"""

import faulthandler
import sys
import threading
from types import TracebackType
from typing import ClassVar


class Deadline:
    """While threads are in such blocks, no more than `seconds` may pass before one of them enters or calls `renew`; else the
    stacks go to stderr and the process ends."""

    _lock: ClassVar[threading.Lock] = threading.Lock()
    _entered: ClassVar[int] = 0

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __enter__(self) -> "Deadline":
        with Deadline._lock:
            Deadline._entered += 1
            self._set()
        return self

    def renew(self) -> None:
        with Deadline._lock:
            self._set()

    def _set(self) -> None:
        assert sys.__stderr__ is not None
        faulthandler.dump_traceback_later(self._seconds, exit=True, file=sys.__stderr__)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with Deadline._lock:
            Deadline._entered -= 1
            if not Deadline._entered:
                faulthandler.cancel_dump_traceback_later()
