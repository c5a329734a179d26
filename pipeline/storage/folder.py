"""The folder of a table: all that is written goes through here, durable, and whole or not at all."""

import contextlib
import dataclasses
import functools
import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, TypeVar, cast

import pyarrow as pa
import pyarrow.fs as pafs

from pipeline.errors import InputError
from pipeline.storage.address import address_of, is_remote, local_path, store_of
from pipeline.storage.disk import Disk
from pipeline.storage.error import foreign, passes, reported
from pipeline.storage.file import TEMPORARY, FileInfo, Options
from pipeline.storage.opened import READAHEAD_BYTES, Opened
from pipeline.storage.retry import patiently
from pipeline.storage.store import Store
from pipeline.storage.stores import connect

Found = TypeVar("Found")


@dataclass(frozen=True)
class Folder:
    """All files below one local folder or store's address. Paths in and out are relative to it, with "/".

    Cheap to make and to send to another process: connections are opened on first use and stay in their process.
    Methods raise StorageError, and InputError for an address or credentials that can't work.
    """

    url: str
    options: Options = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if store_of(self.url) == "hf":
            raise InputError(f"{self.url!r} can only be read from: expected a folder on a disk or in another store")
        address = address_of(self.url) if is_remote(self.url) else None
        object.__setattr__(self, "url", address.url(address.key) if address else local_path(self.url))
        object.__setattr__(self, "options", dict(self.options))

    @property
    def is_local(self) -> bool:
        return not is_remote(self.url)

    def list(self, prefix: str = "", temporary: bool = False) -> list[FileInfo]:
        """Files below the folder `prefix`, at any depth, sorted by path; [] if there is no such folder.

        Unfinished files that a crash left behind are listed only with `temporary`.
        """
        return self.gather(prefix, lambda files: sorted(files, key=lambda file: file.path), temporary)

    def gather(self, prefix: str, take: Callable[[Iterator[FileInfo]], Found], temporary: bool = False) -> Found:
        """What `take` makes of the files that `list` would name; they come one by one, in no order.

        A million files that only pass by need no memory. `take` is called again where a store fails amid the listing, and
        asks the storage for nothing itself.
        """

        def shown() -> Iterator[FileInfo]:
            for file in self._place.files(prefix.strip("/")):
                if temporary or not file.path.rpartition("/")[2].startswith(TEMPORARY):
                    yield file

        with self._reported("can't list", prefix):
            return patiently(self.url, self.options, lambda: take(shown()))

    def read(self, path: str) -> bytes | None:
        """The whole file; None if there is none."""
        with self._reported("can't read", path):
            return patiently(self.url, self.options, lambda: self._place.read(path))

    def write(self, path: str, data: bytes | pa.Buffer) -> None:
        """Write or replace the file: durable on return, and whole or not there at all."""
        with self._reported("can't write", path):
            patiently(self.url, self.options, lambda: self._place.write(path, data))

    def create_once(self, path: str, data: bytes) -> bytes | None:
        """Create the file if there is none: None if these bytes now stand there, else the bytes that do.

        Callers put something unique into the bytes, so that equal bytes can only be their own. How strong this is on
        a store says `creates_exclusively`.
        """
        with self._reported("can't create", path):
            return patiently(self.url, self.options, lambda: self._place.create_once(path, bytes(data)))

    def creates_exclusively(self) -> bool:
        """Whether one of several `create_once` at the same moment wins; False of a store only if, tried, it
        overwrote."""
        with self._reported("can't create a file in", "staging"):
            return patiently(self.url, self.options, lambda: self._place.creates_exclusively())

    def copy(self, source: str, target: str) -> None:
        """Copy a file within the folder, replacing the target: durable and whole; a store copies by itself."""
        with self._reported("can't copy", source):
            patiently(self.url, self.options, lambda: self._place.copy(source, target))

    def delete(self, paths: Iterable[str]) -> None:
        """Delete files, missing ones are fine; on a disk also the folders that this leaves empty."""
        with self._reported("can't delete from", ""):
            named = list(paths)
            patiently(self.url, self.options, lambda: self._place.delete(named))

    def size(self, path: str) -> int | None:
        """Bytes of the file; None if there is none."""
        with self._reported("can't look up", path):
            return patiently(self.url, self.options, lambda: self._place.size(path))

    def open(self, path: str) -> BinaryIO:
        """The file for reading, seekable."""
        reported = functools.partial(self._reported, "can't read", path)
        with reported():
            opened = patiently(self.url, self.options, lambda: self._place.open(path))
            return cast(BinaryIO, Opened(opened, reported, functools.partial(patiently, self.url, self.options)))

    def arrow_filesystem(self) -> tuple[pafs.FileSystem, str]:
        """(a filesystem for Arrow's own readers, this folder's path on it). Their errors are not translated."""
        if self.is_local:
            return pafs.LocalFileSystem(), self.url
        address = address_of(self.url)
        store = connect(address, self.options)
        return pafs.PyFileSystem(pafs.FSSpecHandler(store.filesystem)), store.path(address.key).rstrip("/")

    @property
    def _place(self) -> "Disk | _Below":
        if self.is_local:
            return Disk(self.url)
        address = address_of(self.url)
        return _Below(connect(address, self.options), address.key)

    def _reported(self, what: str, path: str) -> contextlib.AbstractContextManager[None]:
        return reported(f"{what} {'/'.join(filter(None, [self.url, path]))}", self.options)


class _Below:
    """The files of a store below one key."""

    def __init__(self, store: Store, key: str) -> None:
        self._store = store
        self._key = key

    def files(self, prefix: str) -> Iterator[FileInfo]:
        # The slash keeps the lookup from finding a file of that very name.
        folder = self._path(prefix).rstrip("/")
        for file in self._store.list(f"{folder}/" if folder else ""):
            yield dataclasses.replace(file, path=file.path[len(self._path("")) :])

    def read(self, path: str) -> bytes | None:
        return self._store.read(self._path(path))

    def write(self, path: str, data: bytes | pa.Buffer) -> None:
        self._store.write(self._path(path), data if isinstance(data, bytes) else data.to_pybytes())

    def create_once(self, path: str, data: bytes) -> bytes | None:
        # Looked up first, because some stores ignore the condition and would overwrite, and because an earlier attempt
        # whose answer was lost may have created it.
        present = self.read(path)
        if present is None:
            try:
                self._store.create(self._path(path), data)
                return None
            except FileNotFoundError:
                raise
            except foreign():
                present = self.read(path)
                if present is None:
                    raise
        return None if present == data else present

    def creates_exclusively(self) -> bool:
        path = self._path(f"staging/probe-{secrets.token_hex(8)}")
        try:
            self._store.write(path, b"first")
            try:
                self._store.create(path, b"second")
            except foreign() as error:
                if passes(error):  # it says nothing of the store
                    raise
            return self._store.read(path) != b"second"
        finally:
            self._store.delete([path])

    def copy(self, source: str, target: str) -> None:
        self._store.copy(self._path(source), self._path(target))

    def delete(self, paths: list[str]) -> None:
        self._store.delete(map(self._path, paths))

    def size(self, path: str) -> int | None:
        found = self._store.look_up(self._path(path))
        return found.size if found else None

    def open(self, path: str) -> BinaryIO:
        return self._store.open(self._path(path), READAHEAD_BYTES)[0]

    def _path(self, path: str) -> str:
        return f"{self._key}/{path}" if self._key else path
