"""Tables of earlier formats are read, and go on; those of later formats are refused by name.

`formats/` has tables as earlier programs wrote them, with the versions `FIRST`, which has a dead letter in each unit, and
`SECOND`.
"""

import json
import shutil
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.storage import Folder
from pipeline.table import dead_letters, layout, materialise, snapshot
from pipeline.table.operations import purge, restore, vacuum
from pipeline.table.status import status
from tests.table.histories import build, check_named, export_anew, held
from tests.table.test_publish import changes_of, expected_rows, publish, rows_in_folder

FORMATS = Path(__file__).parent / "formats"
FIRST, SECOND = {"a": ["1x", "2y"], "b": ["3x"]}, {"a": ["1x", "2y"], "c": ["3x", "4z"]}


@pytest.fixture(params=sorted(path.name for path in FORMATS.iterdir()))
def table(request, tmp_path) -> Folder:
    shutil.copytree(FORMATS / request.param, tmp_path / "table")
    return Folder(str(tmp_path / "table"))


def test_a_table_of_an_earlier_format_is_read(table):
    before = {(info.path, info.version) for info in table.list()}
    for number, desired in [(1, FIRST), (2, SECOND)]:
        version = snapshot.read(table, number)
        assert (version.format, version.min_reader) == (1, 1)
        assert version.counts.rows == sum(part.rows for part in version.parts) == len(expected_rows(desired))
        assert sum(tally.documents for tally in version.tallies().values()) == version.counts.rows
        rows = [row for rows in dead_letters.read(table, version) for row in rows.to_pylist()]
        assert len(rows) == version.counts.failed
    assert len(changes_of(table, 2)) == 2
    assert status(table).live_files == 3
    assert {(info.path, info.version) for info in table.list()} == before


def test_a_table_of_an_earlier_format_goes_on(table):
    publish(table, {"c": ["3x", "4z"], "d": ["5y"]})
    assert rows_in_folder(table) == expected_rows({"c": ["3x", "4z"], "d": ["5y"]})
    restore.roll_back(table, 1)
    restore.release(table)
    assert rows_in_folder(table) == expected_rows(FIRST)
    export_anew(table)
    purge.purge(table, ["3x"])
    vacuum.clean(table, 0)
    current = materialise.finish(table)
    check_named(table, current)
    assert sorted(held(table)) == ["1x", "2y"]
    assert current.format == snapshot.FORMAT


def test_only_a_version_that_an_older_program_would_get_wrong_asks_for_a_newer_one(tmp_path):
    table = Folder(str(tmp_path))
    needed = [build(table, FIRST).min_reader, build(table, SECOND).min_reader]
    needed += [export_anew(table).min_reader, restore.roll_back(table, 1).min_reader]
    restore.release(table)
    needed.append(build(table, SECOND).min_reader)
    assert needed == [1, 1, 2, 2, 1]
    assert [snapshot.read(table, number).min_reader for number in range(1, 6)] == needed


def test_a_later_format_is_refused_by_name(tmp_path):
    table = Folder(str(tmp_path))
    build(table, FIRST)
    path = layout.snapshot(1)
    raw = json.loads(table.read(path))
    table.write(path, json.dumps(raw | {"format": 9, "min_reader": 2}).encode())
    assert snapshot.current(table).format == 9
    table.write(path, json.dumps(raw | {"format": 9, "min_reader": 8}).encode())
    with pytest.raises(InputError, match=r"format 9.*know format 8.*formats up to 2: upgrade it"):
        snapshot.current(table)


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff", b'{"min_reader": "x", "format": 1}'])
def test_a_snapshot_of_another_program_is_refused(content, tmp_path):
    table = Folder(str(tmp_path))
    table.write(layout.snapshot(1), content)
    with pytest.raises(InputError, match="not a snapshot of this program"):
        snapshot.current(table)
