"""What is special about PostgreSQL: what it refuses, rights and views, readers of the view, and a server that goes away."""

import contextlib
import dataclasses
import random
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import GateFailed, InputError
from pipeline.feed_spec import FeedIndexSpec, FeedLimitSpec, FeedSpec
from pipeline.feeds.postgres import PostgresStore
from pipeline.feeds.registry import open_store
from pipeline.feeds.store import Index, Rejection
from pipeline.runs import feed as runs
from pipeline.runs import reindex as reindexing
from tests.feeds.nights import Nights, assert_same_rows, nights_of
from tests.feeds.postgres_place import PostgresServer
from tests.feeds.rows import marker_of, rows_of, shape_of
from tests.feeds.stores import Place
from tests.feeds.test_contract import load
from tests.inline import InProcess
from tests.tiny import build_tiny_model


@pytest.fixture
def place(postgres_places: Callable[[], contextlib.AbstractContextManager[Place]]) -> Iterator[Place]:
    with postgres_places() as place:
        yield place


@pytest.fixture
def store(place: Place) -> Iterator[PostgresStore]:
    with contextlib.closing(place.open()) as store:
        assert isinstance(store, PostgresStore)
        yield store


@pytest.fixture
def nights(tmp_path: Path, tiny_model: Path, place: Place) -> Nights:
    return nights_of(tmp_path / "n", tiny_model, place)


def test_shapes_that_it_can_not_hold(store: PostgresStore) -> None:
    for shape, message in [
        (shape_of(dim=2001), r"2,001 dimensions.*2,000 at most: feeds.dtype: float16 takes 4,000.*kind: none"),
        (shape_of(dim=4001, dtype="float16"), r"4,001 dimensions.*4,000 at most"),
        (shape_of(metric="hamming"), r"'hamming' with vectors of float32"),
        (shape_of(dtype="binary"), r"'cosine' with vectors of binary"),
        (shape_of(index=Index(kind="ivf")), r"feeds.index.kind is 'ivf'; .*hnsw, none or auto"),
        (shape_of(pa.schema([pa.field("d", pa.duration("s"))])), r"column 'd' is duration\[s\].*leave it out"),
        (shape_of(pa.schema([pa.field("m", pa.map_(pa.string(), pa.int64()))])), r"column 'm' is map"),
    ]:
        with pytest.raises(InputError, match=message):
            store.check(shape)
    store.check(shape_of(dim=2001, index=Index(kind="none")))
    store.check(shape_of(dim=64_000, dtype="binary", metric="hamming"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"url": "postgresql://postgres@/nothing?host={folder}"}, 'database "nothing" does not exist'),
        ({"url": "postgresql://nobody@/postgres?host={folder}"}, 'role "nobody" does not exist'),
        (
            {"url": "postgresql://postgres@/postgres?host={folder}/nowhere"},
            r"check feeds.url, and that the server runs",
        ),
        ({"url": "postgresql://postgres@127.0.0.1:9/postgres"}, r"check feeds.url, and that the server runs"),
        ({"url": "no url at all"}, "can't be read: write the address as postgresql://"),
        ({"options": {"nonsense": "1"}}, "can't be read: write the address as postgresql://"),
        ({"name": "no_schema.docs"}, r'schema "no_schema" does not exist'),
        ({"name": "d" * 50}, "takes names of 40 letters"),
    ],
)
def test_addresses_and_names_that_are_wrong(postgres: PostgresServer, change: dict[str, Any], message: str) -> None:
    change = {name: value.format(folder=postgres.folder) if name == "url" else value for name, value in change.items()}
    spec = dataclasses.replace(FeedSpec(store="postgres", url=postgres.url, name="docs"), **change)
    with contextlib.closing(open_store(spec)) as store, pytest.raises(InputError, match=message):
        store.check(shape_of())


def test_no_message_holds_a_password(postgres: PostgresServer) -> None:
    for url in (
        "postgresql://postgres:hunter2@127.0.0.1:9/postgres",
        "postgresql://x:hunter2@/postgres?host=/nowhere&port=q",
    ):
        spec = FeedSpec(store="postgres", url=url, name="docs", options={"password": "hunter2"})
        with contextlib.closing(open_store(spec)) as store, pytest.raises(InputError) as raised:
            store.check(shape_of())
        assert "hunter2" not in str(raised.value)
        assert "hunter2" not in repr(spec)


def test_a_name_that_is_taken(nights: Nights, place: Place) -> None:
    schema = place.spec.name.partition(".")[0]
    nights.night(range(3))
    for kind in ("TABLE {}.docs (id int)", "VIEW {}.docs AS SELECT 1 AS one"):
        place.client.execute(f"CREATE {kind.format(schema)}")
        with pytest.raises(InputError, match=r"has something named .* already that is no view of this feed"):
            nights.feed()
        place.client.execute(f"DROP {kind.split()[0]} {schema}.docs")


def test_a_user_who_may_not(nights: Nights, place: Place, postgres: PostgresServer) -> None:
    schema = place.spec.name.partition(".")[0]
    place.client.execute(f"CREATE ROLE {schema}_reader LOGIN")
    place.client.execute(f"GRANT USAGE ON SCHEMA {schema} TO {schema}_reader")
    nights.night(range(3))
    url = postgres.url.replace("postgres@", f"{schema}_reader@")
    with pytest.raises(InputError, match="may not create tables in schema"):
        nights.with_feed(url=url).feed()


def test_rows_that_do_not_fit_are_told_before_the_first_write(nights: Nights) -> None:
    nights.night(range(20))
    nights.documents["3"]["title"] = "a\0b"
    nights.documents["x" * 3000] = nights.documents["4"] | {"id": "x" * 3000}
    nights.night()
    for refused in (nights.feed, lambda: runs.forecast(nights.spec, "docs")):
        with pytest.raises(
            InputError, match=r"2 rows don't fit.*'3': its title holds a NUL character.*more than 2,700 bytes"
        ):
            refused()
    with nights.store() as store:
        assert not store.generations()
    lenient = nights.with_feed(limits=FeedLimitSpec(max_failed_rows=2))
    found = lenient.feed()
    assert (found.exit_code, found.sent, found.new_rejected, found.switched) == (3, 19, 2, True)
    assert "NUL" in str(found)
    assert lenient.verify().exit_code == 0
    again = lenient.feed()
    assert (again.exit_code, len(again.rejected)) == (0, 2)
    # A row that is mended is sent; one that breaks leaves the store.
    nights.documents["3"]["title"] = "ab"
    nights.documents["5"]["title"] = "c\0d"
    nights.night()
    found = lenient.feed()
    assert (found.exit_code, found.sent, found.new_rejected, len(found.rejected)) == (3, 1, 1, 2)
    assert lenient.verify().exit_code == 0
    assert "5" not in lenient.held().column("id").to_pylist()
    nights.documents["6"]["title"] = "c\0d"
    nights.night()
    before = lenient.held()
    with pytest.raises(GateFailed, match=r"refuses 3 rows, more than feeds.limits.max_failed_rows \(2\)"):
        lenient.feed()
    assert lenient.held() == before


def test_rows_that_only_the_server_refuses_are_found_by_halving(store: PostgresStore, place: Place) -> None:
    shape = shape_of()
    schema = place.spec.name.partition(".")[0]
    begun = marker_of(shape, "docs__g1_a", target=1)
    store.create(shape, begun)
    place.client.execute(f"ALTER TABLE {schema}.docs__g1_a ADD CHECK (id NOT IN ('17', '40'))")
    with contextlib.closing(store.loader("docs__g1_a", shape)) as loader:
        rows = rows_of(shape, range(50))
        loaded = loader.load("u", [rows.slice(0, 20), rows.slice(20, 10), rows.slice(30)])
    assert loaded.rows == 48
    assert [one.id for one in loaded.rejected] == ["17", "40"]
    assert all("violates check constraint" in one.reason for one in loaded.rejected)
    store.finish_load(shape, begun, marker_of(shape, "docs__g1_a", 1), [])
    with store.delta(shape, marker_of(shape, "docs__g1_a", 1), marker_of(shape, "docs__g1_a", 2)) as delta:
        refused = delta.upsert(rows_of(shape, [1, 17, 60], seed=1))
        assert [isinstance(one, Rejection) and one.id for one in refused] == ["17"]
        delta.commit()
    assert store.count("docs__g1_a") == 49


def test_half_precision_that_overflows(tmp_path: Path, place: Place) -> None:
    shape = shape_of(dtype="float16")
    with contextlib.closing(place.open()) as store:
        rows = rows_of(shape, range(5))
        values = rows.column("embedding").combine_chunks().flatten().to_numpy().copy()
        values[30] = float("inf")
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(values, pa.float16()), type=shape.vector)
        rows = rows.set_column(rows.num_columns - 1, shape.schema.field("embedding"), vectors)
        from pipeline.feeds.unit_rows import without_unfit

        fit, refused = without_unfit(store, rows, shape)
        assert ([one.id for one in refused], fit.num_rows) == (["1"], 4)
        assert "can't hold" in refused[0].reason


def test_grants_of_the_view_stay_and_views_on_it_are_told(nights: Nights, place: Place) -> None:
    schema = place.spec.name.partition(".")[0]
    nights.night(range(10))
    nights.feed()
    place.client.execute(f"CREATE ROLE {schema}_app LOGIN")
    place.client.execute(f"GRANT SELECT ON {schema}.docs TO {schema}_app WITH GRANT OPTION")
    place.client.execute(f"GRANT SELECT ON {schema}.docs TO PUBLIC")
    grants = "SELECT relacl FROM pg_class WHERE oid = '{}.docs'::regclass"
    before = place.client.execute(grants.format(schema)).fetchone()
    nights.feed(rebuild=True)
    after = place.client.execute(grants.format(schema)).fetchone()
    assert sorted(str(after[0]).strip("{}").split(",")) == sorted(str(before[0]).strip("{}").split(","))
    place.client.execute(f"CREATE VIEW {schema}.english AS SELECT id FROM {schema}.docs WHERE lang = 'en'")
    with pytest.raises(InputError, match=r"other views or functions depend on it"):
        nights.feed(rebuild=True)
    assert_same_rows(nights)
    place.client.execute(f"DROP VIEW {schema}.english")
    assert nights.feed().action in ("verified and shown what was loaded", "nothing to do")


def test_the_relation_has_the_columns_that_readers_expect(nights: Nights, place: Place) -> None:
    nights.night(range(5))
    nights.feed()
    cursor = place.client.execute(f"SELECT * FROM {place.spec.name} ORDER BY id")
    assert [column.name for column in cursor.description] == [
        "id", "title", "lang", "number", "content_hash", "row_hash", "embedding",
    ]  # fmt: skip
    assert [row[0] for row in cursor.fetchall()] == ["0", "1", "2", "3", "4"]
    found = place.client.execute(
        f"SELECT id FROM {place.spec.name} ORDER BY embedding <=> "
        f"(SELECT embedding FROM {place.spec.name} WHERE id = '3') LIMIT 1"
    )
    assert found.fetchone() == ("3",)
    indexes = place.client.execute(
        "SELECT indexdef FROM pg_indexes WHERE schemaname = %s", [place.spec.name.split(".")[0]]
    )
    assert any("USING hnsw (embedding" in definition and "cosine" in definition for (definition,) in indexes.fetchall())


def test_settings_of_the_index(store: PostgresStore, place: Place) -> None:
    shape = shape_of(index=Index(kind="hnsw", m=8, ef_construction=32))
    load(store, shape, {"u": rows_of(shape, range(50))})
    indexes = place.client.execute(
        "SELECT indexdef FROM pg_indexes WHERE schemaname = %s", [place.spec.name.split(".")[0]]
    )
    assert any("m='8', ef_construction='32'" in definition for (definition,) in indexes.fetchall())
    bare = shape_of(index=Index(kind="none"))
    load(store, bare, {"u": rows_of(bare, range(50))}, "docs__g2_b")
    names = place.client.execute("SELECT indexname FROM pg_indexes WHERE tablename = 'docs__g2_b'").fetchall()
    assert names == [("docs__g2_b_pkey",)]


def test_a_bad_index_setting_is_stopped_by_its_recall(tmp_path: Path, place: Place) -> None:
    """With two neighbours a node and two candidates the graph of many alike vectors falls apart."""
    nights = nights_of(tmp_path / "n", build_tiny_model(tmp_path / "m"), place)
    chosen = random.Random(0)
    nights.night(changed={number: f"{chosen.getrandbits(99):x} {chosen.getrandbits(99):x}" for number in range(3000)})
    bad = nights.with_feed(index=FeedIndexSpec(kind="hnsw", m=2, ef_construction=4))
    with pytest.raises(
        GateFailed, match=r"finds 0\.\d+ of the ten nearest rows, less than feeds.limits.min_recall \(0.95\)"
    ):
        bad.feed()
    with nights.store() as store:
        assert not any(one.live for one in store.generations())
    assert nights.feed(rebuild=True).verification.recall >= 0.95


class Reader(threading.Thread):
    """It asks the live name in a loop, and keeps what it saw."""

    def __init__(self, url: str, query: str) -> None:
        super().__init__(daemon=True)
        self.url, self.query = url, query
        self.seen: list[Any] = []
        self.errors: list[str] = []
        self.ended = threading.Event()

    def run(self) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            while not self.ended.is_set():
                try:
                    self.seen.append(connection.execute(self.query).fetchone())
                except psycopg.Error as error:
                    self.errors.append(str(error))
                time.sleep(0.001)


def test_a_reader_sees_whole_versions_alone(
    nights: Nights, place: Place, tmp_path: Path, postgres: PostgresServer
) -> None:
    nights.night(range(80))
    nights.feed()
    columns = "count(*), count(DISTINCT vector_dims(embedding)), sum(number), min(vector_dims(embedding))"
    query = f"SELECT {columns} FROM {place.spec.name}"
    reader = Reader(postgres.url, query)
    reader.start()
    allowed = set()

    def note() -> None:
        allowed.add(place.client.execute(query).fetchone())

    note()
    for step in range(3):
        nights.night(range(80 + step, 90 + step), changed={step: f"new {step}"}, gone=[10 + step])
        nights.feed()
        note()
    smaller = build_tiny_model(tmp_path / "m", seed=3, dense=16)
    nights.spec = dataclasses.replace(nights.spec, model=dataclasses.replace(nights.spec.model, path=str(smaller)))
    reindexing.reindex(nights.spec, InProcess(), new_model=True)
    nights.feed(new_generation=True)
    note()
    reader.ended.set()
    reader.join(10)
    assert not reader.errors
    assert set(reader.seen) <= allowed
    assert len(set(reader.seen)) >= 3
    assert {dims for *_, dims in allowed} == {32, 16}


def test_a_server_that_restarts_costs_a_wait(tmp_path: Path, tiny_model: Path) -> None:
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    folder.chmod(0o755)
    server = PostgresServer(folder)
    spec = FeedSpec(store="postgres", url=server.url, name="docs", limits=FeedLimitSpec(timeout_s=30))
    nights = nights_of(tmp_path / "n", tiny_model, Place(kind="postgres", spec=spec, forget_marker=lambda name: None))
    nights.night(range(40))
    nights.feed()
    with contextlib.closing(open_store(nights.spec.feeds["docs"])) as store:
        (live,) = store.generations()
        assert store.count(live.name) == 40
        server.stop(signal.SIGQUIT)
        counted: list[int] = []
        waiting = threading.Thread(target=lambda: counted.append(store.count(live.name)))
        waiting.start()
        time.sleep(0.5)
        server.start()  # in this thread, whose end is the server's
        waiting.join(30)
        assert counted == [40]
        server.stop()
    with pytest.raises(InputError, match=r"check feeds.url, and that the server runs"):
        nights.feed()


def test_table_types_reach_it(tmp_path: Path, tiny_model: Path, place: Place) -> None:
    """float16 and binary tables go as they are, int8 ones as the floats that they stand for."""
    for dtype, sql_type in [("float16", "halfvec(32)"), ("ubinary", "bit(32)"), ("int8", "vector(32)")]:
        nights = nights_of(tmp_path / dtype, tiny_model, place)
        nights.spec = dataclasses.replace(nights.spec, table=dataclasses.replace(nights.spec.table, dtype=dtype))
        nights.night(range(40))
        found = nights.feed(rebuild=True)
        assert found.verification.passed
        assert_same_rows(nights)
        kind = place.client.execute(
            "SELECT format_type(atttypid, atttypmod) FROM pg_attribute "
            "WHERE attrelid = %s::regclass AND attname = 'embedding'",
            [place.spec.name],
        )
        assert kind.fetchone() == (sql_type,)


def test_an_empty_version(nights: Nights) -> None:
    nights.night(range(3))
    pq.write_table(pa.table({"id": ["a"]}), nights.root / "unused.parquet")
    nights.feed()
    nights.night(range(3, 5), gone=[0, 1, 2])
    assert nights.feed(allow_deletes=True).deleted == 3
    assert_same_rows(nights)
