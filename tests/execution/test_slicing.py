"""The size of slices with which encoders are done soonest."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.execution.slicing import _end, evened


@pytest.mark.parametrize(
    ("most", "units", "encoders", "expected"),
    [
        (256, [600], 2, 150),  # not 256, 256 and 88
        (256, [2280], 2, 228),
        (256, [380], 2, 190),
        (256, [200], 2, 256),  # too few to be worth a second slice
        (256, [300], 64, 150),
        (2048, [2048] * 8, 4, 2048),
        (50, [1010], 3, 50),  # what limits.unit_rows asks for stays
        (807, [10_000], 1, 807),  # where there are many, one more or less is nothing
        (256, [0], 2, 256),
        (256, [], 2, 256),
        (4096, [20_000], 2, 3334),
        (4096, [2_500, 17_500], 2, 2_500),  # of 4,096 an encoder would have 1,400 more than the other
    ],
)
def test_encoders_get_slices_of_one_size_and_number(most, units, encoders, expected):
    assert evened(most, units, encoders) == expected


@given(st.integers(1, 5000), st.lists(st.integers(0, 20_000), max_size=12), st.integers(1, 8))
def test_no_size_is_worse_than_the_largest(most, units, encoders):
    size = evened(most, units, encoders)
    assert 1 <= size <= most
    assert _end(size, units, encoders) <= _end(most, units, encoders)
