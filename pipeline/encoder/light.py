"""The vector of one query without torch, whose import takes longer than a search of a hundred thousand rows.

A model, a query and the vectors of the probe texts that the table keeps come in. The query's vector goes out, or None
where this way can't be taken. It is taken only where it gives the table's own vectors for the probes, and where the query
is short enough to be read whole.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.encoder.engines.numpy_bert import KINDS, NotBert, NumpyBert
from pipeline.encoder.probes import MIN_COSINE, TEXTS
from pipeline.errors import InputError
from pipeline.model.folder import EncoderSpec
from pipeline.model.saved_modules import Normalize

_PROOFS = 14
"""So many of the probe texts are encoded again. Those left out are the long ones, which a query is not."""
_LONGEST = 128
"""Tokens of a query, at most."""

Vectors = NDArray[np.float32]


def query_vector(spec: EncoderSpec, query: str, probes: Sequence[Sequence[float]]) -> Vectors | None:
    """Return float32[dim], or None where torch has to compute it. `probes` are those of the table's version."""
    if not _is_plain(spec) or len(probes) != len(TEXTS):
        return None
    texts = [*(spec.prompt + text for text in TEXTS[:_PROOFS]), spec.query_prompt + query]
    try:
        vectors = spec.load(lambda: _encoded(spec, texts))
    except (NotBert, InputError, KeyError, ValueError, OSError):
        return None
    if vectors is None or not _agree(vectors[:_PROOFS], np.asarray(probes[:_PROOFS], np.float64)):
        return None
    vector: Vectors = vectors[_PROOFS]
    return vector if np.isfinite(vector).all() and vector.any() else None


def _is_plain(spec: EncoderSpec) -> bool:
    return (
        spec.model_type in KINDS
        and spec.precision == "float32"
        and spec.include_prompt
        and not spec.token_modules
        and spec.pooling in (("mean",), ("cls",))
        and all(isinstance(module, Normalize) for module in spec.post_modules)
        and (spec.transformer_folder / "tokenizer.json").is_file()
        and (spec.transformer_folder / "model.safetensors").is_file()
    )


def _encoded(spec: EncoderSpec, texts: Sequence[str]) -> Vectors | None:
    """Return float32[n, dim], or None where the last text, the query, is not read whole."""
    from pipeline.encoder.tokenizer_backend import lower_case, read_backend

    backend = read_backend(spec.transformer_folder / "tokenizer.json")
    if spec.do_lower_case:
        lower_case(backend)
    backend.no_padding()
    backend.no_truncation()
    found = [encoding.ids for encoding in backend.encode_batch(list(texts))]
    room = min(_LONGEST, spec.max_seq_length or _LONGEST)
    if len(found[-1]) > room:
        return None
    if any(len(ids) > room for ids in found):
        raise NotBert("a probe is cut")
    lengths = np.array([len(ids) for ids in found])
    ids = np.full((len(found), int(lengths.max())), found[0][0], np.int64)
    for row, numbers in enumerate(found):
        ids[row, : len(numbers)] = numbers
    mask = np.arange(ids.shape[1]) < lengths[:, None]
    hidden = NumpyBert(spec, np.unique(ids))(ids, mask)
    return _after(spec, hidden, mask)


def _after(spec: EncoderSpec, hidden: Vectors, mask: NDArray[np.bool_]) -> Vectors:
    """Pool, normalise and cut float32[n, width, hidden] as the model's modules do."""
    if spec.pooling == ("cls",):
        vectors = hidden[:, 0]
    else:
        weights = mask[:, :, None].astype(np.float32)
        vectors = (hidden * weights).sum(axis=1) / weights.sum(axis=1)
    if spec.post_modules:
        vectors = _unit(vectors)
    if spec.truncate_dim is not None:
        vectors = vectors[:, : spec.truncate_dim]
    return np.asarray(_unit(vectors) if spec.normalize else vectors, np.float32)


def _unit(vectors: Vectors) -> Vectors:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12), np.float32)


def _agree(vectors: Vectors, wanted: NDArray[np.float64]) -> bool:
    if wanted.shape != vectors.shape:
        return False
    norms, lengths = np.linalg.norm(vectors, axis=1), np.linalg.norm(wanted, axis=1)
    cosines = (vectors * wanted).sum(axis=1) / np.maximum(norms * lengths, 1e-12)
    least = MIN_COSINE["float32"]
    return bool((cosines >= least).all() and np.allclose(norms, lengths, rtol=1 - least))
