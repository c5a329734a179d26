"""Every module of the format beside Pooling and Dense, and every place and key that a release kept something in."""

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import models, normalizers, pre_tokenizers
from torch import nn

from pipeline.config import ModelSpec
from pipeline.model.folder import encoder_spec
from pipeline.model.quiet import quiet_transformers
from pipeline.model.saved_modules import ACTIVATIONS
from tests.architectures import build_architecture, build_transformer
from tests.parity.combinations import FAST, save_dense
from tests.parity.comparison import largest_difference
from tests.parity.figures import record
from tests.parity.saved import change, name_classes_as_before_5_4, save_modules
from tests.parity.texts import TEXTS
from tests.tiny import build_tiny_model, load_oracle

HIDDEN = 32
MODES = ("mean", "mean_sqrt_len_tokens", "weightedmean", "max", "cls", "lasttoken")


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """model_type -> a folder whose transformer gives the vectors of all its layers."""
    built: dict[str, Path] = {}

    def get(model_type: str) -> Path:
        if model_type not in built:
            folder = tmp_path_factory.mktemp(model_type) / "base"
            built[model_type] = build_architecture(folder, model_type, config={"output_hidden_states": True})
        return built[model_type]

    return get


def seeded(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module with other than its first weights, which keep the size of what goes through."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            if weight.ndim > 1:
                weight.normal_(0, weight.shape[1] ** -0.5, generator=generator)
            else:
                weight.add_(torch.rand(weight.shape, generator=generator))
    return module


def word_weights(oracle) -> nn.Module:
    from sentence_transformers.sentence_transformer.modules import WordWeights

    words = oracle.tokenizer.convert_ids_to_tokens(range(len(oracle.tokenizer)))
    known = {word: 0.25 + (number % 7) / 2 for number, word in enumerate(words) if number % 3}
    return WordWeights(words, known, unknown_word_weight=0.75)


def weighted_layers(oracle, start: int) -> nn.Module:
    from sentence_transformers.sentence_transformer.modules import WeightedLayerPooling

    return seeded(WeightedLayerPooling(HIDDEN, num_hidden_layers=2, layer_start=start), seed=start)


def pooling(width: int = HIDDEN, modes=MODES) -> nn.Module:
    from sentence_transformers.sentence_transformer.modules import Pooling

    return Pooling(width, list(modes))


def dense(width: int, out: int, **keys) -> nn.Module:
    from sentence_transformers.base.modules import Dense

    return seeded(Dense(width, out, activation_function=nn.Tanh(), **keys))


def normalize(**keys) -> nn.Module:
    from sentence_transformers.base.modules import Normalize

    return Normalize(**keys)


def layer_norm(width: int) -> nn.Module:
    from sentence_transformers.sentence_transformer.modules import LayerNorm

    return seeded(LayerNorm(width))


def dropout() -> nn.Module:
    from sentence_transformers.sentence_transformer.modules import Dropout

    return Dropout(0.5)


TOKENS = {"module_input_name": "token_embeddings"}
CHAINS = {
    "WeightedLayerPooling": lambda oracle: [weighted_layers(oracle, 1), pooling()],
    "WeightedLayerPooling from the embeddings on": lambda oracle: [weighted_layers(oracle, 0), pooling()],
    "WordWeights": lambda oracle: [word_weights(oracle), pooling()],
    "Dense on tokens": lambda oracle: [dense(HIDDEN, 16, **TOKENS), pooling(16)],
    "Normalize on tokens": lambda oracle: [normalize(**TOKENS), pooling()],
    "LayerNorm": lambda oracle: [pooling(modes=["mean"]), layer_norm(HIDDEN)],
    "Dropout": lambda oracle: [pooling(), dropout()],
    "several of each": lambda oracle: [
        weighted_layers(oracle, 1),
        word_weights(oracle),
        dense(HIDDEN, 16, use_residual=True, **TOKENS),
        normalize(**TOKENS),
        pooling(16, ["mean", "max"]),
        dense(32, 24),
        layer_norm(24),
        dropout(),
        dense(24, 24, use_residual=True),
        normalize(),
    ],
}
"""Name -> the modules behind the transformer."""
OF_5_7 = {"Dense on tokens", "Normalize on tokens", "several of each"}
"""No release that wrote the old class names has these."""


QUICK_CHAINS = {*itertools.product(("bert",), CHAINS), ("qwen3", "several of each")}


@pytest.mark.parametrize(
    ("model_type", "chain"),
    [
        pytest.param(*case, marks=[] if case in QUICK_CHAINS else pytest.mark.slow)
        for case in itertools.product(FAST, CHAINS)
    ],
)
def test_modules_around_pooling(bases, tmp_path, model_type, chain):
    first = load_oracle(bases(model_type))
    folder = save_modules(tmp_path / "model", [first[0], *CHAINS[chain](first)])
    styles = ["new"] if chain in OF_5_7 else ["new", "legacy"]
    for style, overrides in itertools.product(styles, ({}, {"prompt": "query: the ", "truncate_dim": 12})):
        if style == "legacy":
            name_classes_as_before_5_4(folder)
        worst = largest_difference(folder, TEXTS, **overrides)
        record(worst, ("module", chain), ("architecture", model_type), ("style", style))


@pytest.mark.slow
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_every_activation(bases, tmp_path, activation):
    home = "linear" if activation == "Identity" else "activation"
    folder = build_tiny_model(tmp_path / "model", dense=24)
    shutil.rmtree(folder / "2_Dense")
    save_dense(folder / "2_Dense", HIDDEN, 24, f"torch.nn.modules.{home}.{activation}")
    record(largest_difference(folder, TEXTS), ("dense", "every activation"))


# --- StaticEmbedding -------------------------------------------------------------------------------------------------

STATIC_KEYS = ("embedding.weight", "embeddings", "embeddings, mapping", "embeddings, mapping, weights")
"""Of sentence-transformers, and of model2vec."""


def static_tokenizer(kind: str) -> FastTokenizer:
    words = [
        "the",
        "oil",
        "price",
        "market",
        "people",
        "say",
        "a",
        "report",
        "of",
        "query",
        "water",
        "한국어",
        "中",
        "文",
    ]
    if kind == "WordPiece":
        pieces = ["[UNK]", "[CLS]", "[SEP]", *words, *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"), *"abxyz,.:"]
        made = FastTokenizer(models.WordPiece({p: n for n, p in enumerate(dict.fromkeys(pieces))}, unk_token="[UNK]"))
        made.normalizer = normalizers.BertNormalizer()
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        made.add_special_tokens(["[UNK]", "[CLS]", "[SEP]"])
    else:
        pieces = [
            ("<unk>", 0.0),
            ("▁", -2.0),
            *((f"▁{word}", -3.0) for word in words),
            *((c, -5.0) for c in "abcxyz,."),
        ]
        made = FastTokenizer(models.Unigram(pieces, unk_id=0))
        made.normalizer = normalizers.Lowercase()
        made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.enable_padding(length=16)
    return made


@pytest.mark.parametrize("kind", ["WordPiece", "Unigram"])
@pytest.mark.parametrize("keys", STATIC_KEYS)
def test_static_embeddings(tmp_path, kind, keys):
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    tokenizer = static_tokenizer(kind)
    size = tokenizer.get_vocab_size()
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(size, 24, generator=generator)
    folder = save_modules(tmp_path / "model", [StaticEmbedding(tokenizer, embedding_weights=vectors), normalize()])
    home = folder if (folder / "model.safetensors").exists() else folder / "0_StaticEmbedding"
    if keys != "embedding.weight":
        mapping = torch.randint(0, 9, (size,), generator=generator)
        few = {"embeddings": torch.randn(9, 24, generator=generator) if "mapping" in keys else vectors}
        few |= {"mapping": mapping} if "mapping" in keys else {}
        few |= {"weights": torch.rand(size, generator=generator).double()} if "weights" in keys else {}
        save_file(few, home / "model.safetensors")
    for overrides in ({}, {"prompt": "query "}, {"truncate_dim": 8}, {"truncate_dim": 8, "normalize": True}):
        record(largest_difference(folder, TEXTS, **overrides), ("module", "StaticEmbedding"), ("static", keys))
    name_classes_as_before_5_4(folder)
    record(largest_difference(folder, TEXTS), ("module", "StaticEmbedding"), ("style", "legacy"))
    torch.save(load_file(home / "model.safetensors"), home / "pytorch_model.bin")
    (home / "model.safetensors").unlink()
    record(largest_difference(folder, TEXTS), ("module", "StaticEmbedding"), ("weights", "pytorch_model.bin"))


def test_a_static_embedding_truncates_as_its_tokenizer_file_says(tmp_path):
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    tokenizer = static_tokenizer("WordPiece")
    tokenizer.enable_truncation(6)
    static = StaticEmbedding(tokenizer, embedding_dim=24)
    folder = save_modules(tmp_path / "model", [seeded(static), dense(24, 16)])
    record(largest_difference(folder, TEXTS), ("module", "StaticEmbedding"))


# --- where things stand ----------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Style of 3.4, with a Dense, a limit of its own and a cased tokenizer."""
    return build_tiny_model(tmp_path / "model", dense=24, max_seq_length=24, lowercase_tokenizer=False)


def move_to_0_transformer(folder: Path) -> None:
    inner = folder / "0_Transformer"
    inner.mkdir()
    for file in [path for path in folder.iterdir() if path.is_file()]:
        if file.name not in ("modules.json", "config_sentence_transformers.json"):
            file.rename(inner / file.name)
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (folder / "modules.json").write_text(json.dumps(modules))


def pickle_weights(folder: Path) -> None:
    for home in (folder, folder / "2_Dense"):
        torch.save(load_file(home / "model.safetensors"), home / "pytorch_model.bin")
        (home / "model.safetensors").unlink()


def shard_weights(folder: Path) -> None:
    with quiet_transformers():
        model = transformers.AutoModel.from_pretrained(folder)
        (folder / "model.safetensors").unlink()
        model.save_pretrained(folder, max_shard_size="20KB")
    assert (folder / "model.safetensors.index.json").exists()


def prefix_weights(folder: Path) -> None:
    """As of a model that was saved with a head, and with the pooler."""
    weights = {f"bert.{name}": value for name, value in load_file(folder / "model.safetensors").items()}
    weights |= {"bert.pooler.dense.weight": torch.ones(HIDDEN, HIDDEN), "bert.pooler.dense.bias": torch.ones(HIDDEN)}
    save_file(weights | {"cls.predictions.bias": torch.ones(9)}, folder / "model.safetensors", {"format": "pt"})


def rename_settings(name: str):
    return lambda folder: (folder / "sentence_bert_config.json").rename(folder / name)


def change_pooling(**keys):
    def write(folder: Path) -> None:
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": HIDDEN} | keys))

    return write


OF_2_0 = {f"pooling_mode_{mode}_tokens": mode == "max" for mode in ("mean", "max", "mean_sqrt_len")} | {
    "pooling_mode_cls_token": True
}
LAYOUTS = {
    "transformer in 0_Transformer (v1)": move_to_0_transformer,
    "weights in pytorch_model.bin, Dense too": pickle_weights,
    "weights in shards": shard_weights,
    "weights with a head's prefix, with pooler": prefix_weights,
    "vocab.txt without tokenizer.json": lambda folder: (folder / "tokenizer.json").unlink(),
    "no config_sentence_transformers.json": lambda folder: (folder / "config_sentence_transformers.json").unlink(),
    "no sentence_bert_config.json": lambda folder: (folder / "sentence_bert_config.json").unlink(),
    **{
        f"sentence_{name}_config.json": rename_settings(f"sentence_{name}_config.json")
        for name in ("roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
    },
    "Pooling with the four keys of 2.0": change_pooling(**OF_2_0),
    "Pooling with the six keys of 2.3": change_pooling(
        **OF_2_0, pooling_mode_weightedmean_tokens=False, pooling_mode_lasttoken=False
    ),
    "Pooling without a mode": change_pooling(),
    "do_lower_case": lambda folder: change(folder / "sentence_bert_config.json", do_lower_case=True),
    "Dense without activation_function": lambda folder: change(
        folder / "2_Dense" / "config.json", drop=["activation_function"]
    ),
}
WIDER = {"Pooling with the four keys of 2.0", "Pooling with the six keys of 2.3"}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_places_and_names(folder, layout):
    if layout in WIDER:
        shutil.rmtree(folder / "2_Dense")
        save_dense(folder / "2_Dense", 2 * HIDDEN, 24, "torch.nn.modules.activation.Tanh")
    LAYOUTS[layout](folder)
    worst = largest_difference(folder, [*TEXTS, "The OIL Price"], prompt="Report of ", truncate_dim=12)
    record(worst, ("layout", layout))


SETTINGS, TOKENIZER = "sentence_bert_config.json", "tokenizer_config.json"
LENGTHS = {
    "the explicit one": ({SETTINGS: {"max_seq_length": 24}, TOKENIZER: {"model_max_length": 12}}, 24),
    "null is none": ({SETTINGS: {"max_seq_length": None}, TOKENIZER: {"model_max_length": 20}}, 20),
    "the tokenizer's": ({TOKENIZER: {"model_max_length": 20}}, 20),
    "the tokenizer's, capped by the positions": ({TOKENIZER: {"model_max_length": 10**30}}, 40),
    "the positions": ({}, 40),
    "tokenizer_args first": ({SETTINGS: {"max_seq_length": 24, "tokenizer_args": {"model_max_length": 16}}}, 16),
    "processor_kwargs first": ({SETTINGS: {"max_seq_length": 24, "processor_kwargs": {"model_max_length": 16}}}, 16),
}
"""Name -> (what stands in which file, the length)."""


@pytest.mark.parametrize("case", LENGTHS)
def test_max_seq_length_is_taken_from_the_same_place(tmp_path, case):
    files, length = LENGTHS[case]
    folder = build_tiny_model(tmp_path / "model", positions=40)
    change(folder / SETTINGS, drop=["max_seq_length"])
    change(folder / TOKENIZER, drop=["model_max_length"])
    for name, keys in files.items():
        change(folder / name, **keys)
    assert encoder_spec(ModelSpec(path=str(folder))).max_seq_length == length == load_oracle(folder).max_seq_length
    record(largest_difference(folder, TEXTS), ("max_seq_length", case))
    record(largest_difference(folder, TEXTS, max_seq_length=9), ("max_seq_length", "model.max_seq_length"))


def test_a_prompt_that_is_longer_than_the_model_reads(tmp_path):
    """Nothing but its first tokens is left of every text, and with include_prompt false at most the last one counts."""
    for include, pool in itertools.product((True, False), ("mean", "cls", "lasttoken")):
        folder = build_tiny_model(
            tmp_path / f"{include}-{pool}", pooling=[pool], include_prompt=include, normalize=False
        )
        worst = largest_difference(folder, ["oil", "the water"], prompt="the oil price " * 9, max_seq_length=8)
        record(worst, ("prompt", "longer than max_seq_length"))


# --- without modules.json --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", FAST)
def test_a_plain_transformers_folder(tmp_path, model_type):
    folder = build_transformer(tmp_path / "model", model_type)
    spec = encoder_spec(ModelSpec(path=str(folder)))
    assert spec.pooling == ("mean",)
    # The oracle reads two tokens more than a RoBERTa has positions for, and fails on such a text.
    own = {"max_seq_length": 64} if model_type == "roberta" else {}
    for overrides in (own, {"prompt": "report of ", "truncate_dim": 12, "normalize": True, "max_seq_length": 9}):
        record(largest_difference(folder, TEXTS, **overrides), ("layout", "no modules.json: mean"))


def test_a_plain_causal_folder(tmp_path):
    folder = build_transformer(tmp_path / "model", "qwen3")
    with quiet_transformers():
        model = transformers.AutoModelForCausalLM.from_pretrained(folder)
        model.save_pretrained(folder)
    spec = encoder_spec(ModelSpec(path=str(folder)))
    assert spec.pooling == ("lasttoken",)
    record(largest_difference(folder, TEXTS), ("layout", "no modules.json, causal: lasttoken"))


def test_rows_of_one_text_are_equal_and_of_others_are_not(bases):
    """The vectors of these models say which text they are of, so that an exchanged row shows."""
    for model_type in FAST:
        vectors = load_oracle(bases(model_type)).encode(TEXTS)
        first = TEXTS.index("the oil price")
        again = TEXTS.index("the oil price", first + 1)
        distances = np.linalg.norm(vectors[:, None] - vectors[None], axis=2) + np.eye(len(TEXTS)) * 9
        assert distances[first, again] < 1e-5
        distances[[first, again], [again, first]] = 9
        blank = [TEXTS.index(""), TEXTS.index(" ")]  # equal to a WordPiece tokenizer
        distances[np.ix_(blank, blank)] = 9
        assert distances.min() > 0.01, model_type
