"""Rows that raise, segfault, are killed for lack of memory or hang: each costs itself, and the run ends."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pipeline.config import ModelSpec
from pipeline.model.folder import encoder_spec
from pipeline.tokenizing import Tokenizer
from tests.inline import read_table

ROOT = Path(__file__).parents[2]
KINDS = ("raise", "segfault", "kill", "hang")
POISON = dict(zip(KINDS, "中文子大", strict=True))
"""A token each that no other row has."""
ROWS, TIMEOUT_S = 1200, 20
PLACES = {"raise": 150, "segfault": 420, "kill": 421, "hang": 1100}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_one_poison_row_of_each_kind_costs_one_row_each(tiny_model, tmp_path):
    write_corpus(tmp_path, tiny_model)
    done = embed(tmp_path, POISON=poison(tiny_model))
    assert done.returncode == 3
    assert json.loads(done.stdout)["counts"]["failed_new"] == len(KINDS)
    letters = pa.concat_tables(
        pq.read_table(path) for path in (tmp_path / "table" / "meta" / "dead_letters" / "000001").glob("*.parquet")
    ).sort_by("id")
    assert letters["id"].to_pylist() == sorted(f"doc-{row}" for row in PLACES.values())
    assert set(letters["stage"].to_pylist()) == {"encode"}
    reasons = dict(zip(letters["id"].to_pylist(), letters["error"].to_pylist(), strict=True))
    expected = (
        "ValueError: poison",
        "was ended by SIGSEGV",
        "was ended by SIGKILL",
        f"gave no answer for {TIMEOUT_S} s",
    )
    for kind, reason in zip(KINDS, expected, strict=True):
        assert reason in reasons[f"doc-{PLACES[kind]}"], reasons
    rows = read_table(tmp_path / "table").sort_by("id")
    assert set(rows["id"].to_pylist()) == {f"doc-{n}" for n in range(ROWS)} - set(reasons)
    assert np.isfinite(np.stack(rows["embedding"].to_numpy())).all()


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("pipeline.dataflow:build_encoder", "5 encoders died while they loaded the model"),
        (
            "pipeline.stages:_tokenize",
            "5 workers died, or hung for limits.unit_timeout_s, as they were to read rows of",
        ),
        ("pipeline.stages:create", "5 workers died, or hung for limits.unit_timeout_s, as they were to write rows of"),
    ],
)
def test_work_that_ends_every_worker_ends_the_run_in_words(function, message, tiny_model, tmp_path):
    write_corpus(tmp_path, tiny_model)
    done = embed(tmp_path, FATAL=function)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def write_corpus(folder: Path, model: Path) -> None:
    texts = [f"document about {n % 1100}" for n in range(ROWS)]
    for kind, row in PLACES.items():
        texts[row] = f"a {POISON[kind]} text"
    pq.write_table(pa.table({"id": [f"doc-{n}" for n in range(ROWS)], "text": texts}), folder / "corpus.parquet")
    config = {
        "source": {"path": str(folder / "corpus.parquet"), "id": "id", "text": "text"},
        "model": {"path": str(model)},
        "table": {"path": str(folder / "table")},
        "limits": {"unit_rows": 100, "unit_timeout_s": TIMEOUT_S},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def poison(model: Path) -> str:
    """What the faults read: the token of each kind."""
    tokenizer = Tokenizer(encoder_spec(ModelSpec(path=str(model))), 1)
    return ",".join(f"{tokenizer.tokenize([text]).ids[1]}:{kind}" for kind, text in POISON.items())


def embed(folder: Path, **faults: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT / "tests" / "faults"), str(ROOT)])
    return subprocess.run(
        [sys.executable, "-m", "jobs.embed", str(folder / "config.yaml"), "--json"],
        env=os.environ | {"PYTHONPATH": path, "FAULT_FOLDER": str(folder)} | faults,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=560,
    )
