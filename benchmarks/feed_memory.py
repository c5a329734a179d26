"""How much memory a feed takes as its table grows, for a database on this machine and for one in files.

    python -m benchmarks.feed_memory [--rows 100000 500000 2000000] [--dim 384] [--stores postgres lance]

The tables hold random unit vectors, written as runs write theirs; nothing is encoded. Each table is fed by the command
`jobs.feed` without an index, whose building is the database's own. Prints the peak of the command's resident memory, which
holds all of its writers, and its seconds.
"""

import argparse
import contextlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import psycopg
import pyarrow as pa

from pipeline import identity
from pipeline.storage import Folder
from pipeline.table import layout, materialise, record, snapshot
from pipeline.table.operations import replace_units
from pipeline.table.part import Part, distinct_sources, encode_part, part_schema
from pipeline.table.publication import Publication
from pipeline.table.record import Effort, Record
from pipeline.work import Unit
from tests.feeds.postgres_place import PostgresServer
from tests.table.test_publish import commit, describe, make_unit

ROWS_PER_PART = 40_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="*", default=[100_000, 500_000, 2_000_000])
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--stores", nargs="*", choices=["postgres", "lance"], default=["postgres", "lance"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        for rows in arguments.rows:
            table = f"{name}/table"
            make_table(Folder(table), rows, arguments.dim)
            for store in arguments.stores:
                with _url_of(store) as url:
                    peak, seconds, told = feed(table, store, url, Path(name))
                print(f"{store:9} {rows:>9,} rows {peak / 2**20:6.0f} MiB {seconds:7.1f} s  {told}", flush=True)
            shutil.rmtree(table)


@contextlib.contextmanager
def _url_of(store: str) -> Iterator[str]:
    """An empty database."""
    folder = Path(tempfile.mkdtemp(prefix="fm"))
    folder.chmod(0o755)
    try:
        if store == "lance":
            yield str(folder / "lance")
            return
        server = PostgresServer(folder, [])
        try:
            with psycopg.connect(server.url, autocommit=True) as connection:
                connection.execute("CREATE EXTENSION vector")
            yield server.url
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def feed(table: str, store: str, url: str, folder: Path) -> tuple[int, float, str]:
    """The peak of resident memory in bytes, the seconds, and what the command says that it did."""
    config = {
        "source": {"path": "-", "text": "-"},
        "model": {"path": "-"},
        "table": {"path": table},
        "feeds": {
            "docs": {"store": store, "url": url, "name": "docs", "columns": ["title"], "index": {"kind": "none"}}
        },
    }
    (folder / "feed.yaml").write_text(json.dumps(config))
    started = time.perf_counter()
    command = [sys.executable, "-m", "jobs.feed", str(folder / "feed.yaml"), "--json"]
    with (folder / "told.json").open("w") as out, (folder / "errors").open("w") as errors:
        process = subprocess.Popen(command, stdout=out, stderr=errors)
        peak = 0
        while process.poll() is None:
            peak = max(peak, _peak_of(process.pid))
            time.sleep(0.02)
    text = (folder / "told.json").read_text()
    if process.returncode:
        raise SystemExit(f"the feed ended with {process.returncode}: {(folder / 'errors').read_text()}")
    seconds = json.loads(text)["feeds"][0]["seconds"]
    return peak, time.perf_counter() - started, ", ".join(f"{name} {value:.1f}" for name, value in seconds.items())


def _peak_of(pid: int) -> int:
    """The most bytes of memory that the process held so far. What the system says of it once it has ended counts this
    process, too, from which it came."""
    with contextlib.suppress(OSError):
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
        return int(found[1]) * 1024 if found else 0
    return 0


def make_table(table: Folder, rows: int, dim: int) -> None:
    """Publish a first version of so many rows."""
    schema = part_schema(pa.schema([pa.field("title", pa.string())]), False, "embedding", dim, "float32")
    random = np.random.default_rng(0)
    done: list[tuple[Unit, Sequence[Record]]] = []
    for number, start in enumerate(range(0, rows, ROWS_PER_PART)):
        unit = make_unit(f"unit {number}", number)
        made = _rows(schema, range(start, min(start + ROWS_PER_PART, rows)), number, random)
        done.append((unit, [_staged(table, unit, made)]))
    described = replace(
        describe(),
        embeddings=({"column": "embedding", "dim": dim, "dtype": "float32", "similarity": "cosine"},),
        part_schema=schema,
        output_spec={"partition_by": []},
        probes=((0.0,) * dim,),
    )
    version = commit(Publication(table, snapshot.empty()), replace_units.Work(done=done, kept=frozenset()), described)
    materialise.materialise(table, version)


def _rows(schema: pa.Schema, numbers: range, source: int, random: np.random.Generator) -> pa.Table:
    vectors = random.standard_normal((len(numbers), schema.field("embedding").type.list_size), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    titles = [f"the title of document {number}" for number in numbers]
    known = {
        "id": pa.array([f"doc-{number:09d}" for number in numbers], pa.string()),
        "title": pa.array(titles, pa.string()),
        "embedding": pa.FixedSizeListArray.from_arrays(
            pa.array(vectors.reshape(-1)), type=schema.field("embedding").type
        ),
        "content_hash": identity.content_hashes(pa.array(titles, pa.large_string()), ""),
        "row_hash": identity.row_hashes(pa.table({"title": titles})),
        "source": pa.array([source] * len(numbers), pa.int32()),
        "n_tokens": pa.array([6] * len(numbers), pa.int32()),
        "truncated": pa.array([False] * len(numbers)),
    }
    return pa.table([known[name] for name in schema.names], schema=schema)


def _staged(table: Folder, unit: Unit, rows: pa.Table) -> Record:
    path = layout.staged_part(unit.unit_id, 0, "x", 0)
    content = encode_part(rows, "embedding")
    table.write(path, content)
    part = Part(
        path=path,
        size=content.size,
        rows=len(rows),
        raw_bytes=rows.nbytes,
        partition=(),
        units=(unit.unit_id,),
        sources=distinct_sources(rows),
    )
    made = Record(
        unit_id=unit.unit_id, first_row=0, num_rows=len(rows), documents=len(rows), failed=0, skipped=0, broken=False,
        last=True, sources=unit.sources, parts=(part,), dead_letters=None, bad_vectors=0, effort=Effort(),
        attempt=uuid.uuid4().hex,
    )  # fmt: skip
    record.create(table, made)
    return made


if __name__ == "__main__":
    main()
