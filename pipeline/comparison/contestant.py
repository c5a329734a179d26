"""A model takes part in a comparison: it is loaded once, encodes documents and queries, and is timed beside the others."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.config import RunSpec
from pipeline.encoder.embedder import Embedder, embedder
from pipeline.errors import InputError
from pipeline.model.folder import EncoderSpec, encoder_spec
from pipeline.table.quantize import PACKED, SCALAR, dequantize, quantize

ROUNDS = 4
"""The sample is encoded in so many pieces, and at each piece the models take turns."""
WARM_UP = 8
"""So many texts are encoded before the clock runs."""
BYTES = {"float32": 4.0, "float16": 2.0, "int8": 1.0, "uint8": 1.0, "binary": 0.125, "ubinary": 0.125}


@dataclass(frozen=True, eq=False)
class Contestant:
    name: str
    encoder: EncoderSpec
    dtype: str
    """The table would store its vectors in it."""
    documents: Embedder
    queries: Embedder

    @property
    def bytes_per_row(self) -> float:
        """The bytes of a vector as the table would store it, without compression."""
        return -(-self.encoder.dim // 8) if self.dtype in PACKED else self.encoder.dim * BYTES[self.dtype]

    @property
    def model_bytes(self) -> int:
        """The bytes of the weights on disk."""
        files = Path(self.encoder.folder).rglob("*")
        return sum(file.stat().st_size for file in files if file.suffix in (".safetensors", ".bin"))

    def encode_documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return float32[n, dim], as the table's codes stand for them. A text without tokens gets zeros."""
        vectors = _finite(self.documents.encode(texts).vectors)
        if self.dtype == "float32" or not len(vectors):
            return vectors
        ranges = np.stack([vectors.min(axis=0), vectors.max(axis=0)]) if self.dtype in SCALAR else None
        return dequantize(quantize(vectors, self.dtype, ranges), self.dtype, self.encoder.dim, ranges)

    def encode_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return _finite(self.queries.encode(texts).vectors)


@dataclass(frozen=True, kw_only=True)
class Pace:
    """It is what a model needed for the sample."""

    seconds: float
    tokens: int
    truncated: int
    failed: int


def checked(name: str, spec: RunSpec) -> EncoderSpec:
    """Return the encoder of a run. Raises InputError where it can't be had, or where only a table can make it."""
    if spec.model.precision == "int8":
        raise InputError(
            f"{name}: model.precision int8 is quantised for a table, and there is none here: compare the model in float32, "
            "and let `python -m jobs.verify` say how near int8 comes to it"
        )
    return encoder_spec(spec.model)


def contestant(name: str, spec: RunSpec) -> Contestant:
    """Load the model of a run. Raises what `checked` raises."""
    encoder = checked(name, spec)
    documents = embedder(encoder)
    # It shares the encoder that was loaded just now.
    return Contestant(name, encoder, spec.table.dtype, documents, embedder(encoder.for_queries()))


def timed(contestants: Sequence[Contestant], texts: Sequence[str]) -> tuple[list[Pace], list[NDArray[np.float32]]]:
    """Encode the texts with each model, in turns, and return their paces and vectors. Texts without tokens get zeros."""
    for one in contestants:
        one.documents.encode(texts[:WARM_UP])
    seconds, vectors = np.zeros(len(contestants)), [[] for _ in contestants]  # type: ignore[var-annotated]
    counts = np.zeros((len(contestants), 3), np.int64)
    for number, some in enumerate(np.array_split(np.arange(len(texts)), ROUNDS)):
        piece = [texts[place] for place in some.tolist()]
        if not piece:
            continue
        order = list(range(len(contestants)))
        for place in order if number % 2 == 0 else order[::-1]:
            started = time.perf_counter()
            tokenized = contestants[place].documents.tokenizer.tokenize(piece)
            encoded = contestants[place].documents.encoder.encode(tokenized)
            seconds[place] += time.perf_counter() - started
            vectors[place].append(_finite(encoded.vectors))
            counts[place] += (int(tokenized.lengths.sum()), int(tokenized.truncated.sum()), len(encoded.failed))
    paces = [
        Pace(seconds=float(spent), tokens=int(tokens), truncated=int(cut), failed=int(failed))
        for spent, (tokens, cut, failed) in zip(seconds.tolist(), counts.tolist(), strict=True)
    ]
    return paces, [np.concatenate(found) for found in vectors]


def _finite(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """A text without tokens has no vector. As zeros it is like nothing else, and last in every ranking."""
    return np.where(np.isfinite(vectors), vectors, np.float32(0))
