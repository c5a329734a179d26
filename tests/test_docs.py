"""What the README and the pages of docs/ say is true: the tree, the keys, the commands, the examples, the links."""

import dataclasses
import importlib
import importlib.util
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml

from docs import code_map, generate
from jobs import embed, search, verify
from jobs.main import names
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


def page(name: str) -> str:
    return (ROOT / "docs" / f"{name}.md").read_text()


def sections(text: str) -> dict[str, str]:
    """What stands under each heading of the second level."""
    return dict(re.findall(r"(?ms)^## ([^\n]+)\n(.*?)(?=^## |\Z)", text))


def test_the_tree_names_every_file_and_no_other():
    tree = sections(page("architecture"))["The tree"]
    named = re.findall(r"^ *([\w-]+\.(?:py|yaml))\b", tree, re.MULTILINE)
    found = [
        path.name
        for folder in ("jobs", "pipeline", "conf", "benchmarks")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".yaml") and path.name != "__init__.py"
    ]
    assert sorted(named) == sorted(found)


def test_a_line_of_the_tree_says_what_the_file_says_of_itself():
    tree = sections(page("architecture"))["The tree"]
    lines = re.findall(r"(?m)^ *[\w-]+\.(?:py|yaml|crontab)\b(.*)", tree)
    assert all(re.match(r" +[\w`].{9}", said) for said in lines)


def test_the_readme_has_a_line_for_every_package():
    folders = {path.parent.name for path in (ROOT / "pipeline").glob("*/__init__.py")}
    assert code_map.packages().keys() == folders
    assert all(said.endswith(".") for said in code_map.packages().values())


def test_the_pages_are_what_the_code_says():
    assert generate.main([]) == 0, "make docs-update"


def test_a_page_that_is_not_what_the_code_says_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(generate, "DOCS", tmp_path)
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    (tmp_path / "page.md").write_text(
        "# By hand\n\n<!-- made: commands -->\nOUTDATED\n<!-- end of commands -->\n\nMore\n"
    )
    assert generate.main([]) == 1
    assert "page.md is not what the code says" in capsys.readouterr().out
    assert generate.main(["--write"]) == 0
    assert generate.main([]) == 0
    written = (tmp_path / "page.md").read_text()
    assert written.startswith("# By hand\n\n")
    assert written.endswith("\n\nMore\n")
    assert "| `--retry-failed` |" in written
    assert "OUTDATED" not in written


def test_the_configurations_of_the_pages_are_valid():
    raw = yaml.safe_load(block_after("In the end one YAML file describes a run").split("embedding-pipeline")[0])
    spec = config.from_mapping(raw)
    assert spec.table.partition_by == ("lang",)
    minimal = yaml.safe_load(block_after("everything else\nhas a default:", page("configuration")))
    assert config.from_mapping(minimal).chunk is None
    chunk = yaml.safe_load(block_after("each with a vector of its own:", page("chunks")))["chunk"]
    assert config.from_mapping(raw | {"chunk": chunk}).chunk == config.ChunkSpec(**chunk)


def keys_of(section: str, table: str) -> list[tuple[str, str]]:
    """Each key of a section's table with its default, as they are written."""
    rows = re.findall(r"(?m)^\| `(?:<name>\.)?([\w.]+)` \| .*? \| (required|`.*?`) \| .*\|$", table)
    assert len(rows) == table.count("\n| `"), section
    return [(name, default.strip("`")) for name, default in rows]


def test_every_key_is_in_the_reference_and_its_default_is_true():
    found = sections(page("configuration"))
    minimal = {"source": {"path": "a", "text": "b"}, "model": {"path": "m"}, "table": {"path": "t"}}
    assert list(found) == [item.name for item in dataclasses.fields(config.RunSpec)]
    for section, table in found.items():
        start = minimal | ({"chunk": {"max_tokens": 9}} if section == "chunk" else {})
        one = {"store": "files", "url": "u", "name": "n"}
        names = set()
        for name, default in keys_of(section, table):
            names.add(name.split(".")[0])
            if default != "required":
                value = yaml.safe_load(default)
                for part in reversed(name.split(".")):
                    value = {part: value}
                given = start | {section: start.get(section, {}) | value}
                if section == "feeds":
                    start, given = minimal | {"feeds": {"x": one}}, minimal | {"feeds": {"x": one | value}}
                assert config.from_mapping(given) == config.from_mapping(start), f"{section}.{name}"
        built = getattr(config.from_mapping(minimal | {"chunk": {"max_tokens": 9}, "feeds": {"x": one}}), section)
        built = built["x"] if section == "feeds" else built
        assert names == {item.name for item in dataclasses.fields(built)}


VERBS = [verb for verb in names() if importlib.util.find_spec(f"jobs.{verb}") is not None]


def test_every_command_is_in_the_reference_with_all_its_arguments(capsys):
    found = sections(page("command-line"))
    assert list(found) == VERBS
    for name in VERBS:
        with pytest.raises(SystemExit):
            importlib.import_module(f"jobs.{name}").main(["--help"])
        options = set(re.findall(r"(?m)^  (--[\w-]+)", capsys.readouterr().out))
        assert {"--json", "--set"} <= options
        assert "| None |" not in found[name], "an argument has no help"
        assert options == set(re.findall(r"(?m)^\| `(--[\w-]+)", found[name]))


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda path: path.name
)
def test_what_a_page_links_to_is_there(path):
    links = re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text())
    assert [link for link in links if not (path.parent / link).exists()] == []


@pytest.mark.parametrize("path", [ROOT / "LOG.md", ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))],
                         ids=lambda path: path.name)  # fmt: skip
def test_prose_wraps_at_120_characters(path):
    """Tables, code and what tests write have lines of their own lengths."""
    text = re.sub(r"(?s)```.*?```|<!-- \w+: .*?<!-- (?:end|/).*?-->", "", path.read_text())
    lines = text.splitlines()
    assert [line for line in lines if len(line) > 120 and not line.startswith(("|", "    "))] == []


def test_a_place_that_is_named_for_a_change_is_there():
    named = re.findall(
        r"`([\w/.-]+/[\w.-]*|[\w-]+\.(?:py|md|toml|txt))`", sections(page("architecture"))["Where a change goes"]
    )
    assert len(named) >= 20
    roots = [ROOT, ROOT / "pipeline"]
    assert [name for name in named if not any((root / name).exists() for root in roots)] == []


@pytest.mark.parametrize("command", [embed, search, verify])
def test_a_command_says_how_to_run_it(command, capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(["--help"])
    assert ended.value.code == 0
    assert f"python -m {command.__name__} CONFIG.yaml" in capsys.readouterr().out


@pytest.mark.slow
def test_the_first_steps_are_taken_as_they_stand(tmp_path):
    """All commands below the installation, in order, by a shell with a home of its own."""
    text = page("first-steps").split("## Embed a folder", 1)[1]
    blocks = re.findall(r"(?m)(?:^    .*\n)+", text)
    commands = [block for block in blocks if re.match(r" +(?:mkdir|embedding-pipeline|echo) ", block)]
    assert len(commands) >= 6
    script = f'set -ex\nembedding-pipeline() {{ {sys.executable} -m jobs.main "$@"; }}\n' + textwrap.dedent(
        "".join(commands)
    )
    script = script.replace("embedding-pipeline plan ~", "! embedding-pipeline plan ~")  # It ends with 10.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr
    said = block_after("and tells it before it works:", page("first-steps")).strip().replace("/home/you", str(tmp_path))
    assert said in done.stdout
    nearest = done.stdout.split("nearest to", 1)[1].splitlines()[1]
    assert "garden.md" in nearest
    assert "1 changed" in done.stdout
    assert (tmp_path / "other.yaml").exists()


def test_every_make_verb_that_the_pages_name_exists():
    pages = README + "".join(path.read_text() for path in (ROOT / "docs").glob("*.md"))
    verbs = set(re.findall(r"(?:`|^    )make ([\w-]+)", pages, re.MULTILINE))
    makefile = (ROOT / "Makefile").read_text()
    assert {"demo", "test"} <= verbs
    assert all(re.search(rf"^{verb}:", makefile, re.MULTILINE) for verb in verbs)


def run_example(example: str, tmp_path: Path) -> str:
    """What a Python example prints, run as it stands in the project's folder."""
    for folder in ("demo", "conf"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr
    assert "published version 1" in done.stdout
    return done.stdout


def test_the_python_example_runs_as_it_stands(tmp_path):
    printed = run_example(block_after("in a script or in a notebook:", page("python")), tmp_path)
    assert "rows       20" in printed
    assert printed.rstrip().endswith("(3, 3)")


@pytest.mark.slow
def test_the_python_example_of_the_readme_runs_as_it_stands(tmp_path):
    printed = run_example(block_after("From Python, in a script or a notebook:"), tmp_path)
    nearest = printed.splitlines()[-3:]
    assert all(re.match(r"0\.\d{3} \w", line) for line in nearest), printed
    shown = re.findall(r"(?m)^    0\.\d{3}  pep-\d{4}  (.*?)  \w+(?:  \w+)?$", README)
    assert [line[6:] for line in nearest] == shown[:3], "the search of the demo finds others"
