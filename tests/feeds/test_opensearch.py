"""OpenSearch and Elasticsearch alone: what they refuse, what they do at bad times, and what others change.

See opensearch_server.py. The contract is tested on OpenSearch in test_contract.py, and on Elasticsearch here.
"""

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Iterator

import pyarrow as pa
import pytest

from pipeline.errors import ConfigError, InputError, PipelineError, RunError, StorageUnavailable
from pipeline.feeds.opensearch import META, OpenSearchStore
from pipeline.feeds.store import Index, NotOurs
from tests.feeds import steps, test_contract
from tests.feeds.opensearch_place import opensearch_spec
from tests.feeds.opensearch_server import (
    ELASTICSEARCH,
    FAIL,
    FAIL_AFTER,
    HANG,
    KILL,
    KILL_AFTER,
    SHORT,
    Held,
    OpenSearchServer,
)
from tests.feeds.rows import floats_of, marker_of, rows_of, shape_of
from tests.feeds.steps import NAME, SHAPE, UNITS, feed, feed_until_killed, first_and_last
from tests.feeds.stores import Place
from tests.feeds.test_contract import assert_same, held, load, sync


@pytest.fixture
def place(opensearch_places) -> Iterator[Place]:
    with opensearch_places() as place:
        yield place


@pytest.fixture
def server(place: Place) -> OpenSearchServer:
    return place.client


@pytest.fixture
def store(place: Place) -> Iterator[OpenSearchStore]:
    with contextlib.closing(place.open()) as store:
        yield store


@pytest.mark.parametrize(
    "test",
    [
        test_contract.test_a_load_gives_the_rows_bit_by_bit,
        test_contract.test_a_delta_puts_removes_and_brings_back,
        test_contract.test_nobody_changes_what_another_one_marked,
        test_contract.test_keys_have_the_digests_of_the_rows,
        test_contract.test_a_search_keeps_to_a_filter,
        test_contract.test_generations_stand_side_by_side,
    ],
)
def test_the_contract_on_elasticsearch(store, server, test):
    server.version = ELASTICSEARCH
    test(store)


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean", "hamming"])
def test_every_metric_of_elasticsearch(store, server, metric):
    server.version = ELASTICSEARCH
    shape = shape_of(metric=metric, dtype="binary" if metric == "hamming" else "float32", index=Index(kind="hnsw", m=8))
    store.check(shape)
    rows = rows_of(shape, range(60))
    load(store, shape, {"u": rows})
    assert_same(store, shape, held(store, shape), rows)
    found = store.search(NAME, shape, floats_of(shape, rows)[:10], 3)
    assert [ids[0] for ids in found] == [str(number) for number in range(10)]
    mapped = server.indexes[NAME].properties["embedding"]
    assert mapped["index_options"] == {"type": "hnsw", "m": 8}


# What is refused


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (shape_of(dim=20_000), "20000 dimensions; opensearch takes 1 to 16000"),
        (shape_of(dtype="binary", metric="hamming", dim=12), "12 bits; opensearch takes a multiple of 8"),
        (shape_of(metric="hamming"), "compares bits by hamming"),
        (shape_of(dtype="binary", metric="cosine"), "'cosine' with vectors of binary"),
        (shape_of(index=Index(kind="none")), "'none'; opensearch has hnsw"),
        (shape_of(pa.schema([pa.field("a.b", pa.int64())])), "'a.b': rename it"),
        (shape_of(pa.schema([pa.field("_x", pa.int64())])), "'_x': rename it"),
        (shape_of(pa.schema([pa.field("raw", pa.binary())])), "'raw' of type binary.*such as hex"),
    ],
)
def test_shapes_that_it_cannot_take(store, server, shape, words):
    with pytest.raises(InputError, match=words):
        store.check(shape)
    assert not server.indexes


def test_dimensions_of_elasticsearch(store, server):
    server.version = ELASTICSEARCH
    with pytest.raises(InputError, match="5000 dimensions; elasticsearch takes 1 to 4096"):
        store.check(shape_of(dim=5000))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"options": {"apikey": "x"}}, "has 'apikey', which store opensearch doesn't know; it has .*api_key"),
        ({"name": "Docs"}, "'Docs'; names of indexes have small letters"),
        ({"url": "ftp://host"}, "feeds.url is 'ftp://host'"),
        ({"url": "http://me:secret@host:port"}, "feeds.url is "),
    ],
)
def test_settings_that_are_wrong(server, changes, words):
    with pytest.raises(ConfigError, match=words) as error:
        OpenSearchStore(dataclasses.replace(opensearch_spec(server), **changes))
    assert "secret" not in str(error.value)


def test_index_settings_that_are_wrong(server):
    store = OpenSearchStore(opensearch_spec(server, options={"settings": {"wrong": 1}}))
    with pytest.raises(InputError, match=r"unknown setting \[index.wrong\]"):
        store.create(SHAPE, marker_of(SHAPE, NAME, target=1))
    store.close()


def test_nobody_at_the_address(server):
    spec = dataclasses.replace(opensearch_spec(server, timeout_s=0.5), url="http://me:secret@127.0.0.1:9")
    with pytest.raises(InputError, match=r"no answer to GET / from http.*127.0.0.1:9.*refused") as error:
        OpenSearchStore(spec).check(SHAPE)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("way", ["url", "options", "api_key"])
def test_keys_and_passwords(server, way):
    def spec(secret: str):
        if way == "url":
            url = server.url.replace("//", f"//me:{secret}%40@")
            return dataclasses.replace(opensearch_spec(server), url=url)
        given = {"username": "me", "password": f"{secret}@"} if way == "options" else {"api_key": f"{secret}@"}
        return opensearch_spec(server, options=given)

    server.authorization = "ApiKey right@" if way == "api_key" else "Basic bWU6cmlnaHRA"
    OpenSearchStore(spec("right")).check(SHAPE)
    with pytest.raises(InputError, match=r"401.*feeds.options.api_key") as error:
        OpenSearchStore(spec("hidden")).check(SHAPE)
    assert "hidden" not in str(error.value) + repr(spec("hidden"))


def test_a_name_that_is_taken(store, server):
    server.indexes["docs"] = Held(settings={}, mappings={})
    with pytest.raises(InputError, match="index 'docs' of somebody else"):
        store.check(SHAPE)
    server.indexes = {
        name: Held(settings={}, mappings={}) for name in ("theirs", "docs__g1_a", "docs__gx", "docs2__g1_a")
    }
    assert [found.name for found in store.generations()] == ["docs__g1_a"]
    for shown in ({"theirs"}, {"docs__g1_a", "theirs"}):
        server.aliases = {"docs": shown}
        with pytest.raises(InputError, match=r"alias 'docs' shows .*theirs, which is not one index of this feed"):
            store.generations()


def test_rows_that_are_unfit(store):
    shape = shape_of(pa.schema([pa.field("score", pa.float64())]))
    rows = rows_of(shape, ["a", "", "ü" * 256, "ü" * 257, "e"])
    rows = rows.set_column(1, "score", pa.array([1.0, None, 2.0, 3.0, float("nan")]))
    found = store.unfit(rows)
    assert sorted(found) == [1, 3, 4]
    assert (found[1], found[3]) == ("the id is empty", "the id has more than 512 bytes")


# Rejected rows


def test_refused_rows_are_named_and_the_others_arrive(store, server):
    server.refused = {"3", "77"}
    store.create(SHAPE, marker_of(SHAPE, NAME, target=1))
    with contextlib.closing(store.loader(NAME, SHAPE)) as loader:
        loaded = loader.load("u", [rows_of(SHAPE, range(100))])
    assert sorted(one.id for one in loaded.rejected) == ["3", "77"]
    assert all("mapper_parsing_exception" in one.reason for one in loaded.rejected)
    assert server.faults.calls.count("_bulk") == 1
    assert loaded.rows == store.count(NAME) == 98


def test_requests_that_are_too_large_are_halved(store, server):
    server.max_body = 20_000
    shape = shape_of(pa.schema([pa.field("text", pa.string())]))
    rows = rows_of(shape, range(60))
    rows = rows.set_column(1, "text", pa.array(["y" * 30_000 if number == 5 else "x" * 500 for number in range(60)]))
    store.create(shape, marker_of(shape, NAME, target=1))
    with contextlib.closing(store.loader(NAME, shape)) as loader:
        loaded = loader.load("u", [rows])
    assert [one.id for one in loaded.rejected] == ["5"]
    assert "larger than the server takes" in loaded.rejected[0].reason
    assert store.count(NAME) == 59


def test_large_units_go_in_several_requests(store, server, monkeypatch):
    monkeypatch.setattr("pipeline.feeds.opensearch.REQUEST_BYTES", 10_000)
    rows = rows_of(SHAPE, range(200))
    marker = load(store, SHAPE, {"u": rows})
    assert server.faults.calls.count("_bulk") > 5
    assert_same(store, SHAPE, held(store, SHAPE), rows)
    sync(store, SHAPE, marker, 2, None, [str(number) for number in range(199)])
    assert store.count(NAME) == 1


# Bad times


def assert_fed(place: Place) -> None:
    steps.assert_fed(place)
    assert [first for first, _ in itertools.groupby(place.client.intervals)] == [None]


def calls_of_a_feed(place: Place) -> list[int]:
    feed(place.spec)
    return first_and_last(place.client.faults.calls)


@pytest.mark.parametrize(("fault", "step"), [("lost", 1), ("reset", 4), ("cut", 1), ("unavailable", 4), ("partial", 1)])
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


@pytest.mark.parametrize(("name", "fault"), [("_bulk", KILL_AFTER), ("_aliases", KILL)])
def test_a_feeder_that_is_killed_goes_on(place, name, fault):
    feed_until_killed(place.spec, place.client.faults, name, fault)
    feed(place.spec)
    assert_fed(place)


@pytest.mark.parametrize("name", ["_count", "_search", "_mget", "_refresh", "_msearch"])
def test_half_an_answer_is_not_taken_for_all(store, server, name):
    rows = rows_of(SHAPE, range(30))
    load(store, SHAPE, {"u": rows})
    server.faults.at(name, "partial", times=2)
    assert_same(store, SHAPE, held(store, SHAPE), rows)
    assert len(store.search(NAME, SHAPE, floats_of(SHAPE, rows)[:1], 30)[0]) == 30
    assert server.faults.met["partial"] == 2


def test_an_answer_without_all_items_is_not_taken_for_success(store, server):
    server.faults.at("_bulk", SHORT)
    rows = rows_of(SHAPE, range(30))
    load(store, SHAPE, {"u": rows})
    assert_same(store, SHAPE, held(store, SHAPE), rows)
    assert server.faults.met[SHORT] == 1


def test_a_busy_server_is_left_alone_as_long_as_it_asks(store, server):
    load(store, SHAPE, {"u": UNITS["u1"]})
    server.faults.at("_count", "busy", times=2)
    started = time.monotonic()
    assert store.count(NAME) == 40
    assert time.monotonic() - started >= 0.6


def test_a_server_that_never_answers_ends_the_command(server):
    store = OpenSearchStore(opensearch_spec(server, timeout_s=0.6))
    load(store, SHAPE, {"u": UNITS["u1"]})
    server.faults.at("_count", HANG, times=2)
    started = time.monotonic()
    with pytest.raises(StorageUnavailable, match=r"no answer to GET /docs__g1_a/_count.*gave up after"):
        store.count(NAME)
    assert time.monotonic() - started < 3
    store.close()


def test_an_index_that_is_gone(store, server):
    load(store, SHAPE, {"u": UNITS["u1"]})
    del server.indexes[NAME]
    with pytest.raises(NotOurs, match=r"no such index.*start the feed again"):
        store.count(NAME)


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
        late._writer._guard = lambda: None
        # These were on their way already: a row that a newer sync has written, one that it deleted, and a delete.
        for change in (
            lambda: late.upsert(rows_of(SHAPE, [10], seed=2)),
            lambda: late.upsert(rows_of(SHAPE, [1], seed=2)),
            lambda: late.delete(pa.array(["30"])),
        ):
            with pytest.raises(NotOurs, match="a newer sync has written"):
                change()
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


def test_what_others_put_there_is_named_and_can_be_repaired(store, server):
    marker = load(store, SHAPE, {"u": rows_of(SHAPE, range(20))})
    stored = server.indexes[NAME].documents
    stored["strange"] = {"title": "no id"}
    stored["copy"] = dict(stored["1"])
    stored["3"]["row_hash"] = 5
    keys = pa.concat_tables(store.keys(NAME)).to_pylist()
    assert {one["id"] for one in keys} == {*map(str, range(20)), "strange", "copy"}
    assert {one["id"] for one in keys if one["content_hash"] == bytes(16)} == {"strange", "copy"}
    assert store.count(NAME) == 22
    sync(store, SHAPE, marker, 2, rows_of(SHAPE, ["3"]), ["strange", "copy"])
    assert_same(store, SHAPE, held(store, SHAPE), rows_of(SHAPE, range(20)))


def test_all_of_meta_can_be_lost(store, server, place):
    marker = load(store, SHAPE, {"u": rows_of(SHAPE, range(20))})
    marker = sync(store, SHAPE, marker, 2, rows_of(SHAPE, range(10), seed=1), [])
    place.forget_marker(NAME)
    store.mark(marker, None)
    sync(store, SHAPE, marker, 3, rows_of(SHAPE, range(10), seed=2), [])
    assert_same(
        store,
        SHAPE,
        held(store, SHAPE),
        pa.concat_tables([rows_of(SHAPE, range(10), seed=2), rows_of(SHAPE, range(10, 20))]),
    )


def test_what_others_keep_in_meta_stays(store, server):
    marker = load(store, SHAPE, {"u": UNITS["u1"]})
    server.indexes[NAME].mappings["_meta"]["team"] = "search"
    sync(store, SHAPE, marker, 2, None, ["1"])
    found = server.indexes[NAME].mappings["_meta"]
    assert (found["team"], sorted(found[META])) == ("search", ["epoch", "marker"])


def test_the_index_is_as_asked_for(server, place):
    spec = dataclasses.replace(place.spec, options={"settings": {"number_of_replicas": 2, "refresh_interval": "30s"}})
    with contextlib.closing(OpenSearchStore(spec)) as store:
        shape = shape_of(index=Index(kind="hnsw", m=24, ef_construction=200))
        store.create(shape, marker_of(shape, NAME, target=1))
        made = server.indexes[NAME]
        assert made.settings["index"]["number_of_replicas"] == 2
        assert (made.settings["index"]["refresh_interval"], made.settings["index"]["gc_deletes"]) == ("-1", "1h")
        assert made.properties["embedding"]["method"]["parameters"] == {"m": 24, "ef_construction": 200}
        store.build_index(NAME, shape, lambda share: None)
        assert made.settings["index"]["refresh_interval"] == "30s"


def test_what_is_live_is_not_dropped(store):
    load(store, SHAPE, {"u": UNITS["u1"]})
    store.switch(NAME)
    with pytest.raises(InputError, match="is live"):
        store.drop(NAME)


def test_pages_follow_each_other(store, server, monkeypatch):
    monkeypatch.setattr("pipeline.feeds.opensearch.PAGE", 7)
    rows = rows_of(SHAPE, range(50))
    load(store, SHAPE, {"u": rows})
    assert_same(store, SHAPE, held(store, SHAPE), rows)
    assert server.moments == {}


def test_filters_of_every_kind(store):
    kinds = [("s", pa.string()), ("b", pa.bool_()), ("i", pa.int32()), ("f", pa.float64()), ("d", pa.date32())]
    shape = shape_of(pa.schema([pa.field(name, kind) for name, kind in kinds]))
    rows = rows_of(shape, range(60))
    load(store, shape, {"u": rows})
    for row in rows.to_pylist()[:12]:
        for name, _ in kinds:
            found = store.search(NAME, shape, floats_of(shape, rows)[:1], 60, {name: row[name]})[0]
            assert set(found) == {one["id"] for one in rows.to_pylist() if one[name] == row[name]}


def test_a_delete_that_is_refused_is_no_success(store, server):
    marker = load(store, SHAPE, {"u": UNITS["u1"]})
    server.refused = {"1"}
    with pytest.raises(RunError, match="can't delete '1'"):
        sync(store, SHAPE, marker, 2, None, ["1"])
