"""Two real processes on one table: at once, with another model, stopped and overtaken; and a writer that comes too late."""

import json
import signal
import subprocess
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pipeline.execution.worker import prove
from pipeline.runs import prepare
from pipeline.stages.flow import EMBED
from pipeline.storage import Folder
from pipeline.table import layout, snapshot
from tests import faulty, inline
from tests.inline import read_table, same_rows, spec_of
from tests.tiny import build_tiny_model

ROWS = 600
BOTH_AT_IT = {"SLOW": "pipeline.table.publication:Publication.create:15"}
"""The one that has the table gives signs of life while the other one looks for them."""
LEASE_S = 6
TIMEOUT_S = 240


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder / "rows.parquet", range(ROWS))
    return folder


def write_corpus(path: Path, numbers: range) -> None:
    pq.write_table(pa.Table.from_pylist([{"id": f"doc-{n}", "text": f"news about {n}"} for n in numbers]), path)


def configure(folder: Path, corpus: Path, model: Path, table: Path, **limits: float) -> Path:
    folder.mkdir()
    config = {
        "source": {"path": str(corpus), "id": "id", "text": "text"},
        "model": {"path": str(model)},
        "table": {"path": str(table)},
        "resources": {"encoders": 1, "writers": 1},
        "limits": {"unit_rows": 256} | limits,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def finish(process: "subprocess.Popen[bytes]") -> int:
    try:
        return process.wait(TIMEOUT_S)
    finally:
        process.kill()


def result(folder: Path) -> dict:
    return json.loads((folder / "out").read_text())


def race(one: Path, other: Path) -> tuple[Path, Path]:
    """Start both at once; returns (the winner, the loser)."""
    processes = {folder: faulty.start(folder, **BOTH_AT_IT) for folder in (one, other)}
    codes = {folder: finish(process) for folder, process in processes.items()}
    assert sorted(codes.values()) == [0, 1], faulty.said(one) + faulty.said(other)
    return tuple(sorted(codes, key=codes.__getitem__))


@pytest.mark.slow
@pytest.mark.timeout(3 * TIMEOUT_S)
def test_the_same_job_twice_at_once_publishes_one_version(corpus, tiny_model, tmp_path):
    table = tmp_path / "table"
    folders = [configure(tmp_path / name, corpus, tiny_model, table, lease_s=LEASE_S) for name in ("one", "other")]
    winner, loser = race(*folders)
    assert result(winner)["version"] == 1
    assert faulty.said(loser).splitlines()[-1].startswith(f"error: table {table} is being worked on (embed, process ")
    assert finish(faulty.start(loser)) == 0
    assert (result(loser)["published"], result(loser)["version"]) == (False, 1)
    inline.embed(spec_of(corpus, tiny_model, tmp_path / "undisturbed"))
    same_rows(read_table(table), read_table(tmp_path / "undisturbed"))


@pytest.mark.slow
@pytest.mark.timeout(3 * TIMEOUT_S)
def test_of_two_models_at_once_one_has_the_table_and_the_other_is_refused(corpus, tiny_model, tmp_path):
    table, another = tmp_path / "table", build_tiny_model(tmp_path / "another", seed=1)
    models = {
        configure(tmp_path / name, corpus, model, table, lease_s=LEASE_S): model
        for name, model in [("one", tiny_model), ("other", another)]
    }
    winner, loser = race(*models)
    assert faulty.said(loser).splitlines()[-1].startswith(f"error: table {table} is being worked on (embed, process ")
    assert finish(faulty.start(loser)) == 2
    assert "vectors of two models don't compare" in faulty.said(loser).splitlines()[-1]
    inline.embed(spec_of(corpus, models[winner], tmp_path / "undisturbed"))
    same_rows(read_table(table), read_table(tmp_path / "undisturbed"))


@pytest.mark.slow
@pytest.mark.timeout(3 * TIMEOUT_S)
def test_a_publisher_that_was_stopped_and_overtaken_leaves_the_later_version(corpus, tiny_model, tmp_path):
    table, later = tmp_path / "table", tmp_path / "later"
    later.mkdir()
    write_corpus(later / "rows.parquet", range(100, ROWS + 100))
    # The one that is stopped does not renew its lease, and the other one waits until it has run out.
    stopped, overtaking = (
        configure(tmp_path / name, source, tiny_model, table, lease_s=5, wait_s=60)
        for name, source in [("stopped", corpus), ("overtaking", later)]
    )
    process = faulty.start(stopped, SLOW="pipeline.table.materialise:_copy_all:5")
    while not (table / layout.snapshot(1)).exists():
        assert process.poll() is None, faulty.said(stopped)
        time.sleep(0.05)
    process.send_signal(signal.SIGSTOP)
    try:
        assert finish(faulty.start(overtaking)) == 0, faulty.said(overtaking)
    finally:
        process.send_signal(signal.SIGCONT)
    assert finish(process) == 0, faulty.said(stopped)
    assert [result(folder)["version"] for folder in (stopped, overtaking)] == [1, 2]
    folder = Folder(str(table))
    assert [info.path for info in folder.list("data")] == [part.path for part in snapshot.current(folder).parts]
    assert folder.list(layout.RECORDS) == []
    inline.embed(spec_of(later, tiny_model, tmp_path / "undisturbed"))
    same_rows(read_table(table), read_table(tmp_path / "undisturbed"))


@pytest.mark.parametrize("published", [False, True], ids=["recorded", "published"])
def test_a_writer_that_comes_after_its_slice_was_recorded_changes_nothing(published, corpus, tiny_model, tmp_path):
    """As a worker does that its driver gave up, and that lives on: it has the slice, and writes it once more."""
    spec = spec_of(corpus, tiny_model, tmp_path / "table")
    prepared = prepare.prepare(spec, writes=True)
    worker = prepared.worker_spec(inline.POOLS)
    encoder, tokenizer = inline.built(worker.encode.encoder)
    prove(encoder, worker)
    (task,) = prepared.plan.tasks
    slices = EMBED.read(task, worker, tokenizer)
    encoded = [EMBED.encode(row, encoder, worker, "zombie", None) for row in slices]
    for row in encoded:
        EMBED.write(row, worker)
    if published:
        inline.embed(spec)
    before = state(prepared.table)
    for row in encoded:
        EMBED.write(row, worker)
    assert state(prepared.table) == before
    assert inline.embed(spec).version == 1
    assert inline.embed(spec).version == 1
    assert read_table(tmp_path / "table")["id"].to_pylist() == sorted(f"doc-{n}" for n in range(ROWS))


def state(table: Folder) -> list[tuple[str, str]]:
    """Every file that counts: versions, what is in data/, and records unless their units are live."""
    live = snapshot.current(table).live_units()
    staged = {info.path for info in table.list(layout.STAGED_PARTS)}
    staged |= {info.path for info in table.list(layout.RECORDS) if layout.staged_unit(info.path) in live}
    return [(info.path, info.version) for info in table.list() if info.path not in staged]
