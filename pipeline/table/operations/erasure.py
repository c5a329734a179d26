"""Files below a table that hold rows with some ids, beside its live parts: found, and erased as far as nobody may need them.

Comes in: a table whose current version is without the rows. Goes out: how many files were erased, and how many are left that
may hold some because a run under way wrote them. Lists of rows are written anew without them; all other files are deleted.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import schema
from pipeline.storage import Folder
from pipeline.storage.file import TEMPORARY, FileInfo
from pipeline.table import clock, layout, snapshot
from pipeline.table.part import Part, parts_to_table, table_to_parts
from pipeline.table.snapshot import Snapshot, to_parquet

ROWS_PER_READ = 65_536
_LISTS = (layout.CHANGES, layout.DEAD_LETTERS)
_PARTS = (layout.DATA, layout.TRASH)


@dataclass(frozen=True, kw_only=True, eq=False)
class Wanted:
    """The ids whose rows are looked for."""

    ids: pa.Array
    chunked: bool
    """The table's rows are chunks: ids of documents stand for all of theirs."""

    def among(self, rows: pa.Table) -> pa.ChunkedArray:
        """Which rows have one of the ids."""
        found = pc.is_in(rows.column(schema.ID), self.ids)
        if schema.DOC_ID in rows.column_names:
            return pc.or_(found, pc.is_in(rows.column(schema.DOC_ID), self.ids))
        if not self.chunked:
            return found
        # Lists of changes hold the ids of chunks alone.
        return pc.or_(found, pc.is_in(pc.replace_substring_regex(rows.column(schema.ID), r"#\d+$", ""), self.ids))


@dataclass(frozen=True, kw_only=True)
class Erased:
    files: int
    """So many were erased, or written anew without the rows."""
    left: int
    """So many may hold some, and can't be erased: a run under way or a later version may need them."""


def holds(table: Folder, path: str, wanted: Wanted) -> bool:
    """Whether a Parquet file has one of the ids. A file without ids has vectors by the hash of their text, which may be of
    any row."""
    with table.open(path) as file:
        reader = pq.ParquetFile(file)
        columns = [name for name in (schema.ID, schema.DOC_ID) if name in reader.schema_arrow.names]
        if not columns:
            return True
        batches = reader.iter_batches(ROWS_PER_READ, columns=columns)
        return any(pc.any(wanted.among(pa.Table.from_batches([batch]))).as_py() for batch in batches)


def holding(table: Folder, files: Iterable[FileInfo], wanted: Wanted) -> list[str]:
    """The paths of those files that have one of the ids."""
    return [info.path for info in files if holds(table, info.path, wanted)]


def open_attempts(table: Folder, current: Snapshot, wanted: Wanted) -> frozenset[str]:
    """The folders of publications that hold some of the rows and may yet be committed as the version after `current`."""
    listed = table.list(layout.PUBLICATIONS)
    committed = _committed(table, current)
    return frozenset(
        folder
        for folder, files in _by_attempt(listed).items()
        if _youngest(files) >= committed and holding(table, filter(_has_rows, files), wanted)
    )


def erase(table: Folder, current: Snapshot, wanted: Wanted, *, closed: Collection[str], own: str | None) -> Erased:
    """Erase the rows everywhere but in live parts, where they are not, and in the list of changes `own`.

    `closed` are folders of publications that can't be committed any more. Versions that held the rows can't be read or
    brought back afterwards.
    """
    listed = table.list(temporary=True)
    unfinished = [info for info in listed if _is_unfinished(info)]
    whole = [info for info in listed if not _is_unfinished(info)]
    lists = [info for info in whole if own is None or not info.path.startswith(own)]
    files = _erase_attempts(table, current, whole, wanted, closed)
    files += _erase_parts(table, current, whole, wanted)
    files += _erase_from_lists(table, current, lists, wanted)
    forsaken, young = _erase_unfinished(table, unfinished, wanted)
    return Erased(files=files + forsaken, left=young + _still_held(table, current, wanted))


def _still_held(table: Folder, current: Snapshot, wanted: Wanted) -> int:
    """How many files hold some now. Whoever copied them before they were erased shows in an attempt, or in a later version."""
    attempts = holding(table, filter(_has_rows, table.list(layout.PUBLICATIONS)), wanted)
    later = max(snapshot.versions(table), default=0)
    parts = snapshot.read(table, later).parts if later != current.version else ()
    return len(attempts) + sum(_is_holding(table, part, wanted) for part in parts)


def _is_holding(table: Folder, part: Part, wanted: Wanted) -> bool:
    """Whether a part has one of the ids, be it staged or in data/."""
    places = [path for path in (part.staged, part.path) if path is not None and table.size(path) is not None]
    return bool(places) and holds(table, places[0], wanted)


def _erase_attempts(
    table: Folder, current: Snapshot, listed: Sequence[FileInfo], wanted: Wanted, closed: Collection[str]
) -> int:
    """Whole publications: their lists may tell of the rows, too."""
    erased = 0
    committed = _committed(table, current)
    for folder, files in _by_attempt(listed).items():
        # What was written before this version was there can't become the next one any more.
        if folder in closed or _youngest(files) < committed or _is_forsaken(table, current, files):
            found = holding(table, filter(_has_rows, files), wanted)
            table.delete(info.path for info in files if found)
            erased += len(found)
    return erased


def _is_forsaken(table: Folder, current: Snapshot, files: Sequence[FileInfo]) -> bool:
    """Before the first version nothing closes an attempt but that nobody goes on with it. If somebody does after all, the
    commit finds its parts gone."""
    return not current.version and _youngest(files) < clock.now(table) - clock.WRITING_S


def _erase_unfinished(table: Folder, unfinished: Sequence[FileInfo], wanted: Wanted) -> tuple[int, int]:
    """(how many were erased, how many are left). A crash ended their writing; one that is younger than any write takes may be
    written just now."""
    found = [info for info in unfinished if _may_hold(table, info, wanted)]
    if not found:
        return 0, 0
    since = clock.now(table) - clock.WRITING_S
    forsaken = [info.path for info in found if info.modified < since]
    table.delete(forsaken)
    return len(forsaken), len(found) - len(forsaken)


def _is_unfinished(info: FileInfo) -> bool:
    return info.path.rpartition("/")[2].startswith(TEMPORARY)


def _may_hold(table: Folder, info: FileInfo, wanted: Wanted) -> bool:
    content = table.read(info.path)
    if not content:
        return False
    try:
        rows = pq.ParquetFile(pa.BufferReader(content))
        names = rows.schema_arrow.names
        return schema.ID not in names or bool(pc.any(wanted.among(rows.read(use_threads=False))).as_py())
    except (pa.ArrowException, OSError):
        return True  # the beginning of a file, or of another kind: nobody can tell


def _erase_parts(table: Folder, current: Snapshot, listed: Sequence[FileInfo], wanted: Wanted) -> int:
    live = {part.path for part in current.parts}
    parts = [info for info in listed if info.path.startswith(_PARTS) and info.path not in live]
    holders = holding(table, parts, wanted)
    # A version that was published meanwhile has brought its own, a rollback to one that held the rows, say.
    found = [path for path in holders if (layout.version_of_part(_place(path)) or 0) <= current.version]
    if found:
        staying = {_place(info.path) for info in listed if info.path.startswith(_PARTS)} - set(map(_place, found))
        _forget_partitions(table, current, set(map(_place, found)), staying)
    table.delete(found)
    return len(found)


def _place(path: str) -> str:
    """The path in data/ that a part has or had."""
    return layout.trashed(path) if path.startswith(layout.TRASH) else path


def _forget_partitions(table: Folder, current: Snapshot, found: set[str], staying: set[str]) -> None:
    """Lists of older versions lose the values of partitions that no row is in any more: an id may stand in such a value. The
    names of the parts stay, so that it is known that they were there."""
    live = {_folder(part.path) for part in current.parts}
    gone = {_folder(path) for path in found} - live - {layout.DATA}
    for number in snapshot.versions(table) if gone else ():
        content = table.read(layout.parts_list(number)) if number < current.version else None
        if content is None:
            continue
        before = table_to_parts(snapshot.read_parquet(content))
        after = [
            _without_values(part) if _folder(part.path) in gone and part.path not in staying else part
            for part in before
        ]
        if after != before:
            table.write(layout.parts_list(number), to_parquet(parts_to_table(after)))


def _folder(path: str) -> str:
    return path.rpartition("/")[0] + "/"


def _without_values(part: Part) -> Part:
    name = part.path.rpartition("/")[2]
    return replace(part, path=layout.DATA + name, partition=tuple((column, None) for column, _ in part.partition))


def _erase_from_lists(table: Folder, current: Snapshot, listed: Sequence[FileInfo], wanted: Wanted) -> int:
    holders = holding(table, [info for info in listed if info.path.startswith(_LISTS)], wanted)
    found = [path for path in holders if (layout.version_of_list(path) or 0) <= current.version]
    for path in found:
        rows = snapshot.read_parquet(table.read(path))
        table.write(path, to_parquet(rows.filter(pc.invert(wanted.among(rows)))))
    return len(found)


def _by_attempt(listed: Iterable[FileInfo]) -> dict[str, list[FileInfo]]:
    found: dict[str, list[FileInfo]] = {}
    for info in listed:
        folder = layout.publication_of(info.path)
        if folder is not None:
            found.setdefault(folder, []).append(info)
    return found


def _youngest(files: Sequence[FileInfo]) -> float:
    return max(info.modified for info in files)


def _has_rows(info: FileInfo) -> bool:
    """Lists of parts and of row sources hold no rows."""
    return (
        not info.path.endswith(("/parts.parquet", "/sources.parquet", "/consumed.parquet"))
        and "/owners/" not in info.path
    )


def _committed(table: Folder, current: Snapshot) -> float:
    """When the current version was committed, by the store's clock; 0 for version 0."""
    name = layout.snapshot(current.version)
    return next((info.modified for info in table.list(layout.VERSIONS) if info.path == name), 0.0)
