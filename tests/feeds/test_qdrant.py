"""Qdrant alone: what it refuses, what it does at bad times, and what points of others do. See qdrant_server.py."""

import contextlib
import dataclasses
import itertools
import json
import time
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest
from qdrant_client import grpc as api
from qdrant_client import models

from pipeline.errors import ConfigError, InputError, PipelineError, StorageError, StorageUnavailable
from pipeline.feeds import qdrant_points as points
from pipeline.feeds.qdrant import FOREIGN, NEVER, QdrantStore
from pipeline.feeds.store import Index, NotOurs, Shape
from tests.feeds import steps
from tests.feeds.qdrant_place import qdrant_spec
from tests.feeds.qdrant_server import FAIL, FAIL_AFTER, HANG, KILL, KILL_AFTER, QdrantServer, qdrant_server
from tests.feeds.rows import floats_of, marker_of, ordered, rows_of, shape_of
from tests.feeds.steps import NAME, SHAPE, UNITS, feed, feed_until_killed, first_and_last
from tests.feeds.stores import Place
from tests.feeds.test_contract import assert_same, held, load, sync


@pytest.fixture
def place(qdrant_places) -> Iterator[Place]:
    with qdrant_places() as place:
        yield place


@pytest.fixture
def server(place: Place) -> QdrantServer:
    return place.client


@pytest.fixture
def store(place: Place) -> Iterator[QdrantStore]:
    with contextlib.closing(place.open()) as store:
        yield store


# What is refused


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (shape_of(dtype="binary", metric="hamming"), "no vectors of bits.*binary: {always_ram: true}"),
        (shape_of(metric="hamming"), "doesn't compare by 'hamming'"),
        (shape_of(dim=70_000), "70000 dimensions; Qdrant takes 1 to 65536"),
        (shape_of(index=Index(kind="ivf")), "'ivf'; Qdrant has hnsw and none"),
        (shape_of(pa.schema([pa.field("raw", pa.binary())])), "'raw' of type binary.*as text, such as hex"),
        (shape_of(pa.schema([pa.field("n", pa.uint64())])), "'n'.*up to 2\\^63 - 1"),
        (shape_of(pa.schema([pa.field("m", pa.map_(pa.string(), pa.string()))])), "'m'.*cast it to a string"),
        (shape_of(pa.schema([pa.field("d", pa.list_(pa.date32()))])), "'d'.*inside a list"),
        (shape_of(pa.schema([pa.field("feed_epoch", pa.int64())])), "the name 'feed_epoch'"),
    ],
)
def test_shapes_that_it_cannot_take(store, server, shape, words):
    with pytest.raises(InputError, match=words):
        store.check(shape)
    assert not server.faults.calls


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"apikey": "x"}, "has 'apikey', which store qdrant doesn't know; it has .*api_key"),
        ({"collection": {"shards": 2}}, "collection has 'shards'; it can have .*shard_number"),
        ({"collection": {"shard_number": "many"}}, "shard_number"),
        ({"payload_indexes": ["nothing"]}, "names 'nothing'; columns that can have one: .*number"),
    ],
)
def test_options_that_are_wrong(server, options, words):
    with pytest.raises(ConfigError, match=words):
        QdrantStore(qdrant_spec(server, options=options)).check(shape_of())


@pytest.mark.parametrize("url", ["ftp://host", "http://host/path", "http://host:port", "http://me:secret@host"])
def test_addresses_that_are_wrong(server, url):
    with pytest.raises(ConfigError, match=r"feeds.url is ") as error:
        QdrantStore(dataclasses.replace(qdrant_spec(server), url=url))
    assert "secret" not in str(error.value)


def test_nobody_at_the_address(server):
    spec = dataclasses.replace(qdrant_spec(server, timeout_s=0.5), url="http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"127.0.0.1:9.*UNAVAILABLE.*is 127.0.0.1:9 its gRPC port\? 6334"):
        QdrantStore(spec).check(shape_of())


def test_a_wrong_key(server):
    server.api_key = "right"
    with pytest.raises(InputError, match=r"UNAUTHENTICATED.*feeds.options.api_key") as error:
        QdrantStore(qdrant_spec(server, options={"api_key": "hidden"})).check(shape_of())
    assert "hidden" not in str(error.value)
    assert "hidden" not in repr(qdrant_spec(server, options={"api_key": "hidden"}))
    QdrantStore(qdrant_spec(server, options={"api_key": "right"})).check(shape_of())


def test_a_server_that_is_too_old(store, server):
    server.version = "1.15.4"
    with pytest.raises(InputError, match=r"version 1.15.4; 1.16 or newer"):
        store.check(shape_of())


def test_a_name_that_is_taken(store, server):
    vectors = models.VectorParams(size=3, distance=models.Distance.DOT)
    server.local.create_collection("theirs", vectors_config=vectors)
    action = models.CreateAlias(collection_name="theirs", alias_name="docs")
    server.local.update_collection_aliases([models.CreateAliasOperation(create_alias=action)])
    server.settings["theirs"] = api.CreateCollection()
    with pytest.raises(InputError, match="alias 'docs' shows the collection 'theirs'"):
        store.check(shape_of())
    server.forget()
    server.local.create_collection("docs", vectors_config=vectors)
    with pytest.raises(InputError, match="collection 'docs' of somebody else"):
        store.generations()


def test_other_feeds_are_left_alone(store, server):
    vectors = models.VectorParams(size=3, distance=models.Distance.DOT)
    for name in ("docs__gx_1", "docs2__g1_a", "mydocs__g1_a"):
        server.local.create_collection(name, vectors_config=vectors)
    assert store.generations() == []


def test_rows_that_are_unfit(store):
    shape = shape_of(pa.schema([pa.field("score", pa.float64()), pa.field("more", pa.list_(pa.float32()))]))
    rows = rows_of(shape, ["a", "", f"{FOREIGN}1", "d", "e", "f"])
    vectors = floats_of(shape, rows)
    vectors[5, 3] = np.nan
    scores = pa.array([1.0, None, 2.0, float("inf"), 3.0, 4.0])
    lists = pa.array([[1.0], None, [], None, [float("nan")], []], pa.list_(pa.float32()))
    rows = rows.set_column(1, "score", scores).set_column(2, "more", lists)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), type=shape.vector)
    rows = rows.set_column(rows.num_columns - 1, "embedding", column)
    found = store.unfit(rows)
    assert sorted(found) == [1, 2, 3, 4, 5]
    assert found[1] == "the id is empty"
    assert "'score'" in found[3]
    assert "'more'" in found[4]
    assert "vector" in found[5]
    assert sorted(store.unfit(rows.drop_columns(["embedding"]))) == [1, 2, 3, 4]
    assert not store.unfit(rows.slice(0, 0))


# Vectors


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
def test_unit_vectors_keep_their_bits_under_every_metric(store, dtype, metric):
    shape = shape_of(dtype=dtype, metric=metric)
    rows = rows_of(shape, range(50))
    load(store, shape, {"u": rows})
    assert held(store, shape).equals(ordered(rows))


def test_cosine_compares_directions_of_vectors_of_any_length(store):
    shape = shape_of()
    rows = rows_of(shape, range(100))
    lengths = np.random.default_rng(0).uniform(0.01, 100, (100, 1))
    longer = (floats_of(shape, rows) * lengths).astype(np.float32)
    longer[7] = 0
    column = pa.FixedSizeListArray.from_arrays(pa.array(longer.reshape(-1)), type=shape.vector)
    store.create(shape, marker_of(shape, NAME, target=1))
    with contextlib.closing(store.loader(NAME, shape)) as loader:
        loaded = loader.load("u", [rows.set_column(rows.num_columns - 1, shape.schema.field("embedding"), column)])
    assert [(one.id, one.reason) for one in loaded.rejected] == [("7", "the vector is zero, which has no cosine")]
    assert loaded.rows == 99
    queries = floats_of(shape, rows)[10:20]
    truth = np.argsort(-(queries @ np.delete(floats_of(shape, rows), 7, 0).T))[:, :10]
    names = np.delete(np.arange(100), 7)
    assert store.search(NAME, shape, queries, 10) == [list(map(str, names[row])) for row in truth]


# Rejected rows


def test_refused_rows_are_named_and_the_others_arrive(store, server):
    shape = shape_of()
    server.refused = {"3", "77"}
    rows = rows_of(shape, range(100))
    store.create(shape, marker_of(shape, NAME, target=1))
    with contextlib.closing(store.loader(NAME, shape)) as loader:
        loaded = loader.load("u", [rows])
    assert sorted(one.id for one in loaded.rejected) == ["3", "77"]
    assert all("not to this server's taste" in one.reason for one in loaded.rejected)
    assert loaded.rows == store.count(NAME) == 98


def test_messages_that_are_too_large_are_halved():
    with qdrant_server(max_message=60_000) as server:
        store = QdrantStore(qdrant_spec(server))
        shape = shape_of(pa.schema([pa.field("text", pa.string())]), dim=100)
        rows = rows_of(shape, range(300))
        texts = ["y" * 100_000 if number == 5 else "x" * 500 for number in range(300)]
        rows = rows.set_column(1, "text", pa.array(texts))
        store.create(shape, marker_of(shape, NAME, target=1))
        with contextlib.closing(store.loader(NAME, shape)) as loader:
            loaded = loader.load("u", [rows])
        assert [one.id for one in loaded.rejected] == ["5"]
        assert "larger than max" in loaded.rejected[0].reason
        assert store.count(NAME) == 299
        store.close()


# Bad times


def assert_fed(place: Place) -> None:
    steps.assert_fed(place)
    # A call whose answer was lost comes twice.
    assert [first for first, _ in itertools.groupby(place.client.thresholds)] == [NEVER, 20_000]


def calls_of_a_feed(place: Place) -> list[int]:
    feed(place.spec)
    return first_and_last(place.client.faults.calls)


@pytest.mark.parametrize(("fault", "step"), [("lost", 1), ("reset", 4), ("unavailable", 4), ("acknowledged", 2)])
def test_an_answer_that_is_lost_at_any_call(place, fault, step):
    for number in calls_of_a_feed(place)[::step]:
        place.client.forget()
        place.client.faults.at_call(number, fault)
        feed(place.spec)
        assert place.client.faults.met[fault] == 1
        assert_fed(place)


@pytest.mark.parametrize(("fault", "step"), [(FAIL, 3), (FAIL_AFTER, 1)])
def test_a_feed_that_died_at_any_call_goes_on(place, fault, step):
    for number in calls_of_a_feed(place)[::step]:
        place.client.forget()
        place.client.faults.at_call(number, fault)
        with pytest.raises(PipelineError, match="injected"):
            feed(place.spec)
        feed(place.spec)
        assert_fed(place)


def test_all_that_can_happen_at_once(place):
    place.client.faults.rate = 0.35
    feed(place.spec)
    place.client.faults.rate = 0
    assert_fed(place)
    assert len(place.client.faults.met) >= 4


@pytest.mark.parametrize(
    ("method", "fault"),
    [("Points/Upsert", KILL_AFTER), ("Points/Delete", KILL), ("Collections/UpdateAliases", KILL_AFTER)],
)
def test_a_feeder_that_is_killed_goes_on(place, method, fault):
    feed_until_killed(place.spec, place.client.faults, method, fault)
    feed(place.spec)
    assert_fed(place)


def test_a_busy_server_is_left_alone_as_long_as_it_asks(store, server):
    load(store, SHAPE, {"u": UNITS["u1"]})
    server.faults.at("Points/Count", "exhausted", times=2)
    started = time.monotonic()
    assert store.count(NAME) == 40
    assert time.monotonic() - started >= 0.6


def test_a_server_that_never_answers_ends_the_command(server):
    store = QdrantStore(qdrant_spec(server, timeout_s=0.6))
    server.faults.at("Points/Count", HANG, times=2)
    load(store, SHAPE, {"u": UNITS["u1"]})
    started = time.monotonic()
    with pytest.raises(StorageUnavailable, match=r"Points/Count ended with DEADLINE_EXCEEDED.*gave up after"):
        store.count(NAME)
    assert time.monotonic() - started < 3
    store.close()


def test_a_collection_that_is_gone(store, server):
    load(store, SHAPE, {"u": UNITS["u1"]})
    server.local.delete_collection(NAME)
    with pytest.raises(NotOurs, match=r"NOT_FOUND.*start the feed again"):
        store.count(NAME)


# The index


def test_the_index_is_waited_for(store, server):
    load(store, SHAPE, UNITS)
    states = api.CollectionStatus
    server.states = [states.Grey, states.Grey, states.Yellow, states.Green, states.Yellow, states.Green]
    shares: list[float] = []
    store.build_index(NAME, SHAPE, shares.append)
    assert server.states == []
    assert shares[-1] == 1.0
    server.states = [states.Green, states.Red]
    with pytest.raises(StorageError, match="No space left on device"):
        store.build_index(NAME, SHAPE, shares.append)


def test_the_index_is_as_asked_for(place, server):
    collection = {
        "shard_number": 2,
        "on_disk_payload": True,
        "vectors": {"on_disk": True},
        "quantization_config": {"scalar": {"type": "int8"}},
        "hnsw_config": {"payload_m": 8},
    }
    spec = dataclasses.replace(place.spec, options={"collection": collection, "payload_indexes": ["number"]})
    with contextlib.closing(QdrantStore(spec)) as store:
        shape = shape_of(index=Index(kind="hnsw", m=24, ef_construction=200))
        store.create(shape, marker_of(shape, NAME, target=1))
    made = server.settings[NAME]
    assert (made.hnsw_config.m, made.hnsw_config.ef_construct, made.hnsw_config.payload_m) == (24, 200, 8)
    assert (made.shard_number, made.on_disk_payload, made.vectors_config.params.on_disk) == (2, True, True)
    assert made.quantization_config.scalar.type == api.QuantizationType.Int8
    assert made.vectors_config.params.distance == api.Distance.Dot
    assert sorted(server.indexes[NAME]) == [points.EPOCH, "number"]


# Others at work


def test_a_feeder_that_wakes_up_late_changes_nothing(place, store):
    marker = load(store, SHAPE, {"u": rows_of(SHAPE, range(50))})
    before = marker_of(SHAPE, NAME, 1, 2, indexed=True)
    store.mark(before, marker)
    with contextlib.closing(place.open()) as other, other.delta(SHAPE, before, marker_of(SHAPE, NAME, 2)) as late:
        sync(store, SHAPE, before, 3, rows_of(SHAPE, range(10, 60), seed=3), ["1", "2"])
        for change in (
            lambda: late.upsert(rows_of(SHAPE, range(10, 20), seed=2)),
            lambda: late.delete(pa.array(["30"])),
            late.commit,
        ):
            with pytest.raises(NotOurs, match="another feed was at work"):
                change()
    expected = [rows_of(SHAPE, [0, *range(3, 10)]), rows_of(SHAPE, range(10, 60), seed=3)]
    assert_same(store, SHAPE, held(store, SHAPE), pa.concat_tables(expected))


def test_a_request_that_was_on_its_way_leaves_newer_rows_alone(place, store, monkeypatch):
    marker = load(store, SHAPE, {"u": rows_of(SHAPE, range(50))})
    before = marker_of(SHAPE, NAME, 1, 2, indexed=True)
    store.mark(before, marker)
    with contextlib.closing(place.open()) as other, other.delta(SHAPE, before, marker_of(SHAPE, NAME, 2)) as late:
        monkeypatch.setattr(late._writer, "_guard", lambda generation: None)
        sync(store, SHAPE, before, 3, rows_of(SHAPE, range(10, 60), seed=3), ["1", "2"])
        late.upsert(rows_of(SHAPE, range(10, 20), seed=2))
        late.delete(pa.array(["30", "31"]))
    expected = [rows_of(SHAPE, [0, *range(3, 10)]), rows_of(SHAPE, range(10, 60), seed=3)]
    assert_same(store, SHAPE, held(store, SHAPE), pa.concat_tables(expected))


def test_a_loader_that_wakes_up_after_the_load_changes_nothing(store):
    begun, done = marker_of(SHAPE, NAME, target=1), marker_of(SHAPE, NAME, applied=1)
    store.create(SHAPE, begun)
    with contextlib.closing(store.loader(NAME, SHAPE)) as loader:
        loader.load("u1", [UNITS["u1"]])
        store.finish_load(SHAPE, begun, done, [])
        with pytest.raises(NotOurs, match="no longer being loaded"):
            loader.load("u2", [UNITS["u2"]])
    assert store.count(NAME) == 40


def test_points_of_others_are_named_and_can_be_removed(store, server):
    marker = load(store, SHAPE, {"u": rows_of(SHAPE, range(20))})
    vector = [1.0] + [0.0] * (SHAPE.dim - 1)
    strange = "12345678-0000-4000-8000-000000000000"
    server.local.upsert(NAME, [models.PointStruct(id=7, vector=vector, payload={"id": "1"})])
    server.local.upsert(NAME, [models.PointStruct(id=strange, vector=vector, payload=None)])
    (altered,) = points.points_of(["3"])
    server.local.set_payload(NAME, {"id": "somebody"}, points=[altered])
    names = pa.concat_tables(store.keys(NAME)).column("id").to_pylist()
    extra = sorted(set(names) - {str(number) for number in range(20)})
    assert extra == sorted([f"{FOREIGN}7", f"{FOREIGN}{strange}", f"{FOREIGN}{altered}"])
    assert store.count(NAME) == 22
    assert store.get(NAME, SHAPE, ["3", *extra]).num_rows == 0
    marker = sync(store, SHAPE, marker, 2, None, extra)
    assert_same(store, SHAPE, held(store, SHAPE), rows_of(SHAPE, [*range(3), *range(4, 20)]))
    marker = sync(store, SHAPE, marker, 3, rows_of(SHAPE, ["3"]), [])
    # By now the point is ours, and stays.
    sync(store, SHAPE, marker, 4, None, [f"{FOREIGN}{altered}"])
    assert_same(store, SHAPE, held(store, SHAPE), rows_of(SHAPE, range(20)))


def test_what_is_live_is_not_dropped(store):
    load(store, SHAPE, {"u": UNITS["u1"]})
    store.switch(NAME)
    with pytest.raises(InputError, match="is live"):
        store.drop(NAME)


def test_pages_follow_each_other(store, monkeypatch):
    monkeypatch.setattr("pipeline.feeds.qdrant.PAGE", 7)
    rows = rows_of(SHAPE, range(50))
    marker = load(store, SHAPE, {"u": rows})
    assert_same(store, SHAPE, held(store, SHAPE), rows)
    sync(store, SHAPE, marker, 2, None, [str(number) for number in range(30)])
    assert store.count(NAME) == 20


def test_the_marker_is_json_that_others_can_read(store, server):
    load(store, SHAPE, {"u": UNITS["u1"]})
    metadata = server.local.get_collection(NAME).config.metadata
    assert json.loads(metadata["embedding_pipeline_marker"])["applied"] == 1


def test_filters_of_every_kind(store):
    kinds = [("s", pa.string()), ("b", pa.bool_()), ("i", pa.int32()), ("f", pa.float64()), ("a.b", pa.string())]
    shape: Shape = shape_of(pa.schema([pa.field(name, kind) for name, kind in kinds]))
    rows = rows_of(shape, range(60))
    load(store, shape, {"u": rows})
    for row in rows.to_pylist()[:12]:
        for name, _ in kinds:
            found = store.search(NAME, shape, floats_of(shape, rows)[:1], 60, {name: row[name]})[0]
            assert set(found) == {one["id"] for one in rows.to_pylist() if one[name] == row[name]}
