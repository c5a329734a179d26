"""The job that is disturbed: a corpus, a configuration, the command, and what its table holds.

Runs `python -m jobs.embed` as a person would, with the faults folder on the path to slow it down and to count each encoded
row, those of attempts that were killed among them.
"""

import gzip
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import yaml

from tests.conftest import DATA
from tests.inline import read_table

ROOT = Path(__file__).parents[2]
FILES, PARTITIONS = 5, 3
ENCODERS, WRITERS, IN_FLIGHT = 2, 1, 2
UNIT_ROWS = 100
BOUND = (ENCODERS * IN_FLIGHT + WRITERS + 1) * UNIT_ROWS
"""Rows that a kill may cost: slices at the encoders, at the writer, and one between them."""
SLOW = "pipeline.engines.torch:TorchEngine.encode:0.04,pipeline.stages:create:0.02,pipeline.stages:_tokenize:0.02"


def write_corpus(folder: Path, num_rows: int) -> str:
    """Parquet files of news, or the demo's documents where the news are missing; returns which."""
    path = DATA / "corpora" / "ag_news_test.jsonl.gz"
    if path.exists():
        with gzip.open(path, "rt", encoding="utf-8") as file:
            texts = [json.loads(line)["text"] for line in file]
    else:
        texts = pads.dataset(ROOT / "demo" / "corpus").to_table(columns=["text"])["text"].to_pylist()
    rows = [
        {"id": f"doc-{n}", "text": texts[n % len(texts)], "length": len(texts[n % len(texts)]), "label": n % PARTITIONS}
        for n in range(num_rows)
    ]
    folder.mkdir(parents=True)
    for index in range(FILES):
        pq.write_table(pa.Table.from_pylist(rows[index::FILES]), folder / f"{index}.parquet")
    return path.name if path.exists() else "demo"


@dataclass(frozen=True, kw_only=True)
class Job:
    folder: Path
    """Of the configuration, the table and the counts."""
    corpus: Path
    model: str
    ray_address: str | None = None

    @property
    def table(self) -> Path:
        return self.folder / "table"

    def environment(self) -> dict[str, str]:
        path = os.pathsep.join([str(ROOT / "tests" / "faults"), str(ROOT)])
        return os.environ | {"PYTHONPATH": path, "FAULT_FOLDER": str(self.folder), "SLOW": SLOW, "COUNT_BATCHES": "1"}

    def start(self) -> subprocess.Popen[bytes]:
        config = {
            "source": {"path": str(self.corpus), "id": "id", "text": "text", "keep": ["length"]},
            "model": {"path": self.model},
            "table": {"path": str(self.table), "partition_by": ["label"]},
            "resources": {"encoders": ENCODERS, "writers": WRITERS, "ray_address": self.ray_address},
            "limits": {"unit_rows": UNIT_ROWS},
        }
        (self.folder / "config.yaml").write_text(yaml.safe_dump(config))
        with (self.folder / "log").open("ab") as log:
            command = [sys.executable, "-m", "jobs.embed", str(self.folder / "config.yaml"), "--json"]
            return subprocess.Popen(command, env=self.environment(), cwd=ROOT, stdout=log, stderr=log)

    def encoded(self) -> int:
        """Rows encoded so far, by all starts of the command."""
        try:
            return sum(int(line) for line in (self.folder / "encoded").read_text().split())
        except FileNotFoundError:
            return 0

    def rows(self) -> pa.Table:
        """All that lies in data/, in order of ids, with the paths of source files for their numbers, which are a run's own."""
        lists = sorted((self.table / "meta" / "sources").glob("*.parquet"))
        paths = {row["source"]: Path(row["path"]).name for row in pq.read_table(lists[-1]).to_pylist()}
        rows = read_table(self.table)
        rows = rows.append_column("path", pa.array([paths[number] for number in rows["source"].to_pylist()]))
        return rows.drop_columns(["source"]).sort_by("id")
