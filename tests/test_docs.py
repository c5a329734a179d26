"""What the README says is true: its tree, its configuration, its commands."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from jobs import embed, search, verify
from pipeline import config

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def block_after(marker: str, text: str = README) -> str:
    """The indented block that follows a line."""
    lines = text.split(marker, 1)[1].splitlines()
    started = False
    block = []
    for line in lines:
        if line.startswith("    "):
            started = True
            block.append(line[4:])
        elif started and line.strip():
            break
        elif started:
            block.append("")
    return "\n".join(block)


def test_the_tree_names_every_file_and_no_other():
    tree = block_after("## The tree", (ROOT / "docs" / "architecture.md").read_text())
    named = set(re.findall(r"^ *([\w-]+\.(?:py|yaml|md))\b", tree, re.MULTILINE))
    found = {
        path.name
        for folder in ("jobs", "pipeline", "conf", "benchmarks")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".yaml") and path.name != "__init__.py"
    }
    assert named - {"LOG.md"} == found


def test_the_configuration_of_the_readme_is_valid_and_its_defaults_are_true():
    example = block_after("One YAML file describes a run:")
    raw = yaml.safe_load(example.split("python -m")[0])
    shown = yaml.safe_load(block_after("Other keys, with their defaults:"))
    spec = config.from_mapping(raw)
    for section, defaults in shown.items():
        assert not defaults.keys() & raw.get(section, {}).keys()
        for key, value in defaults.items():
            given = raw | {section: raw.get(section, {}) | {key: value}}
            assert config.from_mapping(given) == spec, f"{section}.{key}"
    chunk = yaml.safe_load(block_after("its vector is that of this text alone."))["chunk"]
    assert config.from_mapping(raw | {"chunk": chunk}).chunk == config.ChunkSpec(**chunk)


@pytest.mark.parametrize("command", [embed, search, verify])
def test_a_command_says_how_to_run_it(command, capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(["--help"])
    assert ended.value.code == 0
    assert f"python -m {command.__name__} CONFIG.yaml" in capsys.readouterr().out


def test_every_make_verb_that_the_readme_names_exists():
    verbs = set(re.findall(r"(?:`|^    )make ([\w-]+)", README, re.MULTILINE))
    makefile = (ROOT / "Makefile").read_text()
    assert {"demo", "test"} <= verbs
    assert all(re.search(rf"^{verb}:", makefile, re.MULTILINE) for verb in verbs)


def test_the_python_example_runs_as_it_stands(tmp_path):
    example = block_after("in a script or in a notebook:", (ROOT / "docs" / "python.md").read_text())
    (tmp_path / "demo").symlink_to(ROOT / "demo")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr
    assert "published version 1" in done.stdout
    assert "rows       20" in done.stdout
    assert done.stdout.rstrip().endswith("(3, 3)")
