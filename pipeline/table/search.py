"""The rows of a published version nearest to a vector, by exact comparison with every row: for a look, not for serving.

Vectors and the columns of a condition are read for all rows, a row group at a time on each core. All other columns are
read only of the row groups that hold a row to show.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.encoder.similarities import similarities
from pipeline.machine.quotas import cores
from pipeline.storage import Folder
from pipeline.table import calibration
from pipeline.table.conditions import Condition, equal_to
from pipeline.table.quantize import dequantize
from pipeline.table.row_reader import RowReader
from pipeline.table.snapshot import Snapshot

SCORE = "score"
ROWS_PER_READ = 16_384

Vector = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True, eq=False)
class Places:
    """Some rows of a version, each by its part, its row group and its place in that."""

    part: NDArray[np.int32]
    group: NDArray[np.int32]
    index: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.part)

    def take(self, numbers: NDArray[Any]) -> "Places":
        return Places(self.part[numbers], self.group[numbers], self.index[numbers])

    @staticmethod
    def joined(pieces: Sequence["Places"]) -> "Places":
        def of(name: str) -> NDArray[np.int32]:
            return np.concatenate([np.zeros(0, np.int32), *(getattr(piece, name) for piece in pieces)])

        return Places(of("part"), of("group"), of("index"))


@dataclass(frozen=True, eq=False)
class Stored:
    """How a table has its vectors."""

    column: str
    dtype: str
    dim: int
    ranges: Vector | None
    """float32[2, dim] of int8 and uint8."""

    def floats(self, rows: pa.Table) -> Vector:
        """Return float32[n, dim], what the rows' codes stand for: signs, of binary ones."""
        column = rows.column(self.column).combine_chunks()
        codes = column.flatten().to_numpy().reshape(len(column), column.type.list_size)
        return codes if self.dtype == "float32" else dequantize(codes, self.dtype, self.dim, self.ranges)


def stored(table: Folder, version: Snapshot) -> Stored:
    """Return how the version has its vectors. Raises InputError if the ranges of an int8 or uint8 table are gone."""
    embedding = version.embeddings[0]
    made = calibration.stored(table, embedding)
    return Stored(embedding["column"], embedding["dtype"], embedding["dim"], made.ranges if made else None)


def nearest(
    table: Folder,
    version: Snapshot,
    vector: Vector,
    num_rows: int,
    function: str = "cosine",
    where: Mapping[str, Any] | Condition | None = None,
) -> pa.Table:
    """The `num_rows` rows most similar to `vector` (float32[dim]), best first; all columns but the embedding, and `score`.

    With `where` only rows whose columns, those of the folders among them, equal these values, or which meet the condition,
    are compared.

    `function` is one of pipeline.encoder.similarities. Codes count as the vectors that they stand for: signs, of binary
    ones. Memory is bounded by a row group for each core.

    Raises InputError if the ranges of an int8 or uint8 table are gone.
    """
    reader, vectors = RowReader(table, version), stored(table, version)
    condition = where if isinstance(where, Condition) else equal_to(where or {})
    places, scores = best(reader, vectors, vector, num_rows, function, condition)
    columns = [name for name in reader.schema.names if name != vectors.column]
    return rows_at(reader, places, columns).append_column(SCORE, pa.array(scores, pa.float32()))


def best(
    reader: RowReader,
    vectors: Stored,
    vector: Vector,
    num_rows: int | None,
    function: str,
    where: Condition | None,
) -> tuple[Places, Vector]:
    """Return the places of the nearest rows, or of all for None, and their scores, best first.

    Equal scores come in the order of the rows.
    """

    def scored(task: tuple[int, int], read: Iterator[pa.Table]) -> tuple[Places, Vector]:
        found = [np.zeros(0, np.float32)]
        kept = [np.zeros(0, np.int32)]
        start = 0
        for rows in read:
            mask = where.mask(rows) if where is not None else np.ones(rows.num_rows, np.bool_)
            chosen = np.flatnonzero(mask)
            if len(chosen):
                matrix = vectors.floats(rows.select([vectors.column]))
                matrix = matrix if len(chosen) == len(matrix) else matrix[chosen]
                found.append(similarities(matrix, vector, function)[:, 0])
                kept.append((chosen + start).astype(np.int32))
            start += rows.num_rows
        scores, index = np.concatenate(found), np.concatenate(kept)
        order = _order(scores, num_rows)
        return _places(task, index[order]), scores[order]

    columns = [vectors.column, *(where.columns if where is not None else ())]
    pieces = list(in_groups(reader, columns, scored))
    places = Places.joined([piece[0] for piece in pieces])
    scores = np.concatenate([np.zeros(0, np.float32), *(piece[1] for piece in pieces)])
    order = _order(scores, num_rows)
    return places.take(order), scores[order]


def all_places(reader: RowReader, where: Condition | None) -> Places:
    """Return the places of all rows, or of those that meet the condition, in the order of the table."""
    if where is None:
        groups = [
            (part, group, rows)
            for part, named in enumerate(reader.version.parts)
            for group, rows in enumerate(reader.groups(named))
        ]
        return Places.joined([_places((part, group), np.arange(rows, dtype=np.int32)) for part, group, rows in groups])

    def met(task: tuple[int, int], read: Iterator[pa.Table]) -> Places:
        masks = [np.zeros(0, np.bool_), *(where.mask(rows) for rows in read)]
        return _places(task, np.flatnonzero(np.concatenate(masks)).astype(np.int32))

    return Places.joined(list(in_groups(reader, where.columns, met)))


def vectors_at(reader: RowReader, vectors: Stored, places: Places) -> Vector:
    """Return float32[n, dim], the vectors of some rows, which come in the order of the table."""
    keys = places.part.astype(np.int64) << 32 | places.group
    out = np.empty((len(places), vectors.dim), np.float32)

    def read_group(task: tuple[int, int], read: Iterator[pa.Table]) -> None:
        inside = np.flatnonzero(keys == (task[0] << 32 | task[1]))
        wanted, start, done = places.index[inside], 0, 0
        for rows in read:
            here = wanted[(wanted >= start) & (wanted < start + rows.num_rows)] - start
            if len(here):
                out[inside[done : done + len(here)]] = vectors.floats(rows.select([vectors.column]))[here]
            start, done = start + rows.num_rows, done + len(here)

    list(in_groups(reader, [vectors.column], read_group, set(np.unique(keys).tolist())))
    return out


def in_groups(reader: RowReader, columns: Sequence[str], do: Any, only: Collection[int] | None = None) -> Iterator[Any]:
    """Yield what `do` makes of each row group of these columns, in the order of the table; several are read at once.

    `do` gets the numbers of part and group, and the group's rows some at a time. `only` names groups by part * 2³² + group.
    """
    parts = reader.version.parts
    tasks = [(number, group) for number, part in enumerate(parts) for group in range(len(reader.groups(part)))]
    if only is not None:
        tasks = [task for task in tasks if task[0] << 32 | task[1] in only]

    def run(task: tuple[int, int]) -> Any:
        return do(task, reader.batches(parts[task[0]], list(columns), [task[1]], ROWS_PER_READ))

    with ThreadPoolExecutor(cores()) as pool:
        yield from pool.map(run, tasks)


def rows_at(reader: RowReader, places: Places, columns: Sequence[str]) -> pa.Table:
    """Return these columns of some rows, in the order of the places."""
    pieces, at = [pa.schema([reader.schema.field(name) for name in columns]).empty_table()], [np.zeros(0, np.int64)]
    keys = places.part.astype(np.int64) << 32 | places.group
    for key in np.unique(keys).tolist():
        inside = np.flatnonzero(keys == key)
        inside = inside[np.argsort(places.index[inside], kind="stable")]
        wanted, start = places.index[inside].astype(np.int64), 0
        for rows in reader.batches(reader.version.parts[key >> 32], list(columns), [key & 0xFFFFFFFF], ROWS_PER_READ):
            here = (wanted >= start) & (wanted < start + rows.num_rows)
            if here.any():
                pieces.append(rows.take(pa.array(wanted[here] - start)).replace_schema_metadata(None))
                at.append(inside[here])
            start += rows.num_rows
    found = pa.concat_tables(pieces)
    return found.take(pa.array(np.argsort(np.concatenate(at), kind="stable")))


def _places(task: tuple[int, int], index: NDArray[np.int32]) -> Places:
    return Places(np.full(len(index), task[0], np.int32), np.full(len(index), task[1], np.int32), index)


def _order(scores: Vector, num_rows: int | None) -> NDArray[np.int64]:
    """Return where the best scores stand, best first; all of them in their own order for None."""
    if num_rows is None:
        return np.arange(len(scores))
    if num_rows < len(scores):
        least = np.partition(scores, len(scores) - num_rows)[len(scores) - num_rows]
        among = np.flatnonzero(scores >= least)
        return among[np.argsort(-scores[among], kind="stable")][:num_rows]
    return np.argsort(-scores, kind="stable")
