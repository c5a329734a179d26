"""The comparison of two states of a table, against plain dictionaries."""

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipeline.table import compare
from pipeline.table.compare import BOTH, NEW, OLD

ROWS = st.dictionaries(st.text(min_size=1, max_size=3), st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=12)


def keys_of(rows: dict[str, tuple[int, int]], part: int, side: int) -> compare.Keys:
    table = pa.table(
        {
            "id": pa.array(list(rows), pa.string()),
            "content_hash": pa.array([bytes([content]) * 16 for content, _ in rows.values()], pa.binary(16)),
            "row_hash": pa.array([row for _, row in rows.values()], pa.int64()),
        }
    )
    return compare.keys(table, part, side)


def in_buckets(rows: compare.Keys, num_buckets: int) -> compare.Difference:
    bucket = rows["id"][:, 0] % num_buckets
    return compare.merge([compare.compare(rows[bucket == number]) for number in range(num_buckets)])


@given(old=ROWS, new=ROWS, kept=ROWS, num_buckets=st.integers(1, 5))
def test_the_difference_is_that_of_two_dictionaries_whatever_the_number_of_buckets(old, new, kept, num_buckets):
    old = {name: value for name, value in old.items() if name not in kept}
    new = {name: value for name, value in new.items() if name not in kept}
    rows = np.concatenate([keys_of(kept, 0, BOTH), keys_of(old, 1, OLD), keys_of(new, 2, NEW)])
    found = in_buckets(rows, num_buckets)
    names = {2: list(new), 1: list(old), 0: list(kept)}
    assert {names[part][index] for part, index in found.upserts} == {k for k in new if old.get(k) != new[k]}
    assert {names[part][index] for part, index in found.deletes} == old.keys() - new.keys()
    assert found.new == len(new.keys() - old.keys())
    assert found.changed == sum(k in old and old[k] != v for k, v in new.items())
    assert found.unchanged == len(kept) + sum(old.get(k) == v for k, v in new.items())
    assert len(found.duplicates) == 0


@given(kept=ROWS, new=ROWS, twice=ROWS)
def test_every_row_of_an_id_that_stands_twice_is_named(kept, new, twice):
    rows = np.concatenate([keys_of(kept, 0, BOTH), keys_of(new, 1, NEW), keys_of(twice, 2, NEW)])
    found = compare.compare(rows)
    names = [list(kept), list(new), list(twice)]
    everything = [name for group in names for name in group]
    expected = sorted(name for name in everything if everything.count(name) > 1)
    assert sorted(names[part][index] for part, index in found.duplicates) == expected


def test_an_old_row_and_its_new_self_are_no_duplicates():
    rows = np.concatenate([keys_of({"a": (0, 0)}, 0, OLD), keys_of({"a": (1, 0)}, 1, NEW)])
    assert len(compare.compare(rows).duplicates) == 0


@given(rows=ROWS, twice=ROWS, num_buckets=st.integers(1, 5))
def test_a_first_version_names_duplicates_and_no_other_row(rows, twice, num_buckets):
    keys = np.concatenate([keys_of(rows, 0, NEW), keys_of(twice, 1, NEW)])
    assert compare.is_all_new(keys["side"])
    bucket = keys["id"][:, 0] % num_buckets
    whole = [compare.compare(keys[bucket == number], all_new=True) for number in range(num_buckets)]
    found, named = compare.merge(whole), in_buckets(keys, num_buckets)
    assert found.all_new
    assert len(found.upserts) == 0
    assert np.array_equal(found.duplicates, named.duplicates)
    assert (found.new, found.changed, found.unchanged) == (named.new, named.changed, named.unchanged)


def test_only_a_first_version_is_all_new():
    assert compare.is_all_new([NEW, NEW])
    assert not compare.is_all_new([NEW, BOTH])
    assert not compare.is_all_new([OLD, NEW])
    assert not in_buckets(keys_of({"a": (0, 0)}, 0, NEW), 2).all_new
