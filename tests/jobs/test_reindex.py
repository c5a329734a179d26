"""The reindex on Ray: the command, the shuffle, a night on which things are missing, and kills of the real process."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import pipeline
from jobs import reindex
from pipeline.execution import by_size
from pipeline.execution.ray import executor as ray_executor
from pipeline.runs import row_changes
from pipeline.storage import Folder
from pipeline.table import layout, snapshot
from tests import faulty, inline
from tests.inline import read_table, same_rows, spec_of
from tests.runs.test_reindex import MODES, Corpus, check_row_sources, spec_for

ROWS, FILES, UNIT_ROWS, ENCODERS, WRITERS = 2000, 5, 50, 1, 1
MOMENTS = {
    "reading the changed files": "pipeline.stages.row_keys:read_keys:1",
    "encoding": "pipeline.stages.distinct_texts:_tokenize:3",
    "between the vectors and their record": "pipeline.stages.write:create:2",
    "writing rows": "pipeline.stages.row_writer:write_upserts:1",
    "before the commit": "pipeline.table.publication:Publication.create:1",
    "amid materialising": "pipeline.table.materialise:_copy_lists:1",
}
QUICK = ("between the vectors and their record",)


def write_file(folder: Path, number: int, rows: list[dict[str, Any]], prefix: str = "") -> None:
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / f"{prefix}{number}.parquet", row_group_size=100)


def first_rows() -> list[list[dict[str, Any]]]:
    each = ROWS // FILES
    return [
        [
            {"id": f"doc-{n}", "text": f"document about {n}", "label": n % 3}
            for n in range(file * each, (file + 1) * each)
        ]
        for file in range(FILES)
    ]


def changed_rows() -> list[list[dict[str, Any]]]:
    """A quarter has new texts, some rows go, some move, some have another label; all of it is in another order."""
    rows = [row for rows in first_rows() for row in rows]
    for number, row in enumerate(rows):
        if number % 4 == 0:
            row["text"] = f"news of {number // 2}"
        elif number % 50 == 1:
            row["label"] = 7
    rows = [row for number, row in enumerate(rows) if number % 25 != 3]
    random.Random(1).shuffle(rows)
    return [rows[number::FILES] for number in range(FILES)]


NEW_TEXTS = len({row["text"] for rows in changed_rows() for row in rows if row["text"].startswith("news")})


def write_config(folder: Path, corpus: Path, model: Path, table: Path, **resources: Any) -> Path:
    config = {
        "source": {"path": str(corpus), "id": "id", "text": "text"},
        "model": {"path": str(model)},
        "table": {"path": str(table), "partition_by": ["label"]},
        "resources": {"encoders": ENCODERS, "writers": WRITERS} | resources,
        "limits": {"unit_rows": UNIT_ROWS, "max_failed_files": 2},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder / "config.yaml"


@pytest.fixture(scope="module")
def night(tiny_model, tmp_path_factory) -> Path:
    """A published table of yesterday, the sources of today, and the table of today built from nothing."""
    folder = tmp_path_factory.mktemp("night")
    for number, rows in enumerate(first_rows()):
        write_file(folder / "corpus", number, rows)
    spec = lambda table: spec_of(folder / "corpus", tiny_model, folder / table, table={"partition_by": ["label"]})  # noqa: E731
    inline.embed(spec("yesterday"))
    shutil.rmtree(folder / "corpus")
    for number, rows in enumerate(changed_rows()):
        write_file(folder / "corpus", number, rows, prefix="new-")
    inline.embed(spec("today"))
    return folder


def test_the_command_plans_exactly_and_does_what_it_planned(night, ray_address, tiny_model, tmp_path, capsys):
    shutil.copytree(night / "yesterday", tmp_path / "table")
    config = write_config(tmp_path, night / "corpus", tiny_model, tmp_path / "table", ray_address=ray_address)
    listed = sorted(path for path in (tmp_path / "table").rglob("*"))
    assert reindex.main([str(config), "--dry-run", "--json", "--price-per-hour", "2"]) == 10
    planned = json.loads(capsys.readouterr().out)
    assert sorted(path for path in (tmp_path / "table").rglob("*")) == listed
    assert reindex.main([str(config), "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    for name in ("new", "changed", "deleted", "unchanged"):
        assert planned[name] == done["counts"][name], name
    assert planned["to_encode"] == done["to_encode"] == done["counts"]["encoded"] == NEW_TEXTS
    assert planned["reusable"] == done["reusable"]
    assert planned["deleted"] == ROWS // 25
    same_rows(read_table(tmp_path / "table"), read_table(night / "today"))
    check_row_sources(Folder(str(tmp_path / "table")))
    assert reindex.main([str(config), "--dry-run"]) == 0
    assert reindex.main([str(config)]) == 0
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["whole", "chunks"])
def test_the_shuffle_finds_what_this_process_finds(mode, ray_address, tiny_model, tmp_path, monkeypatch):
    corpus = Corpus(tmp_path / "corpus", 5)
    spec = spec_for(corpus.folder, tiny_model, tmp_path / "table", MODES[mode])
    inline.embed(spec)
    for _ in range(4):
        corpus.change()
    corpus.export()
    corpus.update()
    corpus.insert()
    corpus.write()
    inline.embed(spec_for(corpus.folder, tiny_model, tmp_path / "fresh", MODES[mode]))
    monkeypatch.setattr(by_size, "KEYS_HERE", 0)
    monkeypatch.setattr(by_size, "CLUSTER_START_S", 0.0)
    monkeypatch.setattr(ray_executor, "DIFF_KEYS_PER_BUCKET", 20)
    assert pipeline.reindex(replace(spec, resources=replace(spec.resources, ray_address=ray_address))).published
    same_rows(read_table(tmp_path / "table"), read_table(tmp_path / "fresh"))
    check_row_sources(Folder(str(tmp_path / "table")))


@pytest.mark.slow
def test_the_shuffle_finds_files_that_vanished_and_nothing_to_read(ray_address, tiny_model, tmp_path, monkeypatch):
    for number, rows in enumerate(first_rows()[:2]):
        write_file(tmp_path / "corpus", number, rows)
    spec = spec_of(tmp_path / "corpus", tiny_model, tmp_path / "table", resources={"ray_address": ray_address})
    inline.embed(replace(spec, limits=replace(spec.limits, unit_rows=100)))
    (tmp_path / "corpus" / "1.parquet").unlink()
    monkeypatch.setattr(row_changes, "KEYS_HERE", 0)
    limits = replace(spec.limits, unit_rows=100, max_deleted_rows=1000)
    found = pipeline.reindex(replace(spec, limits=limits))
    assert (found.counts.deleted, found.counts.rows) == (len(first_rows()[1]), len(first_rows()[0]))


@pytest.mark.slow
def test_another_model_takes_the_place_of_the_table_s_only_when_asked(ray_address, tmp_path, capsys):
    from tests.tiny import build_tiny_model

    write_file(tmp_path / "corpus", 0, first_rows()[0])
    for seed in (0, 1):
        build_tiny_model(tmp_path / f"model-{seed}", seed=seed)
    spec = spec_of(tmp_path / "corpus", tmp_path / "model-0", tmp_path / "table", table={"partition_by": ["label"]})
    inline.embed(spec)
    config = write_config(
        tmp_path, tmp_path / "corpus", tmp_path / "model-1", tmp_path / "table", ray_address=ray_address
    )
    with pytest.raises(pipeline.PipelineError, match="another model") as raised:
        reindex.main([str(config)])
    assert raised.value.exit_code == 2
    assert reindex.main([str(config), "--new-model", "--dry-run"]) == 10
    assert reindex.main([str(config), "--new-model"]) == 0
    fresh = spec_of(tmp_path / "corpus", tmp_path / "model-1", tmp_path / "fresh", table={"partition_by": ["label"]})
    inline.embed(fresh)
    same_rows(read_table(tmp_path / "table"), read_table(tmp_path / "fresh"))
    table = Folder(str(tmp_path / "table"))
    assert snapshot.current(table).fingerprint == snapshot.current(Folder(str(tmp_path / "fresh"))).fingerprint
    # Whoever follows the changes has every vector anew.
    upserted = [
        row
        for info in table.list(layout.changes(2))
        for row in snapshot.read_parquet(table.read(info.path)).to_pylist()
    ]
    assert [row["op"] for row in upserted] == ["upsert"] * len(first_rows()[0])
    capsys.readouterr()
    assert reindex.main([str(config)]) == 0
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.slow
def test_a_build_with_another_model_takes_no_more_rows_than_a_night_may(ray_address, tmp_path):
    """Lines are counted only as they are read."""
    from tests.tiny import build_tiny_model

    lines = [json.dumps({"id": f"{n}", "text": f"text {n}", "label": 0}) + "\n" for n in range(10)]
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.jsonl").write_text("".join(lines))
    for seed in (0, 1):
        build_tiny_model(tmp_path / f"model-{seed}", seed=seed)
    spec = spec_of(tmp_path / "corpus", tmp_path / "model-0", tmp_path / "table", table={"partition_by": ["label"]})
    inline.embed(spec)
    (tmp_path / "corpus" / "a.jsonl").write_text("".join(lines[:7]))
    config = write_config(
        tmp_path, tmp_path / "corpus", tmp_path / "model-1", tmp_path / "table", ray_address=ray_address
    )
    with pytest.raises(pipeline.PipelineError, match=r"max_deleted_rows is 0\.2") as raised:
        reindex.main([str(config), "--new-model"])
    assert raised.value.exit_code == 1
    assert snapshot.current(Folder(str(tmp_path / "table"))).version == 1
    assert reindex.main([str(config), "--new-model", "--allow-deletes"]) == 0
    version = snapshot.current(Folder(str(tmp_path / "table")))
    assert (version.counts.rows, version.counts.deleted) == (7, 3)
    assert "tokens_per_s" not in version.timings  # nothing was left to encode: it tells no rate


def test_a_bad_night_leaves_the_rows_of_what_cannot_be_read(night, ray_address, tiny_model, tmp_path, capsys):
    shutil.copytree(night / "today", tmp_path / "table")
    shutil.copytree(night / "corpus", tmp_path / "corpus", copy_function=shutil.copy2)
    before = read_table(tmp_path / "table")
    config = write_config(tmp_path, tmp_path / "corpus", tiny_model, tmp_path / "table", ray_address=ray_address)
    # Another folder: every file is new, though its rows are not.
    assert reindex.main([str(config)]) == 0
    for number in (0, 1):
        path = tmp_path / "corpus" / f"new-{number}.parquet"
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    rows = changed_rows()[2][1:]
    write_file(tmp_path / "corpus", 2, rows, prefix="new-")
    capsys.readouterr()
    assert reindex.main([str(config), "--json"]) == 3
    told = json.loads(capsys.readouterr().out)
    assert sorted(Path(item["path"]).name for item in told["stale_files"]) == ["new-0.parquet", "new-1.parquet"]
    assert (told["counts"]["deleted"], told["counts"]["encoded"]) == (1, 0)
    after = read_table(tmp_path / "table")
    assert set(before["id"].to_pylist()) - set(after["id"].to_pylist()) == {changed_rows()[2][0]["id"]}
    shutil.rmtree(tmp_path / "corpus")
    (tmp_path / "corpus").mkdir()
    with pytest.raises(pipeline.PipelineError) as raised:
        reindex.main([str(config)])
    assert raised.value.exit_code == 2
    same_rows(read_table(tmp_path / "table"), after)


# --- kills


def start(folder: Path, **faults: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "jobs.reindex", str(folder / "config.yaml"), "--json"]
    with (folder / "out").open("wb") as out, (folder / "log").open("ab") as log:
        return subprocess.Popen(
            command,
            env=faulty.environment(folder, COUNT_BATCHES="1", **faults),
            cwd=faulty.ROOT,
            stdout=out,
            stderr=log,
        )


def prepare(night: Path, tiny_model: Path, folder: Path) -> None:
    shutil.copytree(night / "yesterday", folder / "table")
    write_config(folder, night / "corpus", tiny_model, folder / "table")


def finish(night: Path, folder: Path) -> None:
    """Start it again; what comes of it is the table of an undisturbed run, and no text was encoded twice beyond those in
    flight."""
    assert start(folder).wait(120) == 0, (folder / "log").read_text()
    same_rows(read_table(folder / "table"), read_table(night / "today"))
    table = Folder(str(folder / "table"))
    assert snapshot.versions(table) == [1, 2]
    assert faulty.encoded(folder) - NEW_TEXTS <= (2 * ENCODERS + WRITERS + 1) * UNIT_ROWS
    assert table.list(layout.RECORDS) == []
    check_row_sources(table)


@pytest.mark.parametrize(
    "moment", [pytest.param(moment, marks=() if moment in QUICK else pytest.mark.slow) for moment in MOMENTS]
)
def test_a_killed_reindex_started_again_goes_on(moment, night, tiny_model, tmp_path):
    prepare(night, tiny_model, tmp_path)
    assert start(tmp_path, FAULT=MOMENTS[moment]).wait(120) == -signal.SIGKILL, (tmp_path / "log").read_text()
    finish(night, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_kills_at_random_moments(night, tiny_model, tmp_path_factory):
    whole = tmp_path_factory.mktemp("undisturbed")
    prepare(night, tiny_model, whole)
    started = time.monotonic()
    assert start(whole).wait(120) == 0
    length = time.monotonic() - started
    moments = random.Random(7)
    for kill in range(10):
        folder = tmp_path_factory.mktemp(f"kill-{kill}")
        prepare(night, tiny_model, folder)
        process = start(folder)
        time.sleep(moments.uniform(1, length))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        finish(night, folder)
