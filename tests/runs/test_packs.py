"""Many small files are one unit; a reindex opens those of them that changed, and ends in the table of a fresh build."""

import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.config import RunSpec
from pipeline.errors import GateFailed
from pipeline.runs import prepare
from pipeline.sources import survey
from pipeline.storage import Folder, disk
from pipeline.table import dead_letters, snapshot
from pipeline.table.operations import purge
from tests import inline
from tests.inline import read_table, same_rows, spec_of

FILES = 40


@contextmanager
def opens() -> Iterator[Counter[str]]:
    """Counts how often each file of a source is opened, by its name."""
    found: Counter[str] = Counter()
    whole = disk.open_with_info

    def counted(path: str) -> Any:
        found[Path(path).name] += 1
        return whole(path)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(disk, "open_with_info", counted)
        yield found


@pytest.fixture(autouse=True)
def few_looks(monkeypatch):
    """Planning looks into some files of a source, and into all of a small one; here into three."""
    monkeypatch.setattr(survey, "_MOST_SAMPLED_FILES", 0)
    monkeypatch.setattr(survey, "_SAMPLED_FILES", 3)


def document(name: str, version: int) -> str:
    """A row a file, so that every file counts."""
    return json.dumps({"id": name, "text": f"text {name} {version}", "kind": version % 2}) + "\n"


def write(folder: Path, name: str, version: int) -> None:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(document(name, version) if path.suffix == ".jsonl" else f"text {name} {version}")


def planned(spec: RunSpec) -> set[str]:
    """The files that planning opens."""
    with opens() as found:
        prepare.prepare(spec, writes=False)
    return set(found)


def is_of_a_fresh_build(spec: RunSpec, table: Path, fresh: Path, **sections: Any) -> snapshot.Snapshot:
    """The table has the rows, the units, their counts and the dead letters of a build from nothing."""
    wanted = inline.embed(spec_of(spec.source.path, spec.model.path, fresh, **sections))
    version = snapshot.current(Folder(str(table)))
    same_rows(read_table(table), read_table(fresh))
    assert version.tallies() == wanted.tallies()
    for number, each in ((version, table), (wanted, fresh)):
        assert failed(each).total() == number.counts.failed
    assert failed(table) == failed(fresh)
    return version


def failed(table: Path) -> Counter[str]:
    letters = dead_letters.read(Folder(str(table)), snapshot.current(Folder(str(table))))
    return Counter(path for rows in letters for path in rows.column("path").to_pylist())


@pytest.mark.parametrize("suffix", ["jsonl", "txt"])
@pytest.mark.parametrize("changed", [0, 1, 3, FILES])
def test_a_reindex_opens_the_files_of_a_pack_that_changed_and_no_other(suffix, changed, tmp_path, tiny_model):
    corpus, table = tmp_path / "corpus", tmp_path / "table"
    names = [f"{number:04d}.{suffix}" for number in range(FILES)]
    for name in names:
        write(corpus, name, 0)
    sections = {"source": {"id": "path" if suffix == "txt" else "id", "text": "text"}}
    spec = spec_of(corpus, tiny_model, table, **sections)
    first = inline.embed(spec)
    assert len(first.live_units()) < FILES / 8
    chosen = set(random.Random(changed).sample(names, changed))
    for name in chosen:
        write(corpus, name, 10)
    (corpus / (gone := next(iter(set(names) - chosen), names[0]))).unlink(missing_ok=changed == FILES)
    chosen.discard(gone)
    looked = planned(spec)
    with opens() as found:
        version = inline.reindex(spec)
    assert set(found) - looked == chosen - looked
    # Its keys are read, its texts are encoded, its rows are written, and planning may look into it.
    assert max((found[name] for name in chosen), default=0) <= 4
    assert max((found[name] for name in set(names) - chosen), default=0) <= 1
    counts = version.counts
    assert (counts.rows, counts.changed, counts.deleted) == (FILES - 1, len(chosen), 1)
    assert version.version == is_of_a_fresh_build(spec, table, tmp_path / "fresh", **sections).version
    with opens() as found:
        assert inline.reindex(spec).version == version.version
    assert set(found) <= looked


@pytest.mark.parametrize(
    ("suffix", "where", "opened"),
    [("jsonl", "kind == 0", "all"), ("txt", "path < '{corpus}/0020'", "changed")],
    ids=["rows that nobody counted by file", "files that are a row each"],
)
def test_rows_that_are_left_out_stay_counted(suffix, where, opened, tmp_path, tiny_model):
    """A version counts them by unit: where files don't tell their rows, those of a pack with some are read."""
    corpus, table = tmp_path / "corpus", tmp_path / "table"
    names = [f"{number:04d}.{suffix}" for number in range(FILES)]
    for number, name in enumerate(names):
        write(corpus, name, number)
    source = {"id": "path" if suffix == "txt" else "id", "where": where.format(corpus=corpus)}
    spec = spec_of(corpus, tiny_model, table, source=source)
    inline.embed(spec)
    write(corpus, names[3], 20)
    looked = planned(spec)
    with opens() as found:
        version = inline.reindex(spec)
    assert set(found) - looked == ({names[3]} if opened == "changed" else set(names)) - looked
    assert version.counts.skipped >= FILES / 4
    is_of_a_fresh_build(spec, table, tmp_path / "fresh", source=source)


def test_dead_letters_of_files_that_did_not_change_stay(tmp_path, tiny_model):
    corpus, table = tmp_path / "corpus", tmp_path / "table"
    for number in range(12):
        write(corpus, f"{number:04d}.jsonl", number)
    for number in (2, 7):
        with (corpus / f"{number:04d}.jsonl").open("a") as file:
            file.write('{"id": "bad", "text"\n')
    limits = {"limits": {"max_failed_rows": 10}}
    spec = spec_of(corpus, tiny_model, table, **limits)
    inline.embed(spec)
    write(corpus, "0003.jsonl", 33)
    with (corpus / "0003.jsonl").open("a") as file:
        file.write("no JSON\n")
    version = inline.reindex(spec)
    assert (version.counts.failed, version.counts.failed_new) == (3, 1)
    is_of_a_fresh_build(spec, table, tmp_path / "fresh", **limits)
    write(corpus, "0007.jsonl", 77)
    version = inline.reindex(spec)
    assert (version.counts.failed, version.counts.failed_new) == (2, 0)
    is_of_a_fresh_build(spec, table, tmp_path / "again", **limits)


def test_an_id_that_an_unchanged_file_of_the_pack_has_stands_twice(tmp_path, tiny_model):
    corpus = tmp_path / "corpus"
    for number in range(6):
        write(corpus, f"{number:04d}.jsonl", number)
    spec = spec_of(corpus, tiny_model, tmp_path / "table")
    inline.embed(spec)
    (corpus / "0002.jsonl").write_text(document("0004.jsonl", 1))
    with pytest.raises(GateFailed, match=r"share their id with another row, for example '0004\.jsonl'"):
        inline.reindex(spec)


def test_a_purged_row_of_a_file_that_did_not_change_stays_purged(tmp_path, tiny_model):
    """Of files that are a row each it is known who left out what; else the pack is read, and brings the row back."""
    corpus, table = tmp_path / "corpus", tmp_path / "table"
    for number in range(6):
        write(corpus, f"{number:04d}.txt", number)
    spec = spec_of(corpus, tiny_model, table, source={"id": "path"})
    inline.embed(spec)
    purge.purge(Folder(str(table)), [str(corpus / "0004.txt")])
    write(corpus, "0002.txt", 9)
    version = inline.reindex(spec)
    assert (version.counts.rows, version.counts.skipped) == (5, 1)
    assert str(corpus / "0004.txt") not in read_table(table)["id"].to_pylist()


CHANGES = st.lists(
    st.tuples(st.sampled_from(["change", "remove", "add", "break", "shrink"]), st.integers(0, 19)), max_size=6
)


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(nights=st.lists(CHANGES, min_size=2, max_size=3))
def test_whatever_happens_to_a_pack_the_table_is_that_of_a_fresh_build(nights, tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("packs")
    corpus, table = folder / "corpus", folder / "table"
    limits: Mapping[str, Any] = {"limits": {"max_failed_rows": 1000}}
    for number in range(16):
        write(corpus, f"{number:04d}.jsonl", number)
    spec = spec_of(corpus, tiny_model, table, **limits)
    inline.embed(spec)
    for night, changes in enumerate(nights):
        for kind, number in changes:
            path = corpus / f"{number:04d}.jsonl"
            if kind == "remove":
                path.unlink(missing_ok=True)
            elif kind == "break":
                path.write_text(document(path.name, night) + "no JSON\n")
            elif kind == "shrink":
                path.write_text("")
            else:
                write(corpus, path.name, 100 * night + number)
        write(corpus, "9999.jsonl", night)
        inline.reindex(spec)
        is_of_a_fresh_build(spec, table, folder / f"fresh-{night}", **limits)
