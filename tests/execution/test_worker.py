"""An encoder at work looks for its fastest settings at its first slice; whatever comes of that, the vectors are the same."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from pipeline.encoder.tokenizer import Tokenizer
from pipeline.execution import worker
from pipeline.execution.worker import SliceEncoder, read_task
from pipeline.runs.prepare import prepare
from pipeline.stages.flow import EMBED
from tests import inline


@pytest.fixture
def encoded(tiny_model, tmp_path, monkeypatch):
    """Encodes the slices of a small corpus, (what the engine is said to be, the vectors)."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    lines = [json.dumps({"id": str(number), "text": "the quick brown fox " * number}) for number in range(1, 13)]
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/a.jsonl").write_text("\n".join(lines))
    limits = {"unit_rows": 4}
    spec = inline.spec_of(
        tmp_path / "corpus", tiny_model, tmp_path / "table", model={"engine": "openvino"}, limits=limits
    )

    def encode(*, measures: bool = True) -> tuple[list[str], np.ndarray]:
        prepared = prepare(spec, writes=False)
        given = prepared.worker_spec(inline.POOLS)
        given = replace(given, encode=replace(given.encode, measures=measures))
        tokenizer = Tokenizer(given.encode.encoder, 1)
        one = SliceEncoder(EMBED, "one", lambda rows, tokens: None)
        one.load(given, lambda: tokenizer)
        slices = [row for task in prepared.plan.tasks for row in read_task(task, given, EMBED, tokenizer, 0)]
        assert len(slices) > 1
        answers = pa.concat_tables(one.encode(row, 0) for row in slices)
        assert answers["refused"].null_count == len(answers)
        vectors = np.concatenate([np.frombuffer(cell.as_py(), np.float32) for cell in answers["vectors"]])
        return answers["engine"].to_pylist(), vectors

    return encode


def test_it_says_what_it_found_and_gives_the_same_vectors(encoded):
    names, plain = encoded(measures=False)
    assert set(names) == {"openvino"}
    names, vectors = encoded()
    assert len(set(names)) == 1
    assert "attention" in names[0]
    assert "tokens a batch" in names[0]
    np.testing.assert_allclose(vectors, plain, rtol=1e-4, atol=1e-5)
    assert encoded(measures=False)[0] == names  # kept on this node


def test_what_goes_wrong_while_measuring_costs_no_row(encoded, monkeypatch):
    _, plain = encoded(measures=False)

    def failing(*given, **options):
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(worker, "tuned", failing)
    names, vectors = encoded()
    assert set(names) == {"openvino, as it comes, as measuring failed: RuntimeError: no such instruction"}
    np.testing.assert_array_equal(vectors, plain)


def test_settings_with_other_vectors_are_not_taken(encoded, monkeypatch):
    _, plain = encoded(measures=False)

    class Turned:
        name, dim, longest = "openvino", 32, 128

        def encode(self, ids, lengths):
            return np.ones((len(ids), 32), np.float32)

    def other(encoder, setup, lengths, *, measures):
        found = worker.Encoder(Turned(), 1024)
        found.settings = "fast"
        return found

    monkeypatch.setattr(worker, "tuned", other)
    names, vectors = encoded()
    assert "measuring failed" in names[0]
    np.testing.assert_array_equal(vectors, plain)
