"""Packed rows keep their ids and their own positions, and what fills up a size is rows of its own."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.roberta.modeling_roberta import RobertaEmbeddings

from pipeline.encoder.engines.packing import pack_rows

ROWS = st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=20), min_size=1, max_size=12)


def packed(rows, **options):
    ids = np.array([token for row in rows for token in row], np.int32)
    lengths = np.array([len(row) for row in rows], np.int32)
    return pack_rows(ids, lengths, **{"pad_id": None, "longest": 20, **options})


@given(ROWS)
def test_positions_count_from_the_start_of_each_row(rows):
    result = packed(rows)
    assert result.ids.tolist() == [token for row in rows for token in row]
    assert result.positions.tolist() == [position for row in rows for position in range(len(row))]
    assert result.bounds.tolist() == [0, *np.cumsum([len(row) for row in rows])]
    assert {array.dtype for array in (result.ids, result.positions, result.bounds)} == {np.dtype(np.int32)}


@given(ROWS, st.integers(0, 3))
def test_positions_behind_the_padding_are_those_of_transformers(rows, pad_id):
    result = packed(rows, pad_id=pad_id)
    expected = [
        RobertaEmbeddings.create_position_ids_from_input_ids(torch.tensor([row]), pad_id)[0].tolist() for row in rows
    ]
    assert result.positions.tolist() == [position for row in expected for position in row]


@given(ROWS, st.integers(0, 300), st.integers(20, 64), st.sampled_from([None, 1]))
def test_what_fills_up_is_rows_of_zeros_no_longer_than_the_longest(rows, missing, longest, pad_id):
    tokens = sum(map(len, rows))
    fills = -(-missing // longest)
    result = packed(rows, size=tokens + missing, slots=len(rows) + fills + 3, longest=longest, pad_id=pad_id)
    own = packed(rows, pad_id=pad_id)
    assert len(result.ids) == tokens + missing
    assert result.ids[:tokens].tolist() == own.ids.tolist()
    assert result.positions[:tokens].tolist() == own.positions.tolist()
    assert not result.ids[tokens:].any()
    assert result.bounds[: len(rows) + 1].tolist() == own.bounds.tolist()
    assert len(result.bounds) == len(rows) + fills + 4
    lengths = np.diff(result.bounds)
    assert result.bounds[-1] == tokens + missing
    assert lengths.max() <= longest
    assert (lengths[:-3] > 0).all()
    assert not lengths[-3:].any()
    assert result.positions.max() < longest + (0 if pad_id is None else pad_id + 1)


@pytest.mark.parametrize("options", [{"size": 4}, {"slots": 1}, {"longest": 2}])
def test_rows_that_do_not_fit_are_an_error(options):
    with pytest.raises(ValueError, match="2 rows of 5 tokens"):
        packed([[1, 2, 3], [4, 5]], **options)
