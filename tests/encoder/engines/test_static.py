"""Static embeddings: the means of sentence-transformers 6.2, from its own saves and from model2vec's."""

import subprocess
import sys

import numpy as np
import pytest
import tokenizers
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from pipeline.config import ChunkSpec, ModelSpec
from pipeline.encoder.chunking import chunk
from pipeline.encoder.encoder import build_encoder
from pipeline.encoder.engines.numpy_static import NumpyStaticEngine
from pipeline.encoder.engines.static import StaticEngine
from pipeline.encoder.tokenizer import Tokenizer
from pipeline.errors import InputError
from pipeline.model.folder import encoder_spec
from tests.architectures import build_static
from tests.tiny import as_it_stands, build_tiny_model, load_oracle

TEXTS = ["the oil price", "a", "한국어 문장", "oil " * 3000, "x [SEP] y", "The the", "water we work " * 40, "🙂"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = build_tiny_model(tmp_path_factory.mktemp("bert") / "model")
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    return tokenizer


@pytest.fixture
def folder(tmp_path, tokenizer):
    return build_static(tmp_path / "model", tokenizer)


def spec_of(folder, **overrides):
    return encoder_spec(ModelSpec(path=str(folder), **overrides))


def encoded(folder, texts, **overrides):
    spec = spec_of(folder, **overrides)
    return build_encoder(spec, "cpu", 1).encode(Tokenizer(spec, 1).tokenize(texts))


def assert_as_oracle(folder, texts=TEXTS, prompt="", **overrides):
    expected = load_oracle(folder).encode(texts, prompt=prompt, **overrides)
    assert np.abs(expected - expected[0])[1:].max(axis=1).min() > 0.1
    settings = {"normalize": overrides.pop("normalize_embeddings", None), **overrides}
    vectors = encoded(folder, texts, prompt=prompt, **settings).vectors
    np.testing.assert_allclose(vectors, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("normalize", [False, True])
def test_the_vectors_are_those_of_sentence_transformers(tmp_path, tokenizer, normalize):
    assert_as_oracle(build_static(tmp_path, tokenizer, normalize=normalize))


def test_prompt_cut_and_normalisation_work_as_in_sentence_transformers(folder):
    assert_as_oracle(folder, prompt="the query: ")
    assert_as_oracle(folder, truncate_dim=7, normalize_embeddings=True)


@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
@pytest.mark.parametrize("keys", [(), ("mapping",), ("weights",), ("mapping", "weights")])
def test_the_files_of_model2vec_are_read(folder, keys, stored):
    vectors = load_file(folder / "model.safetensors")["embedding.weight"]
    generator = torch.Generator().manual_seed(1)
    rows = len(vectors)
    weights = {"embeddings": vectors.to(stored)}
    if "mapping" in keys:
        weights["embeddings"] = weights["embeddings"][: rows // 2].contiguous()
        weights["mapping"] = torch.randint(0, rows // 2, (rows,), generator=generator)
    if "weights" in keys:
        weights["weights"] = torch.rand(rows, generator=generator, dtype=torch.float64) + 0.5
    save_file(weights, folder / "model.safetensors")
    expected = load_oracle(folder).encode(TEXTS)
    actual = encoded(folder, TEXTS).vectors
    # sentence-transformers computes in the type that is stored.
    np.testing.assert_allclose(actual, expected, atol=1e-6 if expected.dtype != np.float16 else 2e-3, rtol=0)
    expected = expected.astype(np.float32)
    cosine = (actual * expected).sum(axis=1) / np.linalg.norm(actual, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosine.min() > 0.99999


def test_weights_in_a_pickle_are_read(folder):
    expected = encoded(folder, TEXTS).vectors
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    np.testing.assert_array_equal(encoded(folder, TEXTS).vectors, expected)


def test_a_text_has_the_same_vector_alone_and_among_others(folder):
    together = encoded(folder, TEXTS).vectors
    for number, text in enumerate(TEXTS):
        np.testing.assert_array_equal(encoded(folder, [text]).vectors[0], together[number])


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=300), seed=st.integers(0, 99))
def test_numpy_gives_the_vectors_of_torch(lengths, seed, folder):
    for overrides in ({}, {"normalize": True, "truncate_dim": 7}):
        spec = spec_of(folder, **overrides)
        numpy, other = NumpyStaticEngine(spec), StaticEngine(spec, "cpu", 1)
        chance, sizes = np.random.default_rng(seed), np.array(lengths, np.int32)
        ids = chance.integers(0, 90, (len(sizes), sizes.max())).astype(np.int32)
        found = numpy.encode(ids, sizes)
        np.testing.assert_allclose(found, other.encode(ids, sizes), rtol=0, atol=1e-6)
        np.testing.assert_array_equal(numpy.encode(ids[-1:, : sizes[-1]], sizes[-1:])[0], found[-1])


def test_what_numpy_does_not_read_is_left_to_torch(folder):
    expected = encoded(folder, TEXTS).vectors
    assert isinstance(build_encoder(spec_of(folder), "cpu", 1).engine, NumpyStaticEngine)
    weights = load_file(folder / "model.safetensors")
    save_file({name: each.to(torch.bfloat16) for name, each in weights.items()}, folder / "model.safetensors")
    assert isinstance(build_encoder(spec_of(folder), "cpu", 1).engine, StaticEngine)
    np.testing.assert_allclose(encoded(folder, TEXTS).vectors, expected, atol=0.05)


def test_an_encoder_of_it_needs_no_torch(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    script = (
        "import sys; from pipeline.config import ModelSpec; from pipeline.encoder.encoder import build_encoder\n"
        "from pipeline.encoder.probe_tokens import probe_tokens; from pipeline.model.folder import encoder_spec\n"
        f"spec = encoder_spec(ModelSpec(path={str(folder)!r}))\n"
        "build_encoder(spec, 'cpu', 1).encode(probe_tokens(spec).rows)\n"
        "print({'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_texts_without_tokens_and_vectors_of_zeros_are_dead_letters(folder):
    weights = load_file(folder / "model.safetensors")
    token = encoder_tokens(folder, "oil")[0]
    weights["embedding.weight"][token] = 0
    save_file(weights, folder / "model.safetensors")
    result = encoded(folder, ["", " \n", "oil oil", "oil price"])
    assert result.failed == {
        0: "the text has no tokens",
        1: "the text has no tokens",
        2: "the vector holds nothing but zeros",
    }
    assert (load_oracle(folder).encode(["", " \n", "oil oil"]) == 0).all()


def encoder_tokens(folder, text):
    return Tokenizer(spec_of(folder), 1).tokenize([text]).ids.tolist()


def test_a_token_outside_the_table_fails_its_row_alone(folder):
    weights = load_file(folder / "model.safetensors")
    token = encoder_tokens(folder, "中")[0]
    save_file({"embedding.weight": weights["embedding.weight"][:token].contiguous()}, folder / "model.safetensors")
    result = encoded(folder, ["中 oil", "the oil", "oil 中"])
    assert sorted(result.failed) == [0, 2]
    assert np.isfinite(result.vectors[1]).all()


ENGINES = {"numpy": NumpyStaticEngine, "torch": lambda spec: StaticEngine(spec, "cpu", 1)}


@pytest.mark.parametrize("name", ENGINES)
def test_cells_past_the_end_of_a_row_are_never_read(name, folder):
    engine = ENGINES[name](spec_of(folder))
    ids, lengths = np.arange(12, dtype=np.int32).reshape(3, 4), np.array([4, 2, 1], np.int32)
    expected = engine.encode(ids, lengths)
    ids[1, 2:], ids[2, 1:] = 99, -5
    np.testing.assert_array_equal(engine.encode(ids, lengths), expected)
    assert expected.dtype == np.float32
    assert expected.shape == (3, engine.dim)


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_another_precision_is_refused(folder, precision):
    with pytest.raises(InputError, match=r"model\.precision"):
        build_encoder(spec_of(folder, precision=precision), "cpu", 1)


def test_damaged_weights_are_an_input_error(folder):
    spec = spec_of(folder)
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(InputError, match="don't load"):
        build_encoder(as_it_stands(spec), "cpu", 1)


def test_a_damaged_tokenizer_is_an_input_error(folder):
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="no tokenizer"):
        Tokenizer(spec_of(folder), 1)


def test_long_texts_become_chunks_without_a_models_limit(folder):
    spec = spec_of(folder)
    chunks = chunk(["the oil price " * 50], Tokenizer(spec, 1), ChunkSpec(max_tokens=20))
    assert len(chunks.text) == 8
    assert chunks.tokens.lengths.max() <= 20
    assert chunks.tokens.lengths.sum() == 150


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_vectors_of_the_cpu(folder):
    spec = spec_of(folder)
    vectors = build_encoder(spec, "cuda", 1).encode(Tokenizer(spec, 1).tokenize(TEXTS)).vectors
    np.testing.assert_allclose(vectors, encoded(folder, TEXTS).vectors, atol=1e-5)
