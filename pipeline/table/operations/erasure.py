"""Files below a table that hold rows with some ids, beside its live parts: found, and erased as far as nobody may need them.

Comes in: a table whose current version is without the rows. Goes out: how many files were erased, and how many are left that
may hold some because a run under way wrote them. Lists of rows are written anew without them; all other files are deleted.
"""

import contextlib
from collections.abc import Collection, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import schema
from pipeline.errors import CommitConflict, StorageError, TableBusy
from pipeline.storage import Folder
from pipeline.storage.file import TEMPORARY, FileInfo
from pipeline.table import clock, layout, lease, snapshot
from pipeline.table.lease import Lease
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
    """The paths of those files that have one of the ids. Raises CommitConflict where one goes away meanwhile: its rows may
    stand in another place now."""
    return [info.path for info in files if _listed_holds(table, info.path, wanted)]


def _listed_holds(table: Folder, path: str, wanted: Wanted) -> bool:
    try:
        return holds(table, path, wanted)
    except StorageError:
        if table.size(path) is not None:
            raise
        raise CommitConflict(
            f"another command took {path} away from {table.url} while ids were looked for in it: the erasure is not "
            "complete; give it again when that one has ended"
        ) from None


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
    # Before the others are listed: an unfinished file that gets its name meanwhile is among them then.
    files, young = _erase_unfinished(table, wanted)
    listed = table.list()
    files += _erase_attempts(table, current, listed, wanted, closed)
    files += _erase_parts_and_lists(table, current, listed, wanted, own)
    return Erased(files=files, left=len(young | _still_held(table, current, wanted)))


def _still_held(table: Folder, current: Snapshot, wanted: Wanted) -> set[str]:
    """Files that hold some now. Whoever copied them before they were erased shows in an unfinished file, in an attempt, or in
    a later version."""
    listed = table.list(temporary=True)
    attempts = [info for info in listed if info.path.startswith(layout.PUBLICATIONS) and not _is_unfinished(info)]
    held = set(holding(table, filter(_has_rows, attempts), wanted))
    # One that is gone has got its name since, or was given up.
    held |= {info.path for info in listed if _is_unfinished(info) and _may_hold(table, info, wanted, if_gone=True)}
    later = max(snapshot.versions(table), default=0)
    parts = snapshot.read(table, later).parts if later != current.version else ()
    return held | {part.path for part in parts if _is_holding(table, part, wanted)}


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


def _erase_unfinished(table: Folder, wanted: Wanted) -> tuple[int, set[str]]:
    """(how many were erased, the paths of those that are left). A crash ended their writing; one that is younger than any
    write takes may be written just now, and get its name at any moment."""
    unfinished = [info for info in table.list(temporary=True) if _is_unfinished(info)]
    found = [info for info in unfinished if _may_hold(table, info, wanted, if_gone=False)]
    if not found:
        return 0, set()
    since = clock.now(table) - clock.WRITING_S
    forsaken = {info.path for info in found if info.modified < since}
    table.delete(forsaken)
    return len(forsaken), {info.path for info in found} - forsaken


def _is_unfinished(info: FileInfo) -> bool:
    return info.path.rpartition("/")[2].startswith(TEMPORARY)


def _may_hold(table: Folder, info: FileInfo, wanted: Wanted, *, if_gone: bool) -> bool:
    content = table.read(info.path)
    if content is None:
        return if_gone
    if not content:
        return False
    try:
        rows = pq.ParquetFile(pa.BufferReader(content))
        names = rows.schema_arrow.names
        return schema.ID not in names or bool(pc.any(wanted.among(rows.read(use_threads=False))).as_py())
    except (pa.ArrowException, OSError):
        return True  # the beginning of a file, or of another kind: nobody can tell


def _erase_parts_and_lists(
    table: Folder, current: Snapshot, listed: Sequence[FileInfo], wanted: Wanted, own: str | None
) -> int:
    live = {part.path for part in current.parts}
    parts = [info for info in listed if info.path.startswith(_PARTS) and info.path not in live]
    # A version that was published meanwhile has brought its own, a rollback to one that held the rows, say.
    found = [
        path for path in holding(table, parts, wanted) if (layout.version_of_part(_place(path)) or 0) <= current.version
    ]
    lists = [info for info in listed if info.path.startswith(_LISTS) and (own is None or not info.path.startswith(own))]
    telling = [path for path in holding(table, lists, wanted) if (layout.version_of_list(path) or 0) <= current.version]
    if found or telling:
        staying = {_place(info.path) for info in listed if info.path.startswith(_PARTS)} - set(map(_place, found))
        with _alone(table) as alone:
            _forget_partitions(table, current, staying, alone)
            table.delete(found)
            # The oldest first: whoever follows the lists meanwhile may hear of a row that leaves, not of one that stays.
            for path in telling:
                _write_anew(table, path, wanted, alone)
    return len(found) + len(telling)


@contextlib.contextmanager
def _alone(table: Folder) -> Iterator[Lease]:
    """Hold the lease without which no list is written anew: what one purge takes out of a list, another would bring back that
    read the list before. Raises CommitConflict if another purge holds on to it."""
    try:
        with lease.held(table, "purge", lease.LEASE_S, wait_s=lease.LEASE_S, folder=layout.PURGES) as alone:
            yield alone
    except TableBusy as busy:
        raise CommitConflict(
            f"another purge works on {table.url}: the erasure is not complete; give it again when that one has ended ({busy})"
        ) from None


def _make_sure(alone: Lease) -> None:
    """Raises CommitConflict if the lease was lost; what is read from now on can be written within its time."""
    if not alone.renew():
        raise CommitConflict(
            f"another purge took the lease of {alone.table.url}, because this one was stopped for too long: the erasure is "
            "not complete; give it again"
        )


def _place(path: str) -> str:
    """The path in data/ that a part has or had."""
    return layout.trashed(path) if path.startswith(layout.TRASH) else path


def _forget_partitions(table: Folder, current: Snapshot, staying: Set[str], alone: Lease) -> None:
    """Lists of older versions lose the values of partitions that no row is in any more: an id may stand in such a value, also
    where the part was cleaned away long ago. The names of the parts stay, so that it is known that they were there."""
    live = {_folder(part.path) for part in current.parts} | {layout.DATA}
    for number in snapshot.versions(table):
        content = table.read(layout.parts_list(number)) if number < current.version else None
        if content is None or _forgetting(content, live, staying) is None:
            continue
        _make_sure(alone)
        after = _forgetting(table.read(layout.parts_list(number)) or content, live, staying)
        if after is not None:
            table.write(layout.parts_list(number), to_parquet(parts_to_table(after)))


def _forgetting(content: bytes, live: Set[str], staying: Set[str]) -> list[Part] | None:
    """The parts of a list without the values that go; None if none does."""
    before = table_to_parts(snapshot.read_parquet(content))
    after = [part if _folder(part.path) in live or part.path in staying else _without_values(part) for part in before]
    return after if after != before else None


def _folder(path: str) -> str:
    return path.rpartition("/")[0] + "/"


def _without_values(part: Part) -> Part:
    name = part.path.rpartition("/")[2]
    return replace(part, path=layout.DATA + name, partition=tuple((column, None) for column, _ in part.partition))


def _write_anew(table: Folder, path: str, wanted: Wanted, alone: Lease) -> None:
    """Write a list of rows without those that are wanted; what another purge took out of it since it was found stays out."""
    _make_sure(alone)
    rows = snapshot.read_parquet(table.read(path))
    table.write(path, to_parquet(rows.filter(pc.invert(wanted.among(rows)))))


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
