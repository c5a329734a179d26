"""Which calls of a store's stand-in get a fault: by their names, by their numbers, or by chance."""

import random
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


@dataclass
class Faults:
    kinds: Sequence[str]
    """Those that come by chance."""
    rate: float = 0.0
    """Share of calls that get one of them."""
    victim: int = 0
    """The process that a fault kills."""
    calls: list[str] = field(default_factory=list)
    """The names of all calls that came."""
    met: Counter[str] = field(default_factory=Counter)
    chance: random.Random = field(default_factory=lambda: random.Random(0))
    planned: list[tuple[Callable[[int, str], bool], str, int]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def at(self, name: str, fault: str, times: int = 1) -> None:
        """Give the next calls of a name a fault."""
        self.planned.append((lambda _, found: found == name, fault, times))

    def at_call(self, number: int, fault: str) -> None:
        """Give a fault to the call of this number, of all that come from now on, counted from 0."""
        first = len(self.calls)
        self.planned.append((lambda count, _: count == first + number, fault, 1))

    def next(self, name: str) -> str:
        """Count a call that came; return the fault that it gets, or nothing."""
        with self.lock:
            self.calls.append(name)
            fault = self._planned(name)
            if not fault and self.chance.random() < self.rate:
                fault = self.chance.choice(self.kinds)
            if fault:
                self.met[fault] += 1
            return fault

    def _planned(self, name: str) -> str:
        for place, (fits, fault, times) in enumerate(self.planned):
            if fits(len(self.calls) - 1, name):
                self.planned[place : place + 1] = [(fits, fault, times - 1)] if times > 1 else []
                return fault
        return ""
