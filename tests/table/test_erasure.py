"""An erasure is complete, or says that it is not: nothing below the table decodes to the row once a purge says that it is."""

import io
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import CommitConflict, GateFailed, InputError
from pipeline.storage import Folder
from pipeline.table import clock, layout, materialise, snapshot
from pipeline.table.operations import purge, restore, vacuum
from pipeline.table.operations.purge import Purged
from pipeline.table.publication import Publication
from tests.table.histories import build, check_named
from tests.table.test_publish import Crash, Crashing, make_unit, stage

OTHERS = {"a": ["1x", "2y"], "b": ["3x"]}
HERS = {"c": ["4x", "aliceQ"]}
"""Her partition is `day=Q`, and hers alone."""


def traces(table: Folder) -> list[str]:
    """Files that tell of her anywhere: in a name, in a value, in statistics, or in what can't be read."""
    return [info.path for info in table.list(temporary=True) if tells(info.path, table.read(info.path) or b"")]


def tells(path: str, content: bytes) -> bool:
    if content[:4] == b"PAR1":
        try:
            rows, known = pq.read_table(io.BytesIO(content)), pq.read_metadata(io.BytesIO(content))
        except pa.ArrowException:
            return True
        statistics = [known.row_group(number).to_dict() for number in range(known.num_row_groups)]
        content = f"{rows.to_pylist()} {known} {statistics}".encode()
    return any(word in content or word in path.encode() for word in (b"alice", b"ALICE", b"day=Q", b'"Q"'))


def erase(table: Folder) -> list[Purged]:
    """Purge her until nothing is found any more; what each purge says of itself is checked."""
    done: list[Purged] = []
    while True:
        try:
            done.append(purge.purge(table, ["aliceQ"]))
        except InputError:
            assert traces(table) == []
            return done
        if done[-1].left:
            return done
        # Those who follow the changes are told that she is gone, once.
        assert {os.path.dirname(path) + "/" for path in traces(table)} <= {layout.changes(done[-1].version)}


def forsaken(monkeypatch) -> None:
    """Whatever was written until now is old enough that nobody writes it still."""
    now = clock.now
    monkeypatch.setattr(clock, "now", lambda table: now(table) + 2 * clock.WRITING_S)


@pytest.mark.parametrize("versions", [0, 1])
def test_whatever_a_dead_attempt_left_is_erased(versions, tmp_path, monkeypatch):
    """The run dies before each third of its changes to the store; where she was published she is purged like any row."""
    for changes in range(0, 100, 3):
        table = Folder(str(tmp_path / str(changes)))
        if versions:
            build(table, OTHERS)
        try:
            build(Crashing(table.url).survive(changes), {**OTHERS, **HERS})
            finished = True
        except Crash:
            finished = False
        done = erase(table)
        if done and done[-1].left:
            # Before the first version nobody can tell a run that died from one under way, but by its silence.
            assert not snapshot.versions(table)
            assert traces(table)
            with monkeypatch.context() as later:
                forsaken(later)
                erase(table)
        assert traces(table) == [], changes
        check_named(table, materialise.finish(table))
        if finished:
            return
    raise AssertionError


@pytest.mark.parametrize("versions", [0, 1])
def test_what_a_refused_attempt_merged_is_erased(versions, tmp_path, monkeypatch):
    table = Folder(str(tmp_path))
    if versions:
        build(table, OTHERS)
    with pytest.raises(GateFailed, match="share their id"):
        build(table, {**OTHERS, **HERS, "d": ["aliceQ"]})
    assert any("merged/" in path for path in traces(table))
    forsaken(monkeypatch)
    erase(table)
    assert traces(table) == []


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


@pytest.mark.parametrize("cut", [bytes, half], ids=["whole", "torn"])
@pytest.mark.parametrize(
    "folder", ["data/day=Q", "staging/parts/00", "staging/publications/00/merged", "meta/trash/000002"]
)
def test_an_unfinished_file_is_erased_or_counted(cut, folder, tmp_path, monkeypatch):
    table = Folder(str(tmp_path))
    build(table, OTHERS)
    other = Folder(str(tmp_path / "other"))
    staged = stage(other, make_unit("c", 7), ["aliceQ"]).parts[0]
    content = cut(other.read(staged.path))
    shutil.rmtree(tmp_path / "other")
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    unfinished = tmp_path / folder / ".tmp-0"
    unfinished.write_bytes(content)
    (done,) = erase(table)
    assert (done.rows, done.files, done.left) == (0, 0, 1)
    forsaken(monkeypatch)
    (done,) = erase(table)
    assert (done.files, done.left, unfinished.exists()) == (1, 0, False)


def test_lists_of_older_versions_lose_her_partition_and_keep_those_of_others(tmp_path):
    table = Folder(str(tmp_path))
    build(table, OTHERS)
    build(table, {**OTHERS, **HERS})
    build(table, {**OTHERS, **HERS, "d": ["6z"]})
    assert sum(path.startswith("meta/parts/") for path in traces(table)) == 2
    erase(table)
    before, *older = (snapshot.read(table, number) for number in (1, 2, 3))
    assert {value for part in before.parts for _, value in part.partition} == {"x", "y"}
    for version in older:
        assert {value for part in version.parts for _, value in part.partition} >= {"x", "y", None}
        assert version.counts.rows == sum(part.rows for part in version.parts)
    with pytest.raises(InputError, match="cleaned away or purged"):
        restore.roll_back(table, 2)
    vacuum.clean(table, 0)
    check_named(table, materialise.finish(table))


def test_a_late_materialiser_does_not_bring_her_back(tmp_path):
    """One that was stopped amid a version copies a part of hers into data/ after she was purged."""
    table = Folder(str(tmp_path))
    version = build(table, {**OTHERS, **HERS})
    (part,) = (part for part in version.parts if dict(part.partition)["day"] == "Q")
    content = table.read(part.path)
    erase(table)
    table.write(part.path, content)
    materialise.finish(table)
    assert traces(table) == []


def test_what_a_run_under_way_staged_since_is_told(tmp_path, monkeypatch):
    table = Folder(str(tmp_path))
    build(table, {**OTHERS, **HERS})
    finish = materialise.materialise

    def and_then_a_run_stages(place, version):
        stage(place, make_unit("again", 9), ["aliceQ"])
        return finish(place, version)

    monkeypatch.setattr(materialise, "materialise", and_then_a_run_stages)
    assert purge.purge(table, ["aliceQ"]).left == 1
    monkeypatch.setattr(materialise, "materialise", finish)
    assert Path(table.url, "staging").exists()
    erase(table)
    assert traces(table) == []


def test_rows_that_a_dead_reindex_wrote_and_nothing_else_knows_are_erased(tmp_path):
    """Their text had a vector already, so nothing was encoded; a new version closes the attempt, which can't publish them."""
    table = Folder(str(tmp_path))
    current = build(table, OTHERS)
    attempt = Publication(table, current)
    other = Folder(str(tmp_path / "other"))
    part = stage(other, make_unit("c", 7), ["aliceQ"]).parts[0]
    table.write(attempt.staged("rows", 0), other.read(part.path))
    shutil.rmtree(tmp_path / "other")
    (done,) = erase(table)
    assert (done.version, done.rows, done.files, done.left) == (2, 0, 1, 0)
    with pytest.raises(CommitConflict):
        attempt.check_current()
