"""All steps that bring a store to a version, for tests that break in between: a load, its index, a switch and a sync."""

import contextlib
import dataclasses
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa

from pipeline.feed_spec import FeedLimitSpec, FeedSpec
from pipeline.feeds.registry import open_store
from tests.feeds.faults import Faults
from tests.feeds.rows import marker_of, rows_of, shape_of
from tests.feeds.stores import Place
from tests.feeds.test_contract import assert_same, held

NAME = "docs__g1_a"
SHAPE = shape_of()
UNITS = {"u1": rows_of(SHAPE, range(40)), "u2": rows_of(SHAPE, range(40, 60))}
UPSERTS, DELETES = rows_of(SHAPE, [*range(10, 20), *range(60, 65)], seed=1), ["0", "1", "never there"]
EXPECTED = pa.concat_tables(
    [rows_of(SHAPE, [*range(2, 10), *range(20, 60)]), rows_of(SHAPE, [*range(10, 20), *range(60, 65)], seed=1)]
)


def feed(spec: FeedSpec) -> None:
    """Bring a store to version 2 by way of version 1, from whatever an earlier call left."""
    with contextlib.closing(open_store(spec)) as store:
        store.check(SHAPE)
        marker = next((found.marker for found in store.generations()), None)
        if marker is None or not marker.applied:
            begun, done = marker_of(SHAPE, NAME, target=1), marker_of(SHAPE, NAME, applied=1)
            store.create(SHAPE, begun)
            with contextlib.closing(store.loader(NAME, SHAPE)) as loader:
                for unit, rows in UNITS.items():
                    assert loader.load(unit, [rows]).rejected == ()
            store.finish_load(SHAPE, begun, done, [])
            marker = done
        if not marker.indexed:
            store.build_index(NAME, SHAPE, lambda share: None)
            ready = dataclasses.replace(marker, indexed=True)
            store.mark(ready, marker)
            marker = ready
        store.switch(NAME)
        if marker.applied == 1:
            before = marker_of(SHAPE, NAME, 1, target=2, indexed=True)
            store.mark(before, marker)
            with store.delta(SHAPE, before, marker_of(SHAPE, NAME, 2, indexed=True)) as delta:
                delta.delete(pa.array(DELETES))
                assert not delta.upsert(UPSERTS)
                delta.commit()


def assert_fed(place: Place) -> None:
    with contextlib.closing(place.open()) as store:
        (found,) = store.generations()
        assert (found.marker, found.live) == (marker_of(SHAPE, NAME, 2, indexed=True), True)
        assert_same(store, SHAPE, held(store, SHAPE), EXPECTED)


def first_and_last(calls: list[str]) -> list[int]:
    """The numbers of the first and the last call of each name."""
    return sorted({calls.index(name) for name in calls} | {len(calls) - 1 - calls[::-1].index(name) for name in calls})


def feed_until_killed(spec: FeedSpec, faults: Faults, name: str, fault: str) -> None:
    """Feed in a process of its own, which the stand-in kills at a call of this name."""
    program = "import sys; sys.stdin.readline(); from tests.feeds.steps import feed_at; feed_at(*sys.argv[1:])"
    command = [sys.executable, "-c", program, spec.store, spec.url]
    child = subprocess.Popen(command, cwd=Path(__file__).parents[2], stdin=subprocess.PIPE)
    faults.victim = child.pid
    faults.at(name, fault)
    child.communicate(b"go\n", timeout=60)
    assert child.returncode == -signal.SIGKILL


def feed_at(store: str, url: str) -> None:
    feed(FeedSpec(store=store, url=url, name="docs", limits=FeedLimitSpec(timeout_s=20)))
