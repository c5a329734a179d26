"""Two at once: whatever one process did before it was stopped and the other overtook it, each version is one and whole."""

import contextlib
import dataclasses
import os
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import CommitConflict, InputError, RunError, StorageError
from pipeline.runs import plan as planning
from pipeline.storage import Folder, s3
from pipeline.table import layout, materialise, publication, record, rows, snapshot
from pipeline.table.operations import compact, purge, restore, vacuum
from pipeline.table.operations.replace_units import Work
from pipeline.table.publication import Publication
from pipeline.table.snapshot import Snapshot
from tests.servers import S3Server
from tests.table.test_publish import commit, describe, make_unit, stage
from tests.table.turns import ENDLESS, TIMEOUT_S, Process, take_turns

Desired = Mapping[str, list[str]]
FIRST: Desired = {"a": ["1x", "2y"], "b": ["3x"]}
OURS: Desired = {"b": ["3x"], "c": ["4x", "5y"], "d": ["6z"]}
THEIRS: Desired = {"a": ["1x", "2y"], "c": ["4x", "5y"], "e": ["7z"]}
LATER: Desired = {"d": ["6z"], "f": ["8x"]}
IDS = {name: ids for desired in (FIRST, OURS, THEIRS, LATER) for name, ids in desired.items()}
MODEL = "m"


@pytest.fixture(autouse=True)
def one_thread_each(monkeypatch):
    """So that an operation's number means the same each time; and nobody pulls the plug here."""
    monkeypatch.setattr(materialise, "COPIERS", 1)
    monkeypatch.setattr(record, "READERS", 1)
    monkeypatch.setattr(compact, "REWRITERS", 1)
    monkeypatch.setattr(os, "fsync", lambda _: None)


def units(desired: Desired, model: str = MODEL) -> dict[str, str]:
    """The name of each unit; another model's are others."""
    return {make_unit(f"{model}-{name}", 0).unit_id: name for name in desired}


def embed(table: Folder, desired: Desired, model: str = MODEL) -> Snapshot:
    """One run, in the order of run.prepare, encode and publish."""
    parent = materialise.finish(table)
    if parent.version and parent.fingerprint != model:
        raise InputError("another model")
    names = units(desired, model)
    planned = {unit: make_unit(f"{model}-{name}", 0).spans for unit, name in names.items()}
    records = record.read_all(table, planned.keys() - parent.live_units())
    plan = planning.make_plan(planned, parent, records)
    if plan.changes_nothing:
        return parent
    for task in plan.tasks:
        stage(table, task.unit, IDS[names[task.unit.unit_id]], attempt=uuid.uuid4().hex)
    plan = planning.with_records(plan, record.read_all(table, [unit.unit_id for unit in plan.added]))
    attempt = Publication(table, parent)
    attempt.check_current(model)
    if plan.tasks:
        raise RunError("no complete record: start again")
    work = Work(done=[(unit, plan.records[unit.unit_id]) for unit in plan.added], kept=plan.kept)
    described = dataclasses.replace(describe(), fingerprint=model)
    version = commit(attempt, work, described)
    materialise.materialise(table, version)
    return version


def run(desired: Desired, model: str = MODEL) -> Process:
    return lambda table: embed(table, desired, model)


def in_order(*processes: Process) -> Process:
    return lambda table: [process(table) for process in processes]


def commit_only(table: Folder, desired: Desired) -> None:
    """A publisher that died right after its commit."""

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(materialise, "materialise", lambda *_: None)
        embed(table, desired)


def check_whole(table: Folder, models: tuple[str, ...] = (MODEL,), kept: int = 100) -> None:
    """What must hold after a command that finishes: one version a number, data/ is the current one, others can be read."""
    current = materialise.finish(table)
    numbers = snapshot.versions(table)
    assert numbers == list(range(1, len(numbers) + 1))
    assert [info.path for info in table.list("data")] == sorted(part.path for part in current.parts)
    for number in numbers[-kept:]:
        check_rows(table, snapshot.read(table, number), models)


def check_rows(table: Folder, version: Snapshot, models: tuple[str, ...]) -> None:
    """Exactly those of its units; their texts say of which unit, and so of which model, they are."""
    names = {unit: name for model in models for unit, name in units(IDS, model).items()}
    expected = sorted((name, f"text of {name} in {unit}") for unit in version.live_units() for name in IDS[names[unit]])
    where = rows.places(table)
    found = [
        pair
        for part in version.parts
        for pair in zip(
            *pq.read_table(table.open(rows._place(part, where, table, version)), columns=["id", "text"])
            .to_pydict()
            .values(),
            strict=True,
        )
    ]
    assert sorted(found) == expected
    assert len({model for model in models if version.live_units() & units(IDS, model).keys()}) <= 1


def check_kept(table: Folder, desired: Desired, model: str = MODEL) -> None:
    """What a loser encoded and nobody ever published is still there."""
    published = {unit for number in snapshot.versions(table) for unit in snapshot.read(table, number).live_units()}
    left = units(desired, model).keys() - published
    records = record.read_all(table, left, writes=False)
    assert all(record.is_complete(records.get(unit, ())) for unit in left)


@pytest.fixture(params=[pytest.param(5, id="every fifth"), pytest.param(1, id="each", marks=pytest.mark.slow)])
def step(request) -> int:
    """Which of the operations to stop at: all of them take minutes."""
    return request.param


def at_every_operation(
    tmp_path: Path, prepare: Callable[[Folder], object], stopped: Process, other: Process, step: int = 1
):
    """Stop one before its first operation, its second, .. until the other has ended; yields what came of it."""
    for operations in range(0, 1000, step):
        table = Folder(str(tmp_path / str(operations)))
        prepare(table)
        ended, taken = take_turns(
            table, {"stopped": stopped, "other": other}, [("stopped", operations), ("other", ENDLESS)]
        )
        yield table, ended["stopped"], ended["other"]
        if taken["stopped"] <= operations:
            assert operations > 2
            return


def first(table: Folder) -> None:
    embed(table, FIRST)


def unfinished(table: Folder) -> None:
    embed(table, FIRST)
    commit_only(table, OURS)


@pytest.mark.parametrize(
    "theirs", [pytest.param(THEIRS, id="others"), pytest.param(OURS, id="the same", marks=pytest.mark.slow)]
)
def test_of_two_publishers_one_wins_and_the_other_says_what_to_do(theirs, step, tmp_path):
    conflicts = 0
    for table, stopped, other in at_every_operation(tmp_path, first, run(OURS), run(theirs), step):
        assert isinstance(other, Snapshot), other
        check_whole(table)
        if not isinstance(stopped, Snapshot):
            conflicts += 1
            assert isinstance(stopped, CommitConflict), repr(stopped)
            assert str(stopped).startswith(f"another run published version 2 of {table.url} first")
            assert str(stopped).endswith("start again")
            assert snapshot.versions(table) == [1, 2]
            check_kept(table, OURS)
            embed(table, OURS)
            check_whole(table)
        assert snapshot.current(table).live_units() == units(OURS).keys() or stopped.version < other.version
    assert conflicts > 10 // step


@pytest.mark.slow
def test_a_publisher_that_two_versions_overtook_leaves_them_as_they_are(tmp_path):
    published = in_order(run(THEIRS), run(LATER))
    for table, stopped, other in at_every_operation(tmp_path, first, run(OURS), published):
        assert not isinstance(other, Exception), repr(other)
        check_whole(table)
        if isinstance(stopped, Snapshot):
            check_rows(table, snapshot.read(table, stopped.version), (MODEL,))
        else:
            assert isinstance(stopped, CommitConflict), repr(stopped)
            check_kept(table, OURS)
            assert snapshot.current(table).live_units() == units(LATER).keys()


def test_a_late_materialiser_leaves_what_a_later_run_staged(step, tmp_path):
    def dropped_and_staged_anew(table: Folder) -> None:
        in_order(materialise.finish, run(THEIRS))(table)
        stage(table, make_unit(f"{MODEL}-d", 7), IDS["d"], attempt="later")

    lost = 0
    then = dropped_and_staged_anew
    for table, stopped, other in at_every_operation(tmp_path, unfinished, materialise.finish, then, step):
        assert isinstance(stopped, Snapshot), repr(stopped)
        assert other is None, repr(other)
        (unit,) = units({"d": []})
        assert [info for info in table.list(f"{layout.STAGED_PARTS}{unit}") if "later" in info.path]
        lost += not record.read_all(table, [unit], writes=False)
        embed(table, LATER)
        check_whole(table)
    # Stopped between its look at staging and the removal, it takes the new record for the old one: encoded once more.
    assert lost <= 8


@pytest.mark.parametrize(
    "versions",
    [
        pytest.param((THEIRS, LATER), id="two versions"),
        pytest.param((), id="none", marks=pytest.mark.slow),
        pytest.param((THEIRS,), id="one", marks=pytest.mark.slow),
        pytest.param((FIRST, OURS), id="back and forth", marks=pytest.mark.slow),
    ],
)
def test_a_materialiser_that_goes_on_late_brings_nothing_back(versions, step, tmp_path):
    published = in_order(materialise.finish, *map(run, versions))
    for table, stopped, other in at_every_operation(tmp_path, unfinished, materialise.finish, published, step):
        assert isinstance(stopped, Snapshot), repr(stopped)
        assert not isinstance(other, Exception), repr(other)
        assert snapshot.current(table).version == 2 + len(versions)
        # Before anything else is called: the late one itself leaves no trace.
        assert table.list(layout.STAGING) == []
        assert [info.path for info in table.list("data")] == sorted(part.path for part in snapshot.current(table).parts)
        check_whole(table)


def test_a_run_with_another_model_is_refused_or_told_to_use_another_table(step, tmp_path):
    conflicts = 0
    for table, stopped, other in at_every_operation(tmp_path, lambda _: None, run(FIRST), run(THEIRS, "other"), step):
        check_whole(table, (MODEL, "other"))
        if isinstance(stopped, CommitConflict):
            conflicts += 1
            assert "first, with another model" in str(stopped)
            assert "another table.path" in str(stopped)
            check_kept(table, FIRST)
            assert snapshot.current(table).fingerprint == "other"
        else:
            assert isinstance(stopped, Snapshot | InputError), repr(stopped)
            assert isinstance(other, Snapshot) != isinstance(stopped, Snapshot)
        with pytest.raises(InputError, match="another model"):
            embed(table, FIRST, "other" if snapshot.current(table).fingerprint == MODEL else MODEL)
    assert conflicts > 10 // step


def test_a_zombie_that_writes_after_its_slice_was_recorded_changes_nothing(tmp_path):
    (unit,) = (make_unit(f"{MODEL}-c", 7),)

    def zombie(table: Folder) -> None:
        stage(table, unit, IDS["c"], attempt="zombie")

    for table, stopped, other in at_every_operation(tmp_path, first, zombie, run(OURS)):
        assert (stopped, type(other)) == (None, Snapshot)
        assert snapshot.versions(table) == [1, 2]
        current = materialise.finish(table)
        check_rows(table, current, (MODEL,))
        assert [info.path for info in table.list("data")] == sorted(part.path for part in current.parts)
        # Its unit leaves the table and comes back: what the zombie left is used whole, or not at all.
        embed(table, FIRST)
        embed(table, OURS)
        check_whole(table)


def two_versions(table: Folder) -> None:
    embed(table, FIRST)
    embed(table, THEIRS)


def roll_back(table: Folder) -> Snapshot:
    return restore.roll_back(table, 1)


def clean_all(table: Folder) -> vacuum.Litter:
    return vacuum.clean(table, 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stopped", "other"),
    [
        pytest.param(roll_back, run(OURS), id="a rollback by a run"),
        pytest.param(run(OURS), roll_back, id="a run by a rollback"),
        pytest.param(clean_all, in_order(run(OURS), run(LATER)), id="cleaning by two runs"),
        pytest.param(run(OURS), clean_all, id="a run by cleaning"),
        pytest.param(clean_all, clean_all, id="cleaning by cleaning"),
    ],
)
def test_what_mends_a_table_and_a_run_stop_each_other(stopped, other, tmp_path):
    for table, late, overtaking in at_every_operation(tmp_path, two_versions, stopped, other):
        assert not isinstance(late, Exception) or isinstance(late, CommitConflict), repr(late)
        assert not isinstance(overtaking, Exception), repr(overtaking)
        check_whole(table, kept=2)


@pytest.mark.slow
def test_a_purge_that_a_run_overtakes_says_so_and_can_be_given_again(tmp_path):
    conflicts = 0
    for table, late, overtaking in at_every_operation(
        tmp_path, two_versions, lambda table: purge.purge(table, ["4x"]), run(LATER)
    ):
        assert isinstance(overtaking, Snapshot), repr(overtaking)
        conflicts += isinstance(late, CommitConflict)
        assert isinstance(late, CommitConflict | purge.Purged), repr(late)
        if isinstance(late, CommitConflict):
            purge.purge(table, ["4x"])
        current = materialise.finish(table)
        check_rows(table, current, (MODEL,))
        assert [info.path for info in table.list("data")] == sorted(part.path for part in current.parts)
        with contextlib.suppress(InputError):  # the list of changes of the purge itself may name it
            purge.purge(table, ["4x"])
        with pytest.raises(InputError, match="holds none"):
            purge.purge(table, ["4x"])
    assert conflicts > 5


def staged_too(table: Folder) -> None:
    two_versions(table)
    stage(table, make_unit(f"{MODEL}-d", 7), IDS["d"], attempt="earlier")


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(0, 80, 8))
def test_a_purge_never_takes_what_a_run_that_is_publishing_it_needs(moment, tmp_path):
    """The run is stopped once, the purge anywhere: each may be amid its commit."""
    for operations in range(0, 120, 4):
        table = Folder(str(tmp_path / str(operations)))
        staged_too(table)
        processes = {"purge": lambda table: purge.purge(table, ["6z"]), "run": run(OURS)}
        ended, taken = take_turns(
            table, processes, [("run", moment), ("purge", operations), ("run", 8), ("purge", ENDLESS)]
        )
        for result in ended.values():
            # A run whose records were taken before it read them is to start again.
            assert isinstance(result, Snapshot | purge.Purged | RunError), repr(result)
            assert not isinstance(result, StorageError), repr(result)
        current = materialise.finish(table)
        assert [info.path for info in table.list("data")] == sorted(part.path for part in current.parts)
        embed(table, LATER)
        if taken["purge"] <= operations:
            return


PROCESSES = {
    "ours": run(OURS),
    "theirs": run(THEIRS),
    "later": run(LATER),
    "back": run(FIRST),
    "finish": materialise.finish,
    "two": in_order(run(THEIRS), run(LATER)),
    "rollback": roll_back,
}


@pytest.mark.slow
@given(
    st.lists(st.sampled_from(sorted(PROCESSES)), min_size=2, max_size=3, unique=True),
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 25)), max_size=12),
    st.booleans(),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_turns_of_two_or_three_leave_whole_versions(tmp_path_factory, names, turns, dead):
    table = Folder(str(tmp_path_factory.mktemp("table")))
    two_versions(table)
    if dead:
        commit_only(table, OURS)
    schedule = [(names[who % len(names)], operations) for who, operations in turns]
    ended, _ = take_turns(table, {name: PROCESSES[name] for name in names}, schedule)
    for name, result in ended.items():
        assert not isinstance(result, Exception) or isinstance(result, CommitConflict), f"{name}: {result!r}"
    check_whole(table)
    embed(table, LATER)
    check_whole(table)


@pytest.fixture(params=["moto", "rclone"])
def server(request: pytest.FixtureRequest) -> S3Server:
    """The second ignores create-only writes."""
    return request.getfixturevalue(request.param)


@pytest.mark.slow
def test_of_two_publishers_in_the_same_instant_on_a_store_one_wins(server, monkeypatch):
    table = Folder(f"{server.make_bucket('instant')}/table", server.storage_options)
    embed(table, FIRST)
    assert table.creates_exclusively() is server.exclusive_creates
    both, create, order = threading.Barrier(2), s3.S3.create, iter([0.0, 0.5])

    def create_together(store: s3.S3, key: str, data: bytes) -> None:
        """Both have looked and found nothing; the one's write takes longer."""
        if layout.VERSIONS in key:
            both.wait(TIMEOUT_S)
            time.sleep(next(order))
        create(store, key, data)

    monkeypatch.setattr(s3.S3, "create", create_together)
    monkeypatch.setattr(publication, "SETTLE_S", 1.5)
    with ThreadPoolExecutor(2) as pool:
        ours, theirs = pool.submit(embed, table, OURS), pool.submit(embed, table, THEIRS)
        errors = [run.exception() for run in (ours, theirs)]
    monkeypatch.setattr(s3.S3, "create", create)
    (lost,) = (error for error in errors if error is not None)
    assert isinstance(lost, CommitConflict), repr(lost)
    winner, loser = (THEIRS, OURS) if errors[0] else (OURS, THEIRS)
    assert snapshot.current(table).live_units() == units(winner).keys()
    check_whole(table)
    check_kept(table, loser)
    embed(table, loser)
    check_whole(table)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_on_a_store_too_the_one_that_goes_on_late_leaves_whole_versions(server, monkeypatch):
    monkeypatch.setattr(publication, "SETTLE_S", 0.1)  # nothing is under way meanwhile
    bucket = server.make_bucket("late")
    for moment in (20, 35, 45, 55, 65, 80):
        table = Folder(f"{bucket}/{moment}", server.storage_options)
        embed(table, FIRST)
        processes = {"stopped": run(OURS), "other": in_order(run(THEIRS), run(LATER))}
        ended, _ = take_turns(table, processes, [("stopped", moment), ("other", ENDLESS)])
        late = ended["stopped"]
        assert isinstance(late, Snapshot | CommitConflict), repr(late)
        assert not isinstance(ended["other"], Exception), repr(ended["other"])
        check_whole(table)
        check_kept(table, OURS)
