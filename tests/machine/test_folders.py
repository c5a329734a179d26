"""A home and a TMPDIR of any kind: a run works with what there is, says what it does without, or refuses in one sentence."""

import contextlib
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError, InputError, StorageError
from pipeline.execution.local.log import WorkerLog
from pipeline.machine import folders
from pipeline.model.cache import kept
from pipeline.storage import hub
from tests import faulty
from tests.inline import read_table

ROWS = 40


@pytest.fixture(autouse=True)
def _nothing_was_told(monkeypatch):
    monkeypatch.setattr(folders, "_told", set())
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> Path:
    """TMPDIR as this process has it."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_the_cache_is_in_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert folders.cache_folder() == tmp_path / ".cache" / "embedding-pipeline"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert folders.cache_folder() == tmp_path / "xdg" / "embedding-pipeline"


@pytest.mark.parametrize("home", ["absent", "a file", "no home"])
def test_without_a_home_the_cache_is_among_the_temporary_files_and_that_is_told(
    home, temporary, tmp_path, monkeypatch, caplog
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file" / "home" if home == "absent" else tmp_path / "file"))
    if home == "no home":

        def nobody() -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr(Path, "home", nobody)
    folder = folders.cache_folder()
    assert folder == temporary / f"embedding-pipeline-{os.getuid()}"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert folders.cache_folder() == folder
    (told,) = caplog.messages
    assert "home" in told
    assert "set XDG_CACHE_HOME" in told
    made = kept("things", "key", lambda place: (place / "x").write_text("x"))
    assert made == folder / "things" / "key"


@pytest.mark.parametrize("other", ["link", "open to all", "a file"])
def test_what_others_could_have_put_there_is_not_believed(other, temporary, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "theirs").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    place = temporary / f"embedding-pipeline-{os.getuid()}"
    if other == "link":
        place.symlink_to(tmp_path / "theirs")
    elif other == "a file":
        place.touch()
    else:
        place.mkdir()
        place.chmod(0o777)
    with pytest.raises(RuntimeError):
        folders.cache_folder()
    made = kept("things", "key", lambda place: (place / "x").write_text("x"))
    assert (made / "x").read_text() == "x"
    shutil.rmtree(made)


def test_without_any_temporary_folder_there_is_one_sentence(monkeypatch):
    def none() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    if os.access(folders.SHARED_MEMORY, os.W_OK):
        assert folders.temporary_root() == folders.SHARED_MEMORY
    monkeypatch.setattr(folders, "SHARED_MEMORY", "/proc/nonexistent")
    with pytest.raises(InputError, match="set TMPDIR"):
        folders.new_temporary_folder()
    log = WorkerLog()
    log.file.write(b"said")
    log.close(keep=True)
    assert "TMPDIR" in log.where
    assert Path(os.devnull).exists()


def test_a_temporary_folder_that_vanished_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(StorageError, match="set TMPDIR"), folders.temporary_folder():
        pass


def test_what_workers_said_is_kept_without_secrets(temporary):
    log = WorkerLog()
    log.file.write(b"can't read https://host/x?X-Amz-Signature=Hush \xff\n")
    log.close(keep=True)
    assert log.path is not None
    assert "Hush" not in log.path.read_text()
    assert "https://host/x" in log.path.read_text()


@pytest.mark.parametrize("home", ["absent", "kept", "new"])
def test_the_cache_of_the_hub_has_a_place(home, temporary, tmp_path, monkeypatch):
    for name in ("HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file" if home == "absent" else tmp_path))
    if home == "kept":  # Images often bring models along, in a home that the run can't write.
        (tmp_path / ".cache/huggingface").mkdir(parents=True)
        monkeypatch.setattr(os, "access", lambda *_, **__: False)
    hub._give_a_home()
    expected = temporary / f"embedding-pipeline-{os.getuid()}" / "huggingface"
    assert os.environ.get("HF_HOME") == (str(expected) if home == "absent" else None)


# --- Ray's sockets


@contextlib.contextmanager
def environment(**values: str | None) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ({"RAY_TMPDIR": None} | values).items():
            patch.delenv(name, raising=False) if value is None else patch.setenv(name, value)
        yield


@settings(deadline=None)
@given(length=st.integers(1, 150), name=st.sampled_from(["TMPDIR", "RAY_TMPDIR"]), letter=st.sampled_from("aé中"))
def test_a_session_has_room_for_its_sockets_wherever_temporary_files_are(length, name, letter):
    from pipeline.execution.ray import session

    with tempfile.TemporaryDirectory(dir="/tmp") as root:
        given_folder = Path(root) / "/".join([letter * 40] * (length // 40) + [letter * (length % 40)])
        given_folder.mkdir(parents=True, exist_ok=True)
        with environment(**{name: str(given_folder)}):
            folder, spilling = session.session_folder()
        assert os.access(folder, os.W_OK)
        fits = len(os.fsencode(given_folder)) + len("/ray") <= session.MOST_FOLDER_BYTES
        assert (folder == f"{given_folder}/ray") == fits
        assert spilling == (None if fits else str(given_folder))
        address = f"{folder}/session_2026-11-30_13-25-14_123456_1234567/sockets/plasma_store.10"
        assert len(os.fsencode(address)) <= 107


def test_sockets_have_so_much_room(tmp_path):
    """What the number in session.py rests on."""
    with socket.socket(socket.AF_UNIX) as one:
        one.bind("/tmp/" + "x" * 102)
        os.unlink("/tmp/" + "x" * 102)
    with socket.socket(socket.AF_UNIX) as one, pytest.raises(OSError, match="too long"):
        one.bind("/tmp/" + "x" * 103)


def test_a_folder_of_another_user_is_passed_over(monkeypatch, tmp_path):
    from pipeline.execution.ray import session

    with tempfile.TemporaryDirectory(dir="/tmp") as root, environment(TMPDIR=root):
        (Path(root) / "ray").touch()
        assert session.session_folder() == (f"{root}/ray-{os.getuid()}", None)


def test_without_a_folder_for_sockets_there_is_one_sentence(monkeypatch):
    from pipeline.execution.ray import session

    monkeypatch.setattr(session, "SHORT_FOLDERS", ("/proc/nonexistent",))
    monkeypatch.setattr(session, "why_unusable", lambda folder: f"{folder}: it can't be written")
    with environment(TMPDIR="/somewhere"), pytest.raises(ConfigError, match=r"/somewhere/ray.*set RAY_TMPDIR"):
        session.session_folder()


# --- whole runs

SETPRIV = shutil.which("setpriv")
CAPABILITIES = "-all,+dac_read_search"
"""It may read what root installed, and writes where everybody may."""
AS_NOBODY = [
    SETPRIV or "",
    *("--reuid=65534", "--regid=65534", "--clear-groups"),
    *(f"--inh-caps={CAPABILITIES}", f"--ambient-caps={CAPABILITIES}"),
]


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that every user can reach."""
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o777)
        yield Path(name)


@pytest.mark.parametrize(
    ("user", "changed"),
    [
        ("me", {"HOME": "/proc/nonexistent", "TMPDIR": "{folder}/" + "long/" * 30}),
        ("nobody", {"HOME": "/", "TMPDIR": "/proc/nonexistent"}),
        pytest.param("nobody without a home", {"HOME": None, "USER": None, "LOGNAME": None}, marks=pytest.mark.slow),
        pytest.param("me", {"HOME": "{folder}", "TMPDIR": "/proc"}, marks=pytest.mark.slow),
    ],
)
def test_a_run_works_for_anybody_anywhere(user, changed, tiny_model, shared):
    if user != "me" and (os.getuid() or SETPRIV is None):
        pytest.skip("only root can become another user")
    (shared / "corpus.jsonl").write_text("".join(f'{{"id": "{n}", "text": "text {n}"}}\n' for n in range(ROWS)))
    shutil.copytree(tiny_model, shared / "model")
    config = {
        "source": {"path": str(shared / "corpus.jsonl"), "id": "id", "text": "text"},
        "model": {"path": str(shared / "model")},
        "table": {"path": str(shared / "table")},
    }
    (shared / "config.yaml").write_text(yaml.safe_dump(config))
    around = {name: value for name, value in os.environ.items() if name != "XDG_CACHE_HOME"} | {
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": str(faulty.ROOT),
    }
    for name, value in changed.items():
        around.pop(name, None)
        if value is not None:
            around[name] = value.format(folder=shared)
    if "long" in around.get("TMPDIR", ""):
        Path(around["TMPDIR"]).mkdir(parents=True)
    prefix = AS_NOBODY if user != "me" else []
    command = [*prefix, sys.executable, "-m", "jobs.embed", str(shared / "config.yaml"), "--json"]
    run = subprocess.run(command, env=around, cwd=faulty.ROOT, capture_output=True, text=True, timeout=90)
    assert run.returncode == 0, run.stderr
    assert "Traceback" not in run.stderr
    assert json.loads(run.stdout)["counts"]["rows"] == ROWS
    assert read_table(shared / "table").num_rows == ROWS
    if user != "me":
        assert {path.owner() for path in (shared / "table").rglob("*")} == {"nobody"}
