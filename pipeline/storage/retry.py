"""One way of meeting faults that pass: try again, later and later, for a while. Knows no store and no
file, only that a disk's faults don't pass.

What a store's library tries again by itself is kept short, so that this is what decides. Everything tried here may be done
twice: reads, lists, whole writes, deletes; `create_once` tells its own bytes from others'.
"""

import json
import random
import time
from collections.abc import Callable
from typing import TypeVar

from pipeline.storage.address import address_of, is_remote
from pipeline.storage.error import is_unreachable, passes
from pipeline.storage.file import Options

T = TypeVar("T")

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0
PATIENCE_S = 45.0
"""From the first attempt's start to the last one's; that may take half a minute more."""
IMPATIENCE_S = 5.0
"""Attempts go on for so long at the first contact, where the address may be wrong."""

_answered: set[str] = set()
"""Buckets, each with its options, that answered this process once: their address is right."""


def patiently(url: str, options: Options, attempt: Callable[[], T], patience_s: float = PATIENCE_S) -> T:
    """Return what `attempt` returns, which works on the file or folder at `url`: at once on a disk, `persistently` in a
    store."""
    if not is_remote(url):
        return attempt()
    address = address_of(url)
    root = json.dumps([address.store, address.account, address.container, options], sort_keys=True, default=repr)

    def patience(error: BaseException) -> float:
        if not passes(error):
            return 0.0
        return min(patience_s, IMPATIENCE_S) if is_unreachable(error) and root not in _answered else patience_s

    result = persistently(attempt, patience)
    _answered.add(root)
    return result


def persistently(
    attempt: Callable[[], T],
    patience: Callable[[BaseException], float],
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """Return what `attempt` returns at last; raise its error when no other attempt can begin within `patience(error)`
    seconds of the
    first one's start.

    Pauses double, and are drawn from their upper half: many workers meet the same fault at the same time.
    """
    pause_s, started = FIRST_PAUSE_S, clock()
    while True:
        try:
            return attempt()
        except BaseException as error:
            if clock() + pause_s - started > patience(error):
                raise
        sleep(random.uniform(pause_s / 2, pause_s))
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
