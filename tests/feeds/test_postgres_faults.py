"""A feed of PostgreSQL under kills and lost answers, at every message: the end is that of an undisturbed feed.

A feed runs in a process of its own behind a proxy. At the n-th message it is killed, or its connection is cut before the
request arrives or after it was carried out. Then the same feed runs again, undisturbed. `make chaos` strikes at every
message and at random moments; here a few strikes stand for them.
"""

import contextlib
import dataclasses
import itertools
import multiprocessing
import os
import random
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import psycopg
import pytest

from pipeline.config import RunSpec
from pipeline.errors import PipelineError
from pipeline.execution.local.executor import LocalExecutor
from pipeline.feed_spec import FeedLimitSpec, FeedSpec
from pipeline.runs import feed as runs
from pipeline.runs.feed_plan import Wishes
from tests.feeds.nights import assert_same_rows, nights_of
from tests.feeds.postgres_place import PostgresServer
from tests.feeds.postgres_proxy import Proxy, proxy_of
from tests.feeds.stores import Place

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.feeds.test_postgres_faults", "pipeline.feeds.postgres"])
ENDED, FAILED = 0, 7
LEASE_S = 1.5


def run_feed(spec: RunSpec, wishes: Wishes) -> None:
    """Feed in this process, which ends with whether it came to its end."""
    try:
        with LocalExecutor(spec.resources) as executor:
            runs.feed(spec, "docs", lambda: executor, wishes)
    except PipelineError as error:
        print(error, flush=True)
        os._exit(FAILED)
    os._exit(ENDED)


class Bench:
    """A table with two versions and a database that holds the first, of which copies are made."""

    def __init__(self, root: Path, model: Path, server: PostgresServer, proxy: Proxy) -> None:
        self.server, self.proxy = server, proxy
        place = Place(kind="postgres", spec=self.spec_of("template_of_feeds"), forget_marker=lambda name: None)
        self.execute("DROP DATABASE IF EXISTS template_of_feeds")
        self.execute("CREATE DATABASE template_of_feeds")
        self.nights = nights_of(root, model, place)
        self.nights.night(range(90))
        self.nights.feed()
        self.nights.night(range(90, 97), changed={3: "new", 4: "newer"}, gone=[0, 1])

    def execute(self, query: str) -> None:
        with psycopg.connect(self.server.url, autocommit=True) as connection:
            connection.execute(query)

    def spec_of(self, database: str, *, struck: bool = False) -> FeedSpec:
        folder = self.proxy.folder if struck else self.server.folder
        return FeedSpec(
            store="postgres",
            url=f"postgresql://postgres@/{database}?host={folder}",
            name="docs",
            limits=FeedLimitSpec(timeout_s=10, lease_s=LEASE_S, writers=2),
            columns=("title", "lang", "number"),
        )

    @contextlib.contextmanager
    def database(self, template: str) -> Iterator[str]:
        name = f"d{uuid.uuid4().hex[:10]}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        try:
            yield name
        finally:
            self.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def start(self, database: str, wishes: Wishes) -> BaseProcess:
        spec = dataclasses.replace(self.nights.spec, feeds={"docs": self.spec_of(database, struck=True)})
        process = PROCESSES.Process(target=run_feed, args=(spec, wishes), daemon=True)
        process.start()
        return process

    def check(self, database: str, wishes: Wishes) -> None:
        """The same feed again comes to its end, and the store holds what it should: nothing twice, and no leftovers."""
        own = dataclasses.replace(self.nights, spec=dataclasses.replace(
            self.nights.spec, feeds={"docs": self.spec_of(database)}
        ))  # fmt: skip
        own.feed(**dataclasses.asdict(dataclasses.replace(wishes, new_generation=False)))
        assert_same_rows(own)
        assert own.verify().verification.passed
        with own.store() as store:
            (live,) = [one for one in store.generations() if one.live]
            assert live.marker is not None
            assert (live.marker.applied, live.marker.target, live.marker.indexed) == (2, None, True)
        runs.drop_old(own.spec, "docs")
        with psycopg.connect(own.spec.feeds["docs"].url) as connection:
            tables = connection.execute(
                "SELECT relname FROM pg_class WHERE relname LIKE 'docs\\_\\_g%' AND relkind = 'r'"
            )
            assert len(tables.fetchall()) == 1
            assert connection.execute("SELECT count(*) FROM embedding_feed_units").fetchone() == (0,)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, postgres: PostgresServer) -> Iterator[Bench]:
    with proxy_of(postgres.folder) as proxy:
        yield Bench(tmp_path_factory.mktemp("bench"), tiny_model, postgres, proxy)


TASKS = {
    "load": ("template1", Wishes()),
    "sync": ("template_of_feeds", Wishes()),
    "new generation": ("template_of_feeds", Wishes(new_generation=True)),
}


def strike(bench: Bench, task: str, number: int | None, harm: str) -> tuple[int, bool]:
    """Do harm at a message; returns how many messages passed, and whether there were so many."""
    template, wishes = TASKS[task]
    with bench.database(template) as database:
        process: list[BaseProcess] = []
        ready = threading.Event()

        def kill() -> None:
            ready.wait(5)
            os.kill(process[0].pid or 0, signal.SIGKILL)
            process[0].join()

        bench.proxy.strike(number, kill if harm == "kill" else lambda: None)
        process.append(bench.start(database, wishes))
        ready.set()
        process[0].join(60)
        # A fork server says 255 of a child that was killed before it heard of it.
        assert process[0].exitcode in (ENDED, FAILED, -signal.SIGKILL, 255), process[0].exitcode
        seen, struck = bench.proxy.seen, bench.proxy.struck
        bench.proxy.strike(None)
        bench.check(database, wishes)
    return seen, struck


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("harm", ["kill", "cut"])
def test_a_strike_at_some_messages_changes_nothing(bench: Bench, task: str, harm: str) -> None:
    whole, _ = strike(bench, task, None, harm)
    assert whole > 30
    chosen = random.Random(f"{task}/{harm}").sample(range(5, whole), 4)
    assert any(strike(bench, task, number, harm)[1] for number in chosen)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("harm", ["kill", "cut"])
def test_a_strike_at_any_message_changes_nothing(bench: Bench, task: str, harm: str) -> None:
    for number in itertools.count(1):
        _, struck = strike(bench, task, number, harm)
        if not struck:
            break
    assert number > 30


def test_a_kill_at_a_random_moment_changes_nothing(bench: Bench) -> None:
    kill_at_random(bench, int(os.environ.get("FEED_KILLS", "4")), seed=int(os.environ.get("SEED", "1")))


def kill_at_random(bench: Bench, kills: int, seed: int) -> None:
    chosen = random.Random(seed)
    for _ in range(kills):
        template, wishes = TASKS[chosen.choice(sorted(TASKS))]
        with bench.database(template) as database:
            bench.proxy.strike(None)
            process = bench.start(database, wishes)
            process.join(chosen.uniform(0.01, 0.7))
            if process.exitcode is None:
                os.kill(process.pid or 0, signal.SIGKILL)
            process.join(30)
            bench.check(database, wishes)


def test_two_feeds_at_once_bring_the_same(bench: Bench) -> None:
    for task in TASKS:
        template, wishes = TASKS[task]
        with bench.database(template) as database:
            both = [bench.start(database, wishes) for _ in range(2)]
            for process in both:
                process.join(60)
            assert ENDED in [process.exitcode for process in both]
            bench.check(database, wishes)


@pytest.mark.parametrize("task", ["load", "sync"])
@pytest.mark.parametrize("cuts", [True, False])
@pytest.mark.slow
def test_a_feed_that_was_frozen_changes_nothing_when_it_wakes(bench: Bench, task: str, cuts: bool) -> None:
    """It is stopped amid its work for longer than its lease, another one ends the work, then it goes on. Its connection is
    lost meanwhile, or stays: then the server ends its transaction after a while."""
    template, wishes = TASKS[task]
    whole, _ = strike(bench, task, None, "cut")
    with bench.database(template) as database:
        process: list[BaseProcess] = []
        ready, frozen = threading.Event(), threading.Event()

        def freeze() -> None:
            ready.wait(5)
            os.kill(process[0].pid or 0, signal.SIGSTOP)
            frozen.set()

        # The look back makes up the last messages. Before it a transaction is open.
        bench.proxy.strike(whole // 3, freeze, cuts=cuts)
        process.append(bench.start(database, wishes))
        ready.set()
        assert frozen.wait(20)
        time.sleep(LEASE_S + 0.2)
        bench.check(database, wishes)
        os.kill(process[0].pid or 0, signal.SIGCONT)
        process[0].join(60)
        assert process[0].exitcode in (ENDED, FAILED)
        bench.check(database, wishes)
