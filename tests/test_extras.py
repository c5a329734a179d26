"""Extras: what messages name is what the project brings, and one file knows it."""

import shlex
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from pipeline import extras
from pipeline.extras import EXTRAS, FAST_TOKENIZERS_FOLDER, PROJECT, install

ROOT = Path(__file__).parents[1]


def test_extras_and_their_packages_are_those_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["name"] == PROJECT
    for extra, packages in EXTRAS.items():
        assert tuple(Requirement(given).name for given in project["optional-dependencies"][extra]) == packages
        assert install(extra).endswith(f"pip install '{PROJECT}[{extra}]'")
    with pytest.raises(ValueError, match="no extra 'none'"):
        install("none")


@pytest.mark.parametrize("on_path", [True, False])
def test_the_command_that_a_message_names_works_without_a_registry(on_path, monkeypatch):
    """pip finds the installed project by its name; the interpreter is named where `pip` would be another one's."""
    folder = str(Path(sys.executable).parent) if on_path else "/nowhere"
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    command = install("completion")
    assert command.startswith("pip install " if on_path else f"{sys.executable} -m pip install ")
    done = subprocess.run(
        [*shlex.split(command), "--dry-run", "--no-index"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_a_program_that_is_not_installed_names_its_sources_or_the_packages(monkeypatch, tmp_path):
    def not_installed(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(extras.metadata, "metadata", not_installed)
    assert shlex.split(install("search"))[-1] == f"{ROOT}[search]"
    for sources in ("it's here", "gone"):
        (tmp_path / sources / "pipeline").mkdir(parents=True)
        monkeypatch.setattr(extras, "__file__", str(tmp_path / sources / "pipeline" / "extras.py"))
        if sources != "gone":
            (tmp_path / sources / "pyproject.toml").touch()
            assert shlex.split(install("files"))[-1] == f"{tmp_path / sources}[files]"
        else:
            assert shlex.split(install("files"))[-3:] == list(EXTRAS["files"])


def test_an_extra_that_the_installed_release_lacks_is_not_asked_of_it(monkeypatch):
    older = metadata.metadata(PROJECT)
    del older["Provides-Extra"]
    monkeypatch.setattr(extras.metadata, "metadata", lambda _: older)
    assert shlex.split(install("search"))[-1] == f"{ROOT}[search]"


def test_no_other_file_knows_how_a_package_is_installed():
    found = [
        path.name
        for folder in ("pipeline", "jobs")
        for path in (ROOT / folder).rglob("*.py")
        if "pip install" in path.read_text(encoding="utf-8")
    ]
    assert found == ["extras.py"]


def test_the_fast_tokenizers_are_installed_where_they_are_looked_for():
    given = f"--no-deps --target $(VENV)/{FAST_TOKENIZERS_FOLDER} -r fast-tokenizers.txt\n"
    assert given in (ROOT / "Makefile").read_text(encoding="utf-8")
    [release] = [line for line in (ROOT / "fast-tokenizers.txt").read_text().splitlines() if not line.startswith("#")]
    told = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    assert f'/{FAST_TOKENIZERS_FOLDER}" {release}\n' in told
