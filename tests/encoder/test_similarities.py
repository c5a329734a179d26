"""Similarities are those of sentence-transformers, whatever form the vectors come in."""

import json
import subprocess
import sys
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import spearmanr

import pipeline
from pipeline.encoder.similarities import pairwise_similarities, similarities, spearman
from pipeline.errors import InputError
from tests.tiny import build_tiny_model, load_oracle

FUNCTIONS = ("cosine", "dot", "euclidean", "manhattan")
NUMBERS = st.floats(-100, 100, width=32)
SIZES = st.integers(1, 8)


@st.composite
def two_sets(draw: st.DrawFn, same_count: bool = False) -> tuple[np.ndarray, np.ndarray]:
    dim, first, second = draw(SIZES), draw(SIZES), draw(SIZES)
    kinds = st.sampled_from([np.float32, np.float64, np.float16])
    shapes = (first, dim), (first if same_count else second, dim)
    return tuple(
        draw(arrays(draw(kinds), shape, elements=st.integers(-800, 800).map(lambda x: x / 8))) for shape in shapes
    )


def oracle(function: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what that library imports is not ours to judge
        from sentence_transformers import SimilarityFunction
    wide = np.result_type(a, b, np.float32)  # torch multiplies no float32 with float64
    compare = SimilarityFunction.to_similarity_fn(function)
    return compare(torch.from_numpy(a.astype(wide)), torch.from_numpy(b.astype(wide))).numpy()


@pytest.mark.parametrize("function", FUNCTIONS)
@settings(max_examples=50, deadline=None)
@given(vectors=two_sets())
def test_every_pair_is_as_in_sentence_transformers(function, vectors):
    a, b = vectors
    found = similarities(a, b, function)
    assert found.shape == (len(a), len(b))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, oracle(function, a, b), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_model_compares_its_vectors_by_its_own_function(function, tmp_path):
    folder = build_tiny_model(tmp_path / "model", normalize=False)
    path = folder / "config_sentence_transformers.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"similarity_fn_name": function}))
    model, texts = load_oracle(folder), ["the market of new york", "small people", "oil", "서울 날씨"]
    assert model.similarity_fn_name == function
    vectors = model.encode(texts)
    expected = model.similarity(vectors, vectors).numpy()
    found = pipeline.similarity(vectors, vectors, model=folder)
    assert np.abs(found - expected).max() <= 1e-6 * max(1, np.abs(expected).max())
    by_name = pipeline.similarity(vectors, vectors, function="cosine", model=folder)
    assert np.array_equal(by_name, pipeline.similarity(vectors, vectors))


@pytest.mark.parametrize("function", FUNCTIONS)
@settings(max_examples=30, deadline=None)
@given(vectors=two_sets(same_count=True))
def test_similarity_is_symmetric_and_pairs_are_its_diagonal(function, vectors):
    a, b = vectors
    found = similarities(a, b, function)
    np.testing.assert_allclose(found, similarities(b, a, function).T, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(np.diag(found), pairwise_similarities(a, b, function), rtol=1e-5, atol=1e-5)


@settings(max_examples=50, deadline=None)
@given(vectors=arrays(np.float32, st.tuples(SIZES, SIZES), elements=NUMBERS))
def test_a_vector_is_most_like_itself(vectors):
    lengths = np.linalg.norm(vectors, axis=1)
    long_enough = lengths > 1e-6
    own = np.diag(similarities(vectors, vectors))
    np.testing.assert_allclose(own[long_enough], 1, atol=1e-6)
    assert (own[~long_enough] <= 1 + 1e-6).all()
    for function in ("euclidean", "manhattan"):
        found = similarities(vectors, vectors, function)
        assert (found <= 0).all()
        assert (np.abs(np.diag(found)) <= 1e-6 * (1 + lengths)).all()


@pytest.mark.parametrize("function", FUNCTIONS)
def test_many_vectors_are_compared_in_blocks(function, monkeypatch):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(50, 7)).astype(np.float32), rng.normal(size=(40, 7)).astype(np.float32)
    whole, pairs = similarities(a, b, function), pairwise_similarities(a[:40], b, function)
    for numbers in (1, 50, 200):
        monkeypatch.setattr("pipeline.encoder.similarities._BLOCK_NUMBERS", numbers)
        np.testing.assert_allclose(similarities(a, b, function), whole, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(pairwise_similarities(a[:40], b, function), pairs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("shapes", [((2, 384), (60_000, 384)), ((60_000, 64), (3, 64))], ids=["few", "many"])
def test_memory_beside_the_input_is_bounded(function, shapes):
    a, b = (np.ones(shape, np.float64) for shape in shapes)
    tracemalloc.start()
    similarities(a, b, function)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= 128 * 2**20


VECTORS = np.array([[1, 2, 3], [0, 0, 0], [-4, 0.5, 2]], np.float32)
FIXED = pa.FixedSizeListArray.from_arrays(pa.array(VECTORS.reshape(-1)), 3)
HALF = pa.FixedSizeListArray.from_arrays(pa.array(VECTORS.astype(np.float16).reshape(-1)), 3)


@pytest.mark.parametrize(
    "given",
    [
        VECTORS.tolist(),
        list(VECTORS),
        VECTORS.astype(np.float16),
        VECTORS.astype(np.float64),
        FIXED,
        HALF,
        pa.concat_arrays([FIXED, FIXED]).slice(3),
        pa.chunked_array([FIXED.slice(0, 1), FIXED.slice(1)]),
        pa.table({"embedding": FIXED})["embedding"],
        pa.array(VECTORS.tolist()),
        FIXED.to_numpy(zero_copy_only=False),
        pa.table({"embedding": FIXED}),
        pl.from_arrow(pa.table({"embedding": FIXED}))["embedding"],
        pl.Series(VECTORS.tolist()),
        pl.DataFrame({"embedding": VECTORS.tolist()}),
        pl.DataFrame(VECTORS),
        pd.Series(list(VECTORS)),
        pd.DataFrame(VECTORS),
        torch.from_numpy(VECTORS),
        torch.from_numpy(VECTORS).to(torch.bfloat16).requires_grad_(),
        list(torch.from_numpy(VECTORS)),
    ],
    ids=lambda given: type(given).__name__,
)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_any_form_of_the_same_vectors_gives_the_same(given, function):
    expected = similarities(VECTORS, VECTORS, function)
    np.testing.assert_allclose(similarities(given, VECTORS, function), expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(similarities(VECTORS, given, function), expected, rtol=1e-6, atol=1e-6)


def test_one_vector_is_one_row_and_none_are_no_rows():
    assert similarities(VECTORS[0], VECTORS).shape == (1, 3)
    assert similarities([1.0, 2.0, 3.0], VECTORS[0], "dot").tolist() == [[14.0]]
    assert similarities(VECTORS[:0], VECTORS).shape == (0, 3)
    assert similarities(FIXED.slice(0, 0), VECTORS).shape == (0, 3)


@pytest.mark.parametrize(
    ("a", "b", "function", "told"),
    [
        (VECTORS, VECTORS[:, :2], "cosine", "vectors of 3 and of 2 numbers"),
        (VECTORS, VECTORS, "angle", "'angle' is not known; expected one of cosine, dot, euclidean, manhattan"),
        (VECTORS[None], VECTORS, "dot", r"shape \(1, 3, 3\)"),
        ([[1.0], [1.0, 2.0]], VECTORS, "dot", "all of one length"),
        (["a text"], VECTORS, "dot", "can't be compared"),
        ([], VECTORS, "dot", "vectors of 0 and of 3 numbers"),
        (pa.array([[1.0, 2.0, 3.0], None], pa.list_(pa.float32(), 3)), VECTORS, "dot", "1 of 2 vectors are null"),
        (pl.Series([[1.0, 2.0, 3.0], None]), VECTORS, "dot", "1 of 2 vectors are null"),
        (
            pa.array([[1.0, None, 3.0]], pa.list_(pa.float32(), 3)),
            VECTORS,
            "dot",
            "1 of 3 numbers in the vectors are null",
        ),
        (pa.array([[1.0, None, 3.0]]), VECTORS, "dot", "1 of 3 numbers in the vectors are null"),
        (pl.Series([[1.0, None, 3.0]]), VECTORS, "dot", "1 of 3 numbers in the vectors are null"),
        (pl.DataFrame({"a": [1.0], "b": [None]}), VECTORS, "dot", "1 of 1 numbers are null"),
        (np.ones((2, 3), np.int8), VECTORS, "cosine", r"vectors of int8 .* numbers with pipeline\.vectors\(rows\)"),
        (VECTORS, pa.array([[1, 2, 3]], pa.list_(pa.uint8(), 3)), "cosine", r"vectors of uint8 .* pipeline\.vectors"),
        (VECTORS, [[1, 2, 3]], "cosine", "what are numbers already, give as floats"),
    ],
)
def test_what_can_not_be_compared_is_told(a, b, function, told):
    with pytest.raises(InputError, match=told):
        similarities(a, b, function)


def test_pairs_need_as_many_on_both_sides():
    with pytest.raises(InputError, match="3 on one side, 2 on the other"):
        pairwise_similarities(VECTORS, VECTORS[:2])


def test_similarity_needs_no_torch():
    program = "import sys, pipeline; pipeline.similarity([1., 2.], [3., 4.]); print('torch' in sys.modules)"
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout == "False\n"


FEW_VALUES = st.integers(-5, 5)  # so that many are equal


@given(pairs=st.lists(st.tuples(FEW_VALUES, FEW_VALUES), min_size=3, max_size=40))
def test_spearman_is_that_of_scipy(pairs):
    a, b = np.array(pairs, float).T
    assume(len(set(a)) > 1 and len(set(b)) > 1)
    assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)
