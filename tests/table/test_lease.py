"""Leases: of any number of processes one has the table; a dead one's runs out; and all of it is advice."""

import contextlib
import dataclasses
import datetime
import inspect
import os
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import StorageError, TableBusy
from pipeline.storage import Folder, s3
from pipeline.table import clock, layout, lease
from pipeline.table.operations import vacuum
from pipeline.table.process import is_dead, this_process
from tests.servers import S3Server
from tests.table.turns import take_turns

HOUR_S = 3600.0


def new_table() -> Folder:
    """In memory, where time can be made to pass; on a disk the kernel stamps."""
    return Folder(f"memory://leases/{uuid.uuid4().hex}")


@pytest.fixture
def table() -> Folder:
    return new_table()


def let_time_pass(table: Folder, seconds: float) -> None:
    """All that is stamped was so long ago by so much more."""
    for path, file in MemoryFileSystem.store.items():
        if path.startswith(table.url.removeprefix("memory:/")):
            file.created -= datetime.timedelta(seconds=seconds)


def elsewhere(held: lease.Lease) -> lease.Lease:
    """The same of a process on another machine, of which nobody here can tell whether it lives."""
    return dataclasses.replace(held, owner=dataclasses.replace(held.owner, world="another boot", host="elsewhere"))


def test_one_has_the_table_and_the_other_is_told_by_whom_until_when(table):
    held = lease.take(table, "reindex", HOUR_S)
    with pytest.raises(TableBusy) as told:
        lease.take(table, "reindex", HOUR_S)
    assert told.value.exit_code == 0
    found = lease.holder(table, clock.now(table))
    assert f"reindex, process {os.getpid()} on {found.owner.host}, since {held.since}" in str(told.value)
    assert found.until_utc in str(told.value)
    assert 0 <= found.until - HOUR_S - clock.now(table) + 5 <= 6
    held.release()
    assert lease.holder(table, clock.now(table)) is None
    assert lease.take(table, "reindex", HOUR_S).number > held.number


def test_a_renewed_lease_holds_and_one_that_ran_out_is_taken_over(table):
    first = lease.take(table, "reindex", HOUR_S)
    let_time_pass(table, 0.9 * HOUR_S)
    assert first.renew()
    let_time_pass(table, 0.9 * HOUR_S)
    with pytest.raises(TableBusy):
        lease.take(table, "reindex", HOUR_S)
    let_time_pass(table, 0.2 * HOUR_S)
    second = lease.take(table, "reindex", HOUR_S)
    assert not first.renew()
    first.release()  # which changes nothing for the second
    assert second.renew()
    assert lease.holder(table, clock.now(table)) is not None


def test_the_owners_clock_does_not_matter(table, monkeypatch):
    """Only that of the store: an owner whose clock is a day slow has no expired lease, one that is fast none for ever."""
    for wrong in (-86_400, 86_400):
        with monkeypatch.context() as patched:
            patched.setattr(time, "time", lambda wrong=wrong: time.time_ns() / 1e9 + wrong)
            held = lease.take(table, "reindex", HOUR_S)
            with pytest.raises(TableBusy):
                lease.take(table, "reindex", HOUR_S)
            let_time_pass(table, 1.1 * HOUR_S)
            lease.take(table, "reindex", HOUR_S).release()
            assert not held.renew()


def test_a_lease_that_no_listing_shows_yet_is_held_all_the_same(table, monkeypatch):
    listed, asked = Folder.list, []

    def late(folder: Folder, prefix: str = "", temporary: bool = False) -> list:
        if prefix != layout.LEASES:
            return listed(folder, prefix, temporary)
        asked.append(prefix)
        assert len(asked) < 10, "it never finds its own"
        return []

    with monkeypatch.context() as patched:
        patched.setattr(Folder, "list", late)
        held = lease.take(table, "reindex", HOUR_S)
    with pytest.raises(TableBusy):
        lease.take(table, "reindex", HOUR_S)
    assert held.renew()


def test_few_files_stay(table):
    held = lease.take(table, "reindex", HOUR_S)
    for _ in range(20):
        held.renew()
    held.release()
    assert [info.path for info in table.list(layout.LEASES)] == [layout.lease(22)]


def test_a_process_that_is_killed_on_this_machine_gives_the_table_back_at_once(tmp_path):
    table = Folder(str(tmp_path))
    code = (
        "import sys; from pipeline.storage import Folder; from pipeline.table import lease\n"
        "lease.take(Folder(sys.argv[1]), 'reindex', 3600.0); print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, table.url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(TableBusy, match=f"process {process.pid} on"):
            lease.take(table, "reindex")
    finally:
        process.kill()
        process.communicate()
    lease.take(table, "reindex").release()


def test_only_a_process_that_certainly_is_dead_is_told_so():
    me = this_process()
    assert not is_dead(me)
    assert is_dead(dataclasses.replace(me, started="1"))  # its pid is another's now
    assert not is_dead(dataclasses.replace(me, pid=2**22 + 1, world="another machine"))
    assert not is_dead(dataclasses.replace(me, pid=2**22 + 1, world=""))
    assert is_dead(dataclasses.replace(me, pid=2**22 + 1))


def test_who_waits_has_it_when_it_is_given_back(table, monkeypatch, caplog):
    monkeypatch.setattr(lease, "POLL_S", 0.05)
    held = lease.take(table, "reindex", HOUR_S)
    with pytest.raises(TableBusy):
        lease.take_patiently(table, "reindex", HOUR_S, wait_s=0.2)
    assert "waiting for 0.2 s at most" in caplog.text
    threading.Timer(0.3, held.release).start()
    assert lease.take_patiently(table, "reindex", HOUR_S, wait_s=30).number == held.number + 1


def soon(happened) -> None:
    deadline = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_who_outlasts_waits_for_a_sign_of_life_alone(table, monkeypatch, caplog):
    """A run that died on another machine holds up the next one until its lease runs out; one that lives is told of at
    once, and one that gave the table back not at all."""
    monkeypatch.setattr(lease, "POLL_S", 0.05)
    dead = elsewhere(lease.Lease(table=table, number=1, work="embed", seconds=1.0, since="then"))
    assert dead.create()
    with lease.held(table, "embed", HOUR_S, outlasts=True) as held:
        assert held.number == 2
    assert "waiting for a sign of life of that run" in caplog.text
    alive = elsewhere(lease.Lease(table=table, number=4, work="embed", seconds=HOUR_S, since="now"))
    assert alive.create()
    signs = threading.Timer(0.3, alive.renew)
    signs.start()
    with pytest.raises(TableBusy), lease.held(table, "embed", HOUR_S, outlasts=True):
        pass
    signs.join()
    back = threading.Timer(0.3, alive.release)
    back.start()
    with lease.held(table, "embed", HOUR_S, outlasts=True) as held:
        assert held.number == alive.number + 1
    back.join()


def test_a_lease_that_could_not_be_given_back_holds_up_nobody_here(table, monkeypatch, caplog):
    """A disk may be full just then; the process that failed to write may go on, as one of a notebook does."""
    with monkeypatch.context() as patched, lease.held(table, "embed", HOUR_S):
        patched.setattr(Folder, "create_once", lambda *_: (_ for _ in ()).throw(StorageError("the disk is full")))
        patched.setattr(Folder, "read", lambda *_: (_ for _ in ()).throw(StorageError("the disk is full")))
    with lease.held(table, "embed", HOUR_S, outlasts=True) as held:
        assert lease.holder(table, clock.now(table)) is not None
        with pytest.raises(TableBusy):
            lease.take(table, "reindex")
    assert not held.lost


def test_a_block_keeps_its_lease_alive_and_gives_it_back(table):
    with lease.held(table, "reindex", seconds=4) as held:
        soon(lambda: held.number >= 6)
        with pytest.raises(TableBusy):
            lease.take(table, "reindex")
    lease.take(table, "reindex").release()
    with pytest.raises(KeyError), lease.held(table, "reindex"):
        raise KeyError
    lease.take(table, "reindex").release()


def test_a_block_goes_on_without_its_lease(table, caplog, monkeypatch):
    """It may be lost, or storage may fail for a while: the work that is under way is not for that."""
    with lease.held(table, "reindex", seconds=0.4) as held:
        other = None
        while other is None:
            let_time_pass(table, HOUR_S)
            with contextlib.suppress(TableBusy):  # it was renewed in between
                other = lease.take(table, "reindex", HOUR_S)
        soon(lambda: held.lost)
    assert "another run took it" in caplog.text
    other.release()

    def fails(*_):
        raise StorageError("can't create: the disk is gone")

    with lease.held(table, "reindex", seconds=0.4) as held:
        with monkeypatch.context() as patched:
            patched.setattr(Folder, "create_once", fails)
            told = "can't renew a lease, which then runs out by itself: can't create: the disk is gone"
            soon(lambda: told in caplog.text)
        number = held.number
        soon(lambda: held.number > number)
        assert not held.lost
    assert lease.holder(table, clock.now(table)) is None


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"released": false, "seconds": "x", "owner": 1}'])
def test_a_damaged_file_binds_nobody(content, table):
    table.write(layout.lease(7), content)
    assert lease.take(table, "reindex").number == 8


def test_cleaning_removes_all_but_the_last(table, monkeypatch):
    for number in (8, 9, 10):
        table.write(layout.lease(number), b"{}")
    assert vacuum.clean(table).files == ()
    assert [info.path for info in vacuum.clean(table, 0, dry_run=True).leases] == [layout.lease(8), layout.lease(9)]
    vacuum.clean(table, 0)
    assert [info.path for info in table.list(layout.LEASES)] == [layout.lease(10)]


class Section:
    """Who is in it, by the leases that say so."""

    def __init__(self) -> None:
        self.inside: set[str] = set()
        self.ever_two = False

    def enter(self, name: str) -> None:
        self.inside.add(name)
        self.ever_two |= len(self.inside) > 1

    def leave(self, name: str) -> None:
        self.inside.remove(name)


NAMES = ["one", "two", "three"]
SCHEDULES = st.lists(st.tuples(st.sampled_from(NAMES), st.integers(1, 12)), max_size=20)


@given(SCHEDULES, st.integers(0, 3), st.integers(0, 4))
@settings(max_examples=150, deadline=None)
def test_in_any_turns_no_two_have_the_table(schedule, numbers_before, renewals):
    table = new_table()
    for _ in range(numbers_before):
        lease.take(table, "before", HOUR_S).release()
    section = Section()

    def work(name: str):
        def process(place: Folder) -> int:
            taken = 0
            for _ in range(2):
                try:
                    held = lease.take(place, name, HOUR_S)
                except TableBusy:
                    continue
                section.enter(name)
                taken += 1
                for _ in range(renewals):
                    assert held.renew()
                section.leave(name)
                held.release()
            return taken

        return process

    ended, _ = take_turns(table, {name: work(name) for name in NAMES}, schedule)
    assert not section.ever_two
    assert all(isinstance(taken, int) for taken in ended.values()), ended
    assert sum(ended.values()) >= 1
    lease.take(table, "after").release()


class Killed(BaseException):
    pass


@given(
    SCHEDULES,
    st.dictionaries(st.sampled_from(NAMES), st.integers(0, 25), max_size=2),
    st.lists(st.integers(1, 40), max_size=3),
)
@settings(max_examples=150, deadline=None)
def test_killed_and_overtaken_anywhere_one_has_the_table_in_the_end(schedule, killed, passing):
    """Time passes amid the turns; those who die do so before any of their operations, on a machine that nobody sees."""
    table = new_table()
    leases: dict[str, lease.Lease] = {}

    def time_passes(place: Folder) -> None:
        for operations in passing:
            for _ in range(operations):
                place.size("nothing")
            let_time_pass(table, 2 * HOUR_S)

    def work(name: str):
        def process(place: Folder) -> None:
            left = killed.get(name, 10**9)

            class Mortal(Folder):
                def __getattribute__(self, attribute):
                    nonlocal left
                    found = getattr(place, attribute)
                    if callable(found) and attribute in ("list", "read", "create_once", "delete", "write"):
                        left -= 1
                        if left < 0:
                            raise RuntimeError("killed")
                    return found

            for _ in range(3):
                try:
                    held = lease.take(Mortal(table.url), name, HOUR_S)
                    held.owner = elsewhere(held).owner
                    if held.renew():
                        leases[name] = held
                        return
                except TableBusy:
                    continue

        return process

    ended, _ = take_turns(
        table,
        {name: work(name) for name in NAMES} | {"time": time_passes},
        [turn for pair in schedule for turn in (pair, ("time", 3))],
    )
    assert all(result is None or str(result) == "killed" for result in ended.values()), ended
    # Of those who think that they have it, all but one find out when they next look.
    still = [held for held in leases.values() if dataclasses.replace(held, table=table).renew()]
    assert len(still) <= 1
    let_time_pass(table, 2 * HOUR_S)
    last = lease.take(table, "after", HOUR_S)
    assert not any(dataclasses.replace(held, table=table).renew() for held in leases.values())
    assert last.renew()


@pytest.fixture(params=["moto", "rclone"])
def server(request: pytest.FixtureRequest) -> S3Server:
    """The second ignores create-only writes."""
    return request.getfixturevalue(request.param)


def test_on_a_store_it_is_taken_renewed_run_out_and_given_back(server):
    table = Folder(f"{server.make_bucket('leases')}/table", server.storage_options)
    held = lease.take(table, "reindex", 5.0)
    with pytest.raises(TableBusy):
        lease.take(table, "reindex")
    assert held.renew()
    time.sleep(6.1)  # stores stamp whole seconds
    other = lease.take(table, "reindex")
    assert not held.renew()
    other.release()
    lease.take(table, "reindex").release()
    assert len(table.list(layout.LEASES)) == 1


def test_of_many_that_start_in_the_same_instant_on_a_store_one_has_it(server, monkeypatch):
    table = Folder(f"{server.make_bucket('instants')}/table", server.storage_options)
    racers = 4
    together, written, create = threading.Barrier(racers), threading.Barrier(racers), s3.S3.create

    def create_together(store: s3.S3, key: str, data: bytes) -> None:
        if layout.LEASES in key:
            together.wait(30)
        create(store, key, data)
        if layout.LEASES in key and not server.exclusive_creates:
            written.wait(30)  # all have "won"; the one whose bytes stand has

    monkeypatch.setattr(s3.S3, "create", create_together)
    with ThreadPoolExecutor(racers) as pool:
        started = [pool.submit(lease.take, table, "reindex", HOUR_S) for _ in range(racers)]
        errors = [run.exception() for run in started]
    assert sorted(type(error).__name__ for error in errors) == ["NoneType"] + ["TableBusy"] * (racers - 1), errors


@pytest.mark.parametrize("call", range(60))
def test_an_interrupt_at_any_moment_leaves_the_table_free(call, tmp_path):
    """KeyboardInterrupt comes where the main thread makes its n-th call into the module, in it or behind it."""
    table = Folder(str(tmp_path))
    calls = 0

    def interrupt(frame, event, argument):
        nonlocal calls
        # A profiler that raises as a generator goes on would end it outside of its blocks, as no signal does.
        ours = frame.f_code.co_filename == lease.__file__ and not frame.f_code.co_flags & inspect.CO_GENERATOR
        if ours and event in ("call", "return"):
            calls += 1
            if calls == call + 1:
                sys.setprofile(None)
                raise KeyboardInterrupt

    try:
        with contextlib.suppress(KeyboardInterrupt), lease.held(table, "embed", HOUR_S) as held:
            held.renew()
            sys.setprofile(interrupt)
            held.renew()
            sys.setprofile(None)
        sys.setprofile(interrupt)
        with contextlib.suppress(KeyboardInterrupt), lease.held(table, "reindex", HOUR_S):
            pass
    finally:
        sys.setprofile(None)
    lease.take(table, "status").release()
