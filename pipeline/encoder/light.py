"""A few texts are encoded without torch, whose import takes longer than they do.

A model comes in with the vectors of the probe texts that a table keeps. An encoder on numpy goes out, or the vector of a
query, or None where this way can't be taken: it is taken only where it gives the table's own vectors for the probes.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.encoder import probes
from pipeline.encoder.encoder import Encoder
from pipeline.encoder.engines.numpy_bert import NotBert, NumpyEngine, is_plain
from pipeline.encoder.probes import TEXTS
from pipeline.encoder.token_rows import TokenRows
from pipeline.errors import InputError, RunError
from pipeline.model.folder import EncoderSpec

BUDGET_TOKENS = 1024
"""Padded tokens per batch, of which each core has one."""
_QUERY_PROOFS = 14
"""So many of the probe texts are encoded beside a query. Those left out are the long ones, which a query is not."""
_LONGEST_QUERY = 128
"""Tokens."""

Vectors = NDArray[np.float32]
Probes = Sequence[Sequence[float]]


def query_vector(spec: EncoderSpec, query: str, expected: Probes) -> Vectors | None:
    """Return float32[dim], or None where torch has to compute it. The vectors of the probes are `expected` to be those of
    the table's version."""
    if not is_plain(spec) or len(expected) != len(TEXTS):
        return None
    try:
        rows = _token_rows(spec, [*_probe_texts(spec)[:_QUERY_PROOFS], spec.query_prompt + query])
        if rows.truncated.any() or rows.lengths.max() > _LONGEST_QUERY:
            return None
        engine = NumpyEngine(spec, 1, np.unique(np.append(rows.ids, 0)).astype(np.int64))
    except _NOT_SO:
        return None
    vectors = Encoder(engine, BUDGET_TOKENS).encode(rows).vectors
    if not _agree(vectors[:_QUERY_PROOFS], expected[:_QUERY_PROOFS]):
        return None
    vector: Vectors = vectors[_QUERY_PROOFS]
    return vector if np.isfinite(vector).all() else None


def light_encoder(spec: EncoderSpec, threads: int, expected: Probes) -> Encoder | None:
    """Return an encoder, or None where torch has to compute. Where no vectors of the probes are `expected`, there is nothing
    to compare with, and the caller has to keep those that the encoder gives."""
    try:
        encoder = Encoder(NumpyEngine(spec, threads), BUDGET_TOKENS)
        if expected and not _agree(encoder.encode(_token_rows(spec, _probe_texts(spec))).vectors, expected):
            return None
    except _NOT_SO:
        return None
    encoder.settings = "for a quick start with few texts"
    return encoder


_NOT_SO = (NotBert, InputError, KeyError, ValueError, OSError)


def _probe_texts(spec: EncoderSpec) -> list[str]:
    return [spec.prompt + text for text in TEXTS]


def _token_rows(spec: EncoderSpec, texts: Sequence[str]) -> TokenRows:
    """Tokenize without transformers, and cut as most tokenizers do: before the last special token. Where that is wrong,
    the vectors of the probes are others, too."""
    from pipeline.encoder.tokenizer_backend import lower_case, read_backend

    def tokenized() -> list[list[int]]:
        backend = read_backend(spec.transformer_folder / "tokenizer.json")
        if spec.do_lower_case:
            lower_case(backend)
        backend.no_padding()
        backend.no_truncation()
        return [encoding.ids for encoding in backend.encode_batch(list(texts))]

    found = spec.load(tokenized)
    most = spec.max_seq_length or max(map(len, found))
    cut = [ids if len(ids) <= most else ids[: most - 1] + ids[-1:] for ids in found]
    rows = TokenRows.of([np.array(ids, np.int32) for ids in cut])
    return TokenRows(rows.ids, rows.offsets, np.array([len(ids) > most for ids in found]))


def _agree(vectors: Vectors, expected: Probes) -> bool:
    try:
        probes.check(vectors, expected, "float32")
    except RunError:
        return False
    return True
