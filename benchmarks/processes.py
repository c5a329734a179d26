"""The parent's side of a contestant: its process, its turns, and the most memory that it and its children held."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from dataclasses import asdict
from typing import Any

import psutil

from benchmarks.turns import Settings, Turn

LOOK_S = 1.0
"""Between looks at the memory: each takes some milliseconds of a core."""


class Process:
    """Computes only while `turn` runs."""

    def __init__(self, name: str, settings: Settings, path: str = "") -> None:
        """`path`: where to look for packages before the environment's own."""
        self._name = name
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [path, os.getcwd()]))}
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by close
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.contestants", name, json.dumps(asdict(settings))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment,
        )
        self._memory = _Memory(self._process.pid)
        self.start_s: float = self._answer()["start_s"]
        """Imports, loading the model, a first small batch."""

    def turn(self, **request: Any) -> Turn:
        assert self._process.stdin is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return Turn(**self._answer())

    @property
    def peak_bytes(self) -> int:
        """The most memory of process and children so far."""
        return self._memory.peak

    @property
    def turn_peak_bytes(self) -> int:
        """The same in the last turn alone."""
        return self._memory.last_peak

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        with self._memory.watched():
            line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._log.seek(0)
            told = self._log.read()[-3000:]
            self.close()
            raise SystemExit(f"contestant {self._name} failed:\n{told}")
        answer: dict[str, Any] = json.loads(line)
        return answer


class _Memory:
    """Of a process and its descendants: what each holds alone, and the largest part that one shares with others
    (libraries, Ray's object store). Cheap to read, unlike the maps from which an exact share could be summed."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self.peak = self.last_peak = 0

    @contextlib.contextmanager
    def watched(self) -> Any:
        self.last_peak = 0
        stop = threading.Event()
        thread = threading.Thread(target=self._look_until, args=(stop,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _look_until(self, stop: threading.Event) -> None:
        while not stop.wait(LOOK_S):
            with contextlib.suppress(psutil.Error):
                sizes = [_size(process.pid) for process in [self._root, *self._root.children(recursive=True)]]
                held = sum(alone for alone, _ in sizes) + max(shared for _, shared in sizes)
                self.last_peak, self.peak = max(self.last_peak, held), max(self.peak, held)


def _size(pid: int) -> tuple[int, int]:
    """(bytes that are the process's own, bytes that it shares)."""
    try:
        with open(f"/proc/{pid}/statm") as file:
            _, resident, shared, *_ = map(int, file.read().split())
    except OSError:  # it has just ended, or this is not Linux
        return 0, 0
    page = os.sysconf("SC_PAGESIZE")
    return (resident - shared) * page, shared * page
