"""What is special of Milvus: what it refuses, imports that must not arrive twice, and answers that are lost."""

import contextlib
import dataclasses
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
import pytest
from pymilvus import MilvusClient, MilvusException

from pipeline.errors import InputError, StorageError, StorageUnavailable
from pipeline.feed_spec import FeedLimitSpec
from pipeline.feeds import milvus_rows
from pipeline.feeds.milvus import FOLDER_SEEN, IMPORTS, MilvusStore
from pipeline.feeds.store import Index
from tests.feeds.rows import marker_of, rows_of, shape_of
from tests.feeds.stores import Place
from tests.feeds.test_contract import assert_same, held, load, only, sync

pytestmark = pytest.mark.slow  # A server of its own for each process takes a fifth of a core while it waits.


class Lost(grpc.RpcError):
    """The server has done it, and its answer was lost on the way."""

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNAVAILABLE

    def details(self) -> str:
        return "connection reset"


@pytest.fixture
def place(milvus_places) -> Iterator[Place]:
    with milvus_places() as place:
        yield place


@pytest.fixture
def importing(milvus_import_places) -> Iterator[Place]:
    with milvus_import_places() as place:
        yield place


def opened(place: Place, **changes: Any) -> MilvusStore:
    return MilvusStore(dataclasses.replace(place.spec, **changes))


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        (shape_of(dtype="float16"), r"float16, and this Milvus is v2\.3\.5.*: float16 came with 2\.4"),
        (shape_of(metric="hamming"), "hamming"),
        (shape_of(dtype="binary", metric="cosine"), "hamming"),
        (shape_of(dim=1), "1 dimensions"),
        (shape_of(index=Index(kind="ivf")), "'ivf'; a Milvus feed has hnsw, none or auto"),
        (shape_of(dtype="binary", metric="hamming", index=Index(kind="hnsw")), "none or auto for bits"),
        (shape_of(pa.schema([pa.field("m", pa.map_(pa.string(), pa.int64()))])), "'m', which is map"),
        (shape_of(pa.schema([pa.field("embedding", pa.string())])), "leave it out"),
    ],
)
def test_check_refuses_by_name(place: Place, shape, says) -> None:
    with pytest.raises(InputError, match=says):
        opened(place).check(shape)


def test_check_refuses_names_addresses_and_what_is_not_ours(place: Place) -> None:
    with pytest.raises(InputError, match="'my-docs'; Milvus takes letters"):
        opened(place, name="my-docs").check(shape_of())
    with pytest.raises(InputError, match="no import_folder"):
        opened(place, options={FOLDER_SEEN: "x"}).check(shape_of())
    quick = FeedLimitSpec(timeout_s=1)
    with pytest.raises(InputError, match="no Milvus answers at"):
        opened(place, url="http://127.0.0.1:1", limits=quick, options={"token": "root:secret"}).check(shape_of())
    with pytest.raises(InputError, match="can't work for Milvus"):
        opened(place, url="http://127.0.0.1:x:1", limits=quick).check(shape_of())
    place.client.create_collection("docs", dimension=4)
    with pytest.raises(InputError, match="'docs' already"):
        opened(place).generations()


def test_secrets_are_not_told(place: Place) -> None:
    store = opened(place, options={"password": "hush-hush", "user": "u"})
    error = store._server.translated(Lost(), StorageUnavailable)
    assert "hush" not in f"{store._spec!r} {error} {store._server.said(RuntimeError('token u:hush-hush is wrong'))}"


def test_rows_that_milvus_cannot_take_are_told_before(place: Place) -> None:
    shape = shape_of(pa.schema([pa.field("title", pa.string()), pa.field("share", pa.float64())]))
    rows = rows_of(shape, ["", "x" * 65_536, "nan", "long", "fine"])
    rows = rows.set_column(1, "title", pa.array(["a", "b", "c", "y" * 65_536, None]))
    rows = rows.set_column(2, "share", pa.array([1.0, 2.0, float("nan"), None, 0.5]))
    found = opened(place).unfit(rows.drop_columns(["embedding"]))
    assert sorted(found) == [0, 1, 2, 3]
    assert [word in found[row] for row, word in enumerate(["empty", "65536 bytes", "finite", "as JSON"])] == [True] * 4


def test_what_is_refused_is_found_and_the_others_arrive(place: Place, monkeypatch) -> None:
    shape = shape_of()
    with contextlib.closing(opened(place)) as store:
        store.create(shape, marker_of(shape, "docs__g1_a", target=1))
        rows = rows_of(shape, range(20))
        vectors = np.stack(rows.column("embedding").to_pylist())
        vectors[3, 0], vectors[7] = np.nan, 0
        flat = pa.array(vectors.astype(np.float32).reshape(-1))
        bad = rows.set_column(
            5, shape.schema.field("embedding"), pa.FixedSizeListArray.from_arrays(flat, type=shape.vector)
        )
        loaded = store.loader("docs__g1_a", shape).load("u", [bad])
        assert (loaded.rows, [one.id for one in loaded.rejected]) == (18, ["3", "7"])
        # What only the server knows to be wrong is found by halving.
        monkeypatch.setattr(milvus_rows, "unfit", lambda rows: {})
        names = [*map(str, range(20, 30)), "x" * 65_536]
        loaded = store.loader("docs__g1_a", shape).load("v", [rows_of(shape, names)])
        assert (loaded.rows, [one.id for one in loaded.rejected]) == (10, ["x" * 65_536])
        assert "exceeds max length" in loaded.rejected[0].reason
        assert store.count("docs__g1_a") == 28


def test_a_lost_answer_changes_nothing(place: Place, monkeypatch) -> None:
    shape = shape_of()
    lost = []
    with contextlib.closing(opened(place)) as store:
        call = store._server.called

        def called(method: str, request: Any) -> Any:
            found = call(method, request)
            if not lost:
                lost.append(method)
                raise Lost
            return found

        monkeypatch.setattr(store._server, "called", called)
        load(store, shape, {"u": rows_of(shape, range(30))})
        assert lost == ["Upsert"]
        assert_same(store, shape, held(store, shape), rows_of(shape, range(30)))


def test_a_server_that_stays_away_ends_the_call(place: Place, monkeypatch) -> None:
    shape = shape_of()
    with contextlib.closing(opened(place, limits=FeedLimitSpec(timeout_s=0.3))) as store:
        store.create(shape, marker_of(shape, "docs__g1_a", target=1))

        def away(method: str, request: Any) -> Any:
            raise Lost

        monkeypatch.setattr(store._server, "called", away)
        with pytest.raises(StorageUnavailable, match=r"no answer in 0\.3 s: connection reset"):
            store.upsert("docs__g1_a", shape, rows_of(shape, range(3)))


SWITCHES = 30
"""A reader meets the moment of a switch now and then."""


class Reader(threading.Thread):
    """It asks the live alias for all rows in a loop, and keeps what it saw: the dimensions, and which states of which rows."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.url = url
        self.seen: list[tuple[frozenset[int], frozenset[tuple[str, int]]]] = []
        self.errors: list[str] = []
        self.ended = threading.Event()

    def run(self) -> None:
        client = MilvusClient(self.url)
        while not self.ended.is_set():
            try:
                rows = client.query(
                    "docs", "", ["id", "row_hash", "embedding"], limit=1_000, consistency_level="Strong"
                )
            except MilvusException as error:
                self.errors.append(str(error))
            else:
                dims = frozenset(len(row["embedding"]) for row in rows)
                self.seen.append((dims, frozenset((row["id"], row["row_hash"]) for row in rows)))
        client.close()

    def sees(self, dim: int, state: frozenset[tuple[str, int]]) -> None:
        """Wait until it does."""
        give_up = time.monotonic() + 20
        while not self.seen or self.seen[-1] != ({dim}, state):
            assert time.monotonic() < give_up, self.seen[-1:]
            time.sleep(0.01)


def test_a_reader_of_the_alias_sees_whole_generations(place: Place) -> None:
    """A delta is no single step in Milvus: between two versions a row is the one or the other, and those in both stay."""
    old, new = shape_of(), shape_of(dim=40, fingerprint="f2")
    first, second, third = rows_of(old, range(80)), rows_of(old, range(10, 90), seed=1), rows_of(new, range(60), seed=2)
    states = [
        frozenset(zip(rows.column("id").to_pylist(), rows.column("row_hash").to_pylist(), strict=True))
        for rows in (first, pa.concat_tables([first.slice(10, 30), second.slice(30)]), third)
    ]
    with contextlib.closing(opened(place)) as store:
        marker = load(store, old, {"u": first})
        store.switch("docs__g1_a")
        reader = Reader(place.spec.url)
        reader.start()
        try:
            reader.sees(old.dim, states[0])
            sync(store, old, marker, 2, second.slice(30), [str(number) for number in range(10)])
            reader.sees(old.dim, states[1])
            load(store, new, {"u1": third.slice(0, 30), "u2": third.slice(30)}, "docs__g2_a", version=3)
            for _ in range(SWITCHES):
                for generation in ("docs__g2_a", "docs__g1_a"):
                    store.switch(generation)
            store.switch("docs__g2_a")
            reader.sees(new.dim, states[2])
        finally:
            reader.ended.set()
            reader.join()
    assert not reader.errors
    assert {dims for dims, _ in reader.seen} == {frozenset([old.dim]), frozenset([new.dim])}
    for dims, rows in reader.seen:
        if dims == {new.dim}:
            assert rows == states[2]
        else:
            assert states[0] & states[1] <= rows <= states[0] | states[1]


def killed(place: Place, folder: str, method: str) -> None:
    command = [sys.executable, "-m", "tests.feeds.milvus_killed", place.spec.url, folder, method]
    assert subprocess.run(command, timeout=60).returncode == -signal.SIGKILL


def test_a_delta_whose_feeder_is_killed_is_made_again(place: Place) -> None:
    shape = shape_of()
    with contextlib.closing(opened(place)) as store:
        store.create(shape, marker_of(shape, "docs__g1_a", target=1))
        store.loader("docs__g1_a", shape).load("u", [rows_of(shape, range(20))])
        store.finish_load(shape, marker_of(shape, "docs__g1_a", target=1), marker_of(shape, "docs__g1_a", 1), [])
        killed(place, "", "Upsert")
        begun = marker_of(shape, "docs__g1_a", 1, 2)
        assert only(store) == begun
        with store.delta(shape, begun, marker_of(shape, "docs__g1_a", 2)) as delta:
            delta.upsert(rows_of(shape, range(5, 25), seed=1))
            delta.commit()
        expected = [rows_of(shape, range(5)), rows_of(shape, range(5, 25), seed=1)]
        assert_same(store, shape, held(store, shape), pa.concat_tables(expected))


@pytest.mark.slow
def test_imports_whose_feeder_is_killed_arrive_once(importing: Place) -> None:
    shape = shape_of()
    folder = importing.spec.options["import_folder"]
    killed(importing, folder, "Import")
    with contextlib.closing(opened(importing)) as store:
        begun, done = marker_of(shape, "docs__g1_a", target=1), marker_of(shape, "docs__g1_a", applied=1)
        store.create(shape, begun)
        assert only(store) == begun
        assert importing.client.describe_collection("docs__g1_a")["properties"][IMPORTS] == "begun"
        loader = store.loader("docs__g1_a", shape)
        receipts = [loader.load(f"u{i}", [rows_of(shape, range(9 * i, 9 * i + 9))]).receipt for i in (0, 1)]
        store.finish_load(shape, begun, done, [str(receipt) for receipt in [*receipts, *receipts]])
        assert_same(store, shape, held(store, shape), rows_of(shape, range(18)))
        assert not store._folder.files("").list()


@pytest.mark.slow
@pytest.mark.parametrize("harm", ["lost", "twice"])
def test_imports_that_may_have_run_twice_are_made_anew(importing: Place, monkeypatch, harm) -> None:
    shape = shape_of()
    calls: list[str] = []
    with contextlib.closing(opened(importing)) as store:
        call = store._server.called

        def called(method: str, request: Any) -> Any:
            found = call(method, request)
            calls.append(method)
            if len(calls) == 1 and harm == "lost":
                raise Lost
            if len(calls) == 1:  # A feeder that was frozen wakes.
                call(method, request)
            return found

        monkeypatch.setattr(store._server, "called", called)
        load(store, shape, {"u1": rows_of(shape, range(9)), "u2": rows_of(shape, range(9, 18))})
        assert len(calls) >= 3
        assert_same(store, shape, held(store, shape), rows_of(shape, range(18)))


def test_a_folder_that_the_server_cannot_read_is_named(importing: Place) -> None:
    shape = shape_of()
    options = {**importing.spec.options, FOLDER_SEEN: "/nobody/reads/this"}
    begun = marker_of(shape, "docs__g1_a", target=1)
    with contextlib.closing(opened(importing, options=options)) as store:
        store.create(shape, begun)
        receipt = store.loader("docs__g1_a", shape).load("u", [rows_of(shape, range(9))]).receipt
        with pytest.raises(StorageError, match=r"check feeds\.options"):
            store.finish_load(shape, begun, marker_of(shape, "docs__g1_a", applied=1), [str(receipt)])
    with contextlib.closing(opened(importing, options={})) as store, pytest.raises(InputError, match="give it again"):
        store.loader("docs__g1_a", shape)


def test_a_row_that_is_there_twice_is_counted(place: Place) -> None:
    shape = shape_of()
    with contextlib.closing(opened(place)) as store:
        load(store, shape, {"u": rows_of(shape, range(9))})
        twice = {"id": "3", "content_hash": "00" * 16, "row_hash": 1, "embedding": [1.0] * shape.dim}
        place.client.insert("docs__g1_a", [twice])
        assert store.count("docs__g1_a") == 10
        assert sum(some.num_rows for some in store.keys("docs__g1_a")) == 9


@pytest.mark.parametrize("dtype", ["float32", "float16", "binary"])
def test_a_message_is_what_the_client_would_send(dtype) -> None:
    """The reference builds it field by field; here the bytes of vectors are put in as they are."""
    from pymilvus import CollectionSchema, DataType, FieldSchema
    from pymilvus.client.prepare import Prepare

    shape = shape_of(dtype=dtype)
    rows = rows_of(shape, range(7))
    schema = CollectionSchema(
        [
            FieldSchema("id", DataType.VARCHAR, is_primary=True, max_length=99),
            FieldSchema("content_hash", DataType.VARCHAR, max_length=32),
            FieldSchema("row_hash", DataType.INT64),
            FieldSchema("embedding", milvus_rows.VECTORS[dtype], dim=shape.dim),
        ],
        enable_dynamic_field=True,
    ).to_dict()
    vectors = rows.column("embedding").to_pylist()
    kinds = {"float32": np.float32, "float16": np.float16, "binary": np.uint8}
    records = []
    for row, vector in zip(rows.drop_columns(["embedding"]).to_pylist(), vectors, strict=True):
        value = np.array(vector, kinds[dtype])
        record = {name: value for name, value in row.items() if value is not None}
        record["content_hash"] = row["content_hash"].hex()
        records.append({**record, "embedding": value.tobytes() if dtype == "binary" else value})
    expected = Prepare.row_upsert_param("c", records, "", schema["fields"], enable_dynamic=True)
    theirs = {field.field_name: field for field in expected.fields_data}
    ours = {field.field_name or "$meta": field for field in milvus_rows.fields(rows, shape)}
    for name in ("id", "content_hash", "row_hash", "embedding"):
        for field in (theirs[name], ours[name]):
            field.ClearField("field_id")
            field.ClearField("valid_data")
        assert ours[name].SerializeToString(deterministic=True) == theirs[name].SerializeToString(deterministic=True)
