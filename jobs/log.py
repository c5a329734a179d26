"""A command says on stderr what happens: in lines for people, or with --log json in one JSON object a line.

Objects have `time` (UTC), `level`, `event` and mostly `message`, and what is known by then: command, run, table, phase,
counts. Errors, warnings of libraries, what libraries and children print, and the progress of each ten seconds are among
them. A process beside the command (log_lines.py) makes objects of whatever else reaches stderr.
"""

import atexit
import contextlib
import json
import logging
import os
import select
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from jobs.log_lines import CONTEXT, now
from pipeline.errors import ConfigError
from pipeline.progress import Event, Progress, listening
from pipeline.redaction import redacted

KINDS = ("text", "json")
VARIABLE = "PIPELINE_LOG"
"""This variable of the environment says which kind is wanted where no --log does."""
PROGRESS_S = 10.0
DRAIN_S = 5.0
"""A command waits for so many seconds at its end for the process that makes objects."""

_HOME = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_LINES = """\
import runpy, sys, types
sys.path.insert(0, {home!r})
sys.modules["pipeline"] = package = types.ModuleType("pipeline")
package.__path__ = [{home!r} + "/pipeline"]
runpy.run_module("jobs.log_lines", run_name="__main__")
"""
"""The process beside a command imports what it needs of this project, and no library: it starts within some milliseconds."""


def kind(arguments: Sequence[str], environment: Mapping[str, str]) -> str:
    """Return the kind of log that a command line asks for. It is known before the arguments are parsed, because errors in
    them are told in it. Raises ConfigError for a variable that names no kind."""
    wanted = environment.get(VARIABLE) or KINDS[0]
    for number, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if len(name) > len("--l") and "--log".startswith(name):
            wanted = value if equals else (*arguments, wanted)[number + 1]
    if wanted not in KINDS and wanted == environment.get(VARIABLE):
        raise ConfigError(f"{VARIABLE} is {wanted!r}; give text or json")
    return wanted


class Log:
    """It takes lines for people to stderr as they are."""

    def report(self, level: str, event: str, message: str, **facts: Any) -> None:
        """Tell people the message, and machines all of it."""
        print(message, file=sys.stderr)

    def note(self, level: str, event: str, **facts: Any) -> None:
        """Tell machines what people have no need of."""

    def know(self, **facts: Any) -> None:
        """Add these facts to all that is told from now on."""

    def hearing(self) -> contextlib.AbstractContextManager[None]:
        """Let runs be told as people see them."""
        return contextlib.nullcontext()

    def handler(self) -> logging.Handler:
        """Return what takes the warnings of libraries."""
        handler = logging.StreamHandler()
        handler.setFormatter(_Redacting("%(levelname)s %(message)s"))
        return handler

    def drain(self) -> None:
        """Return when all that was told is out."""
        sys.stderr.flush()


class JsonLog(Log):
    """It takes objects to stderr, and makes objects of all that others write there."""

    def __init__(self, **facts: Any) -> None:
        self._facts: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._owner = os.getpid()
        read, self._records = os.pipe()
        told, self._told = os.pipe()
        os.set_inheritable(read, True)
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _LINES.format(home=_HOME), str(read)],
            stdin=subprocess.PIPE,
            stdout=self._told,
            pass_fds=(read,),
            start_new_session=True,  # Signals for the command's group are not meant for it.
        )
        os.close(read)
        os.close(self._told)
        self._told = told
        assert self._process.stdin is not None
        sys.stderr.flush()
        os.dup2(self._process.stdin.fileno(), 2)
        self._process.stdin.close()
        self.know(**facts)
        logging.captureWarnings(True)
        # What is registered first is called last.
        atexit.register(self.drain)

    def report(self, level: str, event: str, message: str, **facts: Any) -> None:
        self.note(level, event, message=message, **facts)

    def note(self, level: str, event: str, **facts: Any) -> None:
        self._write(json.dumps(_shown({"time": now(), "level": level, "event": event} | self._facts | facts)))

    def know(self, **facts: Any) -> None:
        self._facts |= facts
        self._write(CONTEXT + json.dumps(_shown(self._facts)))

    def hearing(self) -> contextlib.AbstractContextManager[None]:
        return listening(ProgressLog(self), shown=False)

    def handler(self) -> logging.Handler:
        return _Objects(self)

    def drain(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
        with self._lock:
            if self._records < 0 or os.getpid() != self._owner:  # The end of a fork is not the end of the command.
                return
            os.close(self._records)
            self._records = -1
        select.select([self._told], [], [], DRAIN_S)

    def _write(self, line: str) -> None:
        data = f"{line}\n".encode()
        with self._lock, contextlib.suppress(OSError):
            while data and self._records >= 0:
                data = data[os.write(self._records, data) :]


class ProgressLog:
    """It tells of a run by objects: its phases, and how far it has come each PROGRESS_S seconds. A listener of a run."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._phase = ""
        self._ended = threading.Event()

    def __call__(self, event: Event, run: Progress) -> None:
        if event is Event.STARTED:
            self._ended.clear()
            threading.Thread(target=self._tell, args=(run,), name="progress", daemon=True).start()
        elif event is Event.KNOWN:
            self._log.know(**run.facts)
        elif event is Event.PHASE and run.phase != self._phase:
            self._log.note("info", "phase", message=f"{run.phase} {run.detail}".strip(), phase=run.phase)
            self._phase = run.phase
        elif event is Event.ENDED:
            self._ended.set()
            seconds = {str(phase): spent for phase, spent in run.seconds.items()}
            self._log.note("info", "run", **_counts(run), seconds_by_phase=seconds, seconds_by_stage=run.stages)

    def _tell(self, run: Progress) -> None:
        while not self._ended.wait(PROGRESS_S):
            self._log.note("info", "progress", message=run.describe(), phase=run.phase, **_counts(run))


def _counts(run: Progress) -> dict[str, Any]:
    return {
        "rows_planned": run.rows,
        "rows_encoded": run.encoded_rows,
        "rows_recorded": run.recorded_rows,
        "units_planned": run.units,
        "units_recorded": run.done_units,
        "dead_letters": run.failed,
        "rows_per_second": run.rows_per_s,
        "tokens_per_second": run.tokens_per_s,
        "seconds_left": run.left_s,
    }


class _Objects(logging.Handler):
    """It makes objects of the records of libraries."""

    def __init__(self, log: JsonLog) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        try:
            level, message = record.levelname.lower(), self.format(record)
            self._log.note(level, "logged", message=message, logger=record.name)
        except Exception:
            self.handleError(record)


class _Redacting(logging.Formatter):
    """Libraries log addresses as they use them, signed ones among them."""

    def format(self, record: logging.LogRecord) -> str:
        return redacted(super().format(record))


def _shown(value: Any) -> Any:
    """Return a value as JSON has it, without secrets."""
    if isinstance(value, Mapping):
        return {str(name): _shown(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_shown(inner) for inner in value]
    if isinstance(value, float):
        return round(value, 3) if abs(value) < float("inf") else None
    return value if value is None or isinstance(value, bool | int) else redacted(str(value))
