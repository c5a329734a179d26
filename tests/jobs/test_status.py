"""`python -m jobs.status`: exit codes, what it prints and loads; rolled back tables are held until they are released."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import pipeline
from jobs import embed, status
from pipeline.errors import CommitConflict, InputError
from pipeline.progress import size
from pipeline.storage import Folder
from pipeline.table import snapshot
from pipeline.table.operations import restore, vacuum
from pipeline.table.publication import Publication
from tests import inline

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config(tmp_path, tiny_model) -> Path:
    raw = {
        "source": {"path": str(tmp_path / "docs"), "id": "id", "text": "text", "keep": ["title"]},
        "model": {"path": str(tiny_model)},
        "table": {"path": str(tmp_path / "table"), "partition_by": ["lang"]},
    }
    (tmp_path / "docs").mkdir()
    (tmp_path / "run.yaml").write_text(json.dumps(raw))
    return tmp_path / "run.yaml"


def write_source(config: Path, name: str, texts: dict[str, str]) -> None:
    rows = [{"id": key, "text": text, "title": key.upper(), "lang": key[0]} for key, text in texts.items()]
    (config.parent / "docs" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def two_versions(config: Path) -> Folder:
    write_source(config, "one", {"a1": "the market", "b1": "oil people"})
    write_source(config, "two", {"a2": "new york"})
    inline.embed(pipeline.config.load(config))
    write_source(config, "one", {"a1": "the market of oil", "b2": "small reports"})
    inline.embed(pipeline.config.load(config))
    return Folder(str(config.parent / "table"), {})


def run(*arguments: object) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "jobs.status", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def test_a_rolled_back_table_is_held_until_it_is_released_and_then_follows_its_source(config, capsys):
    table = two_versions(config)
    first, second = (pipeline.read(table.url, number).to_table().sort_by("id") for number in (1, 2))
    assert status.main([str(config), "--rollback", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"version": 3, "rows_of": 1}
    # Vectors, hashes, kept columns and partitions, to the last bit.
    assert pipeline.read(table.url).to_table().sort_by("id").equals(first)
    assert inline.read_table(table.url).select(["id", "embedding"]).equals(first.select(["id", "embedding"]))
    for dry in ([], ["--dry-run"]):
        with pytest.raises(InputError, match=r"rows of version 1 and is held.*--release"):
            embed.main([str(config), *dry])
    assert snapshot.versions(table) == [1, 2, 3]
    assert status.main([str(config), "--release"]) == 0
    inline.embed(pipeline.config.load(config))
    inline.same_rows(pipeline.read(table.url).to_table().sort_by("id"), second)
    assert [version.rows_of for version in pipeline.table.status.status(table).versions] == [None, None, 1, None]


def test_a_rival_that_publishes_before_the_rollback_wins(config, monkeypatch):
    table = two_versions(config)
    check = Publication.check_files

    def and_then_a_rival_publishes(*arguments):
        check(*arguments)
        monkeypatch.setattr(Publication, "check_files", check)
        write_source(config, "three", {"c1": "of people"})
        inline.embed(pipeline.config.load(config))

    monkeypatch.setattr(Publication, "check_files", and_then_a_rival_publishes)
    with pytest.raises(CommitConflict, match="another run published version 3"):
        restore.roll_back(table, 1)
    current = snapshot.current(table)
    assert (current.version, current.rows_of, current.counts.rows) == (3, None, 4)
    assert pipeline.read(table.url).to_table().num_rows == inline.read_table(table.url).num_rows == 4


def test_the_command_says_how_the_table_stands_and_ends_with_2_for_what_it_can_not_do(config):
    code, _, told = run(config)
    assert (code, told.startswith("error: table"), "has no version yet" in told) == (2, True, True)
    table = two_versions(config)
    before = {(info.path, info.version) for info in table.list(temporary=True)}
    code, shown, _ = run(config)
    assert (code, "at version 2\n" in shown) == (0, True)
    code, shown, _ = run(config, "--json")
    found = json.loads(shown)
    assert (code, found["held"], [version["rows"] for version in found["versions"]]) == (0, False, [3, 3])
    code, shown, _ = run(config, "--files", 1, "--json")
    assert (code, sum(row["rows"] for row in json.loads(shown)["files"])) == (0, 3)
    refused = [
        (("--rollback", 2), "the current one"),
        (("--rollback", 7), "no version 7"),
        (("--release",), "not held"),
    ]
    for arguments, words in [*refused, (("--files", 9), "no version 9")]:
        code, _, told = run(config, *arguments)
        assert (code, told.startswith("error: "), words in told) == (2, True, True), told
    assert run(config, "--release", "--rollback", 1)[0] == 2
    assert {(info.path, info.version) for info in table.list(temporary=True)} == before
    write_source(config, "two", {"a2": "york"})
    inline.embed(pipeline.config.load(config))
    vacuum.clean(table, 0)
    code, _, told = run(config, "--rollback", 1)
    assert (code, "nothing was published" in told, snapshot.versions(table)) == (2, True, [1, 2, 3])


def test_a_cleaning_says_what_it_kept_and_why(config, capsys):
    table = two_versions(config)
    kept = table.list("meta/trash/")
    num_bytes = sum(info.size for info in kept)
    for flags, age in (((), "7 days"), (("--dry-run",), "7 days"), (("--older-than", "1"), "1 day")):
        assert status.main([str(config), "--clean", *flags]) == 0
        told = capsys.readouterr().out
        assert told.startswith("would remove 0 files" if flags == ("--dry-run",) else "removed 0 files of orphans"), (
            told
        )
        assert (
            f"  kept {len(kept)} files in the trash with {size(num_bytes)}, younger than {age} or of a version that is kept"
            in told
        )
    # The version before the current one is kept, however old its files are.
    assert status.main([str(config), "--clean", "--older-than", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kept"] == {"files": len(kept), "bytes": num_bytes}
    for name in ("c1", "c2"):
        write_source(config, name, {name: "small reports"})
        inline.embed(pipeline.config.load(config))
    assert status.main([str(config), "--clean", "--older-than", "0"]) == 0
    told = capsys.readouterr().out
    assert (f"{len(kept)} files of trash" in told, "kept" in told) == (True, False), told


def test_looking_loads_neither_torch_nor_ray(config):
    two_versions(config)
    script = (
        f"import sys; from jobs import status; assert status.main([{str(config)!r}]) == 0; "
        "sys.exit(bool({'torch', 'ray', 'transformers'} & sys.modules.keys()))"
    )
    assert (
        subprocess.run([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.DEVNULL, check=False).returncode == 0
    )
