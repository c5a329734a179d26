"""Our whole job as the corpus grows, with one encoder and several, with small units and large ones, taking turns.

    python -m benchmarks.growth [--corpus "AG News"] [--rounds 3] [--precision float32]

Rates are those of benchmarks.peers: start-up apart. Prints a table and writes it to benchmarks/results/.
"""

import argparse
import contextlib
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import corpora, results
from benchmarks.peers import MODEL
from benchmarks.processes import Process
from benchmarks.turns import Settings, Turn
from pipeline.config import ModelSpec
from pipeline.encoder.tokenizer import Tokenizer
from pipeline.model.folder import encoder_spec, resolve_model

SHARES = {"x1": 1 / 16, "x4": 1 / 4, "x16": 1.0}
UNIT_ROWS = (128, 512, 2048)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=corpora.DATA, help="the folder of the evaluation corpora")
    parser.add_argument("--corpus", choices=[*corpora.SOURCES, corpora.DEMO])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="the most encoders")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--model", default=MODEL, help="what model.path would say")
    parser.add_argument("--name", default="growth", help="of the files of results")
    parser.add_argument("--out", type=Path, default=results.RESULTS)
    arguments = parser.parse_args()
    model = str(resolve_model(arguments.model))
    tokenizer = Tokenizer(encoder_spec(ModelSpec(path=model)), arguments.threads)
    name = arguments.corpus or corpora.available(arguments.data)[0]
    with tempfile.TemporaryDirectory() as folder:
        sources = {}
        for size, share in SHARES.items():
            corpora.write(corpora.load(name, arguments.data, share, tokenizer), Path(folder) / size)
            sources[size] = corpora.job_source(Path(folder) / size)["source"]
        settings = Settings(
            corpus=f"{folder}/x1", model=model, threads=arguments.threads, precision=arguments.precision
        )
        turns, peaks = _measure(settings, _cases(sources, arguments.threads), arguments.rounds)
    rows = [_row(case, turns[case], peaks[case]) for case in turns]
    text = _table(rows)
    found = results.today(
        arguments.name,
        {"corpus": name, "rounds": arguments.rounds, "precision": arguments.precision, "model": arguments.model},
    )
    print(text)
    print(results.save(replace(found, sections=rows), arguments.out, text))


def _cases(sources: dict[str, Any], threads: int) -> dict[str, dict[str, Any]]:
    """What is changed in the configuration, by the name of the case."""
    sizes = {f"rows {size}": {"source": source} for size, source in sources.items()}
    middle = {"source": sources["x4"]}
    counts = [count for count in (1, 2, 4, 8, 16) if count <= threads]
    encoders = {f"encoders {count}": middle | {"resources": {"encoders": count}} for count in counts}
    units = {f"unit_rows {rows}": middle | {"limits": {"unit_rows": rows}} for rows in UNIT_ROWS}
    return sizes | encoders | units


def _measure(
    settings: Settings, cases: dict[str, dict[str, Any]], rounds: int
) -> tuple[dict[str, list[Turn]], dict[str, int]]:
    turns: dict[str, list[Turn]] = {case: [] for case in cases}
    peaks = dict.fromkeys(cases, 0)
    with contextlib.closing(Process("job", settings)) as process:
        for number in range(rounds):
            for case, changed in cases.items():
                turn = process.turn(**changed)
                turns[case].append(turn)
                peaks[case] = max(peaks[case], process.turn_peak_bytes)
                print(f"round {number + 1}  {case:16} {turn.documents / turn.seconds:8.1f} docs/s", flush=True)
    return turns, peaks


def _row(case: str, turns: Sequence[Turn], peak: int) -> dict[str, Any]:
    rates = [turn.documents / turn.seconds for turn in turns]
    parts = {
        part: statistics.median((turn.parts or {}).get(part, 0.0) for turn in turns)
        for part in ("plan", "flow", "commit", "materialise", "busy")
    }
    return {
        "case": case,
        "documents": turns[0].documents,
        "docs_per_s": statistics.median(rates),
        "least": min(rates),
        "most": max(rates),
        "start_s": statistics.median(turn.start_s for turn in turns),
        "memory_bytes": peak,
        **parts,
    }


def _table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        "| | rows | docs/s (min .. max) | encoders busy | plan s | flow s | commit s | materialise s | start s | GiB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        parts = " | ".join(f"{row[part]:.2f}" for part in ("plan", "flow", "commit", "materialise"))
        lines.append(
            f"| {row['case']} | {row['documents']:,} | {row['docs_per_s']:.1f} ({row['least']:.1f} .. {row['most']:.1f}) | "
            f"{row['busy']:.0%} | {parts} | {row['start_s']:.1f} | {row['memory_bytes'] / 2**30:.1f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
