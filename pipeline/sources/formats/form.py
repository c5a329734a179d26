"""What a format is to the rest of the program: how its files are looked into, cut and read.

Knows no format: each one makes a `Form` of its own.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Protocol

import pyarrow as pa

from pipeline.config import SourceSpec
from pipeline.sources.columns import Block
from pipeline.sources.spans import UNIT_TEXT_BYTES, RowGroup
from pipeline.work import SourceFile, Span

SAMPLE_ROWS = 500
SAMPLE_BYTES = 8 * 2**20
MOST_SAMPLED_BYTES = 4 * SAMPLE_BYTES
"""So many uncompressed bytes are looked at, whatever they hold."""

Needed = Callable[[int, int], bool]
"""Whether any of `count` rows from row `first` of the span on is to be read."""
Join = Callable[[str, pa.DataType, pa.DataType], pa.DataType | None]


class Misfit(Exception):
    """A line or a value is not what was planned; the message says what it is instead."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a file says of itself, or its first rows of all of it."""

    names: Collection[str] = ()
    """The names of all columns."""
    types: Mapping[str, pa.DataType]
    """The types of those columns that were asked for and that the file has."""
    duplicates: tuple[str, ...] = ()
    """Columns asked for that the file has more than once."""
    row_groups: tuple[RowGroup, ...] | None = None
    rows: int = 0
    """Rows that were sampled."""
    size: int = 0
    """Bytes of these rows, uncompressed."""
    readable: bool = True
    """Whether there is anything that the format can read."""
    reason: str = ""
    """Why nothing can be read; empty for a file that can be, or that holds nothing."""
    remark: str = ""
    """What a person should know of how the file is read, in words that follow on "N files"; empty for most files."""


def unreadable(reason: str) -> Look:
    return Look(types={}, readable=False, reason=reason)


class Blocks(Protocol):
    def __call__(
        self,
        opened: BinaryIO,
        span: Span,
        schema: pa.Schema,
        spec: SourceSpec,
        max_row_bytes: int,
        needed: Needed,
    ) -> Iterator[Block]:
        """All rows of the span in order, whatever they hold; those not `needed` are counted only.

        Each block has the columns of the schema. Only storage can raise.
        """
        ...


class LookInto(Protocol):
    def __call__(self, opened: BinaryIO, file: SourceFile, columns: Sequence[str], spec: SourceSpec) -> Look:
        """Raises Misfit if a column holds values of two kinds, InputError if a package is missing."""
        ...


def never(file: SourceFile, spec: SourceSpec) -> bool:
    return False


@dataclass(frozen=True, kw_only=True)
class Form:
    blocks: Blocks
    look: LookInto
    suffixes: tuple[str, ...] = ()
    """Lower case; of files that are taken for this format unless another one is asked for."""
    packable: bool = True
    """Whether a file may be compressed as a whole, and its name then end with .gz or .zst."""
    every: bool = False
    """Whether each file is looked into, else a few."""
    readahead_bytes: int = 4 * 2**20
    unit_bytes: int = UNIT_TEXT_BYTES
    """Uncompressed bytes that make a unit."""
    divisible: Callable[[SourceFile, SourceSpec], bool] = never
    """Whether an uncompressed file can be read from the middle, by byte ranges."""
    isolated: bool = False
    """Whether files are read in a process of their own: a foreign library decodes them, and a few bytes may ask of it any
    memory and any time."""
    strings_only: bool = False
    """Whether all values are strings, which other types must be parsed from."""
    rows_per_file: int | None = None
    """None where only reading can tell."""
    is_document: bool = False
    """Whether people write such files to be read: a file, or a mail of it, is a document."""
    join: Join | None = None
    """The type of a column that two files have with two types; None where exact types must be united."""
