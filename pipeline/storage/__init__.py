"""Files, on a disk or in a store: list and read sources, and keep a table's folder.

Sources are only ever read, pinned to the version that was planned. All that is written goes through `Folder`: durable,
whole or not at all. This is the one home of fsspec; it knows paths, bytes and versions, and nothing of what is in them.

    address  where a path leads            error    what libraries raise becomes ours
    file     what is known of a file       disk     files of this disk
    pattern  which names are shown         store    what each store can do; s3, gs, az, hf, memory
    source   list and read, pinned         folder   a table's folder
"""

from pipeline.storage.address import (
    MAGIC,
    checks_itself,
    contains,
    is_remote,
    is_shared,
    local_path,
    same_place,
    store_of,
)
from pipeline.storage.error import NoMatch, before_work
from pipeline.storage.file import FileInfo, Listing, Options, Pinned
from pipeline.storage.folder import Folder
from pipeline.storage.pattern import matcher
from pipeline.storage.source import (
    check_unchanged,
    is_folder,
    list_all,
    list_pattern,
    look_up,
    open_pinned,
    pinned,
    read_file,
)

__all__ = [
    "MAGIC",
    "FileInfo",
    "Folder",
    "Listing",
    "NoMatch",
    "Options",
    "Pinned",
    "before_work",
    "check_unchanged",
    "checks_itself",
    "contains",
    "is_folder",
    "is_remote",
    "is_shared",
    "list_all",
    "list_pattern",
    "local_path",
    "look_up",
    "matcher",
    "open_pinned",
    "pinned",
    "read_file",
    "same_place",
    "store_of",
]
