"""What planning, records, a commit and materialising cost, in seconds and in requests to the store, as a corpus grows.

    python -m benchmarks.scale [--files 10000 30000 100000] [--units 250 500 1000] [--format jsonl|parquet]

Sources and table lie on a real S3 server on the loopback, behind a proxy that counts. Every file is a row, every unit a
slice; nothing is encoded. Prints costs per thousand files and per unit: where they stay the same, the whole is linear. What
the store itself took stands beside it: this one reads the folder anew for each page of a list.
"""

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import from_mapping
from pipeline.runs import prepare
from pipeline.storage import Folder
from pipeline.table import materialise, record, snapshot
from pipeline.table.operations import replace_units
from pipeline.table.publication import Publication
from tests.proxy import Proxy, fault_proxy
from tests.servers import rclone_server
from tests.table.test_publish import commit, make_unit, stage
from tests.tiny import build_tiny_model

ROWS_PER_UNIT = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, nargs="*", default=[10_000, 30_000, 100_000])
    parser.add_argument("--units", type=int, nargs="*", default=[250, 500, 1000])
    parser.add_argument("--format", choices=["jsonl", "parquet"], default="jsonl")
    parser.add_argument(
        "--disk", action="store_true", help="source files on the disk: this server lists a folder per page"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for count in arguments.files:
            write_files(root / "store" / f"files-{count}", count, arguments.format)
        (root / "store" / "tables").mkdir(parents=True)
        with rclone_server(root / "store") as server, fault_proxy(server.storage_options["endpoint_url"]) as proxy:
            options = server.storage_options | {"endpoint_url": proxy.url}
            model = str(build_tiny_model(root / "model"))
            for count in arguments.files:
                place = str(root / "store" / f"files-{count}") if arguments.disk else f"s3://files-{count}"
                plan(count, place, arguments.format, options, model, proxy)
            for count in arguments.units:
                publish(count, options, proxy)


def write_files(folder: Path, count: int, form: str) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        path = folder / f"{number:06d}.{form}"
        if form == "jsonl":
            path.write_text(f'{{"id": "doc-{number}", "text": "text {number}"}}\n')
        else:
            pq.write_table(pa.table({"id": [f"doc-{number}"], "text": [f"text {number}"]}), path)


def plan(count: int, place: str, form: str, options: dict[str, Any], model: str, proxy: Proxy) -> None:
    source_options = options if place.startswith("s3://") else {}
    spec = from_mapping(
        {
            "source": {"path": f"{place}/*.{form}", "id": "id", "text": "text", "storage_options": source_options},
            "model": {"path": model},
            "table": {"path": f"s3://tables/files-{count}", "storage_options": options},
        }
    )
    with measured(f"plan {count:,} {form} files", count / 1000, "1,000 files", proxy) as told:
        prepared = prepare.prepare(spec, writes=False)
        told(f"{len(prepared.plan.tasks):,} units")


def publish(count: int, options: dict[str, Any], proxy: Proxy) -> None:
    table = Folder(f"s3://tables/units-{count}", options)
    units = [make_unit(f"unit {number}", number) for number in range(count)]
    what = f"{count:,} units"
    with measured(f"stage and record {what}", count, "unit", proxy):
        for number, unit in enumerate(units):
            stage(table, unit, [f"{number}-{row}x" for row in range(ROWS_PER_UNIT)])
    with measured(f"read the records of {what}", count, "unit", proxy):
        found = record.read_all(table, [unit.unit_id for unit in units])
    work = replace_units.Work(done=[(unit, found[unit.unit_id]) for unit in units], kept=frozenset())
    with measured(f"commit {what}", count, "unit", proxy):
        version = commit(Publication(table, snapshot.empty()), work)
    with measured(f"materialise {what}", count, "unit", proxy) as told:
        materialise.materialise(table, version)
        told(f"{len(version.parts)} parts")


@contextmanager
def measured(what: str, items: float, item: str, proxy: Proxy) -> Iterator[Callable[[str], None]]:
    notes: list[str] = []
    before, store_s, started = Counter(proxy.requests), proxy.upstream_s, time.perf_counter()
    yield notes.append
    seconds = time.perf_counter() - started
    requests = Counter(proxy.requests) - before
    total = sum(requests.values())
    kinds = ", ".join(f"{name} {number:,}" for name, number in requests.most_common())
    notes.append(f"the store took {proxy.upstream_s - store_s:.1f} s")
    each = f"{seconds / items * 1000:8.2f} ms and {total / items:6.2f} requests per {item}"
    print(f"{what:32} {seconds:8.2f} s {total:8,} requests  {each}  ({kinds}) {' '.join(notes)}", flush=True)


if __name__ == "__main__":
    main()
