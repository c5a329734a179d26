"""Quotas of made-up trees of control groups: whatever the version, the depth and the view of a container, the least counts."""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.machine import quotas

MANY = 10_000
"""The made-up machine has so many cores, so that only quotas decide."""
TOTAL, AVAILABLE = 2**50, 2**49
NO_LIMIT_V1 = 0x7FFFFFFFFFFFF000


@dataclass(frozen=True)
class Level:
    """A group, and what it says of itself."""

    quota_us: int | None
    period_us: int
    limit: int | None
    used: int
    idle: int


LEVELS = st.lists(
    st.builds(
        Level,
        quota_us=st.none() | st.integers(1_000, 6_400_000),
        period_us=st.sampled_from([10_000, 100_000, 1_000_000]),
        limit=st.none() | st.integers(2**20, 2**40),
        used=st.integers(0, 2**40),
        idle=st.integers(0, 2**40),
    ),
    min_size=1,
    max_size=4,
)
VIEWS = ["host", "namespace", "bind mount", "elsewhere", "no mountinfo"]
"""`host`: all groups are seen. `namespace`: the own one is the root. `bind mount`: it is mounted under its own name, as
Docker does for version 1. `elsewhere`: it has a name that leads nowhere here. `no mountinfo`: the usual place is taken."""


def write(path: Path, text: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


def describe(folder: Path, level: Level, version: int, folder_of_memory: Path) -> None:
    if version == 2:
        write(folder / "cpu.max", f"{'max' if level.quota_us is None else level.quota_us} {level.period_us}")
        write(folder / "memory.max", "max" if level.limit is None else level.limit)
        write(folder / "memory.high", "max")
        write(folder / "memory.current", level.used)
        write(folder / "memory.stat", f"anon 1\ninactive_file {level.idle}\nother 2")
        return
    write(folder / "cpu.cfs_quota_us", -1 if level.quota_us is None else level.quota_us)
    write(folder / "cpu.cfs_period_us", level.period_us)
    write(folder_of_memory / "memory.limit_in_bytes", NO_LIMIT_V1 if level.limit is None else level.limit)
    write(folder_of_memory / "memory.usage_in_bytes", level.used)
    write(folder_of_memory / "memory.stat", f"cache 1\ninactive_file 0\ntotal_inactive_file {level.idle}")


def build(root: Path, levels: list[Level], version: int, view: str) -> None:
    """Write the files of a system whose process is in the innermost of the groups."""
    names = [f"group {number}" for number in range(1, len(levels))]
    path = "/" + "/".join(names)
    mounts = {"cpu": "sys/fs/cgroup/cpu", "memory": "sys/fs/cgroup/memory"}
    if version == 2:
        mounts = dict.fromkeys(mounts, "sys/fs/cgroup")
    seen = list(zip([tuple(names[:number]) for number in range(len(levels))], levels, strict=True))
    if view in ("namespace", "bind mount", "elsewhere"):
        seen = [((), levels[-1])]
    for inside, level in seen:
        describe(root.joinpath(mounts["cpu"], *inside), level, version, root.joinpath(mounts["memory"], *inside))
    top = path if view == "bind mount" else "/"
    own = {"namespace": "/", "elsewhere": "/../other/pod"}.get(view, path)
    escaped = top.replace(" ", "\\040")
    if version == 2:
        write(root / "proc/self/cgroup", f"0::{own}")
        lines = [f"31 23 0:28 {escaped} /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate"]
    else:
        write(root / "proc/self/cgroup", f"5:cpu,cpuacct:{own}\n4:memory:{own}\n1:name=systemd:/x")
        lines = [
            f"32 31 0:29 {escaped} /sys/fs/cgroup/{name} rw - cgroup cgroup rw,{options}"
            for name, options in (("cpu", "cpu,cpuacct"), ("memory", "memory"), ("systemd", "name=systemd"))
        ]
    if view != "no mountinfo":
        write(root / "proc/self/mountinfo", "\n".join(["22 1 8:1 / / rw - ext4 /dev/vda rw", *lines]))
    write(root / "proc/meminfo", f"MemTotal: {TOTAL // 1024} kB\nMemAvailable: {AVAILABLE // 1024} kB")


@settings(deadline=None)
@given(levels=LEVELS, version=st.sampled_from([1, 2]), view=st.sampled_from(VIEWS))
def test_the_least_quota_on_the_way_up_counts(levels, version, view):
    seen = levels if view in ("host", "no mountinfo") else levels[-1:]
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda pid: set(range(MANY)))
        build(Path(name), levels, version, view)
        found = quotas.cores(Path(name)), quotas.memory_bytes(Path(name)), quotas.free_memory_bytes(Path(name))
    allowed = [level.quota_us // level.period_us for level in seen if level.quota_us is not None]
    limited = [level for level in seen if level.limit is not None]
    assert found[0] == max(1, min([MANY, *allowed]))
    assert found[1] == min([TOTAL, *(level.limit for level in limited)])
    left = [max(0, level.limit - max(0, level.used - level.idle)) for level in limited]
    assert found[2] == min([AVAILABLE, *left])


def test_both_versions_side_by_side_count(tmp_path):
    write(tmp_path / "proc/self/cgroup", "1:cpu:/a\n0::/b")
    mounted = ["1 0 0:1 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu", "2 0 0:2 / /mnt/two rw - cgroup2 none rw"]
    write(tmp_path / "proc/self/mountinfo", "\n".join(mounted))
    write(tmp_path / "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us", 400_000)
    write(tmp_path / "mnt/two/b/cpu.max", "max")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
        assert quotas.cores(tmp_path) == 4
        write(tmp_path / "mnt/two/cpu.max", "300000")
        assert quotas.cores(tmp_path) == 3


@pytest.mark.parametrize("content", ["", "nonsense", "max", "-1 100000", "0 0", "100000 0", "1 2 3 4"])
def test_files_that_say_nothing_bound_nothing(content, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    for name in ("cpu.max", "memory.max"):
        write(tmp_path / "sys/fs/cgroup" / name, content)
    write(tmp_path / "proc/self/mountinfo", content)
    write(tmp_path / "proc/self/cgroup", content)
    assert quotas.cores(tmp_path) >= 1
    quotas.memory_bytes(tmp_path)
    assert quotas.cores(tmp_path / "nothing") == 8
    assert quotas.memory_bytes(tmp_path / "nothing") is None
    assert quotas.free_memory_bytes(tmp_path / "nothing") is None


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system knows no affinity")
def test_a_process_that_may_run_on_one_core_has_one():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert quotas.cores() == 1
    finally:
        os.sched_setaffinity(0, before)


def test_the_system_itself_is_read():
    assert quotas.cores() <= (os.cpu_count() or 1)
    assert 0 < quotas.free_memory_bytes() <= quotas.memory_bytes()
