"""Time and price by the rate of earlier versions."""

from dataclasses import replace

import pytest

from pipeline.runs.estimate import estimate, rate
from pipeline.table import snapshot
from pipeline.table.snapshot import Counts, Snapshot


def version(number: int, tokens: int, flow: float | None, start: float = 0.0) -> Snapshot:
    timings = {"start": start} | ({"flow": flow, "tokens_per_s": tokens / flow} if flow else {})
    return replace(snapshot.empty(), version=number, counts=Counts(tokens=tokens), timings=timings)


FULL, NIGHT, ROLLED_BACK = version(1, 360_000, 100.0, 8.0), version(2, 900, 1.0, 7.0), version(3, 0, None)


def test_time_is_start_and_tokens_by_the_rate_and_price_is_of_that_time():
    found = estimate(3600 * 36, [FULL], price_per_hour=180.0)
    assert found.seconds == pytest.approx(8 + 36)
    assert found.price == pytest.approx(180 * 44 / 3600)
    assert str(found) == "about 129,600 tokens to encode, 44 s at the 3,600 tokens/s of version 1, price 2.20"
    assert found.to_dict()["rate"] == {"version": 1, "tokens_per_s": 3600.0, "start_s": 8.0}
    assert estimate(100, [FULL]).price is None
    assert "price" not in str(estimate(100, [FULL]))


def test_nothing_to_encode_takes_no_time():
    found = estimate(0, [FULL], 10.0)
    assert (found.seconds, found.price, str(found)) == (0.0, 0.0, "nothing to encode")


def test_a_table_that_tells_nothing_gives_no_number():
    for history in ([], [ROLLED_BACK], [version(1, 10, 0.0)]):
        found = estimate(1000, history, 10.0)
        assert (found.rate, found.seconds, found.price) == (None, None, None)
        assert str(found) == "about 1,000 tokens to encode; no version of this table tells how fast that is"


def test_the_latest_version_that_tells_counts():
    assert rate([FULL, NIGHT, ROLLED_BACK]).version == 1  # a second says little
    assert rate([FULL, version(4, 50_000, 10.0), NIGHT]).version == 4
    assert rate([version(1, 100, 2.0), NIGHT, ROLLED_BACK]).version == 1  # the longest of short ones
    assert rate([FULL, *[NIGHT] * 20]).version == 2  # what is long ago was another machine
