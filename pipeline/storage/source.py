"""Sources: files are listed with their versions, and read only as the versions that were planned."""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Iterable, Iterator
from typing import BinaryIO, cast

from pipeline.errors import InputError, looked_for
from pipeline.storage import disk
from pipeline.storage.address import MAGIC, address_of, checks_itself, is_remote, local_path, local_pattern
from pipeline.storage.error import NoMatch, NoRoot, before_work, changed, foreign, reported, source_reported
from pipeline.storage.file import FileInfo, Listing, Options, Pinned, is_version
from pipeline.storage.opened import READAHEAD_BYTES, Opened
from pipeline.storage.pattern import all_visible, matcher, split_pattern, visible_below_folder, visible_to
from pipeline.storage.retry import IMPATIENCE_S, patiently
from pipeline.storage.stores import connect


def list_pattern(pattern: str, options: Options) -> list[FileInfo]:
    """The files of a file, folder (recursive) or glob (`*`, `**`, `?`, `[..]`), sorted by path; at least one.

    Names that begin with "_" or "." are skipped below a folder and by wildcards that don't begin so themselves.
    Raises InputError if there is nothing, if a name is no text, or if storage refuses or never answers; StorageUnavailable
    if it answers, but asks to come back later.
    """
    return list(list_all(pattern, options).files)


def list_all(pattern: str, options: Options) -> Listing:
    """What `list_pattern` lists, and the hidden files that it skips, both sorted by path."""
    with before_work(), reported(f"can't list {pattern!r}", options):
        if is_remote(pattern):
            found = patiently(pattern, options, lambda: _list_store(pattern, options), IMPATIENCE_S)
        else:
            found = disk.matching_files(local_pattern(pattern))
    if not found.files:
        hidden = len(found.hidden)
        if not hidden and not is_remote(pattern) and is_folder(pattern, options):
            raise NoMatch(f"the folder {pattern!r} is empty{looked_for(pattern)}: give one that holds documents")
        skipped = f" ({hidden:,} files there are skipped because a name begins with _ or .)" if hidden else ""
        raise NoMatch(
            f"no file matches {pattern!r}{skipped}{looked_for(pattern)}: give a file, a folder or a pattern such as "
            "data/*.parquet"
        )
    for file in found.files:
        _check_name(file.path)
    return dataclasses.replace(found, files=_sorted(found.files), hidden=_sorted(found.hidden))


def is_folder(path: str, options: Options) -> bool:
    """Whether there is such a folder; False too where storage doesn't let us look."""
    try:
        if not is_remote(path):
            return os.path.isdir(local_path(path))
        address = address_of(path)
        return connect(address, options, patient=False).has_folder(address.key)
    except foreign():
        return False


def look_up(path: str, options: Options) -> FileInfo | None:
    """The file of exactly this name; None if there is none. Raises InputError and StorageError."""
    with reported(f"can't look up {path}", options):
        try:
            if not is_remote(path):
                return disk.look_up(path)
            address = address_of(path)
            found = patiently(path, options, lambda: connect(address, options).look_up(address.key))
        except NoRoot:
            raise
        except FileNotFoundError:
            return None
    return dataclasses.replace(found, path=path) if found else None


def read_file(path: str, options: Options) -> bytes | None:
    """The whole file; None if there is none. Raises SourceChanged, InputError and StorageError."""
    found = look_up(path, options)
    if found is None:
        return None
    with open_pinned(found, options) as opened:
        return opened.read()


def _sorted(files: Iterable[FileInfo]) -> tuple[FileInfo, ...]:
    return tuple(sorted(files, key=lambda file: file.path))


@contextlib.contextmanager
def pinned(file: Pinned, options: Options, readahead_bytes: int = READAHEAD_BYTES) -> Iterator[BinaryIO]:
    """The open, seekable file; what was read of it is the planned version, else SourceChanged on leaving.

    `readahead_bytes` is for stores: 0 for a reader that asks for exactly the ranges it needs.
    """
    with open_pinned(file, options, readahead_bytes) as opened:
        yield opened
    if not checks_itself(file.path):
        check_unchanged(file, options)


def open_pinned(file: Pinned, options: Options, readahead_bytes: int = READAHEAD_BYTES) -> BinaryIO:
    """The file, seekable, if it still is the planned version; where it `checks_itself` every later read is checked too.

    Elsewhere call `check_unchanged` after reading. Raises SourceChanged, also for a file that is gone.
    """
    with source_reported(file.path, options):
        if is_remote(file.path):
            address = address_of(file.path)
            inner, found = patiently(
                file.path, options, lambda: connect(address, options).open(address.key, readahead_bytes)
            )
        else:
            inner, found = disk.open_with_info(file.path)
    if not is_version(found, file):
        inner.close()
        raise changed(file.path)
    reported = functools.partial(source_reported, file.path, options)
    return cast(BinaryIO, Opened(inner, reported, functools.partial(patiently, file.path, options)))


def check_unchanged(file: Pinned, options: Options) -> None:
    """Raises SourceChanged unless the file still is the planned version."""
    found: FileInfo | None
    with source_reported(file.path, options):
        if is_remote(file.path):
            address = address_of(file.path)
            found = patiently(file.path, options, lambda: connect(address, options).look_up(address.key))
        else:
            found = disk.look_up(file.path)
    if found is None or not is_version(found, file):
        raise changed(file.path)


def _list_store(pattern: str, options: Options) -> Listing:
    address = address_of(pattern)
    store, key = connect(address, options, patient=False), address.key
    pieces: list[str] = []
    if MAGIC.search(key):
        root, pieces = split_pattern(key)
        stem = MAGIC.split(key, maxsplit=1)[0]
        listed = list(store.list(stem))
        exact = [file for file in listed if file.path == key]
        matches, visible = matcher(key), visible_to(pieces)
        start = len(root) + 1 if root else 0
        found = exact or [file for file in listed if matches(file.path)]
        shown = {file.path for file in exact} or {
            file.path for file in found if all_visible(file.path[start:], visible)
        }
    else:
        found = listed = list(store.list(f"{key}/" if key else ""))
        start, root = len(key) + 1 if key else 0, key
        shown = {file.path for file in found if all_visible(file.path[start:], visible_below_folder)}
        if key and not found and (file := store.look_up(key)):
            found, shown, root = [file], {file.path}, key.rpartition("/")[0]
    urls = {file.path: dataclasses.replace(file, path=address.url(file.path)) for file in found}
    return Listing(
        files=tuple(url for path, url in urls.items() if path in shown),
        hidden=tuple(url for path, url in urls.items() if path not in shown),
        folders=frozenset(map(address.url, _folders(file.path for file in listed))),
        root=address.url(root),
        pieces=tuple(pieces),
    )


def _folders(keys: Iterable[str]) -> set[str]:
    """The folders of these keys, and all above them."""
    found = {key.rpartition("/")[0] for key in keys}
    for folder in list(found):
        while folder := folder.rpartition("/")[0]:
            if folder in found:
                break
            found.add(folder)
    return found - {""}


def _check_name(path: str) -> None:
    """A disk's names are bytes; those that are no UTF-8 can stand in no table and no message."""
    try:
        path.encode()
    except UnicodeEncodeError:
        readable = os.fsencode(path).decode(errors="backslashreplace")
        raise InputError(f"source file '{readable}' has a name that is not UTF-8: rename it") from None
