"""Whole feeds on every store: loads, nights, another model, what was changed behind their back, and every flag."""

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.errors import GateFailed, InputError
from pipeline.runs import feed as runs
from pipeline.runs import reindex as reindexing
from pipeline.runs.feed_plan import Wishes, version_of
from pipeline.table.operations import purge, restore
from tests.feeds.nights import Nights, assert_same_rows, crashing, nights_of
from tests.feeds.stores import WHOLE, Place
from tests.inline import InProcess
from tests.tiny import build_tiny_model


@pytest.fixture(params=WHOLE)
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    with request.getfixturevalue(f"{request.param}_places")() as place:
        yield place


@pytest.fixture
def nights(tmp_path: Path, tiny_model: Path, place: Place) -> Nights:
    return nights_of(tmp_path / "n", tiny_model, place)


@pytest.fixture(scope="session")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("other") / "model", seed=7)


def test_nights_bring_the_store_to_each_version(nights: Nights) -> None:
    nights.night(range(120))
    first = nights.feed()
    assert (first.sent, first.deleted, first.switched, first.exit_code) == (120, 0, True, 0)
    assert first.verification is not None
    assert (first.verification.rows, first.verification.sampled, first.verification.queries) == (120, 120, 64)
    assert_same_rows(nights)
    again = nights.feed()
    assert (again.action, again.sent, again.verification) == ("nothing to do", 0, None)
    nights.night(range(120, 130), changed={3: "new", 4: "newer"}, gone=[0, 1, 2])
    second = nights.feed()
    assert (second.sent, second.deleted, second.switched) == (12, 3, False)
    assert_same_rows(nights)
    nights.night([0], changed={3: "new again"}, gone=[129])
    nights.night(gone=[0, 4])
    third = nights.feed()  # two versions at once; an id that came and went is deleted all the same
    assert (third.sent, third.deleted) == (1, 3)
    assert_same_rows(nights)
    assert nights.verify().verification.passed


def test_a_rollback_and_a_purge_reach_the_store(nights: Nights) -> None:
    nights.night(range(60))
    nights.night(changed={5: "other", 6: "words"}, gone=[50])
    nights.feed()
    restore.roll_back(nights.table, 1)
    assert (nights.feed().sent, nights.feed().action) == (3, "nothing to do")
    assert_same_rows(nights)
    restore.release(nights.table)
    purge.purge(nights.table, ["7", "8"])
    found = nights.feed()
    assert (found.sent, found.deleted) == (0, 2)
    assert_same_rows(nights)


def test_incomplete_lists_of_changes_are_replaced_by_a_comparison(nights: Nights) -> None:
    nights.night(range(60))
    nights.feed()
    nights.night(changed={5: "other", 6: "words"}, gone=[50])
    purge.purge(nights.table, ["6"])
    found = nights.feed()
    assert any("keys were compared" in note for note in found.notes)
    assert (found.sent, found.deleted) == (1, 2)
    assert_same_rows(nights)


def test_another_model_is_loaded_beside_and_shown_in_one_step(nights: Nights, other_model: Path) -> None:
    nights.night(range(70))
    first = nights.feed()
    nights.spec = dataclasses.replace(nights.spec, model=dataclasses.replace(nights.spec.model, path=str(other_model)))
    reindexing.reindex(nights.spec, InProcess(), new_model=True)
    with pytest.raises(InputError, match=r"another model or other settings of it.*--new-generation"):
        nights.feed()
    second = nights.feed(new_generation=True)
    assert (second.sent, second.switched) == (70, True)
    assert second.generation != first.generation
    assert_same_rows(nights)
    nights.night(changed={1: "x"})
    assert nights.feed().sent == 1
    assert_same_rows(nights)
    back = runs.switch_back(nights.spec, "docs")
    assert (back.generation, back.version) == (first.generation, 1)
    with pytest.raises(InputError, match=r"--switch shows it"):
        nights.feed()
    assert nights.feed(switch=True).switched
    assert_same_rows(nights)
    assert [one["name"] for one in runs.drop_old(nights.spec, "docs").generations] == [second.generation]
    with pytest.raises(InputError, match="no earlier generation"):
        runs.switch_back(nights.spec, "docs")
    assert_same_rows(nights)


def test_other_columns_are_a_new_generation_too(nights: Nights) -> None:
    nights.night(range(30))
    nights.feed()
    other = nights.with_feed(columns=("title",), text=True)
    with pytest.raises(InputError, match=r"columns .*--new-generation"):
        other.feed()
    kept = other.feed(new_generation=True, no_switch=True)
    assert not kept.switched
    assert_same_rows(nights)
    other.night(range(30, 33))
    assert other.feed(switch=True).switched
    assert_same_rows(other)


def test_what_a_dry_run_says_is_what_is_done(nights: Nights) -> None:
    nights.night(range(40))
    told = runs.forecast(nights.spec, "docs")
    assert (told.pending, told.sent, told.exit_code) == (True, 40, 10)
    assert nights.feed().sent == 40
    told = runs.forecast(nights.spec, "docs")
    assert (told.pending, told.exit_code) == (False, 0)
    nights.night(range(40, 44), changed={3: "new"}, gone=[0, 1])
    told = runs.forecast(nights.spec, "docs")
    done = nights.feed()
    assert (told.sent, told.deleted, told.exit_code) == (done.sent, done.deleted, 10) == (5, 2, 10)


def test_many_deletes_have_to_be_allowed(nights: Nights) -> None:
    nights.night(range(40))
    nights.feed()
    nights.night(gone=range(20))
    before = nights.held()
    for refused in (nights.feed, lambda: runs.forecast(nights.spec, "docs")):
        with pytest.raises(InputError, match=r"20 of 40 rows would be deleted.*--allow-deletes"):
            refused()
    assert nights.held() == before
    assert nights.feed(allow_deletes=True).deleted == 20
    assert_same_rows(nights)


def test_a_version_that_is_asked_for(nights: Nights) -> None:
    nights.night(range(10))
    nights.night(range(10, 15))
    nights.night(range(15, 20))
    assert nights.feed(to=2).sent == 15
    assert nights.feed(to=2).action == "nothing to do"
    with pytest.raises(InputError, match="a feed goes forward only"):
        nights.feed(to=1)
    assert nights.feed().sent == 5
    assert_same_rows(nights)


def test_another_table_is_not_taken_for_this_one(
    nights: Nights, tmp_path: Path, tiny_model: Path, place: Place
) -> None:
    nights.night(range(20))
    nights.feed()
    nights.night(range(20, 22))
    nights.feed()
    other = nights_of(tmp_path / "other", tiny_model, place)
    other.night(range(50, 60))
    for refused in (other.feed, lambda: runs.forecast(other.spec, "docs")):
        with pytest.raises(InputError, match=r"the store holds version 2 .* which has only 1.*--rebuild"):
            refused()
    other.night(range(60, 62))
    with pytest.raises(InputError, match=r"a version 2 that is not this table's.*--rebuild"):
        other.feed()
    assert_same_rows(nights)
    assert other.feed(rebuild=True).switched
    assert_same_rows(other)


def test_a_lost_marker_is_found_again(nights: Nights, place: Place) -> None:
    nights.night(range(40))
    generation = nights.feed().generation
    place.forget_marker(generation)
    for refused in (nights.feed, nights.verify):
        with pytest.raises(InputError, match=r"without a marker.*--adopt"):
            refused()
    nights.night(range(40, 44), gone=[3])  # what it lacks is sent
    adopted = nights.feed(adopt=True)
    assert (adopted.generation, adopted.sent, adopted.deleted) == (generation, 4, 1)
    assert_same_rows(nights)
    assert nights.feed().action == "nothing to do"


def test_an_index_that_finds_too_little_is_not_shown(nights: Nights) -> None:
    nights.night(range(60))
    strict = nights.with_feed(limits=dataclasses.replace(nights.spec.feeds["docs"].limits, min_recall=1.0))
    assert strict.feed().verification.recall == 1.0
    from pipeline.feeds import recall

    measure = recall.measure

    def worse(*arguments):
        found = measure(*arguments)
        return dataclasses.replace(found, share=0.9)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recall, "measure", worse)
        with pytest.raises(GateFailed, match=r"finds 0\.900 of the ten nearest"):
            nights.feed(rebuild=True)
    assert nights.feed().action == "nothing to do"
    assert_same_rows(nights)


@pytest.mark.parametrize("name", ["nobody", ""])
def test_a_feed_that_is_not_there(nights: Nights, name) -> None:
    with pytest.raises(InputError, match="has no feed"):
        runs.feed(nights.spec, name, None, Wishes())


def test_columns_that_are_not_there(nights: Nights) -> None:
    nights.night(range(3))
    for changes, message in [
        ({"columns": ("nothing",)}, r"names 'nothing', which the table doesn't have; it has title"),
        ({"columns": ("content_hash",)}, "has by itself"),
        ({"metric": "hamming"}, r"hamming"),
        ({"dtype": "binary"}, r"table.dtype: ubinary|holds .*float32"),
    ]:
        with pytest.raises(InputError, match=message):
            nights.with_feed(**changes).feed()
    with nights.store() as store:
        assert not store.generations()


def test_a_sync_that_died_is_not_taken_back(nights: Nights) -> None:
    """It had begun towards version 2: what it sent is not version 1's any more, whatever is asked for next."""
    nights.night(range(20))
    nights.night(range(20, 25), changed={1: "x"}, gone=[2])
    generation = nights.feed(to=1).generation
    with nights.store() as store:
        (live,) = store.generations()
        assert live.marker is not None
        store.mark(dataclasses.replace(live.marker, target=2, target_of=version_of(nights.table, 2)), live.marker)
    with pytest.raises(InputError, match="holds version 2, and 1 is asked for"):
        nights.feed(to=1)
    assert nights.feed().generation == generation
    assert_same_rows(nights)


def test_a_sync_towards_a_version_that_the_table_lost(nights: Nights) -> None:
    nights.night(range(20))
    nights.feed()
    with nights.store() as store:
        (live,) = store.generations()
        assert live.marker is not None
        store.mark(dataclasses.replace(live.marker, target=2, target_of="lost"), live.marker)
    nights.night(range(20, 23))
    found = nights.feed()
    assert any("keys were compared" in note for note in found.notes)
    assert found.sent == 3
    assert_same_rows(nights)


def test_units_are_as_small_as_a_writer_can_hold(nights: Nights) -> None:
    small = nights.with_feed(
        limits=dataclasses.replace(nights.spec.feeds["docs"].limits, bytes_in_flight=1000, rate=4000.0)
    )
    small.night(range(60))
    started = time.monotonic()
    assert small.feed().sent == 60
    assert time.monotonic() - started > 52 / 4000
    assert_same_rows(small)


def test_an_index_that_is_not_deferred(nights: Nights) -> None:
    early = nights.with_feed(index=dataclasses.replace(nights.spec.feeds["docs"].index, defer=False))
    early.night(range(40))
    assert early.feed().verification.passed
    assert_same_rows(early)


@pytest.mark.parametrize("calls", [5, 9])
def test_a_load_whose_version_was_erased_begins_anew(nights: Nights, calls: int) -> None:
    """It had begun, or was not proven yet, when a purge took rows out of its version for good."""
    nights.night(range(30))
    with crashing(calls, after=False):
        nights.feed()
    purge.purge(nights.table, ["3"])
    assert nights.feed().switched
    assert_same_rows(nights)
    with nights.store() as store:
        assert len(store.generations()) == 1


def test_a_sync_reads_no_vectors_of_parts_that_did_not_change(nights: Nights) -> None:
    nights.night(range(800))
    nights.feed()
    before = {info.path for info in nights.table.list("data/")}
    nights.night(range(800, 810))
    assert before < {info.path for info in nights.table.list("data/")}
    found = nights.feed()
    assert (found.sent, found.verification.sampled) == (10, 10)
    vectors = keys = 0
    for path in before:
        with nights.table.open(path) as file:
            group = pq.ParquetFile(file).metadata.row_group(0)
            sizes = {
                group.column(number).path_in_schema.split(".")[0]: group.column(number).total_compressed_size
                for number in range(group.num_columns)
            }
        vectors += sizes["embedding"]
        keys += sizes["id"] + sizes["content_hash"] + sizes["row_hash"]
    # The keys of all rows are read to look back, those of new parts twice, and 10 new vectors.
    assert found.read_bytes < 1.5 * keys + 20_000 < vectors
