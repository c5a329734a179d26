"""A transformer's folder in, a frozen description of it out: config.json, the tokenizer's files, sentence_bert_config.json.

Reads JSON only, never weights, and loads no torch. An architecture that is not in `ARCHITECTURES`, and any key that would
change what the model computes, is refused by name.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.model.files import at, get, listed, read_object, refuse_unknown_keys


@dataclass(frozen=True, kw_only=True)
class Transformer:
    """What of a transformer and its tokenizer has to be known before they are loaded."""

    folder: str
    """Relative to the model folder; "" is the model folder itself."""
    model_type: str
    """Of ARCHITECTURES."""
    hidden: int
    """Width of a token's vector."""
    layers: int
    positions: int | None
    """The longest input that its position embeddings allow, special tokens included; None is any."""
    max_seq_length: int | None
    """The model's own; None is no limit."""
    do_lower_case: bool
    all_layers: bool
    """config.output_hidden_states: WeightedLayerPooling gets the vectors of all layers."""
    causal: bool
    """Saved from a causal language model: without a Pooling module, the last token is the text's vector."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """How transformers lays out one model_type."""

    hidden: str = "hidden_size"
    """The key of config.json for the width of a token's vector."""
    layers: str = "num_hidden_layers"
    positions: str = "max_position_embeddings"
    positions_after_pad: bool = False
    """Positions count from behind the padding's id."""


ARCHITECTURES: Mapping[str, Architecture] = {
    "albert": Architecture(),
    "bert": Architecture(),
    "camembert": Architecture(positions_after_pad=True),
    "distilbert": Architecture(hidden="dim", layers="n_layers"),
    "electra": Architecture(),
    "mpnet": Architecture(positions_after_pad=True),
    "roberta": Architecture(positions_after_pad=True),
    "xlm-roberta": Architecture(positions_after_pad=True),
}
"""By model_type of config.json. Each is proven against sentence-transformers by the parity suite."""

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


def read_transformer(root: Path, path: str, *, settings_file: bool = True) -> Transformer:
    """Describe the transformer in the folder `path` of the model folder; InputError where it is not supported.

    `settings_file`: False for a plain transformers folder, which has no sentence_bert_config.json.
    """
    folder = root / path
    where = folder / "config.json"
    config = read_object(where)
    model_type = get(config, "model_type", str, where)
    if model_type not in ARCHITECTURES:
        raise InputError(f"{at(where)}: model_type {model_type!r} is not supported; known are {listed(ARCHITECTURES)}")
    architecture = ARCHITECTURES[model_type]
    for key in ("auto_map", "quantization_config", "is_decoder", "add_cross_attention"):
        if config.get(key):
            raise InputError(f"{at(where)}: key {key!r} is {config[key]!r}: not supported, use a model without it")
    if config.get("position_embedding_type", "absolute") != "absolute":
        kind = config["position_embedding_type"]
        raise InputError(f"{at(where)}: position_embedding_type {kind!r} is not supported; expected 'absolute'")
    if (folder / "adapter_config.json").exists():
        raise InputError(f"{at(folder / 'adapter_config.json')}: adapters are not supported; merge it into the model")
    for what, files in (("weights", _WEIGHTS), ("tokenizer", _VOCABULARIES)):
        if not any((folder / name).is_file() for name in files):
            raise InputError(f"model folder {str(folder)!r} holds no {what}; expected one of {listed(files)}")
    _refuse_other_sides(folder)
    positions = get(config, architecture.positions, int, where)
    if architecture.positions_after_pad:
        positions -= get(config, "pad_token_id", int, where, default=1) + 1
    settings = _read_settings(folder) if settings_file else {}
    return Transformer(
        folder=path,
        model_type=model_type,
        hidden=get(config, architecture.hidden, int, where),
        layers=get(config, architecture.layers, int, where),
        positions=positions,
        max_seq_length=_max_seq_length(folder, settings, positions),
        do_lower_case=get(settings, "do_lower_case", bool, folder, default=False),
        all_layers=_all_layers(config, settings, where),
        causal=_causal(config),
    )


def _causal(config: Mapping[str, Any]) -> bool:
    """As sentence-transformers 6.2 decides it for a folder without modules.json."""
    names = config.get("architectures") or [""]
    return str(names[0]).endswith("ForCausalLM") and config.get("is_causal", True) is not False


def _all_layers(config: Mapping[str, Any], settings: Mapping[str, Any], where: Path) -> bool:
    arguments = {**(settings.get("config_args") or {}), **(settings.get("config_kwargs") or {})}
    given = arguments if "output_hidden_states" in arguments else config
    return bool(get(given, "output_hidden_states", bool, where, default=False))


def _refuse_other_sides(folder: Path) -> None:
    """Only padding and truncation on the right: with absolute positions, padding on the left moves the vector."""
    config = read_object(folder / "tokenizer_config.json", missing={})
    if config.get("auto_map"):
        raise InputError(f"{at(folder / 'tokenizer_config.json')}: key 'auto_map' (custom code) is not supported")
    own = read_object(folder / "tokenizer.json", missing={})
    for key, block in (("padding_side", "padding"), ("truncation_side", "truncation")):
        side = config.get(key) or (own.get(block) or {}).get("direction") or "right"
        if str(side).lower() != "right":
            raise InputError(f"model folder {str(folder)!r}: the tokenizer's {key} is {side!r}; supported is 'right'")


def _read_settings(folder: Path) -> dict[str, Any]:
    """sentence_bert_config.json or one of its older names; a missing file means defaults."""
    where, settings = folder / _SETTINGS_FILES[0], {}
    for where in (folder / name for name in _SETTINGS_FILES):
        settings = read_object(where, missing={})
        if settings:
            break
    known = {"max_seq_length", "do_lower_case", *_ARGUMENTS, *_NEW_STYLE}
    refuse_unknown_keys(settings, known, where)
    for key, allowed in _ARGUMENTS.items():
        refuse_unknown_keys(settings.get(key) or {}, allowed, where, inside=key)
    for key, only in _NEW_STYLE.items():
        if key in settings and settings[key] not in only:
            expected = listed(map(repr, only))
            raise InputError(f"{at(where)}: {key} {settings[key]!r} is not supported; expected {expected}")
    return settings


_DTYPE_AND_KERNEL = {"torch_dtype", "dtype", "attn_implementation"}  # ours to choose; the model's maths stays the same
_ARGUMENTS: Mapping[str, set[str]] = {
    "model_args": _DTYPE_AND_KERNEL,
    "model_kwargs": _DTYPE_AND_KERNEL,
    "tokenizer_args": {"model_max_length"},
    "processor_kwargs": {"model_max_length"},
    "config_args": {"output_hidden_states"},
    "config_kwargs": {"output_hidden_states"},
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


def _max_seq_length(folder: Path, settings: Mapping[str, Any], positions: int | None) -> int | None:
    """As sentence-transformers 6.2: an explicit length as it stands, else the tokenizer's, capped by the positions.

    (There RoBERTa-likes are capped at 514 and fail on the texts that reach beyond the 512 they can take.)
    """
    where = folder / "sentence_bert_config.json"
    arguments = {**(settings.get("tokenizer_args") or {}), **(settings.get("processor_kwargs") or {})}
    explicit = get(arguments, "model_max_length", int, where, default=None)
    if explicit is None:
        explicit = get(settings, "max_seq_length", int, where, default=None)
    if explicit is not None:
        return int(explicit)
    tokenizer = read_object(folder / "tokenizer_config.json", missing={})
    of_tokenizer = tokenizer.get("model_max_length")
    known = [positions] if positions is not None else []
    if isinstance(of_tokenizer, int | float) and not isinstance(of_tokenizer, bool):
        known.append(int(of_tokenizer))
    return min(known, default=None)
