"""The one command: its verbs, what it says, how soon, and what shells complete."""

import importlib
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs import command, completion, main
from pipeline.extras import install

ROOT = Path(__file__).parents[2]
VERBS = list(main.names())


def test_every_module_that_is_a_command_is_a_verb():
    modules = {path.stem for path in (ROOT / "jobs").glob("*.py") if "def main(argv" in path.read_text()}
    assert modules - {"main"} <= set(main.names())
    assert {"init", "embed", "reindex", "plan", "search", "status", "verify", "changes", "feed"} <= set(VERBS)


def test_the_overview_has_every_verb_and_an_example(capsys):
    assert main.main(["--help"]) == 0
    said = capsys.readouterr().out
    for verb in main.names():
        assert re.search(rf"(?m)^  {verb} +\w", said)
    assert "embedding-pipeline embed ~/notes" in said
    assert max(map(len, said.splitlines())) <= 120
    assert main.main([]) == 2


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["serach"], "did you mean 'search'?"),
        (["embbed", "x"], "did you mean 'embed'?"),
        (["xyz"], "the verbs are init, embed"),
        (["run.yaml"], "as in `embedding-pipeline embed run.yaml`"),
    ],
)
def test_an_unknown_verb_proposes_the_nearest(given, said, capsys):
    assert main.main(given) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("verb", VERBS)
def test_help_ends_with_an_example_and_names_the_command_as_it_was_started(verb, capsys):
    with pytest.raises(SystemExit):
        main.main([verb, "--help"])
    said = capsys.readouterr().out
    assert said.startswith(f"usage: embedding-pipeline {verb} [-h]")
    assert "python -m jobs" not in said
    assert f"\n    embedding-pipeline {verb} " in said
    assert said.rstrip().splitlines()[-1].startswith(f"    embedding-pipeline {verb} "), "the example comes last"
    with pytest.raises(SystemExit):
        importlib.import_module(f"jobs.{verb}").main(["--help"])
    assert capsys.readouterr().out.startswith(f"usage: python -m jobs.{verb} [-h]")


def test_errors_name_commands_as_they_were_started(capsys, tmp_path):
    assert main.main(["status", str(tmp_path / "nothing")]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert command.spoken("see `python -m jobs.status X`", as_verb=True) == "see `embedding-pipeline status X`"


def test_help_and_version_load_nothing_of_the_pipeline():
    for asked in ("--help", "--version"):
        started = time.perf_counter()
        start = [sys.executable, "-X", "importtime", "-m", "jobs.main", asked]
        done = subprocess.run(start, capture_output=True, text=True, cwd=ROOT, timeout=60)
        assert time.perf_counter() - started < 5
        assert not re.search(r"\| +(?:pipeline|pyarrow|numpy|argparse)\b", done.stderr)


def test_a_command_with_nothing_to_do_loads_neither_torch_nor_ray():
    """A verb's parser loads no model's library: that is the time until --help and until a run with nothing to do ends."""
    code = "import sys; from jobs import command, {0}; command.parser_of({0}.main); print(*sys.modules)"
    for verb in ("embed", "reindex", "status", "init", "changes"):
        done = subprocess.run(
            [sys.executable, "-c", code.format(verb)], capture_output=True, text=True, cwd=ROOT, timeout=60
        )
        assert not {"torch", "ray", "transformers", "datasets", "openvino"} & {*done.stdout.split()}, verb


@pytest.mark.parametrize("shell", main.SHELLS)
def test_shells_complete_verbs_and_options(shell, tmp_path):
    script = tmp_path / "script"
    script.write_text(completion.script(shell))
    for word in (*VERBS, "retry-failed", "older-than"):
        assert word in script.read_text()
    if shutil.which(shell):
        subprocess.run([shell, "-n", script], check=True)


def test_bash_completes_what_is_typed(tmp_path):
    script = tmp_path / "script"
    script.write_text(completion.script("bash"))
    for typed, expected in (("em", "embed"), ("status --roll", "--rollback"), ("completion z", "zsh")):
        words = ["embedding-pipeline", *typed.split()]
        ask = (
            f"source {script}; COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; COMP_LINE='{' '.join(words)}'; "
            "COMP_POINT=${#COMP_LINE}; _shtab_embedding_pipeline; echo ${COMPREPLY[@]}"
        )
        done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True, timeout=20)
        assert expected in done.stdout.split(), (typed, done.stdout, done.stderr)


def test_completion_names_the_extra_it_lacks(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main.main(["completion", "bash"]) == 2
    assert install("completion") in capsys.readouterr().err
    assert main.main(["completion"]) == 2
    assert main.main(["completion", "--help"]) == 0


@pytest.mark.slow
def test_a_folder_is_embedded_and_followed_by_one_command(tiny_model, tmp_path):
    notes = tmp_path / "notes"
    notes.mkdir()
    for number in range(5):
        (notes / f"{number}.md").write_text(f"Some words about number {number}, which is a number.")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}

    def embed(*more):
        start = [sys.executable, "-m", "jobs.main", "embed", "notes", *more]
        return subprocess.run(start, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100)

    first = embed("--model", str(tiny_model))
    assert (first.returncode, "published version 1" in first.stdout) == (0, True), first.stderr
    assert f"config     {notes}.yaml" in first.stdout
    assert "nothing to do" in embed().stdout
    (notes / "2.md").write_text("Something else entirely.")
    assert '"changed": 1' in embed("--json").stdout
    assert "--model differs" in embed("--model", "other/model").stderr
