"""Our tokenizing beside the tokenizers library's own call on the same texts, taking turns: what the ids' way into arrays,
prompt, truncation and care for texts that fail cost, and what the fast library saves.

    python -m benchmarks.tokenizing [--share 0.5] [--rounds 5] [--threads 1 2] [--clock processor]

Each number of threads has a process of its own: the library takes it from the environment once. The library alone truncates
after it has tokenized all of a text; ours cuts long texts before. The stage is all that a reader does with a slice
once its texts are in Arrow: ids, lengths, the hashes of texts and rows, and the hand-over as Arrow IPC.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa

from benchmarks import corpora
from benchmarks.peers import MODEL

CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
NAMES = ("library", "ours", "ours, fast", "stage", "stage, fast")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=corpora.DATA, help="the folder of the evaluation corpora")
    parser.add_argument("--share", type=float, default=0.5, help="of each corpus's rows")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="what seconds are of; others disturb one of them"
    )
    parser.add_argument("--corpora", nargs="*", default=[], help="names of corpora; all by default")
    parser.add_argument("--model", default=MODEL, help="what model.path would say")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        _measure(arguments)
        return
    heads = ["threads", "corpus", "rows", "tokens", *(f"{name}, M tokens/s" for name in NAMES)]
    print(f"| {' | '.join([*heads, 'fast x ours', 'fast x stage'])} |\n|{'---|' * (len(heads) + 2)}")
    for threads in arguments.threads:
        environment = os.environ | {"RAYON_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "true"}
        command = [sys.executable, "-m", "benchmarks.tokenizing", *sys.argv[1:], "--here", "--threads", str(threads)]
        done = subprocess.run(command, env=environment, text=True, stdout=subprocess.PIPE, check=True)
        for line in done.stdout.splitlines():
            row = json.loads(line)
            cells = [str(threads), row["corpus"], f"{row['rows']:,}", f"{row['tokens']:,}"]
            cells += [f"{rate / 1e6:.2f}" for rate in row["rates"].values()]
            print(f"| {' | '.join([*cells, *(f'{ratio:.1f}' for ratio in row['ratios'])])} |", flush=True)


def _measure(arguments: argparse.Namespace) -> None:
    from pipeline.config import ModelSpec
    from pipeline.encoder import fast_tokenizer
    from pipeline.encoder.fast_library import VARIABLE
    from pipeline.encoder.tokenizer import Tokenizer
    from pipeline.model.folder import encoder_spec

    spec, threads = encoder_spec(ModelSpec(path=arguments.model)), arguments.threads[0]
    fast_tokenizer.START_CHARS = 0
    fast = Tokenizer(spec, threads)
    os.environ[VARIABLE] = "off"
    ours, library = Tokenizer(spec, threads), _library(spec)
    for name in arguments.corpora or corpora.available(arguments.data):
        texts = list(corpora.load(name, arguments.data, arguments.share, ours).texts)
        contestants: list[Callable[[], Any]] = [
            lambda texts=texts: library.encode_batch_fast(texts),
            lambda texts=texts: ours.tokenize(texts),
            lambda texts=texts: fast.tokenize(texts),
            _stage(texts, spec, ours),
            _stage(texts, spec, fast),
        ]
        seconds = _in_turns(contestants, arguments.rounds, CLOCKS[arguments.clock])
        tokens = int(ours.tokenize(texts).lengths.sum())
        found = {
            "corpus": name,
            "rows": len(texts),
            "tokens": tokens,
            "rates": {each: tokens / statistics.median(own) for each, own in zip(NAMES, seconds, strict=True)},
            "ratios": [_ratio(seconds[1], seconds[2]), _ratio(seconds[3], seconds[4])],
        }
        print(json.dumps(found), flush=True)
    if fast.told:
        print(f"the fast library was left: {fast.told}", file=sys.stderr)


def _in_turns(contestants: Sequence[Callable[[], Any]], rounds: int, clock: Callable[[], float]) -> list[list[float]]:
    """[contestants][rounds] seconds; one round more is to warm up."""
    seconds: list[list[float]] = [[] for _ in contestants]
    for number in range(rounds + 1):
        for own, run in zip(seconds, contestants, strict=True):
            started = clock()
            run()
            if number:
                own.append(clock() - started)
    return seconds


def _ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    return statistics.median(theirs / own for theirs, own in zip(slow, fast, strict=True))


def _stage(texts: list[str], spec: Any, tokenizer: Any) -> Callable[[], Any]:
    """What a reader does with a slice of these texts."""
    from pipeline import schema
    from pipeline.stages.read import tokenize_whole
    from pipeline.stages.slice_row import to_ipc

    ids = pa.array([str(number) for number in range(len(texts))])
    documents = pa.table({schema.ID: ids, schema.TEXT: pa.array(texts, pa.large_string())})
    worker: Any = SimpleNamespace(
        encode=SimpleNamespace(encoder=spec), read=SimpleNamespace(carried=(schema.ID,)), chunk=None
    )

    def run() -> Any:
        tokenized = tokenize_whole(documents, worker, tokenizer)
        return to_ipc(tokenized.documents), to_ipc(tokenized.tokens)

    return run


def _library(spec: Any) -> Any:
    import tokenizers

    library = tokenizers.Tokenizer.from_file(str(spec.transformer_folder / "tokenizer.json"))
    library.no_padding()
    library.enable_truncation(spec.max_seq_length)
    return library


if __name__ == "__main__":
    main()
