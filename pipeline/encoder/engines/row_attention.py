"""Attention within rows that stand one behind the other in one sequence, as a function that transformers calls.

Query, key, value and the bounds of the rows in, what each token reads of its own row out. On a GPU it is a kernel that
knows bounds (torch's own, or flash_attn's where torch is older); elsewhere a mask, which says the same and is the
reference. What would change the scores in a way that the kernels don't know is refused, never left out.
"""

import importlib
import importlib.util
import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name that torch's own documentation uses
import transformers
from torch import Tensor, nn

NAME = "rows_in_one_sequence"
"""This is the name of the attention implementation. transformers takes a name with "flash", "flex" or "sdpa" in it for
one of its own."""

_CHANGE_SCORES = ("position_bias", "s_aux", "softcap", "cache", "past_key_values")

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor, int, float, tuple[int, int]], Tensor]
"""(query, key, value [tokens, heads, width], bounds, longest row, scale, (tokens seen on the left, on the right)) ->
[tokens, heads, width]. -1 tokens are all of them."""


def register() -> None:
    """Make NAME known to transformers; it gives such an implementation no mask of its own."""
    transformers.AttentionInterface.register(NAME, row_attention)


def row_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **given: Any,
) -> tuple[Tensor, None]:
    """query [1, heads, tokens, width], key and value likewise, maybe with fewer heads -> [1, tokens, heads, width].

    `given` are the further arguments by which transformers calls every attention: bounds of the rows, scale and window.
    """
    bounds, longest = given.get("cu_seq_lens_q"), given.get("max_length_q")
    if bounds is None or longest is None:
        raise NotImplementedError("the model does not hand on where the rows begin")
    if attention_mask is not None:
        raise NotImplementedError("the model has a mask of its own")
    refused = [name for name in _CHANGE_SCORES if given.get(name) is not None]
    if refused or query.shape[-1] != value.shape[-1]:
        raise NotImplementedError(f"the model's attention has {', '.join(refused) or 'values of another width'}")
    copies = query.shape[1] // key.shape[1]
    query, key, value = (tensor.transpose(1, 2).squeeze(0) for tensor in (query, key, value))
    if copies > 1:
        key, value = (tensor.repeat_interleave(copies, dim=1) for tensor in (key, value))
    # transformers reads both so: a window counts the token itself, and a module that says nothing is causal.
    window, causal, scale = (given.get(name) for name in ("sliding_window", "is_causal", "scaling"))
    reach = -1 if window is None else window - 1
    causal = getattr(module, "is_causal", True) if causal is None else causal
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    attend = _KERNEL if query.is_cuda else masked
    if attend is None:
        raise NotImplementedError("neither this torch has varlen attention with windows, nor is flash_attn installed")
    seen = attend(query, key, value, bounds, longest, scale, (reach, 0 if causal else reach))
    return seen.unsqueeze(0), None


def masked(
    query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, longest: int, scale: float, window: tuple[int, int]
) -> Tensor:
    """A Kernel by torch's general attention, with a mask of all tokens by all tokens."""
    position = torch.arange(len(query), device=query.device)
    row = torch.bucketize(position, bounds[1:], right=True)
    distance = position[None, :] - position[:, None]
    seen = row[None, :] == row[:, None]
    left, right = window
    if left >= 0:
        seen &= distance >= -left
    if right >= 0:
        seen &= distance <= right
    query, key, value = (tensor.transpose(0, 1).unsqueeze(0) for tensor in (query, key, value))
    result = F.scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scale)
    return result.squeeze(0).transpose(0, 1)


def _torch_kernel() -> Kernel | None:
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        return None
    varlen_attn = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    if "window_size" not in inspect.signature(varlen_attn).parameters:  # the first releases of it
        return None

    def kernel(
        query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, longest: int, scale: float, window: tuple[int, int]
    ) -> Tensor:
        result: Tensor = varlen_attn(
            query, key, value, bounds, bounds, longest, longest, scale=scale, window_size=window
        )
        return result

    return kernel


def _flash_kernel() -> Kernel | None:
    if importlib.util.find_spec("flash_attn") is None:
        return None
    flash_attn_varlen_func = importlib.import_module("flash_attn").flash_attn_varlen_func

    def kernel(
        query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, longest: int, scale: float, window: tuple[int, int]
    ) -> Tensor:
        result: Tensor = flash_attn_varlen_func(
            query, key, value, bounds, bounds, longest, longest, softmax_scale=scale, window_size=window
        )
        return result

    return kernel


_KERNEL = (_torch_kernel() or _flash_kernel()) if torch.cuda.is_available() else None
