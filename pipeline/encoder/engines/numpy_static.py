"""A StaticEmbedding on numpy: padded token ids in, the mean of the tokens' fixed vectors out, in float32.

Loading torch takes longer than most tables of token vectors take for a hundred thousand titles. What numpy can't read, or
does not know, is refused (NotPlain), and static.py has it. It knows no texts, no batching and no retries.
"""

import numpy as np
from numpy.typing import NDArray

from pipeline.encoder.engines.base import OutOfMemory
from pipeline.encoder.engines.numpy_head import after_pooling, ends_in_norms
from pipeline.model.folder import EncoderSpec
from pipeline.model.token_table import token_vectors

_ROWS = 128
"""So many rows are added up at a time: their sums and the vectors that come to them stay in a core's cache."""

Numbers = NDArray[np.float32]


class NotPlain(Exception):
    """The model is not one that numpy reads and computes; torch is needed."""


class NumpyStaticEngine:
    """Implements engines.base.Engine. A row's vector does not depend on the batch it is in, to the last bit."""

    name = "static"

    def __init__(self, spec: EncoderSpec) -> None:
        """Load the table. Raises NotPlain."""
        if not ends_in_norms(spec):
            raise NotPlain("modules stand behind the means")
        self.dim = spec.dim
        self._spec = spec
        try:
            self._vectors = spec.load(lambda: _vectors(spec))
        except Exception as error:  # Torch reads more, and says what is wrong with a damaged file.
            raise NotPlain(f"{type(error).__name__}: {error}") from None

    def encode(self, ids: NDArray[np.int32], lengths: NDArray[np.int32]) -> Numbers:
        """ids int32 [n, width], lengths int32 [n] -> float32 [n, dim]."""
        try:
            return after_pooling(self._spec, self._means(ids, lengths))
        except MemoryError as error:
            raise OutOfMemory(str(error)) from None

    def _means(self, ids: NDArray[np.int32], lengths: NDArray[np.int32]) -> Numbers:
        nothing = len(self._vectors) - 1
        within = np.arange(ids.shape[1]) < lengths[:, None]
        known = np.where(within, ids, 0)
        if known.min() < 0 or known.max() >= nothing:
            raise IndexError(f"token {known.min() if known.min() < 0 else known.max()} is not in a table of {nothing}")
        tokens = np.where(within, ids, nothing)
        sums = np.empty((len(ids), self._vectors.shape[1]), np.float32)
        coming = np.empty((_ROWS, sums.shape[1]), np.float32)
        for start in range(0, len(ids), _ROWS):
            some = sums[start : start + _ROWS]
            columns = np.ascontiguousarray(tokens[start : start + _ROWS].T)
            one = coming[: len(some)]
            np.take(self._vectors, columns[0], axis=0, out=some, mode="clip")
            for column in columns[1:]:
                np.take(self._vectors, column, axis=0, out=one, mode="clip")
                some += one
        sums /= lengths[:, None].astype(np.float32)
        return sums


def _vectors(spec: EncoderSpec) -> Numbers:
    """float32 [vocabulary + 1, dim]: a vector of zeros, for what lies beyond a row, is the last."""
    from safetensors.numpy import load_file

    found = token_vectors(load_file(spec.transformer_folder / "model.safetensors"))
    return np.concatenate([found, np.zeros((1, found.shape[1]), np.float32)])
