"""Every combination of the format's settings, each written as a model folder on one shared, already saved transformer.

`legacy` is the style of releases up to 5.3, `new` that of 5.4 and newer. Only JSON is written per combination: the files of
the transformer and of the Dense modules are links.
"""

import itertools
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from pipeline.model.saved_modules import POOLING_MODES

FAST = ("bert", "roberta", "modernbert", "qwen3", "t5")
"""The architectures of the quick tests: WordPiece, two of byte-level BPE of which one pads on the left, and Unigram;
absolute, rotary and relative positions."""

LENGTH = 48
PROMPTS = {"query": "query: the ", "document": "", "title": "Titel 제목: "}
PROMPT_CHOICES: Mapping[str, Mapping[str, Any]] = {
    "none": {},
    "explicit": {"prompt": "report of "},
    "by name": {"prompt_name": "title"},
    "default": {},
}
"""How a run comes by its prompt, with the keys of the model section; `default` is a key of the model's own."""
DEFAULT_PROMPT = "query"

CUT = 10
CUT_CHOICES: Mapping[str, Mapping[str, Any]] = {
    "none": {},
    "cut": {"truncate_dim": CUT},
    "cut, normalised": {"truncate_dim": CUT, "normalize": True},
    "model's own cut": {},
}
DENSE_CHOICES = ("none", "Tanh", "Identity", "GELU", "residual", "projected residual")
"""Tanh and Identity have fewer numbers after than before; a residual that is not projected has as many."""
_LEGACY_DENSE = DENSE_CHOICES[:4]

SINGLE = tuple((mode,) for mode in POOLING_MODES)
ORDERED_PAIRS = tuple(itertools.permutations(POOLING_MODES, 2))
UNORDERED_PAIRS = tuple(itertools.combinations(POOLING_MODES, 2))


@dataclass(frozen=True, kw_only=True)
class Combination:
    style: str
    pooling: tuple[str, ...]
    prompt: str
    """Of PROMPT_CHOICES."""
    include_prompt: bool
    dense: str
    """Of DENSE_CHOICES."""
    normalize: bool
    """A Normalize module at the end."""
    cut: str
    """Of CUT_CHOICES."""

    @property
    def overrides(self) -> dict[str, Any]:
        """Keys of the model section."""
        return {**PROMPT_CHOICES[self.prompt], **CUT_CHOICES[self.cut]}

    @property
    def rows(self) -> list[tuple[str, str]]:
        """The rows of the table that it proves."""
        pair = [("pooling", "two modes, concatenated")] if len(self.pooling) > 1 else []
        return [
            ("style", self.style),
            *(("pooling", mode) for mode in self.pooling),
            *pair,
            ("prompt", self.prompt),
            ("include_prompt", str(self.include_prompt).lower()),
            ("dense", self.dense),
            ("normalize", "module" if self.normalize else "none"),
            ("cut", self.cut),
        ]


_STYLES = (
    ("new", SINGLE + ORDERED_PAIRS, DENSE_CHOICES),
    ("legacy", SINGLE + UNORDERED_PAIRS, _LEGACY_DENSE),
)
"""(style, its poolings, its kinds of Dense)."""


def all_combinations() -> list[Combination]:
    """All of both styles."""
    return [
        Combination(
            style=style, pooling=pooling, prompt=prompt, include_prompt=include, dense=dense, normalize=normal, cut=cut
        )
        for style, poolings, denses in _STYLES
        for pooling, prompt, include, dense, normal, cut in itertools.product(
            poolings, PROMPT_CHOICES, (True, False), denses, (False, True), CUT_CHOICES
        )
    ]


def token_combinations(seed: int) -> list[Combination]:
    """Every setting that works on the vectors of tokens with every other; what works on sentences is drawn."""
    generator = random.Random(seed)
    return [
        Combination(
            style=style,
            pooling=pooling,
            prompt=prompt,
            include_prompt=include,
            dense=generator.choice(denses),
            normalize=generator.random() < 0.5,
            cut=generator.choice([*CUT_CHOICES]),
        )
        for style, poolings, denses in _STYLES
        for pooling, prompt, include in itertools.product(poolings, PROMPT_CHOICES, (True, False))
    ]


def sample(count: int, seed: int) -> list[Combination]:
    """A seeded choice in which every pooling and both styles come."""
    generator = random.Random(seed)
    everything = all_combinations()
    modes = [generator.choice([each for each in everything if each.pooling == mode]) for mode in SINGLE]
    styles = [generator.choice([each for each in everything if each.style == style]) for style in ("legacy", "new")]
    return [*modes, *styles, *generator.sample(everything, max(count - len(modes) - len(styles), 0))]


# --- on disk ---------------------------------------------------------------------------------------------------------

_OWN = {"modules.json", "sentence_bert_config.json", "config_sentence_transformers.json", "tokenizer_config.json"}
_LEGACY_POOLING = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
_HOMES = {
    "Transformer": "base.modules.transformer",
    "Pooling": "sentence_transformer.modules.pooling",
    "Dense": "base.modules.dense",
    "Normalize": "base.modules.normalize",
}
_NEW_TRANSFORMER = {
    "transformer_task": "feature-extraction",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "module_output_name": "token_embeddings",
}


class SharedTransformer:
    """A saved model whose transformer all combinations use."""

    def __init__(self, base: Path, scratch: Path) -> None:
        """`base`: a folder as sentence-transformers saves it; `scratch`: a new folder for the Dense modules."""
        self.base = base
        self.hidden = json.loads((base / "1_Pooling" / "config.json").read_text())["embedding_dimension"]
        self._tokenizer = json.loads((base / "tokenizer_config.json").read_text())
        self._scratch = scratch

    def write(self, combination: Combination, folder: Path) -> Path:
        """Make `folder` that model; it may hold another one of this transformer, which is taken away."""
        if not folder.exists():
            folder.mkdir(parents=True)
            for file in self.base.iterdir():
                if file.is_file() and file.name not in _OWN:
                    (folder / file.name).symlink_to(file)
            for name in ("1_Pooling", "3_Normalize"):
                (folder / name).mkdir()
        modules = [("Transformer", ""), ("Pooling", "1_Pooling")]
        _write(folder / "1_Pooling" / "config.json", self._pooling(combination))
        (folder / "2_Dense").unlink(missing_ok=True)
        if combination.dense != "none":
            modules.append(("Dense", "2_Dense"))
            width = self.hidden * len(combination.pooling)
            (folder / "2_Dense").symlink_to(self._dense(combination.dense, width, combination.style))
        if combination.normalize:
            modules.append(("Normalize", "3_Normalize"))
            _write_normalize(folder / "3_Normalize" / "config.json", combination.style)
        _write(
            folder / "modules.json", [_entry(combination.style, *each, number) for number, each in enumerate(modules)]
        )
        new = combination.style == "new"
        legacy = {"max_seq_length": LENGTH, "do_lower_case": False}
        _write(folder / "sentence_bert_config.json", _NEW_TRANSFORMER if new else legacy)
        length = {"model_max_length": LENGTH if new else 10**6}
        _write(folder / "tokenizer_config.json", self._tokenizer | length)
        _write(folder / "config_sentence_transformers.json", _model_config(combination))
        return folder

    def _pooling(self, combination: Combination) -> dict[str, Any]:
        include = {"include_prompt": combination.include_prompt}
        modes = combination.pooling
        if combination.style == "new":
            return {
                "embedding_dimension": self.hidden,
                "pooling_mode": modes[0] if len(modes) == 1 else modes,
            } | include
        active = {key: mode in modes for mode, key in _LEGACY_POOLING.items()}
        return {"word_embedding_dimension": self.hidden} | active | include

    def _dense(self, kind: str, width: int, style: str) -> Path:
        folder = self._scratch / f"{kind}-{width}-{style}".replace(" ", "-")
        if folder.exists():
            return folder
        out = width if kind == "residual" else 24
        residual = kind in ("residual", "projected residual")
        activation = {"Identity": "linear.Identity", "GELU": "activation.GELU"}.get(kind, "activation.Tanh")
        save_dense(folder, width, out, f"torch.nn.modules.{activation}", residual=residual, pickled=style == "legacy")
        return folder


def save_dense(
    folder: Path, width: int, out: int, activation: str, *, residual: bool = False, pickled: bool = False, **keys: Any
) -> None:
    """A Dense module's folder, with seeded weights; `keys` go into its config."""
    folder.mkdir(parents=True)
    config = {"in_features": width, "out_features": out, "bias": True, "activation_function": activation}
    _write(folder / "config.json", config | ({"use_residual": True} if residual else {}) | keys)
    generator = torch.Generator().manual_seed(width + out)
    weights = {
        "linear.weight": torch.randn(out, width, generator=generator) / width**0.5,
        "linear.bias": torch.randn(out, generator=generator) / 10,
    }
    if residual and out != width:
        weights["residual.weight"] = torch.randn(out, width, generator=generator) / width**0.5
    if pickled:
        torch.save(weights, folder / "pytorch_model.bin")
    else:
        save_file(weights, folder / "model.safetensors")


def _write_normalize(path: Path, style: str) -> None:
    """Older saves leave the folder empty."""
    path.unlink(missing_ok=True)
    if style == "new":
        _write(path, {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"})


def _entry(style: str, name: str, path: str, number: int) -> dict[str, Any]:
    home = f"models.{name}" if style == "legacy" else f"{_HOMES[name]}.{name}"
    return {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.{home}"}


def _model_config(combination: Combination) -> dict[str, Any]:
    new = combination.style == "new"
    default = DEFAULT_PROMPT if combination.prompt == "default" else None
    config: dict[str, Any] = {"__version__": {"sentence_transformers": "6.2.0" if new else "3.4.1"}}
    config |= {"prompts": PROMPTS, "default_prompt_name": default, "similarity_fn_name": "cosine"}
    config |= {"truncate_dim": CUT} if combination.cut == "model's own cut" else {}
    return config | ({"model_type": "SentenceTransformer"} if new else {})


def _write(path: Path, value: Any) -> None:
    """Most files are the same from one combination to the next, and writing takes longer than all else here."""
    content = json.dumps(value, ensure_ascii=False).encode()
    if not path.exists() or path.read_bytes() != content:
        path.write_bytes(content)
