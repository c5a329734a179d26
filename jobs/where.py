"""The option --where takes one condition, and more that follow it, but never the question that follows them.

Arguments come in, and go out with one --where before each condition, for which the parser then needs no look at what
follows.
"""

from jobs.command import Parser

OPTION = "--where"


def add_where(command: Parser, described: str) -> None:
    """Add the option: each condition comes into the list `where`."""
    command.add_argument(OPTION, metavar="CONDITION", action="append", default=[], help=described)
    command.prepare = spread


def spread(given: list[str]) -> list[str]:
    """Return the arguments with one `--where=CONDITION` for each condition.

    What stands behind the option is a condition, whatever it looks like. Of what follows, that is one which is written as
    one, up to the first argument that is not: a question or a table is left where it stands.
    """
    spread_out, rest = list[str](), list(given)
    while rest:
        word = rest.pop(0)
        if word == "--":
            return [*spread_out, word, *rest]
        if not _is_option(word) or not rest or rest[0].startswith("--"):
            spread_out.append(word)
            continue
        spread_out.append(f"{OPTION}={rest.pop(0)}")
        while rest and not rest[0].startswith("-") and _is_condition(rest[0]):
            spread_out.append(f"{OPTION}={rest.pop(0)}")
    return spread_out


def _is_option(word: str) -> bool:
    """Say whether this is the option, or a beginning of it that argparse takes for it."""
    return len(word) > 2 and OPTION.startswith(word)


def _is_condition(text: str) -> bool:
    from pipeline.table.conditions import is_condition

    return is_condition(text)
