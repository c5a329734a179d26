"""A person sees how far a run has come: a bar on a terminal or in a notebook, and plain lines in a log.

Events of a run come in. What is shown stands on stderr alone, or in the cell of a notebook. A terminal's bar is gone when
the run has ended, and a log gets a line each ten seconds, so that short runs leave none.
"""

import html
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO

from pipeline.progress import COUNTED, Event, Listener, Progress, duration

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

LOG_EVERY_S = 10.0
REFRESH_PER_S = 8
NOTEBOOK_EVERY_S = 0.5
BAR_COLUMNS = 28
FEWEST_COLUMNS = 70
"""A narrower terminal has no room for a bar beside the figures."""


def display(stream: TextIO | None = None) -> Listener:
    """Return what shows progress where this process runs."""
    shown = _notebook() if stream is None else None
    if shown is not None:
        return _Cell(shown)
    given = stream or sys.stderr
    return _Bar(given) if _is_terminal(given) else _Log(given)


def _lasting(stream: TextIO) -> TextIO:
    """Return the stream by a descriptor of its own, if it has one. Ray's start mutes that of stderr for some seconds."""
    try:
        return os.fdopen(os.dup(stream.fileno()), "w", encoding="utf-8", errors="replace")
    except (AttributeError, OSError, ValueError):
        return stream


def _is_terminal(stream: TextIO) -> bool:
    """Say whether lines of the stream can be drawn anew."""
    try:
        return stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown")
    except (AttributeError, ValueError):  # It is closed, or no stream at all.
        return False


class _Bar:
    """It is one live line on a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = self._drawn = stream
        self._live: Live | None = None

    def __call__(self, event: Event, progress: Progress) -> None:
        if event is Event.STARTED:
            self._start(progress)
        elif self._live is not None and event is Event.PHASE:
            self._live.refresh()
        elif self._live is not None and event is Event.ENDED:
            self._lead_logs(sys.stderr, self._stream)
            self._live.stop()
            self._live = None
            if self._drawn is not self._stream:
                self._drawn.close()

    @staticmethod
    def _lead_logs(here: TextIO, there: TextIO) -> None:
        """Let the log handlers that write here write there."""
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is here:
                handler.setStream(there)

    def _start(self, progress: Progress) -> None:
        # A run in a log needs nothing of it, and importing it takes longer than some runs.
        from rich.console import Console
        from rich.live import Live

        self._drawn = _lasting(self._stream)
        console = Console(file=self._drawn, highlight=False)
        self._live = Live(
            get_renderable=lambda: _line(progress, console.width),
            console=console,
            refresh_per_second=REFRESH_PER_S,
            transient=True,
            redirect_stdout=False,  # It may be a file, and what is shown goes to stderr.
        )
        self._live.start(refresh=True)
        self._lead_logs(self._stream, sys.stderr)  # Rich put what prints above the bar in the place of stderr.


def _line(progress: Progress, columns: int) -> "RenderableType":
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    done, total = _done(progress)
    line = Table.grid(padding=(0, 2, 0, 0))
    line.add_column(no_wrap=True)
    cells: list[RenderableType] = [Text(f"{progress.phase} {progress.detail}".strip(), style="bold")]
    if columns >= FEWEST_COLUMNS:
        line.add_column(width=BAR_COLUMNS)
        cells.append(ProgressBar(total=total, completed=done, width=BAR_COLUMNS))
    line.add_column(no_wrap=True, overflow="ellipsis")
    line.add_row(*cells, Text("  ".join(progress.figures())))
    return line


def _done(progress: Progress) -> tuple[float, float | None]:
    """Return how much of how much is done. The latter is None where nobody knows."""
    if progress.phase in COUNTED and progress.rows:
        return progress.done_rows, progress.rows
    return (progress.share, 1.0) if progress.share is not None else (0, None)


class _Log:
    """It prints a line each LOG_EVERY_S seconds, also while nothing happens."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._ended = threading.Event()

    def __call__(self, event: Event, progress: Progress) -> None:
        if event is Event.STARTED:
            threading.Thread(target=self._print, args=(progress,), name="progress", daemon=True).start()
        elif event is Event.ENDED:
            self._ended.set()

    def _print(self, progress: Progress) -> None:
        while not self._ended.wait(LOG_EVERY_S):
            try:
                print(progress.describe(), file=self._stream, flush=True)
            except (OSError, ValueError):  # Nobody reads it any more.
                return


class _Cell:
    """It is a bar in the cell of a notebook."""

    def __init__(self, show: Callable[[dict[str, str]], None]) -> None:
        self._show, self._shown = show, 0.0

    def __call__(self, event: Event, progress: Progress) -> None:
        if event is Event.ADVANCED and time.monotonic() - self._shown < NOTEBOOK_EVERY_S:
            return
        self._shown = time.monotonic()
        self._show(_cell(progress, ended=event is Event.ENDED))


def _cell(progress: Progress, *, ended: bool) -> dict[str, str]:
    """Return what a notebook shows, by MIME type."""
    text = progress.describe()
    if ended:
        how = "done" if progress.error is None else "ended"
        counts = progress.counts() if progress.rows or progress.done_rows else []
        text = "  ".join([f"{how} in {duration(progress.total_s)}", *counts])
    done, total = _done(progress)
    share = f' value="{done}" max="{total}"' if total is not None else ""
    bar = "" if ended else f"<progress{share}></progress> "
    return {"text/plain": text, "text/html": f"{bar}<code>{html.escape(text)}</code>"}


def _notebook() -> Callable[[dict[str, str]], None] | None:
    """Return what shows a bundle in place of the one before in a notebook, and None elsewhere."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if not hasattr(shell, "kernel"):
        return None
    from IPython.display import display

    handle: Any = display({"text/plain": ""}, raw=True, display_id=True)
    return lambda bundle: handle.update(bundle, raw=True)
