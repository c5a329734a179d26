"""A source without a configuration gets one, which says all that was chosen, is valid, and is never written over."""

import json
import os
import shutil
from dataclasses import replace

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs import init
from pipeline import config
from pipeline.errors import InputError
from pipeline.runs import first_yaml
from pipeline.runs.first_spec import Wishes, choose, for_source, is_source, place_of, write
from pipeline.runs.text_lengths import TextLengths
from tests import inline

WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
NOTE = "Something was said about the budget, and everybody agreed that it was too small. "


@pytest.fixture
def notes(tmp_path, monkeypatch):
    folder = tmp_path / "notes"
    folder.mkdir()
    for number in range(6):
        (folder / f"note {number}.md").write_text(NOTE * (number + 1))
    monkeypatch.chdir(tmp_path)
    return folder


def test_a_folder_is_embedded_by_what_was_chosen_and_followed(notes, tiny_model):
    wishes = Wishes(model=str(tiny_model))
    chosen = for_source("notes", wishes, writes=True)
    assert (chosen.place, chosen.table) == (f"{notes}.yaml", f"{notes}.embeddings")
    spec = config.load(chosen.place)
    assert spec == chosen.spec()
    assert inline.embed(spec).counts.rows == 6
    written = (notes.parent / "notes.yaml").read_bytes()
    (notes / "note 7.md").write_text(NOTE * 20)
    assert for_source("notes/", Wishes(), writes=True) is None
    assert for_source("./notes", wishes, writes=True) is None
    assert inline.embed(config.load(chosen.place)).counts.rows == 7
    assert (notes.parent / "notes.yaml").read_bytes() == written


@pytest.mark.parametrize("home", ["", "~/"])
def test_the_same_command_goes_on_however_its_paths_are_written(notes, tiny_model, monkeypatch, home):
    monkeypatch.setenv("HOME", str(notes.parent))
    shutil.copytree(tiny_model, notes.parent / "own model")
    (notes.parent / "rows.jsonl").write_text('{"name": "a", "title": "one", "body": "two"}\n')
    wishes = Wishes(model=f"{home}own model", text=("title", "body"), id=("name",), table=f"{home}a table")
    chosen = for_source(f"{home}rows.jsonl", wishes, writes=True)
    assert (chosen.model, chosen.table) == (f"{notes.parent}/own model", f"{notes.parent}/a table")
    assert for_source("rows.jsonl", wishes, writes=True) is None


def test_everything_that_was_chosen_is_said_and_written(notes, tiny_model):
    chosen = choose("notes", Wishes(model=str(tiny_model)))
    told = chosen.told(writes=True)
    for value in (*chosen.roles.text, *chosen.roles.id, chosen.model, chosen.table, chosen.place, "6 text"):
        assert value in told
    raw = yaml.safe_load(chosen.yaml)
    assert raw == {
        "source": {
            "path": str(notes),
            "format": "documents",
            "front_matter": "columns",
            "id": "file",
            "text": "text",
            "keep": [],
        },
        "model": {"path": str(tiny_model)},
        "table": {"path": f"{notes}.embeddings"},
    }
    assert "is not written by a dry run" in chosen.told(writes=False)
    assert for_source("notes", Wishes(model=str(tiny_model)), writes=False) is not None
    assert not os.path.exists(chosen.place)


def test_chunks_are_proposed_where_texts_are_longer_than_the_model_reads(notes, tiny_model):
    short = choose("notes", Wishes(model=str(tiny_model)))
    limit = short.lengths.limit
    (notes / "long.md").write_text(NOTE * limit)
    long = choose("notes", Wishes(model=str(tiny_model)))
    assert long.lengths.longer > short.lengths.longer
    uncommented = yaml.safe_load(long.yaml.replace("# chunk:", "chunk:").replace("\n#   ", "\n  "))
    assert config.from_mapping(uncommented).chunk.max_tokens == limit


def test_a_file_that_is_there_is_never_written_over(notes, tiny_model):
    chosen = choose("notes", Wishes(model=str(tiny_model)))
    assert write(chosen, chosen.place)
    assert not write(chosen, chosen.place)
    other = notes.parent / "other.yaml"
    other.write_text("something: else\n")
    with pytest.raises(InputError, match="left as it is"):
        write(chosen, str(other))
    assert other.read_text() == "something: else\n"


@pytest.mark.parametrize(
    ("there", "wishes", "said"),
    [
        ("no: configuration\n", Wishes(), "where something else stands"),
        ("source: {path: /elsewhere, text: t}\nmodel: {path: m}\ntable: {path: t}\n", Wishes(), "is for /elsewhere"),
        (None, Wishes(model="another/model"), "--model differs from model.path"),
        (None, Wishes(text=("title",)), "--text differs from source.text"),
        (None, Wishes(id=()), "--id differs from source.id"),
        (None, Wishes(table="elsewhere"), "--table differs from table.path"),
    ],
)
def test_a_configuration_that_is_none_of_this_source_is_refused(there, wishes, said, notes, tiny_model):
    if there is None:
        for_source("notes", Wishes(model=str(tiny_model)), writes=True)
    else:
        (notes.parent / "notes.yaml").write_text(there)
    before = (notes.parent / "notes.yaml").read_text()
    with pytest.raises(InputError, match=said):
        for_source("notes", wishes, writes=True)
    assert (notes.parent / "notes.yaml").read_text() == before


@pytest.mark.parametrize(
    ("given", "base"),
    [
        ("data/corpus.jsonl.gz", "data/corpus"),
        ("data/v1.2.csv", "data/v1.2"),
        ("data/*.parquet", "data"),
        ("data/year=*/*.parquet", "data"),
        ("data/", "data"),
        (".", ""),
    ],
)
def test_table_and_configuration_stand_beside_the_source(given, base, tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/corpus.jsonl.gz").touch()
    (tmp_path / "data/v1.2.csv").touch()
    assert place_of(given) == str(tmp_path / base) + ".yaml"


def test_a_store_keeps_the_table_and_this_folder_the_configuration(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert place_of("s3://bucket/corpus/*.parquet") == str(tmp_path / "corpus.yaml")
    assert place_of("dataset:org/name") == str(tmp_path / "name.yaml")
    with pytest.raises(InputError, match="has no name"):
        place_of("s3://bucket")
    with pytest.raises(InputError, match="has no name"):
        place_of("/*.csv")


def test_documents_are_told_from_configurations(notes):
    (notes.parent / "run.conf").write_text("source: {}\n")
    assert [is_source(given) for given in ("notes", "notes/*.md", "notes/note 1.md", "s3://b/x", "dataset:a")] == [
        True
    ] * 5
    assert [is_source(given) for given in ("run.yaml", "missing.yml", "run.conf", "/dev/null")] == [False] * 4
    for name, content in {
        "x.bin": b"\xff\0\1",
        "x": b"",
        "README": b"See the source: it is open.\n",
        "x.mp4": b"\0" * 9,
    }.items():
        (notes.parent / name).write_bytes(content)
        with pytest.raises(InputError, match=rf"the format of '{name}' is unknown, and it is no configuration.* \.md"):
            is_source(name)
    with pytest.raises(InputError, match="'ntoes' does not exist in the working directory"):
        is_source("ntoes")


def test_a_table_is_no_source(notes, tiny_model):
    spec = choose("notes", Wishes(model=str(tiny_model))).spec()
    inline.embed(spec)
    with pytest.raises(InputError, match="is a table that was embedded already"):
        choose("notes.embeddings", Wishes())


def test_an_empty_folder_is_said_to_be_empty(tmp_path):
    with pytest.raises(InputError, match=f"the folder '{tmp_path}' is empty"):
        choose(str(tmp_path), Wishes())


def test_a_file_that_was_embedded_stays_a_file_of_its_folder(notes, tiny_model):
    """One file is embedded by itself, then the folder that now has its table, and the other way round."""
    for source in ("notes/note 1.md", "notes", "notes/note 2.md"):
        chosen = for_source(source, Wishes(model=str(tiny_model)), writes=True)
        assert inline.embed(chosen.spec()).counts.rows == (6 if source == "notes" else 1)
    chosen = choose("notes", Wishes())
    assert chosen.seen.left_out[0] == "2 tables below the source are left out: 'note 1.embeddings', 'note 2.embeddings'"
    for said in (chosen.told(writes=True), chosen.yaml):
        assert "tables below the source are left out: 'note 1.embeddings'" in said
    assert inline.embed(config.load("notes.yaml")).version == 1


def test_files_of_rows_beside_more_documents_are_left_out_and_told(notes, tiny_model):
    (notes / "expenses.csv").write_text("what\nbread\n")
    chosen = for_source("notes", Wishes(model=str(tiny_model)), writes=True)
    assert inline.embed(config.load(chosen.place)).counts.rows == 6
    for said in (chosen.told(writes=True), chosen.yaml):
        assert (
            "1 file left out, whose rows are no documents: 'expenses.csv'; give a pattern to embed these"
            in said.lower()
        )


# --- settings

VALUES = {
    "source.exclude": st.lists(st.text("a*é\"'\u2028: #", min_size=1), min_size=1),
    "source.csv.delimiter": st.sampled_from(";|\t"),
    "source.encoding": st.sampled_from(["auto", "latin-1"]),
    "source.front_matter": st.sampled_from(["text", "columns"]),
    "source.format": st.sampled_from(["auto", "documents"]),
    "source.keep": st.sampled_from([["path"], {"path": "place"}]),
    "source.limit": st.one_of(st.none(), st.integers(1, 9)),
    "source.storage_options.anon": st.booleans(),
    "source.storage_options.key": st.just("${HOME}"),
    "chunk.max_tokens": st.integers(10, 99),
    "chunk.border": st.sampled_from(["word", "sentence"]),
    "model.prompt": st.text("x: \n#'", max_size=9),
    "model.normalize": st.booleans(),
    "table.keep_text": st.booleans(),
    "limits.unit_rows": st.integers(1, 99),
    "resources.encoders": st.sampled_from(["auto", 2]),
}


@st.composite
def overrides(draw):
    keys = draw(st.sets(st.sampled_from(sorted(VALUES)), max_size=6))
    if "chunk.border" in keys:
        keys.add("chunk.max_tokens")
    return {key: draw(VALUES[key]) for key in sorted(keys)}


@settings(max_examples=100, deadline=None)
@given(overrides(), WORDS)
def test_settings_are_written_so_that_the_file_is_the_run_that_was_asked_for(given_keys, word):
    asked = [f"{key}={json.dumps(value)}" for key, value in given_keys.items()]
    bare = _made("notes", ["text"], [{"text": f"{word} {number}"} for number in range(3)])
    chosen = replace(bare, settings=config.of_overrides(asked))
    assert chosen.spec() == config.from_mapping(yaml.safe_load(bare.yaml), asked)
    raw = yaml.safe_load(chosen.yaml)
    assert ("# chunk:" in chosen.yaml) == ("chunk" not in raw)
    assert all(key.partition(".")[0] in raw for key in given_keys)
    assert given_keys == {} or "as you said" in chosen.told(writes=True)
    assert all(f"{key}=" in chosen.told(writes=True) or isinstance(value, dict) for key, value in given_keys.items())


def test_the_second_command_is_the_same_table(notes, tiny_model):
    (notes / "drafts").mkdir()
    (notes / "drafts/a.md").write_text(NOTE)
    asked = ["source.exclude=[drafts]", "chunk.max_tokens=16", f"model.path={tiny_model}"]
    first = inline.embed(for_source("notes", Wishes(), asked, writes=True).spec())
    assert for_source("notes", Wishes(), writes=True) is None
    again = inline.embed(config.load("notes.yaml"))
    assert (again.version, first.counts.documents) == (1, 6)
    assert first.counts.rows > 6


@pytest.mark.parametrize(
    ("wishes", "asked", "said"),
    [
        (Wishes(), "source.storage_options.key=abc", "can see it"),
        (Wishes(), "feeds.f.url=postgresql://me:secret@host/x", "gives a password or a key"),
        (Wishes(), "source.path=elsewhere", "give the documents themselves"),
        (Wishes(), "source.txt=a", "did you mean 'text'"),
        (Wishes(), "chunk.overlap_tokens=3", "chunk.max_tokens is missing"),
        (Wishes(text=("text",)), "source.text=file", "--text and --set source.text are both given"),
        (Wishes(model="a"), "model.path=b", "--model and --set model.path are both given"),
    ],
)
def test_settings_that_cannot_be_written_leave_no_file(notes, wishes, asked, said):
    with pytest.raises(InputError, match=said) as caught:
        for_source("notes", wishes, [asked], writes=True)
    assert "secret" not in str(caught.value)
    assert not os.path.exists("notes.yaml")


def test_what_options_say_settings_say_too(notes, tiny_model):
    asked = ["source.text=file", "source.id=null", f"model.path={tiny_model}", "table.path=there"]
    wishes = Wishes(text=("file",), id=(), model=str(tiny_model), table="there")
    assert choose("notes", Wishes(), asked).yaml == choose("notes", wishes).yaml


def test_init_writes_settings_and_names_the_table_after_its_output(notes, tiny_model, capsys):
    arguments = ["notes", "--set", "chunk.max_tokens=16", "--model", str(tiny_model)]
    assert init.main(arguments) == 0
    assert init.main([*arguments, "--output", "other.v2.yaml"]) == 0
    own, other = config.load("notes.yaml"), config.load("other.v2.yaml")
    assert (own.table.path, other.table.path) == (f"{notes}.embeddings", f"{notes.parent}/other.v2.embeddings")
    assert replace(other, table=own.table) == own
    assert own.chunk.max_tokens == 16
    capsys.readouterr()
    assert init.main(arguments) == 0
    assert f"nothing was written: {notes}.yaml was there already, and says the same" in capsys.readouterr().out
    assert init.main([*arguments, "--output", "third.yaml", "--table", "mine"]) == 0
    assert config.load("third.yaml").table.path == f"{notes.parent}/mine"


# --- tables of other sources


def test_a_table_of_another_source_is_not_taken(notes, tiny_model):
    wishes = Wishes(model=str(tiny_model))
    inline.embed(for_source("notes/*1.md", wishes, writes=True).spec())
    (notes.parent / "notes.yaml").rename("moved.yaml")
    for other, writes in (("notes/*2.md", True), ("notes/note 2.md", False)):
        with pytest.raises(InputError, match=r"was built from another source, with files such as '.*note 1\.md'"):
            for_source(other, replace(wishes, table=f"{notes}.embeddings"), writes=writes)
    assert not os.path.exists("notes.yaml")
    for own in ("notes/*1.md", "notes", "notes/**", "notes/*[12].md", "{notes,notes}/*.md"):
        choose(own, replace(wishes, table="notes.embeddings"))
    assert for_source("notes/*2.md", replace(wishes, table="other"), writes=True).table == f"{notes.parent}/other"


def test_a_model_that_is_not_at_hand_leaves_the_lengths_open(notes):
    chosen = choose("notes", Wishes(model="nobody/nothing"))
    assert isinstance(chosen.lengths, str)
    assert "not counted in tokens" in chosen.told(writes=True)
    assert config.from_mapping(yaml.safe_load(chosen.yaml)).model.path == "nobody/nothing"


@settings(max_examples=100, deadline=None)
@given(WORDS, st.lists(WORDS, min_size=1, max_size=3, unique=True), WORDS)
def test_whatever_names_are_they_come_back_from_the_yaml(path, columns, example):
    rows = [dict.fromkeys(columns, f"{example} some words {number}") for number in range(3)]
    text = first_yaml.written(_made(path, columns, rows))
    raw = yaml.safe_load(text)
    assert raw["source"]["path"] == path
    assert raw["source"]["text"] == (columns[0] if len(columns) == 1 else columns)
    assert list(raw) == ["source", "model", "table"]


def _made(path, columns, rows):
    import pyarrow as pa

    from pipeline.runs.first_spec import Chosen
    from pipeline.sources.roles import Roles
    from pipeline.sources.seen import Column, Seen

    seen = Seen(
        files=(),
        looked_into=0,
        rows=len(rows),
        columns=tuple(Column(name=name, type=pa.string(), values=tuple(row[name] for row in rows)) for name in columns),
    )
    roles = Roles(text=tuple(columns), id=(), keep=(), text_reason="r\ns", id_reason=path, left_out=tuple(columns))
    lengths = TextLengths(texts=3, mean=9.0, most=9, limit=4, longer=3)
    return Chosen(
        source=path, place=path, model=path, model_reason="r", table=path, seen=seen, roles=roles, lengths=lengths
    )


def test_rows_of_json_lines_are_chosen_and_run(tmp_path, tiny_model):
    rows = [{"slug": f"s{number}", "title": f"About {number}", "body": NOTE * 2, "tags": ["a"]} for number in range(9)]
    (tmp_path / "posts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    chosen = for_source(str(tmp_path / "posts.jsonl"), Wishes(model=str(tiny_model)), writes=True)
    spec = config.load(chosen.place)
    assert (spec.source.id, spec.source.text, spec.source.keep) == ("slug", ("title", "body"), ("title",))
    assert inline.embed(spec).counts.rows == 9
