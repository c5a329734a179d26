"""With --log json every line on stderr is an object, whoever wrote it, and nothing is lost that people would read."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from jobs.log import kind
from jobs.log_lines import Lines, object_of
from pipeline.errors import ConfigError
from tests import faulty
from tests.jobs.test_signals import catches

KNOWN = {"time", "level", "event"}
LEVELS = {"debug", "info", "warning", "error", "critical"}


def objects(stderr: str) -> list[dict]:
    """All lines of stderr, which are objects with what each of them has."""
    found = [json.loads(line) for line in stderr.splitlines()]
    for one in found:
        assert one.keys() >= KNOWN
        assert one["level"] in LEVELS
        assert one["time"].endswith("Z")
        assert time.strptime(one["time"][:19], "%Y-%m-%dT%H:%M:%S")
    return found


def run(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, errors="replace", timeout=100, cwd=faulty.ROOT,
        env=os.environ | {"PYTHONPATH": str(faulty.ROOT)} | environment,
    )  # fmt: skip


def configure(folder: Path, model: Path) -> Path:
    rows = [{"id": str(n), "text": None if n == 3 else f"document about {n}"} for n in range(8)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "source": {"path": str(folder / "corpus.jsonl"), "id": "id", "text": "text"},
        "model": {"path": str(model)},
        "table": {"path": str(folder / "table")},
        "limits": {"max_failed_rows": 2},
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def test_a_run_is_told_from_its_beginning_to_its_end_and_stdout_keeps_the_result(tiny_model, tmp_path):
    path = configure(tmp_path, tiny_model)
    done = run("-m", "jobs.embed", str(path), "--json", "--log", "json")
    assert done.returncode == 3, done.stderr
    assert json.loads(done.stdout)["counts"]["failed"] == 1
    told = objects(done.stderr)
    assert {one["command"] for one in told} == {"embed"}
    phases = [one["phase"] for one in told if one["event"] == "phase"]
    assert phases[-1] == "committing"
    assert "encoding" in phases
    (ran,) = (one for one in told if one["event"] == "run")
    assert (ran["rows_recorded"], ran["dead_letters"], ran["version"]) == (8, 1, 1)
    assert set(ran["seconds_by_stage"]) == {"read", "tokenize", "encode", "write"}
    assert len({one["run"] for one in told if "run" in one}) == 1
    assert all(one["table"] == str(tmp_path / "table") for one in told if "table" in one)
    assert (told[-1]["event"], told[-1]["exit_code"]) == ("ended", 3)
    again = run("-m", "jobs.main", "embed", str(path), PIPELINE_LOG="json")
    assert again.stdout.startswith("nothing to do")
    assert [one["exit_code"] for one in objects(again.stderr) if one["event"] == "ended"] == [0]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["jobs.embed", "no.yaml"], "ConfigError"),
        (["jobs.embed"], "ArgumentError"),
        (["jobs.embed", "no.yaml", "--unknown=https://a?token=verysecret"], "ArgumentError"),
        (["jobs.status", "s3://b/t?X-Amz-Signature=verysecret"], "InputError"),
        (["jobs.main", "nothing"], "InputError"),
    ],
)
def test_an_error_is_an_object_that_says_what_people_are_told(arguments, error):
    people = run("-m", *arguments)
    machines = run("-m", *arguments, "--log=json")
    assert people.returncode == machines.returncode == 2
    told = objects(machines.stderr)
    (failed,) = (one for one in told if one["event"] == "failed")
    assert (failed["level"], failed["error"], failed["exit_code"]) == ("error", error, 2)
    assert failed["message"].splitlines()[-1] == people.stderr.splitlines()[-1]
    assert "verysecret" not in people.stderr + machines.stderr


@pytest.mark.parametrize("slow", ["pipeline.runs.prepare:find_sources:60", "jobs.log:kind:3"], ids=["run", "log"])
def test_an_interrupted_command_says_so(tiny_model, tmp_path, slow):
    path = configure(tmp_path, tiny_model)
    environment = faulty.environment(tmp_path, SLOW=slow)
    started = subprocess.Popen(
        [sys.executable, "-m", "jobs.embed", str(path), "--log", "json"], cwd=faulty.ROOT, stderr=subprocess.PIPE,
        env=environment, text=True, start_new_session=True,
    )  # fmt: skip
    while not catches(started.pid, signal.SIGTERM):
        assert started.poll() is None
        time.sleep(0.02)
    os.killpg(started.pid, signal.SIGTERM)
    _, stderr = started.communicate(timeout=30)
    assert started.returncode == 143
    last = objects(stderr)[-1]
    assert (last["event"], last["signal"], last["exit_code"]) == ("interrupted", "SIGTERM", 143)


SPEAKERS = {
    "print": "print('printed', file=sys.stderr)",
    "bare": "os.write(2, b'by a library in C')",
    "child": "subprocess.run(['sh', '-c', 'echo from a child >&2'])",
    "warning": "warnings.warn('take care', stacklevel=1)",
    "logged": "logging.getLogger('lib').warning('of a library: %s', 'https://u:verysecret@h/')",
    "long": "print('x' * 300_000, file=sys.stderr)",
    "not text": "os.write(2, b'\\xff\\xfe\\x00 odd bytes')",
    "bar": "os.write(2, b'1%\\r50%\\r100%\\n')",
    "error": "raise RuntimeError('nobody knew of it')",
    "thread": "threading.Thread(target=lambda: 1 / 0).start(); time.sleep(0.1)",
    "exit": "atexit.register(print, 'at the very end', file=sys.stderr)",
    "abort": "os.write(2, b'terminate called after throwing'); os.abort()",
}
SAID = {
    "print": ["printed"],
    "bare": ["by a library in C"],
    "child": ["from a child"],
    "warning": ["UserWarning: take care"],
    "logged": ["of a library: https://***@h/"],
    "long": ["x" * 300_000],
    "not text": ["odd bytes"],
    "bar": ["1%", "50%", "100%"],
    "error": ["RuntimeError: nobody knew of it"],
    "thread": ["ZeroDivisionError: division by zero"],
    "exit": ["at the very end"],
    "abort": ["terminate called after throwing"],
}


@pytest.mark.parametrize(
    "names", [[name for name in SPEAKERS if name not in ("error", "abort")], ["exit", "error"], ["abort"]]
)
def test_whoever_writes_to_stderr_is_told_and_nothing_is_lost_against_text(names):
    lines = "; ".join(f"exec({SPEAKERS[name]!r})" for name in names)
    code = (
        "import atexit, logging, os, subprocess, sys, threading, time, warnings\n"
        f"from jobs.command import main_of\ndef main():\n    {lines}\n    return 0\nsys.exit(main_of(main))"
    )
    texts = run("-c", code)
    machines = run("-c", code, PIPELINE_LOG="json")
    assert texts.returncode == machines.returncode
    told = "\n".join(one.get("message", "") for one in objects(machines.stderr))
    for name in names:
        for said in SAID[name]:
            assert said in told, name
    assert "verysecret" not in machines.stderr
    missing = [
        line
        for line in texts.stderr.replace("\r", "\n").splitlines()
        if line.strip() and _bare(line) not in _bare(told)
    ]
    assert missing == []


def _bare(text: str) -> str:
    """The words of a text, without levels, places in memory and letters that are none."""
    words = text.replace("\x00", "").replace("WARNING ", "").split()
    return " ".join(word for word in words if "0x" not in word)


@given(
    st.lists(st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\r\n\x85"), min_size=1)),
    st.data(),
)
def test_lines_are_the_same_however_their_bytes_come(texts, data):
    given_lines = [text for text in texts if text.strip()]
    stream = "".join(f"{text}\n" for text in given_lines).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=5)))
    lines, found = Lines(), []
    for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += lines.add(stream[start:stop])
    assert found + lines.end() == [text.rstrip() for text in given_lines]


@pytest.mark.parametrize(
    ("line", "level"),
    [
        ("WARNING: old", "warning"),
        ("[warn] x", "warning"),
        ("error: no", "error"),
        ("FATAL x", "critical"),
        ("warmth", "info"),
    ],
)
def test_what_others_print_has_the_level_that_it_begins_with(line, level):
    assert object_of(line, {})["level"] == level


def test_the_kind_of_log_is_known_before_arguments_are_parsed():
    assert kind([], {}) == kind(["x", "--log"], {}) == kind(["--log", "text"], {"PIPELINE_LOG": "json"}) == "text"
    assert kind(["--log", "json"], {}) == kind(["--log=json"], {}) == kind([], {"PIPELINE_LOG": "json"}) == "json"
    with pytest.raises(ConfigError, match="PIPELINE_LOG is 'xml'"):
        kind([], {"PIPELINE_LOG": "xml"})


def test_all_is_out_when_a_command_ends_as_the_first_process_of_a_container():
    """Whatever lives on in it is killed with it. Here it finds the end of the command and what was printed at one moment."""
    code = (
        "import os, signal, subprocess, sys, time\nfrom jobs.log import JsonLog\nlog = JsonLog(command='trial')\n"
        "log.report('error', 'failed', 'the last')\ntime.sleep(0.3)\npid = log._process.pid\nos.kill(pid, signal.SIGSTOP)\n"
        "for number in range(9000): print(number, file=sys.stderr)\n"
        "subprocess.Popen(['sh', '-c', f'sleep 0.3; kill -CONT {pid}'])\nlog.drain()\nos.kill(pid, signal.SIGKILL)"
    )
    told = [one["message"] for one in objects(run("-c", code).stderr)]
    assert sorted(told) == sorted([*map(str, range(9000)), "the last"])
