"""The head on numpy gives the vectors of the head on torch, whatever stands in the padding; other heads are not its own."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import ModelSpec
from pipeline.encoder.engines.head import head_on_cpu
from pipeline.encoder.engines.numpy_head import NumpyHead, is_plain_head
from pipeline.model.folder import encoder_spec
from pipeline.model.saved_modules import Normalize


@pytest.fixture(scope="module")
def spec(tiny_model):
    return replace(encoder_spec(ModelSpec(path=str(tiny_model))), post_modules=(), normalize=False, truncate_dim=None)


HEADS = [
    {"pooling": pooling, "post_modules": after, "truncate_dim": cut, "normalize": unit}
    for pooling, after, cut, unit in itertools.product(
        (("mean",), ("cls",)), ((), (Normalize(),)), (None, 8), (False, True)
    )
]


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 1000), lengths=st.lists(st.integers(1, 12), min_size=1, max_size=5))
def test_its_vectors_are_those_of_torch(seed, lengths, spec):
    chance, sizes = np.random.default_rng(seed), np.array(lengths, np.int32)
    hidden = chance.normal(size=(len(sizes), max(lengths), 32)).astype(np.float32)
    ids = chance.integers(5, 30, hidden.shape[:2])
    for change in HEADS:
        given_head = replace(spec, **change)
        assert is_plain_head(given_head)
        head = NumpyHead(given_head)
        found = head(hidden, ids, sizes)
        assert found.dtype == np.float32
        assert found.flags.c_contiguous
        np.testing.assert_allclose(found, head_on_cpu(given_head, 1, 0)(hidden, ids, sizes), rtol=0, atol=1e-6)
        for row, length in enumerate(lengths):
            alone = head(hidden[row : row + 1, :length], ids[row : row + 1, :length], sizes[row : row + 1])
            np.testing.assert_array_equal(alone[0], found[row])


@pytest.mark.parametrize("change", [{"pooling": ("max",)}, {"pooling": ("mean", "cls")}, {"include_prompt": False}])
def test_other_heads_are_left_to_torch(change, spec):
    assert not is_plain_head(replace(spec, **change))
