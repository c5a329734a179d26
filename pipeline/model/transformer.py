"""A transformer's folder in, a frozen description of it out: config.json, the tokenizer's files, sentence_bert_config.json.

Reads JSON only, never weights, and loads no torch. An architecture that is not in `ARCHITECTURES`, and any key that would
change what the model computes, is refused by name.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.model.architectures import ARCHITECTURES, REFUSED, Architecture
from pipeline.model.files import at, get, listed, read_object, refuse_unknown_keys, stays_inside
from pipeline.model.weights import check_weights


@dataclass(frozen=True, kw_only=True)
class Transformer:
    """A transformer and its tokenizer as far as they have to be known before they are loaded."""

    folder: str
    """The path relative to the model folder; "" is the model folder itself."""
    model_type: str
    """A key of ARCHITECTURES."""
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
    saved_in: str
    """The dtype that its weights were saved in, as config.json says; "" where it says nothing."""
    causal: bool
    """Saved from a causal language model: without a Pooling module, the last token is the text's vector."""


_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)

_VOCABULARIES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "sentencepiece.bpe.model",
    "spiece.model",
    "spm.model",
    "tokenizer.model",
)
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
    _refuse_architecture(model_type, config, where)
    architecture = ARCHITECTURES[model_type]
    if config.get("quantization_config"):
        raise InputError(f"{at(where)} has a quantization_config: not supported, use a model without it")
    if (folder / "adapter_config.json").exists():
        raise InputError(f"{at(folder / 'adapter_config.json')}: adapters are not supported; merge it into the model")
    for what, files in (("weights", _WEIGHTS), ("tokenizer", _VOCABULARIES)):
        if not any((folder / name).is_file() for name in files):
            raise InputError(f"model folder {str(folder)!r} holds no {what}; expected one of {listed(files)}")
    _check_weights(folder)
    _refuse_tokenizer(folder, chat_template=settings_file)
    cap, limit = _positions(config, architecture, where)
    settings = _read_settings(folder) if settings_file else {}
    return Transformer(
        folder=path,
        model_type=model_type,
        hidden=get(config, architecture.hidden, int, where),
        layers=get(config, architecture.layers, int, where),
        positions=limit,
        max_seq_length=_max_seq_length(folder, settings, cap),
        do_lower_case=get(settings, "do_lower_case", bool, folder / _SETTINGS_FILES[0], default=False),
        all_layers=architecture.gives_layers and _all_layers(config, settings, where),
        saved_in=str(config.get("dtype") or config.get("torch_dtype") or "").removeprefix("torch."),
        causal=_causal(config),
    )


def _causal(config: Mapping[str, Any]) -> bool:
    """Whether sentence-transformers 6.2 would take a folder without modules.json for a causal language model."""
    names = config.get("architectures")
    first = names[0] if isinstance(names, list) and names else ""
    return str(first).endswith("ForCausalLM") and config.get("is_causal", True) is not False


def _all_layers(config: Mapping[str, Any], settings: Mapping[str, Any], where: Path) -> bool:
    arguments = {**(settings.get("config_args") or {}), **(settings.get("config_kwargs") or {})}
    given = arguments if "output_hidden_states" in arguments else config
    return bool(get(given, "output_hidden_states", bool, where, default=False))


def _refuse_architecture(model_type: str, config: Mapping[str, Any], where: Path) -> None:
    if model_type in REFUSED:
        raise InputError(f"{at(where)}: model_type {model_type!r} is not supported: {REFUSED[model_type]}")
    code = " with code of its own (auto_map), which is never run," if config.get("auto_map") else ""
    if model_type not in ARCHITECTURES:
        raise InputError(
            f"{at(where)}: model_type {model_type!r}{code} is not supported; known are {listed(ARCHITECTURES)}"
        )
    architecture = ARCHITECTURES[model_type]
    if code:
        raise InputError(
            f"{at(where)}: model_type {model_type!r}{code} is not supported: without it the vectors may be others than the "
            "model's; use a model without auto_map"
        )
    kinds = architecture.position_types
    if config.get("position_embedding_type", kinds[0]) not in kinds:
        # transformers 5 no longer reads the key in most classes: it would load the model as if it had absolute positions.
        raise InputError(
            f"{at(where)}: position_embedding_type {config['position_embedding_type']!r} is not supported; expected "
            f"{kinds[0]!r}"
        )


def _check_weights(folder: Path) -> None:
    """Raises InputError unless the file that transformers takes, and each of its shards, can be loaded and lies in the folder:
    outside it no digest would see a change."""
    name = next(name for name in _WEIGHTS if (folder / name).is_file())
    where, shards = folder / name, [name]
    if name.endswith(".json"):
        shards = sorted(set(map(str, get(read_object(where), "weight_map", dict, where).values())))
        for shard in shards:
            if not stays_inside(shard):
                raise InputError(f"{at(where)}: shard {shard!r} leaves the model folder; expected a file inside it")
    for shard in shards:
        check_weights(folder / shard)


def _refuse_tokenizer(folder: Path, *, chat_template: bool) -> None:
    """`chat_template`: False where one would change what the model reads: in a folder that is not saved as an
    encoder."""
    where = folder / "tokenizer_config.json"
    config = read_object(where, missing={})
    if config.get("auto_map"):
        raise InputError(f"{at(where)}: key 'auto_map' (custom code) is not supported")
    if not chat_template and (config.get("chat_template") or (folder / "chat_template.jinja").exists()):
        raise InputError(
            f"model folder {str(folder)!r} has a chat template and no modules.json: sentence-transformers would put each "
            "text into that chat, which is not supported; save the model with a Pooling module, or remove the template"
        )


def _positions(config: Mapping[str, Any], architecture: Architecture, where: Path) -> tuple[int | None, int | None]:
    """(the cap on the length where the model gives none, the length that nothing can exceed)."""
    if architecture.positions is None:  # the key counts all the same, as in sentence-transformers 6.2
        return get(config, "max_position_embeddings", int, where, default=None), None
    positions = get(config, architecture.positions, int, where)
    if architecture.positions_after_pad:
        positions -= get(config, "pad_token_id", int, where, default=1) + 1
    limited = architecture.limited
    if architecture.limited_by is not None:
        limited = get(config, architecture.limited_by, bool, where, default=True)
    return positions, positions if limited else _rotary_limit(config, positions, where)


def _rotary_limit(config: Mapping[str, Any], positions: int, where: Path) -> int | None:
    """Rotary positions whose frequencies depend on the longest text of a batch are the same up to this length only."""
    given = (get(config, key, dict, where, default={}) for key in ("rope_parameters", "rope_scaling"))
    settings: Mapping[str, Any] = next(filter(None, given), {})
    blocks = [
        settings,
        *(value for value in settings.values() if isinstance(value, dict)),
    ]  # one for each kind of layer
    for block in blocks:
        if (block.get("rope_type") or block.get("type")) in ("dynamic", "longrope"):
            return int(get({**config, **block}, "original_max_position_embeddings", int, where, default=positions))
    return None


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
        refuse_unknown_keys(get(settings, key, dict, where, default={}), allowed, where, inside=key)
    for key, only in _NEW_STYLE.items():
        if key in settings and settings[key] not in only:
            expected = listed(map(repr, only))
            raise InputError(f"{at(where)}: {key} {settings[key]!r} is not supported; expected {expected}")
    return settings


# Ours to choose, the vectors stay the same. Saves may hold trust_remote_code, which sentence-transformers leaves out too.
_LOADING = {"torch_dtype", "dtype", "attn_implementation", "trust_remote_code"}
_TOKENIZER = {"model_max_length", "padding_side", "use_fast", "trust_remote_code"}
_ARGUMENTS: Mapping[str, set[str]] = {
    "model_args": _LOADING,
    "model_kwargs": _LOADING,
    "tokenizer_args": _TOKENIZER,
    "processor_kwargs": _TOKENIZER,
    "config_args": {"output_hidden_states", "trust_remote_code"},
    "config_kwargs": {"output_hidden_states", "trust_remote_code"},
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


def _max_seq_length(folder: Path, settings: Mapping[str, Any], cap: int | None) -> int | None:
    """The length as sentence-transformers 6.2 finds it: an explicit one as it stands, else the tokenizer's, at most `cap`.

    (There RoBERTa-likes are capped at 514 and fail on the texts that reach beyond the 512 they can take.)
    """
    where = folder / "sentence_bert_config.json"
    arguments = {**(settings.get("tokenizer_args") or {}), **(settings.get("processor_kwargs") or {})}
    explicit = get(arguments, "model_max_length", int, where, default=None)
    if explicit is None:
        explicit = get(settings, "max_seq_length", int, where, default=None)
    if explicit is not None:
        return int(explicit) if explicit < _NO_LIMIT else None
    tokenizer = read_object(folder / "tokenizer_config.json", missing={})
    of_tokenizer = tokenizer.get("model_max_length")
    known = [cap] if cap is not None else []
    # transformers writes 1e30 where a tokenizer has no limit.
    if isinstance(of_tokenizer, int | float) and not isinstance(of_tokenizer, bool) and of_tokenizer < _NO_LIMIT:
        known.append(int(of_tokenizer))
    return min(known, default=None)


_NO_LIMIT = 10**18
