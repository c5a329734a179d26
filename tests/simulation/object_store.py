"""A bucket in memory: whole objects, conditional creation, listings by the page, and answers that get lost.

The program sees it as memory://<process>/<key>: the first piece of a path says which process acts, and is no part of the key.
Every call is an operation of the scheduler, a page of a listing too, so that others act between two pages.
"""

import errno
import functools
import io
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol, TypeVar

from pipeline.storage.address import Address
from pipeline.storage.file import FileInfo, Options
from tests.simulation.scheduler import Answer, Scheduler

T = TypeVar("T")


class Watching(Protocol):
    """It hears of every change of a file, after it was made."""

    def created(self, key: str) -> None: ...
    def removed(self, key: str) -> None: ...


@dataclass(frozen=True)
class Object:
    data: bytes
    version: str
    modified: float
    """Whole seconds, as S3 has them."""
    listed_from: float
    """Listings show it from this moment on."""
    process: str


class ObjectStore:
    def __init__(self, scheduler: Scheduler, *, page: int = 1000, late_s: float = 0.0) -> None:
        """A listing has `page` objects to a page, and shows a new object `late_s` seconds after it was written."""
        self.scheduler = scheduler
        self.objects: dict[str, Object] = {}
        self.watching: Watching | None = None
        self._page, self.late_s = page, late_s
        self.writes = 0

    def connect(self, address: Address, options: Options, patient: bool = True) -> "View":
        """What takes the place of the program's own connection."""
        return View(self)

    # --- what is there, for those who look on

    def get(self, key: str) -> bytes | None:
        found = self.objects.get(key)
        return found.data if found else None

    def names(self) -> list[str]:
        return sorted(self.objects)

    def writer(self, key: str) -> str:
        """The process that wrote it."""
        return self.objects[key].process

    # --- changes

    def put(self, key: str, data: bytes, process: str = "") -> None:
        self.writes += 1
        now = self.scheduler.clock.now
        known = self.objects.get(key)
        listed_from = known.listed_from if known else now + (self.late_s if process in self.scheduler.processes else 0)
        self.objects[key] = Object(bytes(data), f"v{self.writes}", float(int(now)), listed_from, process)
        if self.watching is not None:
            self.watching.created(key)

    def remove(self, key: str) -> None:
        if self.objects.pop(key, None) is not None and self.watching is not None:
            self.watching.removed(key)

    def page_after(self, prefix: str, after: str, process: str) -> list[tuple[str, Object]]:
        """What comes next in a listing; only those who look on see everything at once."""
        now = self.scheduler.clock.now if process in self.scheduler.processes else math.inf
        shown = sorted(
            (key, found)
            for key, found in self.objects.items()
            if key.startswith(prefix) and key > after and found.listed_from <= now
        )
        return shown[: self._page]


class View:
    """The store as the program uses it: the methods of pipeline.storage.store.Store."""

    filesystem: Any = None

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def list(self, prefix: str) -> Iterator[FileInfo]:
        process, _ = _split(prefix)
        after = ""
        while True:
            page = self._act("list", prefix, functools.partial(self._store.page_after, after=after, process=process))
            for key, found in page:
                yield _info(f"{process}/{key}", found)
            if len(page) < self._store._page:
                return
            after = page[-1][0]

    def look_up(self, key: str) -> FileInfo | None:
        found = self._act("look up", key, self._store.objects.get)
        return _info(key, found) if found else None

    def has_folder(self, key: str) -> bool:
        def has_folder(name: str) -> bool:
            return any(other.startswith(f"{name}/") for other in self._store.objects)

        return self._act("look for a folder", key, has_folder)

    def open(self, key: str, readahead_bytes: int) -> tuple[BinaryIO, FileInfo]:
        found = self._act("open", key, self._store.objects.get)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", key)
        return io.BytesIO(found.data), _info(key, found)

    def read(self, key: str) -> bytes | None:
        found = self._act("read", key, self._store.objects.get)
        return found.data if found else None

    def write(self, key: str, data: bytes) -> None:
        self._act("write", key, lambda name: self._store.put(name, data, _split(key)[0]))

    def create(self, key: str, data: bytes) -> None:
        def create(name: str) -> None:
            if name in self._store.objects:
                raise FileExistsError(errno.EEXIST, "is there", name)
            self._store.put(name, data, _split(key)[0])

        self._act("create", key, create)

    def copy(self, source: str, target: str) -> None:
        def copy(name: str) -> None:
            original = self._store.get(_split(source)[1])
            if original is None:
                raise FileNotFoundError(errno.ENOENT, "no such file", source)
            self._store.put(name, original, _split(target)[0])

        self._act("copy to", target, copy)

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._act("delete", key, self._store.remove)

    def _act(self, what: str, path: str, act: Callable[[str], T]) -> T:
        process, key = _split(path)
        answer = self._store.scheduler.enter(process, what, key)
        if answer is Answer.REFUSED:
            raise ConnectionResetError(errno.ECONNRESET, "the way to the store is broken", path)
        done = act(key)
        if answer is Answer.LOST:
            raise ConnectionResetError(errno.ECONNRESET, "the answer got lost", path)
        return done


def _split(path: str) -> tuple[str, str]:
    process, _, key = path.partition("/")
    return process, key


def _info(path: str, found: Object) -> FileInfo:
    return FileInfo(path=path, size=len(found.data), version=found.version, modified=found.modified)
