"""What the parity tests saw: for each row of docs/model-format.md its number of comparisons and its largest difference."""

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

Row = tuple[str, str]
"""(section, row) of the table."""


@dataclass
class Figure:
    combinations: int = 0
    difference: float = 0.0
    """Largest |ours - theirs| over the length of the vector."""

    def add(self, other: "Figure") -> None:
        self.combinations += other.combinations
        self.difference = max(self.difference, other.difference)


ALL: Row = ("all", "all")
"""Every comparison; each counts for several other rows too."""
FIGURES: dict[Row, Figure] = {}
COSINES: dict[Row, float] = {}
"""The lowest, where numbers themselves can't be compared."""
Recorded = dict[Row, Figure]


def record(difference: float, *rows: Row) -> None:
    """One combination more."""
    merge({row: Figure(1, difference) for row in (ALL, *rows)})


def record_vectors(difference: float, count: int, section: str, row: str) -> None:
    """So many vectors of one model, where those are what counts."""
    FIGURES[section, row] = Figure(count, difference)
    merge({ALL: Figure(0, difference)})


def record_cosine(cosine: float, section: str, row: str) -> None:
    COSINES[section, row] = min(cosine, COSINES.get((section, row), 1.0))


def merge(found: Mapping[Row, Figure]) -> None:
    for row, figure in found.items():
        FIGURES.setdefault(row, Figure()).add(figure)


@contextlib.contextmanager
def recorded() -> Iterator[Recorded]:
    """What is recorded inside, and nothing of before."""
    before = dict(FIGURES)
    FIGURES.clear()
    found: Recorded = {}
    try:
        yield found
    finally:
        found |= FIGURES
        FIGURES.clear()
        FIGURES.update(before)


def bound(difference: float) -> str:
    """The next power of ten, from 1e-6 on: what is below is the noise of float32."""
    return f"1e-{min(6, math.floor(-math.log10(max(difference, 1e-9))))}"
