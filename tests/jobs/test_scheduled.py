"""A reindex that nobody watches: two starts at once, a dead one's table, readers meanwhile, and bad nights."""

import contextlib
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
import s3fs
import yaml

from jobs import reindex
from jobs.command import main_of
from pipeline.storage import Folder
from pipeline.table import layout, lease, snapshot
from pipeline.table.operations import restore
from tests import faulty, inline
from tests.inline import read_table, same_rows, spec_of
from tests.servers import S3Server

FILES, ROWS = 4, 100
"""Of the corpus, and of each of its files."""
TIMEOUT_S = 150
SLOW_COMMIT = {"SLOW": "pipeline.table.publication:Publication.create:8"}


def write(folder: Path, number: int, text: str = "news about") -> None:
    numbers = range(number * ROWS, (number + 1) * ROWS)
    rows = [{"id": f"doc-{n}", "text": f"{text} {n}"} for n in numbers]
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / f"{number}.parquet")


class Scene:
    """A table of four files at version 1, and the configuration that keeps it up to date."""

    def __init__(self, folder: Path, model: Path, **limits: float) -> None:
        self.folder, self.model = folder, model
        self.corpus, self.table = folder / "corpus", folder / "table"
        for number in range(FILES):
            write(self.corpus, number)
        config = {
            "source": {"path": str(self.corpus / "*.parquet"), "id": "id", "text": "text"},
            "model": {"path": str(model)},
            "table": {"path": str(self.table)},
            "resources": {"encoders": 1, "writers": 1},
            "limits": {"unit_rows": 256} | limits,
        }
        self.config = folder / "config.yaml"
        self.config.write_text(yaml.safe_dump(config))
        inline.embed(spec_of(config["source"]["path"], model, self.table))
        self.before = read_table(self.table)

    def start(self, name: str, *flags: str, **faults: str) -> "subprocess.Popen[bytes]":
        """The command as a process; what it says goes into `<name>.out` and `<name>.log`."""
        command = [sys.executable, "-m", "jobs.reindex", str(self.config), "--json", *flags]
        with (self.folder / f"{name}.out").open("wb") as out, (self.folder / f"{name}.log").open("wb") as log:
            environment = faulty.environment(self.folder, **faults)
            return subprocess.Popen(command, env=environment, cwd=faulty.ROOT, stdout=out, stderr=log)

    def result(self, name: str) -> dict:
        return json.loads((self.folder / f"{name}.out").read_text())

    def said(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def versions(self) -> list[int]:
        return snapshot.versions(Folder(str(self.table)))

    def run(self, capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[int, str, str]:
        """The command in this process: its exit code, and what it printed."""
        code = main_of(lambda: reindex.main([str(self.config), *flags]))
        said = capsys.readouterr()
        return code, said.out, said.err

    def stays(self) -> None:
        """The old version is the current one, and all that readers see."""
        assert self.versions() == [1]
        same_rows(read_table(self.table), self.before)


@pytest.fixture
def scene(tmp_path, tiny_model) -> Scene:
    return Scene(tmp_path, tiny_model)


@contextlib.contextmanager
def ending(*processes: "subprocess.Popen[bytes]") -> Iterator[None]:
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def wait_for(happened, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not happened():
        assert process.poll() is None, "it ended before it was waited for"
        assert time.monotonic() < deadline
        time.sleep(0.05)


def has_lease(table: Path) -> bool:
    return lease.holder(Folder(str(table)), time.time()) is not None


@pytest.mark.slow
@pytest.mark.timeout(3 * TIMEOUT_S)
def test_of_two_starts_one_works_and_the_other_ends_or_waits(tmp_path, tiny_model):
    """For longer than an unrenewed lease would hold."""
    scene = Scene(tmp_path, tiny_model, lease_s=6)
    write(scene.corpus, 0, "other news about")
    first = scene.start("first", **SLOW_COMMIT)
    with ending(first):
        wait_for(lambda: has_lease(scene.table), first)
        started = time.monotonic()
        second = scene.start("second")
        third = scene.start("third", "--wait", str(TIMEOUT_S))
        with ending(second, third):
            assert second.wait(TIMEOUT_S) == 0, scene.said("second")
            assert time.monotonic() - started < 30
            assert first.poll() is None
            told = scene.result("second")
            assert told["published"] is False
            assert f"being worked on (reindex, process {first.pid} on" in told["busy"]
            assert first.wait(TIMEOUT_S) == 0, scene.said("first")
            assert third.wait(TIMEOUT_S) == 0, scene.said("third")
            assert "waiting for 150 s at most" in scene.said("third")
            assert "ran out" not in scene.said("first")
    assert (scene.result("first")["version"], scene.result("first")["published"]) == (2, True)
    assert (scene.result("third")["version"], scene.result("third")["published"]) == (2, False)
    assert scene.versions() == [1, 2]
    assert not has_lease(scene.table)


@pytest.mark.slow
@pytest.mark.timeout(3 * TIMEOUT_S)
def test_a_killed_run_holds_up_nobody_here_and_elsewhere_until_its_lease_runs_out(scene):
    write(scene.corpus, 0, "other news about")
    killed = scene.start("killed", **SLOW_COMMIT)
    with ending(killed):
        wait_for(lambda: list((scene.table / layout.STAGED_PARTS).rglob("*.parquet")), killed)
        killed.send_signal(signal.SIGKILL)
    # As if it had been on another machine, where nobody sees that it is dead.
    table = Folder(str(scene.table))
    (last,) = table.list(layout.LEASES)
    held = json.loads(table.read(last.path))
    held["owner"]["world"], held["seconds"] = "another boot", 3600
    table.write(last.path, json.dumps(held).encode())
    early = scene.start("early")
    with ending(early):
        assert early.wait(TIMEOUT_S) == 0
        assert "busy" in scene.result("early")
    scene.stays()
    table.write(last.path, json.dumps(held | {"seconds": 15}).encode())
    late = scene.start("late", "--wait", "60")
    with ending(late):
        assert late.wait(TIMEOUT_S) == 0, scene.said("late")
    assert (scene.result("late")["version"], scene.result("late")["counts"]["changed"]) == (2, ROWS)


@pytest.mark.slow
@pytest.mark.timeout(3 * TIMEOUT_S)
def test_a_killed_run_is_gone_on_with_at_once_on_the_same_machine(scene):
    write(scene.corpus, 0, "other news about")
    killed = scene.start("killed", **SLOW_COMMIT)
    with ending(killed):
        wait_for(lambda: list((scene.table / layout.STAGED_PARTS).rglob("*.parquet")), killed)
        killed.send_signal(signal.SIGKILL)
    again = scene.start("again")
    with ending(again):
        assert again.wait(TIMEOUT_S) == 0, scene.said("again")
    assert (scene.result("again")["version"], scene.result("again")["counts"]["changed"]) == (2, ROWS)


@pytest.mark.slow
@pytest.mark.timeout(3 * TIMEOUT_S)
def test_readers_see_the_old_version_until_the_commit_and_then_the_new_one(scene):
    write(scene.corpus, 0, "other news about")
    process = scene.start("run", **SLOW_COMMIT)
    seen: list[tuple[bool, list[str]]] = []
    with ending(process):
        while process.poll() is None:
            with contextlib.suppress(FileNotFoundError):  # it was listed, and moved
                rows = pads.dataset(str(scene.table / "data")).to_table(columns=["id", "text"])
                # Asked after the rows were read: what was read before the commit may be anything but the new version.
                committed = (scene.table / layout.snapshot(2)).exists()
                seen.append((committed, sorted(rows.column("text").to_pylist())))
            time.sleep(0.02)
    assert process.returncode == 0, scene.said("run")
    old = sorted(scene.before["text"].to_pylist())
    new = sorted(read_table(scene.table)["text"].to_pylist())
    before = [texts for committed, texts in seen if not committed]
    assert len(before) > 20
    assert all(texts == old for texts in before)
    for _, texts in seen:
        assert set(texts) >= set(old) & set(new)
        assert set(texts) >= set(old) or set(texts) >= set(new)
    assert new != old


MOMENTS = 10
UNIT_ROWS = 40
SLOW_ENCODE = {"SLOW": "pipeline.stages.encode:encode:0.4"}
IN_FLIGHT = 4
"""Slices: an encoder holds two, a writer one, and one may be written by a worker that outlives its driver."""


def changed(folder: Path, model: Path) -> Scene:
    folder.mkdir(exist_ok=True)
    scene = Scene(folder, model, unit_rows=UNIT_ROWS, max_deleted_rows=0.5)
    for number in (0, 1, 2):
        write(scene.corpus, number, "other news about")
    (scene.corpus / "3.parquet").unlink()
    return scene


@pytest.fixture(scope="module")
def undisturbed(tiny_model, tmp_path_factory) -> tuple[pa.Table, float]:
    """The rows that a run gives, and the seconds it takes."""
    scene = changed(tmp_path_factory.mktemp("undisturbed"), tiny_model)
    started = time.monotonic()
    process = scene.start("run", **SLOW_ENCODE)
    with ending(process):
        assert process.wait(TIMEOUT_S) == 0, scene.said("run")
    seconds = time.monotonic() - started
    assert faulty.encoded(scene.folder) == 3 * ROWS
    return read_table(scene.table), seconds


@pytest.mark.slow
@pytest.mark.timeout(3 * TIMEOUT_S)
@pytest.mark.parametrize("moment", range(MOMENTS))
def test_killed_at_any_moment_it_goes_on(moment, undisturbed, tiny_model, tmp_path):
    """At one in each tenth of an undisturbed run's time."""
    rows, seconds = undisturbed
    scene = changed(tmp_path, tiny_model)
    killed = scene.start("killed", **SLOW_ENCODE)
    with ending(killed), contextlib.suppress(subprocess.TimeoutExpired):
        killed.wait((moment + random.Random(moment).random()) / MOMENTS * seconds)
    versions = scene.versions()
    again = scene.start("again")
    with ending(again):
        assert again.wait(TIMEOUT_S) == 0, scene.said("again")
    assert scene.versions() == [1, 2]
    assert scene.result("again")["published"] is (versions == [1])
    same_rows(read_table(scene.table), rows)
    assert faulty.encoded(scene.folder) <= 3 * ROWS + IN_FLIGHT * UNIT_ROWS
    staged = [info.path for info in Folder(str(scene.table)).list(layout.STAGING)]
    assert [path for path in staged if path.startswith((layout.RECORDS, layout.PUBLICATIONS))] == []


def test_a_file_that_is_missing_takes_no_rows_along_unless_it_may(scene, capsys):
    (scene.corpus / "3.parquet").unlink()
    code, _, said = scene.run(capsys)
    assert code == 1
    assert said.startswith(
        f"error: 100 rows, 25.0% of the 400 of table {scene.table}, are no longer in its 3 source files, and "
        "limits.max_deleted_rows is 0.2: nothing was published"
    )
    scene.stays()
    code, planned, _ = scene.run(capsys, "--dry-run")
    assert code == 10
    assert "  refused    100 rows, 25.0% of" in planned
    assert "add --allow-deletes" in planned
    assert "refused" not in scene.run(capsys, "--dry-run", "--allow-deletes")[1]
    code, published, _ = scene.run(capsys, "--allow-deletes")
    assert code == 0
    assert "100 deleted" in published
    assert len(read_table(scene.table)["id"]) == (FILES - 1) * ROWS
    assert not has_lease(scene.table)


def test_a_limit_that_is_a_count_counts(scene, capsys):
    (scene.corpus / "3.parquet").unlink()
    assert scene.run(capsys, "--set", "limits.max_deleted_rows=99")[0] == 1
    scene.stays()
    assert scene.run(capsys, "--set", "limits.max_deleted_rows=100")[0] == 0


def test_a_source_that_lists_nothing_is_refused_before_any_work(scene, capsys):
    for path in scene.corpus.iterdir():
        path.unlink()
    for flags in ((), ("--allow-deletes",), ("--dry-run",)):
        code, _, said = scene.run(capsys, *flags)
        assert (code, said.startswith(f"error: no file matches '{scene.corpus}/*.parquet'")) == (2, True), said
    scene.stays()
    assert not has_lease(scene.table)


def test_files_that_are_cut_off_keep_their_rows_and_are_told(scene, capsys):
    for number in (0, 1):
        path = scene.corpus / f"{number}.parquet"
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    code, told, _ = scene.run(capsys, "--set", "limits.max_failed_files=2")
    assert code == 3
    assert told.count("its rows stay") == 2
    same_rows(read_table(scene.table), scene.before)
    assert not has_lease(scene.table)


def test_a_table_that_was_rolled_back_is_left_alone(scene, capsys, tiny_model):
    (scene.corpus / "3.parquet").unlink()
    assert scene.run(capsys, "--allow-deletes")[0] == 0
    restore.roll_back(Folder(str(scene.table)), 1)
    code, _, said = scene.run(capsys, "--allow-deletes")
    assert code == 2
    assert "is held so" in said
    assert scene.versions() == [1, 2, 3]
    same_rows(read_table(scene.table), scene.before)


def test_a_table_among_its_sources_is_refused_before_its_lease_is_written(scene, capsys):
    code, _, said = scene.run(capsys, "--set", f"table.path={scene.corpus}")
    assert code == 2
    assert "lie in one another" in said
    assert sorted(path.name for path in scene.corpus.iterdir()) == [f"{number}.parquet" for number in range(FILES)]


def in_environment(monkeypatch, options: dict, prefix: str) -> str:
    """The options as a command line may give them: their values are in the environment."""
    for name, value in options.items():
        monkeypatch.setenv(f"{prefix}_{name}", str(value))
    return json.dumps({name: f"${{{prefix}_{name}}}" for name in options})


def test_credentials_that_are_gone_are_told_and_harm_nothing(
    rclone: S3Server, tiny_model, tmp_path, capsys, monkeypatch
):
    scene = Scene(tmp_path, tiny_model)
    bucket = rclone.make_bucket("credentials")
    filesystem = s3fs.S3FileSystem(**rclone.storage_options, use_listings_cache=False)
    filesystem.put(str(scene.corpus), f"{bucket.removeprefix('s3://')}/corpus", recursive=True)
    gone = rclone.storage_options | {"secret": "expired"}
    good, bad = (
        in_environment(monkeypatch, options, name) for options, name in ((rclone.storage_options, "A"), (gone, "B"))
    )
    source = ("--set", f"source.path={bucket}/corpus/*.parquet")
    for flags in ((), ("--dry-run",)):
        code, _, said = scene.run(capsys, *source, "--set", f"source.storage_options={bad}", *flags)
        assert code == 2
        assert f"{bucket}/corpus" in said
        assert "expired" not in said
    scene.stays()
    # The table's own, too: nothing can be written, nothing is.
    table = ("--set", f"table.path={bucket}/table", "--set", f"table.storage_options={bad}")
    code, _, said = scene.run(capsys, *source, "--set", f"source.storage_options={good}", *table)
    assert code == 2
    assert f"{bucket}/table" in said
    assert "expired" not in said
    assert filesystem.find(f"{bucket.removeprefix('s3://')}/table") == []
