"""By row: whatever happens to the sources, the table is that of a build from nothing, and each new text is encoded once."""

import json
import os
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.config import RunSpec
from pipeline.storage import Folder
from pipeline.table import layout, materialise, owners, snapshot
from tests import inline
from tests.inline import read_table, same_rows, spec_of

Row = dict[str, Any]
GENERATIONS = 10
WORDS = ["market", "water", "world", "company", "people", "price", "oil", "game", "team", "year", "small", "shop"]
MODES: Mapping[str, dict[str, Any] | None] = {
    "whole": None,
    "chunks": {"max_tokens": 8, "overlap_tokens": 2},
    "means": {"max_tokens": 8, "rows": "documents"},
}


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
        if not any(self.files.values()):
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
        if row:
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


def spec_for(corpus: Path, model: Path, table: Path, chunk: dict[str, Any] | None) -> RunSpec:
    sections: dict[str, Any] = {
        "source": {"keep": ["kept"]},
        "table": {"partition_by": ["label"]},
        "limits": {"max_failed_rows": 1000},
    }
    return spec_of(corpus, model, table, **sections, **({"chunk": chunk} if chunk else {}))


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


def check_owners(table: Folder) -> None:
    """Every row is of a span of the list of sources, and each unit has as many rows as the list says."""
    version = snapshot.current(table)
    counted: dict[int, int] = {}
    for part in version.parts:
        numbers = owners.of(table, part).tolist()
        assert sorted(set(numbers)) == list(part.sources)
        for number in numbers:
            counted[number] = counted.get(number, 0) + 1
    for unit, numbers in version.units().items():
        assert sum(counted.pop(number, 0) for number in numbers) == version.tallies()[unit].rows
    assert not counted


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32))
def test_ten_generations_equal_a_build_from_nothing(mode, seed, tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("generations")
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
            assert sum(encoded) == len(hashes(folder / "table") - before)
        fresh = folder / f"fresh-{generation}"
        inline.embed(spec_for(corpus.folder, tiny_model, fresh, MODES[mode]))
        same_rows(read_table(folder / "table"), read_table(fresh))
        check_owners(table)
        rows = read_table(folder / "table")
        expected = zip(rows["content_hash"].to_pylist(), rows["row_hash"].to_pylist(), strict=True)
        assert replayed(table) == dict(zip(rows["id"].to_pylist(), expected, strict=True))
        current = materialise.finish(table)
        assert [info.path for info in table.list("data")] == sorted(part.path for part in current.parts)
        assert [info.path for info in table.list(layout.STAGING) if "probes" not in info.path] == []
        assert inline.reindex(spec).version == inline.embed(spec).version == current.version
    shutil.rmtree(folder)
