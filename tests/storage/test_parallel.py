"""Calls side by side: their answers come in order, few are ahead of the one that is asked for, and a failure ends them."""

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.storage.parallel import AHEAD, in_parallel


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers()), st.integers(1, 8))
def test_the_answers_are_those_of_one_call_after_the_other(items, threads):
    assert list(in_parallel(lambda item: item * 2, items, threads)) == [item * 2 for item in items]


def test_few_are_asked_before_they_are_needed():
    asked = []
    answers = in_parallel(lambda item: item, (asked.append(item) or item for item in range(1000)), 2)
    for number in range(10):
        assert next(answers) == number
        assert len(asked) <= number + 1 + AHEAD * 2
    answers.close()
    assert len(asked) < 30


def test_calls_wait_side_by_side():
    together = threading.Barrier(4, timeout=20)
    assert len(list(in_parallel(lambda _: together.wait(), range(8), 4))) == 8


def test_a_failure_is_raised_and_no_further_call_begins():
    begun = []

    def call(item: int) -> int:
        begun.append(item)
        return 1 // (item - 5)

    with pytest.raises(ZeroDivisionError):
        list(in_parallel(call, range(1000), 1))
    assert len(begun) <= 5 + 1 + AHEAD
