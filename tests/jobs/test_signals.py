"""SIGTERM ends a command as Ctrl-C does: tidied up, soon, with one line and its own exit code. A library takes no signals."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from jobs.command import main_of
from jobs.signals import ENDING, Signals
from pipeline.machine import quotas
from pipeline.machine.child import Child
from pipeline.sources import isolated
from pipeline.storage import Folder
from pipeline.table import clock, lease
from tests import faulty
from tests.chaos import processes
from tests.inline import embed, read_table, spec_of

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
SAID = {signal.SIGINT: "interrupted: finished work is kept", signal.SIGTERM: "ended by SIGTERM: finished work is kept"}
ROWS = 300
SLOW = "pipeline.stages.encode:encode:0.5"


def write_corpus(folder: Path, rows: range) -> None:
    """Parquet is read in processes of its own, below those that the command starts."""
    folder.mkdir(exist_ok=True)
    table = pa.table({"id": [f"d{n}" for n in rows], "text": [f"document about {n}" for n in rows]})
    pq.write_table(table, folder / f"{rows.start}.parquet", row_group_size=16)


def configure(folder: Path, model: Path, **resources: object) -> None:
    config = {
        "source": {"path": str(folder / "corpus"), "id": "id", "text": "text"},
        "model": {"path": str(model)},
        "table": {"path": str(folder / "table")},
        "resources": {"encoders": 2} | resources,
        "limits": {"unit_rows": 32},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def start(folder: Path, job: str, *flags: str, **faults: str) -> "subprocess.Popen[bytes]":
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", f"jobs.{job}", str(folder / "config.yaml"), *flags],
            env=faulty.environment(folder, **faults), cwd=faulty.ROOT, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip


def catches(pid: int, number: int) -> bool:
    """Whether the process has a handler of its own for the signal."""
    with contextlib.suppress(OSError):
        status = Path(f"/proc/{pid}/status").read_text()
        mask = int(next(line for line in status.splitlines() if line.startswith("SigCgt")).split()[1], 16)
        return bool(mask >> (number - 1) & 1)
    return False


HELD = """
import os, signal, sys
from jobs.signals import Signals
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have had it ignored
with Signals() as signals:
    try:
        with signals.held():
            os.kill(os.getpid(), int(sys.argv[1]))
            print("the block")
        print("what comes after it")
    except KeyboardInterrupt:
        print(signals.received.name)
"""


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_in_a_held_block_counts_at_its_end(number):
    given = [sys.executable, "-c", HELD, str(int(number))]
    done = subprocess.run(given, cwd=faulty.ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n") == ["the block", number.name, ""]


def is_left(one: processes.Process) -> bool:
    """Whether the process goes on; one that ended and that nobody has waited for doesn't."""
    with contextlib.suppress(OSError):
        state = Path(f"/proc/{one.pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        return state != "Z" and processes.process(one.pid) == one
    return False


def until(condition, run: "subprocess.Popen[bytes]", folder: Path) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert run.poll() is None, faulty.said(folder)
        assert time.monotonic() < deadline, faulty.said(folder)
        time.sleep(0.02)


def ends_tidily(
    run: "subprocess.Popen[bytes]", number: int, folder: Path, *, group: bool, within_s: float = 3.0
) -> None:
    """It ends soon, by its own code, with one line, and no process of it is left."""
    within_s *= max(1.0, os.getloadavg()[0] / quotas.cores())  # What others do on this machine takes its share.
    below = processes.descendants(run.pid)
    sent = time.monotonic()
    (os.killpg if group else os.kill)(run.pid, number)
    if group:  # `timeout` sends its signal to the process, and then to the group that it is in.
        with contextlib.suppress(ProcessLookupError):
            run.send_signal(number)
    assert run.wait(30) == CODES[number], faulty.said(folder)
    assert time.monotonic() - sent < within_s
    said = faulty.said(folder)
    assert SAID[number] in said
    assert "Traceback" not in said
    left = [one for one in below if is_left(one)]
    while left and time.monotonic() - sent < within_s:
        time.sleep(0.05)
        left = [one for one in left if is_left(one)]
    assert not left, [one.title for one in left]


@pytest.mark.parametrize(
    ("job", "number", "group"),
    [
        ("reindex", signal.SIGTERM, False),
        pytest.param("embed", signal.SIGTERM, True, marks=pytest.mark.slow),
        pytest.param("embed", signal.SIGTERM, False, marks=pytest.mark.slow),
        pytest.param("embed", signal.SIGINT, True, marks=pytest.mark.slow),
        pytest.param("reindex", signal.SIGINT, True, marks=pytest.mark.slow),
    ],
)
def test_encoders_end_and_nothing_that_was_under_way_counts_as_bad(job, number, group, tiny_model, tmp_path):
    write_corpus(tmp_path / "corpus", range(ROWS))
    configure(tmp_path, tiny_model)
    if job == "reindex":
        embed(spec_of(tmp_path / "corpus", tiny_model, tmp_path / "table", limits={"unit_rows": 32}))
        write_corpus(tmp_path / "corpus", range(ROWS, 2 * ROWS))
    run = start(tmp_path, job, SLOW=SLOW, COUNT_BATCHES="1")
    until(lambda: faulty.encoded(tmp_path), run, tmp_path)
    ends_tidily(run, number, tmp_path, group=group)
    table = Folder(str(tmp_path / "table"))
    assert lease.holder(table, clock.now(table)) is None
    assert all(json.loads(path.read_text())["released"] for path in (tmp_path / "table/meta/leases").glob("*.json"))
    assert start(tmp_path, job).wait(60) == 0, faulty.said(tmp_path)  # 3 would tell of dead letters
    assert read_table(tmp_path / "table").num_rows == (2 * ROWS if job == "reindex" else ROWS)


STRETCHED = {
    "embed --dry-run": "pipeline.runs.prepare:find_sources:60",
    "reindex": "pipeline.runs.prepare:find_sources:60",
    "reindex --dry-run": "pipeline.runs.prepare:encoder_spec:60",
    "verify": "pipeline.table.snapshot:current:60",
    "search question": "pipeline.table.snapshot:current:60",
    "status": "pipeline.table.status:status:60",
    "status --clean": "pipeline.table.snapshot:current:60",
}


@pytest.mark.parametrize("command", STRETCHED)
def test_every_command_ends_at_once_and_gives_its_lease_back(command, tiny_model, tmp_path):
    """Where it waits is of no matter, and neither is how far it came since it takes signals."""
    write_corpus(tmp_path / "corpus", range(8))
    configure(tmp_path, tiny_model)
    number = (signal.SIGTERM, signal.SIGINT)[len(command) % 2]
    job, *flags = command.split()
    run = start(tmp_path, job, *flags, SLOW=STRETCHED[command])
    until(lambda: catches(run.pid, signal.SIGTERM), run, tmp_path)  # Python itself catches SIGINT from its start.
    if job == "reindex" and not flags:
        until(lambda: list((tmp_path / "table/meta/leases").glob("*.json")), run, tmp_path)
    ends_tidily(run, number, tmp_path, group=len(command) % 3 == 0)
    for path in (tmp_path / "table/meta/leases").glob("*.json"):
        assert json.loads(path.read_text())["released"]


# --- the signals themselves


@pytest.fixture
def _plain_signals():
    """Libraries that other tests of this process use leave handlers of their own, which would be respected."""
    kept = {number: signal.getsignal(number) for number in ENDING}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_plain_signals")
def test_the_first_signal_counts_and_the_same_request_again_does_not_hinder_tidying_up():
    before = {number: signal.getsignal(number) for number in ENDING}
    with Signals() as signals:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert signals.received is signal.SIGTERM
    signal.raise_signal(signal.SIGTERM)  # It may come while the process is ending.
    signals.restore()
    with Signals():
        pass
    assert {number: signal.getsignal(number) for number in ENDING} == before


def test_who_asks_again_later_does_not_wait():
    program = (
        "import signal, time, jobs.signals as s\ns.AT_ONCE_AFTER_S = 0.2\nwith s.Signals():\n"
        " try: signal.raise_signal(signal.SIGTERM)\n except KeyboardInterrupt: pass\n"
        " time.sleep(0.3)\n signal.raise_signal(signal.SIGTERM)\n time.sleep(60)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=faulty.ROOT, timeout=30).returncode == 143


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with Signals():
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_command_in_another_thread_takes_no_signals(capsys):
    found: list[object] = []

    def main() -> int:
        found.append({number: signal.getsignal(number) for number in ENDING})
        return 0

    thread = threading.Thread(target=lambda: found.append(main_of(main)))
    thread.start()
    thread.join()
    assert found == [{number: signal.getsignal(number) for number in ENDING}, 0]


@pytest.mark.usefixtures("_plain_signals")
def test_an_error_that_a_signal_brought_about_is_told_as_the_signal(capsys):
    def main() -> int:
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        raise OSError("a child is gone")

    before = {number: signal.getsignal(number) for number in ENDING}
    try:
        assert main_of(main) == 143
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert capsys.readouterr().err.startswith(SAID[signal.SIGTERM])


PROGRAM = """
import json, signal, sys, threading, pipeline
own = lambda number, frame: None
signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background ignores it
signal.signal(signal.SIGTERM, own)
found = []
def work():
    pipeline.embed(json.loads(sys.argv[1]))
    found.append(signal.getsignal(signal.SIGTERM) is own and signal.getsignal(signal.SIGINT) is signal.default_int_handler)
work() if sys.argv[2] == "main" else (thread := threading.Thread(target=work), thread.start(), thread.join())
print(json.dumps(found))
"""


@pytest.mark.parametrize("where", ["main", pytest.param("another", marks=pytest.mark.slow)])
def test_a_library_call_leaves_signals_alone(where, tiny_model, tmp_path):
    write_corpus(tmp_path / "corpus", range(8))
    configure(tmp_path, tiny_model)
    given = (tmp_path / "config.yaml").read_text()
    command = [sys.executable, "-c", PROGRAM, json.dumps(yaml.safe_load(given)), where]
    done = subprocess.run(command, cwd=faulty.ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "[true]\n", done.stderr


def test_children_leave_signals_to_their_parent():
    """One that ended by itself would be taken for one that its rows ended."""
    reader = isolated._Reader()
    encoder = Child("pipeline.encoder.isolated")
    try:
        reader.receive(60)
        for pid in (reader.pid, encoder.pid):
            deadline = time.monotonic() + 60
            while not all(ignores(pid, number) for number in ENDING):
                assert time.monotonic() < deadline
                time.sleep(0.02)
    finally:
        reader.end()
        encoder.end()


def ignores(pid: int, number: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    mask = int(next(line for line in status.splitlines() if line.startswith("SigIgn")).split()[1], 16)
    return bool(mask >> (number - 1) & 1)


@pytest.mark.parametrize("number", ENDING)
def test_the_same_request_while_the_interpreter_ends_leaves_the_exit_code(number):
    program = (
        "import os, signal, sys\nfrom jobs.command import main_of\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # What runs in the background ignores it.
        "class Last:\n"
        f" def __del__(self, kill=os.kill, pid=os.getpid()): kill(pid, {int(number)})\n"
        "sys.last_of_all = Last()\n"  # Modules are taken down after CPython has given up handlers.
        f"def main(): signal.raise_signal({int(number)})\n"
        "sys.exit(main_of(main))\n"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=faulty.ROOT, timeout=30).returncode == CODES[number]
