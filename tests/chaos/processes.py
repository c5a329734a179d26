"""The processes below one of ours, what they do by their titles, and their end. Never touches anybody else's."""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

TITLES = {
    "encoder": ("ray::MapWorker(MapBatches(EncodeStage))",),
    "worker": ("ray::MapBatches(_read_and_tokenize)", "ray::MapBatches(_write)"),
}
"""What Ray calls a process while it has such work."""


def descendants(root: int) -> list[int]:
    """All processes below `root`, without itself."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
                children.setdefault(parent, []).append(int(folder.name))
    found, waiting = [], [root]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def title(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return ""


def resident_bytes(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def workers(root: int, kind: str) -> list[int]:
    """The processes below `root` that have work of this kind right now."""
    return [pid for pid in descendants(root) if title(pid).startswith(TITLES[kind])]


def kill(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def wait_for(condition: Callable[[], bool], ended: Callable[[], bool], every_s: float = 0.003) -> bool:
    """Whether the condition came true before the end."""
    while not condition():
        if ended():
            return False
        time.sleep(every_s)
    return True
