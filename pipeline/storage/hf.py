"""Repositories and buckets of the Hugging Face Hub, read only, through huggingface_hub's filesystem.

Versions are git blob ids, or the hashes of the large files' contents.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, cast

import fsspec

from pipeline.storage.address import Address
from pipeline.storage.error import NoRoot
from pipeline.storage.file import FileInfo, Options
from pipeline.storage.store import Info, Store

_NO_SUCH_ROOT = {"BucketNotFoundError", "HFValidationError", "RepositoryNotFoundError", "RevisionNotFoundError"}


class Hf(Store):
    def __init__(self, address: Address, options: Options, patient: bool) -> None:
        self.root = address.root
        # It keeps what it listed, and which repositories are there, as long as it lives: so it lives for one call.
        self._make: Callable[[], Any] = functools.partial(self._connected, address, options, patient)

    def connect(self, address: Address, options: Options, patient: bool) -> Any:
        return fsspec.filesystem("hf", **{**options, "skip_instance_cache": True})

    def version(self, info: Info) -> str:
        lfs = info.get("lfs")
        found = (lfs and lfs["sha256"]) or info.get("blob_id") or info.get("xet_hash")
        return str(found or f"{info['size']}-{self.modified(info)!r}")

    def modified(self, info: Info) -> float:
        commit = info.get("last_commit")
        moment = commit.date if commit else info.get("mtime") or info.get("uploaded_at")
        return float(moment.timestamp()) if moment else 0.0

    def list(self, prefix: str) -> Iterator[FileInfo]:
        filesystem = self._make()
        try:
            found = filesystem.find(self.path(prefix.rpartition("/")[0]), detail=True)
        except FileNotFoundError as error:
            self._raise_if_no_root(error)
            found = {}
        files = (self._file(filesystem, info) for info in found.values())
        return (file for file in files if file.path.startswith(prefix))

    def look_up(self, key: str) -> FileInfo | None:
        filesystem = self._make()
        try:
            info = self._info(filesystem, key)
        except FileNotFoundError as error:
            self._raise_if_no_root(error)
            return None
        return self._file(filesystem, info) if info["type"] == "file" else None

    def open(self, key: str, readahead_bytes: int) -> tuple[BinaryIO, FileInfo]:
        filesystem = self._make()
        info = self._info(filesystem, key)
        # The open file looks itself up before each range; without this it would first list its whole folder.
        filesystem.dircache[filesystem._parent(info["name"])] = [info]
        opened = filesystem.open(
            self.path(key),
            "rb",
            block_size=max(readahead_bytes, 1),
            cache_type="readahead" if readahead_bytes else "none",
        )
        return cast(BinaryIO, opened), self._file(filesystem, info)

    def path(self, key: str) -> str:
        return f"{self.root}/{key}".rstrip("/")

    def _info(self, filesystem: Any, key: str) -> Info:
        # `expand_info` asks for this one file; without it the whole folder is listed.
        return cast(Info, filesystem.info(self.path(key), expand_info=not self.root.startswith("buckets/")))

    def _file(self, filesystem: Any, info: Info) -> FileInfo:
        root = filesystem.resolve_path(self.root).unresolve()
        return FileInfo(
            path=info["name"][len(root) + 1 :],
            size=int(info["size"]),
            version=self.version(info),
            modified=self.modified(info),
        )

    def _raise_if_no_root(self, error: FileNotFoundError) -> None:
        if type(error.__cause__).__name__ in _NO_SUCH_ROOT:
            raise NoRoot(str(error)) from None
