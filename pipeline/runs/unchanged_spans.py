"""A unit that is new to the table may have spans that the table holds already. They need not be read again.

Small files are packed, so that one changed file makes a new unit of many spans. A plan and the current version come in.
The numbers go out under which the version has the spans that did not change, and the counts of their rows. This file
opens nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import identity
from pipeline.runs.plan import Plan
from pipeline.table.snapshot import Snapshot, Tally
from pipeline.work import SourceFile, Span, Unit, lasting_name

Place = tuple[str, str, str, int, int]
"""It names a span of one version of a file: (name of the file, version, kind, start, stop)."""


@dataclass(frozen=True, kw_only=True)
class UnchangedPart:
    """It is the part of a unit that the table holds already, so that nobody reads it again."""

    numbers: frozenset[int]
    """They are the numbers of its spans."""
    tally: Tally


@dataclass(frozen=True, kw_only=True)
class UnchangedSpans:
    """It tells which spans of new units the current version holds, and what their rows come to."""

    numbers: Mapping[Place, int]
    """They are the spans' numbers in the version."""
    skipped: Mapping[int, int | None]
    """It maps each number to the source rows that are left out of the table. None says that these are the rows of the
    span that are neither in the table nor among the dead letters."""

    def of(self, unit: Unit) -> dict[int, int]:
        """Map the places of the unit's unchanged spans to their numbers in the version."""
        found = {place: self.numbers.get(_place(span)) for place, span in enumerate(unit.spans) if span.take is None}
        return {place: number for place, number in found.items() if number is not None}

    def part_of(self, unit: Unit, live: Mapping[int, tuple[int, int]], failed: Mapping[int, int]) -> UnchangedPart:
        """Return the unit's unchanged spans, counted.

        By the number of a span, `live` has its (rows, documents) in the table, and `failed` its dead letters.
        """
        total, places = Tally(), self.of(unit)
        for place, number in places.items():
            rows, documents = live.get(number, (0, 0))
            letters, skipped = failed.get(number, 0), self.skipped[number]
            if skipped is None:
                skipped = (unit.spans[place].rows or 0) - documents - letters
            total += Tally(rows=rows, documents=documents, failed=letters, skipped=skipped)
        return UnchangedPart(numbers=frozenset(places.values()), tally=total)


def unchanged_spans(plan: Plan, parent: Snapshot, output: str, fingerprint: str) -> UnchangedSpans:
    """Return the spans of the plan's new units that the version holds under this output and fingerprint.

    The version counts the rows that are left out by unit, not by span. Where a unit has such rows, its spans count as
    unchanged only if their share of them is known: because the spans stay together, or because they tell their rows.
    """
    planned = {_place(span): (unit, span) for unit in plan.added for span in unit.spans if span.take is None}
    tallies = parent.tallies()
    numbers: dict[Place, int] = {}
    skipped: dict[int, int | None] = {}
    for live, rows in _live_spans(plan, parent).items():
        places = {_row_place(row): row["source"] for row in rows}
        found = {place: number for place, number in places.items() if place in planned}
        if not found or live != _unit_id(rows, planned[next(iter(found))][1].file, output, fingerprint):
            continue
        shares = _left_out(found, planned, tallies[live].skipped, whole=len(found) == len(rows))
        if shares is not None:
            numbers |= found
            skipped |= shares
    return UnchangedSpans(numbers=numbers, skipped=skipped)


def _live_spans(plan: Plan, parent: Snapshot) -> dict[str, list[dict[str, Any]]]:
    """Map the live units that the plan does not keep to their rows in the list of sources, in span order."""
    kept = pc.is_in(parent.sources.column("unit_id"), pa.array(sorted(plan.kept), pa.string()))
    rows = parent.sources.filter(pc.invert(kept)).to_pylist()
    found: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: (row["path"], row["start"])):
        found.setdefault(row["unit_id"], []).append(row)
    return found


def _unit_id(rows: list[dict[str, Any]], like: SourceFile, output: str, fingerprint: str) -> str:
    """Return the id that a unit of these spans has. It proves that the rows in the table are all of theirs: what is left
    of a unit that can't be read has another id, and so has a unit of another output or model.

    All files of a unit have one format, which is that of the file `like`.
    """
    files = [SourceFile(path=row["path"], size=0, version=row["version"], format=like.format) for row in rows]
    spans = [
        Span(file=file, kind=row["kind"], start=row["start"], stop=row["stop"], rows=None)
        for file, row in zip(files, rows, strict=True)
    ]
    return identity.unit_id(spans, output, fingerprint)


def _left_out(
    found: Mapping[Place, int], planned: Mapping[Place, tuple[Unit, Span]], skipped: int, *, whole: bool
) -> dict[int, int | None] | None:
    """Map the numbers to the rows left out, as `UnchangedSpans.skipped` has them. Return None where nobody knows."""
    nothing: dict[int, int | None] = dict.fromkeys(found.values(), 0)
    if not skipped:
        return nothing
    if whole and len({planned[place][0].unit_id for place in found}) == 1:
        return nothing | {next(iter(found.values())): skipped}  # They are counted together again.
    if all(planned[place][1].rows is not None for place in found):
        return dict.fromkeys(found.values())
    return None


def _place(span: Span) -> Place:
    return span.file.name, span.file.version, span.kind, span.start, span.stop


def _row_place(row: Mapping[str, Any]) -> Place:
    return lasting_name(row["path"]), row["version"], row["kind"], row["start"], row["stop"]
