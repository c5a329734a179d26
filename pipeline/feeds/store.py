"""A store is a vector database that a feed fills: this file says what every store must do, and with what.

A `Shape` says what rows look like. A `Marker` stands in the store itself and says which version of the table its rows
are. A store holds generations, each with one shape and one marker, and shows one of them to readers under the feed's
name. Rows travel as Arrow tables with the columns of `Shape.schema`. This file knows no database, no network and no
table.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import RunError
from pipeline.schema import CONTENT_HASH, ID, ROW_HASH

Dtype = Literal["float32", "float16", "binary"]
Metric = Literal["cosine", "dot", "euclidean", "hamming"]
"""Under `dot` more is nearer. Under `hamming`, which goes with `binary` alone, the number of different bits counts."""

CALL_BYTES = 16 * 2**20
"""A loader that sends rows in several calls gets so many bytes of them at once."""

KEYS = pa.schema(
    [
        pa.field(ID, pa.string(), nullable=False),
        pa.field(CONTENT_HASH, pa.binary(16), nullable=False),
        pa.field(ROW_HASH, pa.int64(), nullable=False),
    ]
)
"""These columns say which row stands in a store, and of which state of the table it is."""


@dataclass(frozen=True, kw_only=True)
class Index:
    """It says how the store's index for nearest neighbours is built. What is None is left to the store."""

    kind: str = "auto"
    """It is `hnsw`, `none`, or another kind that the store knows; `auto` is the store's own choice."""
    m: int | None = None
    ef_construction: int | None = None


@dataclass(frozen=True, kw_only=True)
class Shape:
    """It says what the rows of a generation look like, and how they are searched."""

    columns: pa.Schema
    """They are the chosen columns of the table in order, without id, hashes and vector, and none is a dictionary. The text is
    among them if it is wanted."""
    embedding: str
    """The column of vectors has this name."""
    dim: int
    dtype: Dtype
    metric: Metric
    index: Index
    fingerprint: str
    """It is the table's: vectors of two fingerprints are never mixed."""

    @property
    def vector(self) -> pa.DataType:
        """FixedSizeList[dim] of float32 or float16, or FixedSizeList[ceil(dim / 8)] of uint8 with the first dimension in
        the highest bit, as numpy packs bits."""
        if self.dtype == "binary":
            return pa.list_(pa.field("element", pa.uint8(), nullable=False), -(-self.dim // 8))
        kind = pa.float16() if self.dtype == "float16" else pa.float32()
        return pa.list_(pa.field("element", kind, nullable=False), self.dim)

    @property
    def schema(self) -> pa.Schema:
        """The columns of rows as they travel: id, the chosen ones, both hashes, the vector."""
        return pa.schema(
            [
                KEYS.field(ID),
                *self.columns,
                KEYS.field(CONTENT_HASH),
                KEYS.field(ROW_HASH),
                pa.field(self.embedding, self.vector, nullable=False),
            ]
        )

    def in_words(self) -> dict[str, Any]:
        """Return all that makes two generations different, as JSON holds it. The index is not among it: it can be
        rebuilt under the same rows."""
        return {
            "columns": {field.name: str(field.type) for field in self.columns},
            "embedding": self.embedding,
            "dim": self.dim,
            "dtype": self.dtype,
            "metric": self.metric,
            "fingerprint": self.fingerprint,
        }

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.in_words(), sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Marker:
    """It says what a generation holds. It stands in the store, and is the truth about what was applied there."""

    generation: str
    shape: Mapping[str, Any]
    """It is `Shape.in_words()`."""
    applied: int
    """The rows are those of this version of the table. It is 0 while a load is under way."""
    applied_of: str
    """It identifies that version beyond its number, because a table that was restored or built anew has other ones."""
    target: int | None = None
    """Rows may be those of this version already: a load or a sync towards it began, and has not ended."""
    target_of: str = ""
    indexed: bool = False
    """The index was built, and the generation was found to hold what it should. Only then it is shown to readers."""
    unit_bytes: int = 0
    """A unit of the load has so many bytes of vectors at most. It stays as it was when the load began."""
    refused: bool = False
    """The last look found that the generation is not as it should be."""
    asked: str = ""
    """A person asked for this generation: `rebuild` or `new generation`. The same command goes on with it."""
    hidden: bool = False
    """It was asked for without being shown, and waits for --switch."""
    shown: bool = False
    """Readers have seen it. It is shown again only if a person asks for it."""

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Marker":
        raw = json.loads(text)
        known = {item.name for item in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in raw.items() if name in known})


@dataclass(frozen=True, kw_only=True)
class Generation:
    """It is one set of rows in a store that belongs to the feed by its name."""

    name: str
    marker: Marker | None
    """It is None where somebody removed it."""
    live: bool
    """Readers who ask for the feed's name see it."""


@dataclass(frozen=True, kw_only=True)
class Guarantees:
    """It says what a store can give. What it can't is told in the dry run and in the summary."""

    atomic_marker: bool
    """Rows and marker change together, so that readers never see a sync that is half done."""
    fences: bool
    """A feeder that was frozen and wakes after a newer sync can't change anything any more."""
    atomic_switch: bool
    """Readers of the name see one generation or the other, at every moment."""
    keeps_bits: bool
    """Vectors are read back bit by bit as they were sent."""
    dtypes: frozenset[Dtype] = frozenset({"float32"})
    """Vectors of these are held as they are."""
    tested_on_server: bool
    """This program was tested with the store's real server, or with the library itself where there is no server."""


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """A row that the store refuses."""

    id: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A unit of a load is durable in the store, or will be when `finish_load` has its receipt."""

    rows: int
    rejected: tuple[Rejection, ...] = ()
    receipt: str | None = None
    """It is JSON. It is None where the rows are in the generation already."""


class Rejected(RunError):
    """The store refuses a row among those that it was given, and took none of them."""


class NotOurs(RunError):
    """The marker in the store is not the one that was expected: another feed was at work."""


class Loader(Protocol):
    """It fills a generation that nobody reads yet. Several work side by side, in other processes or on other nodes."""

    def load(self, unit: str, rows: Iterable[pa.Table]) -> Loaded:
        """Take the rows of a unit, once: the same unit may be given again after a crash, to any loader. The rows come in
        tables of a few megabytes, and come again whenever they are iterated over. Durable on return."""
        ...

    def close(self) -> None: ...


class Delta(Protocol):
    """It changes rows of a generation towards a version. Every call may be repeated, and says all of a row."""

    def upsert(self, rows: pa.Table) -> Sequence[Rejection]:
        """Put the rows there in place of those with their ids. Ids don't repeat in a delta."""
        ...

    def delete(self, ids: pa.Array) -> None:
        """Remove the rows with these ids. Missing ones are fine."""
        ...

    def commit(self) -> None:
        """Make all of it durable, and the marker with it."""
        ...


class Store(Protocol):
    """It is one feed's place in a vector database. Every call may be repeated. Errors are PipelineErrors."""

    @property
    def guarantees(self) -> Guarantees: ...

    def check(self, shape: Shape) -> None:
        """Raise InputError for a shape that the store can't take, and for an address, a name or rights that are wrong.
        Changes nothing."""
        ...

    def unfit(self, rows: pa.Table) -> Mapping[int, str]:
        """Return why the store can't take some of the rows, by their number in `rows`. The columns are some of
        `Shape.schema`: the vector is missing before a load, so that everything else is found before the first write."""
        ...

    def generations(self) -> Sequence[Generation]:
        """Return all generations of this feed, the oldest first. Raises InputError where readers of the name see
        something that is not ours."""
        ...

    def create(self, shape: Shape, marker: Marker) -> None:
        """Make an empty generation with this marker, unless it is there."""
        ...

    def mark(self, marker: Marker, expected: Marker | None) -> None:
        """Replace the marker of a generation. None expects that it has none. Raises NotOurs where another one stands
        there."""
        ...

    def loader(self, generation: str, shape: Shape) -> Loader: ...

    def finish_load(self, shape: Shape, before: Marker, after: Marker, receipts: Sequence[str]) -> None:
        """Commit the receipts of all units, once, together with the marker `after`. It recognises its own earlier
        success. Raises NotOurs where neither marker stands there."""
        ...

    def delta(self, shape: Shape, before: Marker, after: Marker) -> AbstractContextManager[Delta]:
        """Begin to change a generation whose marker is `before`, and whose marker is `after` once the delta is committed.
        Leaving the block without a commit leaves the rows as they were, or between the two. Where rows and marker don't
        change together, the caller has marked the target beforehand. Raises NotOurs where `before` doesn't stand there."""
        ...

    def build_index(self, generation: str, shape: Shape, on_progress: Callable[[float], None]) -> None:
        """Build what searches need, or wait until it is built. `on_progress` hears a share of 1."""
        ...

    def count(self, generation: str) -> int:
        """Return the exact number of rows, duplicates included."""
        ...

    def digests(self, generation: str) -> NDArray[np.uint64] | None:
        """Return feeds.digest.digests of the generation's keys where the store computes them itself, else None."""
        ...

    def keys(self, generation: str, buckets: Sequence[int] | None = None) -> Iterator[pa.Table]:
        """Yield KEYS of all rows, some at a time, duplicates included. With `buckets`, feeds.digest.bucket numbers, at
        least the rows in these."""
        ...

    def get(self, generation: str, shape: Shape, ids: Sequence[str]) -> pa.Table:
        """Return the rows with these ids as `shape.schema` has them, in any order, those that are there."""
        ...

    def search(
        self,
        generation: str,
        shape: Shape,
        vectors: NDArray[np.float32],
        k: int,
        where: Mapping[str, Any] | None = None,
    ) -> list[list[str]]:
        """Return the ids of the `k` nearest rows of each vector, float32[n, dim], best first, as the store's index finds
        them. `where` wants columns to equal values."""
        ...

    def switch(self, generation: str) -> None:
        """Show this generation to readers of the feed's name."""
        ...

    def drop(self, generation: str) -> None:
        """Remove a generation that is not live, with its marker."""
        ...

    def close(self) -> None: ...


def number_of(generation: str) -> int:
    """Return the number in a generation's name. A later generation has a higher one."""
    found = re.search(r"__g(\d+)", generation)
    return int(found[1]) if found else 0


def by_age(generation: str) -> tuple[int, str]:
    """Return a key that puts generations in the order in which they were made."""
    return (number_of(generation), generation)


def not_ours(generation: str, expected: Marker | None, found: Marker | None) -> NotOurs:
    """Return the error of one who expected another marker than stands in the store."""

    def told(marker: Marker | None) -> str:
        if marker is None:
            return "none"
        return f"version {marker.applied}" + (f" on its way to {marker.target}" if marker.target is not None else "")

    return NotOurs(
        f"the marker of {generation} in the store is {told(found)}, and {told(expected)} was expected: another feed was at "
        "work; the same command goes on from what stands there"
    )


def joined(rows: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Put tables together that have CALL_BYTES at least, the last one aside. None of them is empty."""
    held, size = list[pa.Table](), 0
    for some in rows:
        if some.num_rows:
            held.append(some)
            size += some.nbytes
        if size >= CALL_BYTES:
            yield pa.concat_tables(held)
            held, size = [], 0
    if held:
        yield pa.concat_tables(held)


def loaded_by(upsert: Callable[[pa.Table], Sequence[Rejection]], rows: Iterable[pa.Table]) -> Loaded:
    """Give the rows of a unit to `upsert`, which returns those that the store refuses."""
    given, rejected = 0, list[Rejection]()
    for some in joined(rows):
        rejected += upsert(some)
        given += some.num_rows
    return Loaded(rows=given - len(rejected), rejected=tuple(rejected))


def taken(apply: Callable[[pa.Table], object], rows: pa.Table) -> list[Rejection]:
    """Give the rows to `apply`, which takes all of them or raises Rejected. Find those that it refuses by halving; the
    others arrive. Return the refused ones."""
    try:
        apply(rows)
        return []
    except Rejected as error:
        if rows.num_rows == 1:
            return [Rejection(id=rows.column(ID)[0].as_py(), reason=str(error))]
    half = rows.num_rows // 2
    return taken(apply, rows.slice(0, half)) + taken(apply, rows.slice(half))


def matrix(rows: pa.Table, shape: Shape) -> NDArray[Any]:
    """Return the vectors of the rows without a copy where they are one piece: float32[n, dim], float16[n, dim], or
    uint8[n, ceil(dim / 8)]."""
    column = rows.column(shape.embedding).combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # of no chunks
        column = pa.array([], shape.vector)
    width = shape.vector.list_size
    found: NDArray[Any] = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), width)
    return found
