"""Our tokenizing beside the tokenizers library's own call on the same texts, taking turns: what the ids' way into arrays,
prompt, truncation and care for texts that fail cost.

    python -m benchmarks.tokenizing [--share 0.5] [--rounds 5] [--threads 1 2]

Each number of threads has a process of its own: the library takes it from the environment once. The library alone truncates
after it has tokenized all of a text; ours cuts long texts before, so it can be above 100 %.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import corpora
from benchmarks.peers import MODEL


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=corpora.DATA, help="the folder of the evaluation corpora")
    parser.add_argument("--share", type=float, default=0.5, help="of each corpus's rows")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--model", default=MODEL, help="what model.path would say")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        _measure(arguments)
        return
    print(
        "| threads | corpus | rows | tokens | library, M tokens/s | ours | of the library |\n|---|---|---|---|---|---|---|"
    )
    for threads in arguments.threads:
        environment = os.environ | {"RAYON_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "true"}
        command = [sys.executable, "-m", "benchmarks.tokenizing", *sys.argv[1:], "--here", "--threads", str(threads)]
        done = subprocess.run(command, env=environment, text=True, stdout=subprocess.PIPE, check=True)
        for line in done.stdout.splitlines():
            row = json.loads(line)
            print(
                f"| {threads} | {row['corpus']} | {row['rows']:,} | {row['tokens']:,} | {row['library'] / 1e6:.2f} | "
                f"{row['ours'] / 1e6:.2f} | {row['share']:.0%} |",
                flush=True,
            )


def _measure(arguments: argparse.Namespace) -> None:
    from pipeline.config import ModelSpec
    from pipeline.encoder.tokenizer import Tokenizer
    from pipeline.model.folder import encoder_spec

    spec = encoder_spec(ModelSpec(path=arguments.model))
    ours, library = Tokenizer(spec, arguments.threads[0]), _library(spec)
    for name in corpora.available(arguments.data):
        texts = list(corpora.load(name, arguments.data, arguments.share, ours).texts)
        seconds: dict[str, list[float]] = {"library": [], "ours": []}
        for number in range(arguments.rounds + 1):
            started = time.perf_counter()
            library.encode_batch_fast(texts)
            middle = time.perf_counter()
            rows = ours.tokenize(texts)
            if number:  # the first is to warm up
                seconds["library"].append(middle - started)
                seconds["ours"].append(time.perf_counter() - middle)
        tokens = int(rows.lengths.sum())
        pairs = zip(seconds["library"], seconds["ours"], strict=True)
        found = {
            "corpus": name,
            "rows": len(texts),
            "tokens": tokens,
            "library": tokens / statistics.median(seconds["library"]),
            "ours": tokens / statistics.median(seconds["ours"]),
            "share": statistics.median(theirs / own for theirs, own in pairs),
        }
        print(json.dumps(found), flush=True)


def _library(spec: Any) -> Any:
    import tokenizers

    library = tokenizers.Tokenizer.from_file(str(spec.transformer_folder / "tokenizer.json"))
    library.no_padding()
    library.enable_truncation(spec.max_seq_length)
    return library


if __name__ == "__main__":
    main()
