"""A disk that fills up, becomes read-only or takes its permissions back: an end in words, and the same command goes on."""

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from jobs import embed as job
from jobs.command import main_of
from pipeline.config import RunSpec
from pipeline.errors import InputError, PipelineError, StorageError
from pipeline.stages import write as stages_write
from pipeline.storage import Folder
from pipeline.table import layout, record, snapshot
from tests import faulty
from tests.faulty import said
from tests.inline import embed, read_table, same_rows, spec_of

ROWS, UNIT_ROWS = 60, 10
NOBODY = 65534


class Disk:
    """A small filesystem in memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.table = folder / "table"

    def remount(self, *options: str) -> None:
        subprocess.run(["mount", "-o", ",".join(["remount", *options]), str(self.folder)], check=True)

    def grow(self) -> None:
        self.remount("rw", "size=256m")


@contextlib.contextmanager
def mounted(folder: Path, size: int) -> Iterator[Disk]:
    folder.mkdir()
    try:
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, text=True
        )
        reason = made.stderr.strip()
    except OSError as error:
        made, reason = None, str(error)
    if made is None or made.returncode:
        pytest.skip(f"no filesystem can be mounted here: {reason}")
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    rows = [
        {"id": f"doc-{n:02}", "text": f"document about {n % 40}" if n % 20 else None, "cat": n % 2} for n in range(ROWS)
    ]
    for index in range(3):
        pq.write_table(pa.Table.from_pylist(rows[index::3]), folder / f"{index}.parquet")
    return folder


def spec_for(corpus: Path, model: Path, table: Path) -> RunSpec:
    limits = {"unit_rows": UNIT_ROWS, "max_failed_rows": 10}
    return spec_of(corpus, model, table, table={"partition_by": ["cat"]}, limits=limits)


@pytest.fixture(scope="module")
def undisturbed(corpus, tiny_model, tmp_path_factory) -> pa.Table:
    table = tmp_path_factory.mktemp("undisturbed") / "table"
    embed(spec_for(corpus, tiny_model, table))
    return read_table(table)


def check_staged(table: Path) -> None:
    """Every record's files are there and whole, and no file has half of its content."""
    folder = Folder(str(table))
    units = {layout.staged_unit(info.path) or "" for info in folder.list(layout.RECORDS)}
    found = record.read_all(folder, units, writes=False)
    assert sum(map(len, found.values())) == len(folder.list(layout.RECORDS))
    assert folder.list(temporary=True) == folder.list()
    for info in folder.list():
        if info.path.endswith((".parquet", ".dead")):
            pq.read_table(table / info.path)


# --- full --------------------------------------------------------------------------------------------------------------


def check_full_and_on(folder: Path, size: int, corpus: Path, model: Path, undisturbed: pa.Table) -> str:
    """How far a run comes on a disk of this size: what the message says it was at; "" if it had enough."""
    with mounted(folder, size) as disk:
        spec = spec_for(corpus, model, disk.table)
        told = refusal(spec)
        if told is not None:
            assert isinstance(told, StorageError | InputError)
            assert "No space left on device" in str(told)
            assert str(disk.table) in str(told)
            assert "make room there and start the same command again" in str(told)
            assert len(str(told).splitlines()) == 1
            check_staged(disk.table)
            disk.grow()
            embed(spec)
        same_rows(read_table(disk.table), undisturbed)
        assert snapshot.versions(Folder(spec.table.path)) == [1]
        return str(told or "").replace(str(disk.table), "")


def refusal(spec: RunSpec) -> PipelineError | None:
    try:
        embed(spec)
    except PipelineError as error:
        return error
    return None


def test_wherever_the_disk_becomes_full_nothing_is_lost(corpus, tiny_model, undisturbed, tmp_path):
    places = []
    for pages in range(1, 200, 2):
        told = check_full_and_on(tmp_path / f"disk{pages}", pages * 4096, corpus, tiny_model, undisturbed)
        if not told:
            break
        places.append(told)
    print("\n".join(places))
    assert not told
    for place in ("staging/probes", "staging/parts", "staging/records", "staging/publications", "meta/"):
        assert any(place in told for told in places), place


# --- read-only ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", [1, 3, ROWS // UNIT_ROWS])
def test_a_disk_that_becomes_read_only_ends_the_run_in_words(
    corpus, tiny_model, undisturbed, tmp_path, monkeypatch, moment
):
    with mounted(tmp_path / "disk", 2**26) as disk:
        spec = spec_for(corpus, tiny_model, disk.table)
        with monkeypatch.context() as patch:
            after_slices(patch, moment, lambda: disk.remount("ro"))
            with pytest.raises(StorageError, match="Read-only file system") as caught:
                embed(spec)
        assert str(disk.table) in str(caught.value)
        assert caught.value.exit_code == 1
        check_staged(disk.table)
        with pytest.raises(InputError, match="Read-only file system"):
            embed(spec)
        disk.remount("rw")
        embed(spec)
        same_rows(read_table(disk.table), undisturbed)


def after_slices(patch: pytest.MonkeyPatch, count: int, happens) -> None:
    """What happens to the disk after so many slices were written."""
    write, done = stages_write.write_rows, []

    def writing(row, settings):
        report = write(row, settings)
        done.append(1)
        if len(done) == count:
            happens()
        return report

    patch.setattr(stages_write, "write_rows", writing)


def outcome(tmp_path: Path, capsys, corpus: Path, model: Path, table: Path) -> tuple[int, str]:
    raw = {"source": {"path": str(corpus), "id": "id", "text": "text"}, "model": {"path": str(model)}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(raw | {"table": {"path": str(table)}}))
    code = main_of(lambda: job.main([str(tmp_path / "run.yaml")]))
    return code, capsys.readouterr().err


def test_a_disk_that_is_read_only_from_the_start_ends_with_exit_2(corpus, tiny_model, tmp_path, capsys):
    with mounted(tmp_path / "disk", 2**26) as disk:
        disk.remount("ro")
        code, message = outcome(tmp_path, capsys, corpus, tiny_model, disk.table)
        assert (code, len(message.splitlines())) == (2, 1), message
        assert "Read-only file system" in message
        assert str(disk.table) in message


# --- permissions -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Without the rights of root, who may write everywhere."""
    if os.geteuid():
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def test_permissions_lost_amid_a_run_end_it_in_words(corpus, tiny_model, undisturbed, monkeypatch):
    folder = Path(tempfile.mkdtemp())
    try:
        shutil.copytree(corpus, folder / "corpus")
        shutil.copytree(tiny_model, folder / "model")
        (folder / "table").mkdir()
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o777)
        spec = spec_for(folder / "corpus", folder / "model", folder / "table")
        embed(spec_for(folder / "corpus", folder / "model", folder / "first"))  # loads what nobody may not
        with as_nobody(), monkeypatch.context() as patch:
            after_slices(patch, 2, lambda: change(folder / "table", 0o555))
            with pytest.raises(StorageError, match="Permission denied") as caught:
                embed(spec)
            assert str(folder / "table") in str(caught.value)
            check_staged(folder / "table")
            with pytest.raises(InputError, match="Permission denied"):
                embed(spec)
            change(folder / "table", 0o755)
            embed(spec)
            same_rows(read_table(folder / "table"), undisturbed)
    finally:
        shutil.rmtree(folder)


def change(folder: Path, mode: int) -> None:
    """The mode of all folders of a table."""
    for path in [path for path in [folder, *folder.rglob("*")] if path.is_dir()]:
        with contextlib.suppress(PermissionError):
            path.chmod(mode)


# --- the whole job -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_the_whole_job_ends_with_exit_1_and_one_line_and_goes_on(corpus, tiny_model, undisturbed, tmp_path, fault):
    with mounted(tmp_path / "disk", 120 * 1024 if fault == "full" else 2**26) as disk:
        config = {
            "source": {"path": str(corpus), "id": "id", "text": "text"},
            "model": {"path": str(tiny_model)},
            "table": {"path": str(disk.table), "partition_by": ["cat"]},
            "resources": {"encoders": 1, "writers": 1},
            "limits": {"unit_rows": UNIT_ROWS, "max_failed_rows": 10},
        }
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        run = faulty.start(tmp_path, SLOW="pipeline.encoder.engines.torch:TorchEngine.start:0.3")
        if fault == "read-only":
            while len(list(disk.table.glob("staging/records/*/*.json"))) < 2:
                assert run.poll() is None, said(tmp_path)
                time.sleep(0.01)
            while subprocess.run(["mount", "-o", "remount,ro", str(disk.folder)], capture_output=True).returncode:
                time.sleep(0.001)  # a file was open for writing
        assert run.wait(180) == 1, said(tmp_path)
        errors = [line for line in said(tmp_path).splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, said(tmp_path)
        assert ("No space left on device" if fault == "full" else "Read-only file system") in errors[0]
        assert str(disk.table) in errors[0]
        assert "Traceback" not in said(tmp_path)
        check_staged(disk.table)
        disk.grow()
        assert faulty.start(tmp_path).wait(180) == 3, said(tmp_path)
        same_rows(read_table(disk.table), undisturbed)
