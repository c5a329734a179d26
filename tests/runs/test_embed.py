"""One verb: on a table that exists an embedding run works by row, under the table's lease, and costs what changed."""

import dataclasses
import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from jobs import embed as command
from jobs.command import main_of
from pipeline import progress
from pipeline.config import RunSpec
from pipeline.errors import InputError, TableBusy
from pipeline.progress import Event, Phase, Progress
from pipeline.runs import embed as runs
from pipeline.runs import reindex as reindexing
from pipeline.runs.summary import Summary
from pipeline.storage import Folder
from pipeline.table import clock, lease, snapshot
from tests.inline import InProcess, read_table, same_rows, spec_of
from tests.tiny import build_tiny_model

FILES, ROWS = 4, 30


def write(folder: Path, name: str, rows: dict[str, str]) -> None:
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps({"id": key, "text": text}) + "\n" for key, text in rows.items()))
    write.clock += 1
    os.utime(path, ns=(write.clock, write.clock))


write.clock = 10**9


def rows_of(number: int) -> dict[str, str]:
    return {f"{number}-{row}": f"news about {number} and {row}" for row in range(ROWS)}


def embedded(spec: RunSpec, **options: bool) -> tuple[Summary, int]:
    """Return the summary, and how many texts an encoder got."""
    encoded: list[int] = []
    return runs.embed(spec, InProcess(encoded=encoded), **options), sum(encoded)


@pytest.fixture
def spec(tiny_model, tmp_path) -> RunSpec:
    """A table of four small files, which are one unit, at version 1."""
    for number in range(FILES):
        write(tmp_path / "corpus", f"{number}", rows_of(number))
    built = spec_of(tmp_path / "corpus", tiny_model, tmp_path / "table")
    summary, encoded = embedded(built)
    assert (summary.by_row, encoded) == (False, FILES * ROWS)
    return built


def files_of(table: Path) -> list[tuple[Path, int]]:
    return sorted((path, path.stat().st_mtime_ns) for path in table.rglob("*"))


def test_a_changed_row_is_all_that_is_encoded_and_its_file_all_that_is_read(spec, tmp_path):
    write(tmp_path / "corpus", "2", rows_of(2) | {"2-7": "another text"})
    planned = runs.plan(spec, InProcess())
    summary, encoded = embedded(spec)
    assert encoded == summary.to_encode == planned.to_dict()["to_encode"] == 1
    counts = summary.counts
    assert (counts.new, counts.changed, counts.deleted, counts.unchanged) == (0, 1, 0, FILES * ROWS - 1)
    for name in ("new", "changed", "deleted", "unchanged"):
        assert planned.to_dict()[name] == getattr(counts, name), name
    assert "1 changed" in str(planned)
    assert "1 to encode" in str(planned)
    assert summary.upkeep.rewritten == 1
    fresh = dataclasses.replace(spec, table=dataclasses.replace(spec.table, path=str(tmp_path / "fresh")))
    embedded(fresh)
    same_rows(read_table(tmp_path / "table"), read_table(tmp_path / "fresh"))
    assert json.loads(json.dumps(summary.to_dict()))["upkeep"]["rewritten"] == 1


def test_rows_that_are_gone_are_deleted_without_a_guard(spec, tmp_path):
    for number in (0, 1, 2):
        (tmp_path / "corpus" / f"{number}.jsonl").unlink()
    assert runs.plan(spec, InProcess()).by_row.refusal is None
    summary, encoded = embedded(spec)
    assert (summary.counts.deleted, summary.counts.rows, encoded) == (3 * ROWS, ROWS, 0)


def test_what_the_table_has_of_a_file_that_can_not_be_read_stays_each_night_until_it_can(spec, tmp_path):
    before, whole = read_table(tmp_path / "table"), (tmp_path / "corpus" / "1.jsonl").read_bytes()
    spec = dataclasses.replace(spec, limits=dataclasses.replace(spec.limits, max_failed_files=1))
    (tmp_path / "corpus" / "1.jsonl").write_bytes(b"[" + whole.replace(b"\n", b",\n").rstrip(b",\n") + b"]")
    for _ in range(2):
        summary, encoded = embedded(spec)
        assert (summary.exit_code, summary.counts.rows, encoded) == (3, FILES * ROWS, 0)
        assert [Path(item.path).name for item in summary.unread_files] == ["1.jsonl"]
        assert "its rows stay" in str(summary)
        same_rows(read_table(tmp_path / "table"), before)
    (tmp_path / "corpus" / "1.jsonl").write_bytes(whole)
    summary, encoded = embedded(spec)
    assert (summary.exit_code, encoded) == (0, 0)


def test_another_model_takes_the_place_of_the_table_s_only_when_asked(spec, tmp_path):
    model = build_tiny_model(tmp_path / "another", seed=1)
    other = dataclasses.replace(spec, model=dataclasses.replace(spec.model, path=str(model)))
    for refused in (runs.embed, runs.plan):
        with pytest.raises(InputError, match="another model"):
            refused(other, InProcess())
    assert runs.plan(other, InProcess(), new_model=True).units_to_encode == 1
    summary, encoded = embedded(other, new_model=True)
    assert (summary.by_row, encoded, summary.version) == (False, FILES * ROWS, 2)


LOOSE = {"max_row_bytes": 80, "max_failed_rows": 10}


def test_dead_letters_are_tried_again_after_what_changed_was_published_by_row(tiny_model, tmp_path):
    write(tmp_path / "corpus", "a", {"a0": "short", "a1": "long " * 40})
    write(tmp_path / "corpus", "b", rows_of(0))
    spec = spec_of(tmp_path / "corpus", tiny_model, tmp_path / "table", limits=LOOSE)
    assert embedded(spec)[0].counts.failed == 1
    write(tmp_path / "corpus", "c", {"c0": "new", "c1": "news about 0 and 1"})
    longer = dataclasses.replace(spec, limits=dataclasses.replace(spec.limits, max_row_bytes=1000))
    assert runs.plan(longer, InProcess(), retry_failed=True).rows_to_retry == 1
    summary, _ = embedded(longer, retry_failed=True)
    assert (summary.retried, summary.recovered, summary.published) == (1, 1, True)
    assert (summary.counts.new, summary.counts.deleted, summary.counts.failed) == (3, 0, 0)
    assert (summary.counts.rows, summary.counts.unchanged) == (ROWS + 4, ROWS + 1)
    fresh = dataclasses.replace(longer, table=dataclasses.replace(spec.table, path=str(tmp_path / "fresh")))
    embedded(fresh)
    same_rows(read_table(tmp_path / "table"), read_table(tmp_path / "fresh"))
    again, encoded = embedded(longer, retry_failed=True)
    assert (again.published, encoded) == (False, 0)


# --- under the lease


@pytest.fixture
def taken(spec, monkeypatch) -> Iterator[Folder]:
    """Somebody has the table, and gives a sign of life each half second."""
    monkeypatch.setattr(lease, "POLL_S", 0.1)
    table = Folder(spec.table.path)
    with lease.held(table, "somebody", seconds=2.0):
        yield table


def configured(folder: Path, spec: RunSpec) -> list[str]:
    config = {
        "source": {"path": spec.source.path, "id": "id", "text": "text"},
        "model": {"path": spec.model.path},
        "table": {"path": spec.table.path},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    return [str(folder / "run.yaml")]


def test_a_second_run_says_who_has_the_table_and_writes_nothing(spec, taken, tmp_path, capsys):
    write(tmp_path / "corpus", "2", {"2-0": "another"})
    before = files_of(tmp_path / "table" / "data")
    with pytest.raises(TableBusy, match="is being worked on \\(somebody"):
        embedded(spec)
    assert main_of(lambda: command.main(configured(tmp_path, spec))) == 1
    assert capsys.readouterr().err.startswith(f"error: table {tmp_path / 'table'} is being worked on (somebody")
    assert files_of(tmp_path / "table" / "data") == before
    assert snapshot.versions(taken) == [1]


def test_a_run_with_nothing_to_do_asks_nobody_and_writes_nothing(spec, taken, tmp_path):
    before = files_of(tmp_path / "table" / "data")
    assert not embedded(spec)[0].published
    assert files_of(tmp_path / "table" / "data") == before
    (own,) = [info.path for info in taken.list("meta/leases")]
    assert json.loads(taken.read(own))["work"] == "somebody"


@pytest.mark.parametrize("first", [True, False], ids=["first build", "by row"])
def test_the_table_is_held_while_there_is_work_and_given_back(first, spec, tmp_path):
    table = Folder(spec.table.path)
    if first:
        shutil.rmtree(tmp_path / "table")
    write(tmp_path / "corpus", "2", {"2-0": "another"})
    holders: dict[Phase, str] = {}

    def look(event: Event, run: Progress) -> None:
        found = lease.holder(table, clock.now(table)) if event is Event.PHASE else None
        holders[run.phase] = found.work if found is not None else holders.get(run.phase, "")

    with progress.listening(look, shown=False), progress.run("embed"):
        embedded(spec)
    assert {holders[phase] for phase in (Phase.ENCODING, Phase.COMMITTING)} == {"embed"}
    assert lease.holder(table, clock.now(table)) is None


def test_a_run_that_waited_plans_anew_for_what_was_published_meanwhile(spec, tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "POLL_S", 0.05)
    write(tmp_path / "corpus", "2", rows_of(2) | {"2-7": "another text"})
    patient = dataclasses.replace(spec, limits=dataclasses.replace(spec.limits, wait_s=60.0))
    done: list[tuple[Summary, int]] = []
    thread = threading.Thread(target=lambda: done.append(embedded(patient)))
    with reindexing.alone(spec):
        thread.start()
        thread.join(0.5)
        reindexing.reindex(spec, InProcess())
    thread.join(60)
    ((summary, encoded),) = done
    assert (summary.version, summary.published, encoded) == (2, False, 0)
