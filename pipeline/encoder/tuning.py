"""The settings with which an encoder is fastest on this node: measured with the lengths of a table's own texts, and kept.

Comes in: an encoder, what it was built from, and the token lengths of some of the texts. Goes out: the encoder with the
engine, the form of attention and the size of a batch that were fastest, and a sentence that says why. Only speed depends
on it: forms whose vectors differ are not taken. It knows no texts; the ids that it measures with are made up.
"""

import itertools
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline import identity
from pipeline.encoder import forms
from pipeline.encoder.encoder import PACKED_BUDGET_TOKENS, Encoder, build_encoder, encoder_of
from pipeline.encoder.engines.base import FormingEngine, GraphForm, SeveralWays
from pipeline.encoder.made_up_rows import Sample
from pipeline.encoder.packings import fastest_way
from pipeline.encoder.settings import Setup, gpu, libraries
from pipeline.encoder.token_rows import TokenRows
from pipeline.machine.processor import processor
from pipeline.model.cache import is_kept, kept

BUDGETS = {"cpu": (512, 1024, 2048, 4096), "cuda": (16384, 32768, 65536, 131072, 262144)}
"""Tokens of a batch. Small batches pay for each call, large ones leave the cache."""
WAYS_TOKENS = 2 * PACKED_BUDGET_TOKENS
"""The ways of taking rows are compared with about so many tokens, which are two packed batches."""
SLOWEST_S = 0.25
"""Where the smallest batch takes longer, sizes of batches are not compared: the cost of a call doesn't matter, and it
would take long."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    engine: str
    fused_from: int | None
    """Attention is fused in batches of at least this width; None never, and for engines that have one form only."""
    bfloat16: bool
    """See GraphForm."""
    batch_tokens: int
    reason: str
    """It says what was measured."""


def tuned(encoder: Encoder, setup: Setup, lengths: NDArray[np.int64], *, measures: bool = True) -> Encoder:
    """Return the encoder with its fastest settings, or another one if another engine is faster.

    `encoder` was built from the setup. `lengths`: int64 [n], 1 or more, the tokens of some texts of the table. Measuring
    takes seconds, once for a node, a model and a mix of lengths; without `measures` only what was found before is used.
    """
    sample = Sample(lengths, setup.spec)
    key, *near = _keys(encoder, setup, sample.quantiles)

    def measure(folder: Path) -> None:
        (folder / "choice.json").write_text(json.dumps(asdict(_choice(encoder, setup, sample))))

    if not measures and not is_kept("choices", key, *near):
        return encoder
    choice = Choice(**json.loads((kept("choices", key, measure, or_else=near) / "choice.json").read_text()))
    if choice.engine != encoder.engine.name:
        if setup.spec.engine == "made":
            return encoder  # There is too little to do to load another one.
        encoder = _in_another_way(encoder, choice.engine, setup.device) or _on_torch(setup)
    if isinstance(encoder.engine, FormingEngine):
        encoder.engine.settle(GraphForm(fused_from=choice.fused_from, bfloat16=choice.bfloat16))
    encoder.budget_tokens = choice.batch_tokens
    encoder.settings = "; ".join(filter(None, [encoder.settings, choice.reason]))
    return encoder


def untuned(setup: Setup) -> Encoder:
    """Build the encoder with what the user has decided, and nothing measured."""
    encoder, fixed = build_encoder(setup.spec, setup.device, setup.threads), setup.fixed
    if isinstance(encoder.engine, FormingEngine):
        encoder.engine.settle(forms.usual(encoder.engine, fixed))
    encoder.budget_tokens = fixed.batch_tokens or encoder.budget_tokens
    return encoder


def _on_torch(setup: Setup) -> Encoder:
    return build_encoder(replace(setup.spec, engine="torch"), setup.device, setup.threads)


def _in_another_way(encoder: Encoder, name: str, device: str) -> Encoder | None:
    """The same model with the engine of this name, where its own offers it."""
    if not isinstance(encoder.engine, SeveralWays):
        return None
    found = next((other for other in encoder.engine.others() if other.name == name), None)
    if found is None:
        return encoder  # What was proven when it was measured is not any more.
    encoder.engine.forget()
    other = encoder_of(found, device)
    other.settings = encoder.settings
    return other


def _keys(encoder: Encoder, setup: Setup, widths: Sequence[int]) -> list[str]:
    """The key of what is measured, and then those of lengths that are as good: slices of one table differ a
    little, and each width lies between two powers of two."""
    known = {
        "encoder": setup.spec.identity() | {"int8": None},
        "engine": [encoder.engine.name, "auto" if setup.spec.engine == "made" else setup.spec.engine, *libraries()],
        "processor": processor(),
        "device": [setup.device, gpu(setup.device)],
        "threads": setup.threads,
        "fixed": asdict(setup.fixed),
        "budgets": BUDGETS[setup.device],
        "forms": forms.VERSION,
    }
    nearest = tuple(round(math.log2(width)) for width in widths)
    between = itertools.product(*({math.floor(math.log2(width)), math.ceil(math.log2(width))} for width in widths))
    return [identity.digest(known | {"widths": list(powers)}) for powers in dict.fromkeys([nearest, *between])]


def _choice(encoder: Encoder, setup: Setup, sample: Sample) -> Choice:
    engine, form, reasons = encoder.engine, GraphForm(fused_from=None), []
    if isinstance(engine, FormingEngine):
        found = forms.fastest(engine, setup, sample, lambda: _on_torch(setup).engine)
        reasons.append(found.reason)
        form = found.form or form
        engine.settle(form)
        if found.form is None:
            encoder = _on_torch(setup)
    if isinstance(engine, SeveralWays):
        way = fastest_way(encoder, setup, sample.mixed(WAYS_TOKENS))
        reasons.append(way.reason)
        if way.engine is not engine:
            encoder = encoder_of(way.engine, setup.device)
    budget = setup.fixed.batch_tokens or _batch_tokens(encoder, sample, setup.device)
    reasons.append(f"{budget:,} tokens a batch")
    return Choice(
        engine=encoder.engine.name,
        fused_from=form.fused_from,
        bfloat16=form.bfloat16,
        batch_tokens=budget,
        reason=", ".join(reasons),
    )


def _batch_tokens(encoder: Encoder, sample: Sample, device: str) -> int:
    """The encoder's own budget where its model is so slow, or its device so full, that sizes can't be compared."""
    candidates = BUDGETS[device]
    rows, given = sample.mixed(candidates[-1]), encoder.budget_tokens
    few = rows.slice(0, max(1, int(np.searchsorted(rows.offsets, candidates[0], side="right")) - 1))
    until = time.perf_counter() + forms.MOST_S
    try:
        if _seconds_within(encoder, few, candidates[0]) > SLOWEST_S:
            return given
        for budget in candidates if device == "cuda" else ():  # Sizes are recorded, which must not be timed.
            _seconds_within(encoder, rows, budget)
        least = dict.fromkeys(candidates, math.inf)
        for _ in forms.turns(until):
            for budget in candidates:
                least[budget] = min(least[budget], _seconds_within(encoder, rows, budget))
                if encoder.budget_tokens < budget:  # Memory was short, and it is for all larger ones.
                    return min(given, budget // 2)
    finally:
        encoder.budget_tokens = given
    fastest = min(least.values())
    return next(budget for budget in candidates if forms.NEAR * least[budget] <= fastest)


def _seconds_within(encoder: Encoder, rows: TokenRows, budget: int) -> float:
    encoder.budget_tokens = budget
    return forms.seconds_of(encoder.encode, rows)
