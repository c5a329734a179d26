"""A process that hangs ends, and one that works or waits for another of its threads does not."""

import subprocess
import sys

import pytest

BEGIN = """
import threading, time
from pipeline.encoder.deadline import Deadline

def quick():
    with Deadline(1.0):
        pass

def working(seconds):
    with Deadline(1.0) as deadline:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(0.1)
            deadline.renew()

def hangs():
    with Deadline(1.0):
        time.sleep(30)
"""


def run(program: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", BEGIN + program], capture_output=True, text=True, timeout=25)


@pytest.mark.parametrize(
    "program",
    [
        pytest.param("hangs()", id="alone"),
        pytest.param("threading.Thread(target=quick).start(); hangs()", id="beside-one-that-is-done"),
        pytest.param("threading.Thread(target=working, args=(2,)).start(); hangs()", id="beside-one-that-ends"),
    ],
)
def test_a_process_that_hangs_ends_and_says_where(program):
    done = run(program)
    assert done.returncode == 1
    assert "Timeout" in done.stderr
    assert "in hangs" in done.stderr


@pytest.mark.parametrize(
    "program",
    [
        pytest.param("working(3)", id="at-work"),
        pytest.param("quick(); time.sleep(2)", id="nothing-to-do"),
        pytest.param(
            "thread = threading.Thread(target=working, args=(3,)); thread.start()\nwith Deadline(1.0): thread.join()",
            id="waits-for-one-at-work",
        ),
    ],
)
def test_a_process_that_works_or_waits_for_work_lives(program):
    done = run(program + "\nprint('alive')")
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr
