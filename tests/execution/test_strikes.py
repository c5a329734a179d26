"""Strikes: only work that was begun and not ended, by a worker that is gone from a node that isn't."""

from hypothesis import given
from hypothesis import strategies as st

from pipeline.execution.strikes import Attempts, Worker

HERE, THERE = Worker("one", "here"), Worker("two", "there")
BOTH = frozenset({"here", "there"})


def test_a_worker_that_died_at_its_work_is_a_strike():
    attempts = Attempts()
    assert attempts.begin(("encode", 1), HERE, BOTH) == 0
    assert attempts.begin(("encode", 1), THERE, BOTH) == 1
    assert attempts.begin(("encode", 1), HERE, BOTH) == 2
    assert attempts.begin(("encode", 2), HERE, BOTH) == 0


def test_a_lost_node_is_no_strike():
    attempts = Attempts()
    attempts.begin(("encode", 1), HERE, BOTH)
    assert attempts.begin(("encode", 1), THERE, frozenset({"there"})) == 0


def test_a_worker_that_is_asked_again_is_no_strike():
    attempts = Attempts()
    attempts.begin(("encode", 1), HERE, BOTH)
    assert attempts.begin(("encode", 1), HERE, BOTH) == 0


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2),
            st.sampled_from("abc"),
            st.sampled_from("nm"),
            st.booleans(),
            st.sampled_from(["", "n", "nm"]),
        )
    )
)
def test_there_are_never_more_strikes_than_unfinished_attempts(history):
    """Preempted nodes and finished work, in any order, condemn nothing."""
    attempts, unfinished = Attempts(), [0, 0, 0]
    for work, name, node, ends, alive in history:
        strikes = attempts.begin((work,), Worker(name + node, node), frozenset(alive))
        assert strikes <= unfinished[work]
        if ends:
            attempts.end((work,))
        else:
            unfinished[work] += 1
