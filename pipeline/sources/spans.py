"""How source files become the spans of units. Pure: sizes in, groups of spans out; opens nothing.

The cut depends on the files alone, never on limits or workers, and a file that comes or goes moves only the group that
it falls into: what was encoded before is found again.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from pipeline.work import SourceFile, Span

UNIT_ROWS = 8192
UNIT_PARQUET_BYTES = 32 * 2**20
"""Uncompressed, of the columns that are read."""
UNIT_TEXT_BYTES = 8 * 2**20
PACKED_RATIO = 4
"""Text shrinks to about a quarter."""
MAX_PACK_UNITS = 4.0
MAX_PACK_FILES = 4096


@dataclass(frozen=True, kw_only=True)
class RowGroup:
    rows: int
    size: int
    """Uncompressed bytes of the columns that are read."""

    @property
    def weight(self) -> float:
        return max(self.rows / UNIT_ROWS, self.size / UNIT_PARQUET_BYTES)


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How an earlier run cut a file that was a unit, or several units, by itself."""

    groups: tuple[tuple[int, int], ...]
    """The row groups [start, stop) of each unit; none where the file was a unit as a whole."""
    rows: int
    """The rows that these units have together."""


@dataclass(frozen=True, kw_only=True)
class Extent:
    """What is known of a file's inside before it is read."""

    file: SourceFile
    row_groups: tuple[RowGroup, ...] | None = None
    """None for all but Parquet files."""
    unit_bytes: int | None = None
    """Stored bytes that make a unit; None where nothing is known of the file: it is a unit by itself."""
    divisible: bool = False
    """Whether the file can be read from the middle, by byte ranges."""
    rows: int | None = None
    """None where only reading can tell."""
    alone: bool = False
    """Whether the file shares no unit with another: so that it is not read again because the other one came or went."""
    groups: tuple[tuple[int, int], ...] = ()
    """The row groups [start, stop) that make a unit each, where an earlier run told."""


def is_large(size: int, rows: int | None) -> bool:
    """Whether a Parquet file of so many stored bytes, and so many rows where that is known, is more than a unit."""
    return size * PACKED_RATIO >= UNIT_PARQUET_BYTES or (rows or 0) >= UNIT_ROWS


def cut(extents: Iterable[Extent]) -> list[tuple[Span, ...]]:
    """The spans of each unit, in path order of their first file. Files without rows have none."""
    packs: list[tuple[Span, ...]] = []
    small: dict[tuple[str, str], list[tuple[float, Span]]] = {}
    for extent in sorted(extents, key=lambda extent: extent.file.path):
        if extent.alone:
            packs += _cut_alone(extent)
            continue
        weight = _weight(extent)
        if 0 < weight < 1:
            file = extent.file
            small.setdefault((file.format, file.compression), []).append((weight, _whole(extent)))
        elif weight:
            packs += _cut_large(extent)
    for weighted in small.values():
        packs += _pack(weighted)
    return sorted(packs, key=lambda spans: (spans[0].file.path, spans[0].start))


def _weight(extent: Extent) -> float:
    """In units: from 1 on the file is cut by itself, 0 is a file without rows."""
    if extent.row_groups is not None:
        rows = sum(group.rows for group in extent.row_groups)
        return max(rows / UNIT_ROWS, sum(group.size for group in extent.row_groups) / UNIT_PARQUET_BYTES) if rows else 0
    if extent.unit_bytes is None:
        return 1.0
    return max(extent.file.size / extent.unit_bytes, (extent.rows or 0) / UNIT_ROWS)


def _whole(extent: Extent) -> Span:
    file = extent.file
    if extent.row_groups is not None:
        rows = sum(group.rows for group in extent.row_groups)
        return Span(file=file, kind="row_groups", start=0, stop=len(extent.row_groups), rows=rows)
    return Span(file=file, kind="bytes" if extent.divisible else "file", start=0, stop=file.size, rows=extent.rows)


def _cut_alone(extent: Extent) -> Iterator[tuple[Span, ...]]:
    if extent.groups:
        for start, stop in extent.groups:
            yield (Span(file=extent.file, kind="row_groups", start=start, stop=stop, rows=None),)
    elif extent.row_groups is not None:
        yield from _cut_large(extent)
    else:
        yield (_whole(extent),)


def _cut_large(extent: Extent) -> Iterator[tuple[Span, ...]]:
    file = extent.file
    if extent.row_groups is not None:
        for start, stop in _runs([group.weight for group in extent.row_groups]):
            rows = sum(group.rows for group in extent.row_groups[start:stop])
            if rows:
                yield (Span(file=file, kind="row_groups", start=start, stop=stop, rows=rows),)
    elif extent.divisible and extent.unit_bytes is not None:
        for start in range(0, file.size, extent.unit_bytes):
            yield (
                Span(file=file, kind="bytes", start=start, stop=min(start + extent.unit_bytes, file.size), rows=None),
            )
    else:
        yield (_whole(extent),)


def _runs(weights: Sequence[float]) -> Iterator[tuple[int, int]]:
    """Consecutive pieces [start, stop) that weigh a unit or more each; the last one may weigh less."""
    start, total = 0, 0.0
    for index, weight in enumerate(weights):
        total += weight
        if total >= 1:
            yield start, index + 1
            start, total = index + 1, 0.0
    if start < len(weights):
        yield start, len(weights)


def _pack(weighted: Sequence[tuple[float, Span]]) -> Iterator[tuple[Span, ...]]:
    """A pack ends where a file's own name and size say so, hence at the same places whatever comes before it."""
    pack: list[Span] = []
    total = 0.0
    for weight, span in weighted:
        pack.append(span)
        total += weight
        ends = _hash(span.file.name) % max(1, int(1 / weight)) == 0
        if ends or total >= MAX_PACK_UNITS or len(pack) >= MAX_PACK_FILES:
            yield tuple(pack)
            pack, total = [], 0.0
    if pack:
        yield tuple(pack)


def _hash(path: str) -> int:
    return int.from_bytes(hashlib.blake2b(path.encode(errors="surrogateescape"), digest_size=8).digest(), "big")
