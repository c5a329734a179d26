"""A disk in memory, call by call as the kernel offers them: the program's own code for disks runs on it, unchanged.

Paths are /sim/<process>/<key>; the second piece says which process acts. Files are nodes with any number of names, so a
hard link is what it is on a disk. A process that dies amid a write leaves half of it. When the power fails, what was never
synced may be gone: bytes of a file, and names in a folder, each by itself.
"""

import errno
import io
import os
import random
import stat
from collections.abc import Callable, Iterator
from types import SimpleNamespace, TracebackType
from typing import Any, TypeVar

from pipeline.storage.file import TEMPORARY
from tests.simulation.object_store import Watching
from tests.simulation.scheduler import Answer, Crashed, Scheduler

ROOT = "/sim/"
T = TypeVar("T")


class Node:
    """A file's bytes; it may have several names, or none any more."""

    def __init__(self, number: int, now: float, process: str) -> None:
        self.number, self.process = number, process
        self.data, self.synced = b"", b""
        self.written = self.changed = now


class Branch:
    """A folder: its names as processes see them, and as they are after a power cut."""

    def __init__(self) -> None:
        self.names: dict[str, Node | Branch] = {}
        self.synced: dict[str, Node | Branch] = {}


class FileSystem:
    """It takes the place of the module `os` for paths below /sim/; everything else goes to the real one."""

    sep, O_RDONLY = os.sep, os.O_RDONLY

    def __init__(self, scheduler: Scheduler, *, links: bool = True) -> None:
        """Without `links` it refuses hard links, as many mounts do."""
        self.scheduler = scheduler
        self.watching: Watching | None = None
        self.path = _Paths(self)
        self._links = links
        self._root = Branch()
        self._numbers = iter(range(1, 10**9))
        self._open: dict[int, Node | Branch] = {}
        self._walking: dict[str, set[str]] = {}
        """The folders that a process has just listed: the files in them are looked up with them."""

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    # --- what is there, for those who look on

    def get(self, key: str) -> bytes | None:
        found = self._find(key)
        return found.data if isinstance(found, Node) else None

    def names(self) -> list[str]:
        return sorted(key for key, _ in _files(self._root, ""))

    def writer(self, key: str) -> str:
        found = self._find(key)
        assert isinstance(found, Node)
        return found.process

    def is_written(self) -> bool:
        """Whether a living process is amid the write of a file."""
        alive = {name for name, process in self.scheduler.processes.items() if not (process.dead or process.ended)}
        return any(TEMPORARY in key and node.process in alive for key, node in _files(self._root, ""))

    def cut_power(self, chance: random.Random) -> None:
        """Of what was not synced some is lost, some is not."""
        _lose(self._root, chance)
        self._open.clear()

    # --- looking

    def stat(self, path: str) -> Any:
        if not path.startswith(ROOT):
            return os.stat(path)
        process, key = _split(path)
        if key.rpartition("/")[0] not in self._walking.get(process, ()):
            self._enter("look up", path)
        return self._status(key, path)

    def fstat(self, descriptor: int) -> Any:
        found = self._open.get(descriptor)
        return os.fstat(descriptor) if found is None else _status_of(found)

    def scandir(self, path: str) -> Any:
        if not path.startswith(ROOT):
            return os.scandir(path)
        self._enter("list", path)
        process, key = _split(path)
        self._walking.setdefault(process, set()).add(key)
        return _Entries(list(self._branch(key, path).names))

    def open(self, path: str, flags: int) -> int:
        """A folder, to be synced."""
        if not path.startswith(ROOT):
            return os.open(path, flags)
        return self._opened(self._branch(_split(path)[1], path))

    def close(self, descriptor: int) -> None:
        if self._open.pop(descriptor, None) is None:
            os.close(descriptor)

    def fsync(self, descriptor: int) -> None:
        found = self._open.get(descriptor)
        if found is None:
            os.fsync(descriptor)
        elif isinstance(found, Node):
            found.synced = found.data
        else:
            found.synced = dict(found.names)

    # --- files

    def open_file(self, path: str, mode: str = "r", *others: Any, **options: Any) -> Any:
        """What takes the place of the builtin `open`."""
        if not str(path).startswith(ROOT):
            return open(path, mode, *others, **options)
        process, key = _split(path)
        if mode == "rb":
            self._enter("open", path)
            found = self._find(key)
            if found is None:
                raise _error(errno.ENOENT, path)
            if isinstance(found, Branch):
                raise _error(errno.EISDIR, path)
            return _Read(self, found)
        assert mode == "xb", mode
        self._enter("begin", path)
        parent, name = self._parent(key, path)
        if name in parent.names:
            raise _error(errno.EEXIST, path)
        node = Node(next(self._numbers), self.scheduler.clock.now, process)
        parent.names[name] = node
        self._told(key)
        return _Written(self, node, path)

    def replace(self, source: str, target: str) -> None:
        self._lossy("replace", target, lambda: self._move(source, target))

    def rename(self, source: str, target: str) -> None:
        self._lossy("rename", target, lambda: self._move(source, target))

    def link(self, source: str, target: str) -> None:
        self._lossy("link", target, lambda: self._link(source, target))

    def unlink(self, path: str) -> None:
        self._lossy("unlink", path, lambda: self._unlink(path))

    def mkdir(self, path: str) -> None:
        self._enter("mkdir", path)
        parent, name = self._parent(_split(path)[1], path)
        if name in parent.names:
            raise _error(errno.EEXIST, path)
        parent.names[name] = Branch()

    def rmdir(self, path: str) -> None:
        if not path.startswith(ROOT):
            os.rmdir(path)
            return
        self._enter("rmdir", path)
        key = _split(path)[1]
        if self._branch(key, path).names:
            raise _error(errno.ENOTEMPTY, path)
        parent, name = self._parent(key, path)
        del parent.names[name]

    # --- inside

    def _enter(self, what: str, path: str) -> Answer:
        process, key = _split(path)
        answer = self.scheduler.enter(process, what, key)
        if what != "list":
            self._walking.pop(process, None)
        if answer is Answer.REFUSED:
            raise _error(errno.EIO, path)
        return answer

    def _lossy(self, what: str, path: str, act: Callable[[], None]) -> None:
        answer = self._enter(what, path)
        act()
        if answer is Answer.LOST:
            raise _error(errno.EIO, path)

    def _move(self, source: str, target: str) -> None:
        old, new = _split(source)[1], _split(target)[1]
        (above, name), (below, other) = self._parent(old, source), self._parent(new, target)
        moved, there = above.names.get(name), below.names.get(other)
        if moved is None:
            raise _error(errno.ENOENT, source)
        if isinstance(moved, Branch) and there is not None:
            if isinstance(there, Node):
                raise _error(errno.ENOTDIR, target)
            if there.names:
                raise _error(errno.ENOTEMPTY, target)
        if moved is there:
            return  # as a kernel does: both names stay
        del above.names[name]
        below.names[other] = moved
        if isinstance(moved, Node):
            moved.changed = self.scheduler.clock.now
            self._told(new)
            self._told_gone(old)

    def _link(self, source: str, target: str) -> None:
        if not self._links:
            raise _error(errno.EPERM, target)
        node = self._find(_split(source)[1])
        if not isinstance(node, Node):
            raise _error(errno.ENOENT, source)
        parent, name = self._parent(_split(target)[1], target)
        if name in parent.names:
            raise _error(errno.EEXIST, target)
        parent.names[name] = node
        node.changed = self.scheduler.clock.now
        self._told(_split(target)[1])

    def _unlink(self, path: str) -> None:
        key = _split(path)[1]
        parent, name = self._parent(key, path)
        found = parent.names.get(name)
        if found is None:
            raise _error(errno.ENOENT, path)
        if isinstance(found, Branch):
            raise _error(errno.EISDIR, path)
        del parent.names[name]
        self._told_gone(key)

    def _told(self, key: str) -> None:
        if self.watching is not None and TEMPORARY not in key:
            self.watching.created(key)

    def _told_gone(self, key: str) -> None:
        if self.watching is not None and TEMPORARY not in key:
            self.watching.removed(key)

    def _find(self, key: str) -> Node | Branch | None:
        found: Node | Branch | None = self._root
        for name in filter(None, key.split("/")):
            if not isinstance(found, Branch):
                return None
            found = found.names.get(name)
        return found

    def _status(self, key: str, path: str) -> Any:
        found = self._find(key)
        if found is None:
            raise _error(errno.ENOENT, path)
        return _status_of(found)

    def _branch(self, key: str, path: str) -> Branch:
        found = self._find(key)
        if found is None:
            raise _error(errno.ENOENT, path)
        if isinstance(found, Node):
            raise _error(errno.ENOTDIR, path)
        return found

    def _parent(self, key: str, path: str) -> tuple[Branch, str]:
        above, _, name = key.rpartition("/")
        return self._branch(above, path), name

    def _opened(self, found: Node | Branch) -> int:
        descriptor = 10**6 + next(self._numbers)
        self._open[descriptor] = found
        return descriptor


class _Paths:
    """os.path, but that it knows the folders below /sim/."""

    def __init__(self, files: FileSystem) -> None:
        self._files = files

    def __getattr__(self, name: str) -> Any:
        return getattr(os.path, name)

    def isdir(self, path: str) -> bool:
        if not path.startswith(ROOT):
            return os.path.isdir(path)
        return isinstance(self._files._find(_split(path)[1]), Branch)


class _Entries:
    """What os.scandir gives."""

    def __init__(self, names: list[str]) -> None:
        self._names = names

    def __enter__(self) -> Iterator[Any]:
        return iter([SimpleNamespace(name=name, is_symlink=lambda: False) for name in self._names])

    def __exit__(self, *_: object) -> None:
        pass


class _Read(io.BytesIO):
    def __init__(self, files: FileSystem, node: Node) -> None:
        super().__init__(node.data)
        self._descriptor = files._opened(node)

    def fileno(self) -> int:
        return self._descriptor


class _Written:
    """A new file that is being written."""

    def __init__(self, files: FileSystem, node: Node, path: str) -> None:
        self._files, self._node, self._path = files, node, path
        self._descriptor = files._opened(node)

    def write(self, data: Any) -> int:
        content = bytes(data)
        if content:
            try:
                self._files._enter("write", self._path)
            except Crashed as crash:
                if crash.now:
                    self._node.data += content[: len(content) // 2]
                raise
        self._node.data += content
        self._node.written = self._node.changed = self._files.scheduler.clock.now
        return len(content)

    def flush(self) -> None:
        pass

    def fileno(self) -> int:
        return self._descriptor

    def close(self) -> None:
        self._files._open.pop(self._descriptor, None)

    def __enter__(self) -> "_Written":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _split(path: str) -> tuple[str, str]:
    process, _, key = path.removeprefix(ROOT).partition("/")
    return process, key


def _error(number: int, path: str) -> OSError:
    return OSError(number, os.strerror(number), path)


def _status_of(found: Node | Branch) -> Any:
    if isinstance(found, Branch):
        return SimpleNamespace(st_mode=stat.S_IFDIR, st_size=0, st_dev=1, st_ino=id(found))
    return SimpleNamespace(
        st_mode=stat.S_IFREG,
        st_size=len(found.data),
        st_mtime=found.written,
        st_ctime=found.changed,
        st_mtime_ns=int(found.written * 10**9),
        st_ctime_ns=int(found.changed * 10**9),
        st_dev=1,
        st_ino=found.number,
    )


def _files(branch: Branch, above: str) -> Iterator[tuple[str, Node]]:
    for name, found in branch.names.items():
        if isinstance(found, Branch):
            yield from _files(found, f"{above}{name}/")
        else:
            yield above + name, found


def _lose(branch: Branch, chance: random.Random) -> None:
    for name in sorted(branch.names.keys() | branch.synced.keys()):
        now, synced = branch.names.get(name), branch.synced.get(name)
        if now is not synced and chance.random() < 0.5:
            if synced is None:
                del branch.names[name]
            else:
                branch.names[name] = synced
    branch.synced = dict(branch.names)
    for found in branch.names.values():
        if isinstance(found, Branch):
            _lose(found, chance)
        elif found.data != found.synced:
            found.data = found.synced + found.data[len(found.synced) :][: chance.randint(0, len(found.data))]
            found.synced = found.data
