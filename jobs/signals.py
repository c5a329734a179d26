"""A signal that asks a command to end lets it tidy up first: what it holds is given back, and its processes end.

A command comes in as a block, and its block is left by KeyboardInterrupt when SIGINT or SIGTERM arrives. Only commands take
signals: a library call in somebody else's process never does.
"""

import atexit
import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

ENDING = (signal.SIGINT, signal.SIGTERM)
AT_ONCE_AFTER_S = 3.0
"""A second signal that comes so many seconds after the first doesn't wait for tidying up any longer. Those that come sooner
are the same request, as `timeout` and terminals send it to a process and to its group."""


class Signals:
    """Within the block the first SIGINT or SIGTERM raises KeyboardInterrupt with its exit code; `received` says which it was.

    Then the process is about to end, and goes on to take signals: the same request once more must not end it by itself.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._since = 0.0
        self._held = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            for number in ENDING:
                # A signal that is ignored, as Ctrl-C is by what a shell runs in the background, stays so.
                if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                    self._before[number] = signal.signal(number, self._receive)
            # What is registered first is called last: by then everything else has been tidied up.
            atexit.register(self._ignore_what_still_comes)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.received is None:
            self.restore()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Raise for a signal at the end of this block, which is short, and not within it."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self.received is not None:
            raise KeyboardInterrupt(exit_code(self.received))

    def restore(self) -> None:
        """Let signals do what they did before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        atexit.unregister(self._ignore_what_still_comes)

    def _ignore_what_still_comes(self) -> None:
        """Keep the exit code: CPython drops Python's handlers while it ends, and a signal would end it by itself then."""
        if self.received is not None:
            for number in self._before:
                signal.signal(number, signal.SIG_IGN)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received, self._since = signal.Signals(number), time.monotonic()
            if self._held:
                return
            raise KeyboardInterrupt(exit_code(number))
        if time.monotonic() - self._since > AT_ONCE_AFTER_S:
            os._exit(exit_code(number))


def exit_code(number: int) -> int:
    """Return what shells call the end by this signal: 130 for SIGINT, 143 for SIGTERM."""
    return 128 + number
