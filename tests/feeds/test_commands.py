"""The commands of feeds as a person gives them: feed, search through the store, and their exit codes and words."""

import contextlib
import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from jobs import feed, reindex, search
from pipeline.config import load
from pipeline.errors import ConfigError, InputError
from tests.feeds.nights import Nights, nights_of
from tests.feeds.stores import Place


@pytest.fixture
def place(postgres_places: Callable[[], contextlib.AbstractContextManager[Place]]) -> Iterator[Place]:
    with postgres_places() as place:
        yield place


@pytest.fixture
def nights(tmp_path: Path, tiny_model: Path, place: Place) -> Nights:
    return nights_of(tmp_path / "n", tiny_model, place)


@pytest.fixture
def config(nights: Nights, tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch) -> str:
    """A configuration with two feeds of the same store, whose address comes from the environment."""
    monkeypatch.setenv("PG_URL", place.spec.url)
    schema = place.spec.name.partition(".")[0]
    sections = {
        "source": {"path": nights.spec.source.path, "id": "id", "text": "text", "keep": ["title", "number"]},
        "model": {"path": nights.spec.model.path},
        "table": {"path": nights.spec.table.path, "partition_by": ["lang"]},
        "feeds": {
            "one": {"store": "postgres", "url": "${PG_URL}", "name": f"{schema}.docs", "columns": ["title", "lang"]},
            "two": {"store": "postgres", "url": "${PG_URL}", "name": f"{schema}.texts", "text": True},
        },
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(sections))
    return str(path)


def test_all_feeds_of_a_file(nights: Nights, config: str, capsys: pytest.CaptureFixture[str]) -> None:
    nights.night(range(20))
    assert feed.main([config, "--dry-run"]) == 10
    assert feed.main([config]) == 0
    said = capsys.readouterr().out
    assert said.count("sent 20, deleted 0") == 2
    assert feed.main([config, "--dry-run"]) == 0
    assert feed.main([config, "one", "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out.splitlines()[-1])["feeds"]
    assert (told["feed"], told["action"], told["exit_code"]) == ("one", "nothing to do", 0)
    assert feed.main([config, "--status"]) == 0
    assert "shows version 1" in capsys.readouterr().out
    assert feed.main([config, "--verify", "--rows", "5"]) == 0
    assert feed.main([config, "two", "--rebuild"]) == 0
    assert feed.main([config, "two", "--switch-back"]) == 0
    assert feed.main([config, "--drop-old"]) == 0


def test_a_feed_that_fails_keeps_no_other_from_its_night(
    nights: Nights, config: str, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    nights.night(range(5))
    schema = place.spec.name.partition(".")[0]
    place.client.execute(f"CREATE TABLE {schema}.docs (id int)")
    assert feed.main([config]) == 2
    said = capsys.readouterr().out
    assert "feed one: error: the database has something named" in said
    assert "feed two (postgres" in said
    assert "sent 5" in said


def test_a_reindex_hands_its_leave_to_delete_on_to_the_feeds_and_a_feed_names_its_command(
    nights: Nights, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    nights.night(range(40))
    assert feed.main([config]) == 0
    nights.night(gone=range(20))
    capsys.readouterr()
    assert reindex.main([config, "--feed"]) == 2
    for line, name in zip(capsys.readouterr().out.splitlines()[-2:], ("one", "two"), strict=True):
        assert line.startswith(f"feed {name}: error: 20 of 40 rows would be deleted from the store"), line
        assert line.endswith(f"start `python -m jobs.feed {config} {name} --allow-deletes`"), line
    assert reindex.main([config, "--feed", "--allow-deletes"]) == 0
    assert capsys.readouterr().out.count("deleted 20") == 2


def test_the_version_of_a_generation_is_its_markers(
    nights: Nights, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    nights.night(range(20))
    assert feed.main([config, "one"]) == 0
    for version in (2, 3):
        nights.night([f"new {version}"])
        for flags, code in ((["--status"], 0), (["--dry-run"], 10)):
            capsys.readouterr()
            assert feed.main([config, "one", *flags]) == code
            shown = capsys.readouterr().out
            assert re.search(r"\n  generation docs__g1_\w+, version 1\n", shown), shown
            assert f"the table is at {version}" in shown or f"from version 1 to {version}" in shown
    assert feed.main([config, "one"]) == 0
    assert re.search(r"\n  generation docs__g1_\w+, version 3\n", capsys.readouterr().out)


def test_a_view_that_was_dropped_is_told_and_shown_again(
    nights: Nights, config: str, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    nights.night(range(10))
    assert feed.main([config, "one", "--no-switch"]) == 0
    with pytest.raises(
        InputError, match=r"shows no generation yet: docs__g1_\w+ is loaded, and .* one --switch` shows it"
    ):
        feed.main([config, "one", "--verify"])
    assert feed.main([config, "one", "--switch"]) == 0
    schema = place.spec.name.partition(".")[0]
    place.client.execute(f"DROP VIEW {schema}.docs")
    told = rf"shows no generation, though docs__g1_\w+ stands there: '{schema}\.docs' was removed"
    for verb in ("--verify", "--drop-old"):
        with pytest.raises(InputError, match=told):
            feed.main([config, "one", verb])
    capsys.readouterr()
    assert feed.main([config, "one", "--status"]) == 0
    assert re.search(told, capsys.readouterr().out)
    assert feed.main([config, "one"]) == 0
    assert feed.main([config, "one", "--verify"]) == 0


def test_the_guide_says_how_a_feed_ends(
    nights: Nights, config: str, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    nights.night(range(10))
    assert feed.main([config, "one"]) == 0
    schema = place.spec.name.partition(".")[0]
    (generation,) = place.client.execute(f"SELECT generation FROM {schema}.embedding_feeds").fetchone()
    guide = (Path(__file__).parents[2] / "docs" / "feed-postgres.md").read_text()
    (statements,) = [block for block in re.findall(r"```sql\n(.*?)```", guide, re.DOTALL) if "DROP VIEW" in block]
    for statement in re.sub("--.*", "", statements).replace("docs__g1_..", generation).split(";"):
        if statement.strip():
            place.client.execute(f"SET search_path = {schema}; {statement}")
    for relation in ("embedding_feeds", "embedding_feed_units"):
        assert place.client.execute(f"SELECT count(*) FROM {schema}.{relation}").fetchone() == (0,)
    capsys.readouterr()
    assert feed.main([config, "one", "--status"]) == 0
    assert "shows no generation: load it first" in capsys.readouterr().out
    assert feed.main([config, "one"]) == 0


def test_verify_says_one_where_the_store_differs(nights: Nights, config: str, place: Place) -> None:
    nights.night(range(10))
    assert feed.main([config, "one"]) == 0
    schema = place.spec.name.partition(".")[0]
    generation = place.client.execute(f"SELECT generation FROM {schema}.embedding_feeds").fetchone()[0]
    for harm in (
        f"DELETE FROM {schema}.{generation} WHERE id = '3'",
        f"UPDATE {schema}.{generation} SET title = 'x' WHERE id = '3'",
        f"UPDATE {schema}.{generation} SET embedding = embedding + embedding WHERE id = '3'",
    ):
        place.client.execute(harm)
        assert feed.main([config, "one", "--verify"]) == 1
        assert feed.main([config, "one", "--repair"]) == 0
        assert feed.main([config, "one", "--verify"]) == 0


def test_a_question_to_the_store(nights: Nights, config: str, capsys: pytest.CaptureFixture[str]) -> None:
    nights.night(range(40))
    feed.main([config])
    capsys.readouterr()
    question = nights.documents["7"]["text"]
    assert search.main([config, question, "--feed", "one", "--top", "3", "--compare", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["rows"][0]["id"] == "7" == told["exact"][0]["id"]
    assert told["agreement"] == 1.0
    assert told["rows"][0]["score"] == pytest.approx(1.0, abs=1e-5)
    assert set(told["rows"][0]) == {"id", "title", "lang", "score"}
    assert search.main([config, question, "--feed", "one", "--where", "lang=de", "--compare"]) == 0
    said = capsys.readouterr().out
    assert "in docs__g1_" in said
    assert "100% of it are above" in said
    assert "lang=de" in said
    for spaced in (" lang = de", "lang == 'de'", "`lang`=de "):
        assert search.main([config, question, "--feed", "one", "--where", spaced, "--compare"]) == 0
        assert capsys.readouterr().out == said
    assert search.main([config, question, "--feed", "one", "--where", "lang = xx"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "no row meets --where 'lang = xx'"
    for arguments, message in [
        (["--compare"], "--compare goes with --feed alone"),
        (["--hybrid", "--feed", "one"], "--hybrid and --feed don't go together"),
        (["--feed", "one", "--where", "lang"], "not of the form column=value"),
        (["--feed", "one", "--where", "lang=de", "lang=en"], "gives 'lang' two values, 'de' and 'en': no row has both"),
        (["--feed", "one", "--where", "number=3"], r"names 'number', which the feed doesn't have; it has title, lang"),
        (["--feed", "three"], "has no feed 'three'; it has one, two"),
    ]:
        with pytest.raises(InputError, match=message):
            search.main([config, question, *arguments])


def test_flags_that_do_not_go_together(nights: Nights, config: str) -> None:
    nights.night(range(3))
    for arguments, message in [
        (["--dry-run", "--verify"], "goes with loads and syncs alone"),
        (["--verify", "--rows", "0"], "at least 1 row"),
        (["nobody"], "has no feed 'nobody'"),
        (["--to", "7"], "has no version 7"),
        (["--verify"], "shows no generation: load it first"),
    ]:
        with pytest.raises(InputError, match=message):
            feed.main([config, *([] if "nobody" in arguments else ["one"]), *arguments])
    with pytest.raises(SystemExit):
        feed.main([config, "--verify", "--rebuild"])


def test_an_address_that_the_environment_lacks_keeps_nothing_else_from_working(
    nights: Nights, config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PG_URL")
    nights.night(range(3))
    assert load(config).feeds["one"].name.endswith(".docs")
    with pytest.raises(ConfigError, match=r"feeds\.one uses \$\{PG_URL\}.*`export PG_URL=\.\.`"):
        feed.main([config, "one"])


def test_a_configuration_without_feeds(nights: Nights, tmp_path: Path) -> None:
    path = tmp_path / "bare.yaml"
    spec = dataclasses.asdict(nights.spec)
    path.write_text(
        yaml.safe_dump(
            {"source": {"path": "-", "text": "-"}, "model": {"path": "-"}, "table": {"path": spec["table"]["path"]}}
        )
    )
    with pytest.raises(InputError, match="no section feeds"):
        feed.main([str(path)])
