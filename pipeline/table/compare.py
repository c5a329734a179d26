"""Bucketed comparison of a table's rows before and after: what is new, changed, deleted, and which ids stand twice.

Rows travel as fixed-width keys (hashes, never strings); each bucket is compared alone, so that memory is bounded by a
bucket and not by the table. Where the keys come from and who runs the buckets is not known here.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.identity import id_hashes
from pipeline.schema import CONTENT_HASH, ID, ROW_HASH

BOTH, OLD, NEW = 0, 1, 2
"""The side a row stands on: in parts of both states, of the old state only, of the new state only."""

Keys = np.ndarray[Any, np.dtype[np.void]]

KEY = np.dtype(
    [
        ("id", np.uint64, 2),
        ("content", np.uint64, 2),
        ("row", np.int64),
        ("part", np.int32),
        ("index", np.int32),
        ("side", np.int8),
    ]
)
"""`part` and `index` say where the row stands, so that its strings can be fetched when they are needed."""

COLUMNS = [ID, CONTENT_HASH, ROW_HASH]


def keys(rows: pa.Table, part: int, side: int, first_index: int = 0) -> Keys:
    """KEY[n] for some rows of a part; needs the columns `COLUMNS`."""
    out = np.zeros(rows.num_rows, KEY)
    out["id"] = id_hashes(rows.column(ID))
    content = b"".join(rows.column(CONTENT_HASH).to_pylist())
    out["content"] = np.frombuffer(content, np.uint64).reshape(-1, 2)
    out["row"] = rows.column(ROW_HASH).to_numpy()
    out["part"] = part
    out["index"] = np.arange(first_index, first_index + rows.num_rows)
    out["side"] = side
    return out


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Positions (part, index) of the rows that matter, and how many there are of each kind."""

    upserts: np.ndarray[Any, np.dtype[np.int32]]
    """int32[n, 2]: rows of the new state that the old one lacks or has otherwise."""
    deletes: np.ndarray[Any, np.dtype[np.int32]]
    """int32[n, 2]: rows of the old state whose id is gone."""
    duplicates: np.ndarray[Any, np.dtype[np.int32]]
    """int32[n, 2]: rows of the new state whose id stands in it more than once."""
    new: int
    changed: int
    unchanged: int
    """Rows that stand in new parts but equal their old selves, and all rows of parts of both states."""
    all_new: bool = False
    """There was no row before. Then every row of the new state is an upsert, and `upserts` names none of them: their places
    alone would be gigabytes for a large table."""


def is_all_new(sides: Iterable[int]) -> bool:
    """Whether all rows stand on the new side."""
    return all(side == NEW for side in sides)


def compare(rows: Keys, *, renewed: bool = False, all_new: bool = False) -> Difference:
    """The difference within one bucket; `rows` holds every row of the bucket, in any order. Where all is `renewed`, the
    vectors of new parts differ from those of old ones whatever the hashes say. Where the rows of all buckets are `all_new`,
    only duplicates are looked for."""
    order = np.lexsort((rows["side"], rows["id"][:, 1], rows["id"][:, 0]))
    rows = rows[order]
    same_as_previous = np.zeros(len(rows), bool)
    same_as_previous[1:] = (rows["id"][1:] == rows["id"][:-1]).all(axis=1)
    group = np.cumsum(~same_as_previous) - 1
    num_groups = int(group[-1]) + 1 if len(rows) else 0
    live = rows["side"] != OLD
    live_per_group = np.bincount(group[live], minlength=num_groups)
    old_per_group = np.bincount(group[~live], minlength=num_groups)

    is_new_side = rows["side"] == NEW
    is_old_side = rows["side"] == OLD
    known = is_new_side & (old_per_group[group] > 0)
    equal = known & _equals_old(rows, group, num_groups) & (not renewed)
    return Difference(
        upserts=_positions(rows[:0] if all_new else rows[is_new_side & ~equal]),
        deletes=_positions(rows[is_old_side & (live_per_group[group] == 0)]),
        duplicates=_positions(rows[live & (live_per_group[group] > 1)]),
        new=int((is_new_side & ~known).sum()),
        changed=int((known & ~equal).sum()),
        unchanged=int(equal.sum() + (rows["side"] == BOTH).sum()),
        all_new=all_new,
    )


def _equals_old(rows: Keys, group: np.ndarray[Any, Any], num_groups: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """True where a row has the hashes of the old row of its id."""
    old = np.flatnonzero(rows["side"] == OLD)
    old_of_group = np.full(num_groups, -1)
    old_of_group[group[old]] = old
    partner = old_of_group[group]
    return np.asarray(
        (partner >= 0)
        & (rows["content"] == rows["content"][partner]).all(axis=1)
        & (rows["row"] == rows["row"][partner])
    )


def _positions(rows: Keys) -> np.ndarray[Any, np.dtype[np.int32]]:
    return np.stack([rows["part"], rows["index"]], axis=1).astype(np.int32)


def merge(found: list[Difference]) -> Difference:
    """The difference of all buckets together."""
    none = np.zeros((0, 2), np.int32)
    return Difference(
        upserts=np.concatenate([none, *(item.upserts for item in found)]),
        deletes=np.concatenate([none, *(item.deletes for item in found)]),
        duplicates=np.concatenate([none, *(item.duplicates for item in found)]),
        new=sum(item.new for item in found),
        changed=sum(item.changed for item in found),
        unchanged=sum(item.unchanged for item in found),
        all_new=bool(found) and all(item.all_new for item in found),
    )
