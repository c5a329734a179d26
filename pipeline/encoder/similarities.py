"""Vectors in, their similarities out: the four functions that a model's vectors are compared with.

Beside the arrays that come in and go out 128 MiB are held at most. The formulas are those of sentence-transformers 6.2
(util/similarity.py). Knows no texts and no models, and needs no torch.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.errors import InputError

Floats = NDArray[np.floating[Any]]

_BLOCK_NUMBERS = 2**21
"""Numbers in one array of a block: 16 MiB at most, and no function holds more than six of them."""


def similarities(a: Any, b: Any, function: str = "cosine") -> NDArray[np.float32]:
    """float32[n, m]: the similarity of every vector of `a` with every one of `b`; more is always more alike.

    `a` is [n, dim] and `b` [m, dim], or one vector [dim] as a single row: arrays, lists, Arrow or Polars columns of lists,
    torch tensors. Half precision is computed in float32. `cosine` takes a vector of zeros as it is; `euclidean` and
    `manhattan` are the negative distances. Raises InputError for other functions and shapes, and for integers: a table's
    codes say nothing before they are numbers again.
    """
    compare = _looked_up(_ALL_PAIRS, function)
    left, right = _matching(a, b)
    dim = max(1, left.shape[1])
    scores = np.empty((len(left), len(right)), np.float32)
    for some in _blocks(len(right), _BLOCK_NUMBERS // dim):
        for few in _blocks(len(left), _BLOCK_NUMBERS // max(dim, some.stop - some.start)):
            scores[few, some] = compare(left[few], right[some])
    return scores


def pairwise_similarities(a: Any, b: Any, function: str = "cosine") -> NDArray[np.float32]:
    """float32[n]: the similarity of the i-th vector of `a` [n, dim] with the i-th of `b` [n, dim]; all else is as in
    `similarities`."""
    compare = _looked_up(_PAIRWISE, function)
    left, right = _matching(a, b)
    if len(left) != len(right):
        raise InputError(f"the vectors don't pair: {len(left)} on one side, {len(right)} on the other")
    scores = np.empty(len(left), np.float32)
    for few in _blocks(len(left), _BLOCK_NUMBERS // max(1, left.shape[1])):
        scores[few] = compare(left[few], right[few])
    return scores


def spearman(a: ArrayLike, b: ArrayLike) -> float:
    """Pearson's correlation of the ranks, equal values sharing the mean of theirs; NaN where one side is constant."""
    ranks = [_ranks(values) for values in (a, b)]
    x, y = (values - values.mean() for values in ranks)
    scale = math.sqrt(float((x * x).sum() * (y * y).sum()))
    return float((x * y).sum()) / scale if scale else math.nan


def _ranks(values: ArrayLike) -> NDArray[np.float64]:
    _, group, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    ranks: NDArray[np.float64] = (np.cumsum(counts) - (counts - 1) / 2)[group]
    return ranks


def as_vectors(values: Any) -> Floats:
    """float[n, dim] of all that `similarities` takes; float64 where it was given, else float32."""
    vectors = as_matrix(values)
    if vectors.dtype.kind in "iu":
        raise InputError(
            f"vectors of {vectors.dtype} can't be compared: the codes of an int8, uint8, binary or ubinary table become "
            "numbers with pipeline.vectors(rows); what are numbers already, give as floats"
        )
    return vectors.astype(np.float64 if vectors.dtype == np.float64 else np.float32, copy=False)


def as_matrix(values: Any) -> NDArray[Any]:
    """[n, dim] of all that `similarities` takes and of integers, in the dtype they have. Raises InputError, also for
    nulls."""
    vectors = _to_numpy(values)
    if vectors.dtype.kind not in "fiu":
        raise InputError(f"vectors of {vectors.dtype} can't be compared: expected numbers [n, dim]")
    if vectors.ndim == 1:
        vectors = vectors[None, :]
    if vectors.ndim != 2:
        raise InputError(
            f"vectors of shape {vectors.shape} can't be compared: expected [n, dim], or [dim] for one vector"
        )
    return vectors


def _blocks(count: int, length: int) -> Iterator[slice]:
    step = max(1, length)
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def _matching(a: Any, b: Any) -> tuple[Floats, Floats]:
    left, right = as_vectors(a), as_vectors(b)
    if left.shape[1] != right.shape[1]:
        raise InputError(
            f"vectors of {left.shape[1]} and of {right.shape[1]} numbers can't be compared: are they of one model?"
        )
    return left, right


def _to_numpy(values: Any) -> NDArray[Any]:
    if hasattr(values, "detach"):  # a torch tensor, which numpy may not know: bfloat16, or on a GPU
        tensor = values.detach().cpu()
        return np.asarray(tensor if tensor.dtype.itemsize != 2 else tensor.float())
    if hasattr(values, "to_arrow"):  # of Polars
        values = values.to_arrow()
    if hasattr(values, "itercolumns"):  # a table: one column of lists, or a column per dimension
        columns = list(values.itercolumns())
        return _to_numpy(columns[0]) if len(columns) == 1 else np.stack([_to_numpy(one) for one in columns], axis=-1)
    if hasattr(values, "combine_chunks"):
        values = values.combine_chunks()
    if hasattr(values, "null_count"):
        return _arrow_to_numpy(values)
    if isinstance(values, Sequence) and any(hasattr(value, "detach") for value in values):
        values = [_to_numpy(value) for value in values]
    try:
        vectors = np.asarray(values)
        # pandas and Arrow give an array of arrays for a column of lists.
        return np.stack(list(vectors)) if vectors.dtype == object and len(vectors) else vectors
    except (ValueError, TypeError) as error:
        raise InputError(f"vectors can't be compared: expected numbers [n, dim], all of one length ({error})") from None


def _arrow_to_numpy(values: Any) -> NDArray[Any]:
    _refuse_nulls(values, "vectors" if hasattr(values, "flatten") else "numbers")
    if not hasattr(values, "flatten"):
        return np.asarray(values.to_numpy(zero_copy_only=False))
    numbers = values.flatten()
    _refuse_nulls(numbers, "numbers in the vectors")
    size = getattr(values.type, "list_size", None)
    if size is None:
        return _to_numpy(values.to_numpy(zero_copy_only=False))
    return np.asarray(numbers.to_numpy(zero_copy_only=False)).reshape(len(values), size)


def _refuse_nulls(values: Any, kind: str) -> None:
    if values.null_count:
        raise InputError(f"{values.null_count} of {len(values)} {kind} are null: leave them out")


def _unit(vectors: Floats) -> Floats:
    """Each vector divided by its length, or by 1e-12 if that is less (torch.nn.functional.normalize)."""
    unit: Floats = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return unit


def _euclidean(a: Floats, b: Floats) -> Floats:
    # |x|² + |y|² - 2 x·y, in float64: in float32 it would leave 1e-4 of the difference of two equal vectors.
    left, right = a.astype(np.float64), b.astype(np.float64)
    squares = np.square(left).sum(axis=1)[:, None] + np.square(right).sum(axis=1)[None, :]
    distances: Floats = np.sqrt(np.maximum(squares - 2 * (left @ right.T), 0))
    return -distances


def _manhattan(a: Floats, b: Floats) -> Floats:
    distances = np.empty((len(a), len(b)), np.result_type(a, b))
    for few in _blocks(len(a), _BLOCK_NUMBERS // max(1, b.size)):
        differences = a[few, None, :] - b[None, :, :]
        distances[few] = np.abs(differences, out=differences).sum(axis=2)
    return -distances


_Compare = Callable[[Floats, Floats], Floats]

_ALL_PAIRS: dict[str, _Compare] = {
    "cosine": lambda a, b: _unit(a) @ _unit(b).T,
    "dot": lambda a, b: a @ b.T,
    "euclidean": _euclidean,
    "manhattan": _manhattan,
}
_PAIRWISE: dict[str, _Compare] = {
    "cosine": lambda a, b: (_unit(a) * _unit(b)).sum(axis=1),
    "dot": lambda a, b: (a * b).sum(axis=1),
    "euclidean": lambda a, b: -np.linalg.norm(a - b, axis=1),
    "manhattan": lambda a, b: -np.abs(a - b).sum(axis=1),
}


def _looked_up(known: dict[str, _Compare], function: str) -> _Compare:
    if function not in known:
        raise InputError(f"similarity function {function!r} is not known; expected one of {', '.join(known)}")
    return known[function]
