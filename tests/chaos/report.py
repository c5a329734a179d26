"""What the suite found: a line per kill point, a table by what was killed, and the same as a part of a document."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from tests.chaos.job import BOUND
from tests.chaos.points import KINDS, KillPoint

if TYPE_CHECKING:
    from tests.chaos.nights import Night

FIRST, LAST = "<!-- chaos: written by `python -m tests.chaos --markdown` -->", "<!-- /chaos -->"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    point: "KillPoint | Night"
    phase: str
    """That the run was in when it was struck; empty if it never was."""
    starts: int
    """Of the command until it succeeded, the one that was struck among them."""
    twice: int
    """Rows encoded more often than once."""
    difference: float
    """The largest between numbers of vectors, from the undisturbed run's."""
    faults: tuple[str, ...]
    """Nothing where all held."""
    seconds: float


def line(outcome: Outcome) -> str:
    starts = f"{outcome.starts} start{'s' * (outcome.starts > 1)}"
    return (
        f"{outcome.point}  in {outcome.phase or 'no phase':13}  {starts:8}  {outcome.twice:3} of {BOUND} rows twice  "
        f"{'equal' if not outcome.faults else 'FAILED: ' + '; '.join(outcome.faults)}  {outcome.seconds:.0f} s"
    )


def table(outcomes: Sequence[Outcome]) -> str:
    """In Markdown."""
    rows = [
        "| killed | times | tables equal | rows encoded twice: median, most | bound | starts, most | numbers differ by |",
        "|---" * 7 + "|",
    ]
    for name, own in _by_kind(outcomes).items():
        twice = [outcome.twice for outcome in own]
        equal = sum(not outcome.faults for outcome in own)
        starts = max(outcome.starts for outcome in own)
        apart = max(outcome.difference for outcome in own)
        rows.append(
            f"| {name} | {len(own)} | {equal} | {median(twice):g}, {max(twice)} | {BOUND} | {starts} | {apart:.1g} |"
        )
    return "\n".join(rows)


def _by_kind(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """Drivers by the phase they were struck in, all others by what they are."""
    found: dict[str, list[Outcome]] = {}
    for kind in dict.fromkeys([*KINDS, *(outcome.point.kind for outcome in outcomes)]):
        for outcome in sorted(outcomes, key=lambda outcome: (outcome.point.clustered, outcome.phase)):
            if outcome.point.kind == kind:
                phase = outcome.phase or "not hit"
                where = f" of a cluster's job, {phase}" if outcome.point.clustered else f", {phase}"
                name = "node of three" if kind == "node" else kind + (where if kind == "driver" else "")
                found.setdefault(name, []).append(outcome)
    if outcomes:
        found["all"] = list(outcomes)
    return found


def rewrite(document: Path, conditions: str, outcomes: Sequence[Outcome]) -> None:
    """Put the results between the two marks of the document. Raises ValueError without them."""
    text = document.read_text()
    if text.count(FIRST) != 1 or text.count(LAST) != 1:
        raise ValueError(f"{document} has no place for results: expected {FIRST!r} and {LAST!r}, once each")
    before, rest = text.split(FIRST)
    after = rest.split(LAST)[1]
    document.write_text(f"{before}{FIRST}\n\n{conditions}\n\n{table(outcomes)}\n\n{LAST}{after}")
