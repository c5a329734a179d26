"""Token vectors in, sentence vectors out: pooling, Dense and Normalize, all in float32.

The formulas are those of sentence-transformers 6.2 (`sentence_transformer/modules/pooling.py` and
`base/modules/{dense,normalize}.py`) for input padded on the right. Knows no tokenizer and no transformer.
"""

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812 - the name that torch's own documentation uses
from torch import Tensor, nn

from pipeline.errors import InputError
from pipeline.model.folder import EncoderSpec
from pipeline.model.saved import Dense, PostModule

_EPS = 1e-9


def pool(tokens: Tensor, lengths: Tensor | None, modes: tuple[str, ...], prompt_length: int = 0) -> Tensor:
    """float32 [n, width, hidden] -> float32 [n, len(modes) * hidden], the modes concatenated in their order.

    `lengths` int [n]: tokens beyond a row's length don't count; None means that every row fills the width. The first
    `prompt_length` tokens of a row don't count either.
    """
    mask = pooling_mask(tokens.shape[1], lengths, prompt_length, tokens.device)
    return torch.cat([_POOLING[mode](tokens, mask) for mode in modes], dim=-1)


def pooling_mask(width: int, lengths: Tensor | None, prompt_length: int, device: torch.device) -> Tensor | None:
    """bool [n or 1, width], True where a token counts; None where all do."""
    if lengths is None and not prompt_length:
        return None
    position = torch.arange(width, device=device)[None, :]
    mask = position >= prompt_length
    return mask if lengths is None else mask & (position < lengths[:, None])


def cls_pooling(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """The first token that counts."""
    return tokens[:, 0] if mask is None else _take(tokens, mask.int().argmax(dim=1))


def max_pooling(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """The largest value of each number over the tokens that count; -inf where none does."""
    return tokens.amax(dim=1) if mask is None else tokens.masked_fill(~mask[:, :, None], -torch.inf).amax(dim=1)


def mean_pooling(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """sum(tokens) / max(count, 1e-9)."""
    return _sum(tokens, mask) / _count(tokens, mask)


def mean_sqrt_len_pooling(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """sum(tokens) / sqrt(max(count, 1e-9))."""
    return _sum(tokens, mask) / _count(tokens, mask).sqrt()


def weightedmean_pooling(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """Mean weighted by position, 1 for the row's first token; a prompt that doesn't count keeps its positions."""
    weights = torch.arange(1, tokens.shape[1] + 1, device=tokens.device, dtype=tokens.dtype)[None, :]
    if mask is not None:
        weights = weights * mask
    return (tokens * weights[:, :, None]).sum(dim=1) / weights.sum(dim=1, keepdim=True).clamp(min=_EPS)


def lasttoken_pooling(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """The last token that counts; zeros where none does."""
    if mask is None:
        return tokens[:, -1]
    last = mask.shape[1] - 1 - mask.flip(1).int().argmax(dim=1)
    return _take(tokens, last) * mask.any(dim=1, keepdim=True)


_POOLING: Mapping[str, Callable[[Tensor, Tensor | None], Tensor]] = {
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
    """activation(linear(x)), weights from the module's folder."""

    def __init__(self, dense: Dense, folder: Path) -> None:
        super().__init__()
        self.linear = nn.Linear(dense.in_features, dense.out_features, bias=dense.bias)
        self.activation: nn.Module = getattr(nn, dense.activation)()
        self.load_state_dict(_float32_weights(folder / dense.folder), strict=True)

    def forward(self, vectors: Tensor) -> Tensor:
        result: Tensor = self.activation(self.linear(vectors))
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


def build_post_modules(spec: EncoderSpec) -> nn.Sequential:
    """All that follows pooling, in order: the model's own modules, then the cut, then the added normalisation."""
    layers = [_build(module, Path(spec.folder)) for module in spec.post_modules]
    if spec.truncate_dim is not None:
        layers.append(Truncate(spec.truncate_dim))
    if spec.normalize:
        layers.append(NormalizeLayer())
    return nn.Sequential(*layers)


def _build(module: PostModule, folder: Path) -> nn.Module:
    if not isinstance(module, Dense):
        return NormalizeLayer()
    try:
        return DenseLayer(module, folder)
    except pickle.UnpicklingError:
        raise InputError(
            f"the weights in {str(folder / module.folder)!r} are damaged or hold more than tensors, which could run code: "
            "save the model again with safetensors"
        ) from None
    except Exception as error:
        where = str(folder / module.folder)
        raise InputError(f"the weights in {where!r} don't load: {type(error).__name__}: {error}") from None


def _float32_weights(folder: Path) -> dict[str, Tensor]:
    if (folder / "model.safetensors").is_file():
        from safetensors.torch import load_file

        weights: dict[str, Tensor] = load_file(folder / "model.safetensors")
    else:
        weights = torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
    return {name: value.float() for name, value in weights.items()}
