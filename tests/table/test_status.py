"""How a table stands, told at every moment of its life; looking changes nothing."""

import pyarrow as pa
import pytest

from pipeline import schema
from pipeline.errors import InputError
from pipeline.storage import Folder
from pipeline.table import dead_letters, layout, lease, materialise, snapshot
from pipeline.table.operations import restore
from pipeline.table.status import files, status
from tests.table.test_publish import Crash, Crashing, make_unit, publish, stage

DESIRED = [{"a": ["1x", "2y"], "b": ["3x"]}, {"b": ["3x"], "c": ["1x", "5z"]}]


def read_only(path) -> Folder:
    """Dies of the first change to the store."""
    return Crashing(str(path), {}).survive(0)


def test_at_every_moment_of_a_publish_the_status_is_that_of_the_committed_version(tmp_path):
    deaths, pending = 0, 0
    while True:
        folder = tmp_path / str(deaths)
        table = Folder(str(folder), {})
        publish(table, DESIRED[0], failed=1)
        try:
            publish(Crashing(str(folder), {}).survive(deaths), DESIRED[1], failed=1)
            finished = True
        except Crash:
            finished = False
        current = snapshot.current(table)
        found = status(read_only(folder))
        last = found.versions[-1]
        assert (last.version, last.rows, last.failed) == (current.version, 3, 2)
        # Dead letters and files are told though the version's publisher didn't live to put them in their place.
        assert found.failed_by_stage == {"read": 2}, f"after {deaths} changes"
        assert (found.live_files, found.held) == (len(current.parts), False)
        assert last.materialised == (table.size(layout.done(current.version)) is not None)
        pending += not last.materialised
        listed = files(read_only(folder), current.version)
        assert sum(row["rows"] for row in listed) == 3
        for row in listed:
            assert table.size(row["place"]) == row["bytes"]
        materialise.finish(table)
        assert status(table).versions[-1].materialised
        if finished:
            break
        deaths += 1
    assert pending > 5


def test_who_works_on_the_table_is_told(tmp_path):
    table = Folder(str(tmp_path), {})
    publish(table, DESIRED[0])
    assert status(read_only(tmp_path)).worked_on is None
    with lease.held(table, "reindex") as held:
        found = status(read_only(tmp_path))
        assert (found.worked_on["work"], found.worked_on["pid"]) == ("reindex", held.owner.pid)
        assert f"  at work    reindex, process {held.owner.pid} on " in str(found)
    assert "at work" not in str(status(read_only(tmp_path)))


def test_staged_work_the_trash_and_orphans_are_counted(tmp_path):
    table = Folder(str(tmp_path), {})
    with pytest.raises(InputError, match=r"has no version yet$"):
        status(table)
    stage(table, make_unit("early", 0), ["9x"])
    with pytest.raises(InputError, match="no version yet; staging holds 1 finished slice of"):
        status(table)
    for desired in DESIRED:
        publish(table, desired)
    table.write("data/day=x/part-000002-99999-dead.parquet", b"orphan")
    table.write(f"{layout.publication('dead')}merged/000000.parquet", b"123")
    found = status(read_only(tmp_path))
    assert found.orphan_bytes == len(b"orphan")
    assert (found.orphan_files, found.staged.records, found.staged.units, found.staged.publications) == (1, 1, 1, 1)
    staged = [info for info in table.list(layout.STAGING) if "probe" not in info.path]
    assert (found.staged.files, found.staged.bytes) == (len(staged), sum(info.size for info in staged))
    trash = table.list(layout.TRASH)
    assert (found.trash_files, found.trash_bytes) == (len(trash), sum(info.size for info in trash))
    assert trash
    assert {row["place"] for row in files(table, 1)} >= {info.path for info in trash}
    table.delete(info.path for info in trash)
    assert [row["place"] for row in files(table, 1)].count(None) == len(trash)
    with pytest.raises(InputError, match="no version 7"):
        files(table, 7)


def test_a_rollback_is_shown_with_all_that_it_brings_back(tmp_path):
    table = Folder(str(tmp_path), {})
    for desired in DESIRED:
        publish(table, desired, failed=1)
    version = restore.roll_back(table, 1)
    found = status(read_only(tmp_path))
    assert found.held
    assert (found.versions[-1].rows_of, found.failed_by_stage) == (1, {"read": 2})
    assert f"{table.url} at version 3, held" in str(found)
    first = snapshot.read(table, 1)
    for name in ("fingerprint", "output", "embeddings", "schema", "source_schema", "probes"):
        assert getattr(version, name) == getattr(first, name)
    assert version.sources.equals(first.sources)
    # Names in data/ are never used twice, but for parts that never left it.
    old = {part.path for number in (1, 2) for part in snapshot.read(table, number).parts}
    stayed = {part.path for part in snapshot.read(table, 2).parts}
    assert {part.path for part in version.parts} & old <= stayed
    restore.release(table)
    assert not status(table).held


def test_the_first_places_of_each_error_are_told(tmp_path):
    table = Folder(str(tmp_path), {})
    publish(table, DESIRED[0])
    letters = [
        ("/src/a.jsonl", None, "broken"), ("/src/a.jsonl", None, "broken"), ("/src/b.jsonl", None, "broken"),
        ("/src/c.jsonl", "x", "too long"), ("/src/c.jsonl", "y", "too long"), ("/src/d.jsonl", "x", "too long"),
        ("/src/e.jsonl", "x\ny", "too long"), ("/src/f.jsonl", "z", "long" * 100),
    ]  # fmt: skip
    rows = [
        {"source": 0, "path": path, "stage": "read", "error": error, "id": name, "position": None}
        for path, name, error in letters
    ]
    for number in (0, 1):  # The places of two files are told once.
        written = pa.Table.from_pylist(rows, schema=schema.DEAD_LETTERS)
        dead_letters.write(table, f"{layout.dead_letters(1)}{number}/", [written])
    found = status(read_only(tmp_path))
    assert found.failed_first["broken"] == ("'/src/a.jsonl'", "'/src/b.jsonl'")
    told = str(found)
    assert "             8 x too long\n               in '/src/c.jsonl' (id 'x'), '/src/c.jsonl' (id 'y'), " in told
    assert "'/src/d.jsonl' (id 'x'), ..\n" in told
    assert "             6 x broken\n               in '/src/a.jsonl', '/src/b.jsonl'\n" in told
    assert all(len(line) < 200 for line in told.splitlines()[1:])
