"""A table of chunks: every vector is that of its text, a document is there whole or not at all, cuts change nothing."""

import json
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file

from pipeline.errors import InputError
from pipeline.execution.pools import Pools
from pipeline.runs import prepare
from pipeline.runs import prepared as prepared_run
from pipeline.stages import write
from pipeline.stages.read import read_rows
from pipeline.stages.slice_row import from_cell
from pipeline.storage import Folder
from pipeline.table import layout
from tests import inline
from tests.inline import read_table, same_rows, spec_of, vectors_of
from tests.tiny import build_tiny_model, load_oracle

WORDS = [
    *("the", "market", "of", "new", "york", "went", "up", "when", "people", "saw", "it.", "Was", "it", "so?", "No!"),
    *("서울", "날씨가", "좋은", "中文句子。", "report", "on", "oil"),
]
CHUNK = {"max_tokens": 24, "overlap_tokens": 5}
POISON = "Z"
"""A token whose weights are broken in the poisoned model."""


def documents(count: int, seed: int = 0) -> list[dict]:
    source = random.Random(seed)
    lengths = [0, 1, *(source.randint(2, 160) for _ in range(count - 2))]
    texts = ["  ".join(source.choices(WORDS, k=length)) for length in lengths]
    return [{"id": f"d{number}", "text": text, "topic": f"t{number % 3}"} for number, text in enumerate(texts)]


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("chunked")
    return write_jsonl(folder / "docs.jsonl", documents(60))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("model") / "model", max_seq_length=24)


@pytest.fixture(scope="module")
def chunked(source, model, tmp_path_factory) -> Path:
    table = tmp_path_factory.mktemp("chunked") / "table"
    inline.embed(spec_of(source, model, table, source={"keep": ["topic"]}, chunk=CHUNK))
    return table


def test_every_chunk_has_the_vector_of_its_text_and_the_document_s_columns(source, model, chunked):
    rows = read_table(chunked)
    assert pq.read_schema(next((chunked / "data").glob("*.parquet"))).names == [
        "id", "topic", "text", "doc_id", "chunk_index", "chunk_start", "chunk_end", "embedding",
        "content_hash", "row_hash", "source", "n_tokens", "truncated",
    ]  # fmt: skip
    expected = load_oracle(model).encode(rows["text"].to_pylist())
    assert np.abs(vectors_of(rows) - expected).max() <= 1e-5
    by_document: dict[str, list[dict]] = {}
    for row in rows.drop_columns(["embedding"]).to_pylist():
        by_document.setdefault(row["doc_id"], []).append(row)
    for document in documents(60):
        chunks = sorted(by_document.pop(document["id"]), key=lambda row: row["chunk_index"])
        covered = 0
        for index, row in enumerate(chunks):
            assert (row["id"], row["chunk_index"]) == (f"{document['id']}#{index}", index)
            assert row["text"] == document["text"][row["chunk_start"] : row["chunk_end"]]
            assert row["topic"] == document["topic"]
            assert row["n_tokens"] <= CHUNK["max_tokens"]
            assert row["chunk_start"] <= covered
            covered = row["chunk_end"]
        assert covered == len(document["text"])
    assert not by_document


def test_counts_tell_documents_from_rows(source, model, tmp_path):
    version = inline.embed(spec_of(source, model, tmp_path / "table", chunk=CHUNK))
    assert version.counts.documents == 60
    assert version.counts.rows == version.counts.new > 100


def test_a_row_per_document_has_the_mean_of_its_chunks(source, model, chunked, tmp_path):
    inline.embed(spec_of(source, model, tmp_path / "table", chunk=CHUNK | {"rows": "documents"}))
    whole, parts = read_table(tmp_path / "table"), read_table(chunked)
    assert "doc_id" not in whole.column_names
    assert whole["text"].to_pylist() == [row["text"] for row in sorted(documents(60), key=lambda row: row["id"])]
    vectors, owners = vectors_of(parts), np.array(parts["doc_id"].to_pylist())
    tokens = np.array(parts["n_tokens"].to_pylist())
    for row, name in enumerate(whole["id"].to_pylist()):
        mean = vectors[owners == name].mean(axis=0)
        assert np.abs(vectors_of(whole)[row] - mean / np.linalg.norm(mean)).max() <= 1e-6
        assert whole["n_tokens"][row].as_py() == tokens[owners == name].sum()


def test_other_slices_a_crash_and_another_order_change_nothing(source, model, chunked, tmp_path, monkeypatch):
    spec = spec_of(source, model, tmp_path / "table", source={"keep": ["topic"]}, chunk=CHUNK, limits={"unit_rows": 7})
    with pytest.raises(inline.Died):
        inline.embed(spec, stop_after=3)
    monkeypatch.setattr(prepared_run, "MIN_SLICE_ROWS", 16)
    inline.embed(spec, shuffle=1, encoders=2)
    same_rows(read_table(tmp_path / "table"), read_table(chunked))


def test_a_document_longer_than_a_slice_is_one_slice(model, tmp_path):
    write_jsonl(tmp_path / "docs.jsonl", [{"id": "long", "text": "the market of new york. " * 2000}])
    version = inline.embed(
        spec_of(tmp_path / "docs.jsonl", model, tmp_path / "table", chunk=CHUNK, limits={"unit_rows": 1})
    )
    assert version.counts.documents == 1
    assert version.counts.rows > 300


def poisoned(model: Path, folder: Path) -> Path:
    """The same model, but one token's vector is not a number."""
    import shutil

    shutil.copytree(model, folder)
    weights = load_file(folder / "model.safetensors")
    number = (folder / "vocab.txt").read_text().split("\n").index(POISON.lower())
    name = next(name for name in weights if name.endswith("word_embeddings.weight"))
    weights[name][number] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("rows", ["chunks", "documents"])
def test_a_document_with_a_failed_chunk_is_one_dead_letter(model, tmp_path, rows):
    texts = [
        f"{'the market went up ' * 10}",
        f"{'new people saw it ' * 10} {POISON} {'report on oil ' * 10} {POISON}",
        "oil",
    ]
    write_jsonl(tmp_path / "docs.jsonl", [{"id": f"d{n}", "text": text} for n, text in enumerate([*texts, None])])
    spec = spec_of(
        tmp_path / "docs.jsonl", poisoned(model, tmp_path / "poisoned"), tmp_path / "table",
        chunk=CHUNK | {"rows": rows}, limits={"max_failed_rows": 5},
    )  # fmt: skip
    version = inline.embed(spec)
    assert (version.counts.documents, version.counts.failed, version.counts.failed_new) == (2, 2, 2)
    owners = read_table(tmp_path / "table")["doc_id" if rows == "chunks" else "id"].to_pylist()
    assert set(owners) == {"d0", "d2"}
    table = Folder(str(tmp_path / "table"))
    letters = pa.concat_tables(
        pq.read_table(tmp_path / "table" / info.path) for info in table.list(layout.dead_letters(1))
    ).to_pylist()
    found = {row["id"]: (row["stage"], row["error"]) for row in letters}
    assert len(letters) == 2
    assert found["d3"][0] == "read"
    assert found["d1"][0] == "encode"
    assert found["d1"][1].startswith("chunk ")
    assert inline.embed(spec).version == version.version


def test_other_chunks_are_another_fingerprint_and_refused(source, model, chunked):
    spec = spec_of(source, model, chunked, source={"keep": ["topic"]}, chunk=CHUNK | {"overlap_tokens": 4})
    with pytest.raises(InputError, match=r"chunk\.overlap_tokens was 5, is 4"):
        inline.embed(spec)


def test_a_chunk_longer_than_the_model_reads_is_refused_before_work(source, model, tmp_path):
    with pytest.raises(InputError, match=r"chunk.max_tokens is 25.*at most 24"):
        inline.embed(spec_of(source, model, tmp_path / "table", chunk={"max_tokens": 25}))


def test_an_edited_document_changes_its_chunks_alone(model, tmp_path):
    rows = documents(30, seed=1)
    for number, row in enumerate(rows):
        write_jsonl(tmp_path / f"{number:02}.jsonl", [row])
    spec = spec_of(tmp_path / "*.jsonl", model, tmp_path / "table", chunk=CHUNK)
    inline.embed(spec)
    before = read_table(tmp_path / "table")
    edited = rows[20] | {"text": "oil " + rows[20]["text"]}
    write_jsonl(tmp_path / "20.jsonl", [edited])
    version = inline.embed(spec)
    after = read_table(tmp_path / "table")
    others = pa.compute.not_equal(before["doc_id"], edited["id"])
    kept = before.filter(others)
    same_rows(after.filter(pa.compute.not_equal(after["doc_id"], edited["id"])), kept)
    assert version.counts.unchanged >= kept.num_rows
    assert version.counts.documents == 30


def test_a_prompt_that_leaves_no_room_is_refused_before_work(source, tmp_path, model):
    for chunk, prompt in (({"max_tokens": 2}, ""), ({"max_tokens": 8}, "the market of new york: ")):
        spec = spec_of(source, model, tmp_path / "table", chunk=chunk, model={"path": str(model), "prompt": prompt})
        with pytest.raises(InputError, match=r"special tokens alone are .*: give at least"):
            inline.embed(spec)
    assert not (tmp_path / "table").exists()


def test_what_chunks_repeat_of_their_document_is_written_a_bounded_piece_at_a_time(model, tmp_path, monkeypatch):
    rows = [row | {"body": row["text"]} for row in documents(12)]
    path = write_jsonl(tmp_path / "docs.jsonl", rows)
    inline.embed(spec_of(path, model, tmp_path / "whole", source={"keep": ["body", "topic"]}, chunk=CHUNK))
    monkeypatch.setattr(write, "BATCH_BYTES", 2000)
    spec = spec_of(
        path,
        model,
        tmp_path / "pieces",
        source={"keep": ["body", "topic"]},
        chunk=CHUNK,
        table={"partition_by": ["topic"]},
    )
    inline.embed(spec)
    whole, pieces = read_table(tmp_path / "whole"), read_table(tmp_path / "pieces")
    same_rows(
        pieces.select([*whole.drop_columns(["topic", "row_hash"]).column_names]),
        whole.drop_columns(["topic", "row_hash"]),
    )


def test_a_long_document_with_a_long_kept_column_fits_into_memory(model, tmp_path):
    text = "the market of new york went up " * 12_000
    path = write_jsonl(tmp_path / "docs.jsonl", [{"id": "long", "text": text, "body": text}])
    spec = spec_of(path, model, tmp_path / "table", source={"keep": ["body"]}, chunk={"max_tokens": 24})
    prepared = prepare.prepare(spec, writes=False)
    pools = Pools(
        device="cpu", encoders=1, cpus_per_encoder=1, gpus_per_encoder=0, tokenizers=1, writers=1, cpus_per_task=1
    )  # fmt: skip
    worker = prepared.worker_spec(pools)
    (row,) = read_rows(prepared.plan.tasks[0], worker, inline.built(worker.encode.encoder)[1])
    chunks = from_cell(row, "chunks")
    assert chunks.num_rows > 3000
    assert row.nbytes < 4 * len(text) + 200 * chunks.num_rows
    vectors = np.zeros((chunks.num_rows, 1), np.float32)
    batches = [rows.nbytes for rows, _ in write.row_batches(from_cell(row, "documents"), chunks, vectors)]
    assert len(batches) > 10
    assert max(batches) < 2 * write.BATCH_BYTES
