"""A table's path stands for its configuration: it knows its model, and says so where that is gone or another one."""

import json
import shutil
from pathlib import Path

import pytest

import pipeline
from jobs import search, status, verify
from pipeline.errors import InputError
from pipeline.runs import recorded
from pipeline.storage import Folder
from pipeline.table import layout, snapshot
from tests import inline
from tests.inline import spec_of
from tests.tiny import build_tiny_model

SECTIONS = {
    "plain": {},
    "settings": {
        "source": {"keep": ["title"]},
        "model": {"max_seq_length": 14, "prompt": "text: ", "truncate_dim": 8, "normalize": True},
        "table": {"partition_by": ["lang"], "embedding_column": "vector", "dtype": "int8"},
        "chunk": {"max_tokens": 12, "overlap_tokens": 1},
    },
}


@pytest.fixture
def model(tmp_path) -> Path:
    return build_tiny_model(tmp_path / "model", prompts={"query": "find: "})


@pytest.fixture(params=SECTIONS)
def table(request, tmp_path, model) -> Path:
    """A table of each kind, and nothing else of its run."""
    rows = [
        {"id": f"d{n}", "text": f"the market of oil and people {n}", "title": f"T{n}", "lang": "ab"[n % 2]}
        for n in range(12)
    ]
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    inline.embed(spec_of(tmp_path / "docs.jsonl", model, tmp_path / "table", **SECTIONS[request.param]))
    (tmp_path / "docs.jsonl").unlink()
    return tmp_path / "table"


def test_search_verify_and_status_need_no_configuration(table, capsys, monkeypatch):
    monkeypatch.chdir(table.parent)
    for name in (str(table), "table", f"file://{table}"):
        assert status.main([name, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["versions"][-1]["rows"] >= 12
        assert search.main([name, "market of oil", "--top", "3", "--json"]) == 0
        rows = json.loads(capsys.readouterr().out)["rows"]
        assert len(rows) == 3
        assert ("title" in rows[0]) == (recorded.spec_of(name).source.keep == ("title",))
        assert verify.main([name, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["table"]["passed"]


def test_what_a_table_says_is_what_it_was_made_with(table):
    spec, made = recorded.spec_of(str(table)), snapshot.current(Folder(str(table)))
    assert spec.table.dtype == made.fingerprint_of["dtype"]
    assert list(spec.table.partition_by) == made.output_spec["partition_by"]
    assert spec.chunk_identity == made.fingerprint_of["chunk"]
    assert pipeline.runs.published.published(spec).encoder.identity() == made.fingerprint_of["encoder"]


def test_a_model_that_moved_is_given_and_any_other_is_refused(table, model, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    shutil.move(model, elsewhere)
    with pytest.raises(
        InputError, match=r"the model of table .*table' can't be had: .*model' does not exist.*--set mod"
    ):
        recorded.spec_of(str(table))
    assert recorded.spec_of(str(table), [f"model.path={elsewhere}"]).model.path == str(elsewhere)
    build_tiny_model(model, seed=7)
    with pytest.raises(
        InputError, match=r"model' is not the one that table .* was built with \(its digest is \w{12}, "
    ):
        search.search(recorded.spec_of(str(table)), "oil", 1)


def test_a_table_that_does_not_say_where_its_model_is_can_be_looked_at_and_is_given_one(table, model, capsys):
    file = table / layout.snapshot(1)
    raw = json.loads(file.read_text())
    del raw["embeddings"][0]["model"]
    file.write_text(json.dumps(raw))
    assert status.main([str(table)]) == 0
    with pytest.raises(InputError, match="did not record where its model is: give the place of its model"):
        recorded.spec_of(str(table))
    assert verify.main([str(table), "--set", f"model.path={model}"]) == 0
    capsys.readouterr()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            "nothing",
            "'nothing' does not exist in the working directory '.*': give a configuration file, or the folder or URL of",
        ),
        ("none.yaml", "configuration file 'none.yaml' does not exist"),
        (".", "table '.' has no published version"),
        ("memory://nowhere/table", "has no published version"),
        ("s3:/bucket/table", "has one slash"),
    ],
)
def test_what_is_neither_is_told_of_as_what_it_looks_like(given, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=said):
        recorded.spec_of(given)
