"""Strikes tell work that kills its workers from work that was merely interrupted.

This is the pure bookkeeping of one run, kept in its monitor. A strike is an attempt that began and never ended
although its node, and with it the driver, lived on. A lost node, a lost driver and a worker that is asked again are
no strikes. This file knows nothing of Ray.
"""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

Work = tuple[Any, ...]
"""It is the stage, and the unit or slice."""


@dataclass(frozen=True)
class Worker:
    name: str
    """It is the name of the process, unlike the name of any other."""
    node: str


class Attempts:
    """It holds the work that is under way, and the strikes against any work."""

    def __init__(self) -> None:
        self._at_work: dict[Work, Worker] = {}
        self._strikes: Counter[Work] = Counter()

    def standing(self, work: Work) -> Worker | None:
        """Return who began the work and didn't end it."""
        return self._at_work.get(work)

    def begin(self, work: Work, worker: Worker, alive: Collection[str]) -> int:
        """Note that the worker begins, or begins again, and return the strikes against the work. The nodes in `alive`
        live."""
        before = self._at_work.get(work)
        if before is not None and before.name != worker.name and before.node in alive:
            self._strikes[work] += 1
        self._at_work[work] = worker
        return self._strikes[work]

    def end(self, work: Work) -> None:
        """Note that the work was done, whatever became of the rows. Its strikes stay, in case it is asked for again."""
        self._at_work.pop(work, None)
