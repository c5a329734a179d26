"""A process of some machine, described so that another one can tell whether it is dead; where it can't, it says no.

Knows nothing of tables or storage. Only Linux tells: elsewhere no process is known to be dead.
"""

import os
import socket
from dataclasses import dataclass
from pathlib import Path

_STARTED = 19
"""Index of the start among the fields of /proc/<pid>/stat after the command's name; the first is the state."""


@dataclass(frozen=True, kw_only=True)
class Process:
    host: str
    pid: int
    world: str
    """Where the pid means this process: this boot of this kernel, and this namespace of pids; "" where nobody knows."""
    started: str
    """When, in the kernel's own count: a pid is used again."""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def this_process() -> Process:
    _, started = _state(os.getpid())
    return Process(host=socket.gethostname(), pid=os.getpid(), world=_world(), started=started)


def is_dead(process: Process) -> bool:
    """True only where it is certain."""
    if not process.world or process.world != _world():
        return False
    state, started = _state(process.pid)
    return state in ("", "Z", "X") or started != process.started


def _world() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _state(pid: int) -> tuple[str, str]:
    """The kernel's letter for how it is, and when it started; "" if there is none, or no /proc."""
    try:
        # The command's name stands in parentheses and may hold any character.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return "", ""
    return fields[0], fields[_STARTED]
