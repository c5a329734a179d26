"""A command that takes a configuration takes documents, too: what was chosen for them is said, and written beside them."""

import argparse
import sys
from typing import TYPE_CHECKING

from jobs.command import Arguments, Parser
from pipeline.config import RunSpec, load
from pipeline.errors import InputError

if TYPE_CHECKING:
    from pipeline.runs.first_spec import Wishes


def add_choices(command: Parser) -> argparse._ArgumentGroup:
    """Add the options that choose what a source is embedded with."""
    group = command.add_argument_group("for documents without a configuration; what is left out is chosen, and said")
    group.add_argument(
        "--text", metavar="COLUMN", action="append", help="embed this column; several are joined by a newline"
    )
    group.add_argument("--id", metavar="COLUMN", action="append", help="it tells documents apart; `none` numbers rows")
    group.add_argument(
        "--model", metavar="MODEL", help="a folder, a Hub id, a store's URL or package:<package>/<folder>"
    )
    group.add_argument("--table", metavar="FOLDER", help="the table to make (SOURCE.embeddings)")
    return group


def wishes_of(arguments: argparse.Namespace) -> "Wishes":
    """Return the choices of a command line, as `first_spec.Wishes`."""
    from pipeline.runs.first_spec import Wishes

    ids = None if arguments.id is None else () if arguments.id == ["none"] else tuple(arguments.id)
    return Wishes(model=arguments.model, text=tuple(arguments.text or ()), id=ids, table=arguments.table)


def spec_of(arguments: Arguments) -> RunSpec:
    """Return the run of a configuration, or of documents: by the configuration beside them, which is written where there is
    none. Raises InputError."""
    from pipeline.runs import first_spec

    given, wishes = arguments.config, wishes_of(arguments)
    if not first_spec.is_source(given):
        if wishes:
            raise InputError(
                "--text, --id, --model and --table choose for documents without a configuration, and "
                f"{given!r} is one: change it there, or use --set"
            )
        return load(given, arguments.set)
    chosen = first_spec.for_source(given, wishes, arguments.set, writes=not arguments.dry_run)
    stream = sys.stderr if arguments.json else sys.stdout
    if chosen is None:
        place = first_spec.place_of(given)
        print(f"configuration {place}", file=stream, flush=True)
        return load(place, arguments.set)
    print(chosen.told(writes=not arguments.dry_run), file=stream, flush=True)
    return chosen.spec()
