"""The chaos suite can fail: what is wrong with a table is found, a kill strikes only whom it should, a missed one is told."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pipeline.config import load
from tests import inline
from tests.chaos import __main__ as chaos
from tests.chaos import processes, report, verdict
from tests.chaos.job import BOUND, Job, write_corpus
from tests.chaos.points import KINDS, PHASES, KillPoint, kill_points
from tests.chaos.processes import Process
from tests.chaos.report import Outcome

ROWS = 240


@pytest.fixture(scope="module")
def sound(tiny_model, tmp_path_factory) -> tuple[Job, pa.Table]:
    folder = tmp_path_factory.mktemp("sound")
    write_corpus(folder / "corpus", ROWS)
    job = Job(folder=folder, corpus=folder / "corpus", model=str(tiny_model))
    job.write_config()
    inline.embed(load(job.config))
    return job, job.rows()


@pytest.fixture
def tampered(sound, tmp_path) -> Job:
    """A copy to do harm to."""
    job, _ = sound
    shutil.copytree(job.table, tmp_path / "table")
    copied = replace(job, folder=tmp_path)
    copied.write_config()
    return copied


def a_part(table: Path) -> Path:
    return min((table / "data").rglob("*.parquet"))


def rewritten(table: Path, column: str, change) -> None:
    """One value of a column of one part becomes another."""
    path = a_part(table)
    rows = pq.ParquetFile(path).read()
    index = rows.column_names.index(column)
    values = rows[column].to_pylist()
    values[3] = change(values[3])
    field = rows.schema.field(index)
    pq.write_table(rows.set_column(index, field, pa.array(values, field.type)), path)


def without_a_row(table: Path) -> None:
    rows = pq.ParquetFile(a_part(table)).read()
    pq.write_table(rows.slice(1), a_part(table))


def with_a_row_twice(table: Path) -> None:
    rows = pq.ParquetFile(a_part(table)).read()
    pq.write_table(pa.concat_tables([rows, rows.slice(0, 1)]), a_part(table))


def with_a_part_twice(table: Path) -> None:
    shutil.copy(a_part(table), a_part(table).with_name("part-copy.parquet"))


def with_a_part_in_another_partition(table: Path) -> None:
    shutil.move(a_part(table), table / "data" / "label=2" / a_part(table).name)


def with_a_half_written_file(table: Path) -> None:
    (table / "data" / "label=0" / ".half").write_bytes(b"PAR1")


def with_a_broken_part(table: Path) -> None:
    a_part(table).write_bytes(a_part(table).read_bytes()[:-100])


def with_a_record(table: Path) -> None:
    (table / "staging" / "records" / "abc").mkdir(parents=True)
    (table / "staging" / "records" / "abc" / "000000000000.json").write_text("{}")


def with_work_left(table: Path) -> None:
    """The table is as it was, and its configuration asks for other columns."""
    config = table.parent / "config.yaml"
    asked = yaml.safe_load(config.read_text())
    asked["source"]["keep"] = []
    config.write_text(yaml.safe_dump(asked))


HARM = {
    "1 missing, 0 more": without_a_row,
    "1 rows of data/ have an id that another has": with_a_row_twice,
    "part-copy.parquet is no part of the version": with_a_part_twice,
    "rows have another label": with_a_part_in_another_partition,
    ".half is no part of the version": with_a_half_written_file,
    "the table can't be read": with_a_broken_part,
    "1 records are left in staging": with_a_record,
    "instead of one version that is done": lambda table: (table / "meta" / "versions" / "000001.done").unlink(),
    "another run would not find nothing to do": with_work_left,
    "1 rows have another length": lambda table: rewritten(table, "length", lambda value: value + 1),
    "1 rows have another text": lambda table: rewritten(table, "text", lambda value: value + " "),
    "1 rows have another content_hash": lambda table: rewritten(table, "content_hash", lambda value: value[::-1]),
    "1 rows have another row_hash": lambda table: rewritten(table, "row_hash", lambda value: value ^ 1),
    "1 rows have another n_tokens": lambda table: rewritten(table, "n_tokens", lambda value: value + 1),
    "a number of a vector differs by 1.0e-05": lambda table: rewritten(
        table, "embedding", lambda vector: [vector[0] + 1e-5, *vector[1:]]
    ),
    "a number of a vector differs by nan": lambda table: rewritten(
        table, "embedding", lambda vector: [np.nan, *vector[1:]]
    ),
}


def test_a_sound_table_passes(sound):
    job, rows = sound
    assert rows.num_rows == ROWS
    assert verdict.faults(job, rows) == []


@pytest.mark.parametrize("found", HARM)
def test_harm_is_found(found, sound, tampered):
    HARM[found](tampered.table)
    assert any(found in fault for fault in verdict.faults(tampered, sound[1])), verdict.faults(tampered, sound[1])


def test_rows_encoded_twice_are_bounded():
    assert verdict.cost_fault(0) == verdict.cost_fault(BOUND) == []
    assert verdict.cost_fault(BOUND + 1)
    assert verdict.cost_fault(-1)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_points_are_the_seeds_own_and_reach_all_that_can_die(seed):
    points = kill_points(50, seed)
    assert kill_points(7, seed) == points[:7]
    assert points != kill_points(50, seed + 1)
    assert {point.kind for point in points[:10]} == set(KINDS)
    drivers = [point for point in points if point.kind == "driver"]
    assert {point.moment for point in drivers} >= set(PHASES)
    assert {point.clustered for point in drivers} == {True, False}


@pytest.fixture
def sleeper() -> "Iterator[subprocess.Popen[bytes]]":
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


POINT = KillPoint(number=0, kind="driver", clustered=False, on_ray=True, moment="planning", share=0.5, delay_s=0)


def test_a_driver_is_struck_in_the_phase_that_it_is_in(sleeper, tmp_path, sound):
    job = replace(sound[0], folder=tmp_path)
    calm = chaos.Calm(sound[1], 1.0)
    assert chaos.hit(POINT, job, sleeper, calm, None) == "planning"
    assert sleeper.wait(5) == -9


def test_a_run_that_ended_before_was_not_hit(tmp_path, sound):
    job = replace(sound[0], folder=tmp_path)
    with subprocess.Popen([sys.executable, "-c", ""]) as run:
        assert chaos.hit(replace(POINT, moment="committing"), job, run, chaos.Calm(sound[1], 1.0), None) == ""


def test_a_moment_by_the_clock_comes_earlier_until_it_is_hit_and_one_that_never_is_fails(tmp_path, sound, monkeypatch):
    """The clock is that of the undisturbed run, which something else may have held up."""
    asked: list[float] = []

    def strike(point: KillPoint, job: Job, calm: chaos.Calm) -> Outcome:
        asked.append(calm.seconds)
        phase = "encoding" if calm.seconds < reached_below else ""
        return Outcome(point=point, phase=phase, starts=1, twice=0, difference=0.0, faults=(), seconds=1.0)

    monkeypatch.setattr(chaos, "strike", strike)
    late, reached_below = replace(POINT, moment="any time"), 20.0
    assert chaos.survive(late, replace(sound[0], folder=tmp_path), chaos.Calm(sound[1], 56.0)).faults == ()
    assert asked == [56.0, 28.0, 14.0]
    reached_below, late = 0.0, replace(late, number=1)
    missed = chaos.survive(late, replace(sound[0], folder=tmp_path), chaos.Calm(sound[1], 56.0))
    assert missed.faults == ("was not hit in 3 runs",)
    assert "| driver, not hit | 1 | 0 |" in report.table([missed])


def test_a_process_that_has_the_pid_of_a_dead_one_is_spared(sleeper):
    own = processes.process(sleeper.pid)
    processes.kill([Process(own.pid, own.born - 1)])
    with pytest.raises(subprocess.TimeoutExpired):
        sleeper.wait(0.3)
    processes.kill([own])
    assert sleeper.wait(5) == -9


def test_results_take_the_place_of_older_ones(tmp_path):
    document = tmp_path / "results.md"
    document.write_text(f"before\n\n{report.FIRST}\nold\n{report.LAST}\n\nafter\n")
    outcome = Outcome(point=POINT, phase="starting", starts=2, twice=16, difference=0.0, faults=(), seconds=9.0)
    bad = replace(outcome, faults=("1 rows have another text",))
    report.rewrite(document, "conditions", [outcome, bad])
    text = document.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert f"| driver, starting | 2 | 1 | 16, 16 | {BOUND} | 2 | 0 |" in text
    with pytest.raises(ValueError, match="has no place for results"):
        report.rewrite(Path(__file__).parents[2] / "LICENSE", "conditions", [outcome])
    assert "FAILED: 1 rows have another text" in report.line(bad)
