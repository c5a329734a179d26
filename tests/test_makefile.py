"""The Makefile makes its environment with any Python that fits, and says in a sentence where none does."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAKE = shutil.which("make")
FITS = "exit 0"
OLD = f'exec {shlex.quote(sys.executable)} -c "import sys; sys.version_info = (3, 10); $(echo "$2")"'
SHIM = "echo 'pyenv: command not found' >&2; exit 127"
WITHOUT_VENV = f'exec {shlex.quote(sys.executable)} -c "import sys; sys.modules[\'ensurepip\'] = None; $(echo "$2")"'

pytestmark = pytest.mark.skipif(MAKE is None, reason="make is missing")


def made_with(folder: Path, pythons: dict[str, str], *given: str) -> subprocess.CompletedProcess[str]:
    """What `make .venv/bin/python` would run where these interpreters, each a line of shell, are all on the path."""
    for name, line in pythons.items():
        (folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / name).chmod(0o755)
    asked = [MAKE, "-f", ROOT / "Makefile", f"VENV={folder}/venv", f"{folder}/venv/bin/python", *given]
    return subprocess.run(asked, env={"PATH": str(folder)}, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("pythons", "chosen"),
    [
        ({"python3.11": FITS, "python3.13": FITS}, "python3.11"),
        ({"python3.11": SHIM, "python3.12": FITS}, "python3.12"),
        ({"python3.13": WITHOUT_VENV, "python3.14": FITS}, "python3.14"),
        ({"python3": f'exec {shlex.quote(sys.executable)} "$@"'}, "python3"),
    ],
)
def test_the_first_python_that_fits_makes_the_environment(pythons, chosen, tmp_path):
    done = made_with(tmp_path, pythons, "-n")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, f"{chosen} -m venv {tmp_path}/venv"), done.stderr


@pytest.mark.parametrize("pythons", [{}, {"python3": OLD}, {"python3.12": SHIM, "python3": WITHOUT_VENV}])
def test_where_none_fits_a_sentence_says_what_is_needed(pythons, tmp_path):
    done = made_with(tmp_path, pythons)
    assert (done.returncode, done.stdout) == (2, "")
    said, *of_make = done.stderr.splitlines()
    assert said.startswith("This needs Python 3.11 or newer")
    assert said.endswith("or name one by make PYTHON=/path/to/python")
    assert [line for line in of_make if not line.startswith("make: ***")] == []


def test_a_python_that_is_named_is_taken(tmp_path):
    assert made_with(tmp_path, {"python3.11": FITS}, "-n", "PYTHON=mine").stdout.endswith(
        f"mine -m venv {tmp_path}/venv\n"
    )
