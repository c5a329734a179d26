"""The suite of nights can fail: what it compares is told when it is harmed, and its points are the seed's own."""

import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.storage import Folder
from pipeline.table import layout, snapshot
from tests import inline
from tests.chaos import nights
from tests.chaos.nights import Night, Run, Standing

NIGHT = Night(number=0, kind=nights.REINDEX, victim="driver", share=0.5, beside=0.5, on_ray=False)


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Run:
    """A night that nothing struck."""
    folder = tmp_path_factory.mktemp("standing")
    (folder / "night").mkdir()
    run = Run(night=NIGHT, folder=folder / "night", standing=Standing(folder))
    run.set_up()
    spec = inline.spec_of(
        run.standing.corpus,
        run.standing.model(NIGHT),
        run.table,
        table={"partition_by": ["label"]},
        limits={"unit_rows": nights.UNIT_ROWS},
    )
    inline.reindex(spec)
    return run


@pytest.fixture
def harmed(done: Run, tmp_path: Path) -> Run:
    shutil.copytree(done.folder, tmp_path / "night")
    config = (done.folder / "config.yaml").read_text().replace(str(done.table), str(tmp_path / "night" / "table"))
    (tmp_path / "night" / "config.yaml").write_text(config)
    return replace(done, folder=tmp_path / "night")


def test_a_night_that_nothing_struck_passes(done):
    assert nights.faults(done, done.standing.expected(NIGHT)) == []


def test_a_row_less_and_a_file_more_are_faults(done, harmed):
    expected = done.standing.expected(NIGHT)
    part = snapshot.current(Folder(str(harmed.table))).parts[0].path
    rows = pq.read_table(harmed.table / part, partitioning=None)
    pq.write_table(rows.slice(1), harmed.table / part)
    assert any("rows instead of" in fault for fault in nights.faults(harmed, expected))
    (harmed.table / "data" / "more.parquet").write_bytes((done.table / part).read_bytes())
    assert "data/more.parquet is no part of the version" in nights.faults(harmed, expected)


def test_a_change_that_is_not_told_is_a_fault(done, harmed):
    table = Folder(str(harmed.table))
    changes = table.list(layout.changes(snapshot.current(table).version))[0].path
    rows = pq.read_table(harmed.table / changes, partitioning=None)
    pq.write_table(rows.slice(1), harmed.table / changes)
    found = nights.faults(harmed, done.standing.expected(NIGHT))
    assert any("the lists of changes tell other things of 1 rows" in fault for fault in found)


def test_another_model_and_an_older_version_expect_other_rows(done):
    standing = done.standing
    rolled_back = standing.expected(replace(NIGHT, kind=nights.ROLLBACK))
    tonight = standing.expected(NIGHT)
    other = standing.expected(replace(NIGHT, kind=nights.NEW_MODEL))
    assert rolled_back["id"].to_pylist() != tonight["id"].to_pylist() == other["id"].to_pylist()
    assert not tonight["embedding"].equals(other["embedding"])


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_nights_are_the_seeds_own_and_strike_every_kind_of_command(seed):
    points = nights.nights(50, seed)
    assert nights.nights(7, seed) == points[:7]
    assert points != nights.nights(50, seed + 1)
    assert {night.kind for night in points[:6]} == set(nights.KINDS)
    assert {night.victim for night in points} == {"driver", "worker"}
    assert {night.on_ray for night in points} == {True, False}
