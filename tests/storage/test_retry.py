"""Faults that pass: what storage does in spite of them, and how long it waits for those that don't."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import StorageUnavailable
from pipeline.storage import Folder, list_pattern, retry
from pipeline.storage.retry import PATIENCE_S, persistently
from tests.proxy import FAULTS, fault_proxy


class Clock:
    def __init__(self):
        self.now = 0.0

    def sleep(self, seconds):
        self.now += seconds


@given(faults=st.lists(st.floats(0, 3), max_size=8), patience_s=st.floats(1, 60))
def test_the_result_is_that_of_a_call_without_faults_unless_they_outlast_the_patience(faults, patience_s):
    """Each fault takes its time; a fault that doesn't pass is told at once."""
    clock, calls = Clock(), []

    def attempt():
        calls.append(clock.now)
        if len(calls) <= len(faults):
            clock.now += faults[len(calls) - 1]
            raise TimeoutError
        return "done"

    try:
        assert persistently(attempt, lambda _: patience_s, clock=lambda: clock.now, sleep=clock.sleep) == "done"
        assert len(calls) == len(faults) + 1
    except TimeoutError:
        assert len(calls) <= len(faults)
        assert clock.now <= patience_s + 3
    calls.clear()
    if faults:
        with pytest.raises(TimeoutError):
            persistently(attempt, lambda _: 0.0, clock=lambda: clock.now, sleep=clock.sleep)
        assert len(calls) == 1


@pytest.fixture(params=["moto", "rclone"])
def server(request):
    return request.getfixturevalue(request.param)


def test_a_folder_works_the_same_through_faults(moto, monkeypatch):
    check_folder(moto, FAULTS, 0.2, monkeypatch)


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_folder_works_the_same_through_one_kind_of_fault(server, fault, monkeypatch):
    check_folder(server, (fault,), 0.5, monkeypatch)


def check_folder(server, faults, rate, monkeypatch):
    """A share of all requests fails, those whose answer is lost after they were done among them."""
    monkeypatch.setattr("tests.proxy.SLOW_S", 0.05)
    bucket = server.make_bucket(f"faults-{'-'.join(faults)}")
    with fault_proxy(server.storage_options["endpoint_url"], seed=3, faults=faults) as proxy:
        folder = Folder(f"{bucket}/table", server.storage_options | {"endpoint_url": proxy.url})
        proxy.rate = rate
        for number in range(4):
            folder.write(f"a/{number}", b"x" * (1000 + number))
            assert folder.create_once(f"once/{number}", b"mine") is None
            assert folder.create_once(f"once/{number}", b"another's") == b"mine"
            assert folder.create_once(f"once/{number}", b"mine") is None
            assert folder.creates_exclusively() is server.exclusive_creates
            folder.copy(f"a/{number}", f"b/{number}")
            assert folder.size(f"b/{number}") == 1000 + number
            assert folder.read(f"b/{number}") == b"x" * (1000 + number)
            with folder.open(f"b/{number}") as file:
                file.seek(500)
                assert file.read() == b"x" * (500 + number)
        folder.delete(f"a/{number}" for number in range(3))
        assert [info.path for info in folder.list("a")] == ["a/3"]
        assert sum(proxy.faulty.values()) > 10


@pytest.mark.slow
def test_a_fault_that_stays_is_told_in_time(moto):
    bucket = moto.make_bucket("stays")
    with fault_proxy(moto.storage_options["endpoint_url"], rate=1, faults=("slowdown", "reset")) as proxy:
        options = moto.storage_options | {"endpoint_url": proxy.url}
        for call, limit_s in [
            (lambda: list_pattern(f"{bucket}/x", options), retry.IMPATIENCE_S),
            (lambda: Folder(f"{bucket}/t", options).write("x", b""), PATIENCE_S),
        ]:
            started = time.monotonic()
            with pytest.raises(StorageUnavailable, match="start the same command again"):
                call()
            assert time.monotonic() - started < limit_s + 20
