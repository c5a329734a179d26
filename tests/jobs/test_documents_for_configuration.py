"""Documents stand for the configuration that was written beside them, for every verb, and tables stand for themselves."""

import json

import pytest

import pipeline
from jobs import changes, compare, explore, feed, main, reindex, report, search, status, verify
from pipeline import config
from pipeline.errors import InputError
from pipeline.runs import recorded
from pipeline.runs.first_spec import Wishes, for_source
from tests import inline
from tests.inline import spec_of


@pytest.fixture(scope="module")
def home(tmp_path_factory, tiny_model):
    """A folder and a file of documents, each embedded as the command embeds it, one of the notes without a word."""
    folder = tmp_path_factory.mktemp("home")
    notes = folder / "notes"
    notes.mkdir()
    for number in range(5):
        (notes / f"{number}.md").write_text(f"---\ntitle: T{number}\n---\nthe price of oil is up {number}")
    (notes / "empty.md").write_text("")
    rows = [{"id": str(n), "text": f"people like cats {n}"} for n in range(4)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "other").mkdir()
    (folder / "other" / "a.md").write_text("a note")
    for given in (notes, folder / "rows.jsonl", folder / "other" / "*.md"):
        assert for_source(str(given), Wishes(model=str(tiny_model)), writes=True) is not None
        inline.embed(config.load(f"{str(given).removesuffix('.jsonl').removesuffix('/*.md')}.yaml"))
    return folder


def test_documents_stand_for_their_configuration(home, monkeypatch):
    monkeypatch.chdir(home)
    monkeypatch.setenv("HOME", str(home))
    for given in ("notes", "notes/", "./notes", "~/notes", str(home / "notes"), f"file://{home}/notes"):
        assert recorded.standing_for(given) == f"{home}/notes.yaml"
    assert recorded.standing_for("rows.jsonl") == f"{home}/rows.yaml"
    assert recorded.standing_for("other/*.md") == f"{home}/other.yaml"
    for given in ("notes.yaml", "notes.embeddings", "nothing", "s3://bucket/notes", "notes/0.md", "other"):
        assert recorded.standing_for(given) == given


@pytest.mark.parametrize("given", ["notes", "rows.jsonl", "other/*.md"])
def test_every_verb_takes_documents(home, given, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(home)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for verb, arguments in (
        (search, ["the price of oil"]),
        (explore, ["--no-open", "--export", str(tmp_path / "map")]),
        (report, ["--out", str(tmp_path / "report.html")]),
        (status, []),
        (verify, []),
        (changes, ["--since", "0"]),
    ):
        assert verb.main([given, *arguments]) == 0, verb
    capsys.readouterr()
    assert len(pipeline.search(given, "oil")) > 0
    assert pipeline.report(given).figures.versions[-1].version == 1
    with pytest.raises(InputError, match="the configuration has no section feeds"):
        feed.main([given])
    with pytest.raises(InputError, match="--feed needs a section feeds"):
        reindex.main([given, "--feed"])
    with pytest.raises(InputError, match="a comparison needs two models"):
        compare.main([given, "--models", "one"])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("other", r"table 'other' has no published version \(did you mean '.*/other.yaml'\?\)"),
        ("bare", r"table 'bare' has no published version, and no configuration '.*/bare.yaml' is there: run"),
        ("notes/*.txt", r"'notes/\*.txt' does not exist in .* \(did you mean '.*/notes.yaml'\?\)"),
        (
            "notes/0.md",
            r"'notes/0.md' is no configuration, and no configuration '.*/notes/0.yaml' is there: `python -m jobs.init",
        ),
    ],
)
def test_where_nothing_fits_it_is_said_what_was_looked_for(home, given, said, monkeypatch):
    monkeypatch.chdir(home)
    (home / "bare").mkdir(exist_ok=True)
    for asked in (
        lambda: search.main([given, "q"]),
        lambda: status.main([given]),
        lambda: changes.main([given, "--since", "0"]),
        lambda: report.main([given]),
    ):
        with pytest.raises(InputError, match=said):
            asked()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("notes.embeddings", "is a table: this needs the configuration"),
        ("bare", r"'bare' is no configuration, and no configuration .*`python -m jobs.init bare` writes one"),
        ("other", r"is no configuration \(did you mean '.*/other.yaml'\?\)"),
        ("nothing", "configuration file 'nothing' does not exist"),
    ],
)
def test_who_needs_a_configuration_says_so(home, given, said, monkeypatch):
    monkeypatch.chdir(home)
    (home / "bare").mkdir(exist_ok=True)
    for verb in (reindex, feed, compare):
        with pytest.raises(InputError, match=said):
            verb.main([given])


def test_a_table_stands_for_itself_though_a_configuration_of_its_name_stands_beside_it(tiny_model, tmp_path):
    (tmp_path / "docs.jsonl").write_text('{"id": "a", "text": "one"}\n')
    inline.embed(spec_of(tmp_path / "docs.jsonl", tiny_model, tmp_path / "table"))
    (tmp_path / "table.yaml").write_text(f"source: {{path: {tmp_path / 'table'}, text: text}}\n")
    assert recorded.standing_for(str(tmp_path / "table")) == str(tmp_path / "table")
    assert status.main([str(tmp_path / "table")]) == 0


def test_a_configuration_that_can_not_be_read_stands_for_nothing(tmp_path):
    (tmp_path / "docs").mkdir()
    for said in (
        "",
        "[",
        "a: 1",
        "source: 3",
        "source: {path: 3}",
        "source: {path: [3]}",
        "source: {path: {a: b}}",
        "\0",
    ):
        (tmp_path / "docs.yaml").write_text(said)
        assert recorded.standing_for(str(tmp_path / "docs")) == str(tmp_path / "docs")


def test_a_hit_without_a_text_has_a_snippet_and_a_question_has_words(home, capsys):
    rows = list(pipeline.search(home / "notes", "the price of oil", top=9))
    assert [row["snippet"] for row in rows if row["id"] == "empty.md"] == [""]
    assert all("the price of oil" in row["snippet"] for row in rows if row["id"] != "empty.md")
    pairs = list(pipeline.search(home / "notes", duplicates=0.01))
    assert all({"snippet", "other_snippet"} <= pair.keys() for pair in pairs)
    for empty in ("", " ", "\n\t"):
        with pytest.raises(InputError, match="the query is empty: give a question"):
            pipeline.search(home / "notes", empty)
    assert main.main(["search", str(home / "notes"), ""]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_versions_are_told_where_none_is_named(home):
    with pytest.raises(
        InputError, match="--since is missing: give the version that you know, of 1 to 1; since 0 there is"
    ):
        changes.main([str(home / "notes")])
