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

import pipeline
from docs import code_map, generate
from jobs import embed, search, verify
from jobs.main import names
from pipeline import config
from pipeline.runs import embed as runs
from tests import inline

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = sorted((ROOT / "docs").glob("*.md"))


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


@pytest.mark.parametrize("path", [ROOT / "README.md", *PAGES], ids=lambda path: path.name)
def test_what_a_page_links_to_is_there(path):
    links = re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text())
    assert [link for link in links if not (path.parent / link).exists()] == []


def test_every_page_is_reached_by_links_from_the_readme_and_from_the_index():
    for start in (ROOT / "README.md", ROOT / "docs" / "index.md"):
        reached, left = set[Path](), [start]
        while left:
            linked = re.findall(r"\]\((?!https?:)([^)#]+\.md)", left[-1].read_text())
            found = {(left[-1].parent / link).resolve() for link in linked} - reached
            left = [*left[:-1], *found]
            reached |= found
        assert set(PAGES) - reached <= {start}, f"not reached from {start.name}"


def test_the_readme_stays_short():
    assert len(README.splitlines()) <= 130


@pytest.mark.parametrize("path", [ROOT / "README.md", *PAGES], ids=lambda path: path.name)
def test_pages_name_commands_as_the_reader_has_them(path):
    """The verbs of the command, once that they are modules, too; extras of the sources, since no registry has the project."""
    text = path.read_text()
    modules = ["python -m jobs.embed"] if path.name == "command-line.md" else []
    assert re.findall(r"python -m jobs\.\w+", text) == modules
    assert re.findall(rf"`jobs\.(?:{'|'.join(names())})\b", text) == []
    assert "'embedding-pipeline[" not in text


@pytest.mark.parametrize("path", [ROOT / "README.md", *PAGES], ids=lambda path: path.name)
def test_a_table_that_an_example_names_is_one_that_the_reader_has(path):
    """A relative name is the table of `make demo`; all else is a configuration, or a place of the reader's own."""
    verbs = "search|explore|report|verify|status|changes"
    asked = re.findall(rf"(?m)^    embedding-pipeline (?:{verbs}) ([\w./~:-]+)", path.read_text())
    asked += re.findall(r'pipeline\.(?:search|changes|newest_version|report)\("([^"]+)"', path.read_text())
    theirs = ("demo-table", "conf/", "CONFIG.yaml", "run.yaml", "TABLE", "SOURCE", "~/", "s3://")
    assert [name for name in asked if not name.startswith(theirs)] == []


def explained(title: str) -> set[str]:
    """What the first cells of a section's tables in docs/summary.md have between backticks."""
    cells = re.findall(r"(?m)^\| (`[^|]+`) \|", sections(page("summary"))[title])
    return {word for cell in cells for word in re.findall(r"`([\w ]+)`", cell)}


def test_every_line_of_a_summary_is_explained_and_no_other():
    def lines_of(*names: str) -> set[str]:
        code = "".join((ROOT / "pipeline" / f"{name}.py").read_text() for name in names)
        return {label.strip() for label in re.findall(r'"  ([a-z][a-z ]{9} )(?=\S)', code)} - {"nothing to"}

    ran = lines_of("runs/summary", "runs/reindex_summary", "runs/what_runs")
    planned = lines_of("runs/plan_summary", "runs/forecast")
    assert ran == explained("A summary")
    assert planned - ran == explained("A plan")
    assert lines_of("runs/first_yaml") == explained("What was chosen")
    assert lines_of("table/status") == explained("The table's status")


def test_every_word_of_the_seconds_is_explained(tiny_model, tmp_path):
    source = tmp_path / "docs.jsonl"
    source.write_text('{"id": "a", "text": "one"}\n{"id": "b", "text": "another"}\n')
    spec = inline.spec_of(source, tiny_model, tmp_path / "table", table={"dtype": "int8"})
    built = runs.embed(spec, inline.InProcess())
    source.write_text('{"id": "a", "text": "two"}\n{"id": "b", "text": "another"}\n')
    followed = runs.embed(spec, inline.InProcess())
    assert followed.by_row
    assert built.seconds.keys() | followed.seconds.keys() == explained("Seconds")


def test_tables_that_the_configurations_make_here_are_ignored_by_git():
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    paths = [yaml.safe_load(path.read_text())["table"]["path"] for path in (ROOT / "conf").glob("*.yaml")]
    here = [path for path in paths if not re.match(r"[~/]|\w+:", path)]
    assert "demo-table" in here
    assert [path for path in here if f"/{path}/" not in ignored] == []


@pytest.mark.parametrize("path", [ROOT / "LOG.md", ROOT / "README.md", *PAGES],
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
    said = (
        block_after("prints its choices before the work begins:", page("first-steps"))
        .strip()
        .replace("/home/you", str(tmp_path))
    )
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
    """It builds what `make demo` builds, so that what README shows of that is compared, too."""
    printed = run_example(block_after("From Python, in a script or a notebook:"), tmp_path)
    nearest = printed.splitlines()[-3:]
    assert all(re.match(r"0\.\d{3} \w", line) for line in nearest), printed
    question = "How do I declare the type of a function's arguments?"
    printed += f'nearest to "{question}"\n{pipeline.search(str(tmp_path / "demo-table"), question)}'
    shown = block_after("says when it is run again that there is nothing to do:")
    shown = shown.replace("/home/you/embedding-pipeline", str(tmp_path)).strip()
    for line in shown.splitlines():
        assert line.strip() == ".." or line.removesuffix(" ..") in printed, line
    titles = re.findall(r"(?m)^0\.\d{3}  pep-\d{4}  (.*?)  \S+  \S+$", shown)
    assert [line[6:] for line in nearest] == [title.removeprefix("title=") for title in titles]
