"""The hashes are pinned: a change here makes every table out there look new."""

import datetime
import decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import identity
from pipeline.arrays import cast_exactly
from pipeline.sources.column_types import plain_type
from pipeline.table.calibration import Calibration
from pipeline.work import SourceFile, Span
from tests.arrows import ALL, arrays

FILE = SourceFile(path="/data/a.parquet", size=10, version="10-1", format="parquet")


def span(start: int = 0, stop: int = 1, file: SourceFile = FILE) -> Span:
    return Span(file=file, kind="row_groups", start=start, stop=stop, rows=5)


def test_golden_content_hash():
    hashes = identity.content_hashes(pa.array(["hello", ""]), "query: ").to_pylist()
    assert [value.hex() for value in hashes] == [
        "5a02909bd86e3073e471ffad8661e539",
        "4be9899f6423ae15b4e23917cd206455",
    ]


def test_golden_row_hash():
    rows = pa.table({"title": ["a", None], "n": pa.array([1, None], pa.int64()), "x": [1.5, -0.0]})
    assert identity.row_hashes(rows).to_pylist() == [8673820031008100414, -662685111241768337]


def test_golden_unit_id_and_fingerprint():
    assert identity.unit_id([span()], "output", "model") == "9cc3c1b38e76734ccba96021e5a0f889"
    assert (
        identity.digest(identity.vectors_spec({"model": "m", "prompt": ""}, "float32", None))
        == "a909557cf50c74ad7027e2a6882d307c"
    )


def test_golden_retry_id():
    rows = [(0, 5), (1, 0)]
    assert identity.retry_id("9cc3", rows) == "b52ceab74ed6017e4bfc8f56f8bf4796"
    assert len({identity.retry_id(unit, found) for unit in ("a", "b") for found in (rows, rows[:1], [(0, 6)])}) == 6


def test_golden_fingerprint_of_an_int8_table():
    ranges = Calibration(rows=3, minimum=(-1.0, 0.0, -(2**-149)), maximum=(np.float32(0.1).item(), 0.0, 3.0e38))
    assert ranges.digest == "847813025c6b3a3021756bb457e67fbc"
    spec = identity.vectors_spec({"model": "m", "prompt": ""}, "int8", None, ranges.digest)
    assert identity.digest(spec) == "ace3b6028b8699d3a53146cd730c863b"
    uncalibrated = identity.vectors_spec({"model": "m", "prompt": ""}, "int8", None)
    assert identity.digest(uncalibrated) == "ae1f080bb5d10cdc3f6923fe5186b827"


def test_the_content_hash_covers_exactly_prompt_and_text():
    one = identity.content_hashes(pa.array(["b c"]), "a ")
    other = identity.content_hashes(pa.array(["a b c"]), "")
    assert one.equals(other)


def test_the_type_that_holds_a_text_does_not_matter():
    texts = ["x", "é", ""]
    expected = identity.content_hashes(pa.array(texts, pa.string()), "")
    assert identity.content_hashes(pa.array(texts, pa.large_string()), "").equals(expected)
    assert identity.content_hashes(pa.chunked_array([texts[:1], texts[1:]]), "").equals(expected)


def test_a_row_hash_sees_null_apart_from_empty_and_borders_between_columns():
    rows = [("", None), (None, ""), ("ab", "c"), ("a", "bc"), ("", "")]
    table = pa.table({"a": pa.array([a for a, _ in rows]), "b": pa.array([b for _, b in rows])})
    assert len(set(identity.row_hashes(table).to_pylist())) == len(rows)


def test_every_arrow_type_of_a_kept_column_has_a_row_hash():
    values = [
        pa.array([datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC), None]),
        pa.array([decimal.Decimal("1.10"), decimal.Decimal("1.20")]),
        pa.array([[1, 2], None]),
        pa.array([{"a": 1, "b": "x"}, {"a": None, "b": "x"}]),
        pa.array([b"\xff", b""]),
        pa.array(["a", "b"]).dictionary_encode(),
        pa.array([True, None]),
        pa.array([1.0, 2.0], pa.float16()),
    ]
    for column in values:
        hashes = identity.row_hashes(pa.table({"x": column})).to_pylist()
        assert len(set(hashes)) == 2, column.type


def test_golden_row_hashes_of_nested_values_and_of_times():
    rows = pa.table(
        {
            "tags": [["a", None], None],
            "tree": [{"a": 1, "b": b"x"}, {"a": None, "b": b""}],
            "when": pa.array([1, None], pa.timestamp("us", "UTC")),
            "days": pa.array([[1], []], pa.list_(pa.int32())).cast(pa.list_(pa.date32())),
            "price": [decimal.Decimal("1.10"), None],
        }
    )
    assert identity.row_hashes(rows).to_pylist() == [-2719275310184219113, 1410317265918441379]


@pytest.mark.parametrize("kind", ALL, ids=str)
@settings(max_examples=5, deadline=None)
@given(data=st.data())
def test_a_row_hash_does_not_see_the_encoding(kind, data):
    column = data.draw(arrays(kind))
    plain = cast_exactly(column, plain_type(kind))
    # Nulls inside and NaN too; a slice is a column like any other.
    expected = identity.row_hashes(pa.table({"x": plain})).to_pylist()
    assert identity.row_hashes(pa.table({"x": column})).to_pylist() == expected
    assert (
        identity.row_hashes(pa.table({"x": pa.chunked_array([column.slice(0, 2), column.slice(2)])})).to_pylist()
        == expected
    )


@pytest.mark.parametrize(
    ("kinds", "values"),
    [
        ([pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())], ["a", "", None]),
        ([pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(2)], [b"ab", None]),
        (
            [pa.list_(pa.int8()), pa.large_list(pa.int64()), pa.list_view(pa.uint8()), pa.list_(pa.int16(), 2)],
            [[1, 2], None],
        ),
        ([pa.list_(pa.string()), pa.list_(pa.dictionary(pa.int32(), pa.string()), 1)], [["a"], [None], None]),
        ([pa.list_(pa.float16()), pa.list_(pa.float64())], [[0.5, None], []]),
        ([pa.float16(), pa.float32(), pa.float64()], [0.5, None]),
        ([pa.decimal32(5, 2), pa.decimal256(50, 2)], [decimal.Decimal("1.50"), None]),
    ],
    ids=lambda value: str(value[0]),
)
def test_equal_values_of_related_types_have_one_hash(kinds, values):
    hashes = [identity.row_hashes(pa.table({"x": pa.array(values, kind)})).to_pylist() for kind in kinds]
    assert all(found == hashes[0] for found in hashes)
    assert len(set(hashes[0])) == len(values)


def test_times_far_from_now_have_hashes_too():
    far = pa.array([2**62, -(2**62), None], pa.timestamp("us", "UTC"))
    nested = pa.ListArray.from_arrays(pa.array([0, 1, 2, 3], pa.int32()), far)
    for column in (
        far,
        nested,
        pa.array([[("a", value)] for value in range(3)], pa.map_(pa.string(), pa.duration("s"))),
    ):
        assert len(set(identity.row_hashes(pa.table({"x": column})).to_pylist())) == 3


@given(st.lists(st.text(), max_size=20))
def test_row_hashes_depend_on_the_row_alone(values):
    whole = identity.row_hashes(pa.table({"a": pa.array(values, pa.string())})).to_pylist()
    alone = [identity.row_hashes(pa.table({"a": pa.array([value], pa.string())}))[0].as_py() for value in values]
    assert whole == alone


def test_a_unit_changes_with_its_span_its_files_version_the_output_and_the_model():
    base = identity.unit_id([span()], "o", "f")
    newer = SourceFile(path=FILE.path, size=10, version="10-2", format="parquet")
    others = [
        identity.unit_id([span(0, 2)], "o", "f"),
        identity.unit_id([span(file=newer)], "o", "f"),
        identity.unit_id([span(), span(1, 2)], "o", "f"),
        identity.unit_id([span()], "p", "f"),
        identity.unit_id([span()], "o", "g"),
    ]
    assert len({base, *others}) == 6
