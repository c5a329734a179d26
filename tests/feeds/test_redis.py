"""What is special of Redis: what it refuses, its fence, its log on the disk, and hashes that somebody else wrote."""

import contextlib
import dataclasses
import multiprocessing
import os
import signal
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest
import redis

from pipeline.errors import InputError, StorageError, StorageUnavailable
from pipeline.feed_spec import FeedLimitSpec
from pipeline.feeds import redis_server as server_module
from pipeline.feeds.redis import RedisStore
from pipeline.feeds.store import Index, NotOurs
from tests.feeds.redis_place import RedisServer
from tests.feeds.rows import floats_of, marker_of, rows_of, shape_of
from tests.feeds.stores import Place
from tests.feeds.test_contract import assert_same, held, load, only, sync

GENERATION = "docs__g1_a"


@pytest.fixture
def place(redis_places) -> Iterator[Place]:
    with redis_places() as place:
        yield place


def opened(place: Place, **changes: Any) -> RedisStore:
    return RedisStore(dataclasses.replace(place.spec, **changes))


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        (shape_of(dtype="binary", metric="hamming"), "float32 and float16"),
        (shape_of(metric="hamming"), "'hamming'"),
        (shape_of(dim=40_000), "40000 dimensions; Redis takes 1 to 32768"),
        (shape_of(index=Index(kind="ivf")), "'ivf'; a Redis feed has hnsw, none or auto"),
        (shape_of(pa.schema([pa.field("m", pa.map_(pa.string(), pa.int64()))])), "'m', which is map"),
        (shape_of(pa.schema([pa.field("embedding", pa.string())])), "leave it out"),
    ],
)
def test_check_refuses_by_name(place: Place, shape, says) -> None:
    with pytest.raises(InputError, match=says):
        opened(place).check(shape)


def test_check_refuses_what_is_asked_of_the_server(place: Place) -> None:
    shape, quick = shape_of(), FeedLimitSpec(timeout_s=0.3)
    with pytest.raises(InputError, match="without a dot"):
        opened(place, name="a.docs").check(shape)
    with pytest.raises(InputError, match="names 'nobody'"):
        opened(place, options={"filters": ["nobody"]}).check(shape)
    with pytest.raises(InputError, match="no Redis answers at"):
        opened(place, url="redis://127.0.0.1:1", limits=quick).check(shape)
    with pytest.raises(InputError, match="can't work for Redis"):
        opened(place, url="http://127.0.0.1:1").check(shape)
    with pytest.raises(InputError, match="options of redis"):
        opened(place, options={"no_such_option": 1}).check(shape)
    place.client.execute_command("FT.CREATE", "docs", "SCHEMA", "title", "TAG")
    with pytest.raises(InputError, match="'docs' already"):
        opened(place).check(shape)


def test_users_who_may_not_are_told_without_their_password(place: Place) -> None:
    place.client.execute_command("ACL", "SETUSER", "reader", "on", ">hush-hush", "~*", "+info", "+ping")
    for options in ({"username": "reader", "password": "wrong-one"}, {"username": "reader", "password": "hush-hush"}):
        with pytest.raises(InputError, match="doesn't let this user in") as caught:
            opened(place, options=options).check(shape_of())
        assert options["password"] not in f"{caught.value} {opened(place, options=options)._spec!r}"


def test_a_server_that_drops_rows_when_it_is_full_is_refused(place: Place) -> None:
    place.client.config_set("maxmemory", "1gb")
    place.client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(InputError, match="allkeys-lru"):
            opened(place).check(shape_of())
        place.client.config_set("maxmemory-policy", "volatile-lru")
        opened(place).check(shape_of())
    finally:
        place.client.config_set("maxmemory", 0)
        place.client.config_set("maxmemory-policy", "noeviction")


def test_numbers_that_are_none_are_refused_and_the_others_arrive(place: Place) -> None:
    shape = shape_of(pa.schema([pa.field("share", pa.float64())]))
    rows = rows_of(shape, range(5)).set_column(1, "share", pa.array([1.0, float("nan"), None, float("inf"), 2.0]))
    with contextlib.closing(opened(place)) as store:
        assert sorted(store.unfit(rows)) == [1, 3]
        store.create(shape, marker_of(shape, GENERATION, target=1))
        loaded = store.loader(GENERATION, shape).load("u", [rows])
        assert (loaded.rows, [one.id for one in loaded.rejected]) == (3, ["1", "3"])
        assert store.count(GENERATION) == 3


def test_a_value_that_becomes_null_is_removed(place: Place) -> None:
    shape = shape_of(pa.schema([pa.field("title", pa.string()), pa.field("number", pa.int64())]))
    with contextlib.closing(opened(place)) as store:
        full = rows_of(shape, ["a"]).set_column(1, "title", pa.array(["x"])).set_column(2, "number", pa.array([1]))
        marker = load(store, shape, {"u": full})
        empty = full.set_column(1, "title", pa.nulls(1, pa.string())).set_column(2, "number", pa.nulls(1, pa.int64()))
        sync(store, shape, marker, 2, empty, [])
        assert_same(store, shape, held(store, shape), empty)
        assert not store.search(GENERATION, shape, floats_of(shape, full), 1, {"title": "x"})[0]


def test_a_feeder_that_was_frozen_changes_nothing_any_more(place: Place) -> None:
    shape = shape_of()
    with contextlib.closing(opened(place)) as store, contextlib.closing(opened(place)) as frozen:
        marker = load(store, shape, {"u": rows_of(shape, range(20))})
        old_loader = frozen.loader(GENERATION, shape)
        begun = marker_of(shape, GENERATION, 1, 2, indexed=True)
        frozen.mark(begun, marker)
        with frozen.delta(shape, begun, marker_of(shape, GENERATION, 2, indexed=True)) as delta:
            delta.upsert(rows_of(shape, range(5), seed=1))
            newer = sync(store, shape, begun, 3, rows_of(shape, range(10), seed=2), ["19"])
            for change in (
                lambda: delta.upsert(rows_of(shape, range(9, 25), seed=1)),
                lambda: delta.delete(pa.array(["3"])),
                delta.commit,
                lambda: old_loader.load("u", [rows_of(shape, range(20))]),
            ):
                with pytest.raises(NotOurs):
                    change()
        assert only(store) == newer
        expected = pa.concat_tables([rows_of(shape, range(10), seed=2), rows_of(shape, range(10, 19))])
        assert_same(store, shape, held(store, shape), expected)


def test_lost_answers_change_nothing(place: Place, monkeypatch) -> None:
    """Every transaction is made, and every other answer to one is lost."""
    shape, calls = shape_of(), []

    def lossy(made: Any) -> Any:
        def make(*arguments: Any, **named: Any) -> Any:
            found = made(*arguments, **named)
            calls.append(made)
            if len(calls) % 2:
                raise redis.ConnectionError("connection reset")
            return found

        return make

    monkeypatch.setattr(redis.client.Pipeline, "execute", lossy(redis.client.Pipeline.execute))
    monkeypatch.setattr(server_module, "_exchanged", lossy(server_module._exchanged))
    with contextlib.closing(opened(place)) as store:
        marker = load(store, shape, {"u": rows_of(shape, range(20))})
        marker = sync(store, shape, marker, 2, rows_of(shape, range(10, 30), seed=1), ["3"])
        assert only(store) == marker
        expected = pa.concat_tables([rows_of(shape, [0, 1, 2, *range(4, 10)]), rows_of(shape, range(10, 30), seed=1)])
        assert_same(store, shape, held(store, shape), expected)
    assert len(set(calls)) == 2
    assert len(calls) > 10


def test_a_transaction_that_the_server_refuses_leaves_nothing(place: Place) -> None:
    """Its memory is full: the connection is fit for the next call all the same."""
    shape = shape_of()
    with contextlib.closing(opened(place)) as store:
        store.create(shape, marker_of(shape, GENERATION, target=1))
        loader = store.loader(GENERATION, shape)
        place.client.config_set("maxmemory", 1)
        try:
            with pytest.raises(StorageError, match=r"refused: .*maxmemory"):
                loader.load("u", [rows_of(shape, range(20))])
        finally:
            place.client.config_set("maxmemory", 0)
        assert store.count(GENERATION) == 0
        assert loader.load("u", [rows_of(shape, range(20))]).rows == store.count(GENERATION) == 20


def _die_in_a_delta(spec: Any) -> None:
    store, shape = RedisStore(spec), shape_of()
    begun = marker_of(shape, GENERATION, 1, 2, indexed=True)
    with store.delta(shape, begun, marker_of(shape, GENERATION, 2, indexed=True)) as delta:
        delta.upsert(rows_of(shape, range(5, 25), seed=1))
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_delta_whose_feeder_is_killed_is_made_again(place: Place) -> None:
    shape = shape_of()
    with contextlib.closing(opened(place)) as store:
        marker = load(store, shape, {"u": rows_of(shape, range(20))})
        begun = marker_of(shape, GENERATION, 1, 2, indexed=True)
        store.mark(begun, marker)
        child = multiprocessing.get_context("spawn").Process(target=_die_in_a_delta, args=(place.spec,))
        child.start()
        child.join(30)
        assert child.exitcode == -signal.SIGKILL
        assert only(store) == begun
        sync(store, shape, begun, 3, rows_of(shape, range(5, 26), seed=2), ["0"])
        expected = pa.concat_tables([rows_of(shape, range(1, 5)), rows_of(shape, range(5, 26), seed=2)])
        assert_same(store, shape, held(store, shape), expected)


def test_a_server_that_crashes_keeps_what_it_took(place: Place, redis_server: RedisServer) -> None:
    shape = shape_of()
    with contextlib.closing(opened(place, limits=FeedLimitSpec(timeout_s=1))) as store:
        marker = load(store, shape, {"u": rows_of(shape, range(20))})
        store.switch(GENERATION)
        redis_server.stop()
        with pytest.raises(StorageUnavailable, match="no answer in 1 s"):
            store.count(GENERATION)
        redis_server.start()
        assert only(store) == marker
        assert_same(store, shape, held(store, shape), rows_of(shape, range(20)))


def test_what_somebody_else_wrote_is_counted_and_shown(place: Place) -> None:
    shape = shape_of()
    with contextlib.closing(opened(place)) as store:
        load(store, shape, {"u": rows_of(shape, range(5))})
        place.client.set(f"{GENERATION}:text", "no hash")
        place.client.hset(f"{GENERATION}:odd", mapping={"embedding": b"short", "content_hash": b"?"})
        assert store.count(GENERATION) == 7
        keys = pa.concat_tables(store.keys(GENERATION))
        assert {"text", "odd"} < set(keys.column("id").to_pylist())
        assert store.get(GENERATION, shape, ["text", "odd", "1"]).num_rows == 1


def test_rows_that_the_index_cannot_take_are_told(place: Place) -> None:
    shape = shape_of()
    with contextlib.closing(opened(place)) as store:
        store.create(shape, marker_of(shape, GENERATION, target=1))
        store.loader(GENERATION, shape).load("u", [rows_of(shape, range(5))])
        place.client.hset(f"{GENERATION}:odd", mapping={"embedding": b"short"})
        with pytest.raises(StorageError, match="could not index 1 rows"):
            store.build_index(GENERATION, shape, lambda share: None)


def test_what_readers_see_is_not_dropped(place: Place) -> None:
    shape = shape_of()
    with contextlib.closing(opened(place)) as store:
        load(store, shape, {"u": rows_of(shape, range(5))})
        store.switch(GENERATION)
        with pytest.raises(StorageError, match="switch to another one"):
            store.drop(GENERATION)
        assert store.count(GENERATION) == 5


def test_only_the_columns_of_filters_are_indexed(place: Place) -> None:
    shape = shape_of()
    with contextlib.closing(opened(place, options={"filters": ["number"]})) as store:
        store.check(shape)
        load(store, shape, {"u": rows_of(shape, range(5))})
        info = str(store.server.index_info(place.client, GENERATION))
        assert "number" in info
        assert "title" not in info
