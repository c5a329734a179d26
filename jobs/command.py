"""All commands share their arguments, how they print a result, and how an error ends them.

An error becomes a line on stderr, for people or for machines (log.py), and an exit code.
"""

import argparse
import contextvars
import json
import logging
import os
import re
import select
import shlex
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from jobs.log import KINDS, VARIABLE, JsonLog, Log, kind
from jobs.main import COMMAND
from jobs.mistakes import left_over, not_among, translated
from jobs.signals import Signals, exit_code
from pipeline.errors import InputError, PipelineError, RunError, one_line
from pipeline.redaction import redacted

_log = Log()
"""It is the log of this process's command."""

_OPTIONS = re.compile(r"(storage_options[\w.]*)\W.*", re.DOTALL)
_MODULE = re.compile(r"python -m jobs\.(\w+)")
_AS_VERB = contextvars.ContextVar("as_verb", default=False)
_CATCHING = contextvars.ContextVar("catching", default=False)
_CONFIG = contextvars.ContextVar("config", default="")
"""It is the configuration that the command was given, or what it was given in place of one."""


def spoken(text: str, *, as_verb: bool | None = None) -> str:
    """Return a text that names commands as the user starts them: as verbs of the one command, or as modules."""
    as_verb = _AS_VERB.get() if as_verb is None else as_verb
    return _MODULE.sub(rf"{COMMAND} \1", text) if as_verb else text


def told(error: PipelineError) -> str:
    """Return an error as one line, in which a command that it names is one that the user can start as it stands."""
    text = spoken(one_line(str(error)))
    if "CONFIG.yaml" not in text:
        return text
    from pipeline.runs.recorded import standing_for

    place = standing_for(_CONFIG.get())
    return text.replace("CONFIG.yaml", shlex.quote(place)) if place.endswith((".yaml", ".yml")) else text


class Arguments(argparse.Namespace):
    """They are the parsed arguments of a command."""

    config: str
    set: list[str]
    json: bool
    dry_run: bool

    def show(self, result: Mapping[str, Any], text: str) -> None:
        """Print for machines with --json, else for a person."""
        print(json.dumps(result, default=str) if self.json else text)


class _Caught(Exception):
    """It carries a parser out of the command that built it."""

    def __init__(self, parser: "Parser") -> None:
        self.parser = parser


def _parted(text: str) -> tuple[str, str]:
    """Return a docstring without its example, and the example: the indented lines that it ends with, and what introduces
    them where that is a line with a colon. Where there is no more than the usage, it is no example."""
    *before, last = text.rstrip().split("\n\n")
    if len(before) < 2 or not all(line.startswith("    ") for line in last.split("\n")[1:]):
        return text.rstrip(), ""
    if not last.startswith("    "):
        return ("\n\n".join(before), last) if last.partition("\n")[0].endswith(":") else (text.rstrip(), "")
    if "\n" not in before[-1] and before[-1].endswith(":"):
        *before, said = before
        last = f"{said}\n\n{last}"
    return "\n\n".join(before), last


class Parser(argparse.ArgumentParser):
    """It lets options stand between arguments, and tells a mistake in one line."""

    prepare: Callable[[list[str]], list[str]] | None = None
    """It rewrites the arguments before they are parsed, where a command needs that."""
    _given: Sequence[str] = ()

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        if _CATCHING.get():
            raise _Caught(self)
        given = list(sys.argv[1:] if args is None else args)
        self._given = self.prepare(given) if self.prepare is not None else given
        parsed, rest = self.parse_known_intermixed_args(self._given, namespace or Arguments())
        if rest:
            self.error(left_over(self, parsed, rest))
        _CONFIG.set(getattr(parsed, "config", None) or "")
        return parsed

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            raise argparse.ArgumentError(action, not_among(value, action.choices))

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the arguments in one line, without what options of a store hold."""
        shown = _OPTIONS.sub(r"\1 ***", redacted(one_line(translated(self, message, self._given))))
        _log.report(
            "error",
            "failed",
            f"error: {shown} (see `{self.prog} --help`)",
            error="ArgumentError",
            exit_code=InputError.exit_code,
        )
        sys.exit(InputError.exit_code)


def parser(docstring: str | None, *, dry_run: bool, takes_tables: bool = False, takes_sources: bool = False) -> Parser:
    """Return a command's parser, described by its module's docstring. An example at the end of it comes last in the help,
    too."""
    text, example = _parted(docstring or "")
    module = _MODULE.search(text)
    built = Parser(
        prog=spoken(module[0]) if module else None,
        description=spoken(text),
        epilog=spoken(example) or None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if takes_tables:
        described = "the run's configuration, the documents that `embed` wrote one for, or the table's folder or URL"
        built.add_argument("config", metavar="CONFIG.yaml|TABLE", help=described)
    elif takes_sources:
        described = "the run's configuration, or the folder, file, pattern or URL of documents"
        built.add_argument("config", metavar="CONFIG.yaml|SOURCE", help=described)
    else:
        built.add_argument(
            "config", metavar="CONFIG.yaml", help="the run's configuration, or the documents that `embed` wrote one for"
        )
    built.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="override section.key")
    built.add_argument("--json", action="store_true", help="print the result as one JSON object")
    described = f"how stderr is written: lines for people, or a JSON object a line ({VARIABLE}, else text)"
    built.add_argument("--log", choices=KINDS, help=described)
    if dry_run:
        built.add_argument("--dry-run", action="store_true", help="print the plan and change nothing")
    return built


def parser_of(main: Callable[[Sequence[str]], int]) -> Parser:
    """Return the parser that a command's `main` builds: it is caught where it would parse."""
    token = _CATCHING.set(True)
    try:
        main([])
    except _Caught as caught:
        return caught.parser
    finally:
        _CATCHING.reset(token)
    raise TypeError(f"{main.__module__}.main parses no arguments")


def main_of(main: Callable[[], int], *, verb: str = "") -> int:
    """Run a command's main. An error of ours becomes one line on stderr and its exit code.

    With a `verb` of the one command, what is said names commands as verbs, not as modules.

    SIGTERM ends the command as Ctrl-C does: tidied up, with one line, and with 143, where Ctrl-C gives 130.
    """
    token = _AS_VERB.set(bool(verb))
    try:
        return _guarded(main, verb or os.path.basename(sys.argv[0]).removesuffix(".py"))
    finally:
        _AS_VERB.reset(token)


def _guarded(main: Callable[[], int], command: str) -> int:
    started = time.monotonic()
    with Signals() as signals:
        try:
            with signals.held():  # What is said of a signal is said in the log that was asked for.
                _begin_log(command)
            with _log.hearing():
                code = main()
                sys.stdout.flush()
        except KeyboardInterrupt:
            return _interrupted(signals.received or signal.SIGINT)
        except PipelineError as error:
            if signals.received is not None:  # It is a consequence: children of a group end together.
                return _interrupted(signals.received)
            return _failed(error, f"error: {told(error)}", error.exit_code)
        except Exception as error:
            if signals.received is not None:
                return _interrupted(signals.received)
            if isinstance(error, BrokenPipeError) and _is_unread():
                return exit_code(signal.SIGPIPE)
            return _failed(error, redacted(traceback.format_exc()).rstrip("\n"), RunError.exit_code)
        _log.note("info", "ended", exit_code=code, seconds=time.monotonic() - started)
        return code


def _is_unread() -> bool:
    """Say whether the reader of stdout has gone, as `| head` does; nothing more is written to it then."""
    pipe = select.poll()
    pipe.register(sys.stdout.fileno(), 0)
    if not pipe.poll(0):
        return False
    # What is left in the buffer would be written, and fail, as Python ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _begin_log(command: str) -> None:
    """Let stderr be what the command line or the environment asks for. Raises ConfigError."""
    global _log
    if kind(sys.argv[1:], os.environ) == "json":
        _log = JsonLog(command=command)
    logging.basicConfig(level=logging.WARNING, handlers=[_log.handler()])


def _failed(error: Exception, message: str, code: int) -> int:
    _log.report("error", "failed", message, error=type(error).__name__, exit_code=code)
    return code


def _interrupted(number: signal.Signals) -> int:
    """Say that the command was ended, and return its exit code. It ends here where a thread would hold it up."""
    # CPython notes an interrupt that passes through exec(), as one amid the making of a dataclass does, and ends by SIGINT
    # whatever the exit code is. The next exec() makes it forget.
    exec("")
    what = "interrupted" if number == signal.SIGINT else f"ended by {number.name}"
    code = exit_code(number)
    message = f"{what}: finished work is kept, the same command goes on from here"
    _log.report("warning", "interrupted", message, signal=number.name, exit_code=code)
    others = [thread for thread in threading.enumerate() if thread is not threading.main_thread()]
    if any(not thread.daemon for thread in others):
        sys.stdout.flush()
        _log.drain()
        os._exit(code)
    return code
