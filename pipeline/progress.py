"""A run tells its progress: the phase that it is in, how much there is to do, and how much is done.

Runs tell it and know nobody who listens. A bar on a terminal listens (progress_bar.py), and whoever else is given to
`listening`. This file knows numbers and words, and nothing of units, tables or Ray.
"""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from enum import StrEnum
from typing import Any


class Phase(StrEnum):
    """It is what a run does at the moment. The value is the word for people and for logs."""

    PLANNING = "planning"
    COMPARING = "comparing rows"
    STARTING = "starting"
    LOADING = "loading the model"
    CALIBRATING = "calibrating"
    ENCODING = "encoding"
    WRITING = "writing rows"
    COMMITTING = "committing"
    READING = "reading rows"
    SENDING = "sending"
    INDEXING = "building the index"
    VERIFYING = "verifying"
    SWITCHING = "switching"


COUNTED = (Phase.ENCODING, Phase.SENDING)
"""In these phases rows are counted."""


class Event(StrEnum):
    """It is what a listener hears of a run."""

    STARTED = "started"
    PHASE = "phase"
    """Another phase began, or its detail changed."""
    TOTAL = "total"
    """It is known by now how much there is to do. The counts begin anew."""
    ADVANCED = "advanced"
    KNOWN = "known"
    """`Progress.facts` has more."""
    ENDED = "ended"
    """The run ended, and `Progress.error` says whether it failed."""


class Progress:
    """It is how far a run has come. Several threads may tell it, and listeners hear one event at a time.

    A listener must return at once, since the run waits for it, and may read all that is public here.
    """

    def __init__(self, work: str, listeners: "tuple[Listener, ...]" = ()) -> None:
        self.work = work
        """It is the verb, such as `embed`."""
        self.phase = Phase.PLANNING
        self.detail = ""
        """It says more of the phase, such as what is starting."""
        self.share: float | None = None
        """It is how much of the phase is done, of 1, where rows don't tell and somebody else does."""
        self.units: int | None = None
        self.rows: int | None = None
        """There are so many units and rows to do. They are None while nobody knows."""
        self.about = False
        """The rows to do are an estimate."""
        self.done_units = self.recorded_rows = self.failed = 0
        self.encoded_rows = self.encoded_tokens = 0
        """So many left an encoder, recorded or not."""
        self.seconds: dict[Phase, float] = {}
        """They are the seconds in each phase that ended."""
        self.stages: dict[str, float] = {}
        """They are the seconds that workers took to read, tokenize, encode and write, added up."""
        self.facts: dict[str, Any] = {}
        """They are what the run is of and has made: its table, its version, its counts."""
        self.error: BaseException | None = None
        self._listeners = listeners
        self._counting, self._telling = threading.Lock(), threading.RLock()
        self.started = self._phase_started = time.monotonic()
        """It is in seconds of time.monotonic()."""
        self._first_encoded: float | None = None

    # --- what a run tells

    def begin(self, phase: Phase, detail: str = "") -> None:
        """Enter a phase."""
        now = time.monotonic()
        self.seconds[self.phase] = self.seconds.get(self.phase, 0.0) + now - self._phase_started
        self.phase, self.detail, self.share, self._phase_started = phase, detail, None, now
        self._tell(Event.PHASE)

    @contextlib.contextmanager
    def during(self, phase: Phase, detail: str = "") -> Iterator[None]:
        """Enter a phase for a block, and go back to the one before, unless another one began meanwhile."""
        before = self.phase, self.detail
        self.begin(phase, detail)
        yield
        if (self.phase, self.detail) == (phase, detail):
            self.begin(*before)

    def reach(self, share: float) -> None:
        """Say how much of the phase is done, of 1."""
        self.share = share
        self._tell(Event.ADVANCED)

    def start_encoders(self, what: str) -> None:
        """Say which encoders start. They then load the model, which is a phase of its own unless it is part of another."""
        with self.during(Phase.STARTING, what):
            pass
        if self.phase is Phase.STARTING:
            self.begin(Phase.LOADING)

    def expect(self, *, units: int | None, rows: int | None, about: bool = False) -> None:
        """Say how much there is to do from now on, or `about` how much. Nothing of it is done yet."""
        with self._counting:
            self.units, self.rows, self.about = units, rows, about
            self.done_units = self.recorded_rows = self.failed = self.encoded_rows = self.encoded_tokens = 0
            self._first_encoded = None
        self._tell(Event.TOTAL)

    def encoded(self, rows: int, tokens: int) -> None:
        """Count rows that left an encoder and are not recorded yet."""
        self._loaded()
        with self._counting:
            self._first_encoded = self._first_encoded or time.monotonic()
            self.encoded_rows += rows
            self.encoded_tokens += tokens
        self._tell(Event.ADVANCED)

    def recorded(self, rows: int, failed: int, unit_done: bool, stages: Mapping[str, float] | None = None) -> None:
        """Count a slice of `rows` source rows that was recorded, and the seconds that it took in each stage."""
        self._loaded()
        with self._counting:
            for stage, seconds in (stages or {}).items():
                self.stages[stage] = self.stages.get(stage, 0.0) + seconds
            self.recorded_rows += rows
            self.failed += failed
            self.done_units += unit_done
        self._tell(Event.ADVANCED)

    def _loaded(self) -> None:
        """An encoder that gives something has been loaded."""
        if self.phase in (Phase.STARTING, Phase.LOADING):
            self.begin(Phase.ENCODING)

    def know(self, **facts: Any) -> None:
        """Tell what the run is of, or what it has made."""
        self.facts |= facts
        self._tell(Event.KNOWN)

    @contextlib.contextmanager
    def heard_by(self, *listeners: "Listener") -> Iterator[None]:
        """Let these hear the rest of the run too, while the block lasts."""
        with self._telling:
            self._listeners += listeners
        try:
            yield
        finally:
            with self._telling:
                self._listeners = tuple(one for one in self._listeners if one not in listeners)

    def tell_start(self) -> None:
        self._tell(Event.STARTED)

    def tell_end(self, error: BaseException | None) -> None:
        self.error = error
        self.seconds[self.phase] = self.seconds.get(self.phase, 0.0) + time.monotonic() - self._phase_started
        self._tell(Event.ENDED)

    def _tell(self, event: Event) -> None:
        if self._listeners:
            with self._telling:
                for listener in self._listeners:
                    listener(event, self)

    # --- what can be read of it

    @property
    def phase_s(self) -> float:
        """The phase has lasted for so many seconds."""
        return time.monotonic() - self._phase_started

    @property
    def total_s(self) -> float:
        """The run has lasted for so many seconds."""
        return time.monotonic() - self.started

    @property
    def done_rows(self) -> int:
        seen = max(self.recorded_rows, self.encoded_rows)
        return min(seen, self.rows) if self.rows is not None and not self.about else seen

    @property
    def rows_per_s(self) -> float:
        """It is the rate since the first row. It is 0 before."""
        return self.encoded_rows / self._encoding_s if self._first_encoded is not None else 0.0

    @property
    def tokens_per_s(self) -> float:
        return self.encoded_tokens / self._encoding_s if self._first_encoded is not None else 0.0

    @property
    def left_s(self) -> float | None:
        """What is left takes about so many seconds at this rate. It is None where nobody knows."""
        rate = self.rows_per_s
        return max(0, self.rows - self.done_rows) / rate if self.rows is not None and rate else None

    @property
    def _encoding_s(self) -> float:
        return max(time.monotonic() - (self._first_encoded or time.monotonic()), 1.0)

    def describe(self) -> str:
        """Return a line such as `encoding  units 3/8  rows 3,120/7,600  118 docs/s  6,210 tokens/s  38 s left`."""
        return "  ".join([f"{self.phase} {self.detail}".strip(), *self.figures()])

    def figures(self) -> list[str]:
        """Return what a person is told beside the phase: the counts, or for how long it has lasted."""
        if self.phase not in COUNTED:
            return [*([f"{self.share:.0%}"] if self.share is not None else []), duration(self.phase_s)]
        return [*self.counts(), *([f"{duration(self.left_s)} left"] if self.left_s is not None else [])]

    def counts(self) -> list[str]:
        """Return the counts and rates."""
        of_units = f"units {self.done_units:,}/{self.units:,}" if self.units is not None else ""
        of = "/about " if self.about else "/"
        of_rows = f"rows {self.done_rows:,}" + (f"{of}{self.rows:,}" if self.rows is not None else "")
        rate = f"{per_second(self.rows_per_s)} docs/s" if self.rows_per_s else ""
        tokens = f"{self.tokens_per_s:,.0f} tokens/s" if self.encoded_tokens else ""
        failed = f"{self.failed:,} failed" if self.failed else ""
        return [piece for piece in (of_units, of_rows, rate, tokens, failed) if piece]


Listener = Callable[[Event, Progress], None]
"""It hears what happened in a run, and how far it has come."""

_current: ContextVar[Progress | None] = ContextVar("progress", default=None)
_listeners: ContextVar[tuple[Listener, ...] | None] = ContextVar("listeners", default=None)
_shown: ContextVar[bool] = ContextVar("shown", default=True)


def current() -> Progress:
    """Return the progress of the run that this code is part of, or one that nobody listens to."""
    return _current.get() or Progress("")


@contextlib.contextmanager
def run(work: str) -> Iterator[Progress]:
    """Let a run tell its progress while the block lasts. It is shown to a person, and told to all who listen.

    A run within another one, such as a feed after a reindex, goes on with its progress.
    """
    outer = _current.get()
    if outer is not None:
        yield outer
        return
    from pipeline.progress_bar import display

    own = Progress(work, (*(_listeners.get() or ()), *([display()] if _shown.get() else ())))
    token = _current.set(own)
    error: BaseException | None = None
    own.tell_start()
    try:
        yield own
    except BaseException as raised:
        error = raised
        raise
    finally:
        _current.reset(token)
        own.tell_end(error)


@contextlib.contextmanager
def listening(*listeners: Listener, shown: bool = True) -> Iterator[None]:
    """Let these hear the runs of the block. Where they are not to be `shown`, there is no bar and no log line of it."""
    heard = _listeners.set((*(_listeners.get() or ()), *listeners))
    seen = _shown.set(shown and _shown.get())
    try:
        yield
    finally:
        _shown.reset(seen)
        _listeners.reset(heard)


def say(text: str) -> None:
    """Print a line of its own on stderr."""
    sys.stderr.write(f"{text}\n")


def per_second(rate: float) -> str:
    """Return a rate such as `0.9`, `230` or `1,204`."""
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, such as `1 text` or `1,204 texts`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def short_duration(seconds: float) -> str:
    """Return a duration with a tenth of a second where that says something, such as `0.3 s`, else as `duration` has it."""
    if seconds < 0.05:
        return "under 0.1 s"
    return f"{seconds:.1f} s" if round(seconds, 1) < 10 else duration(seconds)


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
