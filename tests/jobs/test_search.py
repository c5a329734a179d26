"""A look at the result: the nearest rows of the published version."""

import json

import numpy as np
import pytest
import yaml

from jobs import search
from pipeline import config
from pipeline.errors import InputError
from pipeline.storage import Folder
from pipeline.table import snapshot
from pipeline.table.search import nearest
from tests.inline import embed, read_table, spec_of, vectors_of
from tests.tiny import build_tiny_model


@pytest.fixture
def spec(tiny_model, tmp_path):
    rows = [{"id": f"d{n}", "text": f"document {n} about {'cats' if n % 2 else 'dogs'}", "n": n} for n in range(60)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"keep": ["n"]}
    return spec_of(tmp_path / "a.jsonl", tiny_model, tmp_path / "table", source=source, table={"partition_by": ["n"]})


def test_the_nearest_rows_are_those_of_a_full_comparison(spec, monkeypatch):
    embed(spec)
    rows = read_table(spec.table.path)
    vectors = vectors_of(rows)
    table = Folder(spec.table.path)
    found = nearest(table, snapshot.current(table), vectors[7], 5)
    order = np.argsort(-(vectors @ vectors[7]))[:5]
    assert np.allclose(found["score"].to_numpy(), (vectors @ vectors[7])[order], atol=1e-6)
    assert found["id"][0].as_py() == rows["id"][7].as_py()


def test_a_query_finds_the_document_with_its_own_text(spec):
    embed(spec)
    found = search.search(spec, "document 13 about cats", 3).to_pylist()
    assert len(found) == 3
    assert (found[0]["id"], round(found[0]["score"], 4)) == ("d13", 1.0)


def test_what_a_row_holds_moves_no_cursor(tiny_model, tmp_path, capsys):
    row = {"id": "\x1b[2J\nd", "text": "a text", "title": "x\r" + "y" * 10_000}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    raw = {
        "source": {"path": str(tmp_path / "a.jsonl"), "id": "id", "text": "text", "keep": ["title"]},
        "model": {"path": str(tiny_model)},
        "table": {"path": str(tmp_path / "table")},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(raw))
    embed(config.from_mapping(raw))
    assert search.main([str(tmp_path / "run.yaml"), "a text"]) == 0
    _, second, snippet = capsys.readouterr().out.splitlines()
    assert snippet.strip() == "a text"
    assert second.startswith(r"1.000  \x1b[2J\nd  title=x\ryyy")
    assert len(second) < 300


@pytest.mark.parametrize("top", [0, -1])
def test_no_rows_can_not_be_asked_for(spec, top):
    embed(spec)
    with pytest.raises(InputError, match=f"--top is {top}; give how many rows to show, 1 or more"):
        search.search(spec, "x", top)


def test_a_table_without_a_version_is_an_error(spec):
    with pytest.raises(InputError, match="no published version"):
        search.search(spec, "x", 3)


def test_a_query_gets_the_models_own_prompt_for_queries_and_its_similarity(tmp_path):
    model = build_tiny_model(tmp_path / "model", prompts={"query": "document 7 about "}, normalize=False)
    settings = json.loads((model / "config_sentence_transformers.json").read_text())
    settings["similarity_fn_name"] = "euclidean"
    (model / "config_sentence_transformers.json").write_text(json.dumps(settings))
    rows = [{"id": f"d{n}", "text": f"document {n} about cats"} for n in range(20)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = spec_of(tmp_path / "a.jsonl", model, tmp_path / "table")
    embed(spec)
    found = search.search(spec, "cats", 2).to_pylist()
    assert (found[0]["id"], round(found[0]["score"], 3)) == ("d7", 0)
    assert found[1]["score"] < -0.01
