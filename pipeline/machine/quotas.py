"""What this process may use of its machine: cores, and bytes of memory.

The files of the system come in, below a root that tests replace. The least of what they allow goes out: the cores that the
process may run on, the machine's memory, and the quotas of its control groups, version 1 and 2, from its own group up to
the outermost one that can be seen. A container sees the whole machine, but it is slowed down, or ended, at its own quota.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

SYSTEM = Path("/")
_DEFAULT_PERIOD_US = 100_000
_NO_LIMIT = 2**62
"""A larger limit on memory is none: version 1 writes 2^63 less a page."""
_V2 = "cgroup2"


def cores(root: Path = SYSTEM) -> int:
    """Return the number of whole cores that this process may keep busy, at least 1.

    A quota of 1.5 CPUs gives one core. Its other half is for what is not encoding.
    """
    found = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    for version, folder in _groups(root, "cpu"):
        quota = _quota_v2(folder) if version == _V2 else _quota_v1(folder)
        found += [quota] if quota is not None else []
    return max(1, min(found))


def memory_bytes(root: Path = SYSTEM) -> int | None:
    """Return the bytes of memory that this process and those beside it in its container may use. None where the system
    doesn't say."""
    limits = [limit for version, folder in _groups(root, "memory") for limit in _limits(version, folder)]
    return min([*_meminfo(root, "MemTotal"), *limits], default=None)


def free_memory_bytes(root: Path = SYSTEM) -> int | None:
    """Return the bytes that the machine, or the container's quota, has left. None where the system doesn't say.

    Cached pages of files that nobody uses count as free, since the system gives them up first.
    """
    left = _meminfo(root, "MemAvailable")
    for version, folder in _groups(root, "memory"):
        used = _number(folder / ("memory.current" if version == _V2 else "memory.usage_in_bytes"))
        if used is not None:
            held = max(0, used - _idle_cache(version, folder))
            left += [max(0, limit - held) for limit in _limits(version, folder)]
    return min(left, default=None)


# --- the groups of this process


def _groups(root: Path, controller: str) -> Iterator[tuple[str, Path]]:
    """Yield (version, folder) of this process's group and of each group above it."""
    for version, mounted, top in _mounts(root, controller):
        for path in _own_groups(root, controller, version):
            folder = _below(mounted, top, path)
            while True:
                yield version, folder
                if folder == mounted:
                    break
                folder = folder.parent


def _mounts(root: Path, controller: str) -> list[tuple[str, Path, str]]:
    """Return (version, folder, the group that stands there) of each hierarchy that may hold the controller."""
    found = []
    for line in _lines(root / "proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        fields, (kind, *_, options) = before.split(), [*after.split(), "", ""][:3]
        if len(fields) >= 5 and (kind == _V2 or (kind == "cgroup" and controller in options.split(","))):
            found.append((kind, _at(root, _unescaped(fields[4])), _unescaped(fields[3])))
    if found:
        return found
    folder = root / "sys/fs/cgroup"
    return [(_V2, folder, "/"), ("cgroup", folder / controller, "/")]


def _own_groups(root: Path, controller: str, version: str) -> list[str]:
    """Return the path of this process's group as the system names it."""
    found = []
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if (controllers == "") if version == _V2 else (controller in controllers.split(",")):
            found.append(path)
    return found or ["/"]


def _below(mounted: Path, top: str, path: str) -> Path:
    """Return the folder of the group `path` where the group `top` stands at `mounted`. A group that can't be seen from
    here, as in a container that got another name for its own, is the one that is mounted."""
    try:
        inside = PurePosixPath(path).relative_to(top)
    except ValueError:
        return mounted
    return mounted if ".." in inside.parts else mounted / inside


def _at(root: Path, path: str) -> Path:
    return root / path.lstrip("/")


def _unescaped(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), field)


# --- what a group says


def _quota_v2(folder: Path) -> int | None:
    for line in _lines(folder / "cpu.max"):
        quota, period = [*line.split(), "", ""][:2]
        return _whole_cores(_whole(quota), _whole(period) or _DEFAULT_PERIOD_US)
    return None


def _quota_v1(folder: Path) -> int | None:
    period = _number(folder / "cpu.cfs_period_us") or _DEFAULT_PERIOD_US
    return _whole_cores(_number(folder / "cpu.cfs_quota_us"), period)


def _whole_cores(quota: int | None, period: int) -> int | None:
    """A negative quota is none."""
    return quota // period if quota is not None and quota > 0 and period > 0 else None


def _limits(version: str, folder: Path) -> list[int]:
    """Return the limits on the group's memory. Beyond `memory.high` its processes are held up until they barely run."""
    names = ("memory.max", "memory.high") if version == _V2 else ("memory.limit_in_bytes",)
    found = [_number(folder / name) for name in names]
    return [limit for limit in found if limit is not None and 0 <= limit < _NO_LIMIT]


def _idle_cache(version: str, folder: Path) -> int:
    name = "inactive_file" if version == _V2 else "total_inactive_file"
    for line in _lines(folder / "memory.stat"):
        key, _, value = line.partition(" ")
        if key == name:
            return _whole(value) or 0
    return 0


def _meminfo(root: Path, key: str) -> list[int]:
    """Return the bytes that /proc/meminfo tells, as a list of one, or none."""
    for line in _lines(root / "proc/meminfo"):
        name, _, value = line.partition(":")
        kilobytes = _whole(value.split()[0]) if value.split() else None
        if name == key and kilobytes is not None:
            return [kilobytes * 1024]
    return []


def _number(path: Path) -> int | None:
    return next((_whole(line) for line in _lines(path)), None)


def _whole(text: str) -> int | None:
    with contextlib.suppress(ValueError):
        return int(text)
    return None


def _lines(path: Path) -> list[str]:
    """Return the lines of a file of the system, none where it can't be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
