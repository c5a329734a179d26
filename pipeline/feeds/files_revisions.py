"""A feed's folder on a disk: generations, the revisions of each, and a link that shows one of them to readers.

    docs                      a link to the newest revision of the generation that is shown
    docs__g1_1a2b/            a generation
        r00000003/            a revision: it is whole, and never changes
            feed.json         its marker
            ...               its files; those that didn't change are hard links to the revision before
        units/                rows of a load under way

A revision is prepared in a folder of another name and renamed to the next number. A number can be had once, so a feeder
that was frozen and wakes after a newer sync gets none. This file knows nothing of rows and formats.
"""

import contextlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pipeline.errors import InputError, RunError, StorageError
from pipeline.feeds.store import Generation, Marker, NotOurs, by_age

MARKER_FILE = "feed.json"
KEPT_S = 3600
"""Readers may be busy with an earlier revision for so long; the newest two are kept in any case."""
ABANDONED_S = 24 * 3600
"""What was prepared so long ago and never finished is removed."""

_REVISION = re.compile(r"r(\d{8})")


class Revisions:
    """The generations of one feed in a folder, and their revisions."""

    def __init__(self, folder: str, name: str) -> None:
        self.folder, self.name = Path(folder), name
        self.link = self.folder / name

    def generations(self) -> Sequence[Generation]:
        live = self.live()
        found = []
        for path in self.folder.glob(f"{self.name}__*") if self.folder.is_dir() else []:
            if path.is_dir() and self._numbers(path.name):
                found.append(
                    Generation(name=path.name, marker=self.marker(self.newest(path.name)), live=path.name == live)
                )
        return sorted(found, key=lambda one: by_age(one.name))

    def live(self) -> str:
        """Return the generation that readers see; "" for none. Raises InputError where the link's place is taken."""
        if self.link.is_symlink():
            return Path(os.readlink(self.link)).parent.name
        if self.link.exists():
            raise InputError(
                f"feeds.name is {self.name!r}, and {str(self.link)!r} is no link of a feed: give another name, or move it"
            )
        return ""

    def newest(self, generation: str) -> Path:
        """Return the folder of a generation's newest revision."""
        numbers = self._numbers(generation)
        if not numbers:
            raise RunError(
                f"{str(self.folder)!r} holds no generation {generation}: it was dropped meanwhile; start again"
            )
        return self._path(generation, numbers[-1])

    def marker(self, revision: Path) -> Marker | None:
        try:
            return Marker.from_json((revision / MARKER_FILE).read_text("utf-8"))
        except FileNotFoundError:
            return None

    def expect(self, generation: str, expected: Marker | None) -> Path:
        """Return the newest revision. Raises NotOurs where it has another marker."""
        newest = self.newest(generation)
        if self.marker(newest) != expected:
            raise NotOurs(f"{str(newest)!r} has another marker than expected: another feed was at work; start again")
        return newest

    def add(self, before: Path | None, marker: Marker, fill: Callable[[Path], None]) -> None:
        """Add the revision after `before`, which `fill` fills. Raises NotOurs if there is one already."""
        generation = self.folder / marker.generation
        number = 1 + (_number(before) if before is not None else 0)
        target = self._path(marker.generation, number)
        prepared = generation / f"prepared-{uuid.uuid4().hex}"
        with self.errors(target):
            prepared.mkdir(parents=True)
            try:
                fill(prepared)
                (prepared / MARKER_FILE).write_text(marker.to_json(), "utf-8")
                synced(prepared)
                self._rename(prepared, target)
            finally:
                shutil.rmtree(prepared, ignore_errors=True)
            sync_folder(generation)
        if self._numbers(marker.generation)[-1] > number + 1:  # Its number was free because it is an old one.
            raise NotOurs(f"{str(target)!r} comes too late: another feed was at work; start again")
        if self.live() == marker.generation:
            self.show(marker.generation)
        self._clean(marker.generation)

    def show(self, generation: str) -> None:
        """Let the link show the newest revision of a generation, and look again whether it still is the newest."""
        while self.link_target() != (newest := self.newest(generation)):
            beside = self.folder / f".{self.name}-{uuid.uuid4().hex}"
            with self.errors(self.link):
                beside.symlink_to(newest.relative_to(self.folder))
                os.replace(beside, self.link)
                sync_folder(self.folder)

    def link_target(self) -> Path | None:
        return self.folder / os.readlink(self.link) if self.link.is_symlink() else None

    def drop(self, generation: str) -> None:
        path = self.folder / generation
        with self.errors(path), contextlib.suppress(FileNotFoundError):
            gone = self.folder / f".{generation}-{uuid.uuid4().hex}"
            os.rename(path, gone)
            shutil.rmtree(gone)

    @contextlib.contextmanager
    def errors(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(f"{str(path)!r}: {error.strerror or error}; look at the disk and start again") from error

    def _rename(self, prepared: Path, target: Path) -> None:
        """A folder that holds something is never replaced by a rename."""
        try:
            os.rename(prepared, target)
        except OSError as error:
            if not target.exists():
                raise
            raise NotOurs(f"{str(target)!r} is there already: another feed was at work; start again") from error

    def _numbers(self, generation: str) -> list[int]:
        path = self.folder / generation
        found = [_REVISION.fullmatch(one) for one in (os.listdir(path) if path.is_dir() else [])]
        return sorted(int(one[1]) for one in found if one)

    def _path(self, generation: str, number: int) -> Path:
        return self.folder / generation / f"r{number:08d}"

    def _clean(self, generation: str) -> None:
        """Remove old revisions, and what was never finished. What can't be removed stays for the next time."""
        now = time.time()
        for number in self._numbers(generation)[:-2]:
            path = self._path(generation, number)
            if now - path.stat().st_mtime >= KEPT_S and path != self.link_target():
                shutil.rmtree(path, ignore_errors=True)
        for path in (self.folder / generation).glob("prepared-*"):
            if now - path.stat().st_mtime >= ABANDONED_S:
                shutil.rmtree(path, ignore_errors=True)


def linked(source: Path, target: Path) -> None:
    """Take over a file that doesn't change any more: without copying its bytes, where the disk can."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def synced(folder: Path) -> None:
    """Wait until the disk has all files below a folder."""
    for path in [*folder.rglob("*"), folder]:
        if path.is_dir():
            sync_folder(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _number(revision: Path) -> int:
    found = _REVISION.fullmatch(revision.name)
    assert found is not None
    return int(found[1])
