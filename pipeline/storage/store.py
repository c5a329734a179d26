"""The way in which every store handles the files of one root, by fsspec; a store's own file says what is different.

A store knows keys (paths below its root), bytes and versions. It raises what its library raises, FileNotFoundError for
a file that is not there, and NoRoot if the root isn't.
"""

import contextlib
import errno
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO, ClassVar, cast

from pipeline.errors import InputError
from pipeline.extras import install, install_packages
from pipeline.storage.address import Address
from pipeline.storage.error import CREDENTIALS, NoRoot, said
from pipeline.storage.file import FileInfo, Options
from pipeline.storage.parallel import in_parallel

Info = dict[str, Any]
"""The description of a file by fsspec's `info` and `find`."""

_DELETERS = 16


class Store:
    """The common way; `filesystem` is shared by all threads of the process, and keeps no listings."""

    extra: ClassVar[str | None] = None
    """The extra of this project that installs the library."""

    def __init__(self, address: Address, options: Options, patient: bool) -> None:
        """Impatient ones serve planning, where a wrong address should be told at once."""
        self.root = address.container
        self.filesystem = _shared(
            [address.store, address.account, patient, options], lambda: self._connected(address, options, patient)
        )

    def connect(self, address: Address, options: Options, patient: bool) -> Any:
        """A new filesystem. Raises ImportError, and TypeError, ValueError or KeyError for options of no use."""
        raise NotImplementedError

    def version(self, info: Info) -> str:
        """Another one means other bytes."""
        raise NotImplementedError

    def modified(self, info: Info) -> float:
        """Unix seconds."""
        raise NotImplementedError

    def list(self, prefix: str) -> Iterator[FileInfo]:
        """All files whose key begins with these characters, at any depth; markers of folders left out."""
        for info in self.filesystem.find(self.root, prefix=prefix, detail=True).values():
            file = self.file(info)
            if file.path.startswith(prefix) and info["type"] == "file" and not file.path.endswith("/"):
                yield file

    def look_up(self, key: str) -> FileInfo | None:
        """The file's description; None if there is no such file."""
        try:
            info = self.filesystem.info(self.path(key))
        except FileNotFoundError:
            self.check_root()
            return None
        return self.file(info) if info["type"] == "file" else None

    def has_folder(self, key: str) -> bool:
        """Whether some key lies below this one. The store is asked for no list."""
        try:
            return bool(self.filesystem.info(self.path(key))["type"] == "directory")
        except FileNotFoundError:
            return False

    def open(self, key: str, readahead_bytes: int) -> tuple[BinaryIO, FileInfo]:
        """The open file, and which version it is. 0 reads exactly the ranges that are asked for."""
        opened = self.filesystem.open(
            self.path(key),
            "rb",
            block_size=max(readahead_bytes, 1),
            cache_type="readahead" if readahead_bytes else "none",
        )
        return cast(BinaryIO, opened), self.file(opened.details)

    def read(self, key: str) -> bytes | None:
        """The whole file; None if there is none."""
        try:
            return bytes(self.filesystem.cat_file(self.path(key)))
        except FileNotFoundError:
            self.check_root()
            return None

    def write(self, key: str, data: bytes) -> None:
        """Write or replace: durable on return, and whole or not there at all."""
        with self.missing_is_root():
            self.filesystem.pipe_file(self.path(key), data)

    def create(self, key: str, data: bytes) -> None:
        """Write a new file; FileExistsError if there is one already, as far as the store honours the condition."""
        with self.missing_is_root():
            self.filesystem.pipe_file(self.path(key), data, mode="create")

    def copy(self, source: str, target: str) -> None:
        """Within the root and the store, replacing the target. FileNotFoundError if there is no source."""
        self.filesystem.cp_file(self.path(source), self.path(target))

    def delete(self, keys: Iterable[str]) -> None:
        """Missing ones are fine."""

        def delete_one(key: str) -> None:
            with contextlib.suppress(FileNotFoundError):
                self.filesystem.rm_file(self.path(key))

        for _ in in_parallel(delete_one, keys, _DELETERS):
            pass

    def check_root(self) -> None:
        """Raises NoRoot unless the root was found once; for where a missing file could be a missing bucket."""
        root = (id(self.filesystem), self.root)
        if root not in _roots_found:
            self.find_root()
            _roots_found.add(root)

    def find_root(self) -> None:
        """Raises NoRoot; for stores that don't tell a missing file from a missing bucket."""

    @contextlib.contextmanager
    def missing_is_root(self) -> Iterator[None]:
        """Raise NoRoot for FileNotFoundError: where no file is looked for, it is the root that can't be found."""
        try:
            yield
        except FileNotFoundError:
            raise self.no_root() from None

    def no_root(self) -> NoRoot:
        return NoRoot(errno.ENOENT, f"the bucket does not exist: {self.root}")

    def file(self, info: Info) -> FileInfo:
        """The path in it is the key."""
        return FileInfo(
            path=self.key(info["name"]),
            size=int(info["size"] or 0),
            version=self.version(info),
            modified=self.modified(info),
        )

    def path(self, key: str) -> str:
        return f"{self.root}/{key}"

    def key(self, path: str) -> str:
        return path[len(self.root) + 1 :]

    def _connected(self, address: Address, options: Options, patient: bool) -> Any:
        try:
            return self.connect(address, options, patient)
        except ImportError as error:
            raise InputError(
                f"{address.store}:// needs the packages of the extra `{self.extra}` ({error}): {install(self.extra)} on every "
                "node"
                if self.extra
                else f"{address.store}:// needs a package that is not installed ({error}): "
                f"{install_packages('fsspec', 'huggingface_hub')}"
            ) from None
        except (AttributeError, TypeError, ValueError, KeyError) as error:
            if not options and address.store in CREDENTIALS:
                raise InputError(
                    f"can't connect to {address.url('')}: {said(error, options)}; {CREDENTIALS[address.store]}"
                ) from None
            raise InputError(f"storage_options can't be used for {address.store}://: {said(error, options)}") from None


_roots_found: set[tuple[int, str]] = set()
_filesystems: dict[str, Any] = {}
_filesystems_lock = threading.Lock()


def _shared(name: list[Any], connect: Callable[[], Any]) -> Any:
    key = json.dumps([os.getpid(), *name], sort_keys=True, default=repr)
    with _filesystems_lock:
        if key not in _filesystems:
            _filesystems[key] = connect()
        return _filesystems[key]
