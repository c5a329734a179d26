"""What takes how long from the command to the first encoded slice, and how long a run takes that finds nothing to do.

    python -m benchmarks.startup [--rounds 3] [--model MODEL]

A small corpus (the demo's, 300 paragraphs) in a fresh table each round. Processor time is that of the whole machine: start-up
is bound by it where cores are few, since each of Ray's processes loads its modules anew.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks import corpora
from benchmarks.peers import MODEL

ROWS = 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default=MODEL, help="what model.path would say")
    arguments = parser.parse_args()
    rounds = []
    for number in range(arguments.rounds):
        rounds.append(_round(arguments.model))
        print(f"round {number + 1}: {rounds[-1]['a run: to the first slice at an encoder']:.1f} s", flush=True)
    print("\n| | s |\n|---|---|")
    for name in rounds[0]:
        print(f"| {name} | {statistics.median(each[name] for each in rounds):.2f} |")


def _round(model: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpora.write(corpora.Corpus(name="demo", texts=corpora.demo_texts()[:ROWS]), folder / "corpus")
        run = corpora.job_source(folder / "corpus") | {"model": {"path": model}, "table": {"path": f"{name}/table"}}
        (folder / "run.yaml").write_text(yaml.safe_dump(run))
        command = [sys.executable, "-m", "jobs.embed", f"{name}/run.yaml", "--json"]
        before = _processor_s()
        summary, wall_s = _timed(lambda: json.loads(subprocess.check_output(command, stderr=subprocess.DEVNULL)))
        processor_s = _processor_s() - before
        _, nothing_s = _timed(lambda: subprocess.check_output(command))
        seconds = summary["seconds"]
        apart = json.loads(subprocess.check_output([sys.executable, "-c", _APART, model]).splitlines()[-1])
    return {
        "nothing to do: the whole command": nothing_s,
        "a run: the whole command": wall_s,
        "a run: to the first slice at an encoder": wall_s - seconds["total"] + seconds["plan"] + seconds["start"],
        "a run: processor time of all processes but for encoding": processor_s - seconds["encode"],
        **{f"apart: {name}": value for name, value in apart.items()},
    }


_APART = """
import json, logging, os, sys, time
laps, at = {}, time.perf_counter()
def lap(name):
    global at
    laps[name], at = time.perf_counter() - at, time.perf_counter()
import pipeline.runs.prepare; lap("driver: import what plans")
import pipeline.execution.ray.executor; lap("driver: import Ray, Ray Data and the stages")
from pipeline.config import ModelSpec, ResourceSpec
from pipeline.model.folder import encoder_spec
spec = encoder_spec(ModelSpec(path=sys.argv[1])); lap("driver: the model's settings")
with pipeline.execution.ray.cluster.Cluster(ResourceSpec()) as cluster:
    cluster.start(); lap("Ray: start")
lap("Ray: stop")
from pipeline.encoder.tokenizer import Tokenizer
tokenizer = Tokenizer(spec, 1); lap("reader: import transformers and with it torch, load the tokenizer")
from pipeline.encoder import probes
from pipeline.encoder.encoder import build_encoder
import pipeline.encoder.engines.torch, transformers.modeling_utils; lap("encoder: import transformers' models")
encoder = build_encoder(spec, "cpu", 1); lap("encoder: load the weights, pack them")
encoder.encode(tokenizer.tokenize(list(probes.TEXTS))); lap("encoder: the probe texts")
print(json.dumps(laps))
"""


def _timed(run: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    return run(), time.perf_counter() - started


def _processor_s() -> float:
    """Of all processes since the machine began."""
    times = psutil.cpu_times()
    return float(times.user + times.system)


if __name__ == "__main__":
    main()
