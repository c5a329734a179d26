"""A run tells its phases in order to whoever listens, and shows them on a terminal and nowhere else."""

import io
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from jobs import verify
from pipeline import progress, progress_bar
from pipeline.execution.costs import LIGHT_THREADS
from pipeline.machine.quotas import cores
from pipeline.progress import Event, Phase, Progress
from pipeline.runs import embed as embedding
from pipeline.runs import reindex as reindexing
from tests.faulty import ROOT
from tests.inline import InProcess, spec_of

ROWS = 300


def write_source(folder: Path, rows: int = ROWS) -> None:
    folder.mkdir(exist_ok=True)
    lines = [json.dumps({"id": f"d{number}", "text": f"news about {number}"}) + "\n" for number in range(rows)]
    (folder / "a.jsonl").write_text("".join(lines))


class Heard:
    """It is a listener that keeps what it hears."""

    def __init__(self) -> None:
        self.events: list[tuple[Event, Phase, str]] = []
        self.totals: list[tuple[int | None, int | None]] = []
        self.last: Progress | None = None

    def __call__(self, event: Event, run: Progress) -> None:
        self.events.append((event, run.phase, run.detail))
        if event is Event.TOTAL:
            self.totals.append((run.units, run.rows))
        self.last = run

    @property
    def phases(self) -> list[Phase]:
        told = [phase for event, phase, _ in self.events if event in (Event.STARTED, Event.PHASE)]
        return [phase for number, phase in enumerate(told) if told[number - 1 : number] != [phase]]


def heard_of(call) -> Heard:
    heard = Heard()
    with progress.listening(heard, shown=False), progress.run("test"):
        call()
    return heard


def test_numbers_have_the_right_noun_and_short_times_a_tenth():
    for number, told in [(0, "0 texts"), (1, "1 text"), (2, "2 texts"), (1204, "1,204 texts")]:
        assert progress.counted(number, "text") == told
    short = [
        (0.0, "under 0.1 s"),
        (0.04, "under 0.1 s"),
        (0.06, "0.1 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (61, "1 min 1 s"),
    ]
    for seconds, told in short:
        assert progress.short_duration(seconds) == told


def test_listeners_hear_phases_totals_and_counts_of_each_kind_of_run(tiny_model, tmp_path):
    write_source(tmp_path / "corpus")
    spec = spec_of(tmp_path / "corpus", tiny_model, tmp_path / "table", table={"dtype": "int8"})
    built = heard_of(lambda: embedding.embed(spec, InProcess()))
    kinds = [Phase.PLANNING, Phase.CALIBRATING, Phase.STARTING, Phase.ENCODING, Phase.COMMITTING]
    assert built.phases == kinds
    ((units, rows),) = built.totals
    assert (units, built.last.about, built.last.recorded_rows, built.last.done_units) == (1, True, ROWS, 1)
    assert rows == pytest.approx(ROWS, rel=0.1)  # Lines are counted only as they are read.
    assert [event for event, _, _ in built.events][:: len(built.events) - 1] == [Event.STARTED, Event.ENDED]
    write_source(tmp_path / "corpus", ROWS + 5)
    followed = heard_of(lambda: reindexing.reindex(spec, InProcess()))
    kinds = [Phase.PLANNING, Phase.COMPARING, Phase.STARTING, Phase.ENCODING, Phase.WRITING, Phase.COMMITTING]
    assert followed.phases == kinds
    assert (followed.totals, followed.last.recorded_rows) == ([(1, 5)], 5)
    assert set(followed.last.seconds) == set(kinds)


def test_verify_tells_its_phases(tiny_model, tmp_path, capsys):
    write_source(tmp_path / "corpus")
    embedding.embed(spec_of(tmp_path / "corpus", tiny_model, tmp_path / "table"), InProcess())
    found = heard_of(lambda: verify.main([str(tmp_path / "table"), "--rows", "20"]))
    assert found.phases == [Phase.PLANNING, Phase.READING, Phase.LOADING, Phase.ENCODING, Phase.VERIFYING]
    assert (found.totals, found.last.encoded_rows) == ([(None, 20)], 20)


def test_a_listener_hears_how_a_run_failed():
    heard = Heard()
    with pytest.raises(ValueError, match="bad"), progress.listening(heard, shown=False), progress.run("test"):
        raise ValueError("bad")
    assert str(heard.last.error) == "bad"
    assert heard.events[-1][0] is Event.ENDED


def test_a_run_within_a_run_goes_on_with_its_progress():
    heard = Heard()
    with progress.listening(heard, shown=False), progress.run("outer") as outer, progress.run("inner") as inner:
        assert inner is outer
    assert [event for event, _, _ in heard.events] == [Event.STARTED, Event.ENDED]
    assert progress.current() is not outer


def test_a_line_says_how_far_a_run_is_and_how_long_it_takes(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    run = Progress("embed")
    clock[0] += 3
    assert run.describe() == "planning  3 s"
    run.begin(Phase.STARTING, "Ray")
    assert run.describe() == "starting Ray  0 s"
    run.expect(units=8, rows=7600)
    run.encoded(0, 0)
    clock[0] += 10
    run.encoded(1000, 20_000)
    run.recorded(900, 2, True)
    expected = "encoding  units 1/8  rows 1,000/7,600  100 docs/s  2,000 tokens/s  2 failed  1 min 6 s left"
    assert run.describe() == expected
    run.begin(Phase.INDEXING, "docs")
    run.reach(0.25)
    assert run.describe() == "building the index docs  25%  0 s"
    run.begin(Phase.ENCODING)
    run.expect(units=1, rows=10, about=True)
    run.recorded(12, 0, False)
    assert run.describe() == "encoding  units 0/1  rows 12/about 10"


def test_a_log_gets_whole_lines_and_a_short_run_none(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(progress_bar, "LOG_EVERY_S", 0.05)
    listener = progress_bar.display(stream)
    with progress.listening(listener, shown=False), progress.run("test") as run:
        listener._ended.wait(0.2)
        run.begin(Phase.COMMITTING)
        listener._ended.wait(0.2)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "planning  0 s"
    assert lines[-1] == "committing  0 s"
    assert "\x1b" not in stream.getvalue()
    quiet = io.StringIO()
    with progress.listening(progress_bar.display(quiet), shown=False), progress.run("test"):
        pass
    assert quiet.getvalue() == ""


def write_config(folder: Path, model: Path) -> Path:
    write_source(folder / "corpus")
    config = {
        "source": {"path": str(folder / "corpus"), "id": "id", "text": "text"},
        "model": {"path": str(model)},
        "table": {"path": str(folder / "table")},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    return folder / "run.yaml"


def on_a_terminal(*command: str) -> str:
    """Return all that a terminal is told by the command."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, stdin=theirs, env=environment, cwd=ROOT) as process:
        os.close(theirs)
        told = b""
        while True:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # Linux says so that nobody has the other end any more.
                break
            if not piece:
                break
            told += piece
    os.close(ours)
    assert process.returncode == 0, told
    return told.decode()


def test_a_terminal_sees_the_phases_of_a_real_run_in_order_and_then_only_its_summary(tiny_model, tmp_path):
    config = write_config(tmp_path, tiny_model)
    told = on_a_terminal(sys.executable, "-m", "jobs.embed", str(config))
    started = f"starting 1 x {min(cores(), LIGHT_THREADS)} CPU encoder"
    words = ["planning", started, "loading the model", "encoding", "committing"]
    places = [told.index(word) for word in words]
    assert places == sorted(places)
    assert re.search(r"rows \d+/about \d+", told)
    # The last live line is erased before the summary, and the cursor is shown again.
    shown = told[told.rindex("committing") :]
    assert shown.index("\x1b[2K") < shown.index("published version 1")
    assert "\x1b[?25h" in told
    assert "\x1b" not in told[told.index("published version 1") :]


def test_a_log_is_told_nothing_of_a_short_run(tiny_model, tmp_path):
    config = write_config(tmp_path, tiny_model)
    command = [sys.executable, "-m", "jobs.reindex", str(config), "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert (done.returncode, done.stderr) == (10, "")
