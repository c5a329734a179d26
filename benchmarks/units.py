"""What a driver holds and spends as a corpus grows to 100,000 units, which are 800 million rows: units that do nothing.

    python -m benchmarks.units [--units 3000 10000 30000 100000] [--folder /dev/shm]

Planning, the flow's reports, reading the records, the commit and materialising are those of a real run, each size in a
process of its own. Source files are sparse, and so large that they make so many units; no unit is read, encoded or
compared. Workers' work is left out: their records, and parts of a few bytes that claim to hold 8,192 vectors, are written
as they would leave them. Tells memory and seconds per thousand units by phase, and the requests that a store would get; a
list counts as one for each thousand names. The table lies in a folder in memory, so that a disk's syncs aren't measured.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa

ROWS = 8192
VECTOR_BYTES = 1536
UNIT_BYTES = 8 * 2**20
FILES = 100
LIST_PAGE = 1000
"""A store gives so many names for a request."""
MIB = 2**20
PEAK_RESET = Path("/proc/self/clear_refs")
"""A 5 that is written here begins the kernel's look for the most memory anew."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, nargs="*", default=[3000, 10_000, 30_000, 100_000])
    parser.add_argument("--folder", default="/dev/shm", help="where sources and table are put")
    parser.add_argument("--here", nargs=2, metavar=("UNITS", "MODEL"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        count, model = arguments.here
        print(json.dumps(run(int(count), model, arguments.folder)), file=sys.__stdout__)
        return
    # The processes that are measured must not have torch.
    from benchmarks import seeded

    with tempfile.TemporaryDirectory() as name:
        model = str(seeded.build_static(Path(name) / "model", 16))
        for count in arguments.units:
            here = ["--here", str(count), model, "--folder", arguments.folder]
            command = [sys.executable, "-m", "benchmarks.units", *here]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            tell(count, json.loads(done.stdout.splitlines()[-1]))


def tell(count: int, found: dict[str, Any]) -> None:
    thousands = count / 1000
    print(f"\n{count:,} units, {count * ROWS:,} rows, {found['parts']:,} parts in the version")
    for phase in found["phases"]:
        requests = ", ".join(f"{name} {number / thousands:,.1f}" for name, number in phase["requests"].items())
        print(
            f"  {phase['name']:12} {phase['seconds']:7.1f} s, {phase['seconds'] / thousands:6.3f} s per 1,000 units, "
            f"{phase['rss'] / MIB:6.0f} MiB, at most {phase['peak'] / MIB:.0f}; requests per 1,000 units: {requests or 'none'}"
        )
    reports = "; ".join(f"{at:,}: {rss / MIB:.0f} MiB, {seconds:.2f} s per 1,000" for at, rss, seconds in found["flow"])
    print(f"  while units were recorded: {reports}")
    print(f"  the most memory: {found['peak'] / MIB:.0f} MiB", flush=True)


class Meter:
    """It tells phases apart, with their seconds, the memory at their ends, and their requests."""

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self.phases: list[dict[str, Any]] = []
        self.paused_s = 0.0
        self._process = psutil.Process()
        self._since = time.perf_counter()

    def rss(self) -> int:
        found: int = self._process.memory_info().rss
        return found

    def peak(self) -> int:
        """The most memory since this was asked for last."""
        found = self.rss()
        if PEAK_RESET.exists():  # Linux keeps the most in VmHWM, until it is told to forget it.
            lines = Path("/proc/self/status").read_text().splitlines()
            found = max(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
            PEAK_RESET.write_text("5")
        return found

    def end(self, name: str) -> None:
        now = time.perf_counter()
        seconds = now - self._since - self.paused_s
        memory = {"rss": self.rss(), "peak": self.peak()}
        self.phases.append({"name": name, "seconds": seconds, "requests": dict(self.requests)} | memory)
        self.requests.clear()
        self._since, self.paused_s = now, 0.0

    def watch_folders(self) -> None:
        """Count what every folder is asked for."""
        from pipeline.storage import Folder

        for name in ("read", "write", "create_once", "copy", "size", "open", "delete"):
            setattr(Folder, name, self._counting(name, getattr(Folder, name)))
        gather = Folder.gather

        def counted(folder: Any, prefix: str, take: Any, temporary: bool = False) -> Any:
            passed = 0

            def passing(files: Iterator[Any]) -> Iterator[Any]:
                nonlocal passed
                for passed, file in enumerate(files, 1):  # noqa: B007 - it is read below
                    yield file

            found = gather(folder, prefix, lambda files: take(passing(files)), temporary)
            self.requests["list"] += 1 + passed // LIST_PAGE
            return found

        Folder.gather = counted  # type: ignore[method-assign]

    def _counting(self, name: str, method: Any) -> Any:
        def counted(folder: Any, *given: Any, **named: Any) -> Any:
            if name == "delete":
                given = (list(given[0]),)
            found = method(folder, *given, **named)
            self.requests[name] += -(-len(given[0]) // LIST_PAGE) if name == "delete" else 1
            return found

        return counted


def run(count: int, model: str, folder: str) -> dict[str, Any]:
    """A whole run over so many units that do nothing."""
    from pipeline.config import ResourceSpec
    from pipeline.execution.executor import Flowing, Job
    from pipeline.execution.local.executor import LocalExecutor
    from pipeline.runs import by_units
    from pipeline.runs.embed import embed
    from pipeline.stages.flow import Flow, OnProgress
    from pipeline.stages.slice_row import REPORT, effort_to_json
    from pipeline.table import layout, materialise
    from pipeline.table.compare import Difference
    from pipeline.table.operations.compact import Rewrite
    from pipeline.table.part import Part
    from pipeline.table.record import Effort, Record
    from pipeline.work import Task, Unit
    from tests.inline import spec_of

    meter, flow_marks = Meter(), list[tuple[int, int, float]]()

    def recorded(table: Path, unit: Unit) -> Effort:
        """Leave what workers would leave of a unit."""
        path = layout.staged_part(unit.unit_id, 0, "x", 0)
        (table / path).parent.mkdir(parents=True, exist_ok=True)
        (table / path).write_bytes(b"part")
        part = Part(
            path=path,
            size=4,
            rows=ROWS,
            raw_bytes=ROWS * VECTOR_BYTES,
            partition=(),
            units=(unit.unit_id,),
            sources=unit.sources,
        )
        effort = Effort(rows_encoded=ROWS, tokens=16 * ROWS, encode_s=1.0)
        made = Record(
            unit_id=unit.unit_id, first_row=0, num_rows=ROWS, documents=ROWS, failed=0, skipped=0, broken=False, last=True,
            sources=unit.sources, parts=(part,), dead_letters=None, bad_vectors=0, effort=effort, attempt=uuid.uuid4().hex,
        )  # fmt: skip
        place = table / layout.record(unit.unit_id, 0)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(made.to_json())
        return effort

    class Nothing(LocalExecutor):
        """It is an executor whose workers do nothing, and leave what they would leave."""

        def flow(self, job: Job, tasks: Sequence[Task], flow: Flow, on_progress: OnProgress | None) -> Flowing:
            meter.end("plan")
            table, since = Path(job.table.url), time.perf_counter()
            for number, task in enumerate(tasks, 1):
                started = time.perf_counter()
                effort = recorded(table, task.unit)
                report = {"unit_id": task.unit.unit_id, "first_row": 0, "num_rows": ROWS, "failed": 0, "last": True}
                report |= {"effort": effort_to_json(effort), "encoder": f"encoder {number % 8}", "engine": "none"}
                report |= {"encode_start": float(number), "encode_stop": number + 1.0}
                row = pa.Table.from_pylist([report], REPORT)
                passed = time.perf_counter() - started
                meter.paused_s += passed
                since += passed
                yield row
                if number % max(1000, len(tasks) // 5) == 0 or number == 10_000:
                    done = number - (flow_marks[-1][0] if flow_marks else 0)
                    flow_marks.append((number, meter.rss(), 1000 * (time.perf_counter() - since) / done))
                    since = time.perf_counter()
            meter.end("reports")

        def for_each(self, job: Job, do: Any, items: Sequence[Any], **named: Any) -> Iterator[Any]:
            meter.end("records")
            for item in items:
                assert isinstance(item, Rewrite)
                job.table.write(item.output, b"merged")
                parts = [one.part for one in item.inputs]
                yield replace(
                    parts[0],
                    path=item.output,
                    staged=item.output,
                    size=6,
                    rows=sum(part.rows for part in parts),
                    raw_bytes=sum(part.raw_bytes for part in parts),
                    units=tuple(sorted(unit for part in parts for unit in part.units)),
                    sources=tuple(sorted(number for part in parts for number in part.sources)),
                )
            meter.end("merging")

        def compare_versions(self, job: Job, sides: Sequence[tuple[Part, int]], *, renewed: bool) -> Difference:
            none = np.zeros((0, 2), np.int32)
            rows = sum(part.rows for part, _ in sides)
            return Difference(upserts=none, deletes=none, duplicates=none, new=rows, changed=0, unchanged=0)

    done = materialise.materialise

    def materialised(*given: Any) -> Any:
        meter.end("commit")
        return done(*given)

    with tempfile.TemporaryDirectory(dir=folder) as name:
        root = Path(name)
        write_sources(root / "source", count)
        spec = spec_of(f"{root}/source/*.jsonl", model, root / "table")
        meter.watch_folders()
        by_units.materialise.materialise = materialised  # type: ignore[attr-defined]
        meter.end("start")
        with Nothing(ResourceSpec()) as executor:
            embed(spec, executor)
        meter.end("materialise")
        parts = len(list((root / "table" / "data").rglob("*.parquet")))
    peak = max(phase["peak"] for phase in meter.phases)
    return {"phases": meter.phases[1:], "flow": flow_marks, "peak": peak, "parts": parts}


def write_sources(folder: Path, units: int) -> None:
    """Files that are as long as so many units, with nothing but holes behind their first lines."""
    folder.mkdir()
    lines = "".join(
        json.dumps({"id": f"{number}", "text": "a text of some words " * 40}) + "\n" for number in range(200)
    )
    files = min(FILES, units)
    for number in range(files):
        with (folder / f"{number:04}.jsonl").open("wb") as file:
            file.write(lines.encode())
            file.truncate(UNIT_BYTES * (units * (number + 1) // files - units * number // files))


if __name__ == "__main__":
    main()
