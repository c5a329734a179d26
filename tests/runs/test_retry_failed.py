"""Dead letters that are tried again: in the end the table is as if they had never failed, whatever stops the run."""

import json

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pipeline import plan
from pipeline.runs import embed as runs
from pipeline.storage import Folder
from pipeline.table import layout, snapshot
from pipeline.table.operations import purge
from tests.inline import Died, InProcess, embed, read_table, same_rows, spec_of

SHORT, LONG = 60, 1000
"""Bytes of `limits.max_row_bytes`: between them, a long row fails or not."""


def write_source(folder, kinds: str) -> None:
    """Two files, a row per letter: [s]hort, [l]ong, of no text at all [n], or no JSON [x]."""
    folder.mkdir(exist_ok=True)
    half = len(kinds) // 2
    for name, part, first in [("a.jsonl", kinds[:half], 0), ("b.jsonl", kinds[half:], half)]:
        lines = []
        for number, kind in enumerate(part, first):
            text = {"s": f"text {number}", "l": f"text {number} " + "and more " * 10, "n": None}.get(kind)
            lines.append("no json" if kind == "x" else json.dumps({"id": f"{number:03}", "text": text}))
        (folder / name).write_text("".join(f"{line}\n" for line in lines))


def letters(table: Folder, version: int) -> list[dict]:
    rows = [
        row
        for info in table.list(layout.dead_letters(version))
        for row in pq.read_table(f"{table.url}/{info.path}").to_pylist()
    ]
    return sorted(rows, key=lambda row: (row["path"], row["position"]))


@example(kinds="ln", unit_rows=1, chunked=False, deaths=[2, 0])
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kinds=st.text("slllnx", min_size=1, max_size=24),
    unit_rows=st.sampled_from([1, 3, 100]),
    chunked=st.booleans(),
    deaths=st.lists(st.integers(0, 3), max_size=2),
)
def test_a_table_whose_failed_rows_are_retried_is_that_of_a_run_in_which_they_never_failed(
    kinds, unit_rows, chunked, deaths, tiny_model, tmp_path_factory
):
    place = tmp_path_factory.mktemp("retry")
    kinds = f"s{kinds}"  # a source without any text is refused
    write_source(place / "source", kinds)
    chunk = {"max_tokens": 12} if chunked else None

    def spec(table, max_row_bytes):
        limits = {"unit_rows": unit_rows, "max_row_bytes": max_row_bytes, "max_failed_rows": 1000}
        return spec_of(place / "source", tiny_model, place / table, chunk=chunk, limits=limits)

    wanted = embed(spec("wanted", LONG))
    before = embed(spec("table", SHORT))
    assert before.counts.failed == sum(kind != "s" for kind in kinds)
    retried = spec("table", LONG)
    assert embed(retried).version == before.version
    assert plan(retried, retry_failed=True).rows_to_retry == before.counts.failed
    current = before.version
    for stop_after in deaths:
        try:
            current = embed(retried, retry_failed=True, stop_after=stop_after).version  # beyond its end it publishes
        except Died:
            assert embed(retried).version == current
    after = embed(retried, retry_failed=True)
    assert after.version == before.version + ("l" in kinds)
    if wanted.counts.rows:
        same_rows(read_table(place / "table"), read_table(place / "wanted"))
    assert (after.counts.rows, after.counts.documents) == (wanted.counts.rows, wanted.counts.documents)
    assert (after.counts.failed, after.counts.skipped) == (wanted.counts.failed, wanted.counts.skipped)
    if "l" in kinds:
        assert (after.counts.failed_new, after.counts.changed, after.counts.deleted) == (0, 0, 0)
        assert after.counts.new == wanted.counts.rows - before.counts.rows
        assert after.counts.reused == before.counts.rows
    table, other = Folder(str(place / "table"), {}), Folder(str(place / "wanted"), {})
    assert letters(table, after.version) == letters(other, wanted.version)
    assert after.tallies() == wanted.tallies()
    live = {unit for part in after.parts for unit in part.units}
    assert live <= after.live_units()
    again = embed(retried, retry_failed=True)
    assert again.version == after.version
    assert [info.path for info in table.list(layout.STAGING) if layout.staged_unit(info.path)] == []


def test_rows_of_a_dropped_unit_are_not_retried_and_others_change_with_the_source(tiny_model, tmp_path):
    write_source(tmp_path / "source", "slls")
    limits = {"unit_rows": 2, "max_row_bytes": SHORT, "max_failed_rows": 1000}
    embed(spec_of(tmp_path / "source", tiny_model, tmp_path / "table", limits=limits))
    (tmp_path / "source" / "b.jsonl").write_text(json.dumps({"id": "new", "text": "new"}) + "\n")
    spec = spec_of(tmp_path / "source", tiny_model, tmp_path / "table", limits=limits | {"max_row_bytes": LONG})
    counts = runs.embed(spec, InProcess(), retry_failed=True).counts
    assert read_table(tmp_path / "table")["id"].to_pylist() == ["000", "001", "new"]
    assert (counts.failed, counts.new, counts.deleted) == (0, 2, 1)


def test_what_was_purged_is_not_tried_again(tiny_model, tmp_path):
    (tmp_path / "source").mkdir()
    rows = [{"id": "a", "text": None}, {"id": "b", "text": None}, {"id": "c", "text": "c"}]
    (tmp_path / "source" / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = spec_of(tmp_path / "source", tiny_model, tmp_path / "table", limits={"max_failed_rows": 1000})
    embed(spec)
    purge.purge(Folder(str(tmp_path / "table"), {}), ["a"])
    assert plan(spec, retry_failed=True).rows_to_retry == 1
    assert embed(spec, retry_failed=True).version == 2
    assert snapshot.current(Folder(str(tmp_path / "table"), {})).counts.failed == 1


@pytest.mark.parametrize("retry_failed", [False, True])
def test_a_table_without_dead_letters_has_nothing_to_do(retry_failed, tiny_model, tmp_path):
    write_source(tmp_path / "source", "sss")
    spec = spec_of(tmp_path / "source", tiny_model, tmp_path / "table")
    embed(spec)
    assert not plan(spec, retry_failed=retry_failed).changes_pending
    assert embed(spec, retry_failed=retry_failed).version == 1


@pytest.mark.parametrize("rule", [{"where": "lang == 'en'"}, {"on_null": "skip"}])
def test_a_row_that_is_left_out_now_that_it_can_be_read_is_no_dead_letter_and_keeps_no_other_back(
    rule, tiny_model, tmp_path
):
    (tmp_path / "source").mkdir()
    filler = "and more " * 10
    rows = [
        {"id": "a", "text": "a", "lang": "en"},
        {"id": "b", "text": f"b {filler}", "lang": "en"},
        {"id": "c", "text": None, "lang": f"de {filler}"},
    ]
    (tmp_path / "source" / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def spec(table, max_row_bytes):
        limits = {"max_row_bytes": max_row_bytes, "max_failed_rows": 1000}
        return spec_of(tmp_path / "source", tiny_model, tmp_path / table, source=rule, limits=limits)

    wanted = embed(spec("wanted", LONG))
    assert embed(spec("table", SHORT)).counts.failed == 2
    after = embed(spec("table", LONG), retry_failed=True)
    same_rows(read_table(tmp_path / "table"), read_table(tmp_path / "wanted"))
    assert after.tallies() == wanted.tallies()
    assert (after.counts.failed, after.counts.skipped) == (0, 1)
    assert letters(Folder(str(tmp_path / "table"), {}), after.version) == []
    assert not plan(spec("table", LONG), retry_failed=True).changes_pending
