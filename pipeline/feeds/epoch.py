"""Every sync of a store that can compare numbers gets one that is higher than those of all syncs before it.

The version of the table would not do: a table that was built anew counts from 1 again.
"""

import time


def after(known: int) -> int:
    """Return the number of a new sync; `known` is the last one, or 0 where nobody knows it any more. It is the time in
    milliseconds if the clock has gone on since."""
    return max(known + 1, time.time_ns() // 1_000_000)
