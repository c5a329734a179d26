"""A published table becomes a map of its rows: a page to look at, or a file for other tools.

A table comes in and a `Map` goes out. Rows that mean much the same lie together on it. Rows of the newest version are taken,
whatever its partitions, dtype and chunks are; of a large table a sample, and the page says so. No model is loaded.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import InputError, StorageError
from pipeline.machine.folders import cache_folder
from pipeline.progress import counted
from pipeline.runs.found import kept_columns
from pipeline.runs.map_labels import labels
from pipeline.runs.map_page import column_of, page
from pipeline.runs.search import Given, none_met, opened
from pipeline.runs.snippets import snippet
from pipeline.schema import CHUNK_INDEX, DOC_ID, ID, TEXT
from pipeline.table.conditions import told
from pipeline.table.neighbours import nearest_others, unit
from pipeline.table.projection import project
from pipeline.table.row_reader import RowReader
from pipeline.table.search import all_places, rows_at, stored, vectors_at

ROWS = 100_000
"""So many rows are shown, of a larger table those of a sample."""
NEIGHBOURS = 15
SHOWN_NEIGHBOURS = 10
_TEXT_WIDTH = 300
_KEPT_MAPS = 8
_FORMAT = 1
"""It is raised when maps are made otherwise: those that are kept are then made anew."""
_MARK = 'content="embedding-pipeline"'


@dataclass(frozen=True, kw_only=True, eq=False)
class Map:
    """It is a table's rows on a plane."""

    name: str
    version: int
    total: int
    """The table, or the part of it that was asked for, has so many rows."""
    rows: pa.Table
    """They have the id, the kept columns, and text and chunk fields where the table has them."""
    points: NDArray[np.float32]
    """They are float32[n, 2] within 0 and 1."""
    neighbours: NDArray[np.int32]
    """They are int32[n, k], the nearest rows of each row among those shown, nearest first."""
    kept: tuple[str, ...]
    seed: int

    @property
    def told(self) -> str:
        """Say how many rows of which version there are, and whether they are a sample."""
        if len(self.points) < self.total:
            return f"a random sample of {len(self.points):,} of {self.total:,} rows (seed {self.seed}), version {self.version}"
        return f"{counted(self.total, 'row')}, version {self.version}"

    def page(self, colour: str | None = None) -> str:
        """Return the map as one HTML page, coloured by a column at first. Raises InputError for a column it hasn't."""
        if colour is not None and colour not in self.kept:
            raise InputError(f"there is no column {colour!r} to colour by; there are {', '.join(self.kept) or 'none'}")
        texts: list[str] = []
        if TEXT in self.rows.column_names:
            texts = [snippet(text, (), _TEXT_WIDTH) for text in self.rows.column(TEXT).to_pylist()]
        shown = [*self.kept, *(name for name in (DOC_ID, CHUNK_INDEX) if name in self.rows.column_names)]
        about = "Places are by t-SNE; the nearest rows are by the cosine of the vectors themselves."
        if not texts:
            about += " The table keeps no texts (table.keep_text: false)."
        return page(
            f"Map of {self.name}",
            self.told,
            about,
            self.rows.column(ID).to_pylist(),
            texts,
            [column_of(name, self.rows.column(name)) for name in shown],
            self.points,
            self.neighbours[:, :SHOWN_NEIGHBOURS],
            labels(np.stack([self.points[:, 0], self.points[:, 1]], axis=1), texts, self.seed),
            colour,
        )

    def table(self) -> pa.Table:
        """Return the rows with their places and neighbours, as embedding-atlas and others read them."""
        found = self.rows.append_column("projection_x", pa.array(self.points[:, 0]))
        found = found.append_column("projection_y", pa.array(self.points[:, 1]))
        near = [{"ids": row, "distances": list(range(1, len(row) + 1))} for row in self.neighbours.tolist()]
        kind = pa.struct({"ids": pa.list_(pa.int64()), "distances": pa.list_(pa.float64())})
        return found.append_column("neighbors", pa.array(near, kind))


def explore(given: Given | RowReader, *, rows: int = ROWS, seed: int = 0, where: Sequence[str] = ()) -> Map:
    """Return the map of a table's newest version, of at most so many rows. Raises InputError."""
    if rows < 1:
        raise InputError(f"rows is {rows}; give how many rows to show, 1 or more")
    reader = given if isinstance(given, RowReader) else opened(given)
    vectors = stored(reader.table, reader.version)
    every = all_places(reader, told(where, reader.schema))
    if not len(every):
        of = f"version {reader.version.version} of {reader.table.url!r}"
        raise InputError(f"there is nothing to show of {of}: {none_met(where)}")
    chosen = every
    if len(every) > rows:
        chosen = every.take(np.sort(np.random.default_rng(seed).choice(len(every), rows, replace=False)))
    units = unit(vectors_at(reader, vectors, chosen))
    neighbours = nearest_others(units, NEIGHBOURS, seed)
    points = _framed(project(units, neighbours, seed))
    kept = kept_columns(reader.schema.names, vectors.column)
    columns = [ID, *kept, *(name for name in (TEXT, DOC_ID, CHUNK_INDEX) if name in reader.schema.names)]
    return Map(
        name=reader.table.url.rstrip("/").rpartition("/")[2] or "table",
        version=reader.version.version,
        total=len(every),
        rows=rows_at(reader, chosen, columns),
        points=points,
        neighbours=neighbours,
        kept=tuple(kept),
        seed=seed,
    )


def kept_page(
    reader: RowReader, *, rows: int = ROWS, seed: int = 0, where: Sequence[str] = (), colour: str | None = None
) -> Path:
    """Return the file of a map in this node's cache, made by now or by this call. Raises InputError and StorageError."""
    parts = [f"{part.path} {part.size}" for part in reader.version.parts]
    asked = [_FORMAT, reader.table.url, reader.version.version, rows, seed, list(where), colour, parts]
    key = hashlib.sha256(repr(asked).encode()).hexdigest()[:24]
    try:
        folder = cache_folder() / "maps"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:
        raise StorageError(f"the cache can't be written ({error}): name a file with --export") from None
    file = folder / f"{key}.html"
    if not file.exists():
        write(explore(reader, rows=rows, seed=seed, where=where), file, colour)
    for old in sorted(folder.glob("*.html"), key=lambda path: -path.stat().st_mtime)[_KEPT_MAPS:]:
        old.unlink(missing_ok=True)
    return file


def write(made: Map, path: Path, colour: str | None = None) -> Path:
    """Write a map as a page, or as Parquet where the name ends so, and return the file.

    A folder gets an index.html. Raises InputError where something else stands there, StorageError where nothing can be
    written.
    """
    file = destination(path)
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".parquet":
            import pyarrow.parquet as pq

            pq.write_table(made.table(), partial, compression="zstd")
        else:
            partial.write_text(made.page(colour), encoding="utf-8")
        partial.replace(file)
    except OSError as error:
        raise StorageError(f"the map can't be written to {str(file)!r}: {error.strerror or error}") from None
    finally:
        partial.unlink(missing_ok=True)
    return file


def destination(path: Path) -> Path:
    """Return the file that a map is written to. Raises InputError where a file stands there that is no map."""
    file = path.expanduser()
    if file.suffix.lower() not in (".html", ".htm", ".parquet"):
        file = file / "index.html"
    if file.suffix == ".parquet" or not file.exists():
        if file.exists() and not _is_map_table(file):
            raise InputError(f"{str(file)!r} exists and is no map: name another file")
        return file
    with file.open("rb") as opened_file:
        if _MARK.encode() not in opened_file.read(2_000):
            raise InputError(f"{str(file)!r} exists and is no map: name another file or folder")
    return file


def _is_map_table(file: Path) -> bool:
    import pyarrow.parquet as pq

    try:
        return "projection_x" in pq.read_schema(file).names
    except (OSError, pa.ArrowException):
        return False


def _framed(points: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the points within 0 and 1, in their proportions and turned so that they spread most from left to right.

    A few that lie far out are drawn to the edge.
    """
    points = points - points.mean(axis=0)
    _, axes = np.linalg.eigh(points.T.astype(np.float64) @ points)
    points = (points @ axes[:, ::-1]).astype(np.float32)
    low, high = np.percentile(points, 0.1, axis=0), np.percentile(points, 99.9, axis=0)
    span = max(float((high - low).max()), 1e-6) * 1.02
    middle = (low + high) / 2
    return np.asarray(np.clip((points - middle) / span + 0.5, 0, 1), np.float32)
