"""Deletions up to the limit pass, more are refused in words; so are failed rows, by units and by row."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import GateFailed, RunError
from pipeline.runs.guard import check_deletion_limit
from tests import inline
from tests.inline import spec_of


def refused(rows: int, deleted: int, limit: float, allowed: bool = False) -> str:
    try:
        check_deletion_limit("/t", rows=rows, deleted=deleted, files=3, limit=limit, allowed=allowed)
    except GateFailed as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("rows", "deleted", "limit", "passes"),
    [
        (0, 0, 0.2, True),
        (1000, 0, 0, True),
        (1000, 1, 0, False),
        (1000, 200, 0.2, True),
        (1000, 201, 0.2, False),
        (1000, 1000, 0.999, False),
        (10, 2, 0.2, True),
        (10, 3, 0.2, False),
        (10**9, 5000, 5000, True),
        (10**9, 5001, 5000, False),
        (3, 3, 1, False),
        (3, 1, 1, True),
    ],
)
def test_the_limit_is_a_share_below_one_and_else_a_count(rows, deleted, limit, passes):
    assert (refused(rows, deleted, limit) == "") is passes
    assert refused(rows, deleted, limit, allowed=True) == ""


def test_the_message_says_what_is_wrong_and_what_to_do():
    assert refused(2000, 1500, 0.2) == (
        "1,500 rows, 75.0% of the 2,000 of table /t, are no longer in its 3 source files, and limits.max_deleted_rows is 0.2: "
        "nothing was published. If files are missing, bring them back and start again; if the rows are to go, add "
        "--allow-deletes"
    )
    assert "2,000 rows, all the 2,000 of" in refused(2000, 2000, 0.2)


@given(st.integers(1, 10**9), st.data(), st.floats(0, 10, allow_nan=False))
def test_fewer_deletions_never_fare_worse(rows, data, limit):
    more = data.draw(st.integers(0, rows))
    fewer = data.draw(st.integers(0, more))
    assert refused(rows, more, limit) or not refused(rows, fewer, limit)


@pytest.mark.parametrize("publish", [inline.embed, inline.reindex], ids=["by units", "by row"])
def test_a_version_with_too_many_failed_rows_is_refused(publish, tmp_path, tiny_model):
    source = tmp_path / "docs.jsonl"

    def spec(limit):
        return spec_of(source, tiny_model, tmp_path / "table", limits={"max_failed_rows": limit})

    def write(*texts):
        source.write_text("".join(json.dumps({"id": str(row), "text": text}) + "\n" for row, text in enumerate(texts)))

    write("one", "two", "three")
    assert inline.embed(spec(0)).version == 1
    write("one", "two", "three", None)
    with pytest.raises(RunError, match=r"max_failed_rows allows 0\.2: nothing was published"):
        publish(spec(0.2))
    assert publish(spec(0.25)).version == 2
