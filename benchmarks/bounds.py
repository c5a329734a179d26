"""Planning time, and the peak memory of the driver and of each worker over corpora of growing size and awkward shape.

    python -m benchmarks.bounds plan|titles|one-row-group|one-gzip [--rows N] [--bytes N] [--model FOLDER]
        [--precision int8]

Memory is each process's own high-water mark (VmHWM, less what it shares with others is not subtracted), by role.
"""

import argparse
import gzip
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from benchmarks import corpora

WORDS = [f"word{n}" for n in range(5000)]


def titles(folder: Path, rows: int) -> None:
    """20 Parquet files of titles: arXiv's where they are at hand, else words by chance, which no int8 model suits."""
    chance = random.Random(0)
    step = -(-rows // 20)
    path = corpora.DATA / "corpora" / corpora.SOURCES["arXiv titles"].file
    found = corpora.SOURCES["arXiv titles"].read(path) if path.is_file() else []
    if len(found) < rows:
        found = [" ".join(chance.choices(WORDS, k=chance.randint(4, 16))) for _ in range(rows)]
    for index in range(0, rows, step):
        texts = found[index : min(index + step, rows)]
        ids = [f"doc-{index + n}" for n in range(len(texts))]
        pq.write_table(pa.table({"id": ids, "text": texts}), folder / f"{index:09d}.parquet")


def one_row_group(folder: Path, rows: int) -> None:
    """One Parquet file whose one row group has all rows."""
    titles(folder, rows)
    table = pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob("*.parquet"))])
    for path in folder.glob("*.parquet"):
        path.unlink()
    pq.write_table(table, folder / "one.parquet", row_group_size=rows)


def one_gzip(folder: Path, size: int) -> None:
    """One gzipped JSONL of `size` bytes before compression, in documents of about 20 kB."""
    chance = random.Random(0)
    with gzip.open(folder / "one.jsonl.gz", "wt", compresslevel=1) as file:
        written = number = 0
        while written < size:
            line = json.dumps({"id": f"doc-{number}", "text": " ".join(chance.choices(WORDS, k=2500))}) + "\n"
            file.write(line)
            written += len(line)
            number += 1


class Watch:
    """High-water marks of a process and all its descendants, by role, until told to stop."""

    def __init__(self, pid: int) -> None:
        self.peaks: dict[str, int] = {}
        self._process = psutil.Process(pid)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> dict[str, int]:
        self._stop.set()
        self._thread.join()
        return {role: self.peaks[role] for role in sorted(self.peaks)}

    def _run(self) -> None:
        while not self._stop.wait(0.1):
            try:
                family = [self._process, *self._process.children(recursive=True)]
            except psutil.Error:
                continue
            for process in family:
                self._look(process)

    def _look(self, process: psutil.Process) -> None:
        try:
            role = "driver" if process.pid == self._process.pid else _role(" ".join(process.cmdline()))
            info = process.memory_full_info()
        except psutil.Error:
            return
        if role:
            # Private memory: what the process shares (Ray's object store, libraries) is counted once, elsewhere.
            self.peaks[role] = max(self.peaks.get(role, 0), info.uss)


def _role(command: str) -> str | None:
    for mark, role in (("EncodeStage", "encoder"), ("_read_and_tokenize", "reader"), ("_write", "writer")):
        if mark in command:
            return role
    return "other worker" if command.startswith("ray::") and "IDLE" not in command else None


def run(corpus: Path, model: dict[str, str], folder: Path) -> None:
    config = {
        "source": {"path": str(corpus), "id": "id", "text": "text"},
        "model": model,
        "table": {"path": str(folder / "table")},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "jobs.embed", str(folder / "run.yaml"), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    watch = Watch(process.pid)
    output = process.communicate()[0]
    peaks = watch.stop()
    if process.returncode:
        raise SystemExit(f"the run failed with {process.returncode}")
    summary = json.loads(output)
    rows = summary["counts"]["rows"]
    print(f"{rows:,} rows, {summary['docs_per_s']:,.0f} docs/s, {summary['seconds']}")
    for role, peak in peaks.items():
        print(f"  {role:14} {peak / 2**20:8.0f} MiB")


def plan(rows: int, model: str, folder: Path) -> None:
    from pipeline.config import from_mapping
    from pipeline.runs import prepare as runs

    corpus = folder / "corpus"
    titles(corpus, rows)
    raw = {"source": {"path": str(corpus), "id": "id", "text": "text"}, "model": {"path": model}}
    started = time.perf_counter()
    prepared = runs.prepare(from_mapping(raw | {"table": {"path": str(folder / "table")}}), writes=False)
    print(f"{rows:,} rows planned in {time.perf_counter() - started:.2f} s: {len(prepared.plan.added)} units")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["plan", "titles", "one-row-group", "one-gzip"])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--bytes", type=int, default=2**30)
    parser.add_argument("--model", help="what model.path would say; default: a tiny seeded BERT")
    parser.add_argument("--precision", default="float32")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "corpus").mkdir()
        model = arguments.model or _tiny_model(folder)
        if arguments.what == "plan":
            plan(arguments.rows, model, folder)
            return
        if arguments.what == "titles":
            titles(folder / "corpus", arguments.rows)
        elif arguments.what == "one-row-group":
            one_row_group(folder / "corpus", arguments.rows)
        else:
            one_gzip(folder / "corpus", arguments.bytes)
        run(folder / "corpus", {"path": model, "precision": arguments.precision}, folder)


def _tiny_model(folder: Path) -> str:
    sys.path.insert(0, os.getcwd())
    from tests.tiny import build_tiny_model

    return str(build_tiny_model(folder / "model"))


if __name__ == "__main__":
    main()
