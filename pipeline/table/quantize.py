"""Vectors as the numbers that stand in the table, and back: float32, float16, int8, uint8, binary, ubinary.

Comes in: float32 vectors, and for int8 and uint8 the range of each dimension. Goes out: codes, one row per vector. How
ranges are measured, and where codes are stored, is not known here. The formulas are those of sentence-transformers 6.2,
util/quantization.py.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

SCALAR = ("int8", "uint8")
"""A byte per dimension, a step of 1/255 of the dimension's range: these dtypes need ranges."""
PACKED = ("binary", "ubinary")
"""A bit per dimension, its sign; the first dimension is the highest bit of the first byte."""

Codes = NDArray[Any]


def quantize(vectors: NDArray[np.float32], dtype: str, ranges: NDArray[np.float32] | None = None) -> Codes:
    """The codes of float32[n, dim]: [n, dim]; for binary int8[n, ceil(dim / 8)], for ubinary uint8 of that shape.

    `ranges` float32[2, dim] holds each dimension's minimum and maximum; what lies outside is clipped. Equal to
    `quantize_embeddings` of sentence-transformers 6.2, which has no float16.
    """
    if dtype == "float32":
        return vectors.astype(np.float32)
    if dtype == "float16":
        with np.errstate(over="ignore"):  # what overflows is infinite, for the caller to find
            return vectors.astype(np.float16)
    if dtype in PACKED:
        bits = np.packbits(vectors > 0, axis=-1)
        return bits if dtype == "ubinary" else (bits ^ 0x80).view(np.int8)
    starts, widths = _starts_and_steps(dtype, ranges)
    # NaN has no code: it is for the caller to find. Far from a hair-thin range the quotient overflows, and is clipped.
    with np.errstate(invalid="ignore", over="ignore"):
        levels = np.clip(np.floor((vectors - starts) / widths), 0, 255)
        codes: Codes = levels.astype(np.uint8) if dtype == "uint8" else (levels - 128).astype(np.int8)
    return codes


def dequantize(codes: Codes, dtype: str, dim: int, ranges: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """float32[n, dim] that the codes stand for. For int8 and uint8 that is the lower end of the step, as in
    `_dequantize_embeddings` of sentence-transformers 6.2; for binary and ubinary it is +1 or -1."""
    if dtype in PACKED:
        packed = codes.view(np.uint8) ^ np.uint8(0x80 if dtype == "binary" else 0)
        return np.where(np.unpackbits(packed, axis=-1, count=dim), np.float32(1), np.float32(-1))
    if dtype not in SCALAR:
        return codes.astype(np.float32)
    starts, widths = _starts_and_steps(dtype, ranges)
    levels = codes.astype(np.float64) + (128 if dtype == "int8" else 0)
    return (levels * widths + starts).astype(np.float32)


def outside(vectors: NDArray[np.float32], ranges: NDArray[np.float32]) -> NDArray[np.bool_]:
    """bool[n, dim]: which numbers of float32[n, dim] lie further outside the ranges than a step, so that clipping costs more
    than rounding does. NaN lies nowhere."""
    low, high = ranges.astype(np.float64)
    slack = np.maximum((high - low) / 255, 1e-6 * np.maximum(np.abs(low), np.abs(high)))
    beyond: NDArray[np.bool_] = (vectors < low - slack) | (vectors > high + slack)
    return beyond


def steps(ranges: NDArray[np.float32]) -> NDArray[np.float32]:
    """float32[dim]: what a code of int8 or uint8 is worth in each dimension."""
    return _starts_and_steps("uint8", ranges)[1]


def _starts_and_steps(
    dtype: str, ranges: NDArray[np.float32] | None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    if dtype not in SCALAR or ranges is None:
        raise ValueError(f"dtype is {dtype!r} with ranges {'given' if ranges is not None else 'missing'}")
    starts = ranges[0].astype(np.float32)
    widths = (ranges[1].astype(np.float32) - starts) / 255
    return starts, np.where(widths == 0, np.float32(1), widths)
