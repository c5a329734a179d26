"""A feed in a process of its own is killed at the n-th call of its store, before the call or after it, or after a while."""

import dataclasses
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any

from pipeline.config import RunSpec
from pipeline.errors import PipelineError
from pipeline.execution.local.executor import LocalExecutor
from pipeline.runs import feed as runs
from pipeline.runs.feed_plan import Wishes

ENDED, FAILED = 0, 7
KILLED = (-signal.SIGKILL, 255)
"""A fork server says 255 of a child that was killed before it heard of it."""

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.feeds.kills", "pipeline.feeds.postgres", "pipeline.runs.feed"])


@dataclasses.dataclass
class Strike:
    """The process kills itself at this call of its store."""

    number: int
    after: bool


class _Struck:
    """A store, or what it gives, whose calls are counted."""

    def __init__(self, of: Any, counted: "_Counted") -> None:
        self._of, self._counted = of, counted

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._of, name)
        if not callable(found) or name in ("unfit", "close"):
            return found

        def call(*arguments: Any, **options: Any) -> Any:
            with self._counted.call():
                given = found(*arguments, **options)
            if name == "loader":
                return _Struck(given, self._counted)
            return self._in_block(given) if name == "delta" else given

        return call

    @contextmanager
    def _in_block(self, block: Any) -> Iterator[Any]:
        with block as delta:
            yield _Struck(delta, self._counted)


class _Counted:
    def __init__(self, strike: Strike | None, told: Any) -> None:
        self._strike, self._told, self._seen, self._lock = strike, told, 0, threading.Lock()

    @contextmanager
    def call(self) -> Iterator[None]:
        with self._lock:
            self._seen += 1
            hit = self._strike is not None and self._seen == self._strike.number
            self._told.value = self._seen
        if hit and self._strike is not None and not self._strike.after:
            os.kill(os.getpid(), signal.SIGKILL)
        yield
        if hit:
            os.kill(os.getpid(), signal.SIGKILL)


def _run(spec: RunSpec, wishes: Wishes, strike: Strike | None, told: Any) -> None:
    from pipeline.feeds import load
    from pipeline.runs import feed_opened

    counted = _Counted(strike, told)
    opened = feed_opened.open_store
    struck: Callable[..., Any] = lambda own: _Struck(opened(own), counted)  # noqa: E731
    feed_opened.open_store = load.open_store = struck  # type: ignore[assignment]
    try:
        with LocalExecutor(spec.resources) as executor:
            runs.feed(spec, "docs", lambda: executor, wishes)
    except PipelineError as error:
        print(error, flush=True)
        os._exit(FAILED)
    os._exit(ENDED)


def start(spec: RunSpec, wishes: Wishes, strike: Strike | None = None) -> tuple[BaseProcess, Any]:
    """Start a feed; the second is the number of calls that it made, as it stands when it has ended."""
    told = PROCESSES.Value("i", 0)
    process = PROCESSES.Process(target=_run, args=(spec, wishes, strike, told), daemon=True)
    process.start()
    return process, told
