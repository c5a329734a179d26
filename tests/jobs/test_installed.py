"""What is installed from a built wheel works in a folder that holds modules of the same names as ours."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
TRAP = 'raise SystemExit("another module of this name was imported")\n'


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel, built from a copy of what is tracked: a build leaves its own folders behind."""
    folder = tmp_path_factory.mktemp("built")
    for name in ("pipeline", "jobs"):
        subprocess.run(["cp", "-r", ROOT / name, folder], check=True)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (folder / name).write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", "-w", folder, folder]
    subprocess.run(build, check=True, env=os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"})
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def bare(wheel, tmp_path_factory):
    """The folder of the scripts of an environment that has the wheel, and what it needs from here, but not this checkout."""
    home = tmp_path_factory.mktemp("bare")
    venv.create(home, symlinks=True)
    here = {"base": str(home), "platbase": str(home)}
    packages = Path(sysconfig.get_path("purelib", "posix_prefix", vars=here))
    install = [sys.executable, "-m", "pip", "--python", home / "bin/python", "install", "--no-deps", "--quiet", wheel]
    subprocess.run(install, check=True, env=os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"})
    # The folder alone, without the .pth files in it: one of them leads to this checkout.
    (packages / "there.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return home / "bin"


def start(bare, arguments, cwd):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [bare / "embedding-pipeline", *arguments]
    return subprocess.run(command, cwd=cwd, env=clean, capture_output=True, text=True, timeout=200)


@pytest.mark.slow
def test_all_that_is_imported_is_in_the_wheel(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    files = [path for name in ("pipeline", "jobs") for path in (ROOT / name).rglob("*") if path.is_file()]
    wanted = {str(path.relative_to(ROOT)) for path in files if "__pycache__" not in path.parts}
    assert wanted - held == set()
    assert {name.split("/")[0] for name in held if not name.split("/")[0].endswith(".dist-info")} == {
        "pipeline",
        "jobs",
    }


@pytest.mark.slow
@pytest.mark.parametrize("address", [None, "local"])
def test_the_command_runs_where_other_modules_have_our_names(address, bare, tiny_model, tmp_path):
    for name in ("pipeline.py", "jobs.py"):
        (tmp_path / name).write_text(TRAP)
    (tmp_path / "notes.jsonl").write_text("".join(f'{{"id": "{n}", "text": "one of {n}"}}\n' for n in range(20)))
    config = {
        "source": {"path": "notes.jsonl", "id": "id", "text": "text"},
        "model": {"path": str(tiny_model)},
        "table": {"path": "table"},
        "resources": {"ray_address": address},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    told = start(bare, ["--version"], tmp_path)
    assert told.stdout.startswith("embedding-pipeline 0."), told.stderr
    done = start(bare, ["embed", "run.yaml"], tmp_path)
    assert (done.returncode, "published version 1" in done.stdout) == (0, True), done.stdout + done.stderr
    assert start(bare, ["embed", "run.yaml"], tmp_path).stdout.startswith("nothing to do")
