"""What a person types: a mistake is told in one line with what was meant, and a question is never lost."""

import importlib
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jobs import changes, command, compare, main, search
from jobs.where import spread
from pipeline.errors import InputError
from tests import faulty

VERBS = list(main.names())
PARSERS = {verb: command.parser_of(importlib.import_module(f"jobs.{verb}").main) for verb in VERBS}
OPTIONS = {
    verb: sorted({name for action in built._actions for name in action.option_strings if len(name) > 5})
    for verb, built in PARSERS.items()
}
WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)


def said_of(verb: str, arguments: list[str], capsys) -> str:
    with pytest.raises(SystemExit) as ended:
        PARSERS[verb].parse_args(arguments)
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert line.startswith("error: ")
    assert line.endswith(f"(see `{PARSERS[verb].prog} --help`)")
    return line


@pytest.mark.parametrize("verb", VERBS)
def test_an_option_with_a_slip_of_the_finger_is_recognised(verb, capsys):
    @given(st.data())
    @settings(max_examples=40, deadline=None)
    def check(data):
        option = data.draw(st.sampled_from(OPTIONS[verb]))
        place = data.draw(st.integers(3, len(option) - 1))
        typed = data.draw(
            st.sampled_from([option[:place] + option[place - 1 :], option[: place - 1] + option[place:], f"{option}s"])
        )
        assume(not any(name.startswith(typed) for action in PARSERS[verb]._actions for name in action.option_strings))
        more = data.draw(st.sampled_from(["", "=3"]))
        assert f"did you mean {option!r}?" in said_of(verb, ["a.yaml", typed + more], capsys)

    check()


@pytest.mark.parametrize("verb", VERBS)
def test_whatever_is_typed_is_taken_or_told_in_one_line(verb, capsys):
    piece = st.one_of(st.sampled_from(["x.yaml", "3", "--", "-", "json", *OPTIONS[verb]]), WORDS)

    @given(st.lists(piece, max_size=5))
    @settings(max_examples=60, deadline=None)
    def check(typed):
        assume(not any(word.startswith(("--h", "-h")) for word in typed))
        try:
            PARSERS[verb].parse_args(typed)
        except SystemExit:
            said = capsys.readouterr().err
            assert said.startswith("error: ")
            assert said.count("\n") == 1

    check()


@pytest.mark.parametrize(
    ("verb", "typed", "said"),
    [
        ("search", ["x", "what", "did", "we", "decide"], 'a question is one argument, in quotes: "what did we decide"'),
        ("search", ["x", "q", "--topp", "3"], "there is no option '--topp': did you mean '--top'?"),
        ("search", ["x", "q", "--top", "three"], "--top is 'three': give a whole number"),
        ("search", ["x", "q", "--top"], "--top needs a value"),
        ("search", ["x", "q", "--log", "jsn"], "'jsn' is none of text, json: did you mean 'json'?"),
        ("verify", ["x", "--oracle", "Pipelin"], "did you mean 'pipeline'?"),
        ("verify", ["--sts", "a", "x.yaml"], "is missing: it stands before --sts, which takes all that follows it"),
        ("status", [], "CONFIG.yaml|TABLE is missing"),
        ("status", ["x", "y"], "'y' is too much: beside options this takes CONFIG.yaml|TABLE"),
        ("feed", ["--verify"], "error: CONFIG.yaml is missing"),
        ("embed", ["x", "--set", "a=b", "--source.storage_options.key=verysecret"], "storage_options.key ***"),
    ],
)
def test_a_mistake_is_told_with_its_cause(verb, typed, said, capsys):
    line = said_of(verb, typed, capsys)
    assert said in line
    assert "verysecret" not in line


def test_options_may_stand_between_arguments():
    assert PARSERS["search"].parse_args(["x", "--top", "3", "q"]).query == "q"
    assert PARSERS["feed"].parse_args(["x", "--verify", "a", "b"]).feeds == ["a", "b"]
    assert PARSERS["compare"].parse_args(["a", "--rows", "3", "b"]).others == ["b"]


# --- conditions and questions

CONDITIONS = st.sampled_from(
    [
        "lang=en",
        "year >= 2020",
        "n<5",
        "`odd name` = x",
        "lang in ['en', 'de']",
        "contains(tags, 'budget')",
        "a is not None",
    ]
)
QUESTIONS = st.sampled_from(
    [
        "electrician",
        "cats and dogs",
        "not here",
        "who is in Berlin",
        "what (if anything) costs more?",
        "Wie geht's?",
        "a b=c",
    ]
)


@given(
    st.lists(CONDITIONS, min_size=1, max_size=4), QUESTIONS, st.lists(st.booleans(), min_size=4, max_size=4), st.data()
)
@settings(max_examples=100, deadline=None)
def test_a_question_behind_conditions_stays_a_question(conditions, question, again, data):
    told = ["--where", conditions[0]]
    for condition, repeated in zip(conditions[1:], again, strict=False):
        told += ["--where", condition] if repeated else [condition]
    pieces = ["x.yaml", question]
    place = data.draw(st.integers(0, 2))
    found = PARSERS["search"].parse_args([*pieces[:place], *told, *pieces[place:]])
    assert (found.config, found.query, found.where) == ("x.yaml", question, conditions)


@given(st.lists(WORDS, max_size=6))
def test_without_conditions_nothing_is_rewritten(typed):
    assume(not any(word.startswith("--w") for word in typed))
    assert spread(typed) == typed
    assert spread(["--", "--where", *typed]) == ["--", "--where", *typed]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["x.yaml", "--where", "a=1", "price=high"], "'price=high' was taken for a condition"),
        (["what costs most"], "'what costs most' was taken for the table"),
    ],
)
def test_a_question_that_is_missing_is_told_with_its_cause(typed, said):
    with pytest.raises(InputError, match="give one of a question in quotes") as raised:
        search.main(typed)
    assert said in str(raised.value)


# --- what a verb says before it works


def test_changes_are_written_as_what_the_name_says(tmp_path):
    for name in ("ch.csv", "ch.jsonl", "ch.parquet.gz"):
        with pytest.raises(InputError, match=r"end it with \.parquet, or leave --output out"):
            changes.main([str(tmp_path), "--since", "1", "--output", str(tmp_path / name)])


def test_a_model_is_not_compared_with_itself_under_two_names(tmp_path):
    docs = tmp_path / "docs"
    docs.mkdir()
    place = tmp_path / "docs.yaml"
    place.write_text(f"source: {{path: {docs}, text: text}}\nmodel: {{path: m}}\ntable: {{path: t}}\n")
    with pytest.raises(InputError, match="compared with itself"):
        compare.main([str(docs), str(place)])


# --- completion


@pytest.mark.parametrize("shell", main.SHELLS)
def test_the_recipe_for_completion_works_in_a_fresh_home_and_is_that_of_the_docs(shell, tmp_path, capsys):
    assert main.main(["completion", "--help"]) == 0
    told = capsys.readouterr().out
    page = (faulty.ROOT / "docs" / "command-line.md").read_text()
    stub = tmp_path / "bin" / main.COMMAND
    stub.parent.mkdir()
    stub.write_text("#!/bin/sh\necho '# a script for' $2\n")
    stub.chmod(0o755)
    home = tmp_path / "home"
    home.mkdir()
    for line in main.RECIPES[shell]:
        assert f"    {line}\n" in page
        assert line in told
    environment = {"HOME": str(home), "PATH": f"{stub.parent}:/usr/bin:/bin"}
    start = [shutil.which("bash") or "sh", "-e", "-c", "\n".join(main.RECIPES[shell])]
    subprocess.run(start, env=environment, check=True, timeout=20)
    made = [path.read_text() for path in home.rglob("*") if path.is_file()]
    assert f"# a script for {shell}\n" in made
    if shell == "bash":
        loaded = subprocess.run(
            ["bash", "-c", ". ~/.bashrc"], env=environment, capture_output=True, text=True, timeout=20
        )
        assert (loaded.returncode, loaded.stderr) == (0, "")


def test_a_shell_that_is_not_known_is_told_in_one_line(capsys):
    for typed in ([], ["tcsh"], ["bash", "zsh"]):
        assert main.main(["completion", *typed]) == 2
        said = capsys.readouterr().err
        assert re.fullmatch(r"error: completion takes one of bash, zsh, fish: .*\n", said)


# argparse itself takes a help that nobody reads for read.
@pytest.mark.parametrize(("arguments", "code"), [("completion bash", 128 + signal.SIGPIPE), ("search --help", 0)])
def test_a_reader_that_has_gone_is_no_error(arguments, code):
    read, write = os.pipe()
    os.close(read)
    try:
        given = [sys.executable, "-m", "jobs.main", *arguments.split()]
        done = subprocess.run(given, cwd=faulty.ROOT, stdout=write, stderr=subprocess.PIPE, text=True)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (code, "")
