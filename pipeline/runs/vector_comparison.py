"""The vectors of a table are compared with the exact vectors of their texts, within a tolerance.

A `Published` table and both sets of vectors come in. A `Comparison` goes out, which says how far they differ, which rows are
wrong, and what is wrong with all of them together. This file reads nothing and encodes nothing.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.encoder.similarities import similarities
from pipeline.runs.published import Published
from pipeline.table import calibration
from pipeline.table.quantize import PACKED, SCALAR, dequantize, outside, quantize, steps

Vectors = NDArray[np.float32]

NEIGHBOURS = 10
"""So many nearest rows of each row are compared."""


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """It says how far a table may be from the exact vectors of its texts."""

    number: float
    """Each number of a vector of length 1 may differ by so much, before it is rounded to the table's dtype."""
    min_cosine: float | None = None
    """Each vector has at least this cosine with the exact one, before it is rounded."""
    mean_cosine: float | None = None
    """All vectors of an int8 or uint8 table have at least this mean cosine with the exact ones, which are not rounded."""
    clipped: float | None = None
    """At most this share of the exact numbers lies outside such a table's ranges."""

    def __str__(self) -> str:
        kinds = {
            "difference at most": self.number,
            "cosine at least": self.min_cosine,
            "mean cosine at least": self.mean_cosine,
            "clipped at most": self.clipped,
        }
        return ", ".join(f"{kind} {limit:.3g}" for kind, limit in kinds.items() if limit is not None)


def _at_cosine(least: float) -> float:
    """Return how much one number of two vectors of length 1 can differ at most, if their cosine is `least`."""
    return math.sqrt(2 * (1 - least))


TOLERANCES = {
    "float32": Tolerance(number=1e-5),
    "float16": Tolerance(number=_at_cosine(0.9999), min_cosine=0.9999),
    "bfloat16": Tolerance(number=_at_cosine(0.999), min_cosine=0.999),
    "int8": Tolerance(number=_at_cosine(0.9), min_cosine=0.9, mean_cosine=0.99),
}
"""They are found by the precision that the table was computed in."""


def tolerance(precision: str, dtype: str) -> Tolerance:
    """Return the tolerance of a table that was computed in `precision` and is stored as `dtype`."""
    found = TOLERANCES[precision]
    return dataclasses.replace(found, mean_cosine=0.99, clipped=calibration.CLIPPED) if dtype in SCALAR else found


@dataclass(frozen=True, eq=False)
class Comparison:
    """It holds n vectors of a table beside the exact ones. They are NaN where a text has none."""

    stored: Vectors
    """They are float32[n, dim], as the table's codes stand for them."""
    exact: Vectors
    """They are float32[n, dim], and not rounded."""
    differences: Vectors
    """[n, dim] says how far the table's numbers are from the rounded exact ones, with vectors scaled to length 1."""
    outside: NDArray[np.bool_]
    """[n, dim] marks the numbers that are further off than the tolerance allows, and NaN."""
    cosines: NDArray[np.float64]
    """[n] are the cosines with the exact vectors, which are not rounded."""
    rounded_cosines: NDArray[np.float64]
    """[n] are the cosines with the rounded exact vectors, so that what the dtype takes cancels."""
    least_cosines: NDArray[np.float64]
    """[n] are the least `rounded_cosines` that the tolerance allows."""
    clipped: NDArray[np.bool_] | None
    """[n, dim] marks the exact numbers outside the ranges. It is None for dtypes without ranges."""
    flips: NDArray[np.int64] | None
    """[n] counts the signs that differ from the exact numbers' signs. It is None for dtypes other than binary and ubinary."""
    likely_flips: NDArray[np.float64]
    """[n] are the flips to expect at the least cosine that the tolerance allows. They are infinite without one."""

    @property
    def both(self) -> NDArray[np.bool_]:
        """[n] marks the rows that both sides have a vector for."""
        return np.asarray(np.isfinite(self.stored).all(axis=1) & np.isfinite(self.exact).all(axis=1))

    def figures(self, function: str) -> dict[str, Any]:
        """Return the figures of a `Verification`, over the rows that both sides have a vector for."""
        finite = np.isfinite(self.stored).all(axis=1)
        both = self.both
        norms = np.linalg.norm(self.stored[finite], axis=1)
        return {
            "max_abs_difference": _figure(self.differences[both], np.max),
            "min_cosine": _figure(self.cosines[both], np.min),
            "mean_cosine": _figure(self.cosines[both], np.mean),
            "neighbour_overlap": _neighbour_overlap(self.stored[both], self.exact[both], function),
            "min_norm": _figure(norms, np.min),
            "mean_norm": _figure(norms, np.mean),
            "max_norm": _figure(norms, np.max),
            "not_finite": int((~np.isfinite(self.stored)).sum()),
            "clipped": None if self.clipped is None else _figure(self.clipped[both], np.mean),
            "flips": None if self.flips is None else int(self.flips[both].sum()),
        }

    def faults(self, limits: Tolerance) -> Iterator[str]:
        """Yield what is wrong with all the vectors together."""
        both = self.both
        if not both.any():
            return
        if limits.clipped is not None and self.clipped is not None and self.clipped[both].mean() > limits.clipped:
            yield f"{self.clipped[both].mean():.1%} of the numbers lie outside the table's ranges"
        if limits.mean_cosine is not None and self.cosines[both].mean() < limits.mean_cosine:
            yield f"the mean cosine is {self.cosines[both].mean():.4f}"
        if self.flips is not None and self.flips[both].sum() > _most_flips(self.likely_flips[both].sum()):
            yield f"{self.flips[both].sum():,} signs are wrong, about {self.likely_flips[both].sum():,.0f} may be"

    def problems(self) -> Iterator[tuple[int, str]]:
        """Yield (row, what is wrong with its vector)."""
        wrong = self.outside.any(axis=1) | ~(self.rounded_cosines >= self.least_cosines)
        if self.flips is not None:
            wrong |= self.flips > _most_flips(self.likely_flips)
        for row in np.flatnonzero(wrong).tolist():
            bad, dim = int((~np.isfinite(self.stored[row])).sum()), self.stored.shape[1]
            if bad:
                yield row, f"{bad} of its {dim} numbers are NaN or infinite"
            elif not np.isfinite(self.exact[row]).all():
                continue  # Its text has no exact vector, which is told of the text.
            elif outside := int(self.outside[row].sum()):
                most = float(self.differences[row].max())
                yield row, f"{outside} of its {dim} numbers are not those of its text, by up to {most:.2g}"
            elif self.rounded_cosines[row] < self.least_cosines[row]:
                rounded = ", both rounded," if self.clipped is not None else ""
                yield row, f"its cosine with the exact vector{rounded} is {self.rounded_cosines[row]:.6f}"
            elif self.flips is not None:
                yield row, f"{self.flips[row]} of its {dim} signs are not those of its text"


def compare_vectors(found: Published, stored: Vectors, exact: Vectors) -> Comparison:
    limits, dtype = tolerance(found.encoder.precision, found.spec.table.dtype), found.spec.table.dtype
    lengths = np.linalg.norm(exact, axis=1, keepdims=True)
    margin = limits.number * lengths
    ranges = _ranges(found)
    rounded = _rounded(exact, found)
    packed = dtype in PACKED
    least = -math.inf if packed or limits.min_cosine is None else limits.min_cosine
    # Rounding keeps the order, so a number whose exact value is near enough lies between the rounded ends of its margin.
    # Where a step's border is nearer than the margin, both steps are right.
    low, high = _rounded(exact - margin, found), _rounded(exact + margin, found)
    return Comparison(
        stored=stored,
        exact=exact,
        differences=np.abs(stored - rounded) / np.maximum(lengths, 1e-12),
        outside=~np.asarray((low <= stored) & (stored <= high)),
        cosines=_cosines(stored, exact),
        rounded_cosines=_cosines(stored, rounded),
        least_cosines=least - _cosine_of_a_step(rounded, ranges),
        clipped=outside(exact, ranges) if ranges is not None else None,
        flips=(stored != rounded).sum(axis=1) if packed else None,
        likely_flips=_likely_flips(exact, limits.min_cosine),
    )


def _cosine_of_a_step(vectors: Vectors, ranges: Vectors | None) -> NDArray[np.float64]:
    """Return, as [n], what rounding each number by a step can take from the cosine of two vectors."""
    if ranges is None:
        return np.zeros(len(vectors))
    # Two vectors that are e apart have a cosine of about 1 - |e|^2 / (2 |v|^2).
    square = np.square(steps(ranges)[ranges[0] < ranges[1]].astype(np.float64)).sum()
    taken: NDArray[np.float64] = square / (2 * np.maximum(np.square(vectors.astype(np.float64)).sum(axis=1), 1e-24))
    return taken


def _likely_flips(exact: Vectors, cosine: float | None) -> NDArray[np.float64]:
    """Return, as [n], the signs that are likely to flip in a vector at this cosine.

    The difference from the exact vector is taken to have no direction of its own. A normal number then exceeds an exact one
    with P(x > |v| / s). If the exact vector has no direction of its own either, a share of angle / pi of the signs flips.
    """
    if cosine is None:  # The tolerance of each number is so small that hardly a sign is free.
        return np.full(len(exact), np.inf)
    lengths = np.linalg.norm(exact.astype(np.float64), axis=1, keepdims=True)
    spread = np.maximum(lengths * math.sqrt(1 - cosine**2) / math.sqrt(exact.shape[1]), 1e-24)
    tails = np.frompyfunc(math.erfc, 1, 1)(np.abs(exact) / spread / math.sqrt(2)).astype(np.float64) / 2
    likely: NDArray[np.float64] = tails.sum(axis=1)
    return likely


def _most_flips(likely: Any) -> Any:
    """Return so many flips and three standard deviations more, and one, since few flips are left to chance."""
    return likely + 3 * np.sqrt(likely) + 1


def _figure(values: NDArray[Any], of: Callable[[NDArray[Any]], Any]) -> float | None:
    return float(of(values)) if values.size else None


def _cosines(a: Vectors, b: Vectors) -> NDArray[np.float64]:
    """Return the cosine of each row of `a` with the same row of `b`, as float64[n]."""
    left, right = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(invalid="ignore"):  # Infinity gives NaN.
        norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
        cosines: NDArray[np.float64] = (left * right).sum(axis=1) / np.maximum(norms, 1e-24)
    return cosines


def _neighbour_overlap(stored: Vectors, fresh: Vectors, function: str) -> float | None:
    """Return the share of each row's nearest other rows that both sets of vectors agree on."""
    count = min(NEIGHBOURS, len(stored) - 1)
    if count < 1:
        return None
    nearest = []
    for vectors in (stored, fresh):
        found = similarities(vectors, vectors, function)
        np.fill_diagonal(found, -np.inf)
        nearest.append(np.argsort(-found, axis=1, kind="stable")[:, :count])
    same = [len(set(one) & set(other)) for one, other in zip(*(rows.tolist() for rows in nearest), strict=True)]
    return sum(same) / (count * len(stored))


def _rounded(vectors: Vectors, found: Published) -> Vectors:
    """Return the vectors as they come back from a table of the same dtype."""
    codes = quantize(vectors, found.spec.table.dtype, _ranges(found))
    return dequantize(codes, found.spec.table.dtype, found.encoder.dim, _ranges(found))


def stored_vectors(column: pa.ChunkedArray, found: Published) -> Vectors:
    """Return the float32[n, dim] that the codes of a table's column stand for."""
    values = column.combine_chunks()
    codes = values.flatten().to_numpy(zero_copy_only=False).reshape(len(values), values.type.list_size)
    return dequantize(codes, found.spec.table.dtype, found.encoder.dim, _ranges(found))


def _ranges(found: Published) -> Vectors | None:
    return found.calibration.ranges if found.calibration else None
