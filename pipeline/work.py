"""Source files, their spans, units of work and slices are what is planned and read.

These are frozen values only. How files become units stands in spans.py, and how a unit becomes slices in reader.py.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import pyarrow as pa

FormatName = Literal[
    "parquet",
    "jsonl",
    "csv",
    "tsv",
    "arrow",
    "lines",
    "text",
    "html",
    "pdf",
    "docx",
    "pptx",
    "epub",
    "ipynb",
    "eml",
    "mbox",
]
Compression = Literal["", "gz", "zst"]


@dataclass(frozen=True, kw_only=True)
class LakeColumn:
    """It is a column of a lakehouse table, and says how the data files name it."""

    name: str
    type: pa.DataType
    field_id: int | None = None
    """Files that number their columns have it under this number, whatever its name was then."""
    names: tuple[str, ...] = ()
    """Files without numbers have it under one of these names."""


@dataclass(frozen=True, kw_only=True)
class LakeSnapshot:
    """It is one state of a lakehouse table: which one, and the columns that its rows have."""

    label: str
    """It names the table and its state, for people."""
    columns: tuple[LakeColumn, ...]


@dataclass(frozen=True, kw_only=True)
class DeletedRows:
    """Rows of a data file are deleted, and a bitmap or a file of positions elsewhere says which ones."""

    kind: Literal["bitmap", "positions", "puffin"]
    """A file of the kind puffin has bitmaps for several data files, and tells at its end where each begins."""
    path: str
    """It is the file that says so. It is empty where `inline` holds the bitmap itself."""
    offset: int = 0
    """The bitmap begins at this byte of the file."""
    size: int = 0
    """The bitmap has so many bytes, or the file does that is of another kind."""
    rows: int | None = None
    """So many rows are deleted. It is None where the file may speak of several data files."""
    data_file: str = ""
    """Such a file names the data file so."""
    inline: bytes = b""


@dataclass(frozen=True, kw_only=True)
class Logged:
    """It is what the log of a lakehouse table says of one of its data files."""

    snapshot: LakeSnapshot
    rows: int | None
    """So many rows are in the file, deleted ones included. It is None where the log doesn't say."""
    deletes: tuple[DeletedRows, ...] = ()
    cut: tuple[tuple[int, int], ...] | None = None
    """They are the row groups [start, stop) of the spans that an earlier run cut the same file into. None stands for a
    file that no version of the table knows."""

    @property
    def live_rows(self) -> int | None:
        """So many rows of the file are in the snapshot. It is None where only reading can tell."""
        deleted = [each.rows for each in self.deletes]
        return None if self.rows is None or None in deleted else self.rows - sum(rows or 0 for rows in deleted)


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceFile:
    path: str
    """It is an absolute path, or a URL with its scheme."""
    size: int
    version: str
    """It must not change between plan and read. It is the etag, or size and mtime_ns, or what a log says of the file."""
    format: FormatName
    compression: Compression = ""
    """The file as a whole is compressed so."""
    partition: tuple[tuple[str, Any], ...] = ()
    """They are the Hive `key=value` folders of the path, unescaped, in path order. None is the null partition. A lakehouse
    table's log gives the values of its partitions with their own types."""
    logged: Logged | None = None
    """It is None for a file that was found by its name."""
    root: str = ""
    """The path begins with the folder that all files of the source are below; it is empty where nobody asked."""

    @property
    def name(self) -> str:
        """It is the path without the commit of a Hub repository, so that it stays from one commit to the next."""
        return lasting_name(self.path)

    @property
    def relative(self) -> str:
        """It is the path below the folder of the source."""
        return self.path.removeprefix(self.root)

    @property
    def pinned(self) -> "SourceFile":
        """It is the file as storage knows it. A log never gives a path to other bytes, and doesn't know what storage calls
        their version, so that the size alone counts."""
        return self if self.logged is None else replace(self, version="")


def lasting_name(path: str) -> str:
    """Return the `SourceFile.name` of the file with this path."""
    return re.sub(r"^(hf://(?:[a-z]+/)?[^/@]+/[^/@]+)@[0-9a-f]{40}/", r"\1/", path)


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """It is a piece of one source file.

    It is row groups [start, stop) of Parquet, or bytes [start, stop) of an uncompressed file of lines (the lines that
    begin there), or the whole of a file that can't be cut or opened.
    """

    file: SourceFile
    kind: Literal["row_groups", "bytes", "file"]
    start: int
    stop: int
    rows: int | None
    """They are None where only reading can tell."""
    take: int | None = None
    """Only so many of its first rows count, whatever `where` makes of them. None stands for all."""


NO_PLACE = -1
"""A row without a position has this one, where rows are named by their positions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """It is the grain of planning, resume and reuse. Its rows are counted 0, 1, 2, .. through its spans in order."""

    unit_id: str
    spans: tuple[Span, ...]
    sources: tuple[int, ...]
    """They are the numbers of the spans in the version's list of sources, one per span."""
    only: tuple[tuple[int, int], ...] | None = None
    """They are the (source, position) of the rows to read, sorted, where not all are. The others count as left out."""
    hashes: tuple[bytes, ...] | None = None
    """A unit of kind `texts` gives vectors for these content hashes. They are sorted, and each belongs to a row of
    `only`."""

    @property
    def kind(self) -> Literal["rows", "texts"]:
        """A unit of rows becomes rows of the table; one of texts gives vectors by the hash of their text."""
        return "rows" if self.hashes is None else "texts"

    @property
    def is_placed(self) -> bool:
        """Each of the rows that are tried again has a position."""
        return all(position != NO_PLACE for _, position in self.only or ())


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """It is a unit to read, and the rows [first, stop) of it that an earlier run recorded."""

    unit: Unit
    done: tuple[tuple[int, int], ...]

    @property
    def rows_to_do(self) -> int | None:
        """They are source rows, or the distinct texts of a unit of that kind. They are None where only reading can
        tell."""
        if self.unit.hashes is not None:  # This is a unit of texts.
            return len(self.unit.hashes)
        rows = [span.rows for span in self.unit.spans]
        done = sum(stop - first for first, stop in self.done)
        return None if None in rows else sum(count for count in rows if count is not None) - done


@dataclass(frozen=True, kw_only=True)
class Unreadable:
    """A span can't be read to its end."""

    reason: str
    rows_read: int | None
    """So many rows of the span came before a rest that nobody can count. It is None where each row that can't be read
    is counted, one dead letter a row."""


@dataclass(frozen=True, kw_only=True)
class Unfit:
    """Some rows have values that their columns' types, which nobody asked for, have no place for."""

    rows: int
    column: str
    """It is the column of the first such row."""
    example: str
    """It says where that row is, and what is wrong."""


def together(found: Sequence[Unfit]) -> Unfit | None:
    """Return all of these rows under the first one's example."""
    return replace(found[0], rows=sum(item.rows for item in found)) if found else None


@dataclass(frozen=True, kw_only=True)
class Slice:
    """It has rows [first_row, first_row + num_rows) of a unit. Each stands in `documents` or `dead_letters`, or is
    skipped."""

    unit_id: str
    first_row: int
    num_rows: int
    skipped: int
    """So many rows are left out by `source.where` or `source.on_null`."""
    broken: bool
    """One of its dead letters stands for the rest of a file, of which nobody knows how many rows it had."""
    unread: Mapping[int, Unreadable]
    """It maps the sources of which not even the ids of some rows could be read to what is known of that."""
    unfit: Unfit | None
    """Some of its dead letters are rows whose values are of another type than their column."""
    last: bool
    """No row of the unit comes after this slice."""
    documents: pa.Table
    """It has schema.ID, schema.TEXT, kept and partition columns, schema.SOURCE and schema.POSITION, in source order."""
    dead_letters: pa.Table
    """It has the columns of schema.DEAD_LETTERS."""
