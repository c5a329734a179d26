"""Who works at what, and what died there: tells work that kills its workers from work that was merely interrupted.

Pure bookkeeping of one run, kept in its monitor. A strike is an attempt that began and never ended although its node, and
with it the driver, lived on: a lost node, a lost driver and a worker that is asked again are none. Knows nothing of Ray.
"""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

Work = tuple[Any, ...]
"""The stage, and which unit or slice."""


@dataclass(frozen=True)
class Worker:
    name: str
    """Of the process, unlike that of any other."""
    node: str


class Attempts:
    """Holds the work that is under way, and the strikes of what has any."""

    def __init__(self) -> None:
        self._at_work: dict[Work, Worker] = {}
        self._strikes: Counter[Work] = Counter()

    def standing(self, work: Work) -> Worker | None:
        """Who began the work and didn't end it."""
        return self._at_work.get(work)

    def begin(self, work: Work, worker: Worker, alive: Collection[str]) -> int:
        """The worker begins, or begins again; returns the strikes against the work. `alive`: the nodes that are."""
        before = self._at_work.get(work)
        if before is not None and before.name != worker.name and before.node in alive:
            self._strikes[work] += 1
        self._at_work[work] = worker
        return self._strikes[work]

    def end(self, work: Work) -> None:
        """It was done, whatever became of the rows; its strikes stay, should it be asked for again."""
        self._at_work.pop(work, None)
