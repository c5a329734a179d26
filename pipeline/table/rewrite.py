"""Parts in, one part out, no encoding: small staged parts are merged, live parts lose the rows of dropped spans or rows at
some places, and spans that were numbered twice get their new number.

`choose` decides (pure), `rewrite` does one job; who runs the jobs, and where, is not known here.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import GateFailed
from pipeline.schema import SOURCE
from pipeline.storage import Folder
from pipeline.table import owners
from pipeline.table.layout import Partition
from pipeline.table.part import Part, distinct_sources, encode_part

SMALL_BYTES = 32 * 2**20
"""Staged parts below this are merged with others of their partition."""
MERGED_BYTES = 256 * 2**20
"""Bytes in memory of the parts that are merged into one; a rewrite holds about three times as much."""

READERS = 8
"""Inputs that are read at a time: in a store each takes a request's time."""

Renumbering = Mapping[int, int | None]
"""Source number -> its new one, or None to drop its rows; a number that is missing stays."""


@dataclass(frozen=True, kw_only=True)
class Input:
    part: Part
    renumbering: tuple[tuple[int, int | None], ...] = ()
    removed: bytes = b""
    """Indexes of rows that are left out, as int32, ascending."""

    @property
    def is_changed(self) -> bool:
        return bool(self.renumbering or self.removed)


@dataclass(frozen=True, kw_only=True)
class Rewrite:
    inputs: tuple[Input, ...]
    """Parts of one partition."""
    output: str
    """Path of the new part in staging."""


def choose(staged: Sequence[Input], live: Sequence[Input], folder: str) -> tuple[list[Part], list[Rewrite]]:
    """(parts to publish as they are, rewrites that make the others). `live` are parts that lose some rows."""
    as_is: list[Part] = []
    inputs: dict[Partition, list[Input]] = {}
    for item in staged:
        if item.part.size < SMALL_BYTES or item.is_changed:
            inputs.setdefault(item.part.partition, []).append(item)
        else:
            as_is.append(item.part)
    for item in live:
        inputs.setdefault(item.part.partition, []).append(item)
    rewrites: list[Rewrite] = []
    for group in (group for found in inputs.values() for group in _groups(found)):
        if len(group) == 1 and not group[0].is_changed:
            as_is.append(group[0].part)
        else:
            rewrites.append(Rewrite(inputs=tuple(group), output=f"{folder}merged/{len(rewrites):06d}.parquet"))
    return as_is, rewrites


def without_sources(live: Sequence[Part], dropped: Set[int]) -> list[Input]:
    """The parts that lose the rows of these sources, and have others. One that loses all its rows is simply not named again;
    its columns may not even be those of the new ones."""
    losing = ((part, dropped & set(part.sources)) for part in live)
    return [
        Input(part=part, renumbering=tuple((number, None) for number in sorted(gone)))
        for part, gone in losing
        if gone and gone != set(part.sources)
    ]


def _groups(inputs: Iterable[Input]) -> Iterable[list[Input]]:
    group: list[Input] = []
    size = 0
    for item in sorted(inputs, key=lambda item: item.part.location):
        if group and size + item.part.raw_bytes > MERGED_BYTES:
            yield group
            group, size = [], 0
        group.append(item)
        size += item.part.raw_bytes
    if group:
        yield group


def rewrite(table: Folder, job: Rewrite, embedding: str) -> Part:
    """Do one job; its part has the units of all inputs whose rows are still in it."""
    with ThreadPoolExecutor(READERS) as pool:
        pieces = list(pool.map(functools.partial(_rows, table), job.inputs))
    rows = pa.concat_tables(pieces)
    content = encode_part(rows, embedding)
    table.write(job.output, content)
    units = {unit for item, piece in zip(job.inputs, pieces, strict=True) if piece.num_rows for unit in item.part.units}
    return replace(
        job.inputs[0].part,
        path=job.output,
        staged=job.output,
        size=content.size,
        rows=rows.num_rows,
        raw_bytes=rows.nbytes,
        units=tuple(sorted(units)),
        sources=distinct_sources(rows),
        owners=None,
    )


def _rows(table: Folder, item: Input) -> pa.Table:
    rows = renumbered(owners.applied(table, item.part, _read(table, item.part)), dict(item.renumbering))
    if not item.removed:
        return rows
    stay = np.ones(rows.num_rows, bool)
    stay[np.frombuffer(item.removed, np.int32)] = False
    return rows.filter(pa.array(stay))


def _read(table: Folder, part: Part) -> pa.Table:
    content = table.read(part.location)
    if content is None:
        raise GateFailed(f"{part.location} of {table.url} is gone: nothing was published; start again")
    return pq.ParquetFile(pa.BufferReader(content)).read()


def renumbered(rows: pa.Table, renumbering: Renumbering) -> pa.Table:
    if not renumbering:
        return rows
    gone = [number for number, new in renumbering.items() if new is None]
    if gone:
        rows = rows.filter(pc.invert(pc.is_in(rows.column(SOURCE), pa.array(gone, pa.int32()))))
    moved = {number: new for number, new in renumbering.items() if new is not None}
    if moved:
        numbers = rows.column(SOURCE).to_numpy()
        renumbered = np.array([moved.get(number, number) for number in numbers.tolist()], np.int32)
        index = rows.schema.get_field_index(SOURCE)
        rows = rows.set_column(index, rows.schema.field(SOURCE), pa.array(renumbered))
    return rows
