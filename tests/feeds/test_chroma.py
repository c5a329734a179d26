"""What is special of Chroma: what it refuses, a switch of two steps, and values that it would change."""

import contextlib
import dataclasses
import gc
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import InputError, StorageError, StorageUnavailable
from pipeline.feed_spec import FeedLimitSpec
from pipeline.feeds.chroma import ChromaStore
from pipeline.feeds.chroma_server import _sessions
from pipeline.feeds.store import Index, Shape
from tests.feeds.rows import marker_of, rows_of, shape_of
from tests.feeds.stores import Place
from tests.feeds.test_contract import assert_same, held, load, only, sync

GENERATION = "docs__g1_a"


@pytest.fixture
def place(chroma_places) -> Iterator[Place]:
    with chroma_places() as place:
        yield place


def opened(place: Place, **changes: Any) -> ChromaStore:
    return ChromaStore(dataclasses.replace(place.spec, **changes))


def check(place: Place, shape: Shape, **changes: Any) -> None:
    with contextlib.closing(opened(place, **changes)) as store:
        store.check(shape)


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        (shape_of(dtype="float16"), "vectors of float32"),
        (shape_of(dtype="binary", metric="hamming"), "vectors of float32"),
        (shape_of(index=Index(kind="none")), "'none'; a Chroma feed has hnsw or auto"),
        (shape_of(pa.schema([pa.field("m", pa.map_(pa.string(), pa.int64()))])), "'m', which is map"),
        (shape_of(pa.schema([pa.field("#a", pa.string())])), "'#a'; Chroma keeps"),
        (shape_of(pa.schema([pa.field("embedding", pa.string())])), "leave it out"),
    ],
)
def test_check_refuses_by_name(place: Place, shape, says) -> None:
    with pytest.raises(InputError, match=says):
        check(place, shape)


def test_check_refuses_what_is_asked_of_the_server(place: Place) -> None:
    shape, quick = shape_of(), FeedLimitSpec(timeout_s=0.3)
    with pytest.raises(InputError, match="'_docs'; Chroma takes 3 to 200"):
        check(place, shape, name="_docs")
    with pytest.raises(InputError, match="no Chroma answers at"):
        check(place, shape, url="http://127.0.0.1:1", limits=quick)
    with pytest.raises(InputError, match="address such as http"):
        check(place, shape, url="127.0.0.1:8000")
    with pytest.raises(InputError, match="names \\['tenants'\\]"):
        check(place, shape, options={"tenants": "x"})
    place.client.create_collection("docs", embedding_function=None)
    with pytest.raises(InputError, match="'docs' already"):
        check(place, shape)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_tenant_that_is_not_there_is_told(place: Place) -> None:
    with pytest.raises(InputError, match="check headers, tenant and database"):
        check(place, shape_of(), options={"tenant": "nobody"})
    gc.collect()  # Chroma's client leaves its connection open where it finds no tenant.


class Faulty(httpx.BaseTransport):
    """It stands before the real server: `answer` says what becomes of each request, by its number."""

    def __init__(self, real: httpx.BaseTransport, answer: Any) -> None:
        self._real, self._answer, self.requests = real, answer, 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.requests += 1
        return self._answer(self.requests, lambda: self._real.handle_request(request))

    def close(self) -> None:
        self._real.close()


def faulty(store: ChromaStore, answer: Any) -> Faulty:
    store.generations()
    session = _sessions(store._server.client)[0]
    session._transport = Faulty(session._transport, answer)
    return session._transport


def test_lost_answers_change_nothing(place: Place) -> None:
    """Every request is done, and every other answer is lost."""

    def lossy(number: int, done: Any) -> httpx.Response:
        response = done()
        if number % 2 == 0:
            response.close()
            raise httpx.ReadError("connection reset")
        return response

    shape = shape_of()
    with contextlib.closing(opened(place)) as store:
        lost = faulty(store, lossy)
        marker = load(store, shape, {"u": rows_of(shape, range(20))})
        store.switch(GENERATION)
        marker = sync(store, shape, marker, 2, rows_of(shape, range(10, 30), seed=1), ["3"])
        other = marker_of(shape, "docs__g2_b", target=2)
        store.create(shape, other)
        store.switch("docs__g2_b")
        store.switch(GENERATION)
        store.drop("docs__g2_b")
        assert only(store) == marker
        assert store.generations()[0].live
        expected = pa.concat_tables([rows_of(shape, [0, 1, 2, *range(4, 10)]), rows_of(shape, range(10, 30), seed=1)])
        assert_same(store, shape, held(store, shape), expected)
        assert lost.requests > 20


def test_a_server_that_asks_for_time_gets_it(place: Place) -> None:
    def busy(number: int, done: Any) -> httpx.Response:
        return httpx.Response(503, headers={"Retry-After": "1"}) if number == 1 else done()

    def always(number: int, done: Any) -> httpx.Response:
        return httpx.Response(429)

    with contextlib.closing(opened(place)) as store:
        faulty(store, busy)
        began = time.monotonic()
        assert not store.generations()
        assert time.monotonic() - began >= 1
    with contextlib.closing(opened(place, limits=FeedLimitSpec(timeout_s=0.3))) as store:
        faulty(store, always)
        with pytest.raises(StorageUnavailable, match=r"no answer in 0\.3 s: HTTP status 429"):
            store.generations()


def test_a_user_who_may_not_is_told_without_the_token(place: Place) -> None:
    def denied(number: int, done: Any) -> httpx.Response:
        return httpx.Response(401, text="Bearer hush-hush-hush is wrong")

    options = {"headers": {"Authorization": "Bearer hush-hush-hush"}}
    with contextlib.closing(opened(place, options=options)) as store:
        faulty(store, denied)
        with pytest.raises(InputError, match="doesn't let this user in") as caught:
            store.generations()
        said = store._server._said(RuntimeError("hush-hush-hush is wrong"))
        assert "hush" not in f"{caught.value} {store._spec!r} {said}"


def test_rows_that_are_refused_are_found_and_the_others_arrive(place: Place, monkeypatch) -> None:
    shape = shape_of(pa.schema([pa.field("share", pa.float64())]))
    rows = rows_of(shape, ["a", "", "b", "c"]).set_column(1, "share", pa.array([1.0, 2.0, float("nan"), None]))
    with contextlib.closing(opened(place)) as store:
        assert sorted(store.unfit(rows.drop_columns(["embedding"]))) == [1, 2]
        store.create(shape, marker_of(shape, GENERATION, target=1))
        loaded = store.loader(GENERATION, shape).load("u", [rows])
        assert (loaded.rows, [one.id for one in loaded.rejected]) == (2, ["", "b"])
        monkeypatch.setattr(store, "unfit", lambda rows: {})
        loaded = store.loader(GENERATION, shape).load("v", [rows_of(shape, [*"defgh", ""])])
        assert (loaded.rows, [one.id for one in loaded.rejected]) == (5, [""])
        assert "at least one character" in loaded.rejected[0].reason
        assert store.count(GENERATION) == 7


def test_numbers_and_nulls_come_back_exactly(place: Place) -> None:
    """Chroma reads long numbers inexactly, and an upsert leaves the values that it doesn't name."""
    shape = shape_of(pa.schema([pa.field("share", pa.float64()), pa.field("large", pa.uint64())]))
    long = [-3.2923202514648438, 0.1 + 0.2, 1e-300 / 3, 2.0, 5e-324, 1.7976931348623157e308]
    rows = rows_of(shape, range(6)).set_column(1, "share", pa.array(long))
    rows = rows.set_column(2, "large", pa.array([2**64 - 1, 0, 2**63, 2**53 + 1, 1, 2], pa.uint64()))
    nulls = rows.set_column(1, "share", pa.nulls(6, pa.float64())).set_column(2, "large", pa.nulls(6, pa.uint64()))
    with contextlib.closing(opened(place)) as store:
        marker = load(store, shape, {"u": rows})
        assert_same(store, shape, held(store, shape), rows)
        marker = sync(store, shape, marker, 2, nulls, [])
        assert_same(store, shape, held(store, shape), nulls)
        (plain,) = place.client.get_collection(GENERATION).get(ids=["0"])["metadatas"]
        assert sorted(plain) == ["content_hash", "row_hash"]


def test_a_vector_keeps_its_length_and_direction(place: Place) -> None:
    shape = shape_of()
    rows = rows_of(shape, range(200))
    vectors = np.stack(rows.column("embedding").to_pylist()).astype(np.float32) * 7
    flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), type=shape.vector)
    with contextlib.closing(opened(place)) as store:
        load(store, shape, {"u": rows.set_column(5, shape.schema.field("embedding"), flat)})
        found = store.get(GENERATION, shape, [str(number) for number in range(200)]).sort_by("row_hash")
        expected = vectors[np.argsort(rows.column("row_hash").to_numpy())]
        np.testing.assert_allclose(np.stack(found.column("embedding").to_pylist()), expected, rtol=1e-5, atol=1e-6)


def test_a_switch_that_was_stopped_between_its_steps_is_made_again(place: Place, monkeypatch) -> None:
    shape = shape_of()
    with contextlib.closing(opened(place)) as store:
        first = load(store, shape, {"u": rows_of(shape, range(5))})
        store.switch(GENERATION)
        second = load(store, shape, {"u": rows_of(shape, range(9))}, "docs__g2_b", version=2)
        rename = store._rename

        def stopped(collection: Any, name: str) -> None:
            if name == "docs":
                raise KeyboardInterrupt
            rename(collection, name)

        monkeypatch.setattr(store, "_rename", stopped)
        with pytest.raises(KeyboardInterrupt):
            store.switch("docs__g2_b")
    with contextlib.closing(opened(place)) as store:
        assert [(one.marker, one.live) for one in store.generations()] == [(first, False), (second, False)]
        store.switch("docs__g2_b")
        assert [one.live for one in store.generations()] == [False, True]
        assert place.client.get_collection("docs").count() == 9
        with pytest.raises(StorageError, match="switch to another one"):
            store.drop("docs__g2_b")


def _die_in_a_delta(spec: Any) -> None:
    store, shape = ChromaStore(spec), shape_of()
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
        child.join(60)
        assert child.exitcode == -signal.SIGKILL
        assert only(store) == begun
        sync(store, shape, begun, 3, rows_of(shape, range(5, 26), seed=2), ["0"])
        expected = pa.concat_tables([rows_of(shape, range(1, 5)), rows_of(shape, range(5, 26), seed=2)])
        assert_same(store, shape, held(store, shape), expected)


def test_what_somebody_else_wrote_is_counted_and_shown(place: Place) -> None:
    shape = shape_of()
    with contextlib.closing(opened(place)) as store:
        load(store, shape, {"u": rows_of(shape, range(5))})
        place.client.get_collection(GENERATION).upsert(ids=["odd"], embeddings=[[1.0] * shape.dim])
        assert store.count(GENERATION) == 6
        keys = pa.concat_tables(store.keys(GENERATION))
        assert "odd" in keys.column("id").to_pylist()
