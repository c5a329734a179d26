"""Padded, packed and recorded batches on one GPU, beside SentenceTransformer.encode where it is installed; without Ray.

    python -m benchmarks.gpu [--models minilm base large] [--lengths short medium long news abstracts]
                             [--precisions float16 bfloat16] [--budgets 65536] [--rounds 3] [--minutes 9]

Models have seeded weights; nothing is fetched. Contestants take turns, and what each embeds stays the same. Results are
written after every corpus, so that a run that is stopped has given what it had. Without a GPU it ends with exit status 2;
`--device cpu --quick` runs all of it on tiny sizes, which measures nothing but that it works.
"""

import argparse
import contextlib
import itertools
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import arithmetic, results, seeded
from pipeline.config import ModelSpec
from pipeline.encoder.encoder import BUDGET_TOKENS, OVERHEAD_TOKENS, PACKED_BUDGET_TOKENS, Encoder
from pipeline.encoder.engines.packed_torch import PackedTorchEngine, packed_if_proven
from pipeline.encoder.engines.torch import TorchEngine
from pipeline.encoder.token_rows import TokenRows
from pipeline.encoder.tokenizer import Tokenizer
from pipeline.model.folder import EncoderSpec, encoder_spec
from pipeline.model.quiet import quiet_transformers

TOKENS = {"minilm": 4_000_000, "base": 2_000_000, "large": 1_000_000, "tiny": 2_000}
"""Of a turn, roughly."""
SAMPLE_ROWS = 256
"""Whose vectors are compared with those of padded float32."""
BATCH_SIZES = (32, 64, 128, 256, 512, 1024)
"""Of SentenceTransformer.encode; the fastest on an eighth of the rows is taken."""
SLICE_ROWS = 8192
"""As many rows as a run gives an encoder at a time (limits.unit_rows): among these alone ours can sort."""
PRODUCT = 8192
"""Rows and columns of the matrices whose product is the ceiling."""

Embed = Callable[[], tuple[NDArray[np.float32], float]]
"""-> (vectors in the order of the rows, tokens computed per token given, or NaN where nobody counts)."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A contestant on a corpus."""

    name: str
    error: str = ""
    """Why there is nothing else."""
    docs_per_s: float = 0.0
    """The median of the rounds."""
    rounds: Sequence[float] = ()
    tokens_per_s: float = 0.0
    peak_share: float = 0.0
    """Arithmetic that its rows need, without padding, per second, of the largest matrix product's rate."""
    fill: float = 0.0
    """Tokens computed per token given; NaN where nobody counts."""
    memory_bytes: int = 0
    """The most that torch held."""
    least_cosine: float = 0.0
    mean_cosine: float = 0.0
    """To padded float32."""


@dataclass(frozen=True, kw_only=True)
class Section:
    model: str
    lengths: str
    precision: str
    rows: int
    tokens: int
    peak: float
    """Operations per second of the largest matrix product in this precision."""
    engine: str
    """What a run would take, and why nothing faster."""
    tokenized_docs_per_s: float
    """Of the tokenizer alone, with all cores: it is in encode's time, and not in ours."""
    contestants: Sequence[Measured]


def main(argv: Sequence[str] | None = None) -> None:
    arguments = _arguments(argv)
    if arguments.device == "cpu" and not arguments.quick:
        _refuse("on the CPU this only tries itself out: add --quick; `make bench` measures the CPU")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        _refuse(
            f"torch {torch.__version__} finds no GPU here; `--device cpu --quick` tries this program out without one"
        )
    ends = time.monotonic() + 60 * arguments.minutes
    found = results.today("gpu-quick" if arguments.quick else "gpu", _settings(arguments))
    sections: list[Section] = []
    with tempfile.TemporaryDirectory() as folder:
        for model in arguments.models:
            made = seeded.build(seeded.SIZES[model], Path(folder) / model)
            for precision, lengths in itertools.product(arguments.precisions, arguments.lengths):
                if time.monotonic() > ends:
                    print(
                        f"{arguments.minutes:g} minutes are over: {model} {precision} {lengths} and what follows is left out"
                    )
                    return
                sections.append(_section(model, made, lengths, precision, arguments))
                print(_table(sections[-1]), flush=True)
                text = "\n\n".join([_NOTE, *map(_table, sections)])
                written = results.save(
                    replace(found, sections=[asdict(section) for section in sections]), arguments.out, text
                )
    print(f"\nwritten: {written}")


def _section(model: str, folder: Path, kind: str, precision: str, arguments: argparse.Namespace) -> Section:
    size = seeded.SIZES[model]
    longest = min(size.max_seq_length, seeded.CUT.get(kind, size.max_seq_length), 64 if arguments.quick else 512)
    lengths = seeded.lengths_of(kind, 1000, 64 if arguments.quick else 512)
    lengths = seeded.lengths_of(kind, int(TOKENS[model] / np.minimum(lengths, longest).mean()) + 8, max(lengths))
    texts = seeded.texts_of(lengths, size.words)
    spec = encoder_spec(ModelSpec(path=str(folder), precision=precision, max_seq_length=longest))
    tokenizer = Tokenizer(spec, torch.get_num_threads())
    started = time.perf_counter()
    tokens = tokenizer.tokenize(texts)
    tokenized = len(texts) / (time.perf_counter() - started)
    sample = np.linspace(0, len(texts) - 1, min(SAMPLE_ROWS, len(texts))).astype(int)
    expected = _float32(spec, tokens, sample, arguments.device)
    peak = matmul_rate(getattr(torch, precision), arguments.device, 256 if arguments.quick else PRODUCT)
    padded = TorchEngine(spec, arguments.device, torch.get_num_threads())
    chosen, notes = packed_if_proven(padded, spec)
    entries: dict[str, Callable[[], Embed]] = {
        "padded": lambda: _ours(Encoder(padded, BUDGET_TOKENS["cuda"], OVERHEAD_TOKENS["cuda"]), tokens),
        "packed": lambda: _ours(Encoder(PackedTorchEngine(padded, spec, constant=False), PACKED_BUDGET_TOKENS), tokens),
    }
    for budget in arguments.budgets:
        entries[f"packed, recorded, {budget}"] = lambda budget=budget: _ours(
            Encoder(PackedTorchEngine(padded, spec, constant=True), budget), tokens
        )
    entries["encode"] = lambda: _encode(folder, texts, precision, longest, arguments)
    turns = _take_turns(entries, arguments)
    needed = arithmetic.flops_of(tokens.lengths.tolist(), folder)
    return Section(
        model=model,
        lengths=kind,
        precision=precision,
        rows=len(texts),
        tokens=int(tokens.lengths.sum()),
        peak=peak,
        engine="; ".join([type(chosen).__name__, *notes]),
        tokenized_docs_per_s=tokenized,
        contestants=[_measured(name, turn, tokens, needed / peak, expected, sample) for name, turn in turns.items()],
    )


@dataclass
class _Turns:
    seconds: list[float]
    vectors: NDArray[np.float32] | None = None
    fill: float = float("nan")
    memory_bytes: int = 0
    error: str = ""


def _take_turns(entries: dict[str, Callable[[], Embed]], arguments: argparse.Namespace) -> dict[str, _Turns]:
    """A turn of each that isn't counted, then all in every round; who fails is out, and the others go on."""
    embeds: dict[str, Embed] = {}
    turns = {name: _Turns([]) for name in entries}
    for number, (name, entry) in itertools.product(range(-1, arguments.rounds), entries.items()):
        turn = turns[name]
        if turn.error or (number >= 0 and name not in embeds):
            continue
        with _told(turn):
            if number < 0:
                embeds[name] = entry()
            if arguments.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            started = time.perf_counter()
            turn.vectors, turn.fill = embeds[name]()
            if number >= 0:
                turn.seconds.append(time.perf_counter() - started)
            if arguments.device == "cuda":
                turn.memory_bytes = max(turn.memory_bytes, torch.cuda.max_memory_allocated())
    return turns


@contextlib.contextmanager
def _told(turn: _Turns) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        turn.error = " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _ours(encoder: Encoder, tokens: TokenRows) -> Embed:
    slices = [_rows(tokens, np.arange(n, min(n + SLICE_ROWS, len(tokens)))) for n in range(0, len(tokens), SLICE_ROWS)]

    def embed() -> tuple[NDArray[np.float32], float]:
        encoded = [encoder.encode(rows) for rows in slices]
        failed = [reason for each in encoded for reason in each.failed.values()]
        if failed:
            raise RuntimeError(f"{len(failed)} rows failed: {failed[0]}")
        fill = sum(each.padded_tokens for each in encoded) / sum(each.tokens for each in encoded)
        return np.concatenate([each.vectors for each in encoded]), fill

    return embed


def _encode(folder: Path, texts: list[str], precision: str, longest: int, arguments: argparse.Namespace) -> Embed:
    """SentenceTransformer.encode at its best batch size, tokenizing in it as it does."""
    with quiet_transformers(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what that library imports is not ours to judge
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(
            str(folder),
            device=arguments.device,
            model_kwargs={"dtype": getattr(torch, precision)},
            local_files_only=True,
        )
    model.max_seq_length = longest
    some = texts[:: 1 if arguments.quick else 8]
    seconds = {}
    for size in BATCH_SIZES[:2] if arguments.quick else BATCH_SIZES:
        with contextlib.suppress(torch.OutOfMemoryError):
            model.encode(some[:size], batch_size=size)
            started = time.perf_counter()
            model.encode(some, batch_size=size)
            seconds[size] = time.perf_counter() - started
    best = min(seconds, key=lambda size: seconds[size])
    return lambda: (model.encode(texts, batch_size=best).astype(np.float32), float("nan"))


def _float32(spec: EncoderSpec, tokens: TokenRows, sample: NDArray[np.int64], device: str) -> NDArray[np.float32]:
    engine = TorchEngine(replace(spec, precision="float32"), device, torch.get_num_threads())
    return Encoder(engine, 16384).encode(_rows(tokens, sample)).vectors


def _rows(tokens: TokenRows, numbers: NDArray[np.int64]) -> TokenRows:
    rows = [tokens.ids[tokens.offsets[number] : tokens.offsets[number + 1]] for number in numbers]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows], dtype=np.int64)])
    return TokenRows(np.concatenate(rows), offsets, np.zeros(len(rows), np.bool_), {})


def matmul_rate(dtype: torch.dtype, device: str, size: int) -> float:
    """Operations per second of a product of square matrices: the best of some, by the device's own clock."""
    left, right = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    seconds = [_timed(lambda: left @ right, device) for _ in range(13)][3:]
    return 2 * size**3 / min(seconds)


def _timed(run: Callable[[], object], device: str) -> float:
    if device == "cpu":
        started = time.perf_counter()
        run()
        return time.perf_counter() - started
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    run()
    last.record()
    last.synchronize()
    return float(first.elapsed_time(last)) / 1000


def _measured(
    name: str,
    turn: _Turns,
    tokens: TokenRows,
    least_s: float,
    expected: NDArray[np.float32],
    sample: NDArray[np.int64],
) -> Measured:
    """`least_s`: that the arithmetic of all rows would take at the ceiling."""
    if turn.error or turn.vectors is None:
        return Measured(name=name, error=turn.error)
    seconds = statistics.median(turn.seconds)
    cosines = (turn.vectors[sample] * expected).sum(axis=1)
    return Measured(
        name=name,
        docs_per_s=len(tokens) / seconds,
        rounds=[len(tokens) / each for each in turn.seconds],
        tokens_per_s=int(tokens.lengths.sum()) / seconds,
        peak_share=least_s / seconds,
        fill=turn.fill,
        memory_bytes=turn.memory_bytes,
        least_cosine=float(cosines.min()),
        mean_cosine=float(cosines.mean()),
    )


_NOTE = (
    "Seeded weights. Medians of rounds in which all take turns. Of the peak: the arithmetic of the rows without padding, per "
    "second, of the largest matrix product's. Tokenizing is in the time of encode, not in ours: a run does it on other cores. "
    "Ours sort within 8,192 rows at a time, as in a run; encode sorts all."
)


def _table(section: Section) -> str:
    lines = [
        f"### {section.model}, {section.lengths}, {section.precision}",
        "",
        f"{section.rows:,} rows, {section.tokens:,} tokens. Peak {section.peak / 1e12:,.1f} Top/s. Tokenizing alone "
        f"{section.tokenized_docs_per_s:,.0f} docs/s. A run takes {section.engine}.",
        "",
        "| | docs/s (min .. max) | tokens/s | of the peak | computed / given tokens | GiB | cosine to float32: least, mean |",
        "|---|---|---|---|---|---|---|",
    ]
    for item in section.contestants:
        if item.error:
            lines.append(f"| {item.name} | {item.error} | | | | | |")
            continue
        fill = "" if np.isnan(item.fill) else f"{item.fill:.3f}"
        lines.append(
            f"| {item.name} | {item.docs_per_s:,.0f} ({min(item.rounds):,.0f} .. {max(item.rounds):,.0f}) | "
            f"{item.tokens_per_s:,.0f} | {item.peak_share:.1%} | {fill} | {item.memory_bytes / 2**30:.1f} | "
            f"{item.least_cosine:.6f}, {item.mean_cosine:.6f} |"
        )
    return "\n".join(lines)


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    device = torch.cuda.get_device_name() if arguments.device == "cuda" else "cpu"
    return {"device": device, "cuda": torch.version.cuda, "rounds": arguments.rounds}


def _refuse(reason: str) -> None:
    print(reason, file=sys.stderr)
    sys.exit(2)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="a tiny model and few rows: whether it works at all")
    parser.add_argument("--models", nargs="+", choices=tuple(seeded.SIZES), default=None)
    parser.add_argument("--lengths", nargs="+", choices=tuple(seeded.LENGTHS), default=list(seeded.LENGTHS))
    parser.add_argument("--precisions", nargs="+", choices=("float16", "bfloat16"), default=["float16", "bfloat16"])
    parser.add_argument(
        "--budgets", nargs="+", type=int, default=[PACKED_BUDGET_TOKENS], help="tokens of a recorded batch"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=9.0, help="no corpus is begun later")
    parser.add_argument("--out", type=Path, default=results.RESULTS)
    arguments = parser.parse_args(argv)
    if arguments.models is None:
        arguments.models = ["tiny"] if arguments.quick else ["minilm", "base", "large"]
    return arguments


if __name__ == "__main__":
    main()
