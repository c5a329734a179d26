"""What is planned and what is read: source files, spans of them, units of work, and the slices a unit is read in.

Frozen values only; how files become units stands in spans.py, how a unit becomes slices in reader.py.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

FormatName = Literal["parquet", "jsonl", "csv", "tsv", "arrow", "lines", "text", "html"]
Compression = Literal["", "gz", "zst"]


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    path: str
    """Absolute path, or URL with its scheme."""
    size: int
    version: str
    """What must not change between plan and read: the etag, or size and mtime_ns."""
    format: FormatName
    compression: Compression = ""
    """Of the file as a whole."""
    partition: tuple[tuple[str, str | None], ...] = ()
    """Hive `key=value` folders of the path, unescaped, in path order; None is the null partition."""

    @property
    def name(self) -> str:
        """The path as it stays from one commit of a Hub repository to the next: what of it is new says the version."""
        return lasting_name(self.path)


def lasting_name(path: str) -> str:
    """`SourceFile.name` of the file with this path."""
    return re.sub(r"^(hf://(?:[a-z]+/)?[^/@]+/[^/@]+)@[0-9a-f]{40}/", r"\1/", path)


@dataclass(frozen=True, kw_only=True)
class Span:
    """A piece of one source file: row groups [start, stop) of Parquet, bytes [start, stop) of an uncompressed file of
    lines (those that begin there), or the whole of a file that can't be cut or opened."""

    file: SourceFile
    kind: Literal["row_groups", "bytes", "file"]
    start: int
    stop: int
    rows: int | None
    """None where only reading can tell."""
    take: int | None = None
    """Only the first so many of its rows, whatever `where` makes of them; None is all."""


NO_PLACE = -1
"""The position of a row that has none, where rows are named by theirs."""


@dataclass(frozen=True, kw_only=True)
class Unit:
    """The grain of planning, resume and reuse. Its rows are counted 0, 1, 2, .. through its spans in order."""

    unit_id: str
    spans: tuple[Span, ...]
    sources: tuple[int, ...]
    """The number of each span in the version's list of sources; one per span."""
    only: tuple[tuple[int, int], ...] | None = None
    """Where only some rows are wanted: (source, position) of each, sorted. The others count as left out."""
    hashes: tuple[bytes, ...] | None = None
    """Of kind `texts`: the content hashes that its record gives vectors for, sorted; each is that of a row of `only`."""

    @property
    def kind(self) -> Literal["rows", "texts"]:
        """A unit of rows becomes rows of the table; one of texts gives vectors by the hash of their text."""
        return "rows" if self.hashes is None else "texts"

    @property
    def is_placed(self) -> bool:
        """Each of the rows that are tried again has a position."""
        return all(position != NO_PLACE for _, position in self.only or ())


@dataclass(frozen=True, kw_only=True)
class Task:
    """A unit to read, and the rows [first, stop) of it that an earlier run recorded."""

    unit: Unit
    done: tuple[tuple[int, int], ...]

    @property
    def rows_to_do(self) -> int | None:
        """Source rows, or distinct texts of a unit of that kind; None where only reading can tell."""
        if self.unit.hashes is not None:  # a unit of texts
            return len(self.unit.hashes)
        rows = [span.rows for span in self.unit.spans]
        done = sum(stop - first for first, stop in self.done)
        return None if None in rows else sum(count for count in rows if count is not None) - done


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Rows [first_row, first_row + num_rows) of a unit: each stands in `documents` or `dead_letters`, or is skipped."""

    unit_id: str
    first_row: int
    num_rows: int
    skipped: int
    """Rows that `source.where` or `source.on_null` leave out."""
    broken: bool
    """One of its dead letters stands for the rest of a file, of which nobody knows how many rows it had."""
    unread: Mapping[int, str]
    """Sources with rows of which not even the id could be read, and why."""
    last: bool
    """No row of the unit comes after this slice."""
    documents: pa.Table
    """schema.ID, schema.TEXT, kept and partition columns, schema.SOURCE, schema.POSITION; in source order."""
    dead_letters: pa.Table
    """schema.DEAD_LETTERS."""
