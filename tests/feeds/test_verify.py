"""A store that was changed behind the feed's back: each harm is told by its name, and repaired exactly."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline import schema
from pipeline.errors import InputError
from pipeline.feeds.shape import shape_of
from pipeline.feeds.store import Marker, Shape, Store
from pipeline.runs import feed as runs
from pipeline.table import snapshot
from tests.feeds.nights import Nights, assert_same_rows, nights_of
from tests.feeds.stores import WHOLE, Place


@pytest.fixture(params=WHOLE)
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    with request.getfixturevalue(f"{request.param}_places")() as place:
        yield place


@dataclasses.dataclass
class Standing:
    """A store that was fed two versions, and is open."""

    nights: Nights
    store: Store
    shape: Shape
    marker: Marker

    @property
    def generation(self) -> str:
        return self.marker.generation

    def rows(self, *ids: str) -> pa.Table:
        return self.store.get(self.generation, self.shape, ids).sort_by(schema.ID)

    def put(self, rows: pa.Table) -> None:
        with self.store.delta(self.shape, self.marker, self.marker) as delta:
            assert not delta.upsert(rows)
            delta.commit()

    def remove(self, *ids: str) -> None:
        with self.store.delta(self.shape, self.marker, self.marker) as delta:
            delta.delete(pa.array(ids, pa.string()))
            delta.commit()

    def with_vectors(self, rows: pa.Table, values: np.ndarray) -> pa.Table:
        array = pa.array(values.astype(np.float32).reshape(-1), pa.float32())
        vectors = pa.FixedSizeListArray.from_arrays(array, type=self.shape.vector)
        return rows.set_column(rows.num_columns - 1, rows.schema.field(rows.num_columns - 1), vectors)

    def vectors(self, rows: pa.Table) -> np.ndarray:
        return rows.column(self.shape.embedding).combine_chunks().flatten().to_numpy().reshape(rows.num_rows, -1)


@pytest.fixture
def standing(tmp_path: Path, tiny_model: Path, place: Place) -> Iterator[Standing]:
    nights = nights_of(tmp_path / "n", tiny_model, place)
    nights.night(range(60))
    nights.feed()
    nights.night(range(60, 65), changed={5: "another text", 6: "one more"}, gone=[7])
    nights.feed()
    with nights.store() as store:
        (live,) = [one for one in store.generations() if one.live]
        assert live.marker is not None
        version = snapshot.current(nights.table)
        yield Standing(nights, store, shape_of(version, nights.spec.feeds["docs"], store.guarantees), live.marker)


def missing(at: Standing) -> dict[str, list[str]]:
    at.remove("11", "12")
    return {"missing": ["11", "12"]}


def extra(at: Standing) -> dict[str, list[str]]:
    row = at.rows("11")
    at.put(row.set_column(0, row.schema.field(0), pa.array(["ghost"])))
    return {"extra": ["ghost"]}


def back_from_the_dead(at: Standing) -> dict[str, list[str]]:
    row = at.rows("11")
    at.put(row.set_column(0, row.schema.field(0), pa.array(["7"])))
    return {"extra": ["7"]}


def stale(at: Standing) -> dict[str, list[str]]:
    row = at.rows("5")
    at.put(
        row.set_column(row.num_columns - 3, row.schema.field(row.num_columns - 3), pa.array([b"o" * 16], pa.binary(16)))
    )
    return {"stale": ["5"]}


def other_row_hash(at: Standing) -> dict[str, list[str]]:
    row = at.rows("5")
    at.put(row.set_column(row.num_columns - 2, row.schema.field(row.num_columns - 2), pa.array([1], pa.int64())))
    return {"stale": ["5"]}


def swapped_vectors(at: Standing) -> dict[str, list[str]]:
    rows = at.rows("21", "22")
    at.put(at.with_vectors(rows, at.vectors(rows)[::-1]))
    return {"altered": ["21", "22"]}


def one_number(at: Standing) -> dict[str, list[str]]:
    rows = at.rows("21")
    values = at.vectors(rows).copy()
    values[0, 3] += 0.01
    at.put(at.with_vectors(rows, values))
    return {"altered": ["21"]}


def half_precision(at: Standing) -> dict[str, list[str]]:
    rows = at.rows("21")
    at.put(at.with_vectors(rows, at.vectors(rows).astype(np.float16)))
    return {"altered": ["21"]}


def another_model(at: Standing) -> dict[str, list[str]]:
    rows = at.rows("21", "33")
    found = np.random.default_rng(0).standard_normal(at.vectors(rows).shape)
    at.put(at.with_vectors(rows, found / np.linalg.norm(found, axis=1, keepdims=True)))
    return {"altered": ["21", "33"]}


def another_length(at: Standing) -> dict[str, list[str]]:
    if not at.store.guarantees.keeps_bits:
        pytest.skip(f"{at.nights.spec.feeds['docs'].store} stores vectors at length 1")
    rows = at.rows("21")
    at.put(at.with_vectors(rows, at.vectors(rows) * 2))
    return {"altered": ["21"]}


def zero_vector(at: Standing) -> dict[str, list[str]]:
    rows = at.rows("21")
    values = at.vectors(rows).copy()
    values[0, :-1] = 0
    values[0, -1] = 1
    at.put(at.with_vectors(rows, values))
    return {"altered": ["21"]}


def other_title(at: Standing) -> dict[str, list[str]]:
    rows = at.rows("21")
    at.put(rows.set_column(1, rows.schema.field(1), pa.array(["somebody else's"], rows.schema.field(1).type)))
    return {"altered": ["21"]}


def title_lost(at: Standing) -> dict[str, list[str]]:
    rows = at.rows("21")
    at.put(rows.set_column(1, rows.schema.field(1), pa.array([None], rows.schema.field(1).type)))
    return {"altered": ["21"]}


def several(at: Standing) -> dict[str, list[str]]:
    return other_title(at) | extra(at) | missing(at) | stale(at)


HARMS: list[Callable[[Standing], dict[str, list[str]]]] = [
    missing, extra, back_from_the_dead, stale, other_row_hash, swapped_vectors, one_number, half_precision, another_model,
    another_length, zero_vector, other_title, title_lost, several,
]  # fmt: skip


@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.__name__)
def test_each_harm_is_told_and_repaired_exactly(
    standing: Standing, harm: Callable[[Standing], dict[str, list[str]]]
) -> None:
    assert standing.nights.verify().verification.passed
    expected = harm(standing)
    found = standing.nights.verify()
    assert found.exit_code == 1
    assert {name: sorted(ids) for name, ids in found.verification.differences.kinds().items()} == expected
    for name, ids in expected.items():
        assert name in str(found)
        assert repr(ids[0]) in str(found)
    repaired = standing.nights.verify(repair=True)
    assert repaired.exit_code == 0
    wanted = {name for kind, ids in expected.items() if kind != "extra" for name in ids}
    assert (repaired.sent, repaired.deleted) == (len(wanted), len(expected.get("extra", ())))
    assert_same_rows(standing.nights)
    assert standing.nights.feed().action == "nothing to do"


def test_a_marker_ahead_of_the_table_is_refused(standing: Standing) -> None:
    ahead = dataclasses.replace(standing.marker, applied=9, applied_of="else")
    standing.store.mark(ahead, standing.marker)
    with pytest.raises(InputError, match=r"holds version 9 of the table, which has only 2"):
        standing.nights.feed()
    assert standing.nights.feed(rebuild=True).switched
    assert_same_rows(standing.nights)


def test_a_store_that_lost_everything_is_filled_again(standing: Standing) -> None:
    """Somebody dropped all: the next feed is a first one, and no note of the earlier one misleads it."""
    standing.remove(*standing.nights.documents)
    assert standing.store.count(standing.generation) == 0
    found = standing.nights.verify()
    assert len(found.verification.differences.missing) == 64
    assert standing.nights.verify(repair=True).sent == 64
    assert_same_rows(standing.nights)


def test_an_older_backup_is_brought_up_to_date(tmp_path: Path, tiny_model: Path, place: Place) -> None:
    """The store comes back as it was at an earlier version, marker and all."""
    nights = nights_of(tmp_path / "n", tiny_model, place)
    nights.night(range(30))
    nights.feed()
    with nights.store() as store:
        (live,) = store.generations()
        assert live.marker is not None
        shape = shape_of(snapshot.current(nights.table), nights.spec.feeds["docs"], store.guarantees)
        old = store.get(live.name, shape, [str(number) for number in range(30)])
        nights.night(range(30, 35), changed={1: "x"}, gone=[2])
        nights.feed()
        current = store.generations()[0].marker
        assert current is not None
        with store.delta(shape, current, current) as delta:
            delta.delete(pa.array([str(number) for number in range(30, 35)]))
            delta.upsert(old)
            delta.commit()
        store.mark(live.marker, current)
    assert nights.feed().sent == 6
    assert_same_rows(nights)


def test_a_seed_takes_other_rows(standing: Standing) -> None:
    few = runs.verified(standing.nights.spec, "docs", rows=10, seed=1)
    assert 0 < few.verification.sampled < 40
    assert few.verification.passed
