"""The ways in which an engine's model can take its rows on this device are compared, and the fastest goes out.

An encoder whose engine can be had in several ways comes in, with rows to measure with. All ways give the same vectors: who
offers them has proven that. It knows no batches of a run and keeps nothing.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.encoder import forms
from pipeline.encoder.encoder import Encoder, encoder_of
from pipeline.encoder.engines.base import Engine, SeveralWays
from pipeline.encoder.settings import Setup
from pipeline.encoder.token_rows import TokenRows


@dataclass(frozen=True, kw_only=True)
class FastestWay:
    engine: Engine
    reason: str
    """It says what was measured."""


def fastest_way(encoder: Encoder, setup: Setup, rows: TokenRows) -> FastestWay:
    """Compare the encoder's engine with those that take rows in another way. It is kept where none of them is faster by
    more than forms.NEAR says."""
    engine = encoder.engine
    assert isinstance(engine, SeveralWays)
    encoders = [encoder, *(encoder_of(other, setup.device) for other in engine.others())]
    for one in encoders:
        one.budget_tokens = setup.fixed.batch_tokens or one.budget_tokens
    seconds = _compared(encoders, rows)
    best = min(range(len(encoders)), key=seconds.__getitem__)
    chosen = encoders[best if seconds[best] < forms.NEAR * seconds[0] else 0].engine
    for other in encoders:
        if other.engine is not chosen and isinstance(other.engine, SeveralWays):
            other.engine.forget()
    tokens = int(rows.lengths.sum())
    rates = (
        f"{one.engine.name}: {1e-3 * tokens / each:,.0f}" if each < math.inf else f"{one.engine.name}: fails"
        for one, each in zip(encoders, seconds, strict=True)
    )
    return FastestWay(engine=chosen, reason=f"measured {'; '.join(rates)} thousand tokens/s")


def _compared(encoders: Sequence[Encoder], rows: TokenRows) -> list[float]:
    """The least seconds of each for all rows; infinite where some of them have no vector."""
    # Sizes are recorded, and libraries choose their kernels, before the clock runs.
    least = [math.inf if encoder.encode(rows).failed else 0.0 for encoder in encoders]
    for _ in forms.turns(time.perf_counter() + forms.MOST_S):
        for place, encoder in enumerate(encoders):
            if least[place] < math.inf:
                took = forms.seconds_of(encoder.encode, rows)
                least[place] = min(least[place] or took, took)
    return least
