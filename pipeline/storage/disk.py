"""Files of this disk: listed as sources, opened with their version, and written durably as a table's."""

import contextlib
import errno
import fnmatch
import os
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import BinaryIO

import pyarrow as pa

from pipeline.storage.address import MAGIC
from pipeline.storage.file import TEMPORARY, FileInfo, Listing
from pipeline.storage.pattern import Visible, matcher, split_pattern, visible_below_folder, visible_to

# --- listing


def matching_files(path: str) -> Listing:
    """The files of an absolute file, folder or glob, in no order; none if there are none. Raises OSError."""
    if os.path.isdir(path):
        folders = set[str]()
        walk = _Walk(visible_below_folder, None, folders.add)
        return _listing(walk.files(path), folders, path)
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "is no regular file", path)  # opening a pipe would wait for ever
        return Listing(files=(_stat_info(path, status),), root=os.path.dirname(path))
    except (FileNotFoundError, NotADirectoryError):
        pass
    if not MAGIC.search(path):
        return Listing(files=())
    root, pieces = split_pattern(path)
    shown, matches = visible_to(pieces), matcher(path)
    folders = set[str]()
    walk = _Walk(shown, None if "**" in pieces else pieces, folders.add)
    found = ((file, visible) for file, visible in walk.files(root or os.sep) if matches(file.path))
    return _listing(found, folders, root, pieces)


def _listing(
    found: Iterable[tuple[FileInfo, bool]], folders: set[str], root: str, pieces: Sequence[str] = ()
) -> Listing:
    files: list[FileInfo] = []
    hidden: list[FileInfo] = []
    for file, visible in found:
        (files if visible else hidden).append(file)
    return Listing(
        files=tuple(files), hidden=tuple(hidden), folders=frozenset(folders), root=root, pieces=tuple(pieces)
    )


class _Walk:
    """Regular files below a folder, each with whether its names are visible. Links are followed.

    Without `pieces` a folder is gone through once, by its own path where that is below the root: links that repeat it, or
    lead round in a circle, add nothing. With the `pieces` of a pattern only folders that match theirs are entered.

    `on_folder` is told each folder that is come across, entered or not.
    """

    def __init__(
        self, visible: Visible, pieces: Sequence[str] | None, on_folder: Callable[[str], None] = lambda path: None
    ) -> None:
        self._visible = visible
        self._pieces = pieces
        self._on_folder = on_folder
        self._seen: set[int] = set()
        self._links: list[tuple[str, bool]] = []

    def files(self, root: str) -> Iterator[tuple[FileInfo, bool]]:
        self._links = [(root, True)]
        for path, shown in self._links:  # grows on the way
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                yield from self._below(path, shown, 0, frozenset())

    def _below(self, folder: str, shown: bool, level: int, above: frozenset[int]) -> Iterator[tuple[FileInfo, bool]]:
        status = os.stat(folder)
        here = status.st_dev << 64 | status.st_ino  # one number takes half the memory of a pair: there may be a million
        if here in (above if self._pieces is not None else self._seen):
            return
        self._seen.add(here)
        names, links = list[str](), set[str]()
        with os.scandir(folder) as entries:
            for entry in entries:
                names.append(entry.name)
                if entry.is_symlink():
                    links.add(entry.name)
        names.sort()
        for name in names:
            path = os.path.join(folder, name)
            visible = shown and self._visible(name)
            with contextlib.suppress(FileNotFoundError):  # deleted meanwhile, or a link to nothing
                status = os.stat(path)
                if stat.S_ISREG(status.st_mode):
                    yield _stat_info(path, status), visible
                    continue
                if not stat.S_ISDIR(status.st_mode):
                    continue
                self._on_folder(path)
                if not self._enters(name, level, visible):
                    continue
                if name in links and self._pieces is None:
                    self._links.append((path, visible))
                else:
                    yield from self._below(path, visible, level + 1, above | {here})

    def _enters(self, name: str, level: int, visible: bool) -> bool:
        if not visible and name.startswith("."):
            return False
        if self._pieces is None:
            return True
        piece = self._pieces[level] if level + 1 < len(self._pieces) else None
        # Brackets mean more to the pattern than they do here.
        return piece is not None and ("[" in piece or fnmatch.fnmatchcase(name, piece))


def _stat_info(path: str, status: os.stat_result) -> FileInfo:
    version = f"{status.st_size}-{status.st_mtime_ns}"
    # A copy may keep the time of its original, and a link is as old as the file it shares: neither has been here so long.
    modified = max(status.st_mtime, status.st_ctime)
    changed = str(status.st_ctime_ns)
    return FileInfo(path=path, size=status.st_size, version=version, modified=modified, changed=changed)


# --- reading


def open_with_info(path: str) -> tuple[BinaryIO, FileInfo]:
    """The open file, and what it is; raises OSError."""
    opened = open(path, "rb")  # noqa: SIM115 - the caller owns it
    return opened, _stat_info(path, os.fstat(opened.fileno()))


def look_up(path: str) -> FileInfo:
    """Raises FileNotFoundError."""
    return _stat_info(path, os.stat(path))


# --- the folder of a table

_NO_LINKS = frozenset([errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK])
"""link() fails with one of these on FAT, exFAT, many network, FUSE and container mounts."""
_NO_FOLDER_SYNC = frozenset([errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS])
"""fsync() of a folder fails with one of these where a mount knows it for files alone: it makes names durable by itself."""
_CLAIMED = f"{TEMPORARY}data"
"""The name of the claimed bytes in the folder of a claim."""


class Disk:
    """The folder of a table on a disk; the methods of `Folder`, with the disk's own errors."""

    def __init__(self, root: str) -> None:
        self._root = root

    def files(self, prefix: str) -> Iterator[FileInfo]:
        above = len(self._path(""))
        for file, _ in _Walk(lambda name: True, None).files(self._path(prefix)):
            yield FileInfo(path=file.path[above:], size=file.size, version=file.version, modified=file.modified)

    def read(self, path: str) -> bytes | None:
        return _read(self._path(path))

    def write(self, path: str, data: bytes | pa.Buffer) -> None:
        with self._temporary(path) as (temporary, file):
            _write_durably(file, memoryview(data))
            os.replace(temporary, self._path(path))

    def create_once(self, path: str, data: bytes) -> bytes | None:
        """A link is made to one name only once. Disks without links are told from others by their refusal."""
        while True:
            with self._temporary(path) as (temporary, file):
                _write_durably(file, memoryview(data))
                try:
                    os.link(temporary, self._path(path))
                    return None
                except FileExistsError:
                    pass
                except OSError as error:
                    if error.errno not in _NO_LINKS:
                        raise
                    self._create_without_links(path, data)
            present = self.read(path)
            if present is not None:
                return None if present == data else present

    def _create_without_links(self, path: str, data: bytes) -> None:
        """Let the file be there, with these bytes or another's.

        A folder is never renamed over one that holds something: this is as exclusive as a link. So the bytes are claimed
        by the rename of a folder that holds them, whole. Whoever finds a claim carries it out, so that a writer that dies
        holds nobody up. A claim goes only when the file is there, and whoever claims looks for the file once more.
        """
        claim = os.path.join(os.path.dirname(self._path(path)), f"{TEMPORARY}claim-{os.path.basename(path)}")
        if self.read(path) is None:
            _claim(claim, data)
            claimed = _read(os.path.join(claim, _CLAIMED))
            if claimed is not None and self.read(path) is None:
                self.write(path, claimed)
        if self.read(path) is not None:
            with contextlib.suppress(OSError):  # another's new claim may stand there
                os.unlink(os.path.join(claim, _CLAIMED))
                os.rmdir(claim)

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
        name = os.path.join(folder, TEMPORARY + secrets.token_hex(8))
        file = _create_below(folder, name)
        try:
            with file:
                yield name, file
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
        _sync_folder(folder)


def _read(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _claim(claim: str, data: bytes) -> None:
    """Let the folder `claim` hold these bytes, unless it holds another's."""
    folder = os.path.dirname(claim)
    own = os.path.join(folder, TEMPORARY + secrets.token_hex(8))
    os.mkdir(own)
    try:
        with open(os.path.join(own, _CLAIMED), "xb") as file:
            _write_durably(file, memoryview(data))
        _sync_folder(own)
        os.rename(own, claim)
        _sync_folder(folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    finally:
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(own, _CLAIMED))
            os.rmdir(own)


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
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)
