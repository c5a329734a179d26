"""The weights of a StaticEmbedding in, the vector of each token out, whoever read them and whoever computes with them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


def token_vectors(weights: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    """float32 [vocabulary, dim] of weights that were saved by sentence-transformers or by model2vec.

    model2vec keeps few vectors, which vector is whose token's, and a weight per token.
    """
    if "embedding.weight" in weights:
        return np.asarray(weights["embedding.weight"], np.float32)
    vectors = np.asarray(weights["embeddings"], np.float32)
    if "mapping" in weights:
        vectors = vectors[weights["mapping"].astype(np.int64)]
    return vectors * weights["weights"].astype(np.float32)[:, None] if "weights" in weights else vectors
