"""All commands share their arguments, how they print a result, and how an error ends them.

An error becomes a line on stderr and an exit code.
"""

import argparse
import json
import logging
import sys
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.errors import PipelineError, one_line

INTERRUPTED = 130


class Arguments(argparse.Namespace):
    """They are the parsed arguments of a command."""

    config: str
    set: list[str]
    json: bool
    dry_run: bool

    def show(self, result: Mapping[str, Any], text: str) -> None:
        """Print for machines with --json, else for a person."""
        print(json.dumps(result, default=str) if self.json else text)


class Parser(argparse.ArgumentParser):
    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        return super().parse_args(args, namespace or Arguments())


def parser(docstring: str | None, *, dry_run: bool, takes_tables: bool = False) -> Parser:
    """Return a command's parser, described by its module's docstring."""
    built = Parser(description=docstring, formatter_class=argparse.RawDescriptionHelpFormatter)
    if takes_tables:
        described = "the run's configuration, or the folder or URL of the table alone"
        built.add_argument("config", metavar="CONFIG.yaml|TABLE", help=described)
    else:
        built.add_argument("config", metavar="CONFIG.yaml", help="the run's configuration")
    built.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="override section.key")
    built.add_argument("--json", action="store_true", help="print the result as one JSON object")
    if dry_run:
        built.add_argument("--dry-run", action="store_true", help="print the plan and change nothing")
    return built


def main_of(main: Callable[[], int]) -> int:
    """Run a command's main. An error of ours becomes one line on stderr and its exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    try:
        return main()
    except PipelineError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted: finished work is kept, the same command goes on from here", file=sys.stderr)
        return INTERRUPTED
