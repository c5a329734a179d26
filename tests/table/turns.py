"""Two processes on one table that take turns: a schedule says after how many operations on storage the other goes on.

Each is a thread with a Folder of its own, and works only while it is its turn: what a stopped process does when it goes on
can be tried at every one of its operations. A copy is two of them: a process can be stopped between reading and writing.
"""

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pipeline.storage import Folder

Process = Callable[[Folder], Any]
TIMEOUT_S = 60
ENDLESS = 10**9


class Turns:
    def __init__(self, names: Iterable[str], schedule: Iterable[tuple[str, int]]) -> None:
        """`schedule`: who goes on, and for how many operations; after it one after the other goes on to its end."""
        self._names = list(names)
        self._turns = iter([*schedule, *((name, ENDLESS) for name in self._names)])
        self._changed = threading.Condition()
        self._ended: set[str] = set()
        self._whose, self._left = next(self._turns)
        self.operations = dict.fromkeys(self._names, 0)

    def take(self, name: str) -> None:
        """Wait until the process may do one more operation."""
        with self._changed:
            self._pass_on()
            while self._whose != name:
                if not self._changed.wait(TIMEOUT_S):
                    raise TimeoutError(f"{name} never had its turn")
                self._pass_on()
            self._left -= 1
            self.operations[name] += 1

    def end(self, name: str) -> None:
        with self._changed:
            self._ended.add(name)
            self._pass_on()

    def _pass_on(self) -> None:
        while (self._left == 0 or self._whose in self._ended) and self._ended != set(self._names):
            self._whose, self._left = next(self._turns)
            self._changed.notify_all()


class InTurn(Folder):
    """One process's view of the table."""

    turns: Turns
    process: str

    def of(self, turns: Turns, process: str) -> "InTurn":
        object.__setattr__(self, "turns", turns)
        object.__setattr__(self, "process", process)
        return self

    def _take(self) -> None:
        self.turns.take(self.process)

    def gather(self, prefix, take, temporary=False):
        self._take()
        return super().gather(prefix, take, temporary)

    def read(self, path):
        self._take()
        return super().read(path)

    def write(self, path, data):
        self._take()
        super().write(path, data)

    def create_once(self, path, data):
        self._take()
        return super().create_once(path, data)

    def copy(self, source, target):
        self._take()
        content = super().read(source)
        self._take()
        if content is None:
            super().copy(source, target)
        else:
            super().write(target, content)

    def delete(self, paths):
        for path in paths:
            self._take()
            super().delete([path])

    def size(self, path):
        self._take()
        return super().size(path)

    def open(self, path):
        self._take()
        return super().open(path)


def take_turns(
    table: Folder, processes: Mapping[str, Process], schedule: Iterable[tuple[str, int]]
) -> tuple[dict[str, Any], dict[str, int]]:
    """What each returned or raised, and how many operations each did."""
    turns = Turns(processes, schedule)
    results: dict[str, Any] = {}

    def work(name: str, process: Process) -> None:
        try:
            results[name] = process(InTurn(table.url, table.options).of(turns, name))
        except Exception as error:
            results[name] = error
        finally:
            turns.end(name)

    threads = [threading.Thread(target=work, args=pair, daemon=True) for pair in processes.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * TIMEOUT_S)
    return results, turns.operations
