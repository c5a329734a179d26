"""The dead letters of a version are put together by their reasons, each with a few examples."""

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from pipeline.errors import one_line

MOST_READ = 200_000
"""So many dead letters are looked at."""
MOST_REASONS = 20
EXAMPLES = 3
_OWN = re.compile(r"'[^']*'|\"[^\"]*\"|\d[\d,._]*")
"""What a reason quotes or counts is the row's own, and left out where reasons are put together."""


@dataclass(frozen=True, kw_only=True)
class Example:
    id: str | None
    path: str
    position: int | None
    text: str | None


@dataclass(kw_only=True)
class Reason:
    stage: str
    error: str
    """It is the message of the first such row."""
    count: int
    examples: list[Example]


@dataclass(frozen=True, kw_only=True)
class Letters:
    total: int
    looked: int
    reasons: tuple[Reason, ...]
    """The commonest come first."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def look(letters: Iterable[pa.Table], total: int) -> Letters:
    """Group them. The version counts `total` of them."""
    found: dict[tuple[str, str], Reason] = {}
    looked = 0
    for rows in letters:
        for row in rows.slice(0, MOST_READ - looked).to_pylist():
            _add(found, row)
        looked = min(MOST_READ, looked + rows.num_rows)
        if looked == MOST_READ:
            break
    commonest = sorted(found.values(), key=lambda reason: -reason.count)
    return Letters(total=total, looked=looked, reasons=tuple(commonest[:MOST_REASONS]))


def _add(found: dict[tuple[str, str], Reason], row: dict[str, Any]) -> None:
    key = row["stage"], _OWN.sub("_", row["error"])
    reason = found.setdefault(key, Reason(stage=row["stage"], error=row["error"], count=0, examples=[]))
    reason.count += 1
    if len(reason.examples) < EXAMPLES:
        text = one_line(row["text"], 160) if row["text"] else None
        reason.examples.append(Example(id=row["id"], path=row["path"], position=row["position"], text=text))
