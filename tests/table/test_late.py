"""A process that is stopped at the worst moment and goes on late harms no version, and brings nothing back that was erased.

The moments are those that the model of the protocol found (tests/protocol); each test says which guard it stands for.
"""

import contextlib
import dataclasses
import os
import shutil

import pytest

from pipeline.errors import CommitConflict, GateFailed
from pipeline.storage import Folder
from pipeline.table import announcement, layout, lease, materialise, snapshot
from pipeline.table.operations import erasure, purge, vacuum
from pipeline.table.publication import Publication
from tests.table.histories import build, check_named, held, replayed
from tests.table.test_erasure import HERS, OTHERS, erase, traces
from tests.table.test_races import FIRST, LATER, OURS, check_whole, embed, one_thread_each, staged_too  # noqa: F401
from tests.table.turns import ENDLESS, take_turns

TWO_DAYS = 2 * vacuum.DAY_S


class Aged(Folder):
    """Files that `were` there already look two days older than they are."""

    were: frozenset[str] = frozenset()

    def list(self, prefix="", temporary=False):
        return [
            dataclasses.replace(info, modified=info.modified - TWO_DAYS) if info.path in self.were else info
            for info in super().list(prefix, temporary)
        ]


class Stopped(Aged):
    """Its process is stopped before its first deletion of staged work, and never sees what it asks for done."""

    late: list[str]

    def delete(self, paths):
        for path in paths:
            if path.startswith((layout.RECORDS, layout.STAGED_PARTS, layout.PUBLICATIONS, layout.CLEANINGS)):
                self.late.append(path)
            else:
                super().delete([path])


def aged(table: Folder, kind: type[Aged] = Aged) -> Aged:
    made = kind(table.url)
    object.__setattr__(made, "were", frozenset(info.path for info in table.list(layout.STAGING)))
    object.__setattr__(made, "late", [])
    return made


def test_a_cleaning_that_was_stopped_takes_nothing_from_a_version(tmp_path, monkeypatch):
    """It found staged work that was old. Meanwhile a run goes on from it, and the cleaning goes on just before the commit."""
    table = Folder(str(tmp_path))
    staged_too(table)
    stopped = aged(table, Stopped)
    assert vacuum.clean(stopped, 0).staging
    assert any(path.startswith(layout.STAGED_PARTS) for path in stopped.late)
    create = Publication.create

    def create_late(publication, version):
        table.delete(stopped.late)
        create(publication, version)

    with monkeypatch.context() as patched:
        patched.setattr(Publication, "create", create_late)
        with pytest.raises(GateFailed, match=r"a cleaning of .* is about to delete .* start again"):
            embed(table, OURS)
    # The next run doesn't go on from what may vanish at any moment.
    embed(table, OURS)
    table.delete(stopped.late)
    check_whole(table)
    vacuum.clean(table, 0)
    assert not table.list(layout.CLEANINGS)


def test_a_cleaning_that_a_run_overtakes_leaves_its_work(tmp_path, monkeypatch):
    """The run leaves its mark between the two looks of the cleaning: it has seen no announcement."""
    table = Folder(str(tmp_path))
    staged_too(table)
    stopped, standing = aged(table), announcement.standing

    @contextlib.contextmanager
    def overtaken(place, paths):
        attempt = Publication(table, snapshot.current(table))
        snapshot.write_lists(table, attempt.folder, (), snapshot.current(table).sources)
        with standing(place, paths) as told:
            assert told
            yield told

    monkeypatch.setattr(announcement, "standing", overtaken)
    assert vacuum.clean(stopped, 0).staging == ()
    assert table.list(layout.STAGED_PARTS)
    assert not table.list(layout.CLEANINGS)


def test_the_announcement_of_a_dead_cleaning_goes_with_what_it_names(tmp_path):
    table = Folder(str(tmp_path))
    staged_too(table)
    dead = aged(table, Stopped)
    vacuum.clean(dead, 0)
    assert len(table.list(layout.CLEANINGS)) == 1
    vacuum.clean(aged(table), 0)
    assert table.list(layout.STAGING) == []


def test_a_commit_misses_its_lists_of_changes(tmp_path, monkeypatch):
    """A cleaning took them from an attempt that was stopped for days: its version would change nothing, for all who follow."""
    table = Folder(str(tmp_path))
    embed(table, FIRST)
    check = Publication.check_files

    def check_late(publication, version, staged):
        gone = [info for info in staged if info.path.startswith(f"{publication.folder}changes/")]
        assert gone
        table.delete(info.path for info in gone)
        check(publication, version, [info for info in staged if info not in gone])

    monkeypatch.setattr(Publication, "check_files", check_late)
    with pytest.raises(GateFailed, match=r"are gone, the first is staging/publications/.*/changes/"):
        embed(table, LATER)
    assert snapshot.versions(table) == [1]


def test_a_late_materialiser_does_not_bring_back_the_partition_of_a_purged_row(tmp_path):
    table = Folder(str(tmp_path))
    build(table, OTHERS)
    version = build(table, {**OTHERS, **HERS})
    erase(table)
    assert traces(table) == []
    materialise._copy_lists(table, version)
    assert traces(table) == []


def test_her_partition_is_forgotten_though_her_part_was_cleaned_away_before(tmp_path):
    table = Folder(str(tmp_path))
    build(table, {**OTHERS, **HERS})
    build(table, OTHERS)
    build(table, {**OTHERS, "d": ["6z"]})
    vacuum.clean(table, 0)
    assert any(path.startswith("meta/parts/") for path in traces(table))
    erase(table)
    assert traces(table) == []
    check_named(table, materialise.finish(table))


@pytest.fixture
def hers(tmp_path) -> Folder:
    table = Folder(str(tmp_path / "table"))
    build(table, OTHERS)
    build(table, {**OTHERS, **HERS})
    return table


@pytest.mark.parametrize("moment", ["_erase_attempts", "_erase_parts_and_lists", "_still_held"])
@pytest.mark.parametrize("folder", ["meta/trash/000003/data/day=Q", "staging/publications/00/restored"])
def test_a_copy_that_gets_its_name_during_a_purge_is_erased_or_counted(moment, folder, hers, monkeypatch):
    """Somebody else materialises the same version, or rolls back, and is stopped amid a copy until that moment."""
    (part,) = (info.path for info in hers.list(layout.DATA) if "day=Q" in info.path)
    target = f"{folder}/{os.path.basename(part)}"
    unfinished = f"{folder}/.tmp-other"
    hers.copy(part, unfinished)
    inner = getattr(erasure, moment)

    def then(*arguments):
        with contextlib.suppress(FileNotFoundError):
            os.replace(f"{hers.url}/{unfinished}", f"{hers.url}/{target}")
        return inner(*arguments)

    monkeypatch.setattr(erasure, moment, then)
    done = purge.purge(hers, ["aliceQ"])
    assert done.left or set(traces(hers)) == {f"{layout.changes(done.version)}part-00000.parquet"}


def test_a_copy_that_begins_during_a_purge_is_counted(hers, tmp_path, monkeypatch):
    """A rollback copies a part out of the trash just before that is erased."""
    content = hers.read(next(info.path for info in hers.list(layout.DATA) if "day=Q" in info.path))
    inner = erasure._erase_parts_and_lists

    def begun(*arguments):
        hers.write("staging/publications/00/restored/.tmp-other", content)
        return inner(*arguments)

    monkeypatch.setattr(erasure, "_erase_parts_and_lists", begun)
    assert purge.purge(hers, ["aliceQ"]).left == 1


def both(table: Folder) -> None:
    build(table, {"a": ["1x", "aliceQ"], "b": ["bobR", "3x"]})
    build(table, {"c": ["4x"]})


@pytest.mark.parametrize(
    "step", [pytest.param(9, id="every ninth"), pytest.param(1, id="each", marks=pytest.mark.slow)]
)
def test_of_two_purges_neither_brings_back_what_the_other_took_out(step, tmp_path, monkeypatch):
    """Both write the same lists anew: one that read a list before the other wrote it would write the other's row back."""
    monkeypatch.setattr(lease, "LEASE_S", 0.5)
    monkeypatch.setattr(lease, "POLL_S", 0.05)
    conflicts = 0
    for operations in range(0, 1000, step):
        table = Folder(str(tmp_path / str(operations)))
        both(table)
        processes = {
            "bob": lambda place: purge.purge(place, ["bobR"]),
            "alice": lambda place: purge.purge(place, ["aliceQ"]),
        }
        ended, taken = take_turns(table, processes, [("bob", operations), ("alice", ENDLESS)])
        alice, bob = ended["alice"], ended["bob"]
        assert isinstance(alice, purge.Purged), repr(alice)
        assert isinstance(bob, purge.Purged | CommitConflict), repr(bob)
        conflicts += isinstance(bob, CommitConflict)
        if alice.left == 0:
            assert set(traces(table)) <= {f"{layout.changes(alice.version)}part-00000.parquet"}
        assert replayed(table) == held(table)
        if taken["bob"] <= operations:
            assert conflicts
            shutil.rmtree(tmp_path, ignore_errors=True)
            return
