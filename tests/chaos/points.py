"""Where a seed strikes: kinds in turn, moments at random."""

import random
from dataclasses import dataclass

KINDS = ("driver", "encoder", "worker", "node")
PHASES = ("planning", "starting", "encoding", "encoding", "committing", "materialising")
"""Of a driver's life; what it does longest comes twice."""


@dataclass(frozen=True, kw_only=True)
class KillPoint:
    number: int
    kind: str
    phase: str
    share: float
    """Of the rows that are encoded before it strikes."""
    delay_s: float
    """After the phase or share was reached."""

    def __str__(self) -> str:
        where = f"{self.phase} at {self.share:.0%}" if self.phase == "encoding" else self.phase
        return f"{self.number:3}  {self.kind:8} {where:16} +{self.delay_s * 1000:5.0f} ms"


def kill_points(count: int, seed: int) -> list[KillPoint]:
    """The same for the same seed; the first ones of a longer list are those of a shorter one."""
    chance = random.Random(seed)
    return [_kill_point(number, chance) for number in range(count)]


def _kill_point(number: int, chance: random.Random) -> KillPoint:
    kind = KINDS[number % len(KINDS)]
    phase = chance.choice(PHASES) if kind == "driver" else "encoding"
    longest_s = {"planning": 1.5, "starting": 8, "encoding": 0.5, "committing": 0.1, "materialising": 0.03}[phase]
    return KillPoint(
        number=number, kind=kind, phase=phase, share=chance.uniform(0, 0.95), delay_s=chance.uniform(0, longest_s)
    )
