"""What stands behind the transformer, on torch: its token vectors in, float32 sentence vectors out.

Shared by the engines that run a transformer. Knows no transformer and no batching.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.encoder.engines.device import ready_device, translated_errors
from pipeline.model.folder import EncoderSpec
from pipeline.model.modules import TokenVectors, build_post_modules, build_token_modules, pool


class Head(nn.Module):
    """Token modules, pooling and the modules after it, in the order of the model."""

    def __init__(self, spec: EncoderSpec, prompt_length: int = 0) -> None:
        """`prompt_length`: leading tokens of every row that pooling leaves out (spec.include_prompt is False)."""
        super().__init__()
        self.token_modules = build_token_modules(spec)
        self.post_modules = build_post_modules(spec)
        self._modes = spec.pooling
        self._prompt_length = prompt_length
        self.eval()

    def forward(self, hidden: Tensor, ids: Tensor, lengths: Tensor | None, all_layers: Sequence[Tensor] = ()) -> Tensor:
        """hidden [n, width, hidden] of any float type, ids int64 [n, width], lengths int [n] or None where every row fills
        the width -> float32 [n, dim]. `all_layers` only where a module reads them."""
        read = TokenVectors(hidden.float(), ids, lengths, all_layers)
        vectors: Tensor = self.post_modules(pool(self.token_modules(read), self._modes, self._prompt_length))
        return vectors.contiguous()


def head_on_cpu(
    spec: EncoderSpec, threads: int, prompt_length: int
) -> Callable[[NDArray[np.float32], NDArray[np.int64], NDArray[np.int32]], NDArray[np.float32]]:
    """Return the head for numpy's arrays: (hidden [n, width, hidden], ids [n, width], lengths [n]) -> vectors [n, dim]. It
    raises OutOfMemory."""
    ready_device("cpu", threads)
    head = Head(spec, prompt_length)

    @torch.inference_mode()
    def vectors(hidden: NDArray[np.float32], ids: NDArray[np.int64], lengths: NDArray[np.int32]) -> NDArray[np.float32]:
        with translated_errors():
            sizes = None if int(lengths.min()) == ids.shape[1] else torch.from_numpy(lengths)
            found: NDArray[np.float32] = head(torch.from_numpy(hidden), torch.from_numpy(ids), sizes).numpy()
            return found

    return vectors
