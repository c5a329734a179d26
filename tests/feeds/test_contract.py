"""The contract that every store keeps, on its real server or library where there is one: see stores.py for the places.

These tests speak to the interface alone. What a single store must refuse, and how it fails, stands in a file of its own.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.feeds.digest import digests
from pipeline.feeds.store import KEYS, Marker, NotOurs, Shape, Store
from tests.feeds.rows import PLAIN, floats_of, marker_of, ordered, rows_of, shape_of
from tests.feeds.stores import FORMATS_OF_FILES, KINDS, Place

ODD_IDS = [
    "a",
    "A",
    "1.0",
    "007",
    "it's",
    'say "x"',
    "100%",
    "back\\slash",
    "a b",
    "tab\t",
    "日本語",
    "\U0001f600",
    "x" * 60,
]


SLOW = ("milvus", "milvus_import", "chroma", "lance_s3")
"""Their servers and commits take a second for each test."""


def _marked(kind: str) -> Any:
    return pytest.param(kind, marks=pytest.mark.slow if kind in SLOW else ())


@pytest.fixture(params=[*map(_marked, dict.fromkeys([*KINDS, *FORMATS_OF_FILES, *SLOW]))])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """A place of its own in a store of each kind."""
    maker = request.getfixturevalue(f"{request.param}_places")
    with maker() as place:
        yield place


@pytest.fixture
def store(place: Place) -> Iterator[Store]:
    with contextlib.closing(place.open()) as store:
        yield store


def load(
    store: Store, shape: Shape, units: dict[str, pa.Table], generation: str = "docs__g1_a", version: int = 1
) -> Marker:
    """Load units, build the index; the generation isn't shown. Returns its marker."""
    begun = marker_of(shape, generation, target=version)
    store.check(shape)
    store.create(shape, begun)
    receipts = []
    with contextlib.closing(store.loader(generation, shape)) as loader:
        for name, rows in units.items():
            loaded = loader.load(name, rows)
            assert (loaded.rows, loaded.rejected) == (rows.num_rows, ())
            receipts.append(loaded.receipt)
    done = marker_of(shape, generation, applied=version)
    store.finish_load(shape, begun, done, [receipt for receipt in receipts if receipt is not None])
    store.build_index(generation, shape, lambda share: None)
    ready = marker_of(shape, generation, applied=version, indexed=True)
    store.mark(ready, done)
    return ready


def held(store: Store, shape: Shape, generation: str = "docs__g1_a") -> pa.Table:
    """All rows of a generation, by its keys; each key once."""
    keys = pa.concat_tables([KEYS.empty_table(), *store.keys(generation)])
    ids = keys.column("id").to_pylist()
    assert len(set(ids)) == len(ids) == store.count(generation)
    pieces = [store.get(generation, shape, ids[start : start + 500]) for start in range(0, len(ids), 500)]
    found = ordered(pa.concat_tables([shape.schema.empty_table(), *pieces]))
    assert found.select(KEYS.names).equals(ordered(keys).select(KEYS.names))
    return found


def assert_same(store: Store, shape: Shape, found: pa.Table, expected: pa.Table) -> None:
    expected = ordered(expected)
    others = [name for name in shape.schema.names if name != shape.embedding]
    assert found.select(others).to_pylist() == expected.select(others).to_pylist()
    if store.guarantees.keeps_bits:
        assert found.column(shape.embedding).equals(expected.column(shape.embedding))
    else:
        np.testing.assert_allclose(floats_of(shape, found), floats_of(shape, expected), rtol=0, atol=2e-7)


def sync(
    store: Store, shape: Shape, found: Marker, version: int, upserts: pa.Table | None, deletes: list[str]
) -> Marker:
    """Bring a generation to the next version; returns its marker."""
    before = found
    if not store.guarantees.atomic_marker:
        before = marker_of(shape, found.generation, found.applied, version, indexed=True)
        store.mark(before, found)
    after = marker_of(shape, found.generation, version, indexed=True)
    with store.delta(shape, before, after) as delta:
        delta.delete(pa.array(deletes, pa.string()))
        if upserts is not None:
            assert not delta.upsert(upserts)
        delta.commit()
    return after


def only(store: Store) -> Marker:
    (found,) = store.generations()
    assert found.marker is not None
    return found.marker


def test_a_load_gives_the_rows_bit_by_bit(store: Store) -> None:
    shape = shape_of()
    units = {"u1": rows_of(shape, range(300)), "u2": rows_of(shape, range(300, 307)), "u3": rows_of(shape, ODD_IDS)}
    marker = load(store, shape, units)
    assert_same(store, shape, held(store, shape), pa.concat_tables(units.values()))
    (found,) = store.generations()
    assert (found.name, found.marker, found.live) == ("docs__g1_a", marker, False)
    store.switch("docs__g1_a")
    assert [found.live for found in store.generations()] == [True]


def test_units_that_are_given_again_count_once(place: Place) -> None:
    """A crash after any step: the same units come again, from another process, and the end is the same."""
    shape = shape_of()
    units = {f"u{number}": rows_of(shape, range(10 * number, 10 * number + 10)) for number in range(4)}
    begun, done = marker_of(shape, "docs__g1_a", target=1), marker_of(shape, "docs__g1_a", applied=1)
    receipts: dict[str, str | None] = {}
    for names in (["u0", "u1"], ["u1", "u2"], ["u0", "u3", "u3"]):
        with contextlib.closing(place.open()) as store:
            store.create(shape, begun)
            assert only(store) == begun
            with contextlib.closing(store.loader("docs__g1_a", shape)) as loader:
                for name in names:
                    receipts[name] = loader.load(name, units[name]).receipt
    for _ in range(2):
        with contextlib.closing(place.open()) as store:
            store.finish_load(shape, begun, done, [receipt for receipt in receipts.values() if receipt is not None])
            assert only(store) == done
            assert_same(store, shape, held(store, shape), pa.concat_tables(units.values()))


def test_loaders_work_side_by_side(place: Place) -> None:
    shape = shape_of()
    with contextlib.closing(place.open()) as store, contextlib.closing(place.open()) as other:
        begun, done = marker_of(shape, "docs__g1_a", target=1), marker_of(shape, "docs__g1_a", applied=1)
        store.create(shape, begun)
        one, two = store.loader("docs__g1_a", shape), other.loader("docs__g1_a", shape)
        receipts = [
            (one if number % 2 else two).load(f"u{number}", rows_of(shape, range(7 * number, 7 * number + 7))).receipt
            for number in range(6)
        ]
        one.close()
        two.close()
        store.finish_load(shape, begun, done, [receipt for receipt in receipts if receipt is not None])
        assert_same(store, shape, held(store, shape), rows_of(shape, range(42)))


def test_a_delta_puts_removes_and_brings_back(store: Store) -> None:
    shape = shape_of()
    marker = load(store, shape, {"u": rows_of(shape, range(50))})
    store.switch("docs__g1_a")
    upserts = pa.concat_tables([rows_of(shape, range(5, 10), seed=1), rows_of(shape, range(50, 60))])
    marker = sync(store, shape, marker, 2, upserts, ["0", "1", "never there"])
    expected = [rows_of(shape, range(2, 5)), rows_of(shape, range(5, 10), seed=1), rows_of(shape, range(10, 60))]
    assert_same(store, shape, held(store, shape), pa.concat_tables(expected))
    marker = sync(store, shape, marker, 3, rows_of(shape, ["0"], seed=2), ["59"])
    expected = [rows_of(shape, ["0"], seed=2), *expected[:2], rows_of(shape, range(10, 59))]
    assert_same(store, shape, held(store, shape), pa.concat_tables(expected))
    marker = sync(store, shape, marker, 4, None, [])
    assert only(store) == marker
    assert marker.applied == 4
    marker = sync(store, shape, marker, 5, None, [str(number) for number in range(59)])
    assert store.count("docs__g1_a") == 0
    assert store.generations()[0].live


def test_a_delta_that_died_is_made_again(place: Place) -> None:
    shape = shape_of()
    with contextlib.closing(place.open()) as store:
        marker = load(store, shape, {"u": rows_of(shape, range(50))})
        before = marker
        if not store.guarantees.atomic_marker:
            before = marker_of(shape, "docs__g1_a", 1, 2, indexed=True)
            store.mark(before, marker)
        with store.delta(shape, before, marker_of(shape, "docs__g1_a", 2, indexed=True)) as delta:
            delta.delete(pa.array(["7", "8"]))
            delta.upsert(rows_of(shape, range(20, 70), seed=3))
    with contextlib.closing(place.open()) as store:
        assert only(store) == before
        if store.guarantees.atomic_marker:
            assert_same(store, shape, held(store, shape), rows_of(shape, range(50)))
        # The table has moved on meanwhile: the delta is made from what was applied.
        sync(store, shape, before, 3, rows_of(shape, range(10, 70), seed=4), ["7", "9"])
        expected = [rows_of(shape, [*range(7), 8]), rows_of(shape, range(10, 70), seed=4)]
        if store.guarantees.atomic_marker:
            assert_same(store, shape, held(store, shape), pa.concat_tables(expected))
        else:  # Deltas from what was applied say again all that the first one said: here 8 is not among them.
            assert store.count("docs__g1_a") == 67


def change(store: Store, shape: Shape, before: Marker, after: Marker) -> None:
    with store.delta(shape, before, after) as delta:
        delta.delete(pa.array(["1"]))
        delta.commit()


def test_nobody_changes_what_another_one_marked(store: Store) -> None:
    shape = shape_of()
    marker = load(store, shape, {"u": rows_of(shape, range(5))})
    stale, after = marker_of(shape, "docs__g1_a", 7), marker_of(shape, "docs__g1_a", 8)
    with pytest.raises(NotOurs):
        store.mark(after, stale)
    with pytest.raises(NotOurs):
        change(store, shape, stale, after)
    with pytest.raises(NotOurs):
        store.finish_load(shape, stale, after, [])
    with pytest.raises(NotOurs):
        store.mark(after, None)
    assert only(store) == marker
    assert_same(store, shape, held(store, shape), rows_of(shape, range(5)))


def test_keys_have_the_digests_of_the_rows(store: Store) -> None:
    shape = shape_of()
    rows = [rows_of(shape, range(400)), rows_of(shape, ODD_IDS)]
    load(store, shape, {"u1": rows[0], "u2": rows[1]})
    expected = sum((digests(some) for some in rows), digests())
    own = store.digests("docs__g1_a")
    assert own is None or np.array_equal(own, expected)
    found = pa.concat_tables(store.keys("docs__g1_a"))
    assert np.array_equal(digests(found), expected)
    few = pa.concat_tables([KEYS.empty_table(), *store.keys("docs__g1_a", [3, 700])])
    assert np.array_equal(digests(few)[[3, 700]], expected[[3, 700]])


def test_missing_rows_are_left_out(store: Store) -> None:
    shape = shape_of()
    load(store, shape, {"u": rows_of(shape, range(5))})
    assert ordered(store.get("docs__g1_a", shape, ["3", "nobody", "1"])).column("id").to_pylist() == ["1", "3"]
    assert store.get("docs__g1_a", shape, []).num_rows == 0


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
def test_a_vector_finds_its_row(store: Store, metric) -> None:
    shape = shape_of(metric=metric)
    store.check(shape)
    rows = rows_of(shape, range(300))
    load(store, shape, {"u": rows})
    found = store.search("docs__g1_a", shape, floats_of(shape, rows)[:20], 10)
    assert [ids[0] for ids in found] == [str(number) for number in range(20)]
    assert all(len(set(ids)) == len(ids) == 10 for ids in found)
    scores = floats_of(shape, rows)[:20] @ floats_of(shape, rows).T
    best = [set(map(str, np.argsort(-row)[:10].tolist())) for row in scores]
    assert np.mean([len(set(ids) & truth) / 10 for ids, truth in zip(found, best, strict=True)]) >= 0.95


def test_a_search_keeps_to_a_filter(store: Store) -> None:
    shape = shape_of(pa.schema([pa.field("lang", pa.string()), pa.field("number", pa.int64())]))
    rows = rows_of(shape, range(200))
    langs = pa.array(["en", "de", "it's"])
    rows = rows.set_column(1, "lang", langs.take(pa.array([number % 3 for number in range(200)])))
    rows = rows.set_column(2, "number", pa.array([number % 4 for number in range(200)], pa.int64()))
    load(store, shape, {"u": rows})
    for where, fits in [({"lang": "it's"}, lambda n: n % 3 == 2), ({"lang": "de", "number": 3}, lambda n: n % 12 == 7)]:
        found = store.search("docs__g1_a", shape, floats_of(shape, rows)[:3], 5, where)
        assert all(fits(int(name)) for ids in found for name in ids)
        assert all(len(ids) == 5 for ids in found)


def test_generations_stand_side_by_side(store: Store) -> None:
    old, new = shape_of(), shape_of(pa.schema([pa.field("title", pa.string())]), dim=40, fingerprint="f2")
    first = load(store, old, {"u": rows_of(old, range(40))})
    store.switch("docs__g1_a")
    second = load(store, new, {"u": rows_of(new, range(30))}, "docs__g2_b", version=2)
    assert [(found.name, found.live) for found in store.generations()] == [("docs__g1_a", True), ("docs__g2_b", False)]
    assert_same(store, old, held(store, old), rows_of(old, range(40)))
    for live in ("docs__g2_b", "docs__g2_b", "docs__g1_a", "docs__g2_b"):
        store.switch(live)
        assert [found.name for found in store.generations() if found.live] == [live]
        assert [found.marker for found in store.generations()] == [first, second]
        assert_same(store, old, held(store, old), rows_of(old, range(40)))
        assert_same(store, new, held(store, new, "docs__g2_b"), rows_of(new, range(30)))
    store.drop("docs__g1_a")
    store.drop("docs__g1_a")
    assert [(found.name, found.live) for found in store.generations()] == [("docs__g2_b", True)]
    assert_same(store, new, held(store, new, "docs__g2_b"), rows_of(new, range(30)))
    sync(store, new, second, 3, rows_of(new, range(25, 35), seed=1), ["0"])
    assert store.count("docs__g2_b") == 34


@pytest.mark.parametrize("dtype", ["float16", "binary"])
def test_other_vectors_come_back_as_they_were(store: Store, place: Place, dtype) -> None:
    if dtype not in place.dtypes:
        pytest.skip(f"{place.kind} has no vectors of {dtype}")
    shape = shape_of(dtype=dtype, metric="hamming" if dtype == "binary" else "cosine")
    rows = rows_of(shape, range(100))
    load(store, shape, {"u": rows})
    assert_same(store, shape, held(store, shape), rows)
    found = store.search("docs__g1_a", shape, floats_of(shape, rows)[:10], 3)
    assert [ids[0] for ids in found] == [str(number) for number in range(10)]


def test_columns_come_back_as_they_were(store: Store, place: Place) -> None:
    columns = pa.schema([pa.field(f"c{number}", kind) for number, kind in enumerate(place.types)])
    shape = shape_of(columns)
    rows = rows_of(shape, range(120))
    store.check(shape)
    load(store, shape, {"u": rows})
    assert_same(store, shape, held(store, shape), rows)


@pytest.mark.parametrize("ids", [[], ["only"]])
def test_few_rows_or_none(store: Store, ids) -> None:
    shape = shape_of()
    marker = load(store, shape, {"u": rows_of(shape, ids)} if ids else {})
    store.switch("docs__g1_a")
    assert store.count("docs__g1_a") == len(ids)
    assert held(store, shape).num_rows == len(ids)
    vector = floats_of(shape, rows_of(shape, ["query"]))
    assert store.search("docs__g1_a", shape, vector, 10) == [ids]
    sync(store, shape, marker, 2, rows_of(shape, ["x"]), ids)
    assert_same(store, shape, held(store, shape), rows_of(shape, ["x"]))


def test_no_columns_beside_the_vector(store: Store) -> None:
    shape = shape_of(pa.schema([]))
    load(store, shape, {"u": rows_of(shape, range(9))})
    assert_same(store, shape, held(store, shape), rows_of(shape, range(9)))


def test_the_marker_can_be_lost_and_given_again(store: Store, place: Place) -> None:
    shape = shape_of()
    marker = load(store, shape, {"u": rows_of(shape, range(9))})
    place.forget_marker("docs__g1_a")
    (found,) = store.generations()
    assert (found.name, found.marker) == ("docs__g1_a", None)
    store.mark(marker, None)
    assert only(store) == marker


def test_what_is_plain_is_fit(store: Store, place: Place) -> None:
    if not set(PLAIN.types) <= set(place.types):
        pytest.skip(f"{place.kind} rounds large integers, and refuses them")
    shape = shape_of(PLAIN)
    rows = rows_of(shape, ODD_IDS)
    assert not store.unfit(rows)
    assert not store.unfit(rows.drop_columns(["embedding"]))
