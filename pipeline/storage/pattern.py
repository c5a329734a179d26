"""Which names a pattern or a folder shows: all but those that begin with "_" or "." and were not asked for."""

import fnmatch
import functools
import re
from collections.abc import Callable

from fsspec.utils import glob_translate

from pipeline.storage.address import MAGIC

Visible = Callable[[str], bool]
"""Whether one name of a path, a folder's or a file's, is shown."""


def split_pattern(path: str) -> tuple[str, list[str]]:
    """The folder above the first component with a wildcard, "" if there is none, and the components from there on."""
    pieces = path.split("/")
    first = next(index for index, piece in enumerate(pieces) if MAGIC.search(piece))
    return "/".join(pieces[:first]), pieces[first:]


def matcher(pattern: str) -> Callable[[str], bool]:
    """Whether a whole path matches the pattern, hidden names or not."""
    matches = re.compile(glob_translate(pattern)).match
    return lambda path: matches(path) is not None


def visible_below_folder(name: str) -> bool:
    return not name.startswith(("_", "."))


def visible_to(pieces: list[str]) -> Visible:
    """Which names the components of a pattern show: one that begins with "_" or "." only to a component that begins
    so."""
    return functools.partial(_visible_to, pieces)


def _visible_to(pieces: list[str], name: str) -> bool:
    return visible_below_folder(name) or any(
        piece[:1] == name[:1] and fnmatch.fnmatchcase(name, piece) for piece in pieces
    )


def all_visible(relative: str, visible: Visible) -> bool:
    return all(visible(name) for name in relative.split("/"))
