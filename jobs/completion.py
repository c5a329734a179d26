"""A shell in, a script out that makes it complete the verbs of the command and their options.

The script is made once, from the parsers of all verbs, so that a shell starts no Python while one types.
"""

import argparse
import importlib
import importlib.util

from jobs import main
from jobs.command import parser_of
from pipeline.errors import InputError
from pipeline.extras import install

EXTRA = "completion"


def script(shell: str) -> str:
    """Return the script for bash, zsh or fish. Raises InputError where the package that writes it is missing."""
    try:
        import shtab
    except ImportError:
        raise InputError(f"completion for shells needs the packages of the extra `{EXTRA}`: {install(EXTRA)}") from None
    made: str = shtab.complete(_whole(), shell)
    return made


def _whole() -> argparse.ArgumentParser:
    """Return one parser with a verb for each module of this package that is one."""
    whole = argparse.ArgumentParser(prog=main.COMMAND, description="embeds documents into a table of vectors")
    whole.add_argument("--version", action="store_true", help="tell the release")
    verbs = whole.add_subparsers(dest="verb")
    for group in main.VERBS.values():
        for verb, said in group.items():
            if importlib.util.find_spec(f"jobs.{verb}") is not None:
                _add(verbs, verb, said)
    verbs.add_parser(main.COMPLETION, help="print the script for a shell").add_argument("shell", choices=main.SHELLS)
    return whole


def _add(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]", verb: str, said: str) -> None:
    import shtab

    built = parser_of(importlib.import_module(f"jobs.{verb}").main)
    completed = verbs.add_parser(verb, help=said, parents=[built], add_help=False)
    for action in completed._actions:
        if action.dest in _PATHS or (action.metavar in _FILES):
            action.complete = shtab.FILE  # type: ignore[attr-defined]


_PATHS = frozenset(["config", "source"])
_FILES = frozenset(["FILE", "FOLDER", "PATH"])
"""Arguments of these names, or with these words for their values, are files or folders."""
