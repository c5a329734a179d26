"""Many small requests wait side by side, in threads, and their answers come in order.

A call and its arguments come in, and answers go out as they are asked for. However many arguments there are, only a few
calls are under way or hold an answer: an executor's own `map` makes an object of a kilobyte for every argument at once.
"""

import collections
import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Given = TypeVar("Given")
Answer = TypeVar("Answer")

AHEAD = 4
"""So many calls a thread are submitted before the first answer is taken."""


def in_parallel(call: Callable[[Given], Answer], given: Iterable[Given], threads: int) -> Iterator[Answer]:
    """Yield `call(item)` for each item, in order. Raises what a call raises, and begins no further call then."""
    items = iter(given)
    with ThreadPoolExecutor(threads) as pool:
        pending: collections.deque[Future[Answer]] = collections.deque(
            pool.submit(call, item) for item in itertools.islice(items, AHEAD * threads)
        )
        try:
            while pending:
                answer = pending.popleft().result()
                pending.extend(pool.submit(call, item) for item in itertools.islice(items, 1))
                yield answer
        finally:
            for future in pending:
                future.cancel()
