"""Extras: what messages name is what the project brings, and one file knows it."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from pipeline.extras import EXTRAS, FAST_TOKENIZERS_FOLDER, PROJECT, install

ROOT = Path(__file__).parents[1]


def test_extras_and_their_packages_are_those_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["name"] == PROJECT
    for extra, packages in EXTRAS.items():
        assert tuple(Requirement(given).name for given in project["optional-dependencies"][extra]) == packages
        assert install(extra) == f"pip install '{PROJECT}[{extra}]'"
    with pytest.raises(ValueError, match="no extra 'none'"):
        install("none")


def test_no_other_file_knows_how_an_extra_is_installed():
    found = [
        path.name
        for folder in ("pipeline", "jobs")
        for path in (ROOT / folder).rglob("*.py")
        if re.search(r"pip install [^\n]*embedding-pipeline", path.read_text(encoding="utf-8"))
    ]
    assert found == []


def test_the_fast_tokenizers_are_installed_where_they_are_looked_for():
    given = f"--no-deps --target $(VENV)/{FAST_TOKENIZERS_FOLDER} -r fast-tokenizers.txt\n"
    assert given in (ROOT / "Makefile").read_text(encoding="utf-8")
    [release] = [line for line in (ROOT / "fast-tokenizers.txt").read_text().splitlines() if not line.startswith("#")]
    told = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    assert f'/{FAST_TOKENIZERS_FOLDER}" {release}\n' in told
