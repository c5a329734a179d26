"""Batches cover every row once, stay within the budget and pad little."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.encoder.batching import few_widths, packed_batches, packed_tokens, padded_tokens, token_batches

LENGTHS = st.lists(st.integers(1, 512), max_size=200).map(lambda values: np.array(values, np.int64))


@given(LENGTHS, st.integers(1, 4096), st.integers(0, 256))
def test_every_row_is_in_exactly_one_batch(lengths, budget, overhead):
    batches = token_batches(lengths, budget, overhead)
    assert sorted(np.concatenate([*batches, np.zeros(0, np.int64)]).tolist()) == list(range(len(lengths)))


@given(LENGTHS, st.integers(1, 4096), st.integers(0, 256))
def test_only_a_single_row_may_exceed_the_budget(lengths, budget, overhead):
    for batch in token_batches(lengths, budget, overhead):
        assert len(batch) == 1 or padded_tokens(lengths, batch) <= budget


@given(LENGTHS, st.integers(1, 4096))
def test_batches_go_from_long_to_short(lengths, budget):
    order = np.concatenate([*token_batches(lengths, budget), np.zeros(0, np.int64)])
    assert (np.diff(lengths[order]) <= 0).all()


@given(LENGTHS, st.integers(0, 256))
def test_ending_a_batch_early_never_costs_more_than_it_saves(lengths, overhead):
    def cost(batches):
        return sum(padded_tokens(lengths, batch) + overhead for batch in batches)

    one_batch = token_batches(lengths, 10**6, overhead_tokens=10**6)
    assert len(one_batch) <= 1
    assert cost(token_batches(lengths, 10**6, overhead)) <= cost(one_batch)


def test_one_long_row_does_not_pad_many_short_ones():
    lengths = np.array([512] + [4] * 100, np.int64)
    batches = token_batches(lengths, 100_000, overhead_tokens=32)
    assert [len(batch) for batch in batches] == [1, 100]


def test_rows_of_equal_length_fill_the_budget():
    lengths = np.full(100, 10, np.int64)
    assert [len(batch) for batch in token_batches(lengths, 250)] == [25, 25, 25, 25]


def test_nothing_to_do_is_no_batch():
    assert token_batches(np.zeros(0, np.int64), 1024) == []


@given(LENGTHS, st.integers(1, 4096))
def test_packed_batches_have_every_row_once_within_the_budget_from_long_to_short(lengths, budget):
    batches = packed_batches(lengths, budget)
    order = np.concatenate([*batches, np.zeros(0, np.int64)])
    assert sorted(order.tolist()) == list(range(len(lengths)))
    assert (np.diff(lengths[order]) <= 0).all()
    for batch in batches:
        assert len(batch) == 1 or packed_tokens(lengths[batch]) <= budget


@given(LENGTHS, st.integers(1, 4096))
def test_a_packed_batch_ends_only_where_the_next_row_does_not_fit(lengths, budget):
    batches = packed_batches(lengths, budget)
    for batch, following in itertools.pairwise(batches):
        assert packed_tokens(lengths[np.append(batch, following[0])]) > budget


def test_very_short_rows_do_not_make_a_packed_batch_of_many_rows():
    assert [len(batch) for batch in packed_batches(np.full(100, 1), 400)] == [50, 50]


@given(LENGTHS, st.none() | st.integers(512, 600))
def test_few_widths_are_the_lengths_or_a_little_more(lengths, longest):
    widths = few_widths(lengths, longest)
    assert (widths >= lengths).all()
    assert (widths <= (longest or np.inf)).all()
    assert (widths <= lengths * (1 + 1 / 32)).all()
    assert (np.diff(widths[np.argsort(lengths)]) >= 0).all()


def test_few_widths_are_few():
    lengths = np.arange(1, 513)
    assert len(np.unique(few_widths(lengths, 512))) == 64 + 3 * 32
    assert few_widths(np.array([1, 63, 64, 65, 509, 512]), 510).tolist() == [1, 63, 64, 66, 510, 512]
