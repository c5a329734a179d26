"""Scores of evaluation sets are those that scipy, scikit-learn and MTEB give; files that can't be read are told."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from pipeline.errors import InputError
from pipeline.runs import evaluate
from pipeline.runs.evaluate import (
    ndcg,
    nearest_documents,
    read_pairs,
    read_retrieval,
    recall,
    score_pairs,
    score_retrieval,
)
from tests.conftest import DATA


@settings(deadline=None)
@given(gains=st.lists(st.integers(0, 3), min_size=2, max_size=30), k=st.integers(1, 20))
def test_ndcg_is_that_of_scikit_learn(gains, k):
    ranked = [f"d{number}" for number in range(len(gains))]
    relevant = {name: gain for name, gain in zip(ranked, gains, strict=True) if gain}
    descending = np.arange(len(gains), 0, -1)
    assert ndcg(ranked, relevant, k) == pytest.approx(ndcg_score([gains], [descending], k=k), abs=1e-12)


def test_recall_counts_relevant_documents_that_were_not_found():
    assert recall(["a", "b", "c"], {"a": 1, "c": 2, "gone": 1, "far": 1}, 2) == 0.25
    assert recall(["a"], {}, 2) == 0


def write_tsv(path: Path, rows: list[list[object]]) -> Path:
    content = "".join("\t".join(map(str, row)) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def write_set(folder: Path, documents: list[dict], queries: list[dict], qrels: list[list[object]]) -> Path:
    folder.mkdir()
    for name, rows in (("corpus", documents), ("queries", queries)):
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress(content))
    write_tsv(folder / "qrels-test.tsv.gz", [["query-id", "corpus-id", "score"], *qrels])
    return folder


@pytest.mark.parametrize("name", ["pairs.tsv", "pairs.tsv.gz"])
def test_pairs_are_read_as_they_stand(tmp_path, name):
    odd = 'it is "so'
    rows = [["id", "sentence1", "score", "sentence2"], ["x", odd, 1.5, "one\u2028two"], ["y", "", 0, "b"]]
    pairs = read_pairs(write_tsv(tmp_path / name, rows))
    assert pairs.scores == (1.5, 0)
    assert (pairs.first, pairs.second) == ((odd, ""), ("one\u2028two", "b"))


def on_a_line(texts):
    """A text's number as its only, and so its cosine's, content."""
    return np.array([[float(text), 1] for text in texts], np.float32)


def test_pairs_are_scored_by_the_function_asked_for(tmp_path):
    rows = [["score", "sentence1", "sentence2"], [3, "1", "1"], [2, "1", "2"], [1, "5", "9"]]
    pairs = read_pairs(write_tsv(tmp_path / "pairs.tsv", rows))
    assert score_pairs(pairs, on_a_line, "euclidean").spearman == pytest.approx(1)
    assert score_pairs(pairs, on_a_line, "dot").spearman == pytest.approx(-1)
    same = score_pairs(pairs, lambda texts: np.ones((len(texts), 2), np.float32), "cosine")
    assert same.spearman is None
    assert "all pairs are equally alike" in str(same)


def test_retrieval_ranks_by_similarity_and_breaks_ties_as_trec_eval(tmp_path):
    documents = [
        {"_id": "a", "title": "", "text": "3"},
        {"_id": "b", "title": "3", "text": ""},
        {"_id": "c", "title": "7", "text": " "},
    ]
    queries = [{"_id": "q", "text": "3"}, {"_id": "unjudged", "text": "1"}]
    qrels = [["q", "a", 2], ["q", "c", 0]]
    judged = read_retrieval(write_set(tmp_path / "set", documents, queries, qrels))
    assert judged.documents == {"a": "3", "b": "3", "c": "7"}
    assert judged.queries == {"q": "3"}
    score = score_retrieval(judged, on_a_line, on_a_line, "euclidean")
    # a and b are equally near: b stands first.
    assert score.ndcg_at_10 == pytest.approx(1 / np.log2(3))
    assert (score.recall_at_100, score.documents, score.queries) == (1, 3, 1)


def test_more_queries_than_are_compared_at_once(tmp_path, monkeypatch):
    documents = [{"_id": f"d{number}", "text": str(number)} for number in range(7)]
    queries = [{"_id": f"q{number}", "text": str(number)} for number in range(7)]
    qrels = [[f"q{number}", f"d{number}", 1] for number in range(7)]
    judged = read_retrieval(write_set(tmp_path / "set", documents, queries, qrels))
    monkeypatch.setattr(evaluate, "_QUERIES_AT_A_TIME", 3)
    score = score_retrieval(judged, on_a_line, on_a_line, "euclidean")
    assert (score.ndcg_at_10, score.recall_at_100) == (1, 1)


@settings(deadline=None)
@given(
    scores=st.lists(st.lists(st.integers(-3, 3), min_size=30, max_size=30), min_size=1, max_size=4),
    count=st.integers(1, 40),
    at_a_time=st.integers(1, 35),
)
def test_the_nearest_are_the_first_of_a_full_stable_sort(scores, count, at_a_time):
    """A query i is the i-th unit vector, so that its similarities with the documents are the numbers drawn."""
    documents = np.array(scores, np.float32).T
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "_DOCUMENTS_AT_A_TIME", at_a_time)
        found = nearest_documents(np.eye(len(scores), dtype=np.float32), documents, "dot", count)
    assert np.array_equal(found, np.argsort(-documents.T, axis=1, kind="stable")[:, :count])


def test_nan_is_nearest_to_nothing():
    documents = np.array([[np.nan], [1], [np.nan], [2]], np.float32)
    for count in (1, 2, 3, 4):
        assert (
            nearest_documents(np.ones((1, 1), np.float32), documents, "dot", count)[0].tolist() == [3, 1, 0, 2][:count]
        )


@pytest.mark.parametrize("name", ["qrels/test.tsv", "qrels/test.tsv.gz", "qrels-test.tsv"])
def test_a_folder_as_beir_has_it_is_read(tmp_path, name):
    folder = write_set(tmp_path / "set", [{"_id": "a", "text": "x"}], [{"_id": "q", "text": "x"}], [["q", "a", 1]])
    expected = read_retrieval(folder)
    (folder / "qrels-test.tsv.gz").unlink()
    with pytest.raises(InputError, match=r"holds no qrels/test\.tsv and no qrels-test\.tsv, gzipped or not"):
        read_retrieval(folder)
    (folder / "qrels").mkdir()
    write_tsv(folder / name, [["query-id", "corpus-id", "score"], ["q", "a", 1]])
    assert read_retrieval(folder) == expected


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([["score", "sentence1"], [1, "a"]], "expected score, sentence1, sentence2"),
        ([], "expected score, sentence1, sentence2"),
        ([["score", "sentence1", "sentence2"], [1, "a", "b"], [1, "a"]], "line 3 has 2 fields; its header has 3"),
        ([["score", "sentence1", "sentence2"], ["high", "a", "b"]], "line 2 has the score 'high'"),
        ([["score", "sentence1", "sentence2"], ["nan", "a", "b"]], "line 2 has the score 'nan'"),
        ([["score", "sentence1", "sentence2"], [1, "a", "b"], [1, "c", "d"]], "nothing to correlate"),
    ],
)
def test_pairs_that_are_not_in_the_form_are_told(tmp_path, rows, told):
    with pytest.raises(InputError, match=told):
        read_pairs(write_tsv(tmp_path / "pairs.tsv", rows))


def test_a_file_that_is_missing_or_no_gzip_is_told(tmp_path):
    with pytest.raises(InputError, match="can't be read"):
        read_pairs(tmp_path / "nothing.tsv")
    (tmp_path / "torn.tsv.gz").write_bytes(gzip.compress(b"score\tsentence1\tsentence2\n" * 100)[:-12])
    with pytest.raises(InputError, match="can't be read"):
        read_pairs(tmp_path / "torn.tsv.gz")


@pytest.mark.parametrize(
    ("documents", "qrels", "told"),
    [
        ([{"_id": "a", "text": "x"}], [["other", "a", 1]], "line 2 judges query 'other'"),
        ([{"_id": "a"}], [["q", "a", 1]], "'text' is None; expected a string"),
        ([{"_id": 1, "text": "x"}], [["q", "a", 1]], "'_id' is 1; expected a string"),
        ([], [["q", "a", 1]], "no documents"),
        ([{"_id": "a", "text": "x"}], [], "no judged queries"),
    ],
)
def test_a_retrieval_set_that_is_not_in_the_form_is_told(tmp_path, documents, qrels, told):
    folder = write_set(tmp_path / "set", documents, [{"_id": "q", "text": "x"}], qrels)
    with pytest.raises(InputError, match=told):
        read_retrieval(folder)


def test_a_retrieval_set_without_a_file_is_told(tmp_path):
    with pytest.raises(InputError, match=r"holds no corpus\.jsonl"):
        read_retrieval(tmp_path)


@pytest.mark.parametrize(
    ("name", "documents", "queries"), [("cranfield", 1400, 225), ("cisi", 1460, 76), ("xquad-en", 240, 1187)]
)
def test_real_sets_are_read_whole(name, documents, queries):
    folder = DATA / "retrieval" / name
    if not folder.is_dir():
        pytest.skip(f"the evaluation sets are not at {DATA}: set PIPELINE_TEST_DATA to their folder")
    judged = read_retrieval(folder)
    assert (len(judged.documents), len(judged.queries)) == (documents, queries)
    assert set().union(*judged.relevant.values()) <= judged.documents.keys()
