import base64
import datetime
import json
import tempfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sources.formats.reading import rows_of


def read(kind: pa.DataType, *values: str) -> tuple[list[Any], list[str]]:
    """The good values, and what is wrong with the others; `values` are JSON."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.jsonl"
        path.write_text("".join(f'{{"text": "x", "k": {value}}}\n' for value in values))
        good, bad = rows_of(path, pa.schema([("text", pa.string()), ("k", kind)]))
    return [row["k"] for row in good], [error.removeprefix("column 'k': ") for _, error in bad]


UTC = datetime.UTC
LASTS = st.timedeltas(datetime.timedelta(days=-(10**8)), datetime.timedelta(days=10**8))


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (pa.date32(), '"2020-01-31"', datetime.date(2020, 1, 31)),
        (pa.timestamp("us"), '"2020-01-31T12:00:00.000001"', datetime.datetime(2020, 1, 31, 12, 0, 0, 1)),
        (pa.timestamp("ms", "UTC"), '"2020-01-31T12:00:00+02:00"', datetime.datetime(2020, 1, 31, 10, tzinfo=UTC)),
        (pa.time64("us"), '"12:30:00.5"', datetime.time(12, 30, 0, 500_000)),
        (pa.duration("ms"), '"-P1DT2H3.5S"', -datetime.timedelta(days=1, hours=2, seconds=3.5)),
        (pa.decimal128(9, 2), '"1.50"', Decimal("1.50")),
        (pa.decimal128(9, 2), "7", Decimal("7.00")),
        (pa.decimal128(9, 2), "1.10", Decimal("1.10")),
        (pa.decimal256(50, 20), "0.1000000000000000055", Decimal("0.10000000000000000550")),
        (pa.binary(), '"AP8="', b"\x00\xff"),
        (pa.large_binary(), '""', b""),
        (pa.binary(2), '"AP8="', b"\x00\xff"),
        (pa.large_string(), '"é"', "é"),
        (pa.dictionary(pa.int32(), pa.string()), '"é"', "é"),
        (pa.map_(pa.string(), pa.int64()), '{"a": 1, "b": null}', [("a", 1), ("b", None)]),
        (
            pa.map_(pa.date32(), pa.decimal128(4, 1)),
            '{"2020-01-31": 1.5}',
            [(datetime.date(2020, 1, 31), Decimal("1.5"))],
        ),
        (pa.map_(pa.int64(), pa.string()), '[[1, "a"]]', [(1, "a")]),
        (pa.list_(pa.date32()), '["2020-01-31", null]', [datetime.date(2020, 1, 31), None]),
        (pa.large_list(pa.decimal128(4, 1)), "[1.5]", [Decimal("1.5")]),
        (pa.struct([("at", pa.time32("s"))]), '{"at": "12:30:00"}', {"at": datetime.time(12, 30)}),
    ],
)
def test_types_that_json_has_not_are_read_from_strings(kind: pa.DataType, value: str, expected: Any) -> None:
    assert read(kind, value, "null") == ([expected, None], [])


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (pa.date32(), '"2020-02-30"'),
        (pa.date32(), "18262"),
        (pa.date32(), '""'),
        (pa.timestamp("us"), '"2020-01-31T12:00:00Z"'),
        (pa.timestamp("s"), '"2020-01-31T12:00:00.5"'),
        (pa.timestamp("us", "UTC"), "0"),
        (pa.time32("s"), '"12:30:00.5"'),
        (pa.duration("s"), '"PT0.5S"'),
        (pa.duration("s"), '"P1Y"'),
        (pa.duration("s"), '"P"'),
        (pa.decimal128(9, 2), "1.505"),
        (pa.decimal128(9, 2), '"1.505"'),
        (pa.decimal128(3, 2), "10"),
        (pa.decimal128(9, 2), "1e30"),
        (pa.decimal128(9, 2), "true"),
        (pa.binary(), '"AP8"'),
        (pa.binary(3), '"AP8="'),
        (pa.map_(pa.string(), pa.int64()), '{"a": "1"}'),
        (pa.map_(pa.string(), pa.int64()), '[["a"]]'),
        (pa.map_(pa.string(), pa.int64()), "[[null, 1]]"),
        (pa.map_(pa.string(), pa.int64()), '"a"'),
        (pa.float16(), "1e6"),
    ],
)
def test_a_value_that_does_not_fit_is_a_bad_row(kind: pa.DataType, value: str) -> None:
    good, bad = read(kind, value)
    assert good == []
    assert len(bad) == 1


@settings(max_examples=200, deadline=None)
@given(st.decimals(allow_nan=False, allow_infinity=False, places=4, min_value=-(10**14), max_value=10**14))
def test_a_decimal_is_what_was_written(value: Decimal) -> None:
    kind = pa.decimal128(20, 4)
    assert read(kind, str(value), json.dumps(str(value))) == ([value, value], [])


@settings(max_examples=200, deadline=None)
@given(st.datetimes(), st.binary(max_size=20), LASTS)
def test_what_arrow_writes_is_read_back(at: datetime.datetime, content: bytes, lasts: datetime.timedelta) -> None:
    assert read(pa.timestamp("us"), json.dumps(at.isoformat())) == ([at], [])
    assert read(pa.date32(), json.dumps(at.date().isoformat())) == ([at.date()], [])
    assert read(pa.time64("us"), json.dumps(at.time().isoformat())) == ([at.time()], [])
    assert read(pa.binary(), json.dumps(base64.b64encode(content).decode())) == ([content], [])
    microseconds = lasts // datetime.timedelta(microseconds=1)
    sign, (seconds, rest) = "-" if microseconds < 0 else "", divmod(abs(microseconds), 10**6)
    assert read(pa.duration("us"), f'"{sign}PT{seconds}.{rest:06}S"') == ([lasts], [])
