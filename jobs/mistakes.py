"""What is wrong with a command line is told in one line, with what was probably meant.

What argparse found wrong comes in, with the parser that found it. A sentence goes out. This file parses and prints nothing.
"""

import argparse
import difflib
import re
from collections.abc import Iterable, Sequence

QUESTION = "query"
"""A command that takes a question has it in an argument of this name."""
_KINDS = {"int": "a whole number", "float": "a number"}
_WRONG_KIND = re.compile(r"argument (.+): invalid (\w+) value: (.+)", re.DOTALL)
_NO_VALUE = ": expected one argument"
_MISSING = "the following arguments are required: "


def near(given: str, known: Iterable[str]) -> str:
    """Return the question whether a name was meant that is much like the one that was given; "" where none is."""
    names = [str(name) for name in known]
    found = difflib.get_close_matches(given, names, 1, 0.6) or difflib.get_close_matches(
        given.lower(), [name for name in names if name == name.lower()], 1, 0.6
    )
    return f"did you mean {found[0]!r}?" if found else ""


def not_among(value: object, choices: Iterable[object]) -> str:
    """Say that a value is none of those that an option takes."""
    names = [str(choice) for choice in choices]
    hint = near(str(value), names)
    return f"{str(value)!r} is none of {', '.join(names)}" + (f": {hint}" if hint else "")


def left_over(parser: argparse.ArgumentParser, parsed: argparse.Namespace, rest: Sequence[str]) -> str:
    """Say what is wrong with arguments that no option and no place takes."""
    options = [word for word in rest if word.startswith("-") and word != "-"]
    if options:
        name = options[0].partition("=")[0]
        hint = near(name, _options(parser))
        return f"there is no option {name!r}" + (f": {hint}" if hint else "")
    places = [action for action in parser._actions if not action.option_strings]
    if any(action.dest == QUESTION for action in places):
        words = " ".join([getattr(parsed, QUESTION) or "", *rest]).strip()
        return f'a question is one argument, in quotes: "{words}"'
    taken = " ".join(_name(action) for action in places)
    return f"{' '.join(rest)!r} is too much: beside options this takes {taken}"


def translated(parser: argparse.ArgumentParser, message: str, given: Sequence[str]) -> str:
    """Say in this program's words what argparse says of the arguments that were given."""
    wrong = _WRONG_KIND.fullmatch(message)
    if wrong is not None and wrong[2] in _KINDS:
        return f"{wrong[1]} is {wrong[3]}: give {_KINDS[wrong[2]]}"
    if message.endswith(_NO_VALUE):
        return f"{message.removeprefix('argument ').removesuffix(_NO_VALUE)} needs a value"
    if message.startswith(_MISSING):
        return _lacking(parser, message.removeprefix(_MISSING), given)
    return message.removeprefix("argument ")


def _lacking(parser: argparse.ArgumentParser, names: str, given: Sequence[str]) -> str:
    """Say what is missing, and which option may have taken it: one that takes several values takes all that follows it."""
    greedy = {option: action for action in parser._actions if action.nargs == "+" for option in action.option_strings}
    took = [word for word in given if word in greedy]
    if took and not names.startswith("-"):
        return f"{names} is missing: it stands before {took[-1]}, which takes all that follows it"
    return f"{names} is missing"


def _options(parser: argparse.ArgumentParser) -> list[str]:
    return [option for action in parser._actions for option in action.option_strings]


def _name(action: argparse.Action) -> str:
    name = action.metavar if isinstance(action.metavar, str) else action.dest
    return f"[{name} ..]" if action.nargs == "*" else f"[{name}]" if action.nargs == "?" else name
