"""A version names only files that are there: the commit looks for them, and a cleaning leaves those that a run needs."""

import dataclasses

import pytest

from pipeline.errors import CommitConflict, GateFailed, InputError
from pipeline.storage import Folder
from pipeline.table import layout, materialise, snapshot
from pipeline.table.operations import purge, restore, vacuum
from pipeline.table.operations.replace_units import Work
from pipeline.table.publication import Publication
from pipeline.table.snapshot import Snapshot
from tests.table.histories import build, check_named, export_anew, held, replayed
from tests.table.test_publish import commit, describe, make_unit, stage
from tests.table.test_races import at_every_operation, one_thread_each  # noqa: F401
from tests.table.turns import Process


def exported_often(table: Folder) -> None:
    """Four versions of the same rows; each but the first has lists of row sources of its own."""
    build(table, {"a": ["1x", "2y"], "b": ["3x"]})
    for _ in range(3):
        export_anew(table)


def clean(table: Folder) -> vacuum.Litter:
    return vacuum.clean(table, 0)


def roll_back(table: Folder) -> Snapshot:
    return restore.roll_back(table, 2)


def erase(table: Folder) -> purge.Purged:
    return purge.purge(table, ["2y"])


def replace_all(table: Folder) -> Snapshot:
    return build(table, {"c": ["1x", "4z"]})


@pytest.mark.parametrize(
    "step", [pytest.param(3, id="every third"), pytest.param(1, id="each", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
    ("stopped", "other"),
    [
        pytest.param(export_anew, clean, id="an export by a cleaning"),
        pytest.param(clean, export_anew, id="a cleaning by an export"),
        pytest.param(roll_back, clean, id="a rollback by a cleaning"),
        pytest.param(clean, roll_back, id="a cleaning by a rollback"),
    ],
)
def test_a_cleaning_beside_a_run_takes_nothing_that_its_version_names(
    stopped: Process, other: Process, step: int, tmp_path
) -> None:
    published = 0
    for table, late, overtaking in at_every_operation(tmp_path, exported_often, stopped, other, step):
        for result in (late, overtaking):
            refused = isinstance(result, CommitConflict) or "cleaned away" in str(result)
            assert refused or not isinstance(result, Exception), repr(result)
            published += isinstance(result, Snapshot)
        check_named(table, materialise.finish(table))
    assert published


@pytest.mark.parametrize(
    "step", [pytest.param(5, id="every fifth"), pytest.param(1, id="each", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
    ("stopped", "other"),
    [
        pytest.param(export_anew, erase, id="an export by a purge"),
        pytest.param(erase, export_anew, id="a purge by an export"),
        pytest.param(export_anew, replace_all, id="an export by a run"),
        pytest.param(replace_all, export_anew, id="a run by an export"),
        pytest.param(roll_back, erase, id="a rollback by a purge"),
        pytest.param(erase, roll_back, id="a purge by a rollback"),
    ],
)
def test_whatever_meets_the_version_is_whole_and_its_changes_tell_it(stopped, other, step, tmp_path):
    for table, late, overtaking in at_every_operation(tmp_path, exported_often, stopped, other, step):
        for result in (late, overtaking):
            refused = isinstance(result, CommitConflict) or "purged" in str(result) or "holds none" in str(result)
            assert refused or not isinstance(result, Exception), repr(result)
        check_named(table, materialise.finish(table))
        assert replayed(table) == held(table)
        for result in (late, overtaking):
            if isinstance(result, purge.Purged) and not result.left:
                assert "2y" not in held(table)


def test_a_version_whose_lists_were_cleaned_away_is_not_brought_back(tmp_path):
    table = Folder(str(tmp_path))
    exported_often(table)
    vacuum.clean(table, 0)
    with pytest.raises(InputError, match="cleaned away"):
        restore.roll_back(table, 2)
    assert snapshot.versions(table) == [1, 2, 3, 4]


def test_only_the_versions_of_files_that_were_used_are_known_as_consumed(tmp_path, monkeypatch):
    monkeypatch.setattr(snapshot, "ROWS_AT_ONCE", 2)
    table = Folder(str(tmp_path))
    paths = [layout.record(unit * 16, 0) for unit in ("aa", "bb", "cc")] + [layout.staged_part("aa" * 16, 0, "x", 0)]
    for path in [*paths, "staging/publications/p/changes/0.parquet"]:
        table.write(path, path.encode())
    listed = table.gather(layout.STAGING, lambda files: snapshot.consumed_list(files, {"aa" * 16, "bb" * 16}))
    snapshot.write_lists(table, "staging/publications/p/", (), snapshot.SOURCES.empty_table(), listed)
    table.write(paths[1], b"by a later run")
    consumed = snapshot.Consumed(table, dataclasses.replace(snapshot.empty(), publication="staging/publications/p/"))
    assert [info.path for info in table.list() if info in consumed] == [paths[3], paths[0]]
    assert not any(info in snapshot.Consumed(table, snapshot.empty()) for info in table.list())


KINDS = ["a staged part", "a part in data/", "a list of row sources", "value ranges", "the int8 model", "its graph"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_commit_refuses_to_name_a_file_that_is_gone(kind, tmp_path, monkeypatch):
    table = Folder(str(tmp_path))
    build(table, {"a": ["1x", "2y"]}, "f")
    export_anew(table)
    parent = snapshot.current(table)
    ranges, model = "meta/calibration/k/ranges.json", "meta/calibration/k/int8.json"
    for path in (ranges, model, layout.int8_graph(model, "d")):
        table.write(path, b"content")
    (entry,) = describe().embeddings
    entry = {**entry, "calibration": {"path": ranges, "digest": "c"}, "int8": {"path": model, "digest": "d"}}
    described = dataclasses.replace(describe(), embeddings=(entry,))
    unit = make_unit("b", 77)
    work = Work(done=[(unit, [stage(table, unit, ["3z"])])], kept=parent.live_units())
    publication = Publication(table, parent)
    gone = {
        "a staged part": lambda: table.list(layout.STAGED_PARTS)[0].path,
        "a part in data/": lambda: parent.parts[0].path,
        "a list of row sources": lambda: parent.parts[0].row_sources,
        "value ranges": lambda: ranges,
        "the int8 model": lambda: model,
        "its graph": lambda: layout.int8_graph(model, "d"),
    }[kind]()
    write_dead_letters = Publication.write_dead_letters

    def and_then_a_file_goes(self, rows):
        table.delete([gone])
        return write_dead_letters(self, rows)

    monkeypatch.setattr(Publication, "write_dead_letters", and_then_a_file_goes)
    with pytest.raises(GateFailed, match="nothing was published; start again"):
        commit(publication, work, described)
    assert snapshot.versions(table) == [1, 2]


def test_what_a_build_of_many_days_began_with_stays(tmp_path, monkeypatch):
    """The vectors of the probe texts are written first, and read at the commit."""
    table = Folder(str(tmp_path))
    build(table, {"a": ["1x"]})
    table.write(layout.probe_vectors("f"), b"[]")
    stage(table, make_unit("b", 77), ["3z"])
    listed = (
        Folder.list
    )  # an old file can't be made: it is as young as the younger of two stamps, one of which is the disk's

    def with_old_probes(self, prefix="", temporary=False):
        found = listed(self, prefix, temporary)
        return [dataclasses.replace(i, modified=1e9) if i.path.startswith(layout.PROBES) else i for i in found]

    monkeypatch.setattr(Folder, "list", with_old_probes)
    vacuum.clean(table)
    assert table.read(layout.probe_vectors("f")) is not None
    (record,) = table.list(layout.RECORDS)
    table.delete([record.path, *(info.path for info in table.list(layout.STAGED_PARTS))])
    vacuum.clean(table)
    assert table.read(layout.probe_vectors("f")) is None


def test_a_file_that_is_being_written_is_not_cleaned(tmp_path):
    table = Folder(str(tmp_path))
    build(table, {"a": ["1x"]})
    (tmp_path / "data" / ".tmp-young").write_bytes(b"x")
    vacuum.clean(table, 0)
    assert (tmp_path / "data" / ".tmp-young").exists()
