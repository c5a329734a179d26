"""Whether a folder can be a table's, found before any work: nothing of others lies in it, and it can be written.

Comes in: the folder, and the version that it has. Goes out: InputError, which says what to do. A look leaves nothing behind.
"""

import contextlib
import os
import uuid

from pipeline.errors import InputError, StorageError, StorageUnavailable
from pipeline.storage import Folder
from pipeline.table import layout
from pipeline.table.snapshot import Snapshot


def check_own(table: Folder, current: Snapshot) -> None:
    """Raises InputError where files of others lie among the table's.

    Whoever reads `data/` would take them for rows. Before the first version nothing but staged work may be in the folder.
    Names that begin with a dot or an underscore are no rows to any reader, and are let be.
    """
    if current.version:
        paths = [info.path for info in table.list(layout.DATA) if layout.version_of_part(info.path) is None]
    else:
        paths = [info.path for info in table.list() if not info.path.startswith((layout.STAGING, layout.META))]
    foreign = [path for path in paths if not any(piece.startswith((".", "_")) for piece in path.split("/"))]
    if foreign:
        place = f"{table.url}/data" if current.version else table.url
        raise InputError(
            f"table.path {table.url!r} holds {len(foreign):,} files that are not the table's, the first is {foreign[0]!r}: "
            f"give the table a folder of its own, or move what is not the table's out of {place}"
        )


def check_writable(table: Folder) -> None:
    """Raises InputError if nothing can be written there; StorageUnavailable passes. Writes a file and deletes it again."""
    stands = _nearest(table.url) if table.is_local else ""
    probe = f"{layout.STAGING}probe-{uuid.uuid4().hex[:12]}"
    try:
        try:
            table.write(probe, b"")
        finally:
            table.delete([probe])
    except StorageUnavailable:
        raise
    except StorageError as error:
        raise InputError(f"table.path {table.url!r} can't be written: {error}") from None
    finally:
        if stands:
            _remove_empty(table.url, stands)


def _nearest(folder: str) -> str:
    """The folder, or the nearest one above it that is there."""
    while not os.path.isdir(folder) and os.path.dirname(folder) != folder:
        folder = os.path.dirname(folder)
    return folder


def _remove_empty(folder: str, above: str) -> None:
    """Remove the folder and those between while they are empty; `above` stays."""
    with contextlib.suppress(OSError):  # another process put something there
        while folder != above:
            os.rmdir(folder)
            folder = os.path.dirname(folder)
