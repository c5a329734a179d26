"""What a generation of a store holds is read back and compared with the version of the table that it should be.

Nothing is believed that the store said when it was written: rows are counted exactly, the keys of all rows are compared by
digests and, where these differ, one by one, and rows are read back with all their columns and vectors. How good the index
is stands in recall.py.
"""

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import schema
from pipeline.feeds.digest import NUM_BUCKETS, buckets, digests, row_digests
from pipeline.feeds.shape import columns_of, shaped
from pipeline.feeds.store import KEYS, Shape, Store
from pipeline.progress import counted
from pipeline.table.row_reader import RowReader

KEYS_HELD = 2_000_000
"""The keys of so many rows of either side are compared at once."""
ROWS_PER_GET = 2_000
MOST_GROUPS = 64
"""A sample is spread over so many row groups, because all of a row group is read for one row of it."""
SHOWN = 3


@dataclass(kw_only=True)
class Differences:
    """The ids of rows that differ, by kind."""

    missing: list[str] = field(default_factory=list)
    """The table has them, and the store doesn't."""
    extra: list[str] = field(default_factory=list)
    """The store has them, and the table doesn't."""
    stale: list[str] = field(default_factory=list)
    """The store has another state of them."""
    duplicate: list[str] = field(default_factory=list)
    """The store has them more than once."""
    altered: list[str] = field(default_factory=list)
    """Their hashes are right, and a column or the vector is not."""
    reasons: dict[str, str] = field(default_factory=dict)
    """They say of the first altered ones what is wrong."""

    def __bool__(self) -> bool:
        return any((self.missing, self.extra, self.stale, self.duplicate, self.altered))

    @property
    def to_send(self) -> list[str]:
        """Rows with these ids must be sent again."""
        return sorted({*self.missing, *self.stale, *self.duplicate, *self.altered})

    @property
    def to_delete(self) -> list[str]:
        """Rows with these ids must go, duplicates before they are sent again."""
        return sorted({*self.extra, *self.duplicate})

    def kinds(self) -> dict[str, list[str]]:
        return {
            name: ids for name in ("missing", "extra", "stale", "duplicate", "altered") if (ids := getattr(self, name))
        }

    def __str__(self) -> str:
        return "; ".join(f"{len(ids):,} {name} ({self._shown(ids)})" for name, ids in self.kinds().items())

    def _shown(self, ids: Sequence[str]) -> str:
        told = [repr(name) + (f": {self.reasons[name]}" if name in self.reasons else "") for name in ids[:SHOWN]]
        return ", ".join(told) + (", .." if len(ids) > SHOWN else "")


@dataclass(frozen=True, kw_only=True)
class Verification:
    """It says what was found, for a person (`str`) and for machines (`to_dict`)."""

    generation: str
    version: int
    """The generation should be this version of the table."""
    rows: int
    """The store has so many rows."""
    expected: int
    """It should have so many."""
    differences: Differences
    sampled: int
    """So many rows were read back with all of their columns."""
    recall: float | None = None
    """Of the ten nearest rows by exact comparison the store's index found this share. It is None where it wasn't asked."""
    queries: int = 0
    index_faults: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return not self.differences and self.rows == self.expected and not self.index_faults

    def to_dict(self) -> dict[str, Any]:
        kinds = {name: {"rows": len(ids), "first": ids[:SHOWN]} for name, ids in self.differences.kinds().items()}
        raw = dataclasses.asdict(dataclasses.replace(self, differences=Differences()))
        return raw | {"differences": kinds, "passed": self.passed}

    def __str__(self) -> str:
        said = [f"{self.rows:,} of {counted(self.expected, 'row')} by their hashes, {self.sampled:,} read back"]
        if self.recall is not None:
            said.append(f"recall@10 {self.recall:.3f} over {self.queries:,} queries")
        if self.passed:
            return f"as the table: {', '.join(said)}"
        faults = [*([str(self.differences)] if self.differences else []), *self.index_faults]
        return f"DIFFERS from version {self.version}: {'; '.join(faults) or 'the number of rows'} ({', '.join(said)})"


def compare_keys(
    store: Store, generation: str, reader: RowReader, excluded: Collection[str] = ()
) -> tuple[Differences, int, int]:
    """Compare the keys of all rows. Return what differs, how many rows the store has, and how many it should.

    Rows with `excluded` ids are not expected, because the store refused them.
    """
    found, expected = store.count(generation), 0
    left_out = set(excluded)
    ours = digests()
    for keys in _table_keys(reader, left_out):
        ours += digests(keys)
        expected += keys.num_rows
    theirs = store.digests(generation)
    if theirs is None:
        theirs = digests()
        for keys in store.keys(generation):
            theirs += digests(keys)
    differing = np.flatnonzero(ours != theirs)
    differences = Differences()
    per_bucket = max(1, (found + expected) // NUM_BUCKETS)
    step = max(1, KEYS_HELD // per_bucket)
    # A stale row stands in one bucket with us and in another one in the store: all sides are put together in the end.
    only_ours: dict[str, bytes] = {}
    only_theirs: dict[str, list[bytes]] = {}
    for start in range(0, len(differing), step):
        chosen = differing[start : start + step]
        mine = dict(_keyed(_table_keys(reader, left_out), chosen))
        other: dict[str, list[bytes]] = {}
        for name, key in _keyed(store.keys(generation, chosen.tolist()), chosen):
            other.setdefault(name, []).append(key)
        for name, copies in other.items():
            if mine.get(name) in copies:
                del mine[name]
                if len(copies) > 1:
                    differences.duplicate.append(name)
            else:
                only_theirs.setdefault(name, []).extend(copies)
        only_ours |= mine
    for name, copies in only_theirs.items():
        if name not in only_ours:
            # A copy with the right hashes may stand in another bucket.
            if name not in differences.duplicate:
                differences.extra.append(name)
        elif len(copies) > 1:
            differences.duplicate.append(name)
        else:
            differences.stale.append(name)
    differences.missing += [name for name in only_ours if name not in only_theirs]
    _move_second_copies(differences, reader)
    return differences, found, expected


def _move_second_copies(differences: Differences, reader: RowReader) -> None:
    """A row that the store has twice, once with other hashes, looks like an extra one: the table has its id."""
    if not differences.extra:
        return
    ids = pa.array(differences.extra, pa.string())
    ours = {name for rows in reader.with_ids(ids, [schema.ID]) for name in rows.column(schema.ID).to_pylist()}
    differences.duplicate += [name for name in differences.extra if name in ours]
    differences.extra = [name for name in differences.extra if name not in ours]


def _table_keys(reader: RowReader, excluded: set[str]) -> Iterator[pa.Table]:
    for part in reader.version.parts:
        for rows in reader.batches(part, KEYS.names):
            keys = rows.cast(KEYS)
            if excluded:
                keys = keys.filter(pa.array([name not in excluded for name in keys.column(schema.ID).to_pylist()]))
            yield keys


def _keyed(tables: Iterable[pa.Table], chosen: "np.ndarray[Any, Any]") -> Iterator[tuple[str, bytes]]:
    """Yield id and hashes of the rows in these buckets."""
    for keys in tables:
        if not keys.num_rows:
            continue
        some = keys.filter(pa.array(np.isin(buckets(row_digests(keys)), chosen)))
        hashes = zip(
            some.column(schema.CONTENT_HASH).to_pylist(), some.column(schema.ROW_HASH).to_pylist(), strict=True
        )
        for name, (content, row) in zip(some.column(schema.ID).to_pylist(), hashes, strict=True):
            yield name, content + row.to_bytes(8, "big", signed=True)


# --- rows with all of their columns


def compare_rows(
    store: Store, generation: str, shape: Shape, rows: Iterable[pa.Table], differences: Differences
) -> int:
    """Read these rows back, which come as the shape has them, and add those that are altered. Return how many."""
    known = {name for ids in differences.kinds().values() for name in ids}
    compared = 0
    for some in rows:
        for start in range(0, some.num_rows, ROWS_PER_GET):
            expected = some.slice(start, ROWS_PER_GET)
            ids = expected.column(schema.ID).to_pylist()
            found = store.get(generation, shape, ids)
            for name, reason in _altered(expected, found, shape, exact=store.guarantees.keeps_bits):
                if name not in known:
                    differences.altered.append(name)
                    differences.reasons[name] = reason
            compared += len(ids)
    return compared


def _altered(expected: pa.Table, found: pa.Table, shape: Shape, *, exact: bool) -> Iterator[tuple[str, str]]:
    places = {name: row for row, name in enumerate(found.column(schema.ID).to_pylist())}
    ids = expected.column(schema.ID).to_pylist()
    here = [row for row, name in enumerate(ids) if name in places]
    ours = expected.take(pa.array(here, pa.int64()))
    theirs = found.take(pa.array([places[ids[row]] for row in here], pa.int64()))
    wrong: dict[int, str] = {}
    for name in shape.schema.names:
        if name == shape.embedding:
            for row, reason in _other_vectors(ours, theirs, shape, exact=exact):
                wrong.setdefault(row, reason)
        elif not ours.column(name).equals(theirs.column(name)):
            pairs = zip(ours.column(name).to_pylist(), theirs.column(name).to_pylist(), strict=True)
            for row, (mine, other) in enumerate(pairs):
                if repr(mine) != repr(other):
                    wrong.setdefault(row, f"its {name} is another one")
    yield from ((ids[here[row]], reason) for row, reason in sorted(wrong.items()))
    yield from ((name, "it isn't found by its id") for name in ids if name not in places)


def _other_vectors(ours: pa.Table, theirs: pa.Table, shape: Shape, *, exact: bool) -> Iterator[tuple[int, str]]:
    mine, other = (table.column(shape.embedding).combine_chunks().flatten().to_numpy() for table in (ours, theirs))
    width = shape.vector.list_size
    mine, other = mine.reshape(-1, width), other.reshape(-1, width)
    same = (mine.view(np.uint8) == other.view(np.uint8)).all(axis=1)
    if not exact and shape.dtype != "binary":
        # Such stores return cosine vectors at length 1.
        a, b = _unit(mine), _unit(other)
        same |= (np.abs(a - b) <= 1e-5).all(axis=1) | (np.abs(mine - other) <= 1e-5).all(axis=1)
    yield from ((row, "its vector is another one") for row in np.flatnonzero(~same).tolist())


def _unit(vectors: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    floats = vectors.astype(np.float32)
    norms = np.linalg.norm(floats, axis=1, keepdims=True)
    return floats / np.where(norms == 0, 1, norms)


def sampled(
    reader: RowReader, shape: Shape, num_rows: int, seed: int, excluded: Collection[str] = ()
) -> Iterator[pa.Table]:
    """Yield about so many rows of the version, as the shape has them, from all over it; all rows where it has no more."""
    groups = [
        (part, group, rows) for part in reader.version.parts for group, rows in enumerate(reader.groups(part)) if rows
    ]
    total = sum(rows for *_, rows in groups)
    chosen = np.random.default_rng(seed)
    left_out = set(excluded)
    if num_rows < total and len(groups) > MOST_GROUPS:
        groups = [groups[number] for number in sorted(chosen.choice(len(groups), MOST_GROUPS, replace=False))]
        total = sum(rows for *_, rows in groups)
    share = min(1.0, num_rows / max(1, total))
    for part, group, _ in groups:
        for rows in reader.batches(part, columns_of(shape, vectors=True), [group]):
            mask = chosen.random(rows.num_rows) < share if share < 1 else np.ones(rows.num_rows, bool)
            if left_out:
                mask &= np.array([name not in left_out for name in rows.column(schema.ID).to_pylist()], bool)
            if mask.any():
                yield shaped(rows.filter(pa.array(mask)), shape)
