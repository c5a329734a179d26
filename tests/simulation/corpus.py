"""A source of a few rows in a few files, and the configuration of a run: both are edited at random.

Ids and texts are used once, so that a trace of an erased row can be told from any other row's. Some rows share their text.
"""

import copy
import io
import json
import random
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import RunSpec
from tests.inline import spec_of
from tests.simulation.object_store import ObjectStore

FOLDER = "corpus/"
SOURCE = f"memory://source/{FOLDER}*"
WORDS = ["market", "water", "world", "company", "people", "price", "oil", "game", "team", "year", "small", "shop"]
COLUMNS = pa.schema([("id", pa.string()), ("text", pa.string()), ("kept", pa.string()), ("label", pa.int64())])
Row = dict[str, Any]


class Corpus:
    def __init__(self, chance: random.Random, models: dict[str, Path]) -> None:
        self.chance, self._models = chance, models
        self.files: dict[str, list[Row]] = {}
        self.texts: dict[str, set[str]] = {}
        """All texts that an id ever had and no other one."""
        self.model = "A"
        self.settings: dict[str, dict[str, Any]] = {
            "source": {"keep": ["kept"], "on_null": "dead_letter", "where": None},
            "table": {"partition_by": chance.choice([[], [], ["label"]]), "keep_text": True},
            "limits": {"max_failed_rows": 10**9, "max_deleted_rows": 10**9, "unit_rows": chance.choice([2, 100])},
        }
        self._rows = self._files = 0
        for _ in range(chance.randint(2, 3)):
            self._add_file()

    def ids(self) -> list[str]:
        return sorted(row["id"] for rows in self.files.values() for row in rows)

    def remove(self, ids: Collection[str]) -> None:
        for rows in self.files.values():
            rows[:] = [row for row in rows if row["id"] not in ids]

    def store(self, objects: ObjectStore) -> None:
        """Bring the source in the store up to date; files that stay the same keep their version."""
        wanted = {FOLDER + name: _content(name, rows) for name, rows in self.files.items()}
        for key in objects.names():
            if key.startswith(FOLDER) and key not in wanted:
                objects.remove(key)
        for key, content in wanted.items():
            if objects.get(key) != content:
                objects.put(key, content)

    def spec(self, table: str, model: str | None = None) -> RunSpec:
        sections: dict[str, Any] = copy.deepcopy(self.settings)
        names = {*sections["source"]["keep"], *sections["table"]["partition_by"]}
        names |= {"label"} if sections["source"]["where"] else set()
        sections["source"]["schema"] = {name: str(COLUMNS.field(name).type) for name in sorted(names)}
        return spec_of(SOURCE, self._models[model or self.model], table, **sections)

    # --- edits

    def edit(self) -> str:
        """Change the source; returns what was done."""
        done = [self._edit() for _ in range(self.chance.randint(1, 3))]
        return ", ".join(done)

    def _edit(self) -> str:
        chance = self.chance
        what = chance.choice(
            ["insert", "insert", "update", "update", "delete", "move", "keep", "rename", "export", "file"]
        )
        name = chance.choice(sorted(self.files))
        rows = self.files[name]
        if what == "insert" or not rows:
            rows.insert(chance.randint(0, len(rows)), self._row())
            return "insert"
        place = chance.randrange(len(rows))
        if what == "update":
            rows[place] = rows[place] | {"text": self._text(rows[place]["id"])}
        elif what == "delete":
            if len(self.ids()) == 1:  # a source without rows is refused, and the table stays as it is
                return "nothing"
            rows.pop(place)
        elif what == "move":
            self.files[chance.choice(sorted(self.files))].append(rows.pop(place))
        elif what == "keep":
            rows[place] = rows[place] | {"kept": chance.choice([None, *WORDS]), "label": chance.choice([0, 1, None])}
        elif what == "rename":
            self.files[self._name()] = self.files.pop(name)
        elif what == "export":
            every = [row for rows in self.files.values() for row in rows]
            chance.shuffle(every)
            self.files = {}
            count = chance.randint(1, 3)
            for place in range(count):
                self.files[self._name()] = every[place::count]
        else:
            self._add_file()
        return what

    def configure(self) -> str:
        """Change one key of the configuration; returns which."""
        chance, source, table = self.chance, self.settings["source"], self.settings["table"]
        what = chance.choice(["keep", "where", "on_null", "partition_by", "keep_text", "unit_rows", "model"])
        if what == "keep":
            source["keep"] = chance.choice([[], ["kept"], ["kept", "label"]])
        elif what == "where":
            source["where"] = chance.choice([None, None, "label is not None", "label < 1"])
        elif what == "on_null":
            source["on_null"] = chance.choice(["dead_letter", "skip"])
        elif what == "partition_by":
            table["partition_by"] = chance.choice([[], ["label"], ["kept"]])
        elif what == "keep_text":
            table["keep_text"] = not table["keep_text"]
        elif what == "unit_rows":
            self.settings["limits"]["unit_rows"] = chance.choice([2, 100])
        else:
            self.model = chance.choice(sorted(self._models))
        return what

    def _row(self) -> Row:
        self._rows += 1
        name = f"d{self._rows}"
        chance = self.chance
        return {
            "id": name,
            "text": self._text(name),
            "kept": chance.choice([None, *WORDS]),
            "label": chance.choice([0, 1, 1, None]),
        }

    def _text(self, name: str) -> str | None:
        draw = self.chance.random()
        if draw < 0.07:
            return None
        if draw < 0.2:
            return f"shared {self.chance.choice(WORDS)}"
        words = " ".join(self.chance.choice(WORDS) for _ in range(self.chance.choice([1, 3, 8])))
        text = f"{words} of-{name}-{self.chance.randint(0, 99)}-only"
        self.texts.setdefault(name, set()).add(text)
        return text

    def _name(self) -> str:
        self._files += 1
        return f"{self.chance.choice('abc')}{self._files}.{self.chance.choice(['jsonl', 'parquet'])}"

    def _add_file(self) -> None:
        self.files[self._name()] = [self._row() for _ in range(self.chance.randint(1, 5))]


def _content(name: str, rows: list[Row]) -> bytes:
    if name.endswith("jsonl"):
        return b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, COLUMNS), sink, row_group_size=3)
    return sink.getvalue()
