"""Sixteen texts that every run encodes first: their vectors must be those that the table was built with.

They catch what a fingerprint can't see: another driver, library or device that moves the model's vectors.
"""

import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import RunError

TEXTS = (
    "",
    "a",
    "The quick brown fox jumps over the lazy dog.",
    "How do I cancel my subscription?",
    "Photosynthesis converts light energy into chemical energy.",
    "In 1969, two astronauts walked on the Moon; a third stayed in orbit.",
    "def add(a: int, b: int) -> int:\n    return a + b",
    "https://example.org/path?query=1#fragment",
    "E = mc², ∑ᵢ xᵢ ≤ 1, λ → ∞",
    "Der Vogel fliegt über den Zürichsee.",
    "안녕하세요, 만나서 반갑습니다.",
    "床前明月光，疑是地上霜。",
    "Привет, мир! Γειά σου Κόσμε.",
    "🙂🚀 emoji and\ttabs\nand newlines",
    "word " * 40,
    "Long documents are cut at the model's limit. " * 60,
)

MIN_COSINE = {"float32": 0.99999, "float16": 0.9999, "bfloat16": 0.999, "int8": 0.995}
"""How far two machines may differ for the same model, per compute precision."""


def to_json(vectors: NDArray[np.float32]) -> bytes:
    return json.dumps([[float(f"{value:.9g}") for value in row] for row in vectors.tolist()]).encode()


def from_json(data: bytes) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in json.loads(data))


def check(vectors: NDArray[np.float32], expected: Sequence[Sequence[float]], precision: str) -> None:
    """Raises RunError when a probe's vector is not the expected one within the tolerance of the precision."""
    wanted = np.asarray(expected, np.float64)
    if wanted.shape != vectors.shape:
        raise RunError(f"the model gives vectors of shape {vectors.shape}, the table was built with {wanted.shape}")
    norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(wanted, axis=1)
    cosine = (vectors * wanted).sum(axis=1) / np.maximum(norms, 1e-12)
    lengths = np.linalg.norm(vectors, axis=1) / np.maximum(np.linalg.norm(wanted, axis=1), 1e-12)
    worst, tolerance = float(cosine.min()), MIN_COSINE[precision]
    if not worst >= tolerance or not np.allclose(lengths, 1, atol=1 - tolerance):
        raise RunError(
            f"the encoder no longer gives the vectors that this table was built with: cosine {worst:.6f} on a built-in "
            f"text, at least {tolerance} is expected; check library versions and device, or build a new table"
        )
