"""The folders of the modules beside the transformer in, frozen descriptions out: what each computes, and on what.

Reads JSON only, never weights. A key that a module's class doesn't have is refused: it would change a vector that this
program can't compute.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.model.files import at, get, listed, read_object, refuse_unknown_keys
from pipeline.model.weights import check_weights

POOLING_MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
"""Saves of 5.3 and older concatenate the modes in this order."""

# fmt: off
ACTIVATIONS = frozenset([
    "CELU", "ELU", "GELU", "Hardsigmoid", "Hardswish", "Hardtanh", "Identity", "LeakyReLU", "LogSigmoid", "Mish",
    "ReLU", "ReLU6", "SELU", "SiLU", "Sigmoid", "Softplus", "Softsign", "Tanh", "Tanhshrink",
])
# fmt: on
"""The classes of torch.nn that take no argument, hold no weights and work on each number alone."""

TOKENS = "token_embeddings"
SENTENCE = "sentence_embedding"


@dataclass(frozen=True, kw_only=True)
class Dense:
    """A linear layer and its activation, on vectors of tokens or of sentences."""

    folder: str
    """The path relative to the model folder; it holds model.safetensors or pytorch_model.bin."""
    in_features: int
    out_features: int
    bias: bool
    activation: str
    """One of ACTIVATIONS."""
    use_residual: bool = False
    """The input is added to the output, through a linear layer of its own where the widths differ."""


@dataclass(frozen=True, kw_only=True)
class Normalize:
    """Division by the L2 norm."""


@dataclass(frozen=True, kw_only=True)
class LayerNorm:
    """torch.nn.LayerNorm with its weights."""

    folder: str
    dimension: int


@dataclass(frozen=True, kw_only=True)
class WeightedLayerPooling:
    """A token's vector is the weighted mean of its vectors in the transformer's layers from `layer_start` on."""

    folder: str
    layer_start: int
    """0 is the embedding layer."""
    num_layers: int
    """The transformer has so many layers, the embedding layer not counted."""


@dataclass(frozen=True, kw_only=True)
class WordWeights:
    """Tokens are multiplied by weights, and means divided by the weights' sum."""

    folder: str


TokenModule = Dense | Normalize | WeightedLayerPooling | WordWeights
PostModule = Dense | Normalize | LayerNorm


@dataclass(frozen=True, kw_only=True)
class Pooling:
    modes: tuple[str, ...]
    """Names in POOLING_MODES, in the order of concatenation."""
    include_prompt: bool


@dataclass(frozen=True, kw_only=True)
class StaticEmbedding:
    """The mean of fixed vectors of the tokens; stands for transformer and pooling."""

    folder: str
    dim: int


# --- Pooling ---------------------------------------------------------------------------------------------------------

_LEGACY_POOLING = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_WIDTH = ("embedding_dimension", "word_embedding_dimension")
"""The keys for the width of a token's vector: that of 5.4 and newer comes first."""


def read_pooling(root: Path, path: str, width: int) -> Pooling:
    """Describe a Pooling module that gets vectors of `width` numbers."""
    where = root / path / "config.json"
    config = read_object(where)
    refuse_unknown_keys(config, {*_WIDTH, "pooling_mode", "include_prompt", *_LEGACY_POOLING}, where)
    _check_width(config, where, width)
    return Pooling(
        modes=_pooling_modes(config, where), include_prompt=get(config, "include_prompt", bool, where, default=True)
    )


def _pooling_modes(config: Mapping[str, Any], where: Path) -> tuple[str, ...]:
    if "pooling_mode" in config:
        given = config["pooling_mode"]
        modes = [given] if isinstance(given, str) else given
        if not isinstance(modes, list) or not modes or any(mode not in POOLING_MODES for mode in modes):
            raise InputError(f"{at(where)}: pooling_mode {given!r} is not supported; known are {listed(POOLING_MODES)}")
        return tuple(modes)
    active = [mode for key, mode in _LEGACY_POOLING.items() if get(config, key, bool, where, default=False)]
    return tuple(active) or ("mean",)  # the format's default


def _check_width(config: Mapping[str, Any], where: Path, width: int) -> None:
    key = _WIDTH[0] if _WIDTH[0] in config else _WIDTH[1]
    given = get(config, key, int, where)
    if given != width:
        raise InputError(f"{at(where)}: {key} is {given}, but the vectors of tokens have {width} numbers")


# --- Dense and Normalize, before or after Pooling --------------------------------------------------------------------


def read_dense(root: Path, path: str, on: str, width: int) -> Dense:
    """Describe a Dense module on vectors of `width` numbers, of TOKENS or of a SENTENCE as `on` says."""
    where = root / path / "config.json"
    config = read_object(where)
    known = {"in_features", "out_features", "bias", "activation_function", "use_residual", *_FEATURES}
    refuse_unknown_keys(config, known, where)
    _refuse_other_features(config, where, on)
    _check_weights(root / path)
    dense = Dense(
        folder=path,
        in_features=get(config, "in_features", int, where),
        out_features=get(config, "out_features", int, where),
        bias=get(config, "bias", bool, where, default=True),
        activation=_activation(config, where),
        use_residual=get(config, "use_residual", bool, where, default=False),
    )
    if dense.in_features != width:
        raise InputError(f"{at(root / path)}: Dense takes {dense.in_features} numbers, but gets {width}")
    return dense


def _activation(config: Mapping[str, Any], where: Path) -> str:
    """The class name in torch.nn; as in sentence-transformers 6.2, a missing key is Tanh and null is no activation."""
    given = config.get("activation_function", "torch.nn.Tanh")
    if given is None:
        return "Identity"
    module, _, name = str(given).rpartition(".")
    if not f"{module}.".startswith("torch.nn.") or name not in ACTIVATIONS:
        known = listed(ACTIVATIONS)
        raise InputError(f"{at(where)}: activation_function {given!r} is not supported; known of torch.nn are {known}")
    return name


def read_normalize(root: Path, path: str, on: str) -> Normalize:
    where = root / path / "config.json"
    config = read_object(where, missing={}) if path else {}
    refuse_unknown_keys(config, set(_FEATURES), where)
    _refuse_other_features(config, where, on)
    return Normalize()


_FEATURES = ("module_input_name", "module_output_name")


def _refuse_other_features(config: Mapping[str, Any], where: Path, on: str) -> None:
    """A module reads and writes what is there: vectors of tokens before Pooling, of sentences after it."""
    if (config.get(_FEATURES[0]) or SENTENCE) != on:
        raise InputError(f"{at(where)}: {_FEATURES[0]} {config.get(_FEATURES[0])!r} is not supported; expected {on!r}")
    if config.get(_FEATURES[1]) not in (None, on):
        raise InputError(f"{at(where)}: {_FEATURES[1]} {config[_FEATURES[1]]!r} is not supported; expected {on!r}")


# --- before Pooling --------------------------------------------------------------------------------------------------


def read_weighted_layers(root: Path, path: str, width: int, layers: int) -> WeightedLayerPooling:
    """Describe a WeightedLayerPooling behind a transformer of so many `layers`, its embedding layer not counted."""
    where = root / path / "config.json"
    config = read_object(where)
    refuse_unknown_keys(config, {*_WIDTH, "num_hidden_layers", "layer_start"}, where)
    _check_width(config, where, width)
    _check_weights(root / path)
    given = get(config, "num_hidden_layers", int, where, default=12)
    start = get(config, "layer_start", int, where, default=4)
    if given != layers or start > layers:
        raise InputError(
            f"{at(where)}: num_hidden_layers is {given} and layer_start {start}, but the transformer has {layers} layers"
        )
    return WeightedLayerPooling(folder=path, layer_start=start, num_layers=layers)


def read_word_weights(root: Path, path: str) -> WordWeights:
    where = root / path / "config.json"
    config = read_object(where)
    refuse_unknown_keys(config, {"vocab", "word_weights", "unknown_word_weight"}, where)
    words = get(config, "vocab", list, where)
    weights = {**get(config, "word_weights", dict, where), "unknown_word_weight": config.get("unknown_word_weight", 1)}
    for word, weight in weights.items():
        if not isinstance(weight, int | float):
            raise InputError(f"{at(where)}: the weight of {word!r} is {weight!r}; expected a number")
    if any(not isinstance(word, str) for word in words):
        raise InputError(f"{at(where)}: vocab holds what is no string; expected the tokenizer's words")
    return WordWeights(folder=path)


# --- after Pooling ---------------------------------------------------------------------------------------------------


def read_layer_norm(root: Path, path: str, width: int) -> LayerNorm:
    where = root / path / "config.json"
    config = read_object(where)
    refuse_unknown_keys(config, {"dimension"}, where)
    _check_weights(root / path)
    dimension = get(config, "dimension", int, where)
    if dimension != width:
        raise InputError(f"{at(where)}: LayerNorm takes {dimension} numbers, but gets {width}")
    return LayerNorm(folder=path, dimension=dimension)


def check_dropout(root: Path, path: str) -> None:
    """Dropout does nothing outside training."""
    where = root / path / "config.json"
    refuse_unknown_keys(read_object(where, missing={}), {"dropout"}, where)


# --- StaticEmbedding -------------------------------------------------------------------------------------------------


def read_static_embedding(root: Path, path: str) -> StaticEmbedding:
    folder = root / path
    if not (folder / "tokenizer.json").is_file():
        raise InputError(f"{at(folder / 'tokenizer.json')} is missing: the model folder is not complete, copy it again")
    _check_weights(folder)
    return StaticEmbedding(folder=path, dim=_static_dim(folder))


def _static_dim(folder: Path) -> int:
    """The second dimension of the matrix, as sentence-transformers or model2vec saved it."""
    try:
        if (folder / "model.safetensors").is_file():
            from safetensors import safe_open

            with safe_open(str(folder / "model.safetensors"), framework="np") as weights:
                shapes = {name: list(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
        else:
            import torch  # The only case in which planning loads it: the shapes stand in a pickle.

            loaded = torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
            shapes = {name: list(value.shape) for name, value in loaded.items()}
    except Exception as error:
        raise InputError(f"the weights in {str(folder)!r} can't be read: {type(error).__name__}: {error}") from None
    shape = shapes.get("embedding.weight") or shapes.get("embeddings")
    if shape is None or len(shape) != 2:
        raise InputError(
            f"the weights in {str(folder)!r} hold {listed(shapes)}; expected embedding.weight or embeddings"
        )
    return int(shape[1])


def _check_weights(folder: Path) -> None:
    present = [name for name in ("model.safetensors", "pytorch_model.bin") if (folder / name).is_file()]
    if not present:
        raise InputError(f"{at(folder)} holds no weights; expected model.safetensors or pytorch_model.bin")
    check_weights(folder / present[0])
