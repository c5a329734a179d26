"""Where a seed strikes: who is killed in turn, the moments at random."""

import random
from dataclasses import dataclass

CYCLE = ("driver", "encoder", "driver", "worker", "node")
KINDS = ("driver", "encoder", "tokenizer", "writer", "node")
"""Of processes; a worker of the cycle is a tokenizer and a writer in turn."""
PHASES = ("planning", "starting", "encoding", "committing", "materialising")
"""Of a driver's life; each begins with something that can be seen from outside."""
ANY_TIME = "any time"
LOADING, READING = "loading", "reading"
"""Of an encoder and of a tokenizer: the slices are read while the encoders load."""
LONGEST_DELAY_S = {
    "planning": 1.5,
    "starting": 8.0,
    "encoding": 0.5,
    "committing": 0.5,
    "materialising": 0.5,
    LOADING: 3.0,
    READING: 3.0,
    ANY_TIME: 0.0,
}
"""The committing and the materialising of a small table take about so long when they are slowed down as job.py does."""


@dataclass(frozen=True, kw_only=True)
class KillPoint:
    number: int
    kind: str
    clustered: bool
    """On a cluster of several nodes instead of Ray's local one."""
    on_ray: bool
    """False lets processes of this machine work without Ray."""
    moment: str
    """The phase that is waited for, or any time."""
    share: float
    """Of the rows that are encoded before it strikes; of the time of an undisturbed run if it may be any."""
    delay_s: float
    """After what was waited for."""

    def __str__(self) -> str:
        where = ", cluster" if self.clustered else "" if self.on_ray else ", no Ray"
        kind = f"{self.kind}{where}" if self.kind == "driver" else self.kind
        moment = f"{self.moment} {self.share:.0%}" if self.moment in ("encoding", ANY_TIME) else self.moment
        return f"{self.number:3}  {kind:15}  {moment:13} +{self.delay_s * 1000:5.0f} ms"


def kill_points(count: int, seed: int) -> list[KillPoint]:
    """The same for the same seed; the first ones of a longer list are those of a shorter one."""
    chance = random.Random(seed)
    phases = chance.sample(PHASES, len(PHASES))
    return [_kill_point(number, chance, phases) for number in range(count)]


def _kill_point(number: int, chance: random.Random, phases: list[str]) -> KillPoint:
    cycle, place = divmod(number, len(CYCLE))
    kind = CYCLE[place]
    turn = cycle * CYCLE.count(kind) + CYCLE[:place].count(kind)
    share, moment = chance.uniform(0, 0.95), "encoding"
    if kind == "driver":
        # In turn by what can be seen and by the clock, which also strikes where nothing can be seen.
        moment = ANY_TIME if turn % 2 else phases[turn // 2 % len(phases)]
    elif kind == "encoder" and chance.random() < 0.15:
        moment = LOADING
    elif kind == "worker":
        kind, moment = (("tokenizer", READING), ("writer", "encoding"))[turn % 2]
        share *= 0.9  # the last slice is not written long after it was encoded
    return KillPoint(
        number=number,
        kind=kind,
        clustered=kind == "node" or (kind == "driver" and turn % 3 == 2),
        on_ray=not (kind == "driver" and turn % 3 == 1),
        moment=moment,
        share=share,
        delay_s=chance.uniform(0, LONGEST_DELAY_S[moment]),
    )
