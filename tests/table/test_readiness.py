"""A folder that is not the table's own, or can't be written, is refused before any work; looking leaves nothing behind."""

import os
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.runs import prepare
from pipeline.storage import Folder
from pipeline.table import layout, readiness, snapshot
from tests.inline import embed, spec_of
from tests.table.histories import build
from tests.table.test_publish import make_unit, stage

FOREIGN = ["data/part-0.parquet", "data/lang=en/0.parquet", "report.csv", "old/a.parquet"]
UNSEEN = ["data/_SUCCESS", ".gitkeep", "_delta_log/0.json", "data/.part.crc"]


def put(root: Path, path: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_bytes(b"of somebody else")


@pytest.mark.parametrize("path", FOREIGN)
def test_a_new_table_wants_a_folder_of_its_own(path, tmp_path):
    put(tmp_path, path)
    with pytest.raises(InputError, match=f"1 files that are not the table's, the first is '{path}'"):
        readiness.check_own(Folder(str(tmp_path)), snapshot.empty())


@pytest.mark.parametrize("path", FOREIGN)
def test_nothing_but_parts_may_lie_where_readers_look_for_rows(path, tmp_path):
    table = Folder(str(tmp_path))
    version = build(table, {"a": ["1x"]})
    put(tmp_path, path)
    if path.startswith(layout.DATA):
        with pytest.raises(InputError, match=f"the first is '{path}'"):
            readiness.check_own(table, version)
    else:
        readiness.check_own(table, version)


@pytest.mark.parametrize("path", UNSEEN)
def test_what_no_reader_takes_for_rows_is_let_be(path, tmp_path):
    table = Folder(str(tmp_path / "table"))
    for version in (snapshot.empty(), build(table, {"a": ["1x"]})):
        put(tmp_path / "table", path)
        folder = table if version.version else Folder(str(tmp_path / "other"))
        put(tmp_path / "other", path)
        readiness.check_own(folder, version)


def test_staged_work_and_what_a_dead_publisher_left_are_the_tables_own(tmp_path):
    table = Folder(str(tmp_path))
    stage(table, make_unit("a", 0), ["1x"])
    table.write("meta/calibration/k/ranges.json", b"{}")
    readiness.check_own(table, snapshot.empty())
    version = build(table, {"a": ["1x"]})
    table.write("data/day=x/part-000001-99999-dead.parquet", b"orphan")
    readiness.check_own(table, version)


@pytest.mark.parametrize("writes", [False, True])
def test_a_run_and_its_dry_run_refuse_what_they_could_not_write(writes, tiny_model, tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_text('{"id": "a", "text": "water"}\n')
    (tmp_path / "file").write_bytes(b"")
    spec = spec_of(tmp_path / "a.jsonl", tiny_model, tmp_path / "file" / "table")
    with pytest.raises(InputError, match="can't be written"):
        prepare.prepare(spec, writes=writes)


def test_a_dry_run_leaves_neither_file_nor_folder(tiny_model, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"id": "a", "text": "water"}\n')
    spec = spec_of(tmp_path / "a.jsonl", tiny_model, tmp_path / "deep" / "er" / "table")
    prepare.prepare(spec, writes=False)
    assert sorted(os.listdir(tmp_path)) == ["a.jsonl"]
    (tmp_path / "deep").mkdir()
    prepare.prepare(spec, writes=False)
    assert os.listdir(tmp_path / "deep") == []
    assert embed(spec).version == 1
