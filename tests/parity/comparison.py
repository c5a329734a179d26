"""One model folder, some texts, the same settings: our vectors beside those of sentence-transformers, row by row."""

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import ModelSpec
from pipeline.encoder.encoder import Embeddings, Encoder, build_encoder
from pipeline.encoder.token_rows import TokenRows
from pipeline.encoder.tokenizer import Tokenizer
from pipeline.model.folder import EncoderSpec, encoder_spec
from tests.tiny import load_oracle

TOLERANCE = 1e-5
"""Of |ours - theirs| over the length of their vector; for unit vectors the greatest difference of a number."""

Vectors = NDArray[np.float32]
Composition = Callable[[Encoder, TokenRows], Embeddings]
"""A way to put rows into batches."""


def all_at_once(encoder: Encoder, tokens: TokenRows) -> Embeddings:
    return Encoder(encoder.engine, budget_tokens=10**6, overhead_tokens=10**6).encode(tokens)


def one_by_one(encoder: Encoder, tokens: TokenRows) -> Embeddings:
    return Encoder(encoder.engine, budget_tokens=1).encode(tokens)


def odd_budget(encoder: Encoder, tokens: TokenRows) -> Embeddings:
    return Encoder(encoder.engine, budget_tokens=97, overhead_tokens=5).encode(tokens)


def shuffled(encoder: Encoder, tokens: TokenRows) -> Embeddings:
    """In another order, and put back."""
    order = np.array(random.Random(0).sample(range(len(tokens)), len(tokens)), np.int64)
    moved = encoder.encode(TokenRows.concatenated([tokens.slice(row, row + 1) for row in order]))
    vectors = np.empty_like(moved.vectors)
    vectors[order] = moved.vectors
    failed = {int(order[row]): reason for row, reason in moved.failed.items()}
    return Embeddings(
        vectors=vectors,
        failed=dict(sorted(failed.items())),
        rows_encoded=moved.rows_encoded,
        tokens=moved.tokens,
        padded_tokens=moved.padded_tokens,
        engine_seconds=moved.engine_seconds,
    )


COMPOSITIONS: tuple[Composition, ...] = (all_at_once, one_by_one, odd_budget, shuffled)


def largest_difference(folder: Any, texts: Sequence[str], **overrides: Any) -> float:
    """Load `folder` on both sides, encode `texts` in every composition, and give the largest difference.

    `overrides` are keys of the model section. AssertionError where ids, prompt's length, failed rows or their order differ.
    """
    spec = encoder_spec(ModelSpec(path=str(folder), **overrides))
    oracle = load_oracle(folder)
    if "max_seq_length" in overrides:
        oracle.max_seq_length = overrides["max_seq_length"]
    tokenizer, encoder = Tokenizer(spec, 1), build_encoder(spec, "cpu", 1)
    tokens = tokenizer.tokenize(texts)
    assert_same_tokens(tokens, tokenizer, oracle, texts, spec)
    alone = rows_of_prompt_only(tokens, tokenizer.prompt_length, spec)
    expected = oracle_vectors(oracle, texts, spec, overrides, alone)
    return max(difference(compose(encoder, tokens), tokens, expected) for compose in COMPOSITIONS)


def oracle_vectors(
    oracle: Any, texts: Sequence[str], spec: EncoderSpec, overrides: Mapping[str, Any], alone: Sequence[int] = ()
) -> Vectors:
    """What `SentenceTransformer.encode` gives under the same settings; for the rows `alone`, each in a batch of its own."""
    given = {name: overrides[name] for name in ("prompt", "prompt_name", "truncate_dim") if name in overrides}
    given |= {"normalize_embeddings": bool(overrides.get("normalize")), "show_progress_bar": False}
    vectors: Vectors = oracle.encode(list(texts), **given)
    for row in alone:
        vectors[row] = oracle.encode([texts[row]], **given)[0]
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(texts), spec.dim)
    return vectors


def rows_of_prompt_only(tokens: TokenRows, prompt_length: int, spec: EncoderSpec) -> list[int]:
    """Rows of which include_prompt false leaves no token: padded on the left, the oracle takes a pad for their first."""
    if spec.include_prompt or not spec.prompt:
        return []
    return [int(row) for row in np.flatnonzero(tokens.lengths <= prompt_length)]


def assert_same_tokens(
    tokens: TokenRows, tokenizer: Tokenizer, oracle: Any, texts: Sequence[str], spec: EncoderSpec
) -> None:
    """Ids, lengths and the prompt's length are exactly the oracle's."""
    assert tokens.failed == {}
    for row, expected in enumerate(oracle_ids(oracle, texts, spec.prompt)):
        ids = tokens.ids[tokens.offsets[row] : tokens.offsets[row + 1]].tolist()
        assert ids == expected, (
            f"{texts[row][:60]!r}: {len(ids)} tokens {ids[:20]}, not {len(expected)} {expected[:20]}"
        )
    if spec.prompt and spec.model_type:
        features = oracle.preprocess(["a"], prompt=spec.prompt)
        if "prompt_length" in features:
            assert tokenizer.prompt_length == features["prompt_length"]


def oracle_ids(oracle: Any, texts: Sequence[str], prompt: str) -> list[list[int]]:
    features = oracle.preprocess(list(texts), prompt=prompt)
    if "offsets" in features:  # StaticEmbedding has no rows
        bounds = [*features["offsets"].tolist(), len(features["input_ids"])]
        return [features["input_ids"][a:b].tolist() for a, b in itertools.pairwise(bounds)]
    rows = zip(features["input_ids"], features["attention_mask"].bool(), strict=True)
    return [ids[mask].tolist() for ids, mask in rows]


def difference(encoded: Embeddings, tokens: TokenRows, expected: Vectors) -> float:
    """The largest of a row; rows without a vector of use must be the same on both sides, and have none in ours."""
    useless = ~np.isfinite(expected).all(axis=1) | ~expected.any(axis=1) | (tokens.lengths == 0)
    assert list(encoded.failed) == np.flatnonzero(useless).tolist(), encoded.failed
    assert np.isnan(encoded.vectors[useless]).all()
    ours, theirs = encoded.vectors[~useless], expected[~useless]
    if not len(ours):
        return 0.0
    lengths = np.linalg.norm(theirs.astype(np.float64), axis=1, keepdims=True)
    worst = float((np.abs(ours - theirs) / lengths).max())
    assert worst <= TOLERANCE, f"row {(np.abs(ours - theirs) / lengths).max(axis=1).argmax()} differs by {worst:.1e}"
    return worst


def lowest_cosine(ours: Vectors, theirs: Vectors) -> float:
    one, other = (vectors.astype(np.float64) for vectors in (ours, theirs))
    products = (one * other).sum(axis=1)
    return float((products / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)).min())
