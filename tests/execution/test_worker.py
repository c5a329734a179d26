"""An encoder at work looks for its fastest settings at its first slice; whatever comes of that, the vectors are the same."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from pipeline.encoder import tuning
from pipeline.encoder.encoder import build_encoder
from pipeline.encoder.engines.base import GraphForm
from pipeline.encoder.tokenizer import Tokenizer
from pipeline.errors import RunError
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
        one.load(given)
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


def test_an_int8_table_of_a_processor_without_bfloat16_is_gone_on_with(monkeypatch, encoded):
    """Where bfloat16 gives other vectors than the table's, the encoder computes in float32, or refuses as it would have."""
    proven = []

    class Formed:
        name, dim, longest, may_fuse, may_bfloat16 = "openvino", 32, 128, True, True

        def __init__(self):
            self.form = GraphForm(fused_from=64, bfloat16=True)

        def settle(self, form):
            self.form = form

        def encode(self, ids, lengths):
            return np.ones((len(ids), 32), np.float32)

    def prove(encoder, spec):
        proven.append(encoder.engine.form.bfloat16)
        if encoder.engine.form.bfloat16 or len(proven) > most:
            raise RunError("the encoder no longer gives the vectors")

    monkeypatch.setattr(tuning, "build_encoder", lambda *_: worker.Encoder(Formed(), 1024))
    monkeypatch.setattr(worker, "prove", prove)
    most = 2
    names, _ = encoded(measures=False)
    assert (proven, set(names)) == ([True, False], {"openvino"})
    most = 0
    with pytest.raises(AssertionError):
        encoded(measures=False)


@pytest.mark.parametrize("engine", ["light", "numpy", "made"])
def test_few_texts_take_the_graph_that_was_made_before(engine, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "a.jsonl").write_text(json.dumps({"id": "a", "text": "the quick brown fox"}))
    prepared = prepare(inline.spec_of(tmp_path / "a.jsonl", tiny_model, tmp_path / "table"), writes=True)
    given = prepared.worker_spec(inline.POOLS)
    given = replace(given, encode=replace(given.encode, encoder=replace(given.encode.encoder, engine=engine)))
    monkeypatch.setattr(worker, "hide", lambda names: None)  # It would hide torch from this process, too.

    def encoded() -> tuple[str, np.ndarray]:
        one = SliceEncoder(EMBED, "one", lambda rows, tokens: None)
        one.load(given)
        (row,) = read_task(prepared.plan.tasks[0], given, EMBED, Tokenizer(given.encode.encoder, 1), 0)
        answer = one.encode(row, 0)
        return answer["engine"][0].as_py(), np.frombuffer(answer["vectors"][0].as_py(), np.float32)

    before, vectors = encoded()
    assert before.startswith("torch" if engine == "made" else "numpy")
    build_encoder(replace(given.encode.encoder, engine="auto"), "cpu", 1)
    after, again = encoded()
    assert after.startswith("numpy" if engine == "numpy" else "openvino")
    np.testing.assert_allclose(again, vectors, rtol=0, atol=1e-6)


def test_a_slice_that_ended_a_worker_is_encoded_while_no_other_is(monkeypatch):
    one = SliceEncoder(EMBED, "one", lambda rows, tokens: None)
    one._encoder, one._spec = object(), SimpleNamespace(limits=SimpleNamespace(unit_timeout_s=30.0))
    inside, found, both = [], [], threading.Barrier(2, timeout=10)

    def encoded(row, *_):
        inside.append(row)
        if row in "ab":  # Slices that never ended a worker are in work together.
            both.wait()
        time.sleep(0.05)
        found.append((row, len(inside)))
        inside.remove(row)

    monkeypatch.setattr(one, "_tuned", lambda row, encoder: encoder)
    monkeypatch.setattr(one, "_encoded", encoded)
    monkeypatch.setattr(one, "_encode_apart", lambda row, encoder: encoded(row))
    with ThreadPoolExecutor(6) as threads:
        for row, strikes in [("a", 0), ("b", 0), ("C", 1), ("D", 1), ("e", 0), ("F", 2)]:
            threads.submit(one.encode, row, strikes)
    assert sorted(row for row, _ in found) == sorted("abCDeF")
    assert dict(found)["b"] in (1, 2)
    assert [together for row, together in found if row in "CDF"] == [1, 1, 1]


def test_waiting_for_the_engine_is_no_effort_and_not_being_busy(tiny_model, tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"id": f"{n}", "text": f"text {n}"}) + "\n" for n in range(8)))
    spec = inline.spec_of(tmp_path / "a.jsonl", tiny_model, tmp_path / "table", limits={"unit_rows": 4})
    prepared = prepare(spec, writes=True)
    given = prepared.worker_spec(inline.POOLS)
    one = SliceEncoder(EMBED, "one", lambda rows, tokens: None)
    one.load(given)
    tokenizer = Tokenizer(given.encode.encoder, 1)
    rows = [row for task in prepared.plan.tasks for row in read_task(task, given, EMBED, tokenizer, 0)]
    assert len(rows) == 2
    quick, encoder = one.encode(rows[0], 0), one._encoder
    with ThreadPoolExecutor(1) as threads:
        with encoder._turn:  # as if another slice had the engine
            began = time.time()
            coming = threads.submit(one.encode, rows[1], 0)
            time.sleep(2.0)
            ended = time.time()
        late = coming.result()
    assert json.loads(late["effort"][0].as_py())["encode_s"] < 1.5 < ended - began
    assert late["encode_start"][0].as_py() >= ended
    assert late["encode_stop"][0].as_py() >= late["encode_start"][0].as_py() >= quick["encode_stop"][0].as_py()
