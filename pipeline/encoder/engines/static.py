"""A StaticEmbedding on torch: padded token ids in, the mean of the tokens' fixed vectors out, in float32.

It is for GPUs, and for models that numpy_static.py does not know. The vectors are used as float32 whatever type they are
stored in. Knows no texts, no batching and no retries.
"""

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name that torch's own documentation uses
from numpy.typing import NDArray

from pipeline.encoder.engines.device import ready_device, translated_errors
from pipeline.errors import InputError, PipelineError
from pipeline.model.folder import EncoderSpec
from pipeline.model.modules import build_post_modules, static_vectors


class StaticEngine:
    """Implements engines.base.Engine. Sets torch's thread count for the whole process."""

    name = "static"

    def __init__(self, spec: EncoderSpec, device: str, threads: int) -> None:
        self.dim = spec.dim
        self._device = ready_device(device, threads)
        self._vectors = _load_vectors(spec).to(self._device)
        self._post = build_post_modules(spec).eval().to(self._device)

    @torch.inference_mode()
    def encode(self, ids: NDArray[np.int32], lengths: NDArray[np.int32]) -> NDArray[np.float32]:
        """ids int32 [n, width], lengths int32 [n] -> float32 [n, dim]."""
        with translated_errors():
            tokens = torch.from_numpy(ids[np.arange(ids.shape[1]) < lengths[:, None]]).to(self._device)
            first = torch.from_numpy(np.cumsum(lengths) - lengths).to(self._device, torch.int32)
            means = F.embedding_bag(tokens, self._vectors, first, mode="mean")
            result: NDArray[np.float32] = self._post(means).contiguous().cpu().numpy()
            return result


def _load_vectors(spec: EncoderSpec) -> torch.Tensor:
    """float32 [vocabulary, dim]; InputError where they are damaged or more than tensors."""
    try:
        return static_vectors(spec)
    except PipelineError:
        raise
    except Exception as error:
        raise InputError(
            f"the weights in {str(spec.transformer_folder)!r} don't load: {type(error).__name__}: {error}"
        ) from None
