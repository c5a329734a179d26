"""Every module beside the transformer: saved by sentence-transformers itself, read here, with the same vectors."""

import json
import shutil
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as RustTokenizer

from pipeline.config import ModelSpec
from pipeline.encoder.encoder import build_encoder
from pipeline.encoder.tokenizer import Tokenizer
from pipeline.errors import InputError
from pipeline.model.folder import encoder_spec
from pipeline.model.quiet import quiet_transformers
from tests.architectures import build_architecture
from tests.tiny import build_tiny_model, load_oracle

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Dense, Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import (
        Dropout,
        LayerNorm,
        Pooling,
        StaticEmbedding,
        WeightedLayerPooling,
        WordWeights,
    )

TEXTS = ["the price of oil", "a", "", "how is the weather in 한국어 this week?", "new world " * 40, "[SEP] x"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return build_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


def transformer(tiny, **config):
    with quiet_transformers():
        return Transformer(str(tiny), config_kwargs=config, processor_kwargs={"model_max_length": 64})


def saved(folder, *modules, **options):
    with quiet_transformers():
        SentenceTransformer(modules=list(modules), device="cpu", **options).save(str(folder), create_model_card=False)
    return folder


def ours(folder, texts=TEXTS, **overrides):
    spec = encoder_spec(ModelSpec(path=str(folder), **overrides))
    encoded = build_encoder(spec, "cpu", 1).encode(Tokenizer(spec, 1).tokenize(texts))
    assert not encoded.failed
    return encoded.vectors


def assert_same(folder, texts=TEXTS, **options):
    """Alone and together: the oracle's vectors."""
    wanted = load_oracle(folder).encode(texts, **options)
    scale = max(1.0, float(np.linalg.norm(wanted, axis=1).max()))
    assert np.abs(ours(folder, texts) - wanted).max() <= 1e-5 * scale
    assert np.abs(np.concatenate([ours(folder, [text]) for text in texts]) - wanted).max() <= 1e-5 * scale


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("out", [32, 12])
def test_dense_with_a_residual(tiny, tmp_path, residual, out):
    dense = Dense(32, out, activation_function=torch.nn.GELU(), use_residual=residual)
    assert_same(saved(tmp_path / "m", transformer(tiny), Pooling(32), dense, Normalize()))


@pytest.mark.parametrize("out", [32, 12])
def test_dense_and_normalize_on_tokens(tiny, tmp_path, out):
    tokens = {"module_input_name": "token_embeddings"}
    chain = [Dense(32, out, **tokens), Normalize(**tokens), Pooling(out, ["cls", "mean"]), Dense(2 * out, 8)]
    assert_same(saved(tmp_path / "m", transformer(tiny), *chain))


def test_layer_norm_and_dropout(tiny, tmp_path):
    layer = LayerNorm(32)
    torch.nn.init.uniform_(layer.norm.weight, 0.5, 2)
    torch.nn.init.uniform_(layer.norm.bias, -1, 1)
    assert_same(saved(tmp_path / "m", transformer(tiny), Pooling(32), Dropout(0.3), layer))


@pytest.mark.parametrize("mode", ["mean", "lasttoken"])
@pytest.mark.parametrize("start", [0, 1, 2])
def test_weighted_layers(tiny, tmp_path, mode, start):
    layers = WeightedLayerPooling(32, num_hidden_layers=2, layer_start=start)
    torch.nn.init.uniform_(layers.layer_weights, 0.1, 2)
    folder = saved(tmp_path / "m", transformer(tiny, output_hidden_states=True), layers, Pooling(32, mode))
    assert_same(folder)
    plain = saved(tmp_path / "plain", transformer(tiny), Pooling(32, mode))
    assert start == 2 or np.abs(ours(folder) - ours(plain)).max() > 1e-3


def test_weighted_layers_without_hidden_states_do_nothing_and_it_is_said(tiny, tmp_path):
    layers = WeightedLayerPooling(32, num_hidden_layers=2, layer_start=0)
    folder = saved(tmp_path / "m", transformer(tiny), layers, Pooling(32))
    assert_same(folder)
    assert "does nothing" in encoder_spec(ModelSpec(path=str(folder))).notes[0]


def test_weighted_layers_behind_a_model_that_gives_none_do_nothing(tmp_path):
    folder = build_architecture(tmp_path / "bart", "bart")
    config = json.loads((folder / "config.json").read_text()) | {"output_hidden_states": True}
    (folder / "config.json").write_text(json.dumps(config))
    modules = json.loads((folder / "modules.json").read_text())
    layers = {"idx": 9, "name": "9", "path": "9_W", "type": "sentence_transformers.models.WeightedLayerPooling"}
    (folder / "modules.json").write_text(json.dumps([modules[0], layers, *modules[1:]]))
    (folder / "9_W").mkdir()
    sizes = {"embedding_dimension": config["d_model"], "num_hidden_layers": config["encoder_layers"], "layer_start": 0}
    (folder / "9_W/config.json").write_text(json.dumps(sizes))
    save_file({"layer_weights": torch.ones(config["encoder_layers"] + 1)}, folder / "9_W/model.safetensors")
    assert_same(folder)


@pytest.mark.parametrize("mode", ["mean", "mean_sqrt_len_tokens", "weightedmean", "max"])
def test_word_weights(tiny, tmp_path, mode):
    vocabulary = (tiny / "vocab.txt").read_text().split("\n")[:-1]
    weights = {word: 0.1 + (number % 7) / 3 for number, word in enumerate(vocabulary) if number % 3}
    words = WordWeights([word.upper() if word == "the" else word for word in vocabulary], weights, 0.5)
    folder = saved(tmp_path / "m", transformer(tiny), words, Pooling(32, mode))
    assert_same(folder)
    assert np.abs(ours(folder) - ours(saved(tmp_path / "plain", transformer(tiny), Pooling(32, mode)))).max() > 1e-3


def static(tiny, **options):
    tokenizer = RustTokenizer.from_file(str(tiny / "tokenizer.json"))
    tokenizer.no_truncation()
    return StaticEmbedding(tokenizer, embedding_dim=24, **options)


def test_static_embedding(tiny, tmp_path):
    folder = saved(tmp_path / "m", static(tiny), Normalize(), truncate_dim=12)
    texts = [text for text in TEXTS if text]
    assert_same(folder, texts)
    spec = encoder_spec(ModelSpec(path=str(folder)))
    assert spec.is_static
    assert spec.max_seq_length is None
    assert build_encoder(spec, "cpu", 1).encode(Tokenizer(spec, 1).tokenize([""])).failed
    with pytest.raises(InputError, match="reads texts whole"):
        encoder_spec(ModelSpec(path=str(folder), max_seq_length=9))


@pytest.mark.parametrize("keys", [{"mapping"}, {"weights"}, {"mapping", "weights"}])
def test_static_embedding_of_model2vec(tiny, tmp_path, keys):
    folder = saved(tmp_path / "m", static(tiny))
    (matrix,) = load_file(folder / "model.safetensors").values()
    rows, generator = len(matrix), torch.Generator().manual_seed(1)
    tensors = {"embeddings": matrix[: rows // 2].clone() if "mapping" in keys else matrix}
    if "mapping" in keys:
        tensors["mapping"] = torch.randint(0, rows // 2, (rows,), generator=generator)
    if "weights" in keys:
        tensors["weights"] = torch.rand(rows, generator=generator, dtype=torch.float64)
    save_file(tensors, folder / "model.safetensors")
    assert_same(folder, [text for text in TEXTS if text])


def test_static_embedding_from_a_pickle(tiny, tmp_path):
    folder = saved(tmp_path / "m", static(tiny), Normalize())
    weights = folder / "model.safetensors"
    torch.save(load_file(weights), weights.with_name("pytorch_model.bin"))
    weights.unlink()
    assert_same(folder, [text for text in TEXTS if text])


def test_folders_named_as_in_version_1(tiny, tmp_path):
    """The transformer in 0_Transformer, settings under an older name, weights of Dense in a pickle."""
    folder = build_tiny_model(tmp_path / "m", dense=8)
    (folder / "0_Transformer").mkdir()
    for file in [path for path in folder.iterdir() if path.is_file() and path.name != "modules.json"]:
        shutil.move(file, folder / "0_Transformer" / file.name)
    settings = folder / "0_Transformer/sentence_bert_config.json"
    settings.rename(settings.with_name("sentence_roberta_config.json"))
    (folder / "0_Transformer/config_sentence_transformers.json").unlink()
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (folder / "modules.json").write_text(json.dumps(modules))
    weights = folder / "2_Dense/model.safetensors"
    torch.save(load_file(weights), weights.with_name("pytorch_model.bin"))
    weights.unlink()
    assert encoder_spec(ModelSpec(path=str(folder))).max_seq_length == 64
    assert_same(folder)


@pytest.mark.parametrize(("dtype", "least"), [("float16", 0.9999), ("bfloat16", 0.999)])
def test_weights_saved_in_half_precision(tiny, tmp_path, dtype, least):
    """Computed in float32, which sentence-transformers does where it is told to, or in their own precision as it does."""
    with quiet_transformers():
        half = Transformer(str(tiny), model_kwargs={"dtype": getattr(torch, dtype)})
    folder = saved(tmp_path / "m", half, Pooling(32), Normalize())
    assert dtype in encoder_spec(ModelSpec(path=str(folder))).notes[0]
    with quiet_transformers():
        exact = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": torch.float32})
    assert np.abs(ours(folder) - exact.encode(TEXTS)).max() <= 1e-5
    theirs = load_oracle(folder).encode(TEXTS).astype(np.float32)
    lengths = np.linalg.norm(theirs, axis=1)
    assert ((ours(folder, precision=dtype) * theirs).sum(axis=1) / lengths).min() >= least


def test_a_similarity_function_is_read(tiny, tmp_path):
    folder = saved(tmp_path / "m", transformer(tiny), Pooling(32), similarity_fn_name="manhattan")
    assert encoder_spec(ModelSpec(path=str(folder))).similarity == "manhattan"


def order(*modules):
    return lambda tiny: (transformer(tiny), *modules)


@pytest.mark.parametrize(
    "modules",
    [
        order(),
        order(Pooling(32), Pooling(32)),
        order(LayerNorm(32), Pooling(32)),
        order(Pooling(32), WordWeights(["a"], {})),
        order(Dropout(), Pooling(32)),
    ],
    ids=["no pooling", "two poolings", "layer norm on tokens", "word weights on a sentence", "dropout on tokens"],
)
def test_modules_in_an_order_that_computes_nothing_are_refused(tiny, tmp_path, modules):
    with pytest.raises(InputError, match="supported is Transformer"):
        encoder_spec(ModelSpec(path=str(saved(tmp_path / "m", *modules(tiny)))))
