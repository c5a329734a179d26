"""The openvino engine: torch's vectors in float32, or a refusal; int8 near them; nothing sent to anyone."""

import logging
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import ModelSpec
from pipeline.encoder.encoder import Encoder, build_encoder
from pipeline.encoder.engines.base import GraphForm
from pipeline.encoder.engines.graph import Unsupported, has_bfloat16
from pipeline.encoder.engines.int8 import graph_file, unpack
from pipeline.encoder.engines.kept_graph import float32_graph, is_made
from pipeline.encoder.engines.openvino import OpenVinoEngine
from pipeline.encoder.engines.torch import TorchEngine
from pipeline.encoder.int8 import FEWEST, quantise
from pipeline.encoder.token_rows import TokenRows
from pipeline.errors import InputError, RunError
from pipeline.model.folder import Int8Graph, encoder_spec
from tests.architectures import build_architecture

EXACT = ["bert", "roberta", "distilbert", "mpnet", "xlm-roberta", "albert", "electra", "nomic_bert", "qwen3", "t5"]
"""Of every kind of positions: learned, offset, relative, rotary."""
REFUSED = ["longformer", "mistral", "mixtral"]
"""Computes something else; gives NaN beside long rows; can't be traced."""


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def rows_of(chance: np.random.Generator, lengths, vocabulary=30):
    width = max(lengths)
    ids = chance.integers(5, vocabulary, (len(lengths), width)).astype(np.int32)
    ids[np.arange(width) >= np.array(lengths)[:, None]] = 0
    return ids, np.array(lengths, np.int32)


@pytest.mark.parametrize("name", EXACT)
def test_an_architecture_gives_torchs_vectors(name, tmp_path):
    spec = encoder_spec(ModelSpec(path=str(build_architecture(tmp_path / "model", name)), engine="openvino"))
    torch, openvino = TorchEngine(spec, "cpu", 1), build_encoder(spec, "cpu", 1).engine
    assert openvino.name == "openvino"
    chance = np.random.default_rng(1)
    for lengths in ([1], [7], [1, 2, 30], [30, 30], [3, 48, 1, 17]):
        ids, sizes = rows_of(chance, lengths)
        np.testing.assert_allclose(openvino.encode(ids, sizes), torch.encode(ids, sizes), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", REFUSED)
def test_an_architecture_that_it_computes_otherwise_is_refused_and_left_to_torch(name, tmp_path):
    path = str(build_architecture(tmp_path / "model", name))
    with pytest.raises(InputError, match="engine 'openvino' can't run this model"):
        build_encoder(encoder_spec(ModelSpec(path=path, engine="openvino")), "cpu", 1)
    auto = replace(encoder_spec(ModelSpec(path=path)), engine="auto")
    assert build_encoder(auto, "cpu", 1).engine.name == "torch"


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6), seed=st.integers(0, 100))
def test_a_vector_does_not_depend_on_its_batch(lengths, seed, tiny_model):
    spec = encoder_spec(ModelSpec(path=str(tiny_model)))
    engine = OpenVinoEngine(spec, float32_graph(spec, token_types=False), 1)
    ids, sizes = rows_of(np.random.default_rng(seed), lengths)
    together = engine.encode(ids, sizes)
    for row, length in enumerate(lengths):
        alone = engine.encode(ids[row : row + 1, :length], sizes[row : row + 1])
        np.testing.assert_allclose(together[row], alone[0], rtol=0, atol=2e-6)


def test_an_encoder_asks_for_few_shapes_and_gives_the_vectors_of_many(tiny_model, monkeypatch):
    """Each costs compiling: a corpus with rows of every length has some dozens."""
    spec = replace(encoder_spec(ModelSpec(path=str(tiny_model))), engine="openvino")
    encoder = build_encoder(spec, "cpu", 1)
    longest = spec.max_seq_length
    assert longest is not None
    chance = np.random.default_rng(0)
    lengths = chance.integers(1, longest + 1, 3000)
    tokens = TokenRows.of([chance.integers(5, 30, length).astype(np.int32) for length in lengths])
    shapes, encode = [], encoder.engine.encode

    def watched(ids, sizes):
        shapes.append(ids.shape)
        return encode(ids, sizes)

    monkeypatch.setattr(encoder.engine, "encode", watched)
    encoded = encoder.encode(tokens)
    assert not encoded.failed
    assert max(width for _, width in shapes) == longest
    assert encoded.padded_tokens == sum(rows * width for rows, width in shapes)
    assert len(set(shapes)) < 1.5 * (64 + 32 * np.log2(longest / 64))
    expected = build_encoder(replace(spec, engine="torch"), "cpu", 1).encode(tokens).vectors
    np.testing.assert_allclose(encoded.vectors, expected, rtol=0, atol=1e-5)


def test_a_graph_is_made_once_on_a_node_and_for_one_model(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    spec = encoder_spec(ModelSpec(path=str(tiny_model)))
    assert not is_made(spec, token_types=False)
    first = float32_graph(spec, token_types=False)
    assert is_made(spec, token_types=False)
    assert not is_made(spec, token_types=True)
    made = first.stat().st_mtime_ns
    assert float32_graph(spec, token_types=False) == first
    assert first.stat().st_mtime_ns == made
    assert float32_graph(spec, token_types=True) != first


def test_loggers_are_left_as_they_were(tiny_model, tmp_path, monkeypatch):
    """OpenVINO's converter leaves the root logger at ERROR where it fails, nncf would set every handler it finds."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = logging.getLogger()
    before = root.level, [(handler, handler.level) for handler in root.handlers]
    with pytest.raises(Unsupported):
        float32_graph(
            encoder_spec(ModelSpec(path=str(build_architecture(tmp_path / "model", "mixtral")))), token_types=False
        )
    spec = encoder_spec(ModelSpec(path=str(tiny_model), precision="int8"))
    chance = np.random.default_rng(0)
    lengths = chance.integers(2, 40, 200)
    quantise(spec, TokenRows.of([chance.integers(5, 30, length).astype(np.int32) for length in lengths]), 1)
    assert (root.level, [(handler, handler.level) for handler in root.handlers]) == before


def test_a_refusal_is_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    spec = encoder_spec(ModelSpec(path=str(build_architecture(tmp_path / "model", "mixtral"))))
    with pytest.raises(Unsupported, match="can't convert"):
        float32_graph(spec, token_types=False)
    assert not is_made(spec, token_types=False)
    monkeypatch.setattr("pipeline.encoder.engines.tracing.trace", lambda *_, **__: pytest.fail("traced again"))
    with pytest.raises(Unsupported, match="can't convert"):
        float32_graph(spec, token_types=False)


def test_a_cache_that_can_t_be_written_costs_time_and_nothing_else(tiny_model, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    spec = encoder_spec(ModelSpec(path=str(tiny_model)))
    assert float32_graph(spec, token_types=False).is_file()


def test_int8_is_near_float32_and_the_same_for_the_same_texts(tiny_model, tmp_path):
    spec = encoder_spec(ModelSpec(path=str(tiny_model), precision="int8"))
    chance = np.random.default_rng(0)
    tokens = TokenRows.of([chance.integers(5, 30, length).astype(np.int32) for length in chance.integers(2, 40, 200)])
    content, made = quantise(spec, tokens, 1)
    assert made.agreement.mean_cosine >= 0.99
    assert (made.measured_on, made.agreement.texts) == (100, 100)
    assert quantise(spec, tokens, 1)[1].agreement == made.agreement
    assert len(content) > 1000


@pytest.mark.parametrize("fused_from", [0, 20, None])
def test_int8_has_near_vectors_in_float32_and_bfloat16(fused_from, tiny_model, tmp_path):
    spec = encoder_spec(ModelSpec(path=str(tiny_model), precision="int8"))
    chance = np.random.default_rng(0)
    tokens = TokenRows.of([chance.integers(5, 30, length).astype(np.int32) for length in chance.integers(2, 40, 200)])
    content, made = quantise(spec, tokens, 1)
    unpack(content, tmp_path)
    engine = OpenVinoEngine(replace(spec, int8=Int8Graph(digest=made.digest, file="")), graph_file(tmp_path), 1)
    assert engine.form.bfloat16 == engine.may_bfloat16 == has_bfloat16()
    found = {}
    for bfloat16 in (False, True):
        engine.settle(GraphForm(fused_from=fused_from, bfloat16=bfloat16))
        found[bfloat16] = Encoder(engine, 1024).encode(tokens).vectors
    assert np.array_equal(found[False], found[True]) != has_bfloat16()
    assert (found[False] * found[True]).sum(axis=1).mean() > 0.999
    exact = build_encoder(replace(spec, precision="float32"), "cpu", 1).encode(tokens).vectors
    assert min((vectors * exact).sum(axis=1).mean() for vectors in found.values()) > 0.99


def test_int8_needs_texts(tiny_model):
    spec = encoder_spec(ModelSpec(path=str(tiny_model), precision="int8"))
    row = np.array([5, 6, 7], np.int32)
    with pytest.raises(RunError, match=f"gave 1 different ones; at least {FEWEST}"):
        quantise(spec, TokenRows.of([row] * 100), 1)


def test_int8_without_a_table_is_refused(tiny_model):
    with pytest.raises(InputError, match=r"run `python -m jobs\.embed` first"):
        build_encoder(encoder_spec(ModelSpec(path=str(tiny_model), precision="int8")), "cpu", 1)


def test_nothing_reports_to_anyone():
    """The libraries do so by a package of its own, if they find it."""
    script = "import pipeline.encoder.engines.graph, sys; import nncf; print(sys.modules['openvino_telemetry'])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "None"
