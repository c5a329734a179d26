"""What a cleaning is about to delete of staged work, told to those who may publish it meanwhile.

A cleaning writes its list before it looks a second time whether somebody is at work; a commit leaves its mark, its own
lists, before it looks for announcements. So at least one of the two sees the other, however long either is stopped between
its look and what it does then. Deletes nothing but announcements.
"""

import contextlib
import json
import uuid
from collections.abc import Collection, Iterable, Iterator

from pipeline.storage import Folder
from pipeline.storage.file import FileInfo
from pipeline.table import layout


@contextlib.contextmanager
def standing(table: Folder, paths: Collection[str]) -> Iterator[bool]:
    """Announce that these files are about to be deleted, until the block ends; yields whether there are any.

    The announcement of a cleaning that dies stays, and goes with the first later cleaning after which none of its files is
    there any more.
    """
    own = layout.cleaning(uuid.uuid4().hex[:12])
    if paths:
        table.write(own, json.dumps(sorted(paths)).encode())
    try:
        yield bool(paths)
    finally:
        _withdraw(table, own)


def _withdraw(table: Folder, own: str) -> None:
    announced = [info for info in table.list(layout.CLEANINGS) if info.path != own]
    if announced:
        there = {info.path for info in table.list()}
        named = {info.path: _read(table, info.path) for info in announced}
        table.delete(path for path, paths in named.items() if paths is not None and there.isdisjoint(paths))
    table.delete([own])


def announced(table: Folder, listed: Iterable[FileInfo]) -> frozenset[str] | None:
    """All paths that the announcements among the listed files name; None if one has ended since they were listed."""
    found: set[str] = set()
    for info in listed:
        if info.path.startswith(layout.CLEANINGS):
            paths = _read(table, info.path)
            if paths is None:
                return None
            found.update(paths)
    return frozenset(found)


def _read(table: Folder, path: str) -> list[str] | None:
    content = table.read(path)
    return None if content is None else list(json.loads(content))
