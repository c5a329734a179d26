"""A model folder in sentence-transformers format in, a frozen description of it out; 2.0 to 6.x, both styles of key.

Reads JSON only, never weights, and loads no torch. What it doesn't know it refuses by name: a guess here would be a
wrong vector in every row. New modules and architectures are taken up in `_POST_MODULES` and `_ARCHITECTURES`.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from pipeline.errors import InputError

POOLING_MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
"""In the order in which saves of 5.3 and older concatenate them."""

# fmt: off
ACTIVATIONS = frozenset([
    "CELU", "ELU", "GELU", "Hardsigmoid", "Hardswish", "Hardtanh", "Identity", "LeakyReLU", "LogSigmoid", "Mish",
    "ReLU", "ReLU6", "SELU", "SiLU", "Sigmoid", "Softplus", "Softsign", "Tanh", "Tanhshrink",
])
# fmt: on
"""The classes of torch.nn that take no argument, hold no weights and work on each number alone."""


@dataclass(frozen=True, kw_only=True)
class Dense:
    """A linear layer and its activation."""

    folder: str
    """Relative to the model folder; holds model.safetensors or pytorch_model.bin."""
    in_features: int
    out_features: int
    bias: bool
    activation: str
    """One of ACTIVATIONS."""


@dataclass(frozen=True, kw_only=True)
class Normalize:
    """Division by the L2 norm."""


PostModule = Dense | Normalize


@dataclass(frozen=True, kw_only=True)
class SavedModel:
    """What the files say, before any override."""

    transformer: str
    """The transformer's folder relative to the model folder; "" is the model folder itself."""
    hidden: int
    positions: int
    """The longest input that the position embeddings allow, special tokens included."""
    max_seq_length: int
    do_lower_case: bool
    pooling: tuple[str, ...]
    """Of POOLING_MODES, in the order of concatenation."""
    include_prompt: bool
    post_modules: tuple[PostModule, ...]
    prompts: Mapping[str, str]
    default_prompt_name: str | None
    truncate_dim: int | None
    notes: tuple[str, ...]


def read_saved_model(folder: Path) -> SavedModel:
    """Describe the model in `folder`; InputError where it is incomplete or holds what this program doesn't know."""
    if (folder / "modules.json").is_file():
        return _read_modules(folder)
    if (folder / "config.json").is_file():
        return _read_plain_transformer(folder)
    raise InputError(
        f"model folder {str(folder)!r} holds neither modules.json nor config.json; expected a model saved by "
        "sentence-transformers or transformers: check the path"
    )


def _read_modules(folder: Path) -> SavedModel:
    entries = [_module_entry(folder, entry) for entry in _read_list(folder / "modules.json")]
    names = [name for name, _ in entries]
    if names[:2] != ["Transformer", "Pooling"]:
        raise InputError(
            f"{_at(folder / 'modules.json')} lists {' -> '.join(names) or 'no modules'}; supported is Transformer -> "
            "Pooling, then any number of Dense and Normalize: use a model of that form"
        )
    transformer = entries[0][1]
    architecture = _read_architecture(folder / transformer)
    settings = _read_transformer_settings(folder / transformer)
    pooling, include_prompt = _read_pooling(folder / entries[1][1], architecture.hidden)
    post_modules = _read_post_modules(folder, entries[2:], len(pooling) * architecture.hidden)
    config = _read_object(folder / "config_sentence_transformers.json", missing={})
    _refuse_other_model_types(folder, config)
    notes = []
    if config.get("requirements"):
        notes.append(f"the model asks for {config['requirements']}; this was not checked")
    return SavedModel(
        transformer=transformer,
        hidden=architecture.hidden,
        positions=architecture.positions,
        max_seq_length=_max_seq_length(folder / transformer, settings, architecture),
        do_lower_case=_get(settings, "do_lower_case", bool, folder / transformer, default=False),
        pooling=pooling,
        include_prompt=include_prompt,
        post_modules=post_modules,
        prompts=_prompts(folder, config),
        default_prompt_name=_get(config, "default_prompt_name", str, folder, default=None),
        truncate_dim=_get(config, "truncate_dim", int, folder, default=None),
        notes=tuple(notes),
    )


def _read_plain_transformer(folder: Path) -> SavedModel:
    """A folder without modules.json: mean pooling and nothing after it, as sentence-transformers 6.2 loads it."""
    architecture = _read_architecture(folder)
    return SavedModel(
        transformer="",
        hidden=architecture.hidden,
        positions=architecture.positions,
        max_seq_length=_max_seq_length(folder, {}, architecture),
        do_lower_case=False,
        pooling=("mean",),
        include_prompt=True,
        post_modules=(),
        prompts={"query": "", "document": ""},
        default_prompt_name=None,
        truncate_dim=None,
        notes=("the model folder has no modules.json: mean pooling is used and the vectors are not normalised",),
    )


# --- modules.json ----------------------------------------------------------------------------------------------------

_CLASS_HOMES = (
    "sentence_transformers.models.",  # saved by 5.3 and older
    "sentence_transformers.base.modules.",
    "sentence_transformers.sentence_transformer.modules.",
)


def _module_entry(folder: Path, entry: Any) -> tuple[str, str]:
    """(class name, relative path) of one entry of modules.json."""
    where = folder / "modules.json"
    if not isinstance(entry, dict) or not isinstance(entry.get("type"), str) or not isinstance(entry.get("path"), str):
        raise InputError(f"{_at(where)} has the entry {entry!r}; expected an object with a type and a path")
    _refuse_unknown_keys(entry, {"idx", "name", "path", "type", "kwargs"}, where)
    if entry.get("kwargs"):
        raise InputError(f"{_at(where)}: module {entry['type']!r} takes kwargs {entry['kwargs']!r}: not supported")
    path = PureWindowsPath(entry["path"])  # reads both kinds of slash
    if path.anchor or ".." in path.parts or "\0" in entry["path"]:
        raise InputError(f"{_at(where)}: path {entry['path']!r} leaves the model folder; expected a folder inside it")
    home = next((home for home in _CLASS_HOMES if entry["type"].startswith(home)), None)
    name = entry["type"].rpartition(".")[2]
    if home is None or name not in {"Transformer", "Pooling", *_POST_MODULES}:
        raise InputError(
            f"{_at(where)}: module {entry['type']!r} is not supported; known are Transformer, Pooling, "
            f"{', '.join(_POST_MODULES)} of sentence-transformers: use a model made of these"
        )
    return name, path.as_posix() if entry["path"] else ""


# --- Transformer -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Architecture:
    hidden: int
    positions: int


_ARCHITECTURES: Mapping[str, str] = {
    "albert": "hidden_size",
    "bert": "hidden_size",
    "camembert": "hidden_size",
    "distilbert": "dim",
    "electra": "hidden_size",
    "mpnet": "hidden_size",
    "roberta": "hidden_size",
    "xlm-roberta": "hidden_size",
}
"""model_type of config.json -> its key for the width of a token's vector."""

_POSITIONS_START_AFTER_PAD = frozenset(["camembert", "mpnet", "roberta", "xlm-roberta"])

_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)

_VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "sentencepiece.bpe.model", "spiece.model")
"""transformers makes an empty tokenizer without complaint where none of these is found."""

_SETTINGS_FILES = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)


def _read_architecture(folder: Path) -> _Architecture:
    config = _read_object(folder / "config.json")
    where = folder / "config.json"
    model_type = _get(config, "model_type", str, where)
    if model_type not in _ARCHITECTURES:
        raise InputError(f"{_at(where)}: model_type {model_type!r} is not supported; known are {_list(_ARCHITECTURES)}")
    for key in ("auto_map", "quantization_config", "is_decoder", "add_cross_attention"):
        if config.get(key):
            raise InputError(f"{_at(where)}: key {key!r} is {config[key]!r}: not supported, use a model without it")
    if config.get("position_embedding_type", "absolute") != "absolute":
        kind = config["position_embedding_type"]
        raise InputError(f"{_at(where)}: position_embedding_type {kind!r} is not supported; expected 'absolute'")
    if str((config.get("architectures") or [""])[0]).endswith(("ForCausalLM", "LMHeadModel")):
        raise InputError(f"{_at(where)}: architecture {config['architectures'][0]!r} is causal: not supported")
    if (folder / "adapter_config.json").exists():
        raise InputError(f"{_at(folder / 'adapter_config.json')}: adapters are not supported; merge it into the model")
    for what, files in (("weights", _WEIGHTS), ("tokenizer", _VOCABULARIES)):
        if not any((folder / name).is_file() for name in files):
            raise InputError(f"model folder {str(folder)!r} holds no {what}; expected one of {_list(files)}")
    _refuse_other_sides(folder)
    positions = _get(config, "max_position_embeddings", int, where)
    pad = _get(config, "pad_token_id", int, where, default=1) if model_type in _POSITIONS_START_AFTER_PAD else -1
    return _Architecture(
        hidden=_get(config, _ARCHITECTURES[model_type], int, where),
        positions=positions - pad - 1,
    )


def _refuse_other_sides(folder: Path) -> None:
    """Only padding and truncation on the right: with absolute positions, padding on the left moves the vector."""
    config = _read_object(folder / "tokenizer_config.json", missing={})
    if config.get("auto_map"):
        raise InputError(f"{_at(folder / 'tokenizer_config.json')}: key 'auto_map' (custom code) is not supported")
    own = _read_object(folder / "tokenizer.json", missing={})
    for key, block in (("padding_side", "padding"), ("truncation_side", "truncation")):
        side = config.get(key) or (own.get(block) or {}).get("direction") or "right"
        if str(side).lower() != "right":
            raise InputError(f"model folder {str(folder)!r}: the tokenizer's {key} is {side!r}; supported is 'right'")


def _read_transformer_settings(folder: Path) -> dict[str, Any]:
    """sentence_bert_config.json or one of its older names; a missing file means defaults."""
    where, settings = folder / _SETTINGS_FILES[0], {}
    for where in (folder / name for name in _SETTINGS_FILES):
        settings = _read_object(where, missing={})
        if settings:
            break
    known = {"max_seq_length", "do_lower_case", *_ARGUMENTS, *_NEW_STYLE}
    _refuse_unknown_keys(settings, known, where)
    for key, allowed in _ARGUMENTS.items():
        _refuse_unknown_keys(settings.get(key) or {}, allowed, where, inside=key)
    for key, only in _NEW_STYLE.items():
        if key in settings and settings[key] not in only:
            expected = _list(map(repr, only))
            raise InputError(f"{_at(where)}: {key} {settings[key]!r} is not supported; expected {expected}")
    return settings


_DTYPE_AND_KERNEL = {"torch_dtype", "dtype", "attn_implementation"}  # ours to choose; the model's maths stays the same
_ARGUMENTS: Mapping[str, set[str]] = {
    "model_args": _DTYPE_AND_KERNEL,
    "model_kwargs": _DTYPE_AND_KERNEL,
    "tokenizer_args": {"model_max_length"},
    "processor_kwargs": {"model_max_length"},
    "config_args": set(),
    "config_kwargs": set(),
}
_NEW_STYLE: Mapping[str, list[Any]] = {
    "transformer_task": ["feature-extraction"],
    "modality_config": [{"text": {"method": "forward", "method_output_name": "last_hidden_state"}}],
    "module_output_name": ["token_embeddings"],
    "processing_kwargs": [None, {}],
    "unpad_inputs": [None, False, True],
    "query_length": [None],
    "document_length": [None],
    "query_expansion": [None],
}
"""Keys that saves of 5.4 and newer have, with the values under which the model is the plain text encoder."""


def _max_seq_length(folder: Path, settings: Mapping[str, Any], architecture: _Architecture) -> int:
    """As sentence-transformers 6.2: an explicit length as it stands, else the tokenizer's, capped by the positions.

    (There RoBERTa-likes are capped at 514 and fail on the texts that reach beyond the 512 they can take.)
    """
    where = folder / "sentence_bert_config.json"
    arguments = {**(settings.get("tokenizer_args") or {}), **(settings.get("processor_kwargs") or {})}
    explicit = _get(arguments, "model_max_length", int, where, default=None)
    if explicit is None:
        explicit = _get(settings, "max_seq_length", int, where, default=None)
    if explicit is not None:
        return int(explicit)
    tokenizer = _read_object(folder / "tokenizer_config.json", missing={})
    of_tokenizer = tokenizer.get("model_max_length")
    if not isinstance(of_tokenizer, int | float) or isinstance(of_tokenizer, bool):
        return architecture.positions
    return min(int(of_tokenizer), architecture.positions)


# --- Pooling ---------------------------------------------------------------------------------------------------------

_LEGACY_POOLING = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


def _read_pooling(folder: Path, hidden: int) -> tuple[tuple[str, ...], bool]:
    """(modes in the order of concatenation, include_prompt)."""
    where = folder / "config.json"
    config = _read_object(where)
    known = {"embedding_dimension", "word_embedding_dimension", "pooling_mode", "include_prompt", *_LEGACY_POOLING}
    _refuse_unknown_keys(config, known, where)
    width_key = "embedding_dimension" if "embedding_dimension" in config else "word_embedding_dimension"
    width = _get(config, width_key, int, where)
    if width != hidden:
        raise InputError(f"{_at(where)}: {width_key} is {width}, but the transformer's vectors have {hidden} numbers")
    return _pooling_modes(config, where), _get(config, "include_prompt", bool, where, default=True)


def _pooling_modes(config: Mapping[str, Any], where: Path) -> tuple[str, ...]:
    if "pooling_mode" in config:
        given = config["pooling_mode"]
        modes = [given] if isinstance(given, str) else given
        if not isinstance(modes, list) or not modes or any(mode not in POOLING_MODES for mode in modes):
            raise InputError(f"{_at(where)}: pooling_mode {given!r} is not supported; known are {_list(POOLING_MODES)}")
        return tuple(modes)
    active = [mode for key, mode in _LEGACY_POOLING.items() if _get(config, key, bool, where, default=False)]
    return tuple(active) or ("mean",)  # the format's default


# --- what may come after Pooling -------------------------------------------------------------------------------------


def _read_post_modules(folder: Path, entries: list[tuple[str, str]], width: int) -> tuple[PostModule, ...]:
    modules: list[PostModule] = []
    for name, path in entries:
        module = _POST_MODULES[name](folder, path)
        if isinstance(module, Dense):
            if module.in_features != width:
                raise InputError(f"{_at(folder / path)}: Dense takes {module.in_features} numbers, but gets {width}")
            width = module.out_features
        modules.append(module)
    return tuple(modules)


def _read_dense(folder: Path, path: str) -> Dense:
    where = folder / path / "config.json"
    config = _read_object(where)
    known = {"in_features", "out_features", "bias", "activation_function", "use_residual", *_SENTENCE_KEYS}
    _refuse_unknown_keys(config, known, where)
    _refuse_other_features(config, where)
    if config.get("use_residual"):
        raise InputError(f"{_at(where)}: use_residual {config['use_residual']!r} of Dense is not supported")
    if not any((folder / path / name).is_file() for name in ("model.safetensors", "pytorch_model.bin")):
        raise InputError(f"{_at(folder / path)} holds no weights; expected model.safetensors or pytorch_model.bin")
    return Dense(
        folder=path,
        in_features=_get(config, "in_features", int, where),
        out_features=_get(config, "out_features", int, where),
        bias=_get(config, "bias", bool, where, default=True),
        activation=_activation(config, where),
    )


def _activation(config: Mapping[str, Any], where: Path) -> str:
    """The class name in torch.nn; as in sentence-transformers 6.2, a missing key is Tanh and null is no activation."""
    given = config.get("activation_function", "torch.nn.Tanh")
    if given is None:
        return "Identity"
    module, _, name = str(given).rpartition(".")
    if not f"{module}.".startswith("torch.nn.") or name not in ACTIVATIONS:
        known = _list(ACTIVATIONS)
        raise InputError(f"{_at(where)}: activation_function {given!r} is not supported; known of torch.nn are {known}")
    return name


def _read_normalize(folder: Path, path: str) -> Normalize:
    where = folder / path / "config.json"
    config = _read_object(where, missing={}) if path else {}
    _refuse_unknown_keys(config, set(_SENTENCE_KEYS), where)
    _refuse_other_features(config, where)
    return Normalize()


_SENTENCE_KEYS = ("module_input_name", "module_output_name")


def _refuse_other_features(config: Mapping[str, Any], where: Path) -> None:
    """A module here may only read and write the sentence's vector."""
    for key in _SENTENCE_KEYS:
        if config.get(key) not in (None, "sentence_embedding"):
            raise InputError(f"{_at(where)}: {key} {config[key]!r} is not supported; expected 'sentence_embedding'")


_POST_MODULES: Mapping[str, Callable[[Path, str], PostModule]] = {"Dense": _read_dense, "Normalize": _read_normalize}


# --- config_sentence_transformers.json -------------------------------------------------------------------------------


def _refuse_other_model_types(folder: Path, config: Mapping[str, Any]) -> None:
    model_type = config.get("model_type", "SentenceTransformer")
    if model_type != "SentenceTransformer":
        where = folder / "config_sentence_transformers.json"
        raise InputError(f"{_at(where)}: model_type {model_type!r} is not supported; expected 'SentenceTransformer'")


def _prompts(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    where = folder / "config_sentence_transformers.json"
    given = config.get("prompts") or {}
    if not isinstance(given, dict) or any(not isinstance(text, str | None) for text in given.values()):
        raise InputError(f"{_at(where)}: prompts {given!r} is not an object of strings")
    return {"query": "", "document": "", **{name: text or "" for name, text in given.items()}}


# --- JSON ------------------------------------------------------------------------------------------------------------


def _read_object(path: Path, *, missing: dict[str, Any] | None = None) -> dict[str, Any]:
    value = _read_json(path, missing)
    if not isinstance(value, dict):
        raise InputError(f"{_at(path)} holds {type(value).__name__}; expected a JSON object: the folder is damaged")
    return value


def _read_list(path: Path) -> list[Any]:
    value = _read_json(path, None)
    if not isinstance(value, list):
        raise InputError(f"{_at(path)} holds {type(value).__name__}; expected a JSON list: the folder is damaged")
    return value


def _read_json(path: Path, missing: Any) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if missing is not None:
            return missing
        raise InputError(f"{_at(path)} is missing: the model folder is not complete, copy it again") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{_at(path)} can't be read as JSON ({error}): the model folder is damaged") from None


_REQUIRED = object()


def _get(config: Mapping[str, Any], key: str, kind: Any, where: Path, *, default: Any = _REQUIRED) -> Any:
    """`config[key]` if it is of `kind`; null counts as missing, a missing key as `default`."""
    value = config.get(key)
    if value is None:
        if default is _REQUIRED:
            raise InputError(f"{_at(where)} has no {key!r}: the model folder is not complete")
        return default
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool) or (kind is int and value < 0):
        raise InputError(f"{_at(where)}: {key} is {value!r}; expected {kind.__name__}")
    return value


def _refuse_unknown_keys(config: Mapping[str, Any], known: set[str], where: Path, *, inside: str = "") -> None:
    unknown = sorted(set(config) - known)
    if unknown:
        of = f" in {inside!r}" if inside else ""
        raise InputError(f"{_at(where)}: key {unknown[0]!r}{of} is not known to this version; known are {_list(known)}")


def _at(path: Path) -> str:
    return f"model file {str(path)!r}"


def _list(names: Any) -> str:
    return ", ".join(sorted(map(str, names))) or "none"
