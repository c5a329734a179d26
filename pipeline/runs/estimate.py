"""How long encoding will take and what it will cost, by what earlier versions of the table took.

Tokens to encode and the table's versions come in, an Estimate goes out. Knows neither storage nor the model: whoever
counts the tokens counts them as `Counts.tokens` does.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.progress import duration
from pipeline.table.snapshot import Snapshot

TELLING_S = 10.0
"""Of encoding; the speed of less than that says little."""
TOKENS_PER_S = "tokens_per_s"
"""Among a version's timings: of the run that published it."""
VERSIONS = 20
"""So many are looked at, at most."""


@dataclass(frozen=True, kw_only=True)
class Rate:
    """How fast a version was encoded."""

    version: int
    tokens_per_s: float
    start_s: float
    """Until the encoders had their first slice."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """For a person (`str`) and for machines (`to_dict`)."""

    tokens: int
    rate: Rate | None
    """None if the table has no version that tells."""
    seconds: float | None
    """From the start to the last vector; None without a rate."""
    price: float | None
    """In the currency of the price per hour that was given; None without one."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        tokens = f"about {self.tokens:,} tokens to encode"
        if self.seconds is None or self.rate is None:
            return f"{tokens}; no version of this table tells how fast that is"
        if not self.tokens:
            return "nothing to encode"
        speed = f"{duration(self.seconds)} at the {self.rate.tokens_per_s:,.0f} tokens/s of version {self.rate.version}"
        return f"{tokens}, {speed}" + (f", price {self.price:,.2f}" if self.price is not None else "")


def estimate(tokens: int, history: Sequence[Snapshot], price_per_hour: float | None = None) -> Estimate:
    """`history`: versions, oldest first, without their lists."""
    found = rate(history)
    seconds = None if found is None else 0.0 if not tokens else found.start_s + tokens / found.tokens_per_s
    price = None if seconds is None or price_per_hour is None else seconds / 3600 * price_per_hour
    return Estimate(tokens=tokens, rate=found, seconds=seconds, price=price)


def rate(history: Sequence[Snapshot]) -> Rate | None:
    """Of the latest version that encoded for long enough to tell; else of the one that did for longest."""
    known = [version for version in history[-VERSIONS:] if version.timings.get(TOKENS_PER_S, 0.0) > 0.0]
    if not known:
        return None
    telling = [version for version in known if version.timings["flow"] >= TELLING_S]
    chosen = telling[-1] if telling else max(known, key=lambda version: version.timings["flow"])
    return Rate(
        version=chosen.version,
        tokens_per_s=chosen.timings[TOKENS_PER_S],
        start_s=chosen.timings.get("start", 0.0),
    )
