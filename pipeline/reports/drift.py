"""How the vectors of a version differ from those of the version before it.

Two versions of a table come in. The cosines of rows with the same id go out, and how far the centroid moved. Rows of parts
that both versions have keep their vectors, so only changed rows are compared where both have one model.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline import schema
from pipeline.errors import PipelineError
from pipeline.reports import pool as pools
from pipeline.reports.pool import Pool
from pipeline.storage import Folder
from pipeline.table import snapshot
from pipeline.table.net_changes import net_changes, split
from pipeline.table.part import Part
from pipeline.table.row_reader import RowReader
from pipeline.table.snapshot import Snapshot
from pipeline.table.vectors import vectors

COMPARED = 2_000
"""So many rows with the same id are compared at most."""
MOST_LOOKED = 400_000
"""They are looked for among so many rows of the version before."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Drift:
    before: int
    """It is the number of the version before."""
    same_model: bool
    cosines: NDArray[np.float64]
    """They are between the two vectors of rows that were compared. There are none where models have other dimensions."""
    of_changed: bool
    """Only rows whose text or columns changed were compared, since all others have the vectors that they had."""
    centroid_cosine: float | None
    """It is None where models have other dimensions."""
    centroid_shift: float | None
    """It is the distance between the centroids of unit vectors, in units of the mean distance of a vector from the
    centroid."""
    centroid_rows: tuple[str, str]
    """They say which rows the two centroids are of."""

    def to_dict(self) -> dict[str, Any]:
        return {
            "before": self.before,
            "same_model": self.same_model,
            "compared": len(self.cosines),
            "of_changed": self.of_changed,
            "mean_cosine": float(self.cosines.mean()) if len(self.cosines) else None,
            "least_cosine": float(self.cosines.min()) if len(self.cosines) else None,
            "centroid_cosine": self.centroid_cosine,
            "centroid_shift": self.centroid_shift,
        }


def look(reader: RowReader, pool: Pool) -> Drift | str:
    """Compare a version with the one before it, or say in a sentence why it can't be compared."""
    version = reader.version
    if version.parent == 0:
        return "This is the table's first version, so there is none before it to compare with."
    try:
        before = snapshot.read(reader.table, version.parent)
        return _compared(reader, RowReader(reader.table, before), pool)
    except PipelineError as error:
        return f"Version {version.parent} can't be compared with: {error}."


def _compared(reader: RowReader, before: RowReader, pool: Pool) -> Drift | str:
    new, old = reader.version, before.version
    if not sum(part.rows for part in old.parts):
        return f"Version {old.version} has no rows to compare with."
    same_model = new.fingerprint == old.fingerprint
    same_dim = new.embeddings[0]["dim"] == old.embeddings[0]["dim"]
    cosines = np.empty(0)
    if same_model:
        cosines = _of_changed(reader, before)
    elif same_dim:
        cosines = _of_pool(before, pool)
    centroid: tuple[float | None, float | None] = (None, None)
    told = ""
    if same_dim:
        earlier = pools.draw(before)
        told = str(earlier)
        centroid = _centroids(earlier.unit, pool.unit)
    return Drift(
        before=old.version,
        same_model=same_model,
        cosines=cosines,
        of_changed=same_model,
        centroid_cosine=centroid[0],
        centroid_shift=centroid[1],
        centroid_rows=(told, str(pool)),
    )


def _of_changed(reader: RowReader, before: RowReader) -> NDArray[np.float64]:
    """Return the cosines of rows that the list of changes names and both versions have."""
    new, old = reader.version, before.version
    ids = _sampled(_upserts(reader.table, old.version, new))
    live = {part.path for part in new.parts}
    stood = {part.path for part in old.parts}
    earlier = _found(before, [part for part in old.parts if part.path not in live], ids)
    later = _found(reader, [part for part in new.parts if part.path not in stood], pa.array(earlier, pa.string()))
    pairs = [(earlier[name], later[name]) for name in later]
    return _cosines(pairs)


def _upserts(table: Folder, since: int, until: Snapshot) -> Iterator[pa.Array]:
    for some in net_changes(table, since, until):
        yield split(some)[0].column(schema.ID).combine_chunks()


def _sampled(ids: Iterable[pa.Array]) -> pa.Array:
    """Return COMPARED * 10 ids at most, because many of them may be new ones."""
    found = pa.chunked_array([*ids], pa.string()).combine_chunks()
    most = COMPARED * 10
    if len(found) <= most:
        return found
    return found.take(pa.array(np.sort(np.random.default_rng(pools.SEED).choice(len(found), most, replace=False))))


def _of_pool(before: RowReader, pool: Pool) -> NDArray[np.float64]:
    """Return the cosines of rows of the pool with the vectors that the version before has for them."""
    ids = pool.rows.column(schema.ID).combine_chunks()
    chosen = np.random.default_rng(pools.SEED).permutation(len(ids))[: COMPARED * 10]
    places = {ids[place].as_py(): place for place in chosen.tolist()}
    earlier = _found(before, before.version.parts, pa.array(places, pa.string()))
    return _cosines([(vector, pool.unit[places[name]]) for name, vector in earlier.items()])


def _found(reader: RowReader, parts: Iterable[Part], ids: pa.Array) -> dict[str, NDArray[np.float32]]:
    """Return the vectors of at most COMPARED rows with these ids, by id. At most MOST_LOOKED rows are looked through."""
    column = str(reader.version.embeddings[0]["column"])
    found: dict[str, NDArray[np.float32]] = {}
    looked = 0
    for part in parts if len(ids) else ():
        for rows in reader.batches(part, [schema.ID, column]):
            looked += rows.num_rows
            here = rows.filter(pc.is_in(rows.column(schema.ID), ids))
            if here.num_rows:
                found |= dict(zip(here.column(schema.ID).to_pylist(), vectors(here, column), strict=True))
            if len(found) >= COMPARED or looked >= MOST_LOOKED:
                return dict(list(found.items())[:COMPARED])
    return found


def _cosines(pairs: list[tuple[NDArray[np.float32], NDArray[np.float32]]]) -> NDArray[np.float64]:
    if not pairs:
        return np.empty(0)
    first, second = (np.stack(side).astype(np.float64) for side in zip(*pairs, strict=True))
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    cosines: NDArray[np.float64] = (first * second).sum(axis=1) / np.maximum(lengths, 1e-24)
    return np.minimum(cosines, 1.0)


def _centroids(earlier: NDArray[np.float32], later: NDArray[np.float32]) -> tuple[float, float]:
    """Return (the cosine of the two centroids, their distance in mean distances of a vector from the later one)."""
    old, new = earlier.mean(axis=0, dtype=np.float64), later.mean(axis=0, dtype=np.float64)
    lengths = float(np.linalg.norm(old) * np.linalg.norm(new))
    # The mean square distance of unit vectors from their centroid c is 1 - |c|^2.
    spread = max(1.0 - float(new @ new), 1e-12) ** 0.5
    return float(old @ new) / max(lengths, 1e-24), float(np.linalg.norm(old - new)) / spread
