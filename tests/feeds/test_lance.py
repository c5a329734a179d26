"""What is special to LanceDB: readers of the table, versions, indexes, upkeep, and the failures of feeders."""

import contextlib
import dataclasses
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest
from lance import LanceDataset

from pipeline.errors import InputError, RunError, StorageUnavailable
from pipeline.feeds import lance_index
from pipeline.feeds.lance import LanceStore
from pipeline.feeds.lance_versions import Versions
from pipeline.feeds.store import Index, Marker, NotOurs, Shape
from tests.feeds.lance_place import place_at, s3_options, store_at
from tests.feeds.rows import floats_of, marker_of, rows_of, shape_of
from tests.feeds.stores import Place
from tests.feeds.test_contract import assert_same, held, load, only, sync
from tests.servers import S3Server

G1, G2 = "docs__g1_a", "docs__g2_b"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return place_at(str(tmp_path / "db"), {})


@pytest.fixture
def store(place: Place) -> LanceStore:
    return store_at(place)


def newest(place: Place) -> LanceDataset:
    return lance.dataset(f"{place.spec.url}/docs.lance")


def marker_in(version: LanceDataset) -> Marker | None:
    text = version.schema.metadata.get(b"feed.marker")
    return Marker.from_json(text.decode()) if text else None


def many_rows(shape: Shape, rows: int, seed: int = 0) -> pa.Table:
    """Rows in clusters, quickly made, as texts are near to others."""
    table = rows_of(shape, range(1)).slice(0, 0)
    source = np.random.default_rng(seed)
    centres = source.standard_normal((40, shape.dim))
    vectors = centres[source.integers(0, 40, rows)] + 0.7 * source.standard_normal((rows, shape.dim))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    if shape.dtype == "binary":
        values: Any = np.packbits(vectors > 0, axis=1)
    else:
        values = vectors.astype(np.float16 if shape.dtype == "float16" else np.float32)
    columns = {
        "id": [str(number) for number in range(rows)],
        "content_hash": pa.array([number.to_bytes(16, "big") for number in range(rows)], pa.binary(16)),
        "row_hash": pa.array(range(rows), pa.int64()),
        shape.embedding: pa.FixedSizeListArray.from_arrays(
            pa.array(values.reshape(-1), shape.vector.value_type), type=shape.vector
        ),
    }
    return pa.table([columns[name] for name in table.column_names], schema=shape.schema)


def recall(store: LanceStore, shape: Shape, rows: pa.Table, generation: str = G1) -> float:
    """recall@10 of 50 rows of the table."""
    vectors = floats_of(shape, rows)
    ids = rows.column("id").to_pylist()
    shares = []
    for number, found in enumerate(store.search(generation, shape, vectors[:50], 10)):
        scores = vectors @ vectors[number]
        shares.append(np.mean([scores[ids.index(name)] >= np.sort(scores)[-10] - 1e-6 for name in found]))
    return float(np.mean(shares))


def test_readers_of_the_table_see_whole_generations_and_whole_syncs(store: LanceStore, place: Place) -> None:
    """A reader in a loop: none of what it sees is between two states, and after the first switch it is never nothing."""
    old, new = shape_of(), shape_of(dim=40, fingerprint="f2")
    first, second, third = rows_of(old, range(40)), rows_of(old, range(10, 60), seed=1), rows_of(new, range(30), seed=2)
    states = [frozenset(rows.column("row_hash").to_pylist()) for rows in (first, second, third)]
    seen: list[frozenset[int]] = []
    stopped = threading.Event()

    def read() -> None:
        while not stopped.is_set():
            table = place.client().open_table("docs")
            seen.append(frozenset(table.to_lance().to_table(columns=["row_hash"])["row_hash"].to_pylist()))

    marker = load(store, old, {"u": first})
    assert place.client().open_table("docs").count_rows() == 0
    store.switch(G1)
    reader = threading.Thread(target=read)
    reader.start()
    try:
        sync(store, old, marker, 2, second, [str(number) for number in range(10)])
        load(store, new, {"u": third}, G2, version=3)
        store.switch(G2)
        store.switch(G1)
        store.switch(G2)
        while not seen or seen[-1] != states[2]:
            time.sleep(0.01)
    finally:
        stopped.set()
        reader.join()
    assert set(seen) <= set(states)


def test_a_sync_is_one_version_and_one_of_upkeep(store: LanceStore, place: Place) -> None:
    shape = shape_of()
    marker = load(store, shape, {"u": rows_of(shape, range(50))})
    store.switch(G1)
    before = newest(place).version
    sync(store, shape, marker, 2, rows_of(shape, range(40, 60), seed=1), ["1", "2"])
    shown = newest(place).checkout_version(before + 1)
    assert (shown.count_rows(), newest(place).version) == (58, before + 2)
    found = marker_in(shown)
    assert found is not None
    assert found.applied == 2


def test_a_large_sync_is_prepared_piece_by_piece_and_shown_at_once(place: Place) -> None:
    limits = dataclasses.replace(place.spec.limits, bytes_in_flight=1)
    store, shape = LanceStore(dataclasses.replace(place.spec, limits=limits)), shape_of()
    marker = load(store, shape, {"u": rows_of(shape, range(50))})
    store.switch(G1)
    before = newest(place).version
    with store.delta(shape, marker, marker_of(shape, G1, 2, indexed=True)) as delta:
        for start in range(40, 70, 10):
            delta.upsert(rows_of(shape, range(start, start + 10), seed=1))
            delta.delete(pa.array([str(start - 40)]))
        assert newest(place).version == before
        delta.commit()
        assert newest(place).version == before + 1
    expected = [rows_of(shape, [n for n in range(40) if n not in (0, 10, 20)]), rows_of(shape, range(40, 70), seed=1)]
    assert_same(store, shape, held(store, shape), pa.concat_tables(expected))


@pytest.mark.parametrize("changed", [range(40, 60), range(50)], ids=["some", "whole fragments"])
def test_a_frozen_feeder_changes_nothing_any_more(store: LanceStore, place: Place, changed) -> None:
    shape = shape_of()
    marker = load(store, shape, {"u": rows_of(shape, range(50))})
    store.switch(G1)
    with store.delta(shape, marker, marker_of(shape, G1, 2, indexed=True)) as frozen:
        frozen.upsert(rows_of(shape, changed, seed=1))
        newer = sync(store_at(place), shape, marker, 3, rows_of(shape, range(50, 55), seed=2), ["0"])
        with pytest.raises(NotOurs):
            frozen.commit()
    assert only(store) == newer
    shown = [newest(place).checkout_version(one["version"]) for one in newest(place).versions()]
    assert {found.applied for found in map(marker_in, shown) if found} == {1, 3}  # not even for a moment
    expected = pa.concat_tables([rows_of(shape, range(1, 50)), rows_of(shape, range(50, 55), seed=2)])
    assert_same(store, shape, held(store, shape), expected)


@pytest.mark.parametrize("changed", [range(40, 60), range(50)], ids=["some", "whole fragments"])
def test_a_feeder_that_freezes_in_its_commit_leaves_the_newer_version(
    store: LanceStore, place: Place, changed, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = shape_of()
    marker = load(store, shape, {"u": rows_of(shape, range(50))})
    store.switch(G1)
    newer: list[Marker] = []
    commit = Versions._commit

    def freeze(self: Versions, *arguments: Any, **options: Any) -> str:
        if not newer:
            newer.append(marker)
            newer[0] = sync(store_at(place), shape, marker, 3, rows_of(shape, ["60"]), ["0"])
        return commit(self, *arguments, **options)

    with store.delta(shape, marker, marker_of(shape, G1, 2, indexed=True)) as frozen:
        frozen.upsert(rows_of(shape, changed, seed=1))
        monkeypatch.setattr(Versions, "_commit", freeze)
        with pytest.raises(NotOurs):
            frozen.commit()
    assert only(store) == newer[0]
    assert_same(store, shape, held(store, shape), rows_of(shape, [*range(1, 50), 60]))


@contextlib.contextmanager
def lost_answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Every commit lands, and its answer doesn't arrive."""
    commit = LanceDataset.commit
    lost: list[str] = []

    def commit_and_lose(*arguments: Any, **options: Any) -> Any:
        result = commit(*arguments, **options)
        if options.get("detached"):
            return result
        lost.append(type(arguments[1].operation).__name__)
        raise OSError("Generic S3 error: error sending request")

    with monkeypatch.context() as patch:
        patch.setattr(LanceDataset, "commit", staticmethod(commit_and_lose))
        yield lost


def test_an_answer_that_is_lost_is_no_failure(store: LanceStore, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = shape_of()
    marker = load(store, shape, {"u": rows_of(shape, range(50))})
    with lost_answers(monkeypatch) as lost:
        store.switch(G1)
        after = marker_of(shape, G1, 2, indexed=True)
        head = store._versions.head(G1)
        store._versions.advance(head, store._versions.marked(head, after), after)
        head = store._versions.head(G1)  # a repair: the marker stays as it is
        store._versions.advance(head, store._versions.marked(head, after), after)
    assert lost == ["Restore", "Merge", "Merge"]
    assert only(store) == after != marker
    assert store.count(G1) == 50


CHILD = """
import os, signal, sys
import lance
from lance import LanceDataset
from lance.dataset import Tags
import tests.feeds.test_lance as ours
steps = int(sys.argv[2])
def dying(function):
    def call(*arguments, **options):
        global steps
        steps -= 1
        if steps == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*arguments, **options)
        steps -= 1
        if steps == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return call
LanceDataset.commit = staticmethod(dying(LanceDataset.commit))
for name in ("create", "update", "delete"):
    setattr(Tags, name, dying(getattr(Tags, name)))
ours.feed(ours.place_at(sys.argv[1], {}))
"""


def feed(place: Place) -> None:
    """A load, a switch and a delta, from wherever the last process left them."""
    shape, store = shape_of(), store_at(place)
    found = {generation.name: generation for generation in store.generations()}
    marker = found[G1].marker if G1 in found else None
    if marker is None or not marker.indexed:
        if marker is None or not marker.applied:
            load(store, shape, {"u1": rows_of(shape, range(30)), "u2": rows_of(shape, range(30, 50))})
        else:
            store.build_index(G1, shape, lambda share: None)
            store.mark(marker_of(shape, G1, 1, indexed=True), marker)
    store.switch(G1)
    marker = only(store)
    if marker.applied < 2:
        sync(store, shape, marker, 2, rows_of(shape, range(40, 60), seed=1), ["1", "2"])


QUICK = (5, 13)


@pytest.mark.parametrize(
    "step", [*QUICK, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, 30) if n not in QUICK)]
)
def test_a_feeder_killed_at_any_call_is_made_good(place: Place, step: int) -> None:
    ended = subprocess.run([sys.executable, "-W", "ignore", "-c", CHILD, place.spec.url, str(step)], check=False)
    assert ended.returncode in (-9, 0)
    feed(place)
    shape, store = shape_of(), store_at(place)
    expected = [rows_of(shape, [0, *range(3, 40)]), rows_of(shape, range(40, 60), seed=1)]
    assert_same(store, shape, held(store, shape), pa.concat_tables(expected))
    assert [found.live for found in store.generations()] == [True]


def test_a_repair_that_was_preempted_is_no_success(store: LanceStore, place: Place) -> None:
    """The marker is the same before and after, so it says nothing about what landed."""
    shape = shape_of()
    marker = load(store, shape, {"u": rows_of(shape, range(20)), "v": rows_of(shape, range(20, 40))})
    store.switch(G1)
    with store.delta(shape, marker, marker) as delta:
        delta.upsert(rows_of(shape, range(5), seed=1))
        place.client().open_table("docs").delete("id = '30'")
        with pytest.raises(RunError, match="start again"):
            delta.commit()
    with store.delta(shape, marker, marker) as delta:
        delta.upsert(rows_of(shape, [30], seed=1))
        delta.commit()
    assert store.count(G1) == 40


def test_upkeep_by_the_user_at_the_same_time_ends_a_sync_and_the_next_one_goes_on(
    store: LanceStore, place: Place
) -> None:
    shape = shape_of()
    marker = load(store, shape, {f"u{n}": rows_of(shape, range(10 * n, 10 * n + 10)) for n in range(3)})
    store.switch(G1)
    after = marker_of(shape, G1, 2, indexed=True)
    with store.delta(shape, marker, after) as delta:
        delta.upsert(rows_of(shape, range(5), seed=1))
        place.client().open_table("docs").optimize()
        with pytest.raises(RunError, match="start again"):
            delta.commit()
    assert only(store) == marker
    assert_same(store, shape, held(store, shape), rows_of(shape, range(30)))
    sync(store, shape, marker, 2, rows_of(shape, range(5), seed=1), ["29"])
    assert_same(
        store,
        shape,
        held(store, shape),
        pa.concat_tables([rows_of(shape, range(5), seed=1), rows_of(shape, range(5, 29))]),
    )


@pytest.mark.parametrize(
    ("dtype", "metric", "kind", "name"),
    [
        ("float32", "cosine", "auto", "IVF_HNSW_SQ"),
        ("float16", "dot", "hnsw", "IVF_HNSW_SQ"),
        ("float32", "euclidean", "ivf_rq", "IVF_RQ"),
        ("binary", "hamming", "auto", "IVF_FLAT"),
    ],
)
def test_many_rows_have_an_index_that_new_rows_join(
    store: LanceStore, place: Place, dtype, metric, kind, name, monkeypatch
) -> None:
    monkeypatch.setattr(lance_index, "EXACT_ROWS", 2000)
    shape = shape_of(
        pa.schema([]), dim=64, dtype=dtype, metric=metric, index=Index(kind=kind, m=16, ef_construction=100)
    )
    rows = many_rows(shape, 3000)
    marker = load(store, shape, {"u": rows.slice(0, 2000), "v": rows.slice(2000, 500)})
    store.switch(G1)
    kinds = {index.name: index.index_type for index in newest(place).describe_indices()}
    assert kinds == {"feed_id": "BTree", "feed_vector": name}
    deleted = [str(number) for number in range(50, 100)]
    sync(store, shape, marker, 2, rows.slice(2500), deleted)
    assert all(index.num_rows_indexed >= 2950 for index in newest(place).describe_indices())
    held_rows = rows.filter(pa.array([not 50 <= number < 100 for number in range(3000)]))
    assert recall(store, shape, held_rows) >= 0.95
    plan = newest(place).scanner(columns=["row_hash"], filter="id IN ('1', '2')").explain_plan()
    assert "ScalarIndexQuery" in plan or "feed_id" in plan
    gone = store.search(G1, shape, floats_of(shape, rows)[50:60], 10)
    assert not {found for ids in gone for found in ids} & set(deleted)


def test_rows_outside_the_index_are_found_as_well(store: LanceStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sync is shown before its rows join the index; distances of both kinds of rows must be comparable."""
    monkeypatch.setattr(lance_index, "EXACT_ROWS", 2000)
    shape = shape_of(pa.schema([]), dim=64)
    rows = many_rows(shape, 3000)
    marker = load(store, shape, {"u": rows.slice(1500)})
    marker = sync(store, shape, marker, 2, rows.slice(600, 900), [])
    store.build_index(G1, shape, lambda share: None)
    store.switch(G1)
    monkeypatch.setattr(LanceStore, "_keep_up", lambda *arguments: None)
    sync(store, shape, marker, 3, rows.slice(0, 600), [])
    assert recall(store, shape, rows) >= 0.95


def test_lancedb_finds_what_the_store_finds(store: LanceStore, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lance_index, "EXACT_ROWS", 100)
    shape = shape_of(pa.schema([pa.field("lang", pa.string())]))
    rows = rows_of(shape, range(300))
    rows = rows.set_column(1, "lang", pa.array([("en", "it's")[number % 2] for number in range(300)]))
    marker = load(store, shape, {"u": rows})
    store.switch(G1)
    sync(store, shape, marker, 2, None, ["7"])
    table = place.client().open_table("docs")
    for vector in floats_of(shape, rows)[:5]:
        query = table.search(vector).distance_type("cosine").where("lang = 'it''s'").limit(5)
        found = query.to_arrow().column("id").to_pylist()
        assert found == store.search(G1, shape, vector[None], 5, {"lang": "it's"})[0]
        assert len(found) == 5


def test_no_index_is_built_where_none_is_wanted(store: LanceStore, place: Place, monkeypatch) -> None:
    monkeypatch.setattr(lance_index, "EXACT_ROWS", 10)
    shape = shape_of(index=Index(kind="none"))
    load(store, shape, {"u": rows_of(shape, range(50))})
    store.switch(G1)
    assert [index.name for index in newest(place).describe_indices()] == ["feed_id"]


def test_many_syncs_leave_few_fragments_and_few_pieces_of_an_index(
    store: LanceStore, place: Place, monkeypatch
) -> None:
    monkeypatch.setattr(lance_index, "EXACT_ROWS", 1000)
    shape = shape_of(pa.schema([]), dim=16)
    rows = many_rows(shape, 1500)
    marker = load(store, shape, {"u": rows.slice(0, 1200)})
    store.switch(G1)
    for number in range(20):
        marker = sync(store, shape, marker, 2 + number, rows.slice(1200 + 10 * number, 10), [])
    assert len(newest(place).get_fragments()) <= lance_index.MANY_FRAGMENTS
    pieces = [len(index.segments) for index in newest(place).describe_indices()]
    assert max(pieces) <= lance_index.MANY_SEGMENTS + 1
    assert recall(store, shape, rows.slice(0, 1400)) >= 0.95
    assert_same(store, shape, held(store, shape), rows.slice(0, 1400))


def test_the_cleanup_spares_other_generations(store: LanceStore, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lance_index, "KEPT", timedelta(0))
    old, new = shape_of(), shape_of(dim=40, fingerprint="f2")
    marker = load(store, old, {"u": rows_of(old, range(40))})
    store.switch(G1)
    marker = sync(store, old, marker, 2, rows_of(old, ["50"]), [])
    assert len(newest(place).versions()) == 1
    second = load(store, new, {"u": rows_of(new, range(30))}, G2, version=3)
    marker = sync(store, old, marker, 3, rows_of(old, ["51"]), [])
    assert len(newest(place).versions()) > 1  # Lance's cleanup doesn't know the files of a generation that isn't shown.
    store.switch(G2)
    sync(store, new, second, 4, rows_of(new, ["60"]), [])
    assert_same(store, old, held(store, old), rows_of(old, [*range(40), 50, 51]))
    store.switch(G1)
    assert [(found.name, found.live) for found in store.generations()] == [(G1, True), (G2, False)]
    assert_same(store, old, held(store, old), rows_of(old, [*range(40), 50, 51]))
    assert only_live(store) == marker


def only_live(store: LanceStore) -> Marker | None:
    (found,) = [generation.marker for generation in store.generations() if generation.live]
    return found


def test_a_generation_whose_files_are_gone_is_not_shown(store: LanceStore, place: Place) -> None:
    shape = shape_of()
    load(store, shape, {"u": rows_of(shape, range(40))})
    for file in Path(place.spec.url, "docs.lance", "data").iterdir():
        file.unlink()
    with pytest.raises(RunError, match="start again"):
        store.switch(G1)
    assert place.client().open_table("docs").count_rows() == 0


def test_a_database_may_be_moved(store: LanceStore, place: Place, tmp_path: Path) -> None:
    shape = shape_of()
    marker = load(store, shape, {"u": rows_of(shape, range(40))})
    store.switch(G1)
    sync(store, shape, marker, 2, rows_of(shape, range(30, 50), seed=1), ["0"])
    load(store, shape, {"u": rows_of(shape, range(9))}, G2, version=3)
    shutil.move(place.spec.url, tmp_path / "elsewhere")
    moved = store_at(place_at(str(tmp_path / "elsewhere"), {}))
    assert (moved.count(G1), moved.count(G2)) == (49, 9)
    moved.switch(G2)
    assert_same(moved, shape, held(moved, shape, G2), rows_of(shape, range(9)))


def test_what_is_live_is_not_dropped(store: LanceStore) -> None:
    shape = shape_of()
    store.drop(G1)
    load(store, shape, {"u": rows_of(shape, range(4))})
    store.switch(G1)
    with pytest.raises(RunError, match="readers"):
        store.drop(G1)
    assert store.count(G1) == 4


def refused(change: Callable[[Place, Shape], tuple[Place, Shape]], place: Place) -> str:
    other, shape = change(place, shape_of())
    with pytest.raises(InputError) as error:
        store_at(other).check(shape)
    return str(error.value)


def with_url(place: Place, url: str) -> Place:
    return dataclasses.replace(place, spec=dataclasses.replace(place.spec, url=url))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p, s: (p, shape_of(index=Index(kind="tree"))), ["'tree'", "hnsw", "none"]),
        (lambda p, s: (p, shape_of(metric="hamming")), ["hamming", "cosine"]),
        (lambda p, s: (p, shape_of(dtype="binary", metric="dot")), ["binary", "hamming"]),
        (lambda p, s: (p, shape_of(pa.schema([pa.field("a.b", pa.string())]))), ["'a.b'", "leave it out"]),
        (lambda p, s: (p, shape_of(pa.schema([pa.field("_distance", pa.string())]))), ["'_distance'"]),
        (lambda p, s: (p, shape_of(pa.schema([pa.field("v", pa.string_view())]))), ["'v'", "string_view"]),
        (lambda p, s: (p, shape_of(pa.schema([pa.field("v", pa.list_(pa.struct([])))]))), ["'v'", "struct"]),
        (lambda p, s: (with_url(p, "db://mine"), s), ["Cloud", "s3://"]),
        (lambda p, s: (with_url(p, "hf://datasets/a/b"), s), ["hf://", "s3://"]),
        (lambda p, s: (with_url(p, __file__), s), ["is a file", "give a folder"]),
    ],
)
def test_what_cannot_be_is_refused_by_name(place: Place, change, words) -> None:
    message = refused(change, place)
    assert all(word in message for word in words), message


def test_a_table_of_another_program_is_left_alone(place: Place, store: LanceStore) -> None:
    place.client().create_table("docs", pa.table({"id": ["a"]}))
    for call in (store.generations, lambda: store.check(shape_of()), lambda: store.create(shape_of(), marker())):
        with pytest.raises(InputError, match="not made by a feed"):
            call()
    assert place.client().open_table("docs").count_rows() == 1


def marker() -> Marker:
    return marker_of(shape_of(), G1, target=1)


def test_a_feed_lives_in_an_object_store(moto: S3Server) -> None:
    place = place_at(f"{moto.make_bucket('lance-test')}/db", s3_options(moto))
    shape, store = shape_of(), store_at(place)
    marker = load(store, shape, {"u": rows_of(shape, range(30))})
    store.switch(G1)
    with store.delta(shape, marker, marker_of(shape, G1, 2, indexed=True)) as frozen:
        frozen.delete(pa.array(["3"]))
        sync(store_at(place), shape, marker, 3, rows_of(shape, range(20, 40), seed=1), ["0"])
        with pytest.raises(NotOurs):
            frozen.commit()
    expected = pa.concat_tables([rows_of(shape, range(1, 20)), rows_of(shape, range(20, 40), seed=1)])
    assert_same(store, shape, held(store, shape), expected)
    assert place.client().open_table("docs").count_rows() == 39


def test_a_bucket_that_is_missing_is_named_before_any_work(moto: S3Server) -> None:
    store = store_at(place_at("s3://no-such-bucket/db", s3_options(moto)))
    with pytest.raises(InputError, match=r"NoSuchBucket.*feeds\.url") as error:
        store.check(shape_of())
    assert s3_options(moto)["aws_secret_access_key"] not in str(error.value)


def test_a_store_that_does_not_answer_ends_in_time() -> None:
    options = {"aws_endpoint": "http://127.0.0.1:9", "allow_http": True, "aws_region": "us-east-1"}
    place = place_at(
        "s3://bucket/db", {**options, "client_max_retries": 1, "aws_access_key_id": "a", "aws_secret_access_key": "b"}
    )
    limits = dataclasses.replace(place.spec.limits, timeout_s=1)
    store = LanceStore(dataclasses.replace(place.spec, limits=limits))
    started = time.monotonic()
    with pytest.raises(StorageUnavailable, match="start again"):
        store.check(shape_of())
    assert time.monotonic() - started < 20


def test_a_read_only_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda *arguments: False)  # root may write everywhere
    message = refused(lambda place, shape: (place, shape), place_at(str(tmp_path / "db"), {}))
    assert str(tmp_path) in message
    assert "rights" in message


def test_secrets_are_not_shown(place: Place) -> None:
    spec = dataclasses.replace(place.spec, options={"aws_secret_access_key": "hidden"})
    assert "hidden" not in repr(spec) + repr(LanceStore(spec)) + repr(vars(LanceStore(spec)))
