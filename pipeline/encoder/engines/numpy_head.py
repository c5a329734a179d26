"""What stands behind most transformers, on numpy: token vectors in, float32 sentence vectors out.

It knows the mean and the first token, and lengths of one, which need no torch: importing torch takes seconds and 250 MB.
Models with other modules have the head in head.py.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.encoder.engines.base import OutOfMemory
from pipeline.model.folder import EncoderSpec
from pipeline.model.saved_modules import Normalize

Numbers = NDArray[np.float32]


def is_plain_head(spec: EncoderSpec) -> bool:
    """Whether NumpyHead gives the model's vectors."""
    return (
        spec.include_prompt and not spec.token_modules and spec.pooling in (("mean",), ("cls",)) and ends_in_norms(spec)
    )


def ends_in_norms(spec: EncoderSpec) -> bool:
    """Whether `after_pooling` knows all modules that follow pooling."""
    return all(isinstance(module, Normalize) for module in spec.post_modules)


class NumpyHead:
    """Pool, normalise and cut, in the order of the model. A vector does not depend on the padding of its row."""

    def __init__(self, spec: EncoderSpec) -> None:
        self._spec = spec
        self._takes_first = spec.pooling == ("cls",)

    def __call__(self, hidden: Numbers, ids: NDArray[Any], lengths: NDArray[np.int32]) -> Numbers:
        """hidden [n, width, hidden], ids [n, width], lengths int32 [n] -> float32 [n, dim]. Raises OutOfMemory."""
        try:
            # A copy of the first tokens: `hidden` may be the graph's own memory.
            pooled = hidden[:, 0].copy() if self._takes_first else _mean(hidden, lengths)
            return after_pooling(self._spec, pooled)
        except MemoryError as error:
            raise OutOfMemory(str(error)) from None


def _mean(hidden: Numbers, lengths: NDArray[np.int32]) -> Numbers:
    width = hidden.shape[1]
    if int(lengths.min()) < width:
        hidden = hidden * (np.arange(width) < lengths[:, None])[:, :, None].astype(np.float32)
    return np.asarray(hidden.sum(axis=1) / lengths[:, None].astype(np.float32), np.float32)


def after_pooling(spec: EncoderSpec, vectors: Numbers) -> Numbers:
    """Normalise and cut float32 [n, any width] as the model's modules and the user's settings say -> [n, dim]."""
    if spec.post_modules:
        vectors = _unit(vectors)
    if spec.truncate_dim is not None:
        vectors = vectors[:, : spec.truncate_dim]
    return np.ascontiguousarray(_unit(vectors) if spec.normalize else vectors)


def _unit(vectors: Numbers) -> Numbers:
    """Divide each vector by its length, as torch.nn.functional.normalize does."""
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    return np.asarray(vectors / np.maximum(lengths, np.float32(1e-12))[:, None], np.float32)
