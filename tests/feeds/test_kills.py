"""A feed that is killed at a call of its store, or at any moment, and runs again: the store holds what it should.

`make chaos` strikes at every call, here a few stand for them.
"""

import dataclasses
import itertools
import os
import random
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from pipeline.feed_spec import FeedLimitSpec, FeedSpec
from pipeline.runs import feed as runs
from pipeline.runs.feed_plan import Wishes
from pipeline.table import snapshot
from tests.feeds import kills
from tests.feeds.kills import Strike
from tests.feeds.nights import Nights, assert_same_rows, nights_of
from tests.feeds.stores import Place

KINDS = ["postgres", "lance", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("files", "milvus"))]
NOWHERE = FeedSpec(store="files", url="-", name="docs")
Places = Callable[[], AbstractContextManager[Place]]


@pytest.fixture(params=KINDS)
def places(request: pytest.FixtureRequest) -> Places:
    found: Places = request.getfixturevalue(f"{request.param}_places")
    return found


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Nights:
    """A table of two versions; feeds only write notes below it."""
    place = Place(kind="files", spec=NOWHERE, forget_marker=lambda name: None)
    nights = nights_of(tmp_path_factory.mktemp("kills") / "n", tiny_model, place)
    nights.night(range(90))
    nights.night(range(90, 97), changed={3: "new", 4: "newer"}, gone=[0, 1])
    return nights


TASKS = {"load": Wishes(), "sync": Wishes(), "new generation": Wishes(new_generation=True)}


def fed(table: Nights, place: Place, task: str) -> Nights:
    """The feed before its task: nothing in the store, or version 1."""
    for info in table.table.list("meta/feeds/"):
        table.table.delete([info.path])
    limits = FeedLimitSpec(timeout_s=20, lease_s=1, writers=2, bytes_in_flight=3000)
    own = dataclasses.replace(place.spec, columns=("title", "lang", "number"), limits=limits)
    nights = Nights(table.root, dataclasses.replace(table.spec, feeds={"docs": own}), table.documents)
    if task != "load":
        nights.feed(to=1)
    return nights


def check(nights: Nights, task: str) -> None:
    """The same feed comes to its end now, and again does nothing."""
    again = TASKS[task] if task != "new generation" else Wishes()
    nights.feed(**dataclasses.asdict(again))
    assert_same_rows(nights)
    assert nights.verify().verification.passed
    with nights.store() as store:
        (live,) = [one for one in store.generations() if one.live]
        assert live.marker is not None
        assert (live.marker.applied, live.marker.target, live.marker.indexed) == (2, None, True)
    assert nights.feed().action == "nothing to do"
    left = runs.drop_old(nights.spec, "docs").generations
    assert len(left) == 1
    assert_same_rows(nights)
    assert snapshot.current(nights.table).version == 2


def strike(table: Nights, places: Places, task: str, found: Strike | None) -> int:
    """Returns how many calls the feed made."""
    with places() as place:
        nights = fed(table, place, task)
        process, told = kills.start(nights.spec, TASKS[task], found)
        process.join(60)
        assert process.exitcode in (kills.ENDED, *kills.KILLED), process.exitcode
        assert (process.exitcode == kills.ENDED) == (found is None or told.value < found.number)
        check(nights, task)
        return int(told.value)


@pytest.mark.parametrize("task", TASKS)
def test_killed_at_some_calls_of_the_store(table: Nights, places: Places, task: str) -> None:
    whole = strike(table, places, task, None)
    assert whole > 10
    chosen = random.Random(task)
    for number in chosen.sample(range(3, whole - 2), 2):
        strike(table, places, task, Strike(number, chosen.random() < 0.5))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("task", TASKS)
def test_killed_at_every_call_of_the_store(table: Nights, places: Places, task: str) -> None:
    for number in itertools.count(1):
        for after in (False, True):
            made = strike(table, places, task, Strike(number, after))
        if made < number:
            break
    assert number > 10


@pytest.mark.timeout(3600)
def test_killed_at_random_moments(table: Nights, places: Places) -> None:
    chosen = random.Random(int(os.environ.get("SEED", "1")))
    for _ in range(int(os.environ.get("FEED_KILLS", "2"))):
        task = chosen.choice(sorted(TASKS))
        with places() as place:
            nights = fed(table, place, task)
            process, _ = kills.start(nights.spec, TASKS[task])
            process.join(chosen.uniform(0.02, 1.2))
            if process.exitcode is None:
                os.kill(process.pid or 0, signal.SIGKILL)
            process.join(30)
            check(nights, task)
