"""A BERT or RoBERTa on numpy: token ids of a few short texts in, their token vectors out, in float32.

It exists for single queries, where loading torch costs seconds and the arithmetic milliseconds. The weights are read from
safetensors alone, and of the table of words only the rows that are needed. Who uses it compares it with known vectors
first, because a model may be laid out in ways that are not known here.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.model.folder import EncoderSpec

KINDS = ("bert", "roberta", "xlm-roberta", "camembert")
"""These keys of ARCHITECTURES have the layout of BERT."""
_AFTER_PAD = KINDS[1:]

Hidden = NDArray[np.float32]


class NotBert(Exception):
    """The folder's weights or settings are not those of a plain BERT; torch is needed."""


class NumpyBert:
    """It holds the weights of the layers in memory, and no mapping of a file."""

    def __init__(self, spec: EncoderSpec, ids: NDArray[np.int64]) -> None:
        """Load what texts of these token ids need. Raises NotBert."""
        from safetensors import SafetensorError, safe_open

        folder = spec.transformer_folder
        self._settings = _settings(folder)
        try:
            with safe_open(str(folder / "model.safetensors"), framework="np") as file:
                weights = _Weights(file)
                words = weights.rows("embeddings.word_embeddings.weight", ids)
                self._words = dict(zip(ids.tolist(), words, strict=True))
                self._positions = weights["embeddings.position_embeddings.weight"]
                self._type = weights["embeddings.token_type_embeddings.weight"][0]
                self._norm = weights.pair("embeddings.LayerNorm")
                self._layers = [_Layer(weights, number, self._settings) for number in range(self._settings["layers"])]
        except (KeyError, ValueError, OSError, SafetensorError) as error:
            raise NotBert(str(error)) from None
        self._first = self._settings["pad"] + 1 if spec.model_type in _AFTER_PAD else 0

    def __call__(self, ids: NDArray[np.int64], mask: NDArray[np.bool_]) -> Hidden:
        """ids int64[n, width] and the mask of real tokens, bool[n, width] -> float32[n, width, hidden]."""
        words = np.stack([[self._words[number] for number in row] for row in ids.tolist()])
        places = self._positions[self._first : self._first + ids.shape[1]]
        if len(places) < ids.shape[1]:
            raise NotBert("the text is longer than the table of positions")
        hidden = _normed(words + places + self._type, *self._norm, self._settings["eps"])
        away = np.where(mask, np.float32(0), np.float32(-1e9))[:, None, None, :]
        for layer in self._layers:
            hidden = layer(hidden, away)
        return hidden


def _settings(folder: Path) -> dict[str, Any]:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.get("hidden_act") != "gelu" or config.get("position_embedding_type", "absolute") != "absolute":
        raise NotBert("its activation or its positions are others")
    return {
        "layers": int(config["num_hidden_layers"]),
        "heads": int(config["num_attention_heads"]),
        "eps": float(config.get("layer_norm_eps", 1e-12)),
        "pad": int(config.get("pad_token_id") or 0),
    }


class _Weights:
    """The tensors of a file by the names that they have without the model's prefix."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._names: Mapping[str, str] = {
            name.removeprefix("bert.").removeprefix("roberta."): name
            for name in file.keys()  # noqa: SIM118 - it is no mapping
        }

    def __getitem__(self, name: str) -> Hidden:
        given = self._file.get_tensor(self._names[name])
        if given.dtype not in (np.float32, np.float16):
            raise ValueError(f"{name} is {given.dtype}")
        return np.asarray(given, np.float32)

    def rows(self, name: str, numbers: NDArray[np.int64]) -> Hidden:
        """Read some rows of a matrix, and no others."""
        found = self._file.get_slice(self._names[name])
        if found.get_dtype() not in ("F32", "F16"):
            raise ValueError(f"{name} is {found.get_dtype()}")
        rows = [np.asarray(found[number : number + 1], np.float32) for number in numbers.tolist()]
        return np.concatenate(rows)

    def pair(self, name: str) -> tuple[Hidden, Hidden]:
        return self[f"{name}.weight"], self[f"{name}.bias"]


class _Layer:
    def __init__(self, weights: _Weights, number: int, settings: Mapping[str, Any]) -> None:
        name = f"encoder.layer.{number}"
        self._heads, self._eps = settings["heads"], settings["eps"]
        self._query, self._key, self._value = (
            weights.pair(f"{name}.attention.self.{part}") for part in ("query", "key", "value")
        )
        self._joined = weights.pair(f"{name}.attention.output.dense")
        self._joined_norm = weights.pair(f"{name}.attention.output.LayerNorm")
        self._wide = weights.pair(f"{name}.intermediate.dense")
        self._narrow = weights.pair(f"{name}.output.dense")
        self._norm = weights.pair(f"{name}.output.LayerNorm")

    def __call__(self, hidden: Hidden, away: Hidden) -> Hidden:
        query, key, value = (self._split(_linear(hidden, *part)) for part in (self._query, self._key, self._value))
        scores = query @ key.swapaxes(2, 3) / np.float32(math.sqrt(query.shape[-1])) + away
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed = (scores / scores.sum(axis=-1, keepdims=True)) @ value
        joined = mixed.swapaxes(1, 2).reshape(hidden.shape)
        hidden = _normed(hidden + _linear(joined, *self._joined), *self._joined_norm, self._eps)
        wide = _gelu(_linear(hidden, *self._wide))
        return _normed(hidden + _linear(wide, *self._narrow), *self._norm, self._eps)

    def _split(self, values: Hidden) -> Hidden:
        n, width, size = values.shape
        return values.reshape(n, width, self._heads, size // self._heads).swapaxes(1, 2)


def _linear(values: Hidden, weight: Hidden, bias: Hidden) -> Hidden:
    # One product of two matrices: a stack of them is several times slower.
    flat = values.reshape(-1, values.shape[-1]) @ weight.T + bias
    return np.asarray(flat.reshape(*values.shape[:-1], len(weight)), np.float32)


def _normed(values: Hidden, weight: Hidden, bias: Hidden, eps: float) -> Hidden:
    centred = values - values.mean(axis=-1, keepdims=True)
    spread = np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + np.float32(eps))
    return np.asarray(centred / spread * weight + bias, np.float32)


def _gelu(values: Hidden) -> Hidden:
    return np.asarray(values * np.float32(0.5) * (1 + _erf(values * np.float32(1 / math.sqrt(2)))), np.float32)


def _erf(values: Hidden) -> Hidden:
    """Approximate the error function to 1.5e-7 (Abramowitz and Stegun, 7.1.26)."""
    size = np.abs(values)
    t = np.reciprocal(1 + np.float32(0.3275911) * size)
    poly: Hidden = np.full_like(t, 1.061405429)
    for factor in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        poly = poly * t + np.float32(factor)
    return np.asarray(np.copysign(1 - poly * t * np.exp(-size * size), values), np.float32)
