"""Parts in, one part out, no encoding: small staged parts are merged, live parts lose the rows of dropped spans or rows at
some places, and spans that were numbered twice get their new number.

`choose` decides (pure), `rewrite` does one job; who runs the jobs, and where, is not known here.
"""

import functools
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import GateFailed
from pipeline.schema import ID, SOURCE
from pipeline.storage import Folder
from pipeline.storage.parallel import in_parallel
from pipeline.table import row_sources
from pipeline.table.layout import Partition
from pipeline.table.part import Encoding, Part, distinct_sources, encode_sorted, raw_bytes
from pipeline.table.publication import Publication

SMALL_BYTES = 32 * 2**20
"""Staged parts below this are merged with others of their partition."""
LEAST_FULL, MOST_FULL = 16 * 2**20, 128 * 2**20
"""Bytes in memory of a full part, the most that a merged one gets: a share of the table in between. One changed row costs
writing as much; a rewrite holds some four times as much."""
FULL_PARTS = 64
"""So many full parts has a table that is neither so small nor so large that these bounds hold."""
READERS = 8
"""Inputs that are read at a time: in a store each takes a request's time."""

REWRITERS = 2
"""Jobs at a time in one process."""

NewNumbers = Mapping[int, int | None]
"""Source number -> its new one, or None to drop its rows; a number that is missing stays."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Input:
    part: Part
    new_numbers: tuple[tuple[int, int | None], ...] = ()
    """What `NewNumbers` holds, as pairs."""
    removed: bytes = b""
    """Indexes of rows that are left out, as int32, ascending."""

    @property
    def is_changed(self) -> bool:
        return bool(self.new_numbers or self.removed)


@dataclass(frozen=True, kw_only=True)
class Rewrite:
    inputs: tuple[Input, ...]
    """Parts of one partition."""
    output: str
    """Path of the new part in staging."""


def full_bytes(table_bytes: int) -> int:
    """How large merged parts get in a table of so many bytes in memory."""
    return min(max(LEAST_FULL, table_bytes // FULL_PARTS), MOST_FULL)


def choose(
    staged: Sequence[Input], live: Sequence[Input], full: int, publication: Publication
) -> tuple[list[Part], list[Rewrite]]:
    """(parts to publish as they are, rewrites that make the others). `live` are parts that lose some rows or are to
    be merged; `full` bytes are the most that a merged one gets."""
    as_is: list[Part] = []
    inputs: dict[Partition, list[Input]] = {}
    for item in staged:
        if item.part.size < SMALL_BYTES or item.is_changed:
            inputs.setdefault(item.part.partition, []).append(item)
        else:
            as_is.append(item.part)
    for item in live:
        inputs.setdefault(item.part.partition, []).append(item)
    new = {item.part.location for item in staged}
    rewrites: list[Rewrite] = []
    for group in (group for found in inputs.values() for group in _groups(found, full)):
        first = group[0]
        # What is live has its place already: only staged parts can be published as they are.
        if len(group) == 1 and not first.is_changed and first.part.location in new:
            as_is.append(first.part)
        else:
            rewrites.append(Rewrite(inputs=tuple(group), output=publication.staged("merged", len(rewrites))))
    return as_is, rewrites


def without_sources(live: Sequence[Part], dropped: Set[int]) -> list[Input]:
    """The parts that lose the rows of these sources, and have others. A part that loses all its rows is simply not named
    again; its columns may not even be those of the new ones."""
    losing = ((part, dropped & set(part.sources)) for part in live)
    return [
        Input(part=part, new_numbers=tuple((number, None) for number in sorted(gone)))
        for part, gone in losing
        if gone and gone != set(part.sources)
    ]


def _groups(inputs: Collection[Input], full: int) -> Iterator[list[Input]]:
    """At most so many bytes each, unless it is a single part, and about as many in all. Rows of neighbouring source files
    come together: what changes in a night stands in few parts."""
    rest, size = raw_bytes(item.part for item in inputs), 0
    group: list[Input] = []
    for item in sorted(inputs, key=lambda item: (min(item.part.sources, default=0), item.part.location)):
        more = item.part.raw_bytes
        even = rest / max(1, math.ceil(rest / full))  # an equal share of what is left
        if group and (size + more > full or size + more / 2 > even):
            yield group
            rest, group, size = rest - size, [], 0
        group.append(item)
        size += more
    if group:
        yield group


def rewrite(table: Folder, job: Rewrite, embedding: str, encoding: Encoding = "plain") -> Part:
    """Do one job; its part has the units of all inputs whose rows are still in it, and its vectors are in this encoding,
    whatever the inputs' is."""
    files = list(in_parallel(functools.partial(_read, table), (item.part for item in job.inputs), READERS))
    seen = _Seen()
    streams = [seen.watched(item, _rows(table, item, file)) for item, file in zip(job.inputs, files, strict=True)]
    content = encode_sorted(_ahead(merged(streams)), files[0].schema_arrow, embedding, encoding)
    table.write(job.output, content)
    return replace(
        job.inputs[0].part,
        path=job.output,
        staged=job.output,
        size=content.size,
        rows=seen.rows,
        raw_bytes=seen.raw_bytes,
        units=tuple(sorted(seen.units)),
        sources=tuple(sorted(seen.sources)),
        row_sources=None,
    )


def rewrite_all(table: Folder, jobs: Sequence[Rewrite], embedding: str) -> list[Part]:
    """Do all jobs in this process."""
    with ThreadPoolExecutor(REWRITERS) as pool:
        return list(pool.map(lambda job: rewrite(table, job, embedding), jobs))


class _Seen:
    """What goes into a new part."""

    def __init__(self) -> None:
        self.rows = self.raw_bytes = 0
        self.units: set[str] = set()
        self.sources: set[int] = set()

    def watched(self, item: Input, pieces: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """The pieces that have rows."""
        for piece in pieces:
            if piece.num_rows:
                self.rows += piece.num_rows
                self.raw_bytes += piece.nbytes
                self.units.update(item.part.units)
                self.sources.update(distinct_sources(piece))
                yield piece


def merged(streams: Sequence[Iterator[pa.Table]]) -> Iterator[pa.Table]:
    """The rows of streams that are sorted by id, in one such stream; holds a piece of each."""
    held = [(piece, stream) for stream in streams if (piece := next(stream, None)) is not None]
    while held:
        # Up to the least of the pieces' last ids nothing can come any more.
        bound = min(piece.column(ID)[-1].as_py().encode() for piece, _ in held).decode()
        ready, rest = [], []
        for piece, stream in held:
            count = pc.sum(pc.less_equal(piece.column(ID), bound)).as_py()
            ready.append(piece.slice(0, count))
            left = piece.slice(count) if count < piece.num_rows else next(stream, None)
            if left is not None:
                rest.append((left, stream))
        held = rest
        yield pa.concat_tables(ready).sort_by([(ID, "ascending")]) if len(ready) > 1 else ready[0]


def _ahead(pieces: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The pieces as they come; the next is read while one is written."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, pieces, None)
        while (piece := coming.result()) is not None:
            coming = pool.submit(next, pieces, None)
            yield piece


def _rows(table: Folder, item: Input, file: pq.ParquetFile) -> Iterator[pa.Table]:
    """A row group at a time, without the rows that are left out, under the numbers that hold now."""
    numbers = row_sources.of(table, item.part) if item.part.row_sources is not None else None
    stay = np.ones(item.part.rows, bool)
    stay[np.frombuffer(item.removed, np.int32)] = False
    start = 0
    for index in range(file.num_row_groups):
        rows = file.read_row_group(index)
        stop = start + rows.num_rows
        if numbers is not None:
            rows = row_sources.numbered(rows, numbers[start:stop])
        if not stay[start:stop].all():
            rows = rows.filter(pa.array(stay[start:stop]))
        yield renumbered(rows, dict(item.new_numbers))
        start = stop


def _read(table: Folder, part: Part) -> pq.ParquetFile:
    content = table.read(part.location)
    if content is None:
        raise GateFailed(f"{part.location} of {table.url} is gone: nothing was published; start again")
    return pq.ParquetFile(pa.BufferReader(content))


def renumbered(rows: pa.Table, new_numbers: NewNumbers) -> pa.Table:
    """The rows that stay, under their new numbers."""
    if not new_numbers:
        return rows
    gone = [number for number, new in new_numbers.items() if new is None]
    if gone:
        rows = rows.filter(pc.invert(pc.is_in(rows.column(SOURCE), pa.array(gone, pa.int32()))))
    moved = {number: new for number, new in new_numbers.items() if new is not None}
    if moved:
        numbers = rows.column(SOURCE).to_numpy()
        renumbered = np.array([moved.get(number, number) for number in numbers.tolist()], np.int32)
        index = rows.schema.get_field_index(SOURCE)
        rows = rows.set_column(index, rows.schema.field(SOURCE), pa.array(renumbered))
    return rows
