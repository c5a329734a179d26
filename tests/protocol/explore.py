"""All states that a model can reach, breadth first: the first broken one is told with the shortest way to it.

A first state, a function of the steps that lead on from a state, and a function that says what is broken in one come in.
A count of states, or the shortest counterexample, goes out. Nothing is known here of tables.
"""

from collections import deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

S = TypeVar("S", bound=Hashable)

MOST_STATES = 5_000_000


@dataclass(frozen=True)
class Explored(Generic[S]):
    states: int
    steps: int
    ends: int
    """So many states have no step that leads on."""
    fault: str = ""
    """What is broken in the last state of `way`; nothing if all holds."""
    way: tuple[str, ...] = ()
    """The steps that lead to the broken state, from the first one on."""
    last: S | None = None

    def __str__(self) -> str:
        if not self.fault:
            return f"{self.states:,} states, {self.steps:,} steps, {self.ends:,} ends: all holds"
        lines = [f"{number:3}  {step}" for number, step in enumerate(self.way, 1)]
        return "\n".join([f"broken after {len(self.way)} steps: {self.fault}", *lines])


def explore(
    first: S, successors: Callable[[S], Iterable[tuple[str, S]]], broken: Callable[[S, bool], str]
) -> Explored[S]:
    """Visit every state once. `broken` is asked about each state, and is told whether the state is an end.

    A process that died is one that takes no further step, so every state also stands for deaths in it.
    """
    came_from: dict[S, tuple[S, str] | None] = {first: None}
    waiting = deque([first])
    steps = ends = 0
    while waiting:
        state = waiting.popleft()
        following = list(successors(state))
        steps += len(following)
        ends += not following
        fault = broken(state, not following)
        if fault:
            return Explored(len(came_from), steps, ends, fault, _way(came_from, state), state)
        for label, after in following:
            if after not in came_from:
                came_from[after] = (state, label)
                waiting.append(after)
        if len(came_from) > MOST_STATES:
            raise AssertionError(f"more than {MOST_STATES:,} states: the model has grown beyond what can be explored")
    return Explored(len(came_from), steps, ends)


def _way(came_from: dict[S, tuple[S, str] | None], state: S) -> tuple[str, ...]:
    labels = []
    while (origin := came_from[state]) is not None:
        state, label = origin
        labels.append(label)
    return tuple(reversed(labels))
