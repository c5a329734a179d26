"""Where the float32 encoder's time goes, operator by operator, and its share of the fastest matrix product of this machine.

    python -m benchmarks.operators [--corpus "arXiv abstracts"] [--share 0.1] [--threads 1]

By torch's profiler, on the engine `torch`; what the profiler itself costs is left out of the share of the peak, which is
measured without it.
"""

import argparse
import statistics
from collections import Counter
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import arithmetic, corpora
from benchmarks.peers import MODEL, distinct_lengths
from pipeline.config import ModelSpec
from pipeline.encoder.encoder import build_encoder
from pipeline.encoder.tokenizer import Tokenizer
from pipeline.model.folder import encoder_spec

KINDS = {
    "linear layers": ("_linear_pointwise", "aten::addmm", "aten::mm", "aten::linear"),
    "attention": ("scaled_dot_product", "aten::bmm", "aten::baddbmm", "aten::_softmax"),
    "GELU": ("aten::gelu",),
    "layer norm": ("layer_norm",),
    "copies": (
        "aten::copy_",
        "aten::cat",
        "aten::clone",
        "constant_pad",
        "aten::contiguous",
        "aten::fill_",
        "aten::to",
    ),
    "additions": ("aten::add", "aten::mul", "aten::div", "aten::sub"),
    "embedding": ("embedding", "aten::index"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=corpora.DATA, help="the folder of the evaluation corpora")
    parser.add_argument("--corpus", choices=[*corpora.SOURCES, corpora.DEMO])
    parser.add_argument("--share", type=float, default=0.1, help="of the corpus's rows")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--budget", type=int, help="tokens per batch, instead of the encoder's own")
    parser.add_argument("--model", default=MODEL, help="what model.path would say")
    arguments = parser.parse_args()
    spec = encoder_spec(ModelSpec(path=arguments.model, engine="torch"))
    tokenizer, encoder = Tokenizer(spec, arguments.threads), build_encoder(spec, "cpu", arguments.threads)
    encoder.budget_tokens = arguments.budget or encoder.budget_tokens
    known = corpora.available(arguments.data)
    name = arguments.corpus or ("arXiv abstracts" if "arXiv abstracts" in known else known[0])
    rows = tokenizer.tokenize(corpora.load(name, arguments.data, arguments.share, tokenizer).texts)
    encoder.encode(rows)
    products = arithmetic.float32_products(arguments.threads)
    seconds, ceilings = [], []
    for _ in range(arguments.rounds):
        ceilings.append(arithmetic.rates(products))
        encoded = encoder.encode(rows)
        seconds.append(encoded.engine_seconds)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        encoder.encode(rows)
    spent: Counter[str] = Counter()
    for event in profiled.key_averages():
        spent[_kind(event.key)] += event.self_cpu_time_total
    ceiling = max(statistics.median(each[product] for each in ceilings) for product in products)
    flops = arithmetic.flops_of(distinct_lengths(rows), Path(spec.transformer_folder))
    share = flops / statistics.median(seconds) / ceiling
    padding = 1 - encoded.tokens / encoded.padded_tokens
    print(
        f"{name}: {len(rows):,} rows, {encoded.tokens:,} tokens, padding {padding:.1%}, {arguments.threads} threads, torch "
        f"{torch.__version__}: {statistics.median(seconds):.2f} s, {encoded.tokens / statistics.median(seconds):,.0f} tok/s, "
        f"{share:.1%} of {ceiling / 1e9:,.0f} Gop/s\n\n| operators | share of the time |\n|---|---|"
    )
    for kind, time in spent.most_common():
        print(f"| {kind} | {time / spent.total():.1%} |")


def _kind(operator: str) -> str:
    return next((kind for kind, names in KINDS.items() if any(name in operator for name in names)), "all else")


if __name__ == "__main__":
    main()
