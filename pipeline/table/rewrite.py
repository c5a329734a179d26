"""Parts in, one part out, no encoding: small staged parts are merged, live parts lose the rows of dropped spans, and spans
that were numbered twice get their new number.

`choose` decides (pure), `rewrite` does one job; who runs the jobs, and where, is not known here.
"""

import io
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import GateFailed
from pipeline.schema import SOURCE
from pipeline.storage import Folder
from pipeline.table.layout import Partition
from pipeline.table.part import Part, distinct_sources, encode_part

SMALL_BYTES = 32 * 2**20
"""Staged parts below this are merged with others of their partition."""
MERGED_BYTES = 256 * 2**20
"""Bytes in memory of the parts that are merged into one; a rewrite holds about three times as much."""

Renumbering = Mapping[int, int | None]
"""Source number -> its new one, or None to drop its rows; a number that is missing stays."""


@dataclass(frozen=True, kw_only=True)
class Rewrite:
    inputs: tuple[tuple[Part, tuple[tuple[int, int | None], ...]], ...]
    """Parts of one partition, each with its renumbering."""
    output: str
    """Path of the new part in staging."""


def choose(
    staged: Sequence[tuple[Part, Renumbering]], live: Sequence[Part], dropped: Set[int], folder: str
) -> tuple[list[Part], list[Rewrite]]:
    """(parts to publish as they are, rewrites that make the others); live parts untouched by `dropped` are in neither."""
    as_is: list[Part] = []
    inputs: dict[Partition, list[tuple[Part, Renumbering]]] = {}
    for part, renumbering in staged:
        if part.size < SMALL_BYTES or renumbering:
            inputs.setdefault(part.partition, []).append((part, renumbering))
        else:
            as_is.append(part)
    for part in live:
        gone = dropped & set(part.sources)
        # A part that loses all its rows is simply not named again; its columns may not even be those of the new ones.
        if gone and gone != set(part.sources):
            inputs.setdefault(part.partition, []).append((part, dict.fromkeys(gone)))
    rewrites: list[Rewrite] = []
    for group in (group for found in inputs.values() for group in _groups(found)):
        if len(group) == 1 and not group[0][1]:
            as_is.append(group[0][0])
        else:
            pairs = tuple((part, tuple(sorted(renumbering.items()))) for part, renumbering in group)
            rewrites.append(Rewrite(inputs=pairs, output=f"{folder}merged/{len(rewrites):06d}.parquet"))
    return as_is, rewrites


def _groups(parts: Iterable[tuple[Part, Renumbering]]) -> Iterable[list[tuple[Part, Renumbering]]]:
    group: list[tuple[Part, Renumbering]] = []
    size = 0
    for part, renumbering in sorted(parts, key=lambda pair: pair[0].location):
        if group and size + part.raw_bytes > MERGED_BYTES:
            yield group
            group, size = [], 0
        group.append((part, renumbering))
        size += part.raw_bytes
    if group:
        yield group


def rewrite(table: Folder, job: Rewrite, embedding: str) -> Part:
    """Do one job; its part has the units of all inputs whose rows are still in it."""
    pieces = [renumbered(_read(table, part), dict(renumbering)) for part, renumbering in job.inputs]
    rows = pa.concat_tables(pieces)
    content = encode_part(rows, embedding)
    table.write(job.output, content)
    units = {unit for (part, _), piece in zip(job.inputs, pieces, strict=True) if piece.num_rows for unit in part.units}
    first = job.inputs[0][0]
    return replace(
        first,
        path=job.output,
        staged=job.output,
        size=content.size,
        rows=rows.num_rows,
        raw_bytes=rows.nbytes,
        units=tuple(sorted(units)),
        sources=distinct_sources(rows),
    )


def _read(table: Folder, part: Part) -> pa.Table:
    content = table.read(part.location)
    if content is None:
        raise GateFailed(f"{part.location} of {table.url} is gone: nothing was published; start again")
    return pq.ParquetFile(io.BytesIO(content)).read()


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
