"""A run tells here what happens in it, and whoever wants to know listens: the log, metrics, lineage, a progress bar.

Names and plain values come in, and go to all listeners in the order in which they came. Nobody has to listen. This file
knows no run and no listener.

    run began      command, run, table        a command starts its work on a table
    phase began    phase, ..                  planning, encoding, committing ..; `rows` and `units` say how much there is
    encoded        rows, tokens               rows left an encoder
    recorded       rows, failed, units, ..    rows were recorded or sent for good, with the seconds of each stage
    phase ended    phase, seconds
    published      version, rows, ..          a version of the table was committed
    run ended      exit_code, ..              with what the summary counts, or with the error
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

Listener = Callable[[str, dict[str, Any]], None]
"""It is called with the name of an event and its facts, from any thread of the run. It must be quick and raise nothing."""

_lock = threading.Lock()
_listeners: tuple[Listener, ...] = ()


def tell(event: str, **facts: Any) -> None:
    """Tell all listeners what happened. It costs nothing where there are none."""
    for listener in _listeners:
        listener(event, facts)


@contextlib.contextmanager
def phase(name: str, **facts: Any) -> Iterator[None]:
    """Tell when the block begins and ends, and how many seconds it took."""
    started = time.perf_counter()
    tell("phase began", phase=name, **facts)
    try:
        yield
    finally:
        tell("phase ended", phase=name, seconds=time.perf_counter() - started)


@contextlib.contextmanager
def heard_by(listener: Listener) -> Iterator[None]:
    """Let `listener` hear what is told while the block runs."""
    global _listeners
    with _lock:
        _listeners = (*_listeners, listener)
    try:
        yield
    finally:
        with _lock:
            _listeners = tuple(one for one in _listeners if one is not listener)
