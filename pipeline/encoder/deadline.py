"""Ends this process when it hangs, even in C code that never gives Python's lock back.

The clock is faulthandler's own thread; there is one for the whole process, so only one deadline can be set at a time.
"""

import faulthandler
import sys
from types import TracebackType


class Deadline:
    """Within the block, no more than `seconds` may pass without `renew`; else the stacks go to stderr and the process
    ends."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __enter__(self) -> "Deadline":
        self.renew()
        return self

    def renew(self) -> None:
        assert sys.__stderr__ is not None
        faulthandler.dump_traceback_later(self._seconds, exit=True, file=sys.__stderr__)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        faulthandler.cancel_dump_traceback_later()
