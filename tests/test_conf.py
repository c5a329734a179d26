"""Every complete configuration that is shipped is valid, and those that can run here do."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from jsonschema import Draft202012Validator

import pipeline
from pipeline import config
from pipeline.errors import ConfigError
from tests import inline
from tests.hub import hub_server
from tests.inline import read_table

ROOT = Path(__file__).parents[1]
CONF = sorted((ROOT / "conf").glob("*.yaml"))


@pytest.mark.parametrize("path", CONF, ids=lambda path: path.stem)
def test_a_configuration_is_valid(path, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "PG_URL"):
        monkeypatch.setenv(name, "x")
    assert config.load(path).table.path


SCHEMA = Draft202012Validator(json.loads((ROOT / "docs" / "schema.json").read_text()))
"""What editors complete configurations by."""


@pytest.mark.parametrize("path", CONF, ids=lambda path: path.stem)
def test_editors_take_a_configuration_that_is_shipped(path):
    text = path.read_text()
    assert (path.parent / re.match(r"# yaml-language-server: \$schema=(\S+)\n", text)[1]).samefile(
        ROOT / "docs" / "schema.json"
    )
    assert list(SCHEMA.iter_errors(yaml.safe_load(text))) == []


SECTIONS = {"source": {"path": "a", "text": "b"}, "model": {"path": "m"}, "table": {"path": "t"}}


def changed(section: str, **keys: object) -> dict[str, object]:
    return SECTIONS | {section: SECTIONS.get(section, {}) | keys}


@pytest.mark.parametrize(
    ("raw", "valid"),
    [
        (SECTIONS, True),
        (changed("source", csv=None, keep=["a"], schema={"a": "int8"}, text=["a", "b"], limit=3), True),
        (changed("resources", encoders="auto", gpus_per_encoder=0.5), True),
        (SECTIONS | {"chunk": None, "limits": None}, True),
        (SECTIONS | {"sorce": {}}, False),
        (changed("source", colum="x"), False),
        (changed("source", csv={"delimitr": ","}), False),
        (changed("source", path=7), False),
        (changed("source", keep="title"), True),
        (changed("source", keep={"source": "origin"}), True),
        (changed("source", keep=7), False),
        (changed("source", exclude={"a": "b"}), False),
        (changed("source", format="orc"), False),
        (changed("model", normalize="yes"), False),
        (changed("resources", encoders=True), False),
        (changed("resources", encoders="all"), False),
        (changed("limits", max_failed_rows="many"), False),
        (SECTIONS | {"chunk": {}}, False),
        (SECTIONS | {"model": None}, False),
        ({"source": SECTIONS["source"]}, False),
    ],
)
def test_editors_and_the_pipeline_agree_on_keys_and_types(raw, valid):
    assert SCHEMA.is_valid(raw) == valid
    if valid:
        config.from_mapping(raw)
    else:
        with pytest.raises(ConfigError):
            config.from_mapping(raw)


def embed(name: str, **overrides: object) -> None:
    """Without Ray, which other tests are for."""
    inline.embed(config.load(ROOT / "conf" / f"{name}.yaml", [f"{key}={value}" for key, value in overrides.items()]))


def test_a_folder_of_texts_runs(tmp_path, tiny_model):
    notes = tmp_path / "notes"
    (notes / "deeper").mkdir(parents=True)
    (notes / "one.txt").write_text("the market of new york\n\nis up")
    (notes / "deeper" / "two.md").write_text("# Oil\n\n서울 날씨가 좋은\n")
    (notes / "deeper" / "three.html").write_text("<title>News</title><p>people &amp; government<script>x()</script>")
    paths = {"source.path": notes, "model.path": tiny_model, "table.path": tmp_path / "table"}
    embed("text-folder", **paths)
    rows = read_table(tmp_path / "table").to_pylist()
    texts = {Path(row["id"]).name: row["text"] for row in rows}
    assert texts["one.txt"] == "the market of new york\n\nis up"
    assert texts["two.md"] == "# Oil\n\n서울 날씨가 좋은\n"
    assert "people & government" in texts["three.html"]
    assert "x()" not in texts["three.html"]


@pytest.mark.slow
def test_long_documents_run(tmp_path, tiny_model, monkeypatch):
    monkeypatch.chdir(ROOT)
    paths = {"model.path": tiny_model, "table.path": tmp_path / "table"}
    embed("long-documents", **paths, **{"chunk.max_tokens": 64, "chunk.overlap_tokens": 8, "source.limit": 20})
    rows = pipeline.read(tmp_path / "table").to_table(columns=["doc_id", "n_tokens"])
    assert len(set(rows["doc_id"].to_pylist())) == 20
    assert max(rows["n_tokens"].to_pylist()) <= 64
    assert rows.num_rows > 200


def run(name: str, table: Path, environment: dict[str, str]) -> str:
    """As a user would: the command, in a process of its own. Returns what it prints."""
    command = [sys.executable, "-m", "jobs.embed", f"conf/{name}.yaml", "--set", f"table.path={table}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_data_set_and_a_model_from_the_hub_run(tmp_path, tiny_model):
    """On a Ray of its own: the workers must find the same Hub as the command."""
    rows = pa.table({"text": [f"the market of {number}" for number in range(40)], "label": [1, 2] * 20})
    (tmp_path / "data").mkdir()
    pq.write_table(rows.slice(0, 30), tmp_path / "data" / "train-00000-of-00001.parquet")
    pq.write_table(rows.slice(30), tmp_path / "data" / "test-00000-of-00001.parquet")
    with hub_server() as hub:
        model = hub.repository("sentence-transformers/all-MiniLM-L6-v2").commit(tiny_model, "main")
        (tmp_path / "set").mkdir()
        (tmp_path / "data").rename(tmp_path / "set" / "data")
        hub.repository("fancyzhx/ag_news", "datasets").commit(tmp_path / "set", "main")
        environment = hub.environment(tmp_path / "home")
        printed = run("hub-dataset", tmp_path / "table", environment)
        again = run("hub-dataset", tmp_path / "table", environment)
        (tmp_path / "set" / "README.md").write_text("# A commit that changes no data")
        hub.repository("fancyzhx/ag_news", "datasets").commit(tmp_path / "set", "main")
        later = run("hub-dataset", tmp_path / "table", environment)
    live = read_table(tmp_path / "table")
    assert sorted(live["text"].to_pylist()) == sorted(rows["text"].to_pylist()[:30])
    assert f"model sentence-transformers/all-MiniLM-L6-v2 at commit {model}" in printed
    assert "nothing to do" in again
    assert "nothing to do" in later
    assert all(name.startswith("hf://datasets/fancyzhx/ag_news/data/train") for name in live["id"].to_pylist())
