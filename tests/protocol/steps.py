"""How the steps of the model are written down, and what all of them share.

A step is a function of the state, the process that takes it, and the rules; it yields what may come of it, each with a note
for the reader of a counterexample. Its mark names the function of the program that it stands for.
"""

from collections.abc import Callable, Iterator

from tests.protocol.rules import Rules
from tests.protocol.state import UNFINISHED, Process, State

Outcomes = Iterator[tuple[str, State]]
Step = Callable[[State, Process, Rules], Outcomes]

STEPS: dict[str, Step] = {}
STANDS_FOR: dict[str, str] = {}
"""Step -> `module:function` of the program."""


def step(stands_for: str) -> Callable[[Step], Step]:
    """Enter a function under its own name."""

    def entered(function: Step) -> Step:
        STEPS[function.__name__] = function
        STANDS_FOR[function.__name__] = stands_for
        return function

    return entered


def copied(state: State, me: Process, pair: tuple[str, ...]) -> tuple[str, State, bool | None]:
    """Half of a copy: (a note, what comes of it, whether the copy is over; None where there is nothing to copy any more).

    A copy on a disk is an unfinished file first, which others see, and then gets its name. `held` is that file.
    """
    source, target = pair
    unfinished = f"{target}{UNFINISHED}{me.name}"
    if me.held == (unfinished,):
        waiting = state.file(unfinished)
        if waiting is None:
            return f"finds that {unfinished} was deleted", state.go(me, me.at, held=()), False
        return f"{target} stands", state.delete([unfinished]).write(target, waiting.content), True
    here, there = state.file(source), state.file(target)
    if here is None:
        return f"{source} is gone", state, None if there is None else True
    if there is not None and there.content == here.content:
        return f"{target} was there", state, True
    begun = state.write(unfinished, here.content)
    return f"copies {source} to {target}", begun.go(me, me.at, held=(unfinished,)), False


def name_of(path: str) -> str:
    return path.rpartition("/")[2]
