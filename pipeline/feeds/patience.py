"""A store that is busy, slow or away for a moment is asked again, later and later, for a limited time.

A store's file says which of its client's errors pass: it raises `Passing` for them. This file knows no store.
"""

import time
from collections.abc import Callable
from typing import TypeVar

from pipeline.errors import PipelineError, StorageUnavailable, StorageUnreachable
from pipeline.storage.retry import IMPATIENCE_S, persistently

T = TypeVar("T")


class Passing(Exception):
    """An attempt failed in a way that passes. The message is for the user's eyes."""

    def __init__(self, message: str, *, after_s: float = 0.0, unreachable: bool = False) -> None:
        super().__init__(message)
        self.after_s = after_s
        """The store asked to be left alone for so many seconds."""
        self.unreachable = unreachable
        """Nobody answered at all."""


class Patience:
    """It asks one store for at most `timeout_s` seconds, and less long while the address may be wrong."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._answered = False

    def until_answered(self, attempt: Callable[[float], T]) -> T:
        """Return what `attempt` returns at last. It takes the seconds that it may last, and may be made many times.
        Raises StorageUnavailable when the time is up, and StorageUnreachable if nobody ever answered."""
        started, asked_s = time.monotonic(), 0.0

        def once() -> T:
            try:
                result = attempt(self.timeout_s / 2)
            except PipelineError:
                self._answered = True
                raise
            self._answered = True
            return result

        def patience_s(error: BaseException) -> float:
            nonlocal asked_s
            if not isinstance(error, Passing):
                return 0.0
            asked_s = error.after_s
            never = error.unreachable and not self._answered
            return (min(IMPATIENCE_S, self.timeout_s) if never else self.timeout_s) - asked_s

        try:
            return persistently(once, patience_s, sleep=lambda pause_s: time.sleep(max(pause_s, asked_s)))
        except Passing as error:
            kind = StorageUnreachable if error.unreachable and not self._answered else StorageUnavailable
            raise kind(f"{error}; gave up after {time.monotonic() - started:.0f} s") from None
