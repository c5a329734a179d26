"""Codes are those of sentence-transformers, for every dtype, shape and range; what they stand for is near the vector."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.schema import embedding_type
from pipeline.table.quantize import PACKED, SCALAR, dequantize, quantize

NUMBERS = st.floats(-1e4, 1e4, width=32)
SHAPES = st.tuples(st.integers(0, 6), st.integers(1, 19))


@st.composite
def vectors_and_ranges(draw):
    """Ranges that hold some of the vectors, none, or a single point."""
    n, dim = draw(SHAPES)
    vectors = draw(hnp.arrays(np.float32, (n, dim), elements=NUMBERS))
    ends = draw(hnp.arrays(np.float32, (2, dim), elements=NUMBERS))
    ranges = np.sort(ends, axis=0)
    point = draw(hnp.arrays(np.bool_, dim))
    ranges[1, point] = ranges[0, point]
    return vectors, ranges


def oracle(vectors, dtype, ranges):
    from sentence_transformers.util import quantize_embeddings

    with np.errstate(over="ignore"):
        return quantize_embeddings(vectors, dtype, ranges=ranges)


@pytest.mark.parametrize("dtype", ["float32", *SCALAR, *PACKED])
@settings(deadline=None)
@given(case=vectors_and_ranges())
def test_codes_are_those_of_sentence_transformers(dtype, case):
    vectors, ranges = case
    codes, expected = quantize(vectors, dtype, ranges), oracle(vectors, dtype, ranges)
    assert (codes.dtype, codes.shape) == (expected.dtype, expected.shape)
    assert np.array_equal(codes, expected)
    kind = embedding_type(vectors.shape[1], dtype)
    assert (kind.list_size, kind.value_type.to_pandas_dtype()) == (codes.shape[1], codes.dtype.type)


@pytest.mark.parametrize("dtype", SCALAR)
@settings(deadline=None)
@given(case=vectors_and_ranges())
def test_scalar_codes_are_read_back_as_sentence_transformers_does(dtype, case):
    from sentence_transformers.util import quantization

    vectors, ranges = case
    codes = quantize(vectors, dtype, ranges)
    expected = quantization._dequantize_embeddings(codes, dtype, ranges)
    found = dequantize(codes, dtype, vectors.shape[1], ranges)
    assert found.dtype == np.float32
    assert np.array_equal(found, expected.astype(np.float32))


@pytest.mark.parametrize("dtype", SCALAR)
@settings(deadline=None)
@given(st.integers(1, 9), st.integers(2, 50), st.randoms(use_true_random=False))
def test_a_vector_within_the_ranges_comes_back_within_a_step(dtype, dim, n, random):
    vectors = np.random.default_rng(random.getrandbits(32)).normal(size=(n, dim)).astype(np.float32)
    ranges = np.array([vectors.min(axis=0), vectors.max(axis=0)])
    step = (ranges[1] - ranges[0]) / 255
    away = vectors - dequantize(quantize(vectors, dtype, ranges), dtype, dim, ranges)
    rounding = 1e-6 * np.abs(ranges).max(axis=0)
    assert (away >= -rounding).all()
    assert (away <= step + rounding).all()


@pytest.mark.parametrize("dtype", PACKED)
@settings(deadline=None)
@given(hnp.arrays(np.float32, SHAPES, elements=NUMBERS))
def test_packed_codes_are_the_signs(dtype, vectors):
    dim = vectors.shape[1]
    codes = quantize(vectors, dtype)
    assert codes.shape == (len(vectors), -(-dim // 8))
    assert np.array_equal(dequantize(codes, dtype, dim), np.where(vectors > 0, 1, -1))


def test_what_float16_cannot_hold_is_infinite_and_no_warning():
    assert np.isinf(quantize(np.array([[1e6]], np.float32), "float16")).all()
    assert np.array_equal(dequantize(np.array([[0.5]], np.float16), "float16", 1), [[0.5]])


@pytest.mark.parametrize(("dtype", "message"), [("int8", "ranges missing"), ("int4", "'int4'")])
def test_a_dtype_without_its_ranges_or_unknown_is_an_error(dtype, message):
    with pytest.raises(ValueError, match=message):
        quantize(np.zeros((1, 2), np.float32), dtype)
