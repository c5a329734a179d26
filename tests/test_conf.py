"""Every complete configuration that is shipped is valid, and those that can run here do."""

import subprocess
import sys
from pathlib import Path

import pytest

import pipeline
from pipeline import config
from tests.inline import read_table

ROOT = Path(__file__).parents[1]
CONF = sorted((ROOT / "conf").glob("*.yaml"))


@pytest.mark.parametrize("path", CONF, ids=lambda path: path.stem)
def test_a_configuration_is_valid(path, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    assert config.load(path).table.path


def run(name: str, *overrides: str) -> None:
    """As a user would: the command, in a process of its own."""
    arguments = [argument for override in overrides for argument in ("--set", override)]
    command = [sys.executable, "-m", "jobs.embed", f"conf/{name}.yaml", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr


def test_a_folder_of_texts_runs(tmp_path, tiny_model, ray_address):
    notes = tmp_path / "notes"
    (notes / "deeper").mkdir(parents=True)
    (notes / "one.txt").write_text("the market of new york\n\nis up")
    (notes / "deeper" / "two.md").write_text("# Oil\n\n서울 날씨가 좋은\n")
    (notes / "deeper" / "three.html").write_text("<title>News</title><p>people &amp; government<script>x()</script>")
    overrides = [f"source.path={notes}", f"model.path={tiny_model}", f"table.path={tmp_path / 'table'}"]
    run("text-folder", *overrides, f"resources.ray_address={ray_address}")
    rows = read_table(tmp_path / "table").to_pylist()
    texts = {Path(row["id"]).name: row["text"] for row in rows}
    assert texts["one.txt"] == "the market of new york\n\nis up"
    assert texts["two.md"] == "# Oil\n\n서울 날씨가 좋은\n"
    assert "people & government" in texts["three.html"]
    assert "x()" not in texts["three.html"]


def test_long_documents_run(tmp_path, tiny_model, ray_address):
    overrides = [f"model.path={tiny_model}", "chunk.max_tokens=64", "chunk.overlap_tokens=8", "source.limit=20"]
    run("long-documents", *overrides, f"table.path={tmp_path / 'table'}", f"resources.ray_address={ray_address}")
    rows = pipeline.read(tmp_path / "table").to_table(columns=["doc_id", "n_tokens"])
    assert len(set(rows["doc_id"].to_pylist())) == 20
    assert max(rows["n_tokens"].to_pylist()) <= 64
    assert rows.num_rows > 200
