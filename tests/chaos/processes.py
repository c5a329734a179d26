"""The processes below one of ours, what they do by their titles, and their end. Never touches anybody else's."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

TITLES = {
    "encoder": "ray::MapWorker(MapBatches(EncodeStage))",
    "tokenizer": "ray::MapBatches(read_stage)",
    "writer": "ray::MapBatches(write_stage)",
}
"""What Ray calls a process while it has such work."""


@dataclass(frozen=True)
class Process:
    pid: int
    born: int
    """Clock ticks since boot: a pid alone may be another process's by now."""

    @property
    def title(self) -> str:
        with contextlib.suppress(OSError):
            return Path(f"/proc/{self.pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        return ""


def process(pid: int) -> Process:
    """Raises OSError if there is none."""
    return Process(pid, _status(pid)[1])


def resident_bytes(pid: int) -> int:
    """Of a process's memory; 0 when it is gone."""
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def descendants(*roots: int) -> list[Process]:
    """All processes below the roots, without themselves."""
    children: dict[int, list[Process]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                parent, born = _status(int(folder.name))
                children.setdefault(parent, []).append(Process(int(folder.name), born))
    found, waiting = [], list(roots)
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += [child.pid for child in below]
    return found


def _status(pid: int) -> tuple[int, int]:
    """The parent's pid and when the process was born."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[1]), int(fields[19])


def workers(kind: str, *roots: int) -> list[Process]:
    """The processes below the roots that have work of this kind right now."""
    return [found for found in descendants(*roots) if found.title.startswith(TITLES[kind])]


def kill(victims: Iterable[Process]) -> None:
    """SIGKILL to those that still live."""
    for victim in victims:
        with contextlib.suppress(OSError):
            if process(victim.pid) == victim:
                os.kill(victim.pid, signal.SIGKILL)


def finished(run: "subprocess.Popen[bytes]", within_s: float) -> int:
    """The exit status; a run that hangs is ended with all below it, and has that of a killed one."""
    try:
        return run.wait(within_s)
    except subprocess.TimeoutExpired:
        kill([*descendants(run.pid), process(run.pid)])
        return run.wait()


def wait_for(condition: Callable[[], bool], ended: Callable[[], bool], every_s: float = 0.003) -> bool:
    """Whether the condition came true before the end."""
    while not condition():
        if ended():
            return False
        time.sleep(every_s)
    return True
