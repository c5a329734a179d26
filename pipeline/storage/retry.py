"""One way of meeting faults that pass: try again, later and later, for a while. Knows no store and no
file, only that a disk's faults don't pass.

What a store's library tries again by itself is kept short, so that this is what decides. Everything tried here may be done
twice: reads, lists, whole writes, deletes; `create_once` tells its own bytes from others'.
"""

import random
import time
from collections.abc import Callable
from typing import TypeVar

from pipeline.storage.address import is_remote
from pipeline.storage.error import passes

T = TypeVar("T")

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0
PATIENCE_S = 45.0
"""From the first fault to giving up; the attempt that is under way may take half a minute more."""
IMPATIENCE_S = 10.0
"""The same at the first contact: the address may be wrong."""


def patiently(url: str, attempt: Callable[[], T], patience_s: float = PATIENCE_S) -> T:
    """What `attempt` returns, which works on the file or folder at `url`: `persistently` in a store, at once on a disk."""
    return persistently(attempt, passes, patience_s) if is_remote(url) else attempt()


def persistently(
    attempt: Callable[[], T],
    passes: Callable[[BaseException], bool],
    patience_s: float = PATIENCE_S,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """What `attempt` returns, at last; its error when it doesn't pass, or didn't within `patience_s` of the first.

    Pauses double, and are drawn from their upper half: many workers meet the same fault at the same time.
    """
    pause_s, first_fault = FIRST_PAUSE_S, None
    while True:
        try:
            return attempt()
        except BaseException as error:
            now = clock()
            first_fault = now if first_fault is None else first_fault
            if not passes(error) or now + pause_s - first_fault > patience_s:
                raise
        sleep(random.uniform(pause_s / 2, pause_s))
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
