"""What a feed decides in unusual states: nothing wrong is shown, nothing is forgotten, and the plain command finds a way."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest

import pipeline
from pipeline.errors import GateFailed, InputError
from pipeline.feed_spec import FeedLimitSpec
from pipeline.feeds import verify
from pipeline.runs import feed as runs
from pipeline.runs import feed_plan, feed_search
from pipeline.runs.feed_plan import Wishes
from pipeline.table.operations import purge, restore
from tests.feeds.nights import Nights, assert_same_rows, crashing, nights_of
from tests.feeds.postgres_place import PostgresServer
from tests.feeds.stores import Place


@pytest.fixture
def place(postgres_places: Callable[[], contextlib.AbstractContextManager[Place]]) -> Iterator[Place]:
    with postgres_places() as place:
        yield place


@pytest.fixture
def nights(tmp_path: Path, tiny_model: Path, place: Place) -> Nights:
    return nights_of(tmp_path / "n", tiny_model, place)


def damage(place: Place, generation: str, name: str) -> None:
    schema = place.spec.name.partition(".")[0]
    place.client.execute(f"DELETE FROM {schema}.{generation} WHERE id = %s", [name])


def test_another_tables_store_is_not_repaired(nights: Nights, tmp_path: Path, tiny_model: Path, place: Place) -> None:
    nights.night(range(40))
    nights.feed()
    other = nights_of(tmp_path / "other", tiny_model, place)
    other.night(range(3))
    for look in (lambda: other.verify(), lambda: other.verify(repair=True)):
        with pytest.raises(InputError, match="a version 1 that is not this table's"):
            look()
    vector = pipeline.vectors(pipeline.read(other.table.url).to_table())[0]
    with pytest.raises(InputError, match="a version 1 that is not this table's"):
        feed_search.ask(other.spec, "docs", vector, 3, [], function="cosine", compare=False)
    assert_same_rows(nights)


def test_many_deletes_are_no_new_generation(nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_plan, "FEW_ROWS", 5)
    nights.night(range(60))
    nights.feed()
    nights.night(gone=range(50))
    for refused in (nights.feed, lambda: runs.forecast(nights.spec, "docs")):
        with pytest.raises(InputError, match=r"50 of 60 rows would be deleted"):
            refused()
    assert runs.forecast(nights.spec, "docs", Wishes(allow_deletes=True)).pending
    assert nights.feed(allow_deletes=True).switched
    assert_same_rows(nights)


def test_rows_that_came_and_went_are_no_deletes(nights: Nights) -> None:
    nights.night(range(20))
    nights.feed()
    nights.night(range(20, 80))
    restore.roll_back(nights.table, 1)
    restore.release(nights.table)
    assert runs.forecast(nights.spec, "docs").pending
    nights.feed()
    assert_same_rows(nights)


def test_differences_that_were_found_are_not_forgotten(nights: Nights, place: Place) -> None:
    nights.night(range(30))
    generation = nights.feed().generation
    damage(place, generation, "7")
    nights.night(range(30, 33))
    with pytest.raises(GateFailed, match=r"1 missing \('7'\).*--repair"):
        nights.feed()
    assert runs.forecast(nights.spec, "docs").sent == 1
    healed = nights.feed()
    assert any("the last look found differences" in note for note in healed.notes)
    assert (healed.sent, healed.exit_code) == (1, 0)
    assert_same_rows(nights)
    assert nights.feed().action == "nothing to do"


def test_a_generation_is_proven_before_it_is_shown(nights: Nights, place: Place) -> None:
    nights.night(range(30))
    generation = nights.feed(no_switch=True).generation
    assert any("--switch shows it" in note for note in nights.feed().notes)
    damage(place, generation, "7")
    for _ in range(2):
        with pytest.raises(GateFailed, match=r"1 missing \('7'\)"):
            nights.feed(switch=True)
    with nights.store() as store:
        assert not any(one.live for one in store.generations())
    assert nights.feed(rebuild=True).switched
    assert_same_rows(nights)


def test_a_rebuild_loads_anew(nights: Nights, place: Place) -> None:
    nights.night(range(40))
    first = nights.feed().generation
    second = nights.feed(rebuild=True).generation
    damage(place, second, "7")
    runs.switch_back(nights.spec, "docs")
    third = nights.feed(rebuild=True)
    assert (third.sent, third.generation not in (first, second)) == (40, True)
    assert_same_rows(nights)


def test_a_rebuild_that_was_stopped_goes_on(nights: Nights) -> None:
    small = nights.with_feed(limits=FeedLimitSpec(bytes_in_flight=1000, writers=1))
    small.night(range(60))
    small.feed()
    with crashing(9, after=False):
        small.feed(rebuild=True)
    with small.store() as store:
        (begun,) = [one.name for one in store.generations() if not one.live]
    found = small.feed(rebuild=True)
    assert found.generation == begun
    assert any("were loaded before" in note for note in found.notes)
    assert_same_rows(small)


def test_switching_back_is_not_undone_by_a_night(nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_plan, "FEW_ROWS", 5)
    nights.night(range(40))
    nights.feed()
    second = nights.feed(rebuild=True).generation
    runs.switch_back(nights.spec, "docs")
    nights.night(changed={number: f"new {number}" for number in range(30)})
    assert nights.feed().generation != second
    assert_same_rows(nights)


def test_a_hidden_generation_catches_up_over_a_purge(nights: Nights) -> None:
    nights.night(range(30))
    nights.feed(no_switch=True)
    nights.night(range(30, 35))
    purge.purge(nights.table, ["31"])
    assert not nights.feed().switched
    assert nights.feed(switch=True).switched
    assert_same_rows(nights)


def test_a_load_that_refused_too_much_begins_anew(
    nights: Nights, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    nights.night(range(20))
    from pipeline.feeds import unit_rows
    from pipeline.feeds.store import Rejection

    fits = unit_rows.without_unfit

    def bad(store, rows, shape):
        fit, refused = fits(store, rows, shape)
        keep = [name != "7" for name in fit.column("id").to_pylist()]
        return fit.filter(pa.array(keep)), [*refused, Rejection(id="7", reason="no")] if not all(keep) else refused

    with monkeypatch.context() as patch:
        patch.setattr(unit_rows, "without_unfit", bad)
        with pytest.raises(GateFailed, match="refuses 1 rows"):
            nights.feed()
    assert nights.feed().switched
    assert_same_rows(nights)
    with nights.store() as store:
        assert len(store.generations()) == 1


def test_an_adoption_that_was_stopped_is_none(nights: Nights, place: Place) -> None:
    nights.night(range(40))
    generation = nights.feed().generation
    place.forget_marker(generation)
    nights.night(range(40, 43))
    for calls in range(3, 14):
        for after in (False, True):
            with crashing(calls, after=after):
                nights.feed(adopt=True)
            place.client.execute("SELECT 1")
            with contextlib.suppress(InputError):  # it has no marker yet
                nights.feed()
                assert_same_rows(nights)


def test_the_marker_table_itself_is_gone(nights: Nights, place: Place) -> None:
    nights.night(range(20))
    nights.feed()
    schema = place.spec.name.partition(".")[0]
    place.client.execute(f"DROP TABLE {schema}.embedding_feeds, {schema}.embedding_feed_units")
    with pytest.raises(InputError, match=r"without a marker.*--adopt"):
        nights.feed()
    assert nights.feed(adopt=True).exit_code == 0
    assert nights.feed().action == "nothing to do"
    assert_same_rows(nights)


def test_switch_shows_what_a_rebuild_left_hidden(nights: Nights) -> None:
    nights.night(range(20))
    nights.feed()
    with pytest.raises(InputError, match=r"no generation to show.*--new-generation"):
        nights.feed(switch=True)
    hidden = nights.feed(rebuild=True, no_switch=True).generation
    shown = nights.feed(switch=True)
    assert (shown.generation, shown.switched) == (hidden, True)


def test_a_load_without_a_switch_stays_hidden_when_it_goes_on(nights: Nights, other: Nights) -> None:
    nights.night(range(40))
    nights.feed()
    with crashing(8, after=False):
        other.feed(new_generation=True, no_switch=True)
    found = other.feed()
    assert not found.switched
    assert_same_rows(nights)
    assert other.feed(switch=True).switched
    assert_same_rows(other)


@pytest.fixture
def other(nights: Nights) -> Nights:
    return nights.with_feed(columns=("title",))


def test_names_alike_are_left_alone(nights: Nights, place: Place) -> None:
    schema = place.spec.name.partition(".")[0]
    place.client.execute(f"CREATE TABLE {schema}.docs__golden AS SELECT 1 AS one")
    place.client.execute(f"CREATE TABLE {schema}.docs__green__g1_ab AS SELECT 1 AS one")
    nights.night(range(10))
    assert nights.feed().switched
    nights.feed(rebuild=True)
    runs.drop_old(nights.spec, "docs")
    assert place.client.execute(f"SELECT * FROM {schema}.docs__golden, {schema}.docs__green__g1_ab").fetchall() == [
        (1, 1)
    ]


def test_a_purge_tells_of_generations_that_are_kept(nights: Nights) -> None:
    nights.night(range(20))
    first = nights.feed().generation
    nights.feed(rebuild=True)
    purge.purge(nights.table, ["7"])
    assert any(first in note and "purged" in note for note in nights.feed().notes)


def test_a_look_amid_a_feed_is_made_again(nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    nights.night(range(20))
    nights.feed()
    nights.night(range(20, 24), gone=[3])
    compare = verify.compare_keys
    once = threading.Event()

    def amid(*arguments):
        if not once.is_set():
            once.set()
            nights.feed()
        return compare(*arguments)

    monkeypatch.setattr(verify, "compare_keys", amid)
    assert nights.verify().exit_code == 0


def test_dead_letters_are_those_of_the_version(nights: Nights, place: Place) -> None:
    lenient = nights.with_feed(limits=FeedLimitSpec(max_failed_rows=3))
    nights.night(range(20))
    lenient.feed()
    nights.documents["5"]["title"] = "a\0"
    nights.night()
    with crashing(7, after=False):
        lenient.feed()
    assert lenient.verify().exit_code == 0
    assert lenient.feed().exit_code in (0, 3)
    assert lenient.verify().exit_code == 0
    assert len(lenient.feed().rejected) == 1


def test_a_slow_pace_keeps_its_transaction(nights: Nights) -> None:
    slow = nights.with_feed(limits=FeedLimitSpec(rate=20.0, lease_s=1))
    nights.night(range(10))
    nights.feed()
    nights.night(range(10, 45))
    assert slow.feed().sent == 35
    assert_same_rows(slow)


def test_a_plain_user_is_enough(nights: Nights, place: Place, postgres: PostgresServer) -> None:
    """It owns its schema, an administrator made the extension, and another user may only look."""
    schema = place.spec.name.partition(".")[0]
    place.client.execute(f"CREATE ROLE {schema}_owner LOGIN; CREATE ROLE {schema}_reader LOGIN")
    place.client.execute(
        f"GRANT ALL ON SCHEMA {schema} TO {schema}_owner; GRANT USAGE ON SCHEMA {schema} TO {schema}_reader"
    )
    owner = nights.with_feed(url=postgres.url.replace("postgres@", f"{schema}_owner@"))
    owner.night(range(30))
    owner.feed()
    owner.night(range(30, 33), gone=[2])
    owner.feed()
    assert owner.verify().exit_code == 0
    owner.feed(rebuild=True)
    runs.switch_back(owner.spec, "docs")
    runs.drop_old(owner.spec, "docs")
    place.client.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {schema}_reader")
    reader = nights.with_feed(url=postgres.url.replace("postgres@", f"{schema}_reader@"))
    assert "shows version" in runs.status(reader.spec, "docs").action
    vector = pipeline.vectors(pipeline.read(owner.table.url).to_table())[0]
    found = feed_search.ask(reader.spec, "docs", vector, 3, ["lang=xx"], function="cosine", compare=True)
    assert (found.rows.num_rows, found.exact) == (0, None)
    assert feed_search.ask(reader.spec, "docs", vector, 3, [], function="cosine", compare=True).agreement == 1.0


def test_fractions_within_structs_come_back(place: Place) -> None:
    from tests.feeds.rows import marker_of, rows_of, shape_of

    shape = shape_of(pa.schema([pa.field("s", pa.struct([pa.field("a", pa.float64())]))]))
    values = [{"a": 1e16}, {"a": 1e300}, {"a": 1.0}, None, {"a": 0.1}, {"a": None}]
    rows = rows_of(shape, range(6)).set_column(
        1, shape.schema.field("s"), pa.array(values, shape.schema.field("s").type)
    )
    with contextlib.closing(place.open()) as store:
        begun = marker_of(shape, "docs__g1_a", target=1)
        store.create(shape, begun)
        with contextlib.closing(store.loader("docs__g1_a", shape)) as loader:
            loader.load("u", [rows])
        store.finish_load(shape, begun, marker_of(shape, "docs__g1_a", 1), [])
        found = store.get("docs__g1_a", shape, [str(number) for number in range(6)]).sort_by("id")
        assert found.column("s").to_pylist() == values
        negative = rows.set_column(
            1, shape.schema.field("s"), pa.array([{"a": -0.0}] * 6, shape.schema.field("s").type)
        )
        assert all("-0.0" in reason for reason in store.unfit(negative).values())


def test_an_older_version_is_told_from_the_beginning(nights: Nights) -> None:
    nights.night(range(30))
    nights.night(changed={number: f"x {number}" for number in range(30)})
    for since, until, count in ((0, 1, 30), (0, 2, 30), (1, 2, 30)):
        found = pa.concat_tables(pipeline.changes(nights.table.url, since, until))
        assert found.num_rows == count
