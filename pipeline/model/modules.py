"""Token vectors in, sentence vectors out: every module that stands behind the transformer, all in float32.

The formulas are those of sentence-transformers 6.2 (`sentence_transformer/modules/` and `base/modules/`) for input padded
on the right. Knows no tokenizer and no transformer.
"""

import json
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812 - the name that torch's own documentation uses
from torch import Tensor, nn

from pipeline.errors import InputError
from pipeline.model.folder import EncoderSpec
from pipeline.model.saved_modules import (
    Dense,
    LayerNorm,
    PostModule,
    TokenModule,
    WeightedLayerPooling,
    WordWeights,
)
from pipeline.model.token_table import token_vectors

_EPS = 1e-9


@dataclass(frozen=True, eq=False)
class TokenVectors:
    """The modules before Pooling take and return this."""

    vectors: Tensor
    """float32 [n, width, hidden]."""
    ids: Tensor
    """int64 [n, width]."""
    lengths: Tensor | None
    """int [n]: tokens beyond a row's length don't count; None means that every row fills the width."""
    all_layers: Sequence[Tensor] = ()
    """The vectors in every layer of the transformer, the embedding layer first; only where a module reads them."""
    weights: Tensor | None = None
    """float32 [n]: the sum of the weights of each row's tokens, by which means are divided; None is their number."""


def pool(tokens: TokenVectors, modes: tuple[str, ...], prompt_length: int = 0) -> Tensor:
    """-> float32 [n, len(modes) * hidden], the modes concatenated in their order.

    The first `prompt_length` tokens of a row don't count.
    """
    vectors = tokens.vectors
    mask = pooling_mask(vectors.shape[1], tokens.lengths, prompt_length, vectors.device)
    weights = None if tokens.weights is None else tokens.weights[:, None].clamp(min=_EPS)
    return torch.cat([_POOLING[mode](vectors, mask, weights) for mode in modes], dim=-1)


def pooling_mask(width: int, lengths: Tensor | None, prompt_length: int, device: torch.device) -> Tensor | None:
    """bool [n or 1, width], True where a token counts; None where all do."""
    if lengths is None and not prompt_length:
        return None
    position = torch.arange(width, device=device)[None, :]
    mask = position >= prompt_length
    return mask if lengths is None else mask & (position < lengths[:, None])


def cls_pooling(tokens: Tensor, mask: Tensor | None, weights: Tensor | None = None) -> Tensor:
    """The first token that counts."""
    return tokens[:, 0] if mask is None else _take(tokens, mask.int().argmax(dim=1))


def max_pooling(tokens: Tensor, mask: Tensor | None, weights: Tensor | None = None) -> Tensor:
    """The largest value of each number over the tokens that count; -inf where none does."""
    return tokens.amax(dim=1) if mask is None else tokens.masked_fill(~mask[:, :, None], -torch.inf).amax(dim=1)


def mean_pooling(tokens: Tensor, mask: Tensor | None, weights: Tensor | None = None) -> Tensor:
    """sum(tokens) / max(count, 1e-9); the sum of word weights takes the place of the count."""
    return _sum(tokens, mask) / (_count(tokens, mask) if weights is None else weights)


def mean_sqrt_len_pooling(tokens: Tensor, mask: Tensor | None, weights: Tensor | None = None) -> Tensor:
    """sum(tokens) / sqrt(max(count, 1e-9)); the sum of word weights takes the place of the count."""
    return _sum(tokens, mask) / (_count(tokens, mask) if weights is None else weights).sqrt()


def weightedmean_pooling(tokens: Tensor, mask: Tensor | None, weights: Tensor | None = None) -> Tensor:
    """Mean weighted by position, 1 for the row's first token; a prompt that doesn't count keeps its positions. Divided by
    the sum of these positions, or by the sum of word weights where there are any."""
    positions = torch.arange(1, tokens.shape[1] + 1, device=tokens.device, dtype=tokens.dtype)[None, :]
    if mask is not None:
        positions = positions * mask
    divisor = positions.sum(dim=1, keepdim=True).clamp(min=_EPS) if weights is None else weights
    return (tokens * positions[:, :, None]).sum(dim=1) / divisor


def lasttoken_pooling(tokens: Tensor, mask: Tensor | None, weights: Tensor | None = None) -> Tensor:
    """The last token that counts; zeros where none does."""
    if mask is None:
        return tokens[:, -1]
    last = mask.shape[1] - 1 - mask.flip(1).int().argmax(dim=1)
    return _take(tokens, last) * mask.any(dim=1, keepdim=True)


_POOLING: Mapping[str, Callable[[Tensor, Tensor | None, Tensor | None], Tensor]] = {
    "cls": cls_pooling,
    "max": max_pooling,
    "mean": mean_pooling,
    "mean_sqrt_len_tokens": mean_sqrt_len_pooling,
    "weightedmean": weightedmean_pooling,
    "lasttoken": lasttoken_pooling,
}


def _sum(tokens: Tensor, mask: Tensor | None) -> Tensor:
    return tokens.sum(dim=1) if mask is None else (tokens * mask[:, :, None]).sum(dim=1)


def _count(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """float32 [n or 1, 1], at least 1e-9."""
    if mask is None:
        return torch.full((1, 1), float(tokens.shape[1]), device=tokens.device)
    return mask.sum(dim=1, keepdim=True, dtype=torch.float32).clamp(min=_EPS)


def _take(tokens: Tensor, position: Tensor) -> Tensor:
    """tokens[i, position[i]]; one position stands for all rows."""
    rows = torch.arange(tokens.shape[0], device=tokens.device)
    return tokens[rows, position.expand(len(rows))]


def normalize(vectors: Tensor) -> Tensor:
    """vectors / max(L2 norm, 1e-12)."""
    return F.normalize(vectors, p=2, dim=-1)


class DenseLayer(nn.Module):
    """activation(linear(x)), plus x or residual(x) where the module says so."""

    def __init__(self, dense: Dense) -> None:
        super().__init__()
        self.linear = nn.Linear(dense.in_features, dense.out_features, bias=dense.bias)
        self.activation: nn.Module = getattr(nn, dense.activation)()
        self._use_residual = dense.use_residual
        if dense.use_residual and dense.in_features != dense.out_features:
            self.residual = nn.Linear(dense.in_features, dense.out_features, bias=False)

    def forward(self, vectors: Tensor) -> Tensor:
        result: Tensor = self.activation(self.linear(vectors))
        if not self._use_residual:
            return result
        return result + (self.residual(vectors) if hasattr(self, "residual") else vectors)


class LayerNormLayer(nn.Module):
    """torch.nn.LayerNorm under the name that the weights are saved by."""

    def __init__(self, layer: LayerNorm) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(layer.dimension)

    def forward(self, vectors: Tensor) -> Tensor:
        result: Tensor = self.norm(vectors)
        return result


class NormalizeLayer(nn.Module):
    def forward(self, vectors: Tensor) -> Tensor:
        return normalize(vectors)


class Truncate(nn.Module):
    """The first `dim` numbers of each vector."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, vectors: Tensor) -> Tensor:
        return vectors[:, : self.dim]


class EachToken(nn.Module):
    """Applies a module that was made for sentences to the vector of each token."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, tokens: TokenVectors) -> TokenVectors:
        return replace(tokens, vectors=self.layer(tokens.vectors))


class WeightedLayers(nn.Module):
    """sum(weight * layer) / sum(weights) over the layers from `layer_start` on."""

    def __init__(self, layer: WeightedLayerPooling) -> None:
        super().__init__()
        self.start = layer.layer_start
        self.layer_weights = nn.Parameter(torch.ones(layer.num_layers + 1 - layer.layer_start), requires_grad=False)

    def forward(self, tokens: TokenVectors) -> TokenVectors:
        layers = torch.stack([layer.float() for layer in tokens.all_layers[self.start :]])
        mean = (self.layer_weights[:, None, None, None] * layers).sum(dim=0) / self.layer_weights.sum()
        return replace(tokens, vectors=mean)


class WeightedWords(nn.Module):
    """Multiply each token by its weight and keep the sum of a row's weights."""

    def __init__(self, weights: Tensor) -> None:
        """float32 [vocabulary]."""
        super().__init__()
        self.word_weights = nn.Parameter(weights, requires_grad=False)

    def forward(self, tokens: TokenVectors) -> TokenVectors:
        # Ids beyond a row's end are padding of our own, which may stand outside this vocabulary.
        mask = pooling_mask(tokens.ids.shape[1], tokens.lengths, 0, tokens.ids.device)
        ids = tokens.ids if mask is None else tokens.ids.masked_fill(~mask, 0)
        weights = self.word_weights[ids]
        weights = weights if mask is None else weights * mask
        return replace(tokens, vectors=tokens.vectors * weights[:, :, None], weights=weights.sum(dim=1))


def build_token_modules(spec: EncoderSpec) -> nn.Sequential:
    """All that stands between transformer and pooling: TokenVectors -> TokenVectors."""
    return spec.load(
        lambda: nn.Sequential(*(_build_token_module(module, Path(spec.folder)) for module in spec.token_modules))
    )


def build_post_modules(spec: EncoderSpec) -> nn.Sequential:
    """All that follows pooling, in order: the model's own modules, then the cut, then the added normalisation."""
    layers = spec.load(lambda: [_build(module, Path(spec.folder)) for module in spec.post_modules])
    if spec.truncate_dim is not None:
        layers.append(Truncate(spec.truncate_dim))
    if spec.normalize:
        layers.append(NormalizeLayer())
    return nn.Sequential(*layers)


def static_vectors(spec: EncoderSpec) -> Tensor:
    """float32 [vocabulary, dim] of a StaticEmbedding."""

    def read() -> Tensor:
        weights = _weights(spec.transformer_folder)
        # Numpy knows no bfloat16.
        known = {name: (each.float() if each.is_floating_point() else each).numpy() for name, each in weights.items()}
        # A copy: what safetensors gives is a mapping of the file.
        return torch.from_numpy(token_vectors(known)).clone()

    return spec.load(read)


def _build_token_module(module: TokenModule, folder: Path) -> nn.Module:
    if isinstance(module, WordWeights):
        return WeightedWords(_word_weights(folder / module.folder))
    if isinstance(module, WeightedLayerPooling):
        return _loaded(WeightedLayers(module), folder / module.folder)
    return EachToken(_build(module, folder))


def _build(module: PostModule, folder: Path) -> nn.Module:
    if isinstance(module, Dense):
        return _loaded(DenseLayer(module), folder / module.folder)
    if isinstance(module, LayerNorm):
        return _loaded(LayerNormLayer(module), folder / module.folder)
    return NormalizeLayer()


def _word_weights(folder: Path) -> Tensor:
    """float32 [vocabulary]: each token's own weight, else its lower-case form's, else the weight for unknown words."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    known, default = config["word_weights"], config.get("unknown_word_weight", 1)
    return torch.tensor([float(known.get(word, known.get(word.lower(), default))) for word in config["vocab"]])


def _loaded(layer: nn.Module, folder: Path) -> nn.Module:
    """`layer` with its weights; InputError where they are damaged, others, or more than tensors."""
    try:
        layer.load_state_dict({name: value.float() for name, value in _weights(folder).items()}, strict=True)
    except pickle.UnpicklingError:
        raise InputError(
            f"the weights in {str(folder)!r} are damaged or hold more than tensors, which could run code: "
            "save the model again with safetensors"
        ) from None
    except Exception as error:
        raise InputError(f"the weights in {str(folder)!r} don't load: {type(error).__name__}: {error}") from None
    return layer


def _weights(folder: Path) -> dict[str, Tensor]:
    if (folder / "model.safetensors").is_file():
        from safetensors.torch import load_file

        weights: dict[str, Tensor] = load_file(folder / "model.safetensors")
    else:
        weights = torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
    return weights
