"""A file as it is known without opening it, on whatever storage it is."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

Options = Mapping[str, Any]
"""A user's `storage_options`: what the filesystem of the store takes; some of it is secret."""

TEMPORARY = ".tmp-"
"""Unfinished local files begin so: hidden, and without a suffix that a reader of the folder would follow."""


@dataclass(frozen=True, kw_only=True)
class FileInfo:
    path: str
    """Absolute, or with its scheme; below a Folder relative to its root."""
    size: int
    version: str
    """Another one means other bytes: the store's etag or generation, on a disk size and mtime_ns."""
    modified: float
    """Unix seconds on the store's clock; 0 where it doesn't say."""


class Pinned(Protocol):
    """A file as it was planned."""

    @property
    def path(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def version(self) -> str: ...
