"""A few histories and pairs, and what the simulator is itself worth: it finds a program out that is broken on purpose."""

import random

import pytest

from pipeline.storage import Folder, disk
from pipeline.table import layout, materialise
from tests.simulation import checks
from tests.simulation.file_system import FileSystem
from tests.simulation.histories import history
from tests.simulation.object_store import ObjectStore
from tests.simulation.pairs import every_case
from tests.simulation.scheduler import Answer, Clock, Crashed, Process, Scheduler, Turn
from tests.simulation.seams import simulated
from tests.simulation.world import Conditions
from tests.tiny import build_tiny_model


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {name: build_tiny_model(folder / name, seed=seed) for seed, name in enumerate("AB")}


@pytest.mark.parametrize("seed", range(1, 5))
def test_nothing_is_violated_in_a_history(seed, models):
    world = history(seed, models, steps=4)
    assert not world.violations, "\n".join([f"seed {seed}", *world.told, *world.violations])


@pytest.mark.parametrize("kind", ["objects", "disk"])
def test_nothing_is_violated_at_some_stop_points_of_a_pair(kind, models):
    for case, world in every_case(("old", "reindex", "clean"), Conditions(kind=kind), models, every=90):
        assert not world.violations, "\n".join([str(case), *world.told, *world.violations])


def test_a_seed_gives_the_same_history_again(models):
    logs = [[line for line in history(12, models, steps=2).scheduler.log if "TableBusy" not in line] for _ in range(2)]
    assert logs[0] == logs[1]
    assert len(logs[0]) > 100


BROKEN = {
    "two may create one file": (Folder, "create_once", lambda self, path, data: self.write(path, data)),
    "all parts leave": (materialise, "_superseded", lambda parent, version: [part.path for part in version.parts]),
}
MOST = 40
"""Histories that a fault may take; the first took six."""


@pytest.mark.slow
@pytest.mark.parametrize("broken", BROKEN)
def test_a_program_that_is_broken_on_purpose_is_found_out(broken, models, monkeypatch):
    monkeypatch.setattr(*BROKEN[broken])
    monkeypatch.setattr(checks, "built", {})
    assert any(history(seed, models).violations for seed in range(1, MOST))


# --- the stores themselves


def stores():
    scheduler = Scheduler(Clock())
    objects, files = ObjectStore(scheduler, page=2), FileSystem(scheduler)
    return scheduler, files, simulated(scheduler, objects, files, random.Random(0))


@pytest.mark.parametrize("root", ["memory://{}/t", "/sim/{}/t"])
def test_a_dead_process_does_nothing_any_more_and_another_one_goes_on(root):
    scheduler, _, seams = stores()
    with seams:
        dying, living = (Folder(root.format(name)) for name in ("dying", "living"))

        def work() -> None:
            try:
                dying.write("a", b"first")
                dying.write("b", b"second")
            finally:
                dying.write("c", b"third")

        process = Process("dying", work, dies_at=8 if dying.is_local else 2)
        other = Process("living", lambda: living.create_once("d", b"other"))
        scheduler.run([process, other], [Turn("dying", 1), Turn("living"), Turn("dying")])
        assert isinstance(process.result, Crashed)
        assert [info.path for info in living.list()] == ["a", "d"]
        unfinished = [info.path for info in living.list(temporary=True) if info.path not in ("a", "d")]
        assert bool(unfinished) == dying.is_local


def test_of_two_that_create_a_file_one_wins_on_any_store():
    for root in ("memory://{}/t", "/sim/{}/t"):
        for operations in range(1, 12):
            scheduler, _, seams = stores()
            with seams:
                tables = [Folder(root.format(name)) for name in "ab"]
                works = [
                    Process(name, lambda table=table, name=name: table.create_once("x", name.encode()))
                    for name, table in zip("ab", tables, strict=True)
                ]
                scheduler.run(works, [Turn("a", operations), Turn("b")])
                assert sorted(work.result is None for work in works) == [False, True]


def test_a_lost_answer_is_asked_for_again_and_a_listing_comes_by_the_page():
    scheduler, _, seams = stores()
    with seams:
        table = Folder("memory://a/t")
        lossy = Process("a", lambda: [table.create_once(name, b"mine") for name in "uvwxyz"], answers={2: Answer.LOST})
        scheduler.run([lossy], [])
        assert lossy.result == [None] * 6
        reader, writer = Folder("memory://r/t"), Folder("memory://w/t")
        reading = Process("r", lambda: [info.path for info in reader.list()])
        writing = Process("w", lambda: [writer.write("a", b""), writer.write("zz", b"")])
        scheduler.run([reading, writing], [Turn("r", 1), Turn("w")])
        assert reading.result == ["u", "v", "w", "x", "y", "z", "zz"]


def test_a_power_cut_takes_what_was_not_synced_and_leaves_the_rest(monkeypatch):
    for seed in range(20):
        _, files, seams = stores()
        with seams:
            table = Folder("/sim/a/t")
            table.write("kept", b"durable")
            with monkeypatch.context() as patched:
                patched.setattr(disk, "_sync_folder", lambda folder: None)
                table.write("lost", b"not durable")
            files.cut_power(random.Random(seed))
            assert table.read("kept") == b"durable"
            assert table.read("lost") in (None, b"not durable")
            assert [info.path for info in table.list(layout.META)] == []
