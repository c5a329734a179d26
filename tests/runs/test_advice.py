"""What plans and summaries tell a person of settings that cost something, and of rows that were finished before."""

import json
from pathlib import Path

import pytest

from pipeline.errors import RunError
from pipeline.runs import embed as runs
from pipeline.runs import reindex as reindexing
from pipeline.runs.plan_summary import summarise_plan
from pipeline.runs.prepare import prepare
from tests import inline
from tests.inline import InProcess, spec_of

LONG = "the market of oil and the people of new york say it all " * 12
"""It is longer than the 64 tokens that the tiny model reads."""


def write(folder: Path, long: int, short: int, suffix: str = "jsonl") -> Path:
    folder.mkdir(exist_ok=True)
    texts = [f"{n} {LONG}" for n in range(long)] + [f"short {n}" for n in range(short)]
    if suffix == "txt":
        for number, text in enumerate(texts):
            (folder / f"{number}.txt").write_text(text)
    else:
        rows = [{"id": f"d{number}", "text": text} for number, text in enumerate(texts)]
        (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize(
    ("suffix", "names", "told"), [("jsonl", None, True), ("jsonl", "id", False), ("txt", None, False)]
)
def test_rows_without_an_id_are_told_what_they_are_known_by(suffix, names, told, tiny_model, tmp_path):
    corpus = write(tmp_path / "corpus", 0, 3, suffix)
    spec = spec_of(corpus, tiny_model, tmp_path / "table", source={"id": names})
    planned = summarise_plan(prepare(spec, writes=False), InProcess())
    summary = runs.embed(spec, InProcess())
    for each in (planned, summary):
        assert (
            any(note.startswith("source.id is not set, so that a row is known by its file") for note in each.notes)
            == told
        )
        assert ("note       source.id is not set" in str(each)) == told
        assert json.loads(json.dumps(each.to_dict()))["notes"] == list(each.notes)
    assert not any("source.id" in note for note in runs.embed(spec, InProcess()).notes)


@pytest.mark.parametrize(("long", "short", "share"), [(12, 8, "60%"), (2, 18, "10%"), (1, 19, ""), (0, 9, "")])
def test_a_chunk_section_is_named_where_many_texts_are_cut(long, short, share, tiny_model, tmp_path):
    spec = spec_of(write(tmp_path / "corpus", long, short), tiny_model, tmp_path / "table")
    planned = summarise_plan(prepare(spec, writes=False), InProcess())
    summary = runs.embed(spec, InProcess())
    said = f"{long:,} of {long + short:,} texts ({share}) are longer than the 64 tokens that the model reads"
    assert any(said in note and "chunk: {max_tokens: 64}" in note for note in summary.notes) == bool(share)
    # The plan looks at the first 16 texts of a span.
    assert any("of a sample of 16 texts are longer" in note for note in planned.notes) == (long >= 2)
    chunked = spec_of(spec.source.path, tiny_model, tmp_path / "chunked", chunk={"max_tokens": 16})
    assert not any("longer than" in note for note in summarise_plan(prepare(chunked, writes=False), InProcess()).notes)
    assert not any("longer than" in note for note in runs.embed(chunked, InProcess()).notes)


def test_new_texts_of_a_reindex_that_are_cut_are_told_too(tiny_model, tmp_path):
    spec = spec_of(write(tmp_path / "corpus", 0, 20), tiny_model, tmp_path / "table")
    runs.embed(spec, InProcess())
    write(tmp_path / "corpus", 4, 20)
    done = reindexing.reindex(spec, InProcess(), allow_deletes=True)
    assert any("4 of 4 texts (100%) are longer than the 64 tokens" in note for note in done.notes)


def test_rows_that_were_finished_before_are_counted_apart(tiny_model, tmp_path):
    corpus = write(tmp_path / "corpus", 0, 20)
    spec = spec_of(corpus, tiny_model, tmp_path / "table", limits={"unit_rows": 5})
    with pytest.raises(inline.Died):
        runs.embed(spec, InProcess(stop_after=3))
    heard: list[int] = []
    summary = runs.embed(spec, InProcess(encoded=heard))
    assert (summary.resumed, sum(heard), summary.counts.rows) == (20 - sum(heard), 20 - summary.resumed, 20)
    assert 0 < summary.resumed < 20
    assert f"resumed    {summary.resumed} rows that were finished before; the speed leaves them out" in str(summary)
    again = runs.embed(spec, InProcess())
    assert (again.published, again.resumed) == (False, 0)
    write(corpus, 0, 40)
    with pytest.raises(inline.Died):
        reindexing.reindex(spec, InProcess(stop_after=3), allow_deletes=True)
    heard.clear()
    done = reindexing.reindex(spec, InProcess(encoded=heard), allow_deletes=True)
    assert (done.resumed + sum(heard), done.to_encode) == (20, sum(heard))
    assert f"({done.resumed} texts from a run that did not publish)" in str(done)


def broken(folder: Path, count: int) -> Path:
    """Files with a good row and a bad one each."""
    folder.mkdir(exist_ok=True)
    for number in range(count):
        (folder / f"{number}.jsonl").write_text(
            f'{{"id": "e{number}", "text": "a text"}}\n{{"id": "x", "text": {number}\n'
        )
    return folder


@pytest.mark.parametrize("command", ["embed", "reindex"])
def test_a_summary_tells_the_first_three_rows_that_failed_and_where_all_are(command, tiny_model, tmp_path):
    spec = spec_of(write(tmp_path / "corpus", 0, 9), tiny_model, tmp_path / "table", limits={"max_failed_rows": 9})
    summary = runs.embed(spec, InProcess())
    assert (summary.failures, summary.counts.failed) == ((), 0)
    broken(tmp_path / "corpus", 1)
    (tmp_path / "corpus" / "a.jsonl").unlink()
    runs.embed(spec, InProcess())
    broken(tmp_path / "corpus" / "new", 5)
    for number in range(5):
        path = tmp_path / "corpus" / "new" / f"{number}.jsonl"
        path.write_text(path.read_text().replace('"e', '"f'))
    executor = InProcess()
    done = runs.embed(spec, executor) if command == "embed" else reindexing.reindex(spec, executor, allow_deletes=True)
    assert (done.counts.failed, len(done.failures)) == (6, 3)
    for reason in done.failures:
        assert str(done).count(f"             {reason}") == 1
        name, _, why = reason.partition(": ")
        assert Path(name.strip("'")).is_file()
        assert why
    assert not any("corpus/0.jsonl" in reason for reason in done.failures) or command == "embed"
    (folder,) = [word for word in str(done).split() if "dead_letters" in word]
    assert list(Path(folder).glob("*.parquet"))


@pytest.mark.parametrize("command", ["embed", "reindex"])
def test_a_run_that_ends_for_rows_that_failed_tells_three_and_a_file_that_is_there(command, tiny_model, tmp_path):
    spec = spec_of(write(tmp_path / "corpus", 0, 9), tiny_model, tmp_path / "table", limits={"max_failed_rows": 1})
    runs.embed(spec, InProcess())
    broken(tmp_path / "corpus", 5)
    executor = InProcess()
    with pytest.raises(RunError, match=r"failed, limits\.max_failed_rows allows 1: nothing was published") as raised:
        runs.embed(spec, executor) if command == "embed" else reindexing.reindex(spec, executor, allow_deletes=True)
    said = str(raised.value)
    assert said.count(".jsonl'") == 3
    assert Path(said.rpartition("files such as ")[2]).is_file()
