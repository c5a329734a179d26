"""The settings with which an encoder is fastest on this node: measured with the lengths of a table's own texts, and kept.

Comes in: an encoder, what it was built from, and the token lengths of some of the texts. Goes out: the encoder with the
engine, the form of attention and the size of a batch that were fastest, and a sentence that says why. Only speed depends
on it: forms whose vectors differ are not taken. It knows no texts; the ids that it measures with are made up.
"""

import itertools
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline import identity
from pipeline.encoder.encoder import Encoder, build_encoder
from pipeline.encoder.engines.base import Engine, FusingEngine
from pipeline.encoder.settings import Setup
from pipeline.encoder.token_rows import TokenRows
from pipeline.machine.processor import processor
from pipeline.model.cache import is_kept, kept
from pipeline.model.folder import EncoderSpec

BUDGETS = {"cpu": (512, 1024, 2048, 4096), "cuda": (16384, 32768, 65536, 131072, 262144)}
"""Tokens of a batch. Small batches pay for each call, large ones leave the cache."""
NEAR = 0.97
"""Of two settings the simpler one is taken if it reaches this share of the faster one's rate: the smaller batch, which
wastes less padding and memory, one form of the graph instead of two, the engine that is loaded already."""
PLAIN, FUSED, TORCH = "plain", "fused", "torch"
"""The forms that are compared: a graph with OpenVINO's own operators, one with fused attention, and torch."""
TURNS = 3
MOST_S = 4.0
"""The forms of a graph, and then the batches, are compared for at most about so many seconds; each has one turn at
least."""
BATCH_S = 0.15
"""A batch that the forms are compared by takes about so long at most."""
MOST_COMPARED = 1024
"""The forms are compared by batches of at most about so many tokens."""
SLOWEST_S = 0.25
"""Where the smallest batch takes longer, sizes of batches are not compared: the cost of a call doesn't matter, and it
would take long."""
LEAST_COSINE = {"float32": 0.99999, "int8": 0.99}
"""Vectors of one form of a graph are those of the other to this cosine, as between the nodes of a run; see
probes.MIN_COSINE. Rows of made-up ids lose more in int8 than texts do."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    engine: str
    fused_from: int | None
    """Attention is fused in batches of at least this width; None never, and for engines that have one form only."""
    batch_tokens: int
    reason: str
    """It says what was measured."""


def tuned(encoder: Encoder, setup: Setup, lengths: NDArray[np.int64], *, measures: bool = True) -> Encoder:
    """Return the encoder with its fastest settings, or another one if another engine is faster.

    `encoder` was built from the setup. `lengths`: int64 [n], 1 or more, the tokens of some texts of the table. Measuring
    takes seconds, once for a node, a model and a mix of lengths; without `measures` only what was found before is used.
    """
    sample = _Sample(lengths, setup.spec)
    key, *near = _keys(encoder, setup, sample.quantiles)

    def measure(folder: Path) -> None:
        (folder / "choice.json").write_text(json.dumps(asdict(_choice(encoder, setup, sample))))

    if not measures and not is_kept("choices", key, *near):
        return encoder
    choice = Choice(**json.loads((kept("choices", key, measure, or_else=near) / "choice.json").read_text()))
    if choice.engine != encoder.engine.name:
        encoder = _on_torch(setup)
    if isinstance(encoder.engine, FusingEngine):
        encoder.engine.settle(choice.fused_from)
    encoder.budget_tokens = choice.batch_tokens
    encoder.settings = "; ".join(filter(None, [encoder.settings, choice.reason]))
    return encoder


def untuned(setup: Setup) -> Encoder:
    """Build the encoder with what the user has decided, and nothing measured."""
    encoder, fixed = build_encoder(setup.spec, setup.device, setup.threads), setup.fixed
    if fixed.fused_attention is not None and isinstance(encoder.engine, FusingEngine):
        encoder.engine.settle(0 if fixed.fused_attention else None)
    encoder.budget_tokens = fixed.batch_tokens or encoder.budget_tokens
    return encoder


def _on_torch(setup: Setup) -> Encoder:
    return build_encoder(replace(setup.spec, engine="torch"), setup.device, setup.threads)


def _keys(encoder: Encoder, setup: Setup, widths: Sequence[int]) -> list[str]:
    """The key of what is measured, and then those of lengths that are as good: slices of one table differ a
    little, and each width lies between two powers of two."""
    known = {
        "encoder": setup.spec.identity() | {"int8": None},
        "engine": [encoder.engine.name, setup.spec.engine, *map(_version, ("torch", "openvino"))],
        "processor": processor(),
        "device": setup.device,
        "threads": setup.threads,
        "fixed": asdict(setup.fixed),
        "budgets": BUDGETS[setup.device],
    }
    nearest = tuple(round(math.log2(width)) for width in widths)
    between = itertools.product(*({math.floor(math.log2(width)), math.ceil(math.log2(width))} for width in widths))
    return [identity.digest(known | {"widths": list(powers)}) for powers in dict.fromkeys([nearest, *between])]


def _version(package: str) -> str:
    try:
        return version(package)
    except ImportError:
        return ""


class _Sample:
    """It gives rows of made-up ids that are as long as a table's."""

    def __init__(self, lengths: NDArray[np.int64], spec: EncoderSpec) -> None:
        self._lengths = np.minimum(lengths, spec.max_seq_length or 512)
        self.quantiles = _widths(self._lengths)
        self.widths = sorted(set(self.quantiles))
        self._chance = np.random.default_rng(0)

    def of_width(self, width: int, count: int) -> TokenRows:
        """Rows that a batch of this width would hold: they are not all alike, so that some of it is padding."""
        lengths = np.full(count, width)
        lengths[count // 2 :] = max(1, width - 1)
        return self._rows(lengths)

    def mixed(self, tokens: int) -> TokenRows:
        """About so many tokens, in rows as long as the table's."""
        count = max(1, round(tokens / self._lengths.mean()))
        return self._rows(self._chance.choice(self._lengths, count))

    def _rows(self, lengths: NDArray[np.int64]) -> TokenRows:
        # Tokens 1 to 99 are words or special ones in every vocabulary. Equal rows would be encoded once.
        return TokenRows.of([self._chance.integers(1, 100, int(length)).astype(np.int32) for length in lengths])


def _widths(lengths: NDArray[np.int64]) -> list[int]:
    """The widths of rows that an eighth, a half and seven eighths of the tokens lie below."""
    ordered = np.sort(lengths)
    share = np.cumsum(ordered) / ordered.sum()
    return [int(ordered[np.searchsorted(share, part)]) for part in (0.125, 0.5, 0.875)]


@dataclass(frozen=True, eq=False)
class _Form:
    """One way to compute the same vectors."""

    name: str
    encode: Callable[[TokenRows], NDArray[np.float32]]
    """All rows in one batch."""


def _choice(encoder: Encoder, setup: Setup, sample: _Sample) -> Choice:
    engine, fused_from, reasons = encoder.engine, None, []
    if isinstance(engine, FusingEngine):
        seconds = _compared(_forms(engine, setup), sample, LEAST_COSINE[setup.spec.precision])
        fused_from, best = _where_fused(seconds, sample.widths)
        engine.settle(fused_from)
        what = {None: "attention not fused", 0: "attention fused"}.get(
            fused_from, f"attention fused from {fused_from} tokens on"
        )
        if TORCH in seconds and sum(seconds[TORCH]) < NEAR * best:
            encoder, fused_from, what = _on_torch(setup), None, "torch"
        reasons.append(f"{what} ({_told(seconds, sample.widths)})")
    budget = setup.fixed.batch_tokens or _batch_tokens(encoder, sample, setup.device)
    reasons.append(f"{budget:,} tokens a batch")
    return Choice(engine=encoder.engine.name, fused_from=fused_from, batch_tokens=budget, reason=", ".join(reasons))


def _forms(engine: FusingEngine, setup: Setup) -> list[_Form]:
    """The first is what the others' vectors are compared with."""

    def form(fused_from: int | None) -> Callable[[TokenRows], NDArray[np.float32]]:
        def encode(rows: TokenRows) -> NDArray[np.float32]:
            engine.fused_from = fused_from
            return _in_one_batch(engine, rows)

        return encode

    wanted = setup.fixed.fused_attention
    forms = [_Form(PLAIN, form(None))] if wanted is not True or not engine.may_fuse else []
    if engine.may_fuse and wanted is not False:
        forms.append(_Form(FUSED, form(0)))
    if setup.spec.engine == "auto" and setup.spec.precision == "float32":
        torch = _on_torch(setup).engine
        forms.append(_Form(TORCH, lambda rows: _in_one_batch(torch, rows)))
    return forms


def _in_one_batch(engine: Engine, rows: TokenRows) -> NDArray[np.float32]:
    whole = int(rows.lengths.max()) * len(rows)
    return Encoder(engine, 2 * whole, overhead_tokens=2 * whole).encode(rows).vectors


def _compared(forms: Sequence[_Form], sample: _Sample, least_cosine: float) -> dict[str, list[float]]:
    """The least seconds per token of each form at each width. A form that fails, or gives other vectors, has none."""
    until = time.perf_counter() + MOST_S
    batches = []
    standing = {form.name: form for form in forms}
    for width in sample.widths:
        one = sample.of_width(width, 1)
        forms[0].encode(one)  # Code is made, and memory is got, before the clock runs.
        rows = sample.of_width(
            width, max(2, min(int(BATCH_S / _seconds(forms[0].encode, one)), MOST_COMPARED // width))
        )
        batches.append(rows)
        expected = forms[0].encode(rows)
        for form in forms[1:]:
            if form.name in standing and not _agree(form, rows, expected, least_cosine):
                del standing[form.name]
    least = {name: [math.inf] * len(batches) for name in standing}
    for turn in range(TURNS):  # They take turns, so that a noisy moment meets all of them.
        if turn and time.perf_counter() > until:
            break
        for place, rows in enumerate(batches):
            for name, form in standing.items():
                each = _seconds(form.encode, rows) / int(rows.lengths.sum())
                least[name][place] = min(least[name][place], each)
    return least


def _seconds(encode: Callable[[TokenRows], object], rows: TokenRows) -> float:
    started = time.perf_counter()
    encode(rows)
    return max(time.perf_counter() - started, 1e-9)


def _agree(form: _Form, rows: TokenRows, expected: NDArray[np.float32], least_cosine: float) -> bool:
    try:
        found = form.encode(rows)
    except Exception:  # A form that can't compute these rows is none; the first one can.
        return False
    sizes = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    cosines = (found * expected).sum(axis=1) / np.maximum(sizes, 1e-12)
    return bool(np.isfinite(cosines).all() and cosines.mean() >= least_cosine)


def _where_fused(seconds: Mapping[str, Sequence[float]], widths: Sequence[int]) -> tuple[int | None, float]:
    """(the width from which on attention is fused, seconds per token of all widths together)."""
    if PLAIN not in seconds:
        return 0, sum(seconds[FUSED])
    if FUSED not in seconds:
        return None, sum(seconds[PLAIN])
    plain, fused = seconds[PLAIN], seconds[FUSED]
    alone: tuple[int | None, float] = min((None, sum(plain)), (0, sum(fused)), key=lambda found: found[1])
    both: list[tuple[int | None, float]] = [
        (math.ceil(math.sqrt(widths[place - 1] * widths[place])), sum(plain[:place]) + sum(fused[place:]))
        for place in range(1, len(widths))
    ]
    mixed = min(both, key=lambda found: found[1], default=alone)
    return mixed if mixed[1] < NEAR * alone[1] else alone


def _told(seconds: Mapping[str, Sequence[float]], widths: Sequence[int]) -> str:
    rates = (f"{name} " + "/".join(f"{1e-3 / each:.1f}" for each in found) for name, found in seconds.items())
    return f"at {'/'.join(map(str, widths))} tokens measured {', '.join(rates)} thousand tokens/s"


def _batch_tokens(encoder: Encoder, sample: _Sample, device: str) -> int:
    """The encoder's own budget where its model is so slow, or its device so full, that sizes can't be compared."""
    candidates = BUDGETS[device]
    rows, given = sample.mixed(candidates[-1]), encoder.budget_tokens
    few = rows.slice(0, max(1, int(np.searchsorted(rows.offsets, candidates[0], side="right")) - 1))
    until = time.perf_counter() + MOST_S
    try:
        if _seconds_within(encoder, few, candidates[0]) > SLOWEST_S:
            return given
        for budget in candidates if device == "cuda" else ():  # Sizes are recorded, which must not be timed.
            _seconds_within(encoder, rows, budget)
        least = dict.fromkeys(candidates, math.inf)
        for turn in range(TURNS):
            if turn and time.perf_counter() > until:
                break
            for budget in candidates:
                least[budget] = min(least[budget], _seconds_within(encoder, rows, budget))
                if encoder.budget_tokens < budget:  # Memory was short, and it is for all larger ones.
                    return min(given, budget // 2)
    finally:
        encoder.budget_tokens = given
    fastest = min(least.values())
    return next(budget for budget in candidates if NEAR * least[budget] <= fastest)


def _seconds_within(encoder: Encoder, rows: TokenRows, budget: int) -> float:
    encoder.budget_tokens = budget
    return _seconds(encoder.encode, rows)
