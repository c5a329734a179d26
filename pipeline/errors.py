"""Every error that a user can meet, and the exit code each one ends a job with.

    PipelineError
    ├── InputError            exit 2: the configuration or the input is wrong; found before any work
    │   └── ConfigError         a key, a value or a type in the configuration
    ├── TableBusy             exit 0: another run works on the table; found before any work
    └── RunError              exit 1: nothing was published, finished work is kept
        ├── StorageError        the object store or the disk refused or failed
        │   └── StorageUnavailable  it failed in a way that passes, but not in time
        │       └── StorageUnreachable  nobody answered at all
        ├── SourceChanged       a source file is no longer the one that was planned
        ├── ModelChanged        a file of the model is no longer the one that was planned
        ├── CommitConflict      another run published first
        └── GateFailed          the result did not pass the checks that stand before the commit

Messages name the value given, what was expected and what to do. Errors take one string, so that they survive pickling
on their way from a worker. No message holds a password, a signature or a token that stands in a URL.
"""

import os
import re

from pipeline.redaction import redacted

_NO_LETTERS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def one_line(message: str, most: int = 2000) -> str:
    """The message as a terminal and a table can show it: names that files gave may hold line ends, control characters, halves
    of surrogate pairs, and be very long."""
    escaped = _NO_LETTERS.sub(lambda match: repr(match[0])[1:-1], message)
    return escaped if len(escaped) <= most else f"{escaped[: most - 2]}.."


def looked_for(path: str) -> str:
    """Say for a message where a relative path was looked for; "" stands for any other path."""
    if not path or os.path.isabs(os.path.expanduser(path)) or re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/", path):
        return ""
    try:
        return f" in the working directory {os.getcwd()!r}"
    except OSError:
        return " in the working directory, which is gone"


class PipelineError(Exception):
    """Base of all errors that are meant for the user's eyes; anything else is a bug."""

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(redacted(message))

    def _render_traceback_(self) -> list[str]:
        """Return what a notebook shows of the error: one line, as a terminal does. IPython asks for it."""
        return [f"{type(self).__name__}: {one_line(str(self))}"]


class InputError(PipelineError):
    """The configuration or the input is wrong; no work was started."""

    exit_code = 2


class ConfigError(InputError):
    """A key, a value or a type in the configuration is wrong."""


class TableBusy(PipelineError):
    """Another run works on the table, and does what this one was to do: no failure, but nothing was done."""

    exit_code = 0


class RunError(PipelineError):
    """The run failed; nothing was published and finished work is kept for the next start."""


class StorageError(RunError):
    """Storage refused or failed: check address, credentials and permissions, then start again."""


class StorageUnavailable(StorageError):
    """Storage didn't answer, or asked to come back later, for longer than we wait: the same command goes on when it
    does."""


class StorageUnreachable(StorageUnavailable):
    """Nobody answered at the address; before any work that is a wrong address: `before_work` says so."""


class SourceChanged(RunError):
    """A source file changed between plan and read; start again to plan it anew."""


class ModelChanged(RunError):
    """A file of the model changed between plan and use; start again to plan with the model that stands there now."""


class CommitConflict(RunError):
    """Another run published a version first; start again to plan on top of it."""


class GateFailed(RunError):
    """The result was refused before the commit; the published version stays as it was."""
