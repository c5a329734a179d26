"""What a person wants of rows: equal to what Python says of the same rows."""

import datetime

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.table.conditions import equal_to, is_condition, pair, told

ROWS = pa.table(
    {
        "lang": ["en", "de", None, "en", "e n"],
        "year": pa.array([2019, 2020, 2021, None, 2020], pa.int32()),
        "price": [1.5, -2.0, 0.0, 7.25, None],
        "day": pa.array([datetime.date(2024, 1, n) for n in range(1, 6)]),
        "free": [True, False, None, True, False],
        "odd name": ["a", "b", "c", "d", "e"],
        "code": ["2019", "x=y", "", "it's", "en"],
    }
)


@pytest.mark.parametrize(
    ("texts", "rows"),
    [
        (["lang=en"], [0, 3]),
        (["lang == 'en'"], [0, 3]),
        (["lang!=en"], [1, 4]),
        (["lang=e n"], [4]),
        (["lang = 'e n'"], [4]),
        (['day="2024-01-04"'], [3]),
        (["`odd name` = 'c'"], [2]),
        (["year>=2020"], [1, 2, 4]),
        (["year >= 2020", "lang=de"], [1]),
        (["year=2020 "], [1, 4]),
        (["price<-1.5"], [1]),
        (["price > 1 and year == 2019"], [0]),
        (["day>=2024-01-04"], [3, 4]),
        (["free=true"], [0, 3]),
        (["`odd name`=c"], [2]),
        (["code=2019"], [0]),
        (["code="], [2]),
        (['code == "x=y"'], [1]),
        (["lang in ['de', 'fr'] or starts_with(code, 'it')"], [1, 3]),
        (["lang is None"], [2]),
        (["lang == code"], []),
    ],
)
def test_rows_are_chosen(texts, rows):
    condition = told(texts, ROWS.schema)
    assert np.flatnonzero(condition.mask(ROWS.select(list(condition.columns)))).tolist() == rows


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("land=en", "where names column 'land'; the table has lang, year"),
        ("land == 'en'", "where names column 'land'"),
        ("year=soon", "where .*'soon' is no value of int32"),
        ("lang", "where 'lang'|where .*neither true nor false"),
        ("__import__('os')", "where .*not allowed"),
        (
            "year = = 3",
            r"where 'year = = 3' is no condition: write such as tags=budget, .* or \"contains\(tags, 'budget'\)\"$",
        ),
        ("code like '%budget%'", r"is no condition: write such as code=budget, .* or \"contains\(code, 'budget'\)\"$"),
        ("lang in 'en'", r"'en' is no list of values: write such as lang=budget"),
    ],
)
def test_what_is_no_condition_is_told(text, message):
    with pytest.raises(InputError, match=message) as told_of:
        told([text], ROWS.schema)
    assert "source.where" not in str(told_of.value)
    assert len(str(told_of.value)) < 200


SPACES, NAMES = st.sampled_from(["", " ", "  "]), st.sampled_from(["lang", "odd-name", "größe", "a.b"])
VALUES = st.text(st.characters(codec="utf-8", exclude_characters="=\"'`"), max_size=9).map(str.strip)


@given(
    NAMES,
    VALUES,
    st.tuples(SPACES, SPACES, SPACES, SPACES),
    st.sampled_from(["=", "=="]),
    st.sampled_from(["", "'", '"']),
)
def test_a_pair_is_read_however_it_is_spaced_and_quoted(name, value, spaces, sign, quote):
    a, b, c, d = spaces
    assert pair(f"{a}{name}{b}{sign}{c}{quote}{value}{quote}{d}") == (name, value)
    assert pair(f"{a}`{name}`{b}{sign}{c}{value}") == (name, value)


def test_what_is_no_pair_is_none():
    for text in ("lang", "year >= 2020", "year != 3", "= 3", "a b = c", "a === b", "lang in ['en']"):
        assert pair(text) is None


def test_a_question_is_no_condition():
    for text in (
        "lang=en",
        "n >= 3",
        "lang = 'e n'",
        "`odd name` = x",
        "contains(a, 'b')",
        "a in ['x', 'y']",
        "not (a == 1)",
    ):
        assert is_condition(text), text
    for text in (
        "budget",
        "cats and dogs",
        "who is in Berlin",
        "why?",
        "",
        "f(x)",
        "what = the",
        "is it 3 > 2?",
        "a in b",
    ):
        assert is_condition(text) == (text == "what = the"), text


def test_no_condition_is_none_and_values_are_equal():
    assert told([], ROWS.schema) is None
    assert equal_to({}) is None
    assert np.flatnonzero(equal_to({"lang": "en", "year": 2019}).mask(ROWS)).tolist() == [0]
