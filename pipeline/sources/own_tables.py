"""A table of this program may lie below a source, where it is no part of it: its files hold what was embedded already.

What was listed for a pattern comes in. The folders of the tables that lie below it go out. A table is known by its
versions, or by the leases of a first run that has published none yet. A pattern that leads into a table asks for its files.
"""

import fnmatch
import re
from collections.abc import Collection, Iterable, Iterator

from pipeline.storage import MAGIC, Listing, NoMatch, Options, list_pattern

_FOLDERS = ("/meta/versions", "/meta/leases")
_MARK = re.compile(r"\d{6,}\.json")


def tables_below(listing: Listing, options: Options) -> frozenset[str]:
    """Return the folders of the tables below a source, outermost ones alone.

    Storage is asked only for a pattern that came across such a folder and matches none of the files that tell.
    """
    marked = _marked(file.path for file in (*listing.files, *listing.hidden))
    known = {root for root in marked if _is_below(root, listing)}
    if listing.pieces:
        open_ones = {root for root in map(_root, listing.folders) if root and root not in known}
        taken = {folder for file in listing.files for folder in _above(file.path)} if open_ones else set()
        known |= {root for root in sorted(open_ones & taken) if _is_below(root, listing) and _is_table(root, options)}
    return frozenset(root for root in known if not table_of(root, known))


def table_of(path: str, tables: Collection[str]) -> str:
    """Return the one of these folders that the path is below, or "" where it is below none."""
    return next((folder for folder in _above(path) if folder in tables), "") if tables else ""


def _above(path: str) -> Iterator[str]:
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path


def _marked(paths: Iterable[str]) -> Iterator[str]:
    for path in paths:
        if path.endswith(".json") and "/meta/" in path:
            folder, _, name = path.rpartition("/")
            if (root := _root(folder)) and _MARK.fullmatch(name):
                yield root


def _root(folder: str) -> str:
    """Return the folder of the table whose versions or leases stand in this one, or "" for any other folder."""
    return next((folder.removesuffix(ending) for ending in _FOLDERS if folder.endswith(ending)), "")


def _is_below(root: str, listing: Listing) -> bool:
    """Say whether a table is below the folder of a source, and its pattern asks for more than the files of tables.

    A pattern such as `*.embeddings/data/*.parquet` names a folder of the table, and so is none that leads to its `meta`.
    """
    above = f"{listing.root.rstrip('/')}/"
    if not root.startswith(above):
        return False
    if not listing.pieces:
        return True
    for number, name in enumerate([*root.removeprefix(above).split("/"), "meta"]):
        piece = listing.pieces[number] if number < len(listing.pieces) else ""
        if piece == "**":
            return True
        if not fnmatch.fnmatchcase(name, piece):
            return False
    return True


def _is_table(root: str, options: Options) -> bool:
    plain = MAGIC.sub(r"[\g<0>]", root)
    return any(any(_marked(_listed(f"{plain}{folder}/*.json", options))) for folder in _FOLDERS)


def _listed(pattern: str, options: Options) -> list[str]:
    try:
        return [file.path for file in list_pattern(pattern, options)]
    except NoMatch:
        return []
