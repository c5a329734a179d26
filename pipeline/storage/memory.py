"""fsspec's memory:// of this process, for trials and tests. Versions are the time of writing and the size."""

import io
import threading
from collections.abc import Iterator
from typing import Any, BinaryIO

import fsspec

from pipeline.storage.address import Address
from pipeline.storage.file import FileInfo, Options
from pipeline.storage.store import Info, Store

_one_writer = threading.Lock()
"""fsspec's exclusive create looks first and writes then."""


class Memory(Store):
    def connect(self, address: Address, options: Options, patient: bool) -> Any:
        return fsspec.filesystem("memory", **{**options, "skip_instance_cache": True})

    def version(self, info: Info) -> str:
        return f"{self.modified(info)!r}-{info['size']}"

    def modified(self, info: Info) -> float:
        # A number from `find`, a datetime from `info`.
        created = info["created"]
        return float(created if isinstance(created, float) else created.timestamp())

    def list(self, prefix: str) -> Iterator[FileInfo]:
        files = map(self.file, self.filesystem.find(prefix.rpartition("/")[0], detail=True).values())
        return (file for file in files if file.path.startswith(prefix))

    def open(self, key: str, readahead_bytes: int) -> tuple[BinaryIO, FileInfo]:
        # A copy: what fsspec opens is the stored file itself, with one position for all who read it.
        info = self.filesystem.info(self.path(key))
        return io.BytesIO(self.filesystem.cat_file(self.path(key))), self.file(info)

    def create(self, key: str, data: bytes) -> None:
        with _one_writer:
            super().create(key, data)

    def path(self, key: str) -> str:
        return f"/{key}"

    def key(self, path: str) -> str:
        return path.removeprefix("/")
