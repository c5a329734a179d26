"""The job that is disturbed: a corpus, a configuration, the command, and what can be seen of it from outside.

Runs `python -m jobs.embed` as a person would, with the faults folder on the path to slow it down and to count each encoded
row, those of attempts that were killed among them.
"""

import gzip
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from benchmarks.corpora import demo_texts
from tests import faulty
from tests.chaos import processes
from tests.conftest import DATA
from tests.inline import read_table

ROOT = Path(__file__).parents[2]
NEWS = DATA / "corpora" / "ag_news_test.jsonl.gz"
FILES, PARTITIONS = 5, 3
ENCODERS, WRITERS, IN_FLIGHT = 2, 1, 2
UNIT_ROWS = 100
BOUND = (ENCODERS * IN_FLIGHT + WRITERS + 1) * UNIT_ROWS
"""Rows that a kill may cost: slices at the encoders, at the writer, and one between them."""
SLOWED_S = {
    "pipeline.encoder.engines.torch:TorchEngine.start": 0.04,
    "pipeline.stages.read:_tokenize": 0.2,
    "pipeline.stages.write:create": 0.1,
    "pipeline.table.operations.replace_units:_check_gate": 0.1,
    "pipeline.table.publication:Publication.write_changes": 0.1,
    "pipeline.table.publication:Publication.check_files": 0.1,
    "pipeline.table.publication:Publication.create": 0.1,
    "pipeline.table.materialise:_copy_all": 0.1,
    "pipeline.table.materialise:_copy_lists": 0.1,
    "pipeline.table.materialise:_remove_staged": 0.1,
    "pipeline.table.materialise:_remove_dead": 0.1,
}
"""Before each call: what takes microseconds with a small table is to be hit, too."""


def write_corpus(folder: Path, num_rows: int) -> None:
    """Parquet files of news, or of the demo's paragraphs where the news are missing."""
    if NEWS.exists():
        with gzip.open(NEWS, "rt", encoding="utf-8") as file:
            texts = [json.loads(line)["text"] for line in file]
    else:
        texts = demo_texts()
    rows = [
        {"id": f"doc-{n}", "text": texts[n % len(texts)], "length": len(texts[n % len(texts)]), "label": n % PARTITIONS}
        for n in range(num_rows)
    ]
    folder.mkdir(parents=True)
    for index in range(FILES):
        pq.write_table(pa.Table.from_pylist(rows[index::FILES]), folder / f"{index}.parquet")


@dataclass(frozen=True, kw_only=True)
class Job:
    folder: Path
    """Of the configuration, the table, the log and the counts."""
    corpus: Path
    model: str
    ray_address: str | None = "local"
    """None lets processes of this machine work without Ray: there is little to do."""

    @property
    def table(self) -> Path:
        return self.folder / "table"

    @property
    def config(self) -> Path:
        return self.folder / "config.yaml"

    @property
    def log(self) -> Path:
        """What all starts of the command printed."""
        return self.folder / "log"

    def environment(self) -> dict[str, str]:
        return faulty.environment(self.folder) | {
            "SLOW": ",".join(f"{function}:{seconds}" for function, seconds in SLOWED_S.items()),
            "COUNT_BATCHES": "1",
            "RAY_TMPDIR": str(self.folder.parent / "ray"),
            "RAY_enable_metrics_collection": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
        }

    def write_config(self) -> None:
        config = {
            "source": {"path": str(self.corpus), "id": "id", "text": "text", "keep": ["length"]},
            "model": {"path": self.model},
            "table": {"path": str(self.table), "partition_by": ["label"]},
            "resources": {"encoders": ENCODERS, "writers": WRITERS, "ray_address": self.ray_address},
            "limits": {"unit_rows": UNIT_ROWS},
        }
        self.config.write_text(yaml.safe_dump(config))

    def start(self) -> "subprocess.Popen[bytes]":
        self.write_config()
        with self.log.open("ab") as log:
            command = faulty.command(self.folder)
            return subprocess.Popen(command, env=self.environment(), cwd=ROOT, stdout=log, stderr=log)

    def encoded(self) -> int:
        """Rows encoded so far, by all starts of the command, whether or not they were recorded: each batch when it is done."""
        return faulty.encoded(self.folder)

    def phase(self, num_rows: int) -> str:
        """How far the run has come, for a corpus of so many rows."""
        versions = self.table / "meta" / "versions"
        if any(versions.glob("*.done")):
            return "ending"
        if any(versions.glob("*.json")):
            return "materialising"
        if (self.table / "staging" / "publications").exists():
            return "committing"
        encoded = self.encoded()
        if encoded:
            return "encoding" if encoded < num_rows else "recording"
        # The folder of the table is made when the plan stands.
        return "starting" if self.table.exists() else "planning"

    def has_workers(self, pid: int) -> bool:
        """Whether the run of that pid has started a Ray or workers of its own, or may ask a Ray that stands."""
        titles = [found.title for found in processes.descendants(pid)]
        own = any("raylet/raylet" in title or "pipeline.execution.local.process" in title for title in titles)
        return own or self.ray_address not in (None, "local")

    def rows(self) -> pa.Table:
        """All that lies in data/, in order of ids, with the paths of source files for their numbers, which are a run's own."""
        lists = sorted((self.table / "meta" / "sources").glob("*.parquet"))
        paths = {row["source"]: Path(row["path"]).name for row in pq.read_table(lists[-1]).to_pylist()}
        rows = read_table(self.table)
        rows = rows.append_column("path", pa.array([paths[number] for number in rows["source"].to_pylist()]))
        return rows.drop_columns(["source"]).sort_by("id")
