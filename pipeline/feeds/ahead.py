"""The next of several things is made while the one before it is used. This file doesn't know what they are."""

import contextlib
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Made = TypeVar("Made")


def ahead(making: Generator[Made]) -> "contextlib.closing[Generator[Made]]":
    """Yield what is made, within a block after which nothing is made any more. A thread makes the next one, which is
    worth it where the work leaves Python to others: reading, decompressing, and what numpy and Arrow compute."""
    return contextlib.closing(_ahead(making))


def _ahead(making: Generator[Made]) -> Generator[Made]:
    with contextlib.closing(making), ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, making, None)
        while (made := coming.result()) is not None:
            coming = thread.submit(next, making, None)
            yield made
