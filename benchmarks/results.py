"""What a benchmark run found, as a JSON file, a Markdown table and a plot; and the facts of the machine it ran on."""

import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

RESULTS = Path(__file__).parent / "results"
LIBRARIES = (
    "torch transformers tokenizers sentence-transformers openvino nncf ray numpy pyarrow".split()  # noqa: SIM905
)
LEAST_COSINE = {"float32": 0.9999, "bfloat16": 0.995, "int8": 0.97}
"""A contestant's vectors are right if their mean cosine with encode's is at least this."""
COLUMNS = (
    "",
    "docs/s (min .. max)",
    "tokens/s",
    "x encode 32",
    "x best peer",
    "cosine (least)",
    "of the peak",
    "padding",
    "GiB",
    "start s",
)
FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx_vnni", "avx512_vnni", "amx_int8", "amx_bf16", "asimddp", "i8mm", "sve")
"""Of the processor's instructions those that matter to matrix products."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A contestant on a corpus: medians of the rounds."""

    name: str
    docs_per_s: float
    least: float
    most: float
    tokens_per_s: float
    ratio: float | None
    """To SentenceTransformer.encode at batch 32: the median of the rounds' ratios."""
    peak_share: float | None
    """Arithmetic that its texts need, unpadded, per second, of the machine's ceiling in its precision."""
    padding: float | None
    memory_bytes: int
    start_s: float
    """Once per process: imports, loading the model."""
    turn_start_s: float
    """Before each turn: what it starts anew."""
    rounds: Sequence[dict[str, Any]]
    precision: str = "float32"
    ratio_to_best_peer: float | None = None
    """To the fastest peer of this precision whose vectors are right: of the medians of rounds' rates."""
    cosine: float | None = None
    """With encode's vectors of some of the texts: the mean, and the least."""
    least_cosine: float | None = None


@dataclass(frozen=True, kw_only=True)
class Section:
    """A corpus and its contestants."""

    corpus: str
    rows: int
    distinct_rows: int
    tokens: int
    lengths: dict[str, int]
    """Tokens of a row: the median, the 90th percentile, the longest."""
    best_batch: int | None
    sweep: dict[int, float]
    """Batch size -> docs/s of SentenceTransformer.encode on some of the rows."""
    ceilings: dict[str, float]
    """Precision -> operations per second of the fastest large matrix product, median of the rounds."""
    contestants: Sequence[Row]
    best_peers: dict[str, str] = field(default_factory=dict)
    """Precision -> the name of the fastest contestant that is not ours, among those whose vectors are right."""


@dataclass(frozen=True, kw_only=True)
class Results:
    name: str
    date: str
    settings: dict[str, Any]
    machine: dict[str, Any]
    sections: Sequence[Any] = field(default_factory=list)
    """Of peers, Section; of others what they measured."""


def today(name: str, settings: dict[str, Any]) -> Results:
    return Results(name=name, date=time.strftime("%Y-%m-%d"), settings=settings, machine=machine())


def machine() -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    lines = [line.split(":", 1) for line in info.read_text().splitlines() if ":" in line] if info.is_file() else []
    cpu = {key.strip(): value.strip() for key, value in lines}
    flags = cpu.get("flags", cpu.get("Features", "")).split()
    return {
        "processor": cpu.get("model name") or platform.processor() or platform.machine(),
        "flags": [flag for flag in FLAGS if flag in flags],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(),
        "python": platform.python_version(),
        "libraries": {name: _version(name) for name in LIBRARIES},
        "commit": _commit(),
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    return done.stdout.strip() or None


def row(
    name: str,
    turns: Sequence[Any],
    base: Sequence[Any] | None,
    *,
    tokens: int,
    flops: float,
    ceiling: float | None,
    memory_bytes: int,
    start_s: float,
    precision: str = "float32",
    cosines: Sequence[float] = (),
) -> Row:
    """The medians of a contestant's turns; `base` are those of SentenceTransformer.encode in the same rounds."""
    rates = [turn.documents / turn.seconds for turn in turns]
    seconds = statistics.median(turn.seconds for turn in turns)
    paddings = [turn.padding for turn in turns if turn.padding is not None]
    ratios = [rate * b.seconds / b.documents for rate, b in zip(rates, base, strict=True)] if base else []
    return Row(
        name=name,
        docs_per_s=statistics.median(rates),
        least=min(rates),
        most=max(rates),
        tokens_per_s=tokens / seconds,
        ratio=statistics.median(ratios) if ratios else None,
        peak_share=flops / seconds / ceiling if ceiling else None,
        padding=statistics.median(paddings) if paddings else None,
        memory_bytes=memory_bytes,
        start_s=start_s,
        turn_start_s=statistics.median(turn.start_s for turn in turns),
        rounds=[asdict(turn) for turn in turns],
        precision=precision,
        cosine=statistics.fmean(cosines) if len(cosines) else None,
        least_cosine=min(cosines, default=None),
    )


def beside_best_peers(section: Section, ours: Collection[str]) -> Section:
    """Name the fastest peer of each precision, and give each row's ratio to it. Wrong vectors win nothing."""
    best: dict[str, Row] = {}
    for item in section.contestants:
        right = item.cosine is None or item.cosine >= LEAST_COSINE[item.precision]
        if item.name not in ours and right and item.docs_per_s > getattr(best.get(item.precision), "docs_per_s", 0.0):
            best[item.precision] = item
    rows = [
        replace(item, ratio_to_best_peer=item.docs_per_s / best[item.precision].docs_per_s)
        if item.precision in best
        else item
        for item in section.contestants
    ]
    return replace(section, contestants=rows, best_peers={name: row.name for name, row in best.items()})


def table(section: Section) -> str:
    """Markdown."""
    lengths = ", ".join(f"{name} {value}" for name, value in section.lengths.items())
    ceilings = ", ".join(f"{name} {rate / 1e9:,.0f}" for name, rate in section.ceilings.items())
    sweep = ", ".join(f"{size}: {rate:.0f}" for size, rate in section.sweep.items())
    lines = [
        f"### {section.corpus}",
        "",
        f"{section.rows:,} rows ({section.distinct_rows:,} distinct), {section.tokens:,} tokens (a row: {lengths}). Fastest "
        f"matrix product, Gop/s: {ceilings}." + (f" encode by batch size, docs/s: {sweep}." if sweep else ""),
        "Best peers: " + ", ".join(f"{name} {peer}" for name, peer in section.best_peers.items()) + ".",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|---" * len(COLUMNS) + "|",
    ]
    for item in section.contestants:
        lines.append("| " + " | ".join(_cells(item)) + " |")
    return "\n".join(lines)


def _cells(item: Row) -> list[str]:
    return [
        item.name,
        f"{item.docs_per_s:.1f} ({item.least:.1f} .. {item.most:.1f})",
        f"{item.tokens_per_s:,.0f}",
        _shown(item.ratio, ".2f"),
        _shown(item.ratio_to_best_peer, ".2f"),
        _cosine(item),
        _shown(item.peak_share, ".0%"),
        _shown(item.padding, ".1%"),
        f"{item.memory_bytes / 2**30:.1f}",
        f"{item.start_s:.1f}" + (f" + {item.turn_start_s:.1f}" if item.turn_start_s >= 0.05 else ""),
    ]


def _cosine(item: Row) -> str:
    if item.cosine is None or item.least_cosine is None:
        return ""
    wrong = "" if item.cosine >= LEAST_COSINE[item.precision] else ", wrong"
    return f"{item.cosine:.4f} ({item.least_cosine:.3f}){wrong}"


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def write(results: Results, folder: Path) -> Path:
    """`<date>-<name>.json`, `.md` and, if matplotlib is there, `.svg`; returns the Markdown file."""
    note = (
        "Medians of the rounds; ratios to encode are of the same round, those to the best peer of the same precision are "
        "of the medians. Cosines are with encode's vectors of the same texts. Memory is that of the process and its "
        "children. Start-up is not in the rates: once per process + before each turn."
    )
    written = save(results, folder, "\n\n".join([note, *map(table, results.sections)]))
    _plot(results, written.with_suffix(".svg"))
    return written


def save(results: Results, folder: Path, text: str) -> Path:
    """The JSON file with all figures, and a Markdown file with `text` below the facts; returns the latter."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"{results.date}-{results.name}"
    stem.with_suffix(".json").write_text(json.dumps(asdict(results), indent=1) + "\n")
    facts = results.machine
    libraries = ", ".join(f"{name} {version}" for name, version in facts["libraries"].items() if version)
    head = (
        f"# {results.name}, {results.date}\n\n"
        f"{facts['processor']}, {facts['cores']} cores ({' '.join(facts['flags'])}), {facts['memory_bytes'] / 2**30:.0f} GiB, "
        f"Python {facts['python']}, {libraries}, commit {facts['commit']}. "
        f"{', '.join(f'{key} {value}' for key, value in results.settings.items())}."
    )
    stem.with_suffix(".md").write_text(f"{head}\n\n{text}\n")
    return stem.with_suffix(".md")


def _plot(results: Results, path: Path) -> None:
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = results.name  # the same numbers give the same file
    from matplotlib import pyplot

    sections = [section for section in results.sections if any(item.ratio for item in section.contestants)]
    if not sections:
        return
    rows = max(len(section.contestants) for section in sections)
    size = (3.2 * len(sections) + 1.2, 0.34 * rows + 1.1)
    figure, axes = pyplot.subplots(1, len(sections), figsize=size, sharey=True, squeeze=False)
    for axis, section in zip(axes[0], sections, strict=True):
        shown = [item for item in section.contestants if item.ratio is not None][::-1]
        names, ratios = [item.name for item in shown], [item.ratio or 0.0 for item in shown]
        colours = ["#2a6f97" if name.split()[0] in ("bare", "job") else "#b5bac0" for name in names]
        bars = axis.barh(names, ratios, color=colours)
        axis.bar_label(bars, [f"{item.docs_per_s:,.0f}" for item in shown], padding=3, fontsize=8)
        axis.axvline(1, color="#555555", linewidth=0.8)
        axis.set_title(section.corpus, fontsize=10)
        axis.set_xlabel("times encode, batch 32", fontsize=8)
        axis.margins(x=0.22)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
