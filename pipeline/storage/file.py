"""A file as it is known without opening it, on whatever storage it is."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

Options = Mapping[str, Any]
"""A user's `storage_options`: what the filesystem of the store takes; some of it is secret."""

TEMPORARY = ".tmp-"
"""Unfinished local files begin so: hidden, and without a suffix that a reader of the folder would follow."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FileInfo:
    path: str
    """Absolute, or with its scheme; below a Folder relative to its root."""
    size: int
    version: str
    """Another one means other bytes: the store's etag or generation, on a disk size and mtime_ns."""
    modified: float
    """Unix seconds on the store's clock; 0 where it doesn't say."""
    changed: str = ""
    """On a disk st_ctime_ns, which no copying program can set back; empty elsewhere, where the version says it all."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What a pattern stands for."""

    files: tuple[FileInfo, ...]
    hidden: tuple[FileInfo, ...] = ()
    """Files that it would stand for, if their names, or those of their folders, did not begin with "_" or ".". What lies in
    folders whose names begin with "." is not looked for."""
    folders: frozenset[str] = frozenset()
    """The folders that were come across, whether their names begin so or not."""
    root: str = ""
    """The folder that all of these files are below, whatever files there are: that of the pattern, or of the one file."""
    pieces: tuple[str, ...] = ()
    """The components of a pattern below the root; a folder and a file have none."""


def is_version(found: FileInfo, file: "Pinned") -> bool:
    """Whether the file that was found is the planned one. When it changed on a disk is not compared: nodes that each have
    a copy of the source agree in all but that. Where no version was planned only the size counts."""
    same = file.version in ("", found.version) or (found.changed and file.version.rpartition("-")[0] == found.version)
    return bool(file.size == found.size and same)


class Pinned(Protocol):
    """A file as it was planned."""

    @property
    def path(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def version(self) -> str: ...
