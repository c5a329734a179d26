"""Live through random histories, and through every stop point of pairs of commands; exit code 1 if anything was violated.

python -m tests.simulation --histories 1000 --seed 1           histories 1 to 1000
python -m tests.simulation --histories 1 --seed 7 --log        one of them, with each operation
python -m tests.simulation --pairs objects --every 1           every stop point of all pairs, in a bucket
python -m tests.simulation --pairs disk --every 5 --only "old: reindex | clean"     of one pair, on a disk
"""

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.simulation.campaign import Task, in_parallel
from tests.simulation.histories import STEPS
from tests.simulation.pairs import PAIRS, name_of
from tests.simulation.world import KINDS
from tests.tiny import build_tiny_model

TELL_S = 20.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--histories", type=int, default=0, metavar="N")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="the first history's")
    parser.add_argument("--steps", type=int, default=STEPS, metavar="N", help="of each history")
    parser.add_argument(
        "--pairs", choices=KINDS, action="append", default=[], help="all pairs of commands on such a store"
    )
    parser.add_argument("--every", type=int, default=1, metavar="N", help="each N-th stop point of a pair")
    parser.add_argument(
        "--only", metavar="PAIR", help='pairs whose name has this in it, such as "old: reindex | clean"'
    )
    parser.add_argument("--share", default="0/1", metavar="I/N", help="each N-th pair from the I-th on")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), metavar="N", help="processes")
    parser.add_argument("--log", action="store_true", help="print each operation")
    parser.add_argument("--most", type=int, default=5, metavar="N", help="end after so many violations")
    arguments = parser.parse_args()
    started, failed = time.monotonic(), 0
    told_at = started
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        models = {name: build_tiny_model(Path(folder) / name, seed=seed) for seed, name in enumerate("AB")}
        for done in in_parallel(_tasks(arguments, models), arguments.workers):
            counts += done.counts
            failed += done.failed
            if done.report:
                print("\n".join(done.report), flush=True)
            if failed >= arguments.most:
                break
            if time.monotonic() - told_at > TELL_S:
                told_at = time.monotonic()
                print(f"  {_told(counts)} in {told_at - started:.0f} s", file=sys.stderr, flush=True)
    print(f"{_told(counts)} in {time.monotonic() - started:.0f} s: {failed} with violations", flush=True)
    return 1 if failed else 0


def _told(counts: Counter[str]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())


def _tasks(arguments: argparse.Namespace, models: dict[str, Path]) -> list[Task]:
    seeds = range(arguments.seed, arguments.seed + arguments.histories)
    tasks = [Task(models=models, seed=seed, steps=arguments.steps, log=arguments.log) for seed in seeds]
    first, step = map(int, arguments.share.split("/"))
    pairs = [pair for pair in PAIRS if (arguments.only or "") in name_of(pair)][first::step]
    return tasks + [
        Task(models=models, pair=pair, kind=kind, every=arguments.every, log=arguments.log)
        for kind in arguments.pairs
        for pair in pairs
    ]


if __name__ == "__main__":
    sys.exit(main())
