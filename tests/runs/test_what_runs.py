"""Plans and summaries tell in one block what will run, and what ran."""

import json
import re
from pathlib import Path

import pytest

import pipeline
from pipeline.execution.costs import LIGHT_THREADS
from pipeline.machine.quotas import cores
from pipeline.runs import embed as runs
from pipeline.runs import reindex as reindexing
from pipeline.runs.what_runs import SHOWN_PROMPT
from tests.inline import InProcess, spec_of

WORDS = ("model", "vectors", "chunks", "engine", "workers")


def write(path: Path, long: int, rows: int = 10) -> None:
    texts = ["one two " * (100 if number < long else 1) + str(number) for number in range(rows)]
    path.write_text("".join(json.dumps({"id": f"{n}", "text": text}) + "\n" for n, text in enumerate(texts)))


def block(told: str) -> list[str]:
    return [line.split()[0] for line in told.splitlines() if line.strip() and line.split()[0] in WORDS]


def test_a_plan_and_a_summary_have_the_same_block(tiny_model, tmp_path):
    write(tmp_path / "a.jsonl", 5)
    model = {"max_seq_length": 32, "prompt": "passage: ", "precision": "float32", "engine": "torch"}
    spec = spec_of(tmp_path / "a.jsonl", tiny_model, tmp_path / "table", model=model, table={"dtype": "float16"})
    planned, forecast = runs.plan(spec, InProcess()), reindexing.plan(spec, InProcess())
    done = runs.embed(spec, InProcess())
    for each in (planned, forecast, done):
        told = each.to_dict()["runs"]
        assert json.loads(json.dumps(told)) == told
        assert told["model"] == str(tiny_model)
        assert told["revision"].startswith("digest ")
        assert (told["prompt"], told["max_seq_length"], told["dtype"]) == ("passage: ", 32, "float16")
        assert (told["precision"], told["dim"]) == ("float32", each.runs.dim)
        assert told["truncated_share"] == 0.5
        assert "prompt 'passage: '" in str(each)
    assert block(str(planned)) == block(str(forecast)) == list(WORDS)
    assert "50.0% of a sample of 10 texts are truncated" in str(planned)
    assert "50.0% of 10 texts are truncated" in str(done)
    assert planned.runs.engine == "torch, by model.engine"
    assert "of this machine, without Ray" in planned.runs.workers
    assert not any(note.startswith("ran ") for note in done.notes)


def test_a_night_tells_of_the_texts_that_it_encodes(tiny_model, tmp_path):
    write(tmp_path / "a.jsonl", 0)
    spec = spec_of(tmp_path / "a.jsonl", tiny_model, tmp_path / "table", model={"max_seq_length": 32})
    runs.embed(spec, InProcess())
    nothing = runs.embed(spec, InProcess())
    assert (nothing.runs.workers, nothing.runs.truncated_share) == ("", None)
    write(tmp_path / "a.jsonl", 1)
    for planned in (runs.plan(spec, InProcess()), reindexing.plan(spec, InProcess())):
        assert (planned.runs.truncated, planned.runs.texts) == (1, 1)
    assert runs.embed(spec, InProcess()).runs.truncated_share == 1.0


HERE = min(cores(), LIGHT_THREADS)
"""An encoder without torch has so many cores."""


@pytest.mark.parametrize(
    ("resources", "said"),
    [
        ({}, f"1 x {HERE} CPU encoder, 1 tokenizer, 1 writer of this machine, without Ray (about 1 s of encoding)"),
        ({"ray_address": "local"}, "a Ray of this machine"),
        ({"ray_address": "127.0.0.1:1"}, "the Ray cluster at 127.0.0.1:1"),
    ],
)
def test_a_plan_says_who_will_work_and_starts_nothing(resources, said, tiny_model, tmp_path):
    write(tmp_path / "a.jsonl", 0)
    spec = spec_of(tmp_path / "a.jsonl", tiny_model, tmp_path / "table", resources=resources)
    for planned in (pipeline.plan(spec), pipeline.plan_reindex(spec)):
        assert planned.runs.workers == said


def test_a_plan_has_one_estimate_and_a_summary_the_right_plurals(tiny_model, tmp_path):
    write(tmp_path / "a.jsonl", 0)
    spec = spec_of(tmp_path / "a.jsonl", tiny_model, tmp_path / "table", model={"max_seq_length": 32})
    first = str(pipeline.plan(spec))
    assert (first.count("of encoding)"), first.count("  encoding ")) == (1, 0)
    runs.embed(spec, InProcess())
    write(tmp_path / "a.jsonl", 1)
    for planned in (pipeline.plan(spec), pipeline.plan_reindex(spec)):
        told = str(planned)
        assert (told.count("of encoding"), told.count("  encoding   about ")) == (0, 1), told
        assert "of it to start, at the" in told
        assert "100.0% of a sample of 1 text is truncated" in told
        assert re.search(r"planned in (under 0\.1|\d\.\d) s\n", told), told
    done = reindexing.reindex(spec, InProcess())
    assert re.search(r"; [\d.]+ k?B stay in the trash until `status --clean`, after 7 days\n", str(done)), done
    assert not re.search(r"\b1 (texts|rows|tokens|files|units)\b", str(done)), done


def test_a_plan_with_other_settings_says_how_many_rows_it_replaces(tiny_model, tmp_path):
    write(tmp_path / "a.jsonl", 0)
    spec = spec_of(tmp_path / "a.jsonl", tiny_model, tmp_path / "table")
    for plan in (runs.plan, reindexing.plan):
        assert "replaces" not in str(plan(spec, InProcess(), new_model=True))
    runs.embed(spec, InProcess())
    other = spec_of(tmp_path / "a.jsonl", tiny_model, tmp_path / "table", chunk={"max_tokens": 16})
    for plan in (runs.plan, reindexing.plan):
        assert "replaces" not in str(plan(spec, InProcess(), new_model=True))
        planned = plan(other, InProcess(), new_model=True)
        assert planned.replaced == 10
        assert "  replaces   all 10 rows of version 1\n" in str(planned)


def test_chunks_and_long_prompts_are_told_in_short(tiny_model, tmp_path):
    write(tmp_path / "a.jsonl", 0)
    prompt = "instruct " * 40
    spec = spec_of(
        tmp_path / "a.jsonl", tiny_model, tmp_path / "table", model={"prompt": "q: "}, chunk={"max_tokens": 16}
    )
    assert "16 tokens, 0 of overlap, a row each" in str(runs.plan(spec, InProcess()))
    spec = spec_of(tmp_path / "a.jsonl", tiny_model, tmp_path / "table", model={"prompt": prompt})
    told = runs.plan(spec, InProcess()).runs
    assert told.prompt == prompt
    assert f"{prompt[:SHOWN_PROMPT]}..." in told.lines()[0]
