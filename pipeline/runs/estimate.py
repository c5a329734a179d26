"""How long encoding takes and what it costs is estimated from earlier versions of the table.

The tokens to encode and the table's versions come in. An Estimate goes out. This file knows neither storage nor the
model: whoever counts the tokens counts them as `Counts.tokens` does.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.progress import duration
from pipeline.table.snapshot import Snapshot

TELLING_S = 10.0
"""The speed of a run that encoded for fewer seconds than these says little."""
TOKENS_PER_S = "tokens_per_s"
"""It is the name, among a version's timings, of the speed of the run that published it."""
VERSIONS = 20
"""At most so many of the newest versions are looked at."""


@dataclass(frozen=True, kw_only=True)
class Rate:
    """It says how fast a version was encoded."""

    version: int
    tokens_per_s: float
    start_s: float
    """They are the seconds until the encoders had their first slice."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """It is an estimate for a person (`str`) and for machines (`to_dict`)."""

    tokens: int
    rate: Rate | None
    """It is None if the table has no version that tells."""
    seconds: float | None
    """They last from the start to the last vector. They are None without a rate."""
    price: float | None
    """It is in the currency of the given price per hour. It is None if no price was given."""

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
    """Estimate the encoding of so many tokens. The `history` is a list of versions, oldest first, without their
    lists."""
    found = rate(history)
    seconds = None if found is None else 0.0 if not tokens else found.start_s + tokens / found.tokens_per_s
    price = None if seconds is None or price_per_hour is None else seconds / 3600 * price_per_hour
    return Estimate(tokens=tokens, rate=found, seconds=seconds, price=price)


def rate(history: Sequence[Snapshot]) -> Rate | None:
    """Return the rate of the latest version that encoded for long enough to tell, or else of the one that encoded
    longest."""
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
