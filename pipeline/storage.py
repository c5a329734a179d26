"""Files, on a disk or in an object store: list and read sources, and keep a table's folder.

Sources are only ever read, pinned to the version that was planned. All that is written goes through `Folder`: durable,
whole or not at all. This is the one home of fsspec; it knows paths, bytes and versions, and nothing of what is in them.
"""

import contextlib
import errno
import fnmatch
import functools
import io
import json
import os
import re
import secrets
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Protocol, cast

import fsspec
import pyarrow as pa
from fsspec.utils import glob_translate

from pipeline.errors import InputError, PipelineError, SourceChanged, StorageError

Options = Mapping[str, Any]

_TEMPORARY = ".tmp-"
"""Unfinished local files begin so: hidden, and without a suffix that a reader of the folder would follow."""
_READAHEAD_BYTES = 4 * 2**20
_MAX_PUT_COPY_BYTES = 5 * 2**30
_DELETE_BATCH = 1000
_MAGIC = re.compile(r"[*?\[]")


@dataclass(frozen=True, kw_only=True)
class FileInfo:
    path: str
    """Absolute, or with its scheme; below a Folder relative to its root."""
    size: int
    version: str
    """Another one means other bytes: the etag, on a disk size and mtime_ns."""
    modified: float
    """Unix seconds on the store's clock."""


class Pinned(Protocol):
    """A file as it was planned."""

    @property
    def path(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def version(self) -> str: ...


# --- sources


def list_pattern(pattern: str, options: Options) -> list[FileInfo]:
    """The files of a file, folder (recursive) or glob (`*`, `**`, `?`, `[..]`), sorted by path; at least one.

    Names that begin with "_" or "." are skipped below a folder and by wildcards that don't begin so themselves.
    Raises InputError if there is nothing, or if storage can't be reached or refuses.
    """
    try:
        with _reported(f"can't list {pattern!r}", options):
            found = _list_bucket(pattern, options) if is_remote(pattern) else _list_disk(local_path(pattern))
    except StorageError as error:
        raise InputError(str(error)) from None
    if not found:
        raise InputError(f"no file matches {pattern!r}: give a file, a folder or a pattern such as data/*.parquet")
    return sorted(found, key=lambda file: file.path)


@contextlib.contextmanager
def pinned(file: Pinned, options: Options, readahead_bytes: int = _READAHEAD_BYTES) -> Iterator[BinaryIO]:
    """The open, seekable file; what was read of it is the planned version, else SourceChanged on leaving.

    `readahead_bytes` is for stores: 0 for a reader that asks for exactly the ranges it needs.
    """
    with open_pinned(file, options, readahead_bytes) as opened:
        yield opened
    if not is_remote(file.path):
        check_unchanged(file, options)


def open_pinned(file: Pinned, options: Options, readahead_bytes: int = _READAHEAD_BYTES) -> BinaryIO:
    """The file, seekable, if it still is the planned version; on a store every later read is checked as well.

    On a disk call `check_unchanged` after reading. Raises SourceChanged, also for a file that is gone.
    """
    with _source_reported(file.path, options):
        if is_remote(file.path):
            inner, found = _open_remote(_filesystem(options), file.path, readahead_bytes)
        else:
            inner, found = _open_disk(file.path)
    if found != (file.size, file.version):
        inner.close()
        raise _changed(file.path)
    return cast(BinaryIO, _Guarded(inner, functools.partial(_source_reported, file.path, options)))


def check_unchanged(file: Pinned, options: Options) -> None:
    """Raises SourceChanged unless the file still is the planned version."""
    with _source_reported(file.path, options):
        if is_remote(file.path):
            info = _filesystem(options).info(file.path)
            found = (int(info["size"]), _etag(info))
        else:
            status = os.stat(file.path)
            found = (status.st_size, _stat_version(status))
    if found != (file.size, file.version):
        raise _changed(file.path)


def _changed(path: str) -> SourceChanged:
    return SourceChanged(f"source file {path!r} changed since it was planned: start again to plan it anew")


def is_remote(path: str) -> bool:
    """Whether the path is in an object store; InputError for a scheme that is not supported."""
    scheme = re.match(r"([a-zA-Z][a-zA-Z0-9+.-]*)://", path)
    if scheme and scheme[1] not in ("s3", "s3a", "file"):
        raise InputError(f"{path!r} is not a path of this disk and does not begin with s3://: only these are supported")
    return bool(scheme and scheme[1] != "file")


def local_path(path: str) -> str:
    """The absolute path of a local path or file:// URL; symlinks are kept."""
    return os.path.abspath(os.path.expanduser(path.removeprefix("file://")))


def same_place(a: str, b: str) -> bool:
    """Whether two paths or URLs name the same file or folder; symlinks on the disk are resolved."""
    return _components(a) == _components(b)


def contains(outer: str, inner: str) -> bool:
    """Whether `inner` is `outer` or lies below it; for a pattern: whether it can match a file below `inner`."""
    pattern, path = _components(outer), _components(inner)
    for index, (expected, name) in enumerate(zip(pattern, path, strict=False)):
        if expected == "**":
            return True
        if not fnmatch.fnmatchcase(name, expected) and name != expected:
            return False
        if index == len(pattern) - 1 and _MAGIC.search(expected):
            return False
    return len(path) >= len(pattern) or any(map(_MAGIC.search, pattern))


def _components(path: str) -> list[str]:
    if is_remote(path):
        return ["s3://", *_strip_scheme(path).strip("/").split("/")]
    return os.path.realpath(local_path(path)).split(os.sep)


def _strip_scheme(path: str) -> str:
    return path.partition("://")[2]


# --- listing


def _list_disk(path: str) -> list[FileInfo]:
    if os.path.isdir(path):
        return list(_walk(path, _visible_below_folder))
    try:
        return [_stat_info(path, os.stat(path))]
    except (FileNotFoundError, NotADirectoryError):
        pass
    if not _MAGIC.search(path):
        return []
    root, pieces = _split_pattern(path)
    depth = None if "**" in pieces else len(pieces)
    matches = re.compile(glob_translate(path)).match
    return [file for file in _walk(root, functools.partial(_visible_to, pieces), depth) if matches(file.path)]


def _list_bucket(pattern: str, options: Options) -> list[FileInfo]:
    path = _strip_scheme(pattern)
    if not path.split("/")[0] or _MAGIC.search(path.split("/")[0]):
        raise InputError(f"{pattern!r} names no bucket: expected s3://bucket/path")
    filesystem = _filesystem(options, patient=False)
    magic = _MAGIC.search(path)
    if not magic:
        folder = path.rstrip("/")
        found = _bucket_files(filesystem.find(folder, detail=True))
        return [file for file in found if _visible(_strip_scheme(file.path)[len(folder) + 1 :], _visible_below_folder)]
    root, _, stem = path[: magic.start()].rpartition("/")
    found = _bucket_files(filesystem.find(root, prefix=stem, detail=True))
    exact = [file for file in found if _strip_scheme(file.path) == path]
    if exact:
        return exact
    visible = functools.partial(_visible_to, path[len(root) + 1 :].split("/"))
    matches = re.compile(glob_translate(path)).match
    keys = [(file, _strip_scheme(file.path)) for file in found]
    return [file for file, key in keys if matches(key) and _visible(key[len(root) + 1 :], visible)]


def _bucket_files(found: Mapping[str, Mapping[str, Any]]) -> list[FileInfo]:
    """Placeholders of folders (names ending with "/") left out."""
    return [
        FileInfo(path=f"s3://{name}", size=int(info["size"]), version=_etag(info), modified=_modified(info))
        for name, info in found.items()
        if info["type"] == "file" and not name.endswith("/")
    ]


def _split_pattern(path: str) -> tuple[str, list[str]]:
    """The folder above the first component with a wildcard, and the components from there on."""
    pieces = path.split("/")
    first = next(index for index, piece in enumerate(pieces) if _MAGIC.search(piece))
    return "/".join(pieces[:first]) or "/", pieces[first:]


def _visible_below_folder(name: str) -> bool:
    return not name.startswith(("_", "."))


def _visible_to(pieces: list[str], name: str) -> bool:
    return _visible_below_folder(name) or any(
        piece[:1] == name[:1] and fnmatch.fnmatchcase(name, piece) for piece in pieces
    )


def _visible(relative: str, visible: Callable[[str], bool]) -> bool:
    return all(visible(name) for name in relative.split("/"))


def _walk(root: str, visible: Callable[[str], bool], depth: int | None = None) -> Iterator[FileInfo]:
    """Regular files at most `depth` names below the root, links followed; [] without the root."""

    def below(folder: str, left: int | None, above: frozenset[tuple[int, int]]) -> Iterator[FileInfo]:
        status = os.stat(folder)
        here = (status.st_dev, status.st_ino)
        if here in above or left == 0:  # a link to a folder above goes round for ever
            return
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if visible(entry.name))
        for name in names:
            path = os.path.join(folder, name)
            with contextlib.suppress(FileNotFoundError):  # deleted meanwhile, or a link to nothing
                status = os.stat(path)
                if stat.S_ISDIR(status.st_mode):
                    yield from below(path, None if left is None else left - 1, above | {here})
                elif stat.S_ISREG(status.st_mode):
                    yield _stat_info(path, status)

    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        yield from below(root, depth, frozenset())


def _stat_info(path: str, status: os.stat_result) -> FileInfo:
    return FileInfo(path=path, size=status.st_size, version=_stat_version(status), modified=status.st_mtime)


def _stat_version(status: os.stat_result) -> str:
    return f"{status.st_size}-{status.st_mtime_ns}"


def _etag(info: Mapping[str, Any]) -> str:
    return str(info.get("ETag") or f"{info['size']}-{_modified(info):.0f}").strip('"')


def _modified(info: Mapping[str, Any]) -> float:
    moment = info.get("LastModified")
    return float(moment.timestamp()) if moment else 0.0


# --- reading


def _open_disk(path: str) -> tuple[BinaryIO, tuple[int, str]]:
    opened = open(path, "rb")  # noqa: SIM115 - the caller owns it
    status = os.fstat(opened.fileno())
    return opened, (status.st_size, _stat_version(status))


def _open_remote(filesystem: Any, path: str, readahead_bytes: int) -> tuple[BinaryIO, tuple[int, str]]:
    opened = filesystem.open(
        path,
        "rb",
        block_size=max(readahead_bytes, 1),
        cache_type="readahead" if readahead_bytes else "none",
    )
    return cast(BinaryIO, opened), (int(opened.details["size"]), _etag(opened.details))


class _Guarded(io.RawIOBase):
    """An open file whose failures are already ours: what comes through a parser as another error is bad data."""

    def __init__(self, inner: BinaryIO, reported: Callable[[], contextlib.AbstractContextManager[None]]) -> None:
        self._inner = inner
        self._reported = reported

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        with self._reported():
            return self._inner.read(-1 if size is None else size)

    def readinto(self, buffer: Any, /) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        with self._reported():
            return self._inner.seek(offset, whence)

    def tell(self) -> int:
        return self._inner.tell()

    def close(self) -> None:
        if not self.closed:
            self._inner.close()
        super().close()


# --- the folder of a table


@dataclass(frozen=True)
class Folder:
    """All files below one local folder or s3:// address. Paths in and out are relative to it, with "/".

    Cheap to make and to send to another process: connections are opened on first use and stay in their process.
    Methods raise StorageError, and InputError for an address or credentials that can't work.
    """

    url: str
    options: Options = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        url = "s3://" + _strip_scheme(self.url).rstrip("/") if is_remote(self.url) else local_path(self.url)
        object.__setattr__(self, "url", url)
        object.__setattr__(self, "options", dict(self.options))

    @property
    def is_local(self) -> bool:
        return not self.url.startswith("s3://")

    def list(self, prefix: str = "", temporary: bool = False) -> list[FileInfo]:
        """Files below the folder `prefix`, at any depth, sorted by path; [] if there is no such folder.

        Unfinished files that a crash left behind are listed only with `temporary`.
        """
        with self._reported("can't list", prefix):
            found = list(self._place.files(prefix.strip("/")))
        listed = [file for file in found if temporary or not file.path.rpartition("/")[2].startswith(_TEMPORARY)]
        return sorted(listed, key=lambda file: file.path)

    def read(self, path: str) -> bytes | None:
        """The whole file; None if there is none."""
        with self._reported("can't read", path):
            return self._place.read(path)

    def write(self, path: str, data: bytes | pa.Buffer) -> None:
        """Write or replace the file: durable on return, and whole or not there at all."""
        with self._reported("can't write", path):
            self._place.write(path, data)

    def create_once(self, path: str, data: bytes) -> bytes | None:
        """Create the file if there is none: None if these bytes now stand there, else the bytes that do.

        Callers put something unique into the bytes, so that equal bytes can only be their own. How strong this is on
        a store says `creates_exclusively`.
        """
        with self._reported("can't create", path):
            return self._place.create_once(path, bytes(data))

    def creates_exclusively(self) -> bool:
        """Whether of several `create_once` at the same moment exactly one wins; tries it out on a store."""
        with self._reported("can't create a file in", "staging"):
            return self._place.creates_exclusively()

    def copy(self, source: str, target: str) -> None:
        """Copy a file within the folder, replacing the target: durable and whole; a store copies by itself."""
        with self._reported("can't copy", source):
            self._place.copy(source, target)

    def delete(self, paths: Iterable[str]) -> None:
        """Delete files, missing ones are fine; on a disk also the folders that this leaves empty."""
        with self._reported("can't delete from", ""):
            self._place.delete(list(paths))

    def size(self, path: str) -> int | None:
        """Bytes of the file; None if there is none."""
        with self._reported("can't look up", path):
            return self._place.size(path)

    def open(self, path: str) -> BinaryIO:
        """The file for reading, seekable."""
        reported = functools.partial(self._reported, "can't read", path)
        with reported():
            return cast(BinaryIO, _Guarded(self._place.open(path), reported))

    @property
    def _place(self) -> "_Disk | _Bucket":
        return _Disk(self.url) if self.is_local else _Bucket(self.url, self.options)

    def _reported(self, what: str, path: str) -> contextlib.AbstractContextManager[None]:
        return _reported(f"{what} {'/'.join(filter(None, [self.url, path]))}", self.options)


class _Disk:
    def __init__(self, root: str) -> None:
        self._root = root

    def files(self, prefix: str) -> Iterator[FileInfo]:
        for file in _walk(self._path(prefix), lambda name: True):
            path = os.path.relpath(file.path, self._root)
            yield FileInfo(path=path, size=file.size, version=file.version, modified=file.modified)

    def read(self, path: str) -> bytes | None:
        try:
            with open(self._path(path), "rb") as file:
                return file.read()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, path: str, data: bytes | pa.Buffer) -> None:
        with self._temporary(path) as (temporary, file):
            _write_durably(file, memoryview(data))
            os.replace(temporary, self._path(path))

    def create_once(self, path: str, data: bytes) -> bytes | None:
        while True:
            with self._temporary(path) as (temporary, file):
                _write_durably(file, memoryview(data))
                with contextlib.suppress(FileExistsError):
                    os.link(temporary, self._path(path))
                    return None
            present = self.read(path)
            if present is not None:
                return None if present == data else present

    def creates_exclusively(self) -> bool:
        return True

    def copy(self, source: str, target: str) -> None:
        with self._temporary(target) as (temporary, file):
            linked = f"{temporary}-link"
            try:
                os.link(self._path(source), linked)
            except FileNotFoundError:
                raise
            except OSError:
                with open(self._path(source), "rb") as original:
                    for block in iter(lambda: original.read(2**20), b""):
                        file.write(block)
                _write_durably(file, memoryview(b""))
                linked = temporary
            try:
                os.replace(linked, self._path(target))
            finally:
                # Replacing a file by another link to itself does nothing, and leaves both names.
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(linked)

    def delete(self, paths: list[str]) -> None:
        touched = set()
        for path in paths:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                os.unlink(self._path(path))
                touched.add(os.path.dirname(self._path(path)))
        for folder in touched:
            with contextlib.suppress(FileNotFoundError):
                _sync_folder(self._remove_empty(folder))

    def _remove_empty(self, folder: str) -> str:
        """Remove the folder and those above it while they are empty; returns the first one that stays."""
        while folder != self._root:
            try:
                os.rmdir(folder)
            except FileNotFoundError:
                pass
            except OSError:
                break
            folder = os.path.dirname(folder)
        return folder

    def size(self, path: str) -> int | None:
        try:
            status = os.stat(self._path(path))
        except (FileNotFoundError, NotADirectoryError):
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def open(self, path: str) -> BinaryIO:
        return open(self._path(path), "rb")

    def _path(self, path: str) -> str:
        return os.path.join(self._root, path)

    @contextlib.contextmanager
    def _temporary(self, path: str) -> Iterator[tuple[str, BinaryIO]]:
        """A new file beside `path`, gone on leaving unless it was renamed; the folder's entries are durable then."""
        folder = os.path.dirname(self._path(path))
        name = os.path.join(folder, _TEMPORARY + secrets.token_hex(8))
        file = _create_below(folder, name)
        try:
            with file:
                yield name, file
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
        _sync_folder(folder)


def _create_below(folder: str, name: str) -> BinaryIO:
    """Another process may remove the folder as empty before our file stands in it: make it anew then."""
    for _ in range(100):
        with contextlib.suppress(FileNotFoundError):
            _make_folders(folder)
            return open(name, "xb")
    raise OSError(errno.EBUSY, "the folder keeps vanishing", folder)


def _make_folders(folder: str) -> None:
    if os.path.isdir(folder):
        return
    parent = os.path.dirname(folder)
    _make_folders(parent)
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder)
        _sync_folder(parent)


def _write_durably(file: BinaryIO, data: memoryview) -> None:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _Bucket:
    def __init__(self, root: str, options: Options) -> None:
        self._root = _strip_scheme(root)
        self._filesystem = _filesystem(options)

    def files(self, prefix: str) -> Iterator[FileInfo]:
        # The slash keeps the lookup from finding a file of that very name.
        folder = f"{self._root}/{prefix}".rstrip("/")
        bucket, _, key = folder.partition("/")
        for file in _bucket_files(self._filesystem.find(bucket, prefix=f"{key}/" if key else "", detail=True)):
            path = _strip_scheme(file.path)[len(self._root) + 1 :]
            yield FileInfo(path=path, size=file.size, version=file.version, modified=file.modified)

    def read(self, path: str) -> bytes | None:
        try:
            return bytes(self._filesystem.cat_file(self._path(path)))
        except FileNotFoundError as error:
            _raise_if_no_bucket(error)
            return None

    def write(self, path: str, data: bytes | pa.Buffer) -> None:
        self._filesystem.pipe_file(self._path(path), data if isinstance(data, bytes) else data.to_pybytes())

    def create_once(self, path: str, data: bytes) -> bytes | None:
        # Looked up first, because some stores ignore the condition and would overwrite.
        present = self.read(path)
        for pause_s in (0.2, 1.0, None):
            if present is not None:
                return None if present == data else present
            try:
                self._create(path, data)
                return None
            except FileNotFoundError:
                raise
            except _foreign():
                present = self.read(path)
                if present is None and pause_s is None:
                    raise
                time.sleep(pause_s or 0)
        return None if present == data else present

    def _create(self, path: str, data: bytes) -> None:
        try:
            self._filesystem.pipe_file(self._path(path), data, mode="create")
        except OSError as error:
            if error.errno != errno.ENOSYS:
                raise
            self._filesystem.pipe_file(self._path(path), data)

    def creates_exclusively(self) -> bool:
        path = f"staging/probe-{secrets.token_hex(8)}"
        try:
            self._create(path, b"first")
            with contextlib.suppress(OSError):
                self._create(path, b"second")
            return self.read(path) == b"first"
        finally:
            self.delete([path])

    def copy(self, source: str, target: str) -> None:
        size = self.size(source)
        if size is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", source)
        if size > _MAX_PUT_COPY_BYTES:
            self._filesystem.cp_file(self._path(source), self._path(target), block=2**30)
            return
        bucket, _, key = self._path(source).partition("/")
        original = {"Bucket": bucket, "Key": key}
        key = self._path(target).partition("/")[2]
        self._filesystem.call_s3("copy_object", Bucket=bucket, Key=key, CopySource=original)

    def delete(self, paths: list[str]) -> None:
        bucket = self._root.partition("/")[0]
        keys = [{"Key": self._path(path).partition("/")[2]} for path in paths]
        for start in range(0, len(keys), _DELETE_BATCH):
            batch = {"Objects": keys[start : start + _DELETE_BATCH], "Quiet": True}
            answer = self._filesystem.call_s3("delete_objects", Bucket=bucket, Delete=batch)
            failed = [error for error in answer.get("Errors", ()) if error.get("Code") != "NoSuchKey"]
            if failed:
                first = failed[0]
                reason = f"{len(failed)} files stay, the first is {first.get('Key')}: {first.get('Message')}"
                raise OSError(errno.EIO, reason)

    def size(self, path: str) -> int | None:
        try:
            info = self._filesystem.info(self._path(path))
        except FileNotFoundError as error:
            _raise_if_no_bucket(error)
            return None
        return int(info["size"]) if info["type"] == "file" else None

    def open(self, path: str) -> BinaryIO:
        return _open_remote(self._filesystem, self._path(path), _READAHEAD_BYTES)[0]

    def _path(self, path: str) -> str:
        return f"{self._root}/{path}"


# --- stores


_filesystems: dict[str, Any] = {}
_filesystems_lock = threading.Lock()


def _filesystem(options: Options, patient: bool = True) -> Any:
    """The connected s3 filesystem of this process for these options; shared by all threads.

    Impatient ones serve planning, where a wrong address should be told at once.
    """
    key = json.dumps([os.getpid(), patient, options], sort_keys=True, default=repr)
    with _filesystems_lock:
        if key not in _filesystems:
            _filesystems[key] = _connect(options, patient)
        return _filesystems[key]


def _connect(options: Options, patient: bool) -> Any:
    config: dict[str, Any] = {
        "connect_timeout": 5,
        "read_timeout": 30 if patient else 10,
        "retries": {"mode": "standard", "total_max_attempts": 4 if patient else 2},
        "max_pool_connections": 32,
    }
    if options.get("endpoint_url") or options.get("client_kwargs", {}).get("endpoint_url"):
        # Stores other than AWS refuse or garble the checksum headers that botocore adds of its own accord.
        config |= {"request_checksum_calculation": "when_required", "response_checksum_validation": "when_required"}
    config |= options.get("config_kwargs", {})
    # The client compares the etag of every answer: as strong as If-Match, which some stores ignore.
    defaults = {"local_expiry_check": True}
    try:
        filesystem = fsspec.filesystem(
            "s3",
            **{
                **defaults,
                **options,
                "config_kwargs": config,
                "use_listings_cache": False,
                "skip_instance_cache": True,
            },
        )
        filesystem.retries = 4 if patient else 1
        filesystem.connect()
    except ImportError as error:
        raise InputError(f"s3:// needs the packages of the extra `s3`: {error}") from None
    except (TypeError, ValueError, KeyError) as error:
        raise InputError(f"storage_options can't be used for s3://: {_said(error, options)}") from None
    return filesystem


# --- errors


_WRONG_FROM_THE_START = {"NoSuchBucket", "InvalidBucketName", "InvalidAccessKeyId", "SignatureDoesNotMatch"}
_NOT_SECRET = {"endpoint_url", "region_name", "profile", "mode", "signature_version", "addressing_style"}


@contextlib.contextmanager
def _reported(what: str, options: Options) -> Iterator[None]:
    """Foreign errors become ours: one line that says what was tried, where, and why it failed; never a secret."""
    try:
        yield
    except _foreign() as error:
        raise _translated(what, error, options) from None


@contextlib.contextmanager
def _source_reported(path: str, options: Options) -> Iterator[None]:
    """The same while reading a source: a file that is gone or replaced has changed."""
    try:
        yield
    except _foreign() as error:
        if isinstance(error, FileNotFoundError) or type(error).__name__ == "FileExpired" or _code(error) in _EXPIRED:
            raise _changed(path) from None
        raise _translated(f"can't read {path}", error, options) from None


_EXPIRED = {"PreconditionFailed", "412", "InvalidRange", "416"}


def _translated(what: str, error: BaseException, options: Options) -> PipelineError:
    wrong = _code(error) in _WRONG_FROM_THE_START or type(error).__name__ in {
        "NoCredentialsError",
        "PartialCredentialsError",
        "ParamValidationError",
        "ProfileNotFound",
    }
    kind = InputError if wrong else StorageError
    return kind(f"{what}: {_said(error, options)}")


def _foreign() -> tuple[type[BaseException], ...]:
    """What fsspec lets through; the libraries of a store are loaded only if one is used."""
    names = [
        ("botocore.exceptions", "BotoCoreError"),
        ("botocore.exceptions", "ClientError"),
        ("aiohttp", "ClientError"),
    ]
    loaded = [(sys.modules[module], name) for module, name in names if module in sys.modules]
    return (OSError, *(getattr(module, name) for module, name in loaded))


def _code(error: BaseException) -> str:
    for source in (error, error.__cause__):
        response = getattr(source, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
    return ""


def _raise_if_no_bucket(error: OSError) -> None:
    if _code(error) == "NoSuchBucket":
        raise error


def _said(error: BaseException, options: Options) -> str:
    """One line of at most 300 characters, without the values of the options and without passwords in URLs."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    text = " ".join(text.split()) or type(error).__name__
    for secret in _leaves(options):
        text = text.replace(secret, "***")
    text = re.sub(r"//[^/@\s]*@", "//***@", text)
    return re.sub(r"(https?://[^\s?\"']*)\?[^\s\"']*", r"\1", text)[:300]


def _leaves(options: Any) -> Iterator[str]:
    for name, value in options.items() if isinstance(options, Mapping) else ():
        if isinstance(value, Mapping):
            yield from _leaves(value)
        elif name not in _NOT_SECRET and isinstance(value, str) and len(value) >= 4:
            yield value
