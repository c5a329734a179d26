"""A BERT or RoBERTa on numpy: token ids of a few texts in, their vectors out, in float32.

It exists for single queries and for a handful of texts, where loading torch costs seconds and the arithmetic less. The
weights are read from safetensors alone. What is not exactly the layout known here is refused (NotBert), not guessed.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.encoder.engines.base import Answer, OutOfMemory
from pipeline.encoder.engines.numpy_head import NumpyHead, is_plain_head
from pipeline.model.folder import EncoderSpec

KINDS = ("bert", "roberta", "xlm-roberta", "camembert")
"""These keys of ARCHITECTURES have the layout of BERT."""
_AFTER_PAD = KINDS[1:]
_UNUSED = re.compile(r"pooler\.|cls\.|lm_head\.|embeddings\.position_ids$|embeddings\.token_type_ids$")
"""Tensors of such names have no part in token vectors."""
_IN_CACHE = 64
"""The wide part of a layer is computed for so many tokens at a time: half a megabyte stays in a core's cache."""

Numbers = NDArray[np.float32]


class NotBert(Exception):
    """The folder's weights or settings are not those of a plain BERT; torch is needed."""


def is_plain(spec: EncoderSpec) -> bool:
    """Whether the model may be one for this engine, by what is known without its weights."""
    return (
        spec.model_type in KINDS
        and spec.precision == "float32"
        and is_plain_head(spec)
        and (spec.transformer_folder / "tokenizer.json").is_file()
        and (spec.transformer_folder / "model.safetensors").is_file()
    )


class NumpyEngine:
    """Implements engines.base.StreamingEngine. It holds the weights in memory, and no mapping of a file.

    It computes a batch per thread, so numpy's own products are best held to one thread (OPENBLAS_NUM_THREADS).
    """

    name = "numpy"

    def __init__(self, spec: EncoderSpec, threads: int, ids: NDArray[np.int64] | None = None) -> None:
        """Load the model; with `ids` only what texts of these token ids need. Raises NotBert."""
        from safetensors import SafetensorError

        if not is_plain(spec):
            raise NotBert("the model is of another kind")
        self.dim = spec.dim
        self.in_flight = threads
        self._head = NumpyHead(spec)
        self._threads = ThreadPoolExecutor(threads)
        try:
            self._bert = spec.load(lambda: _Bert(spec, ids))
        except (KeyError, TypeError, ValueError, OSError, SafetensorError) as error:
            raise NotBert(str(error)) from None

    def encode(self, ids: NDArray[np.int32], lengths: NDArray[np.int32]) -> Numbers:
        """ids int32 [n, width], lengths int32 [n] -> float32 [n, dim]."""
        try:
            mask = np.arange(ids.shape[1]) < lengths[:, None]
            return self._head(self._bert(ids, mask), ids, lengths)
        except MemoryError as error:
            raise OutOfMemory(str(error)) from None

    def start(self, ids: NDArray[np.int32], lengths: NDArray[np.int32]) -> Answer:
        return self._threads.submit(self.encode, ids, lengths).result


class _Bert:
    def __init__(self, spec: EncoderSpec, ids: NDArray[np.int64] | None) -> None:
        from safetensors import safe_open

        settings = _settings(spec.transformer_folder)
        self._eps = settings["eps"]
        self._ids = ids
        with safe_open(str(spec.transformer_folder / "model.safetensors"), framework="np") as file:
            weights = _Weights(file)
            self._words = weights.rows("embeddings.word_embeddings.weight", ids)
            first = settings["pad"] + 1 if spec.model_type in _AFTER_PAD else 0
            # Token types are all 0.
            self._places = weights["embeddings.position_embeddings.weight"][first:]
            self._places = self._places + weights["embeddings.token_type_embeddings.weight"][0]
            self._norm = weights.pair("embeddings.LayerNorm")
            self._layers = [_Layer(weights, number, settings) for number in range(settings["layers"])]
            weights.check_all_read()
        if spec.max_seq_length is None or spec.max_seq_length > len(self._places):
            raise NotBert("the model has fewer positions than it may read tokens")

    def __call__(self, ids: NDArray[np.int32], mask: NDArray[np.bool_]) -> Numbers:
        """ids int[n, width] and the mask of real tokens, bool[n, width] -> float32[n, width, hidden]."""
        rows = ids if self._ids is None else np.searchsorted(self._ids, ids)
        hidden = self._words[rows] + self._places[: ids.shape[1]]
        _norm(hidden, *self._norm, self._eps)
        away = np.where(mask, np.float32(0), np.float32(-1e9))[:, None, None, :]
        for layer in self._layers:
            layer(hidden, away)
        return hidden


def _settings(folder: Path) -> dict[str, Any]:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.get("hidden_act") != "gelu" or config.get("is_decoder") or config.get("add_cross_attention"):
        raise NotBert("its activation is another, or it is no plain encoder")
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
        self._read: set[str] = set()

    def __getitem__(self, name: str) -> Numbers:
        self._read.add(name)
        given = self._file.get_tensor(self._names[name])
        if given.dtype not in (np.float32, np.float16):
            raise NotBert(f"{name} is {given.dtype}")
        return np.asarray(given, np.float32)

    def rows(self, name: str, numbers: NDArray[np.int64] | None) -> Numbers:
        """Read some rows of a matrix, and no others; None is all of them."""
        if numbers is None:
            return self[name]
        self._read.add(name)
        found = self._file.get_slice(self._names[name])
        if found.get_dtype() not in ("F32", "F16"):
            raise NotBert(f"{name} is {found.get_dtype()}")
        rows = [np.asarray(found[number : number + 1], np.float32) for number in numbers.tolist()]
        return np.concatenate(rows)

    def pair(self, name: str) -> tuple[Numbers, Numbers]:
        return self[f"{name}.weight"], self[f"{name}.bias"]

    def linear(self, *names: str) -> tuple[Numbers, Numbers]:
        """The weights of one linear layer, or of several side by side, as [in, out]."""
        pairs = [self.pair(name) for name in names]
        # A product with a matrix that lies as it is read is a fifth faster.
        weight = np.ascontiguousarray(np.concatenate([weight for weight, _ in pairs]).T)
        return weight, np.concatenate([bias for _, bias in pairs])

    def check_all_read(self) -> None:
        """Raise NotBert where the model has weights that nothing here uses: they may have a part in its vectors."""
        left = [name for name in self._names if name not in self._read and not _UNUSED.match(name)]
        if left:
            raise NotBert(f"it has weights of another layout, among them {left[0]}")


class _Layer:
    def __init__(self, weights: _Weights, number: int, settings: Mapping[str, Any]) -> None:
        name = f"encoder.layer.{number}"
        self._heads, self._eps = settings["heads"], settings["eps"]
        self._asked = weights.linear(*(f"{name}.attention.self.{part}" for part in ("query", "key", "value")))
        self._joined = weights.linear(f"{name}.attention.output.dense")
        self._joined_norm = weights.pair(f"{name}.attention.output.LayerNorm")
        self._wide = weights.linear(f"{name}.intermediate.dense")
        self._narrow = weights.linear(f"{name}.output.dense")
        self._norm = weights.pair(f"{name}.output.LayerNorm")

    def __call__(self, hidden: Numbers, away: Numbers) -> None:
        """Change float32[n, width, hidden] into what the layer makes of it."""
        flat = hidden.reshape(-1, hidden.shape[-1])
        flat += _linear(self._mixed(hidden, away), *self._joined)
        for rows in _blocks(flat):
            _norm(rows, *self._joined_norm, self._eps)
            wide = _linear(rows, *self._wide)
            _gelu(wide)
            rows += _linear(wide, *self._narrow)
            _norm(rows, *self._norm, self._eps)

    def _mixed(self, hidden: Numbers, away: Numbers) -> Numbers:
        """float32[n * width, hidden]: the values of all heads, weighted by attention."""
        n, width, size = hidden.shape
        head = size // self._heads
        asked = _linear(hidden.reshape(-1, size), *self._asked).reshape(n, width, 3, self._heads, head)
        query, key, value = np.ascontiguousarray(asked.transpose(2, 0, 3, 1, 4))
        query *= np.float32(1 / math.sqrt(head))
        mixed = np.empty((n, width, self._heads, head), np.float32)
        for row in range(n):  # The scores of one text stay in the cache.
            scores = query[row] @ key[row].swapaxes(1, 2)
            scores += away[row]
            scores -= scores.max(axis=-1, keepdims=True)
            np.exp(scores, out=scores)
            scores /= scores.sum(axis=-1, keepdims=True)
            mixed[row] = (scores @ value[row]).swapaxes(0, 1)
        return mixed.reshape(-1, size)


def _blocks(flat: Numbers) -> Iterator[Numbers]:
    for start in range(0, len(flat), _IN_CACHE):
        yield flat[start : start + _IN_CACHE]


def _linear(values: Numbers, weight: Numbers, bias: Numbers) -> Numbers:
    product: Numbers = values @ weight
    product += bias
    return product


def _norm(values: Numbers, weight: Numbers, bias: Numbers, eps: float) -> None:
    """Normalise the last axis in place, and scale it."""
    values -= values.mean(axis=-1, keepdims=True)
    spread = np.einsum("...i,...i->...", values, values)[..., None] / np.float32(values.shape[-1])
    values /= np.sqrt(spread + np.float32(eps))
    values *= weight
    values += bias


def _gelu(values: Numbers) -> None:
    """Change x into x * (1 + erf(x / sqrt(2))) / 2, in place.

    erf(z) is approximated to 1.5e-7, for z >= 0, by 1 - poly(t) * exp(-z * z) with t = 1 / (1 + 0.3275911 z) (Abramowitz and
    Stegun, 7.1.26), so that GELU(x) is max(x, 0) - |x| / 2 * poly(t) * exp(-x * x / 2), on both sides of zero.
    """
    size = np.abs(values)
    t = size * np.float32(0.3275911 / math.sqrt(2))
    t += np.float32(1)
    np.reciprocal(t, out=t)
    poly = t * np.float32(1.061405429 / 2)
    for factor in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        poly += np.float32(factor / 2)
        poly *= t
    np.multiply(size, size, out=t)
    t *= np.float32(-0.5)
    np.exp(t, out=t)
    poly *= t
    poly *= size
    np.maximum(values, 0, out=values)
    values -= poly
