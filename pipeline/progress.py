"""A run counts its progress and shows it to a person.

There is one live line on a terminal or in a notebook, and plain lines in a log. This file knows numbers and the terminal, and
nothing of units, tables or Ray.
"""

import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

LOG_EVERY_S = 10.0
REFRESH_PER_S = 4
NOTEBOOK_EVERY_S = 0.5


class Progress:
    """It counts what is done of what there is. Several threads may update it."""

    def __init__(self, *, units: int, rows: int | None, stream: TextIO | None = None) -> None:
        self._lock = threading.Lock()
        self._units, self._rows = units, rows
        self.done_units = self.recorded_rows = self.failed = 0
        self._encoded_rows = self._encoded_tokens = 0
        self._started = self._logged = time.monotonic()
        self._first_encoded: float | None = None
        self._console = Console(file=stream or sys.stderr, highlight=False)
        self._show = _notebook() if stream is None else None
        self._live = Live(
            get_renderable=self._line, console=self._console, refresh_per_second=REFRESH_PER_S, transient=True
        )

    def __enter__(self) -> "Progress":
        if self._show is not None:
            self._show(self.describe())
        elif self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._show is not None:
            self._show(self.describe())
        elif self._console.is_terminal:
            self._live.stop()

    def recorded(self, rows: int, failed: int, unit_done: bool) -> None:
        """Count a slice of `rows` source rows that was recorded."""
        with self._lock:
            self.recorded_rows += rows
            self.failed += failed
            self.done_units += unit_done
        self._log()

    def encoded(self, rows: int, tokens: int) -> None:
        """Count rows that left an encoder and are not recorded yet."""
        with self._lock:
            self._first_encoded = self._first_encoded or time.monotonic()
            self._encoded_rows += rows
            self._encoded_tokens += tokens
        self._log()

    def _log(self) -> None:
        waited = time.monotonic() - self._logged
        if self._show is not None and waited >= NOTEBOOK_EVERY_S:
            self._logged = time.monotonic()
            self._show(self.describe())
        elif self._show is None and not self._console.is_terminal and waited >= LOG_EVERY_S:
            self._logged = time.monotonic()
            self._console.print(self.describe(), soft_wrap=True)

    def _line(self) -> Text:
        return Text(self.describe(), overflow="ellipsis", no_wrap=True)

    def describe(self) -> str:
        """Return a line such as `units 3/8  rows 3,120/7,600  118 docs/s  6,210 tokens/s  38 s left`."""
        seen = max(self.recorded_rows, self._encoded_rows)
        of_rows = f"/{self._rows:,}" if self._rows is not None else ""
        pieces = [f"units {self.done_units:,}/{self._units:,}", f"rows {min(seen, self._rows or seen):,}{of_rows}"]
        if self._first_encoded is None:
            pieces.append(f"starting, {time.monotonic() - self._started:.0f} s")
        else:
            elapsed = max(time.monotonic() - self._first_encoded, 1.0)
            rate = self._encoded_rows / elapsed
            pieces.append(f"{per_second(rate)} docs/s")
            if self._encoded_tokens:
                pieces.append(f"{self._encoded_tokens / elapsed:,.0f} tokens/s")
            if self._rows is not None and rate:
                pieces.append(f"{duration(max(self._rows - seen, 0) / rate)} left")
        return "  ".join(pieces + ([f"{self.failed:,} failed"] if self.failed else []))


def _notebook() -> Callable[[str], None] | None:
    """Return what shows a line in place of the one before in a notebook, and None elsewhere."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if not hasattr(shell, "kernel"):
        return None
    from IPython.display import Pretty, display

    handle = display(Pretty(""), display_id=True)
    return lambda text: handle.update(Pretty(text))


def say(text: str) -> None:
    """Print a line of its own, before a run has begun."""
    Console(file=sys.stderr, highlight=False).print(text, soft_wrap=True)


def per_second(rate: float) -> str:
    """Return a rate such as `0.9`, `230` or `1,204`."""
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"


def duration(seconds: float) -> str:
    """Return a duration such as `38 s`, `4 min 10 s` or `3 h 20 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


def size(num_bytes: float) -> str:
    """Return a size such as `512 B` or `1.4 MB`, in powers of 1000 like disks and clouds."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if num_bytes < 1000 or unit == "TB":
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    raise AssertionError


class ShownInNotebooks:
    """A summary is shown by IPython and in notebooks as `str` has it."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        # IPython looks class by class, and takes the __repr__ that a dataclass is given before what a base class has.
        cls._repr_pretty_ = ShownInNotebooks._repr_pretty_  # type: ignore[method-assign]

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))
