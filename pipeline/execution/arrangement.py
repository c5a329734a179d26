"""How many encoders a machine has, and of how many cores each: what may be tried, and what is chosen of what was measured.

It is plain arithmetic: who measures, and which runs are worth it, is not known here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

NEAR = 0.97
"""Of two arrangements the one with fewer cores each is taken where it reaches this share of the other's rate: cores that
work in step wait for each other whenever something else runs on one of them."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """It is what the measurement goes by."""

    tokens: int
    """A row has about so many."""
    encoder_bytes: int
    """An encoder holds about so many bytes."""


@dataclass(frozen=True, kw_only=True)
class Arrangement:
    threads: int
    """An encoder has so many cores."""
    reason: str
    """It says what was measured."""


def candidates(cpus: int, held: int) -> list[tuple[int, int]]:
    """Return (encoders, cores of each) for one core each, two, four and so on, and for all cores in one encoder.

    The memory holds `held` encoders.
    """
    each = [2**power for power in range(cpus.bit_length()) if 2**power < cpus]
    return [(min(cpus // threads, held), threads) for threads in [*each, cpus]]


def choice(rates: Sequence[tuple[int, int, float]]) -> Arrangement:
    """Choose among (encoders, cores of each, tokens/s of all together), in the order of cores."""
    fastest = max(rate for _, _, rate in rates)
    threads = next(threads for _, threads, rate in rates if rate >= NEAR * fastest)
    told = ", ".join(f"{encoders} x {threads} {rate / 1000:.1f}" for encoders, threads, rate in rates)
    return Arrangement(threads=threads, reason=f"encoders x cores measured {told} thousand tokens/s")
