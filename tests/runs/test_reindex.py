"""By row: whatever happens to the sources, the table is that of a build from nothing, and each new text is encoded once."""

import dataclasses
import gzip
import json
import os
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.config import LimitSpec, RunSpec
from pipeline.encoder.encoder import Encoder
from pipeline.errors import CommitConflict, GateFailed
from pipeline.runs import by_row, forecast, prepare, row_changes
from pipeline.runs.by_units import embed_units
from pipeline.storage import Folder
from pipeline.table import dead_letters, layout, materialise, record, row_sources, snapshot
from pipeline.table.operations import compact, merge_rows, purge, restore, vacuum
from pipeline.table.rows import dataset
from tests import inline
from tests.inline import read_table, same_rows, spec_of

Row = dict[str, Any]
GENERATIONS = 10
WORDS = ["market", "water", "world", "company", "people", "price", "oil", "game", "team", "year", "small", "shop"]
MODES: Mapping[str, dict[str, Any]] = {
    "whole": {},
    "chunks": {"chunk": {"max_tokens": 8, "overlap_tokens": 2}},
    "means": {"chunk": {"max_tokens": 8, "rows": "documents"}},
    "places": {"source": {"id": None, "where": "label < 2", "on_null": "skip"}},
}
"""Whole texts, chunks, documents of chunks; and some rows only, which have no id but their place."""


class Corpus:
    """Files of rows that change; a file is written anew only if something in it did, or if it is exported again."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.folder, self.next_id, self.next_file, self.clock = folder, 0, 0, 10**9
        self.files: dict[str, list[Row]] = {}
        folder.mkdir()
        for _ in range(4):
            self.files[self.new_name()] = [self.new_row() for _ in range(self.random.randint(1, 12))]
        self.written: dict[str, list[Row]] = {}
        self.write()

    def new_name(self) -> str:
        self.next_file += 1
        return f"{self.random.choice('abc')}-{self.next_file}.{self.random.choice(['parquet', 'jsonl'])}"

    def new_text(self) -> str:
        return " ".join(self.random.choice(WORDS) for _ in range(self.random.choice([1, 2, 3, 8, 20, 40])))

    def new_row(self) -> Row:
        self.next_id += 1
        others = [row["text"] for rows in self.files.values() for row in rows]
        text = self.random.choice(others) if others and self.random.random() < 0.3 else self.new_text()
        if self.random.random() < 0.05:
            text = None
        return {"id": f"d{self.next_id}", "text": text, "label": self.random.randint(0, 2), "kept": self.new_text()}

    def write(self, force: bool = False) -> None:
        for name in self.written.keys() - self.files.keys():
            (self.folder / name).unlink()
        for name, rows in self.files.items():
            if force or self.written.get(name) != rows:
                path = self.folder / name
                if path.suffix == ".parquet":
                    kinds = {"id": pa.string(), "text": pa.string(), "label": pa.int64(), "kept": pa.string()}
                    pq.write_table(pa.Table.from_pylist(rows, pa.schema(kinds)), path, row_group_size=5)
                else:
                    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
                self.clock += 1
                os.utime(path, ns=(self.clock, self.clock))
        self.written = {name: [dict(row) for row in rows] for name, rows in self.files.items()}

    def change(self) -> None:
        often = (self.insert, self.update, self.delete, self.move)
        seldom = (
            self.rename,
            self.export,
            self.keep,
            self.relabel,
            self.swap,
            self.drop_file,
            self.edit_part,
            self.touch,
        )
        for _ in range(self.random.randint(0, 4)):
            self.random.choice([*often, *often, *seldom])()
        # One row at least has a vector, though texts with the word `shop` may be refused: a table without rows has no files.
        while not any(
            row["text"] and "shop" not in row["text"] and row["label"] < 2
            for rows in self.files.values()
            for row in rows
        ):
            self.insert()
        self.write()

    def a_file(self) -> list[Row]:
        return self.files[self.random.choice(sorted(self.files))]

    def a_row(self) -> Row:
        rows = [row for name in sorted(self.files) for row in self.files[name]]
        return self.random.choice(rows) if rows else {}

    def insert(self) -> None:
        if self.random.random() < 0.3 or not self.files:
            self.files[self.new_name()] = []
        rows = self.a_file()
        for _ in range(self.random.randint(1, 4)):
            rows.insert(self.random.randint(0, len(rows)), self.new_row())

    def update(self) -> None:
        row = self.a_row()
        if row:
            row["text"] = self.new_row()["text"]

    def edit_part(self) -> None:
        """Of a long text some chunks stay; a document may shrink or grow."""
        row = self.a_row()
        if row and row["text"]:
            words = row["text"].split()
            cut = self.random.randint(0, len(words))
            row["text"] = " ".join([*words[:cut], *self.new_text().split(), *words[cut + 3 :]])

    def delete(self) -> None:
        rows = self.a_file() if self.files else []
        if rows:
            rows.pop(self.random.randrange(len(rows)))

    def move(self) -> None:
        rows = self.a_file() if self.files else []
        if rows:
            row = rows.pop(self.random.randrange(len(rows)))
            self.a_file().append(row)

    def swap(self) -> None:
        one, other = self.a_row(), self.a_row()
        if one:
            one["text"], other["text"] = other["text"], one["text"]

    def keep(self) -> None:
        row = self.a_row()
        if row:
            row["kept"] = self.new_text()

    def relabel(self) -> None:
        row = self.a_row()
        if row:
            row["label"] = self.random.randint(0, 2)

    def rename(self) -> None:
        if self.files:
            name = self.random.choice(sorted(self.files))
            self.files[self.new_name()] = self.files.pop(name)

    def drop_file(self) -> None:
        if len(self.files) > 1 and self.random.random() < 0.5:
            self.files.pop(self.random.choice(sorted(self.files)))

    def touch(self) -> None:
        """The same rows in a new file of the same name."""
        if self.files:
            self.written[self.random.choice(sorted(self.written))] = [{}]

    def export(self) -> None:
        """All rows in new files, in another order."""
        rows = [row for name in sorted(self.files) for row in self.files[name]]
        self.random.shuffle(rows)
        names = [self.new_name() for _ in range(self.random.randint(1, 5))]
        self.files = {name: rows[number :: len(names)] for number, name in enumerate(names)}


def spec_for(corpus: Path, model: Path, table: Path, mode: Mapping[str, Any]) -> RunSpec:
    sections: dict[str, Any] = {
        "source": {"keep": ["kept"]} | mode.get("source", {}),
        "table": {"partition_by": ["label"]},
        "limits": {"max_failed_rows": 1000},
    }
    return spec_of(corpus, model, table, **sections, **({"chunk": mode["chunk"]} if "chunk" in mode else {}))


def hashes(table: Path) -> set[bytes]:
    return set(read_table(table)["content_hash"].to_pylist()) if list((table / "data").rglob("*.parquet")) else set()


def replayed(table: Folder) -> dict[str, tuple[bytes, int]]:
    """The rows that all lists of changes come to, in order."""
    rows: dict[str, tuple[bytes, int]] = {}
    for version in snapshot.versions(table):
        upserts, deletes = {}, set()
        for info in table.list(layout.changes(version)):
            for row in snapshot.read_parquet(table.read(info.path)).to_pylist():
                if row["op"] == "upsert":
                    assert row["id"] not in upserts
                    assert rows.get(row["id"]) != (row["content_hash"], row["row_hash"])
                    upserts[row["id"]] = (row["content_hash"], row["row_hash"])
                else:
                    deletes.add(row["id"])
        assert not upserts.keys() & deletes
        for name in deletes:
            del rows[name]
        rows |= upserts
    return rows


def check_row_sources(table: Folder) -> None:
    """Every row is of a span of the list of sources, and each unit has as many rows as the list says."""
    version = snapshot.current(table)
    counted: dict[int, int] = {}
    for part in version.parts:
        numbers = row_sources.of(table, part).tolist()
        assert sorted(set(numbers)) == list(part.sources)
        for number in numbers:
            counted[number] = counted.get(number, 0) + 1
    for unit, numbers in version.units().items():
        assert sum(counted.pop(number, 0) for number in numbers) == version.tallies()[unit].rows
    assert not counted


def refusing(spec):
    encoder, tokenizer = BUILT(spec)
    refuser = Refusing(encoder.engine, encoder.budget_tokens, encoder.overhead_tokens)
    refuser.word = tokenizer.tokenize(["shop"]).ids[1]
    return refuser, tokenizer


BUILT = inline.built


class Refusing(Encoder):
    """Has no vector for texts with the word `shop`."""

    def encode(self, tokens, on_progress=None):
        encoded = super().encode(tokens, on_progress)
        rows = [
            row for row in range(len(tokens)) if self.word in tokens.ids[tokens.offsets[row] : tokens.offsets[row + 1]]
        ]
        encoded.vectors[rows] = np.nan
        return dataclasses.replace(encoded, failed=encoded.failed | dict.fromkeys(rows, "refused"))


def letters(table: Folder) -> list[tuple[str | None, str, int, str, str]]:
    """Dead letters of the current version, by the name of the file."""
    rows = [row for rows in dead_letters.read(table, snapshot.current(table)) for row in rows.to_pylist()]
    found = [(row["id"], Path(row["path"]).name, row["position"], row["stage"], row["error"]) for row in rows]
    return sorted(found, key=str)


@pytest.mark.parametrize(
    ("mode", "refuses"),
    [
        ("whole", True),
        ("chunks", False),
        pytest.param("means", True, marks=pytest.mark.slow),
        pytest.param("places", False, marks=pytest.mark.slow),
    ],
)
@settings(max_examples=1, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32))
def test_ten_generations_equal_a_build_from_nothing(mode, refuses, seed, tiny_model, tmp_path_factory):
    generations_of(seed, mode, refuses, tiny_model, tmp_path_factory)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "refuses"), [*((mode, False) for mode in MODES), ("whole", True), ("chunks", True), ("means", True)]
)
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32))
def test_so_do_those_of_other_histories(mode, refuses, seed, tiny_model, tmp_path_factory):
    generations_of(seed, mode, refuses, tiny_model, tmp_path_factory)


def generations_of(seed, mode, refuses, tiny_model, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patched:
        if refuses:
            patched.setattr(inline, "built", refusing)
        ten_generations(mode, refuses, seed, tiny_model, tmp_path_factory.mktemp("generations"))


def ten_generations(mode: str, refuses: bool, seed: int, tiny_model: Path, folder: Path) -> None:
    corpus = Corpus(folder / "corpus", seed)
    spec = spec_for(corpus.folder, tiny_model, folder / "table", MODES[mode])
    inline.embed(spec)
    table = Folder(str(folder / "table"))
    for generation in range(GENERATIONS):
        corpus.change()
        before = hashes(folder / "table")
        encoded: list[int] = []
        if corpus.random.random() < 0.2:
            inline.embed(spec)
        else:
            inline.reindex(spec, encoded=encoded)
            new = len(hashes(folder / "table") - before)
            assert sum(encoded) >= new if refuses else sum(encoded) == new
        fresh = folder / f"fresh-{generation}"
        wanted = inline.embed(spec_for(corpus.folder, tiny_model, fresh, MODES[mode]))
        same_rows(read_table(folder / "table"), read_table(fresh))
        assert letters(table) == letters(Folder(str(fresh)))
        counts = snapshot.current(table).counts
        assert (counts.rows, counts.documents) == (wanted.counts.rows, wanted.counts.documents)
        assert (counts.failed, counts.skipped) == (wanted.counts.failed, wanted.counts.skipped)
        check_row_sources(table)
        rows = read_table(folder / "table")
        expected = zip(rows["content_hash"].to_pylist(), rows["row_hash"].to_pylist(), strict=True)
        assert replayed(table) == dict(zip(rows["id"].to_pylist(), expected, strict=True))
        current = materialise.finish(table)
        assert [info.path for info in table.list("data")] == sorted(part.path for part in current.parts)
        assert [info.path for info in table.list(layout.STAGING) if "probes" not in info.path] == []
        assert inline.reindex(spec).version == inline.embed(spec).version == current.version
        # Tried again, rows that fail are found where they stand, and fail.
        assert inline.embed(spec, retry_failed=True).version == current.version
    shutil.rmtree(folder)


# --- one thing at a time


def write_rows(path: Path, rows: list[Row]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_rows.clock += 1
    os.utime(path, ns=(write_rows.clock, write_rows.clock))


write_rows.clock = 2 * 10**9


def rows_of(*pairs: tuple[str, str]) -> list[Row]:
    return [{"id": name, "text": text} for name, text in pairs]


def texts_of(table: Path) -> dict[str, str]:
    rows = read_table(table)
    return dict(zip(rows["id"].to_pylist(), rows["text"].to_pylist(), strict=True))


def reindexed(spec: RunSpec) -> "tuple[snapshot.Snapshot, int]":
    encoded: list[int] = []
    version = inline.reindex(spec, encoded=encoded)
    return version, sum(encoded)


@pytest.fixture
def small(tmp_path, tiny_model) -> RunSpec:
    """Three files, published; small parts are not merged, so that what is touched can be seen."""
    for name in "abc":
        write_rows(
            tmp_path / "corpus" / f"{name}.jsonl", rows_of(*((f"{name}{n}", f"text {name} {n}") for n in range(3)))
        )
    spec = spec_of(tmp_path / "corpus", tiny_model, tmp_path / "table", limits={"max_failed_files": 1})
    inline.embed(spec)
    return spec


def test_a_small_part_that_finds_no_room_beside_others_stays_in_the_table(small, tmp_path, monkeypatch):
    """Every group has one part: nothing fits beside another."""
    monkeypatch.setattr(merge_rows, "MANY_SMALL", 1)
    monkeypatch.setattr(compact, "LEAST_FULL", 8)
    monkeypatch.setattr(merge_rows, "SMALL_SHARE", 1e-6)
    write_rows(tmp_path / "corpus" / "d.jsonl", rows_of(("d0", "another text")))
    version, encoded = reindexed(small)
    assert (version.counts.rows, version.counts.new, encoded) == (10, 1, 1)
    assert read_table(small.table.path).num_rows == 10


def test_a_renamed_file_is_read_and_nothing_is_written(small, tmp_path):
    before = snapshot.current(Folder(small.table.path))
    os.rename(tmp_path / "corpus" / "a.jsonl", tmp_path / "corpus" / "z.jsonl")
    version, encoded = reindexed(small)
    assert (version.version, encoded) == (2, 0)
    assert [part.path for part in version.parts] == [part.path for part in before.parts]
    assert (version.counts.new, version.counts.changed, version.counts.deleted) == (0, 0, 0)
    assert Folder(small.table.path).list(layout.changes(2)) == []
    write_rows(tmp_path / "corpus" / "b.jsonl", rows_of(("b0", "text b 0")))
    version, encoded = reindexed(small)
    assert (version.counts.deleted, encoded) == (2, 0)


def test_rows_that_trade_their_files_stay_where_they_are_and_have_new_row_sources(small, tmp_path):
    rows = {name: rows_of(*((f"{name}{n}", f"text {name} {n}") for n in range(3))) for name in "ab"}
    rows["a"][0], rows["b"][0] = rows["b"][0], rows["a"][0]
    before = snapshot.current(Folder(small.table.path))
    for name in "ab":
        write_rows(tmp_path / "corpus" / f"{name}.jsonl", rows[name])
    version, encoded = reindexed(small)
    assert encoded == 0
    assert [part.path for part in version.parts] == [part.path for part in before.parts]
    assert [part.row_sources for part in version.parts] != [None] * len(version.parts)
    check_row_sources(Folder(small.table.path))
    # One of the files goes: whoever does it, the row that moved out of it stays.
    (tmp_path / "corpus" / "a.jsonl").unlink()
    copy = tmp_path / "copy"
    shutil.copytree(small.table.path, copy)
    inline.reindex(small)
    inline.embed(dataclasses.replace(small, table=dataclasses.replace(small.table, path=str(copy))))
    wanted = {f"{name}{n}" for name in "bc" for n in range(3)} - {"b0"} | {"a0"}
    assert texts_of(tmp_path / "table").keys() == texts_of(copy).keys() == wanted


def test_an_id_that_stands_in_two_files_ends_the_run_before_anything_is_encoded(small, tmp_path):
    write_rows(tmp_path / "corpus" / "d.jsonl", rows_of(("a1", "another text")))
    with pytest.raises(GateFailed, match="share their id with another row") as raised:
        inline.reindex(small)
    assert "'a1'" in str(raised.value)
    assert snapshot.current(Folder(small.table.path)).version == 1


def test_a_text_that_had_another_id_is_not_encoded(small, tmp_path):
    write_rows(
        tmp_path / "corpus" / "d.jsonl", rows_of(("new", "text a 0"), ("newer", "brand new"), ("newest", "brand new"))
    )
    (tmp_path / "corpus" / "a.jsonl").unlink()
    version, encoded = reindexed(small)
    assert encoded == 1
    assert (version.counts.new, version.counts.deleted) == (3, 3)


def test_a_file_that_cannot_be_read_keeps_its_rows_until_it_can(small, tmp_path):
    table = tmp_path / "table"
    everything = texts_of(table)
    (tmp_path / "corpus" / "a.jsonl").unlink()
    with gzip.open(tmp_path / "corpus" / "b.jsonl.gz", "wb") as file:
        file.write((tmp_path / "corpus" / "b.jsonl").read_bytes())
    (tmp_path / "corpus" / "b.jsonl").unlink()
    inline.reindex(small)
    assert texts_of(table).keys() == everything.keys() - {"a0", "a1", "a2"}
    # Cut off, and other rows before: none of it counts while the rest is missing.
    whole = gzip.compress("".join(json.dumps(row) + "\n" for row in rows_of(("b0", "other"), ("b9", "new"))).encode())
    (tmp_path / "corpus" / "b.jsonl.gz").write_bytes(whole[:-12])
    write_rows(tmp_path / "corpus" / "d.jsonl", rows_of(("b1", "text b 1"), ("d0", "new here")))
    version, encoded = reindexed(small)
    assert encoded == 1
    assert texts_of(table).keys() == everything.keys() - {"a0", "a1", "a2"} | {"d0"}
    assert texts_of(table)["b0"] == "text b 0"
    check_row_sources(Folder(str(table)))
    again, encoded = reindexed(small)
    assert (again.version, encoded) == (version.version, 0)
    (tmp_path / "corpus" / "b.jsonl.gz").write_bytes(whole)
    reindexed(small)
    assert texts_of(table) == {
        **{f"c{n}": f"text c {n}" for n in range(3)}, "b0": "other", "b9": "new", "b1": "text b 1", "d0": "new here"
    }  # fmt: skip
    check_row_sources(Folder(str(table)))


def test_an_unreadable_file_of_a_new_name_keeps_the_rows_of_those_that_vanished(small, tmp_path):
    everything = texts_of(tmp_path / "table")
    for name in "ab":
        (tmp_path / "corpus" / f"{name}.jsonl").unlink()
    (tmp_path / "corpus" / "night.jsonl.gz").write_bytes(gzip.compress(b'{"id": "a0", "text": "text a 0"}\n')[:-9])
    version, encoded = reindexed(small)
    assert encoded == 0
    assert texts_of(tmp_path / "table") == everything
    assert reindexed(small)[0].version == version.version


def test_kept_columns_can_be_added_without_encoding(tmp_path, tiny_model):
    write_rows(
        tmp_path / "corpus" / "a.jsonl",
        [{"id": "1", "text": "a text", "kind": "x"}, {"id": "2", "text": "b", "kind": "y"}],
    )
    inline.embed(spec_of(tmp_path / "corpus", tiny_model, tmp_path / "table"))
    sections = {"source": {"keep": ["kind"]}, "table": {"partition_by": ["kind"]}}
    version, encoded = reindexed(spec_of(tmp_path / "corpus", tiny_model, tmp_path / "table", **sections))
    assert encoded == 0
    assert version.counts.changed == 2
    inline.embed(spec_of(tmp_path / "corpus", tiny_model, tmp_path / "fresh", **sections))
    same_rows(read_table(tmp_path / "table"), read_table(tmp_path / "fresh"))


def test_another_choice_of_rows_touches_only_those_that_it_is_about(tmp_path, tiny_model):
    for name, kinds in {"a": "xyx", "b": "xxx"}.items():
        rows = [{"id": f"{name}{n}", "text": f"text {name} {n}", "kind": kind} for n, kind in enumerate(kinds)]
        write_rows(tmp_path / "corpus" / f"{name}.jsonl", rows)
    keep = {"source": {"keep": ["kind"]}}
    inline.embed(spec_of(tmp_path / "corpus", tiny_model, tmp_path / "table", **keep))
    chosen = {"source": {"keep": ["kind"], "where": "kind == 'x'"}}
    version, encoded = reindexed(spec_of(tmp_path / "corpus", tiny_model, tmp_path / "table", **chosen))
    counts = version.counts
    assert (encoded, counts.new, counts.changed, counts.deleted, counts.unchanged) == (0, 0, 0, 1, 5)
    inline.embed(spec_of(tmp_path / "corpus", tiny_model, tmp_path / "fresh", **chosen))
    same_rows(read_table(tmp_path / "table"), read_table(tmp_path / "fresh"))
    version, encoded = reindexed(spec_of(tmp_path / "corpus", tiny_model, tmp_path / "table", **keep))
    assert (encoded, version.counts.new, version.counts.unchanged) == (1, 1, 5)


def test_types_that_were_guessed_stay_when_the_choice_of_rows_changes(tmp_path, tiny_model):
    def write(values):
        rows = [{"id": f"{n}", "text": f"text {n}", "price": value} for n, value in enumerate(values)]
        write_rows(tmp_path / "corpus" / "a.jsonl", rows)

    write([1.5, 2])
    inline.embed(spec_of(tmp_path / "corpus", tiny_model, tmp_path / "table", source={"keep": ["price"]}))
    write([1, 2])
    chosen = {"keep": ["price"], "where": "length(text) > 0"}
    version, encoded = reindexed(spec_of(tmp_path / "corpus", tiny_model, tmp_path / "table", source=chosen))
    assert (encoded, version.counts.changed, version.counts.unchanged) == (0, 1, 1)
    assert read_table(tmp_path / "table")["price"].to_pylist() == [1.0, 2.0]


def test_the_columns_do_not_change_while_a_file_can_not_be_read(tmp_path, tiny_model):
    """Its rows would stay in files with the columns of before."""
    for name in "ab":
        rows = pa.table({"id": [f"{name}{n}" for n in range(9)], "text": ["a text"] * 9, "kind": ["x"] * 9})
        (tmp_path / "corpus").mkdir(exist_ok=True)
        pq.write_table(rows, tmp_path / "corpus" / f"{name}.parquet")
    inline.embed(spec_of(tmp_path / "corpus", tiny_model, tmp_path / "table"))
    content = (tmp_path / "corpus" / "a.parquet").read_bytes()
    (tmp_path / "corpus" / "a.parquet").write_bytes(content[: len(content) // 2])
    spec = spec_of(tmp_path / "corpus", tiny_model, tmp_path / "table", source={"keep": ["kind"]})
    with pytest.raises(GateFailed, match=r"a\.parquet' can't be read"):
        inline.reindex(spec)
    (tmp_path / "corpus" / "a.parquet").write_bytes(content)
    assert reindexed(spec)[0].counts.changed == 18


def test_live_rows_of_files_that_vanished_count_too(small, tmp_path):
    """Nearly all did: few rows to read, many that may be theirs."""
    for name in "bc":
        (tmp_path / "corpus" / f"{name}.jsonl").unlink()
    write_rows(tmp_path / "corpus" / "a.jsonl", rows_of(("a0", "text a 0")))
    prepared = prepare.prepare(small, writes=False)
    assert (row_changes._rows_to_read(prepared), row_changes._num_affected(prepared)) == (1, 9)


def test_of_files_that_do_not_tell_their_rows_only_those_that_changed_count(tmp_path, tiny_model):
    lines = [json.dumps({"id": f"a{n}", "text": f"text {n}"}) + "\n" for n in range(100)]
    (tmp_path / "corpus").mkdir()
    with gzip.open(tmp_path / "corpus" / "a.jsonl.gz", "wt") as file:
        file.writelines(lines)
    write_rows(tmp_path / "corpus" / "b.jsonl", rows_of(*((f"b{n}", f"text {n}") for n in range(100))))
    spec = spec_of(tmp_path / "corpus", tiny_model, tmp_path / "table")
    inline.embed(spec)
    write_rows(tmp_path / "corpus" / "b.jsonl", rows_of(*((f"b{n}", f"text {n}") for n in range(99))))
    prepared = prepare.prepare(spec, writes=False)
    assert prepared.survey.rows_known is None
    assert 0 < row_changes._rows_to_read(prepared) < prepared.survey.rows_estimate


def test_documents_to_read_count_with_their_chunks(tmp_path, tiny_model):
    spec = spec_for(Corpus(tmp_path / "corpus", 3).folder, tiny_model, tmp_path / "table", MODES["chunks"])
    counts = inline.embed(spec).counts
    assert counts.rows > counts.documents
    assert row_changes._num_wanted(prepare.prepare(spec, writes=False), counts.documents) == counts.rows


@pytest.mark.parametrize("mode", MODES)
def test_the_forecast_of_a_build_counts_the_tokens_of_whole_documents(mode, tmp_path, tiny_model):
    corpus = Corpus(tmp_path / "corpus", 3)
    spec = spec_for(corpus.folder, tiny_model, tmp_path / "table", MODES[mode])
    tokens = inline.embed(spec).counts.tokens
    prepared = prepare.prepare(spec, writes=False)
    documents = prepared.parent.counts.documents
    assert forecast._tokens_per_document(prepared) * documents == pytest.approx(tokens, rel=1e-6)


@pytest.mark.parametrize("when", ["before it looks", "before it publishes"])
def test_a_run_that_is_overtaken_says_so_and_keeps_what_it_encoded(when, small, tmp_path):
    write_rows(tmp_path / "corpus" / "a.jsonl", rows_of(("a0", "another text"), ("a9", "text b 0")))
    prepared = prepare.prepare(small, writes=True)

    def overtake() -> None:
        write_rows(tmp_path / "corpus" / "b.jsonl", rows_of(("b0", "what came between")))
        embed_units(prepare.prepare(small, writes=True), inline.InProcess(), 0.0)  # It leaves texts in staging alone.

    executor = inline.InProcess()
    if when == "before it looks":
        overtake()
        with pytest.raises(CommitConflict, match="start again"):
            row_changes.find(prepared, executor, writes=True)
    else:
        found = row_changes.find(prepared, executor, writes=True)
        by_row.encode_texts(prepared, executor, found)
        overtake()
        with pytest.raises(CommitConflict, match="start again"):
            by_row.publish_rows(prepared, executor, found, "late", {})
        assert record.read_text_records(Folder(small.table.path), prepared.vectors.fingerprint)
    inline.reindex(small)
    assert texts_of(tmp_path / "table")["a0"] == "another text"
    assert texts_of(tmp_path / "table")["b0"] == "what came between"


@pytest.mark.parametrize("dtype", ["float16", "int8", "ubinary"])
def test_vectors_of_any_dtype_are_those_of_embed_on_the_same_table(dtype, tmp_path, tiny_model):
    texts = [" ".join(random.Random(n).choices(WORDS, k=6)) for n in range(80)]
    write_rows(tmp_path / "corpus" / "a.jsonl", rows_of(*((f"d{n}", text) for n, text in enumerate(texts))))
    spec = spec_of(tmp_path / "corpus", tiny_model, tmp_path / "table", table={"dtype": dtype})
    inline.embed(spec)
    shutil.copytree(tmp_path / "table", tmp_path / "other")
    write_rows(tmp_path / "corpus" / "b.jsonl", rows_of(("e0", texts[3]), ("e1", "a brand new text")))
    write_rows(tmp_path / "corpus" / "a.jsonl", rows_of(*((f"d{n}", text) for n, text in enumerate(texts[:70]))))
    version, encoded = reindexed(spec)
    assert (encoded, version.counts.deleted) == (1, 10)
    inline.embed(dataclasses.replace(spec, table=dataclasses.replace(spec.table, path=str(tmp_path / "other"))))
    one, other = read_table(tmp_path / "table"), read_table(tmp_path / "other")
    same_rows(one.drop_columns("embedding"), other.drop_columns("embedding"), vectors=False)
    assert one["embedding"].equals(other["embedding"])


def test_a_table_on_s3(moto, tmp_path, tiny_model):
    url = moto.make_bucket("reindex")
    write_rows(tmp_path / "corpus" / "a.jsonl", rows_of(*((f"a{n}", f"text a {n}") for n in range(5))))
    write_rows(tmp_path / "corpus" / "b.jsonl", rows_of(*((f"b{n}", f"text b {n}") for n in range(5))))
    section = {"table": {"storage_options": dict(moto.storage_options)}}
    spec = spec_of(tmp_path / "corpus", tiny_model, f"{url}/table", **section)
    inline.embed(spec)
    write_rows(tmp_path / "corpus" / "a.jsonl", rows_of(("b0", "text b 0"), ("a1", "text a 1"), ("a2", "text a 1")))
    write_rows(tmp_path / "corpus" / "b.jsonl", rows_of(("a0", "text a 0"), ("b1", "another")))
    version, encoded = reindexed(spec)
    table = Folder(spec.table.path, spec.table.storage_options)
    assert (encoded, version.counts.rows, version.counts.changed) == (1, 5, 2)
    check_row_sources(table)
    again, encoded = reindexed(spec)
    assert (again.version, encoded) == (version.version, 0)


def test_a_table_that_was_rolled_back_purged_and_cleaned_goes_on(small, tmp_path):
    table = Folder(small.table.path)
    corpus = tmp_path / "corpus"
    write_rows(corpus / "a.jsonl", rows_of(("b0", "text b 0"), ("a1", "text a 1"), ("a2", "new")))
    write_rows(corpus / "b.jsonl", rows_of(("a0", "text a 0"), ("b1", "text b 1")))
    inline.reindex(small)
    check_row_sources(table)
    restore.roll_back(table, 1)
    check_row_sources(table)
    restore.release(table)
    assert texts_of(tmp_path / "table").keys() == {f"{name}{n}" for name in "abc" for n in range(3)}
    inline.reindex(small)
    check_row_sources(table)
    purge.purge(table, ["b0"])
    check_row_sources(table)
    write_rows(corpus / "c.jsonl", rows_of(("c0", "text c 0")))
    inline.reindex(small)
    vacuum.clean(table, 0)
    check_row_sources(table)
    # A purged row that its source still has comes back when its unit is read again: these files are one.
    assert texts_of(tmp_path / "table").keys() == {"a0", "a1", "a2", "b0", "b1", "c0"}


@pytest.mark.parametrize("between", ["nothing", "purge", "clean", "roll back"])
def test_rows_know_their_files_whatever_was_done_to_the_table(between, tmp_path, tiny_model):
    """Two files that are units of their own trade rows; then one of them goes, and takes along what is in it now."""
    corpus, path = tmp_path / "corpus", tmp_path / "table"
    spec = spec_of(corpus, tiny_model, path)

    def write(a: list[str], b: list[str]) -> None:
        write_rows(corpus / "a.jsonl", rows_of(*((name, f"text {name}") for name in a)))
        pq.write_table(pa.Table.from_pylist(rows_of(*((name, f"text {name}") for name in b))), corpus / "b.parquet")

    write(["1", "2", "3", "4"], ["5", "6", "7", "8"])
    inline.embed(spec)
    write(["1", "2", "3", "8"], ["5", "6", "7", "4"])
    version, _ = reindexed(spec)
    table = Folder(str(path))
    assert [part.row_sources is not None for part in version.parts] == [True]
    gone = set()
    if between == "purge":
        purge.purge(table, ["7"])
        gone = {"7"}
    elif between == "clean":
        assert not any(info.path.startswith(layout.ROW_SOURCES) for info in vacuum.clean(table, 0).files)
    elif between == "roll back":
        restore.roll_back(table, 1)
        restore.release(table)
        restore.roll_back(table, 2)
        restore.release(table)
    check_row_sources(table)
    (corpus / "a.jsonl").unlink()
    shutil.copytree(path, tmp_path / "copy")
    inline.embed(dataclasses.replace(spec, table=dataclasses.replace(spec.table, path=str(tmp_path / "copy"))))
    inline.reindex(spec)
    assert texts_of(path).keys() == texts_of(tmp_path / "copy").keys() == {"4", "5", "6", "7"} - gone
    check_row_sources(table)
    # The list that version 2 needs goes when neither the current version nor the one before it does.
    write_rows(corpus / "c.jsonl", rows_of(("9", "text 9")))
    inline.reindex(spec)
    vacuum.clean(table, 0)
    assert table.list(layout.ROW_SOURCES) == []


class Died(BaseException):
    """The process was ended; nothing in it goes on."""


def dying(patched: pytest.MonkeyPatch, changes: int) -> list[str]:
    """The process dies before its change to storage number `changes`; returns the changes that it made."""
    done: list[str] = []
    for name in ("write", "create_once", "copy", "delete"):
        whole = getattr(Folder, name)

        def change(self, path, *arguments, whole=whole, name=name):
            if len(done) == changes:
                raise Died
            done.append(f"{name} {path}")
            return whole(self, path, *arguments)

        patched.setattr(Folder, name, change)
    return done


def current_rows(path: Path) -> pa.Table:
    """As a reader of versions sees them, whatever is under way."""
    table = Folder(str(path))
    return dataset(table, snapshot.current(table)).to_table().sort_by("id")


@pytest.mark.parametrize("mode", ["whole", pytest.param("chunks", marks=pytest.mark.slow)])
def test_killed_before_any_change_to_storage_it_goes_on(mode, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)
    corpus = Corpus(tmp_path / "corpus", 3)
    limits = {"limits": {"unit_rows": 4, "max_failed_rows": 1000}}

    def spec(table: str) -> RunSpec:
        return dataclasses.replace(
            spec_for(corpus.folder, tiny_model, tmp_path / table, MODES[mode]),
            limits=LimitSpec(**limits["limits"]),
        )

    inline.embed(spec("before"))
    for _ in range(3):
        corpus.change()
    corpus.export()
    corpus.update()
    corpus.insert()
    corpus.delete()
    corpus.write()
    shutil.copytree(tmp_path / "before", tmp_path / "undisturbed")
    needed: list[int] = []
    wanted = inline.reindex(spec("undisturbed"), encoded=needed)
    old, new = current_rows(tmp_path / "before"), current_rows(tmp_path / "undisturbed")
    for number in range(10_000):
        shutil.copytree(tmp_path / "before", tmp_path / "table")
        encoded: list[int] = []
        with pytest.MonkeyPatch.context() as patched:
            done = dying(patched, number)
            try:
                inline.reindex(spec("table"), encoded=encoded)
                ended = True
            except Died:
                ended = False
        table = Folder(str(tmp_path / "table"))
        version = snapshot.current(table)
        same_rows(current_rows(tmp_path / "table"), new if version.version == 2 else old)
        inline.reindex(spec("table"), encoded=encoded)
        same_rows(current_rows(tmp_path / "table"), new)
        assert snapshot.current(table).version == wanted.version
        assert sum(encoded) <= sum(needed) + max(needed)
        check_row_sources(table)
        shutil.rmtree(tmp_path / "table")
        if ended:
            assert number > 20, done
            return
