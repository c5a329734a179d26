"""The engine on numpy gives the vectors of torch, alone or batched, for each model that it takes; others it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pipeline.config import ModelSpec
from pipeline.encoder.encoder import Encoder, build_encoder
from pipeline.encoder.engines.numpy_bert import KINDS, NotBert, NumpyEngine, _gelu
from pipeline.encoder.tokenizer import Tokenizer
from pipeline.model.folder import EncoderSpec, encoder_spec
from tests.architectures import TEXTS, build_architecture
from tests.tiny import build_tiny_model

TOLERANCE = 2e-5


def read(folder: Path, **settings: object) -> EncoderSpec:
    return encoder_spec(ModelSpec(path=str(folder), **settings))


def assert_as_torch(spec: EncoderSpec) -> None:
    rows = Tokenizer(spec, 1).tokenize([*TEXTS, *(f"{text} and {number}" for number, text in enumerate(TEXTS * 4))])
    expected = build_encoder(spec, "cpu", 1).encode(rows)
    for threads, budget in ((1, 1024), (3, 64), (2, 1)):  # all in a few batches, and each row alone
        found = Encoder(NumpyEngine(spec, threads), budget).encode(rows)
        assert found.failed == expected.failed == {}
        assert np.abs(found.vectors - expected.vectors).max() < TOLERANCE


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("kind", KINDS)
def test_it_gives_the_vectors_of_torch(tmp_path, kind, pooling):
    assert_as_torch(read(build_architecture(tmp_path / "model", kind, pooling=pooling)))


def test_it_follows_normalisation_cuts_and_prompts(tmp_path):
    assert_as_torch(read(build_tiny_model(tmp_path / "bare", normalize=False)))
    assert_as_torch(read(build_tiny_model(tmp_path / "cut", truncate_dim=20, prompts={"document": "text: "})))


def test_it_takes_weights_of_half_precision_as_torch_does(tmp_path):
    folder = build_tiny_model(tmp_path / "model")
    path = folder / "model.safetensors"
    save_file({name: tensor.astype(np.float16) for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    assert_as_torch(read(folder))


@pytest.mark.parametrize("kind", ["ernie", "megatron-bert", "distilbert", "mpnet", "bert-generation"])
def test_other_kinds_are_refused(tmp_path, kind):
    with pytest.raises(NotBert):
        NumpyEngine(read(build_architecture(tmp_path / "model", kind)), 1)


@pytest.mark.parametrize(
    "settings", [{"pooling": ("max",)}, {"dense": 16}, {"include_prompt": False, "prompts": {"document": "text: "}}]
)
def test_other_modules_are_refused(tmp_path, settings):
    with pytest.raises(NotBert):
        NumpyEngine(read(build_tiny_model(tmp_path / "model", **settings)), 1)


@pytest.mark.parametrize("change", [{"hidden_act": "gelu_new"}, {"is_decoder": True}])
def test_other_settings_are_refused(tmp_path, change):
    folder = build_tiny_model(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(NotBert):
        NumpyEngine(read(folder), 1)


def test_weights_that_it_does_not_know_are_refused(tmp_path):
    folder = build_tiny_model(tmp_path / "model")
    path = folder / "model.safetensors"
    weights = load_file(path)
    for change in (
        {"encoder.layer.0.adapter.weight": np.ones((2, 2), np.float32)},
        {"embeddings.word_embeddings.weight": weights["embeddings.word_embeddings.weight"].astype(np.float64)},
    ):
        save_file(weights | change, path, {"format": "pt"})
        with pytest.raises(NotBert):
            NumpyEngine(read(folder), 1)
    save_file({name: weight for name, weight in weights.items() if "layer.1.output.dense" not in name}, path)
    with pytest.raises(NotBert):
        NumpyEngine(read(folder), 1)


def test_the_activation_is_gelu_to_a_millionth():
    import torch

    values = np.linspace(-12, 12, 40001, dtype=np.float32)
    expected = torch.nn.functional.gelu(torch.from_numpy(values).double()).numpy()
    _gelu(values)
    assert np.abs(values - expected).max() < 1e-6
