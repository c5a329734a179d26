"""A report shows what is in a table, says what it doesn't know, and lets nothing of the table become markup."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import pipeline
from jobs import report as job
from pipeline.config import RunSpec
from pipeline.errors import InputError
from pipeline.feed_spec import FeedSpec
from pipeline.reports import pool as pools
from pipeline.reports import report as reports
from pipeline.reports import vectors
from pipeline.reports.drift import Drift
from pipeline.reports.markup import shown
from pipeline.reports.plots import ticks
from pipeline.runs import embed as runs
from pipeline.runs.prepare import prepare
from pipeline.runs.summary import Summary, nothing_to_do
from pipeline.storage import Folder
from pipeline.table import layout, snapshot
from pipeline.table.operations import purge, vacuum
from pipeline.table.row_reader import RowReader
from tests.inline import InProcess, embed, read_table, spec_of, vectors_of
from tests.reports.tables import HOSTILE, rows, two_versions, write


@pytest.fixture(scope="module")
def spec(tmp_path_factory, tiny_model) -> RunSpec:
    return two_versions(tmp_path_factory.mktemp("report"), tiny_model)


@pytest.fixture(scope="module")
def made(spec) -> reports.Report:
    return pipeline.report(spec, price_per_hour=3.6, verify_rows=8)


def test_figures_are_those_of_the_table(spec, made):
    told = made.to_dict()
    assert [(one["rows"], one["new"], one["changed"], one["deleted"], one["failed"]) for one in told["versions"]] == [
        (32, 32, 0, 0, 1), (32, 1, 2, 1, 1)
    ]  # fmt: skip
    assert told["texts"]["tokens"]["most"] == max(read_table(spec.table.path)["n_tokens"].to_pylist())
    assert told["vectors"]["repeated_rows"] == 1
    assert told["dead_letters"]["reasons"][0]["count"] == 1
    assert told["checks"]["verified"]["passed"]
    assert told["versions"][0]["price"] == pytest.approx(made.figures.versions[0].wall_s / 1000)


def test_drift_compares_changed_rows_with_what_they_were(spec, made):
    drift = made.figures.drift
    assert isinstance(drift, Drift)
    assert drift.same_model
    assert len(drift.cosines) == 2
    table = Folder(spec.table.path)
    old, new = (pipeline.read(spec.table.path, version).to_table() for version in (1, 2))
    places = [[rows["id"].to_pylist().index(name) for name in ("d3", "d4")] for rows in (old, new)]
    first, second = (vectors_of(rows)[place] for rows, place in zip((old, new), places, strict=True))
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    assert sorted(drift.cosines) == pytest.approx(sorted((first * second).sum(axis=1) / lengths), abs=1e-6)
    assert snapshot.current(table).version == drift.before + 1


def test_nearest_rows_of_other_texts_are_found_by_brute_force(spec):
    table = Folder(spec.table.path)
    pool = pools.draw(RowReader(table, snapshot.current(table)))
    looked = vectors.look(pool)
    cosines = pool.unit @ pool.unit.T
    texts = np.array(pool.rows["content_hash"].to_pylist(), object)
    cosines[texts[:, None] == texts[None, :]] = -np.inf
    assert np.sort(looked.nearest) == pytest.approx(np.sort(np.minimum(cosines.max(axis=1), 1.0)), abs=1e-5)


def test_a_pool_of_a_larger_table_has_distinct_rows_of_it_and_says_that_it_is_a_sample(spec):
    table = Folder(spec.table.path)
    pool = pools.draw(RowReader(table, snapshot.current(table)), seed=3, most_rows=10)
    ids = pool.rows["id"].to_pylist()
    assert len(set(ids)) == 10
    assert set(ids) <= set(read_table(spec.table.path)["id"].to_pylist())
    assert str(pool).startswith("a sample of 10 of 32 rows, from")


def test_what_a_table_holds_never_becomes_markup(made):
    assert HOSTILE not in made.html
    assert "&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;" in made.html
    assert "<script" not in made.html
    assert not re.search(r"<[^>]+\s(?:on\w+|src|href)=(?!\"data:)", made.html)


def test_secrets_of_addresses_are_not_shown():
    assert shown("https://user:hunter2@host/x?X-Amz-Signature=abcdef") == "https://***@host/x?***"


def test_feeds_are_asked_and_one_that_shows_nothing_says_so(spec, tmp_path):
    feed = FeedSpec(store="files", url=str(tmp_path / "files"), name="docs", options={"format": "faiss"})
    told = reports.report(Folder(spec.table.path), replace(spec, feeds={"nightly": feed}))
    assert told.figures.feeds is not None
    assert (told.figures.feeds[0].shown, told.figures.feeds[0].problem) == (None, "it shows nothing of this table yet")
    assert ">nightly</td>" in told.html


def test_what_is_not_known_is_said(spec):
    alone = pipeline.report(spec.table.path).html
    assert "Only the table was given, which does not know its feeds" in alone
    assert "The price of the machines is not known" in alone
    assert "No row was encoded again for this report" in alone
    assert "there is none before it to compare with" in reports.report(Folder(spec.table.path), version=1).html


def test_a_table_without_rows_has_a_report(tmp_path, tiny_model):
    write(tmp_path / "a.jsonl", rows(3))
    empty = spec_of(tmp_path / "a.jsonl", tiny_model, tmp_path / "table", source={"where": 'id == "none"'})
    embed(empty)
    assert "The version has no rows to look at." in pipeline.report(empty).html


def test_the_command_writes_the_file(spec, tmp_path, capsys):
    assert job.main([str(spec.table.path), "--out", str(tmp_path / "r.html")]) == 0
    assert "a report on version 2" in capsys.readouterr().out
    assert (tmp_path / "r.html").read_text().startswith("<!doctype html>")
    with pytest.raises(InputError, match="can't be written"):
        job.main([str(spec.table.path), "--out", str(tmp_path / "missing" / "r.html")])
    with pytest.raises(InputError, match="no published version"):
        pipeline.report(str(tmp_path))


def test_a_run_leaves_a_report_that_readers_and_cleanings_do_not_see_and_a_purge_deletes(tmp_path, tiny_model):
    write(tmp_path / "a.jsonl", rows(5))
    spec = spec_of(
        tmp_path / "a.jsonl", tiny_model, tmp_path / "table", table={"report": True}, limits={"max_failed_rows": 0.5}
    )
    summary = reports.leave(spec, runs.embed(spec, InProcess()))
    table, path = Folder(spec.table.path), layout.report(1)
    assert table.size(path)
    assert summary.notes[-1] == f"a report is in {table.url}/{path}"
    assert read_table(spec.table.path).num_rows == 7
    vacuum.clean(table, 0.0)
    assert table.size(path)
    purge.purge(table, ["d0"])
    assert table.size(path) is None


def test_a_report_that_fails_is_a_note(spec, monkeypatch):
    table = Folder(spec.table.path)
    monkeypatch.setattr(reports.page, "page", lambda figures: 1 / 0)
    summary = _summary(spec)
    wanted = replace(spec, table=replace(spec.table, report=True))
    assert "no report was left in" in reports.leave(wanted, summary).notes[-1]
    assert table.size(layout.report(2)) is None


def test_a_report_of_a_version_that_was_overtaken_is_taken_back(spec):
    wanted = replace(spec, table=replace(spec.table, report=True))
    told = reports.leave(wanted, replace(_summary(spec), version=1)).notes[-1]
    assert "a later version than 1 was published" in told
    assert Folder(spec.table.path).size(layout.report(1)) is None


@pytest.mark.slow
def test_the_functions_leave_a_report(tmp_path, tiny_model):
    write(tmp_path / "a.jsonl", rows(5)[:-1])
    spec = spec_of(tmp_path / "a.jsonl", tiny_model, tmp_path / "table", table={"report": True})
    assert pipeline.embed(spec).notes[-1].startswith("a report is in")
    write(tmp_path / "a.jsonl", rows(6)[:-1])
    assert pipeline.reindex(spec).notes[-1].startswith("a report is in")


def _summary(spec: RunSpec) -> Summary:
    return replace(nothing_to_do(prepare(spec, writes=False)), published=True)


def test_scales_have_round_numbers_within_them():
    assert ticks(0.0, 1.0) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(-0.21, 0.97) == pytest.approx([-0.2, 0, 0.2, 0.4, 0.6, 0.8])
    assert ticks(3.0, 257.0) == pytest.approx([50, 100, 150, 200, 250])
    assert Path(reports.__file__).with_name("page.html").exists()
