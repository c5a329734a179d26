"""Token rows of a table's texts in, the table's int8 model out, with how its vectors agree with float32.

Knows no files, no Ray and no tables.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pipeline.encoder.agreement import Agreement, Quantised, digest_of
from pipeline.encoder.encoder import build_encoder, token_types_of
from pipeline.encoder.similarities import spearman
from pipeline.encoder.token_rows import TokenRows
from pipeline.errors import InputError, RunError
from pipeline.machine.folders import temporary_folder
from pipeline.model.folder import EncoderSpec, Int8Graph

MEASURED_ON, JUDGED_ON = 256, 256
"""The activations of so many texts are measured at most, and the result is judged on so many others."""
MOST_TOKENS = 8_192
"""Fewer texts are measured, or judged, where they have more tokens than that together."""
FEWEST = 16
"""So many different texts are needed: with fewer, ranges and ranks say little."""
LEAST_COSINE, LEAST_RANK = 0.99, 0.97
"""Mean cosine with float32, and rank agreement, under which no table is built: all-MiniLM-L6-v2 has 0.997 and 0.99."""


def quantise(spec: EncoderSpec, tokens: TokenRows, threads: int) -> tuple[bytes, Quantised]:
    """(the graph's content, what is known of it). Raises InputError where the model can't be quantised, RunError where there
    are too few texts or the vectors are too far from float32."""
    from pipeline.encoder.engines.graph import Unsupported
    from pipeline.encoder.engines.int8 import graph_file, quantised, unpack
    from pipeline.encoder.engines.kept_graph import float32_graph

    measured, judged = _split(tokens)
    # The graph gives torch's vectors, which was proven when it was made, in a third of the time.
    exact = replace(spec, precision="float32", engine="openvino", int8=None)
    try:
        graph = float32_graph(exact, token_types=token_types_of(exact))
    except Unsupported as reason:
        raise InputError(f"model.precision 'int8' can't run this model ({reason}): leave it out") from None
    content = quantised(graph, measured)
    with temporary_folder() as folder:
        unpack(content, folder)
        int8 = replace(spec, int8=Int8Graph(digest=digest_of(content), file=str(graph_file(folder))))
        found = build_encoder(int8, "cpu", threads).encode(judged).vectors
    agreement = _agreement(build_encoder(exact, "cpu", threads).encode(judged).vectors, found)
    _check(agreement)
    return content, Quantised(digest=digest_of(content), measured_on=len(measured), agreement=agreement)


def _split(tokens: TokenRows) -> tuple[list[NDArray[np.int32]], TokenRows]:
    """Different rows that have tokens, those to measure and those to judge by; the same ones where there are few."""
    rows = {tokens.ids[start:stop].tobytes() for start, stop in zip(tokens.offsets, tokens.offsets[1:], strict=False)}
    distinct = [np.frombuffer(row, tokens.ids.dtype) for row in sorted(rows - {b""})]
    if len(distinct) < FEWEST:
        raise RunError(
            f"model.precision 'int8' is measured on a sample of the source's texts, which gave {len(distinct)} different "
            f"ones; at least {FEWEST} are needed: add rows, check source.where and source.text, or set model.precision to "
            "float32"
        )
    order = np.random.default_rng(0).permutation(len(distinct))
    shuffled = [distinct[place] for place in order]
    half = len(shuffled) // 2
    measured = _within(shuffled[: min(half, MEASURED_ON)])
    judged = _within(shuffled[half : half + JUDGED_ON])
    return measured, TokenRows.of(judged)


def _within(rows: list[NDArray[np.int32]]) -> list[NDArray[np.int32]]:
    """The first of them that have MOST_TOKENS together, and no fewer than half of the FEWEST that a model needs."""
    ends = np.cumsum([len(row) for row in rows])
    return rows[: max(FEWEST // 2, int(np.searchsorted(ends, MOST_TOKENS, side="right")))]


def _agreement(exact: NDArray[np.float32], found: NDArray[np.float32]) -> Agreement:
    good = np.isfinite(exact).all(axis=1) & np.isfinite(found).all(axis=1)
    one, other = (_unit(vectors[good]) for vectors in (exact, found))
    cosines = (one * other).sum(axis=1)
    pairs = np.triu_indices(len(one), 1)
    rank = spearman((one @ one.T)[pairs], (other @ other.T)[pairs])
    return Agreement(
        texts=len(one),
        mean_cosine=float(cosines.mean()) if len(one) else float("nan"),
        least_cosine=float(cosines.min(initial=1)),
        rank=float(rank),
    )


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    wide: NDArray[np.float64] = vectors.astype(np.float64)
    wide /= np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)
    return wide


def _check(found: Agreement) -> None:
    if not (found.mean_cosine >= LEAST_COSINE and found.rank >= LEAST_RANK):
        raise RunError(
            f"in int8 this model loses too much: on {found.texts} texts of the source its vectors have a mean cosine of "
            f"{found.mean_cosine:.4f} with those of float32 (at least {LEAST_COSINE} is needed) and rank pairs alike to "
            f"{found.rank:.4f} (at least {LEAST_RANK}): set model.precision to float32"
        )
