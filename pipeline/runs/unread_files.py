"""A file that can't be read to its end counts by the rows that are missing because of it.

What workers found and what is known of the sources come in. An `UnreadFile` for each such file goes out. How many rows
a file lacks is known from the table's earlier version, or else estimated from its bytes. Which limits hold stands in
guard.py.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pipeline.runs.plan import Plan
from pipeline.runs.prepared import Prepared
from pipeline.table.snapshot import Snapshot
from pipeline.work import Span, Unit, Unreadable, lasting_name


@dataclass(frozen=True, kw_only=True)
class UnreadFile:
    """It is a source file that can't be read to its end."""

    path: str
    reason: str
    rows: int
    """So many rows are missing because of it beside its dead letters, of which each counts as a row already."""


def of_records(prepared: Prepared, plan: Plan) -> tuple[UnreadFile, ...]:
    """Return the unreadable files of the units that a plan adds, by path. Every such unit has its records."""
    found: dict[str, list[tuple[Span, Unreadable]]] = {}
    read: dict[str, int] = {}
    for unit in plan.added:
        records = plan.records[unit.unit_id]
        read[unit.unit_id] = sum(record.num_rows for record in records)
        for record in records:
            for span, item in spans_of(unit, record.sources, record.unread):
                found.setdefault(span.file.path, []).append((span, item))
    before, now = known_rows(prepared.parent), _rows_read(plan, read)
    files = []
    for path, spans in sorted(found.items()):
        missing = sum(_missing(prepared, span, item) for span, item in spans)
        known = before.get(lasting_name(path))
        if known is not None and path in now:
            missing = max(0, known - now[path])
        files.append(UnreadFile(path=path, reason=spans[0][1].reason, rows=missing))
    return tuple(files)


def spans_of(unit: Unit, sources: Sequence[int], unread: Mapping[int, Unreadable]) -> Iterable[tuple[Span, Unreadable]]:
    """Return the spans of a unit that can't be read. Their numbers are those in `sources`, one for each span."""
    return [(span, unread[number]) for span, number in zip(unit.spans, sources, strict=True) if number in unread]


def of_reindex(prepared: Prepared, reasons: Mapping[str, str], num_kept: int) -> tuple[UnreadFile, ...]:
    """Return the unreadable files of a reindex, by path, where `reasons` says why.

    The rows of a file that the table knows stay, so none are missing. Of other files all rows are, less the `num_kept`
    rows of files that vanished, since these stay in their place.
    """
    known = {lasting_name(path) for path in prepared.parent.sources.column("path").to_pylist()}
    expected: dict[str, int] = {}
    for span in (span for unit in prepared.plan.added for span in unit.spans):
        if span.file.path in reasons and span.file.name not in known:
            expected[span.file.path] = expected.get(span.file.path, 0) + prepared.survey.expected_rows(span)
    files = []
    for path, reason in sorted(reasons.items()):
        rows = expected.get(path, 0)
        files.append(UnreadFile(path=path, reason=reason, rows=max(0, rows - num_kept)))
        num_kept = max(0, num_kept - rows)
    return tuple(files)


def known_rows(parent: Snapshot) -> dict[str, int]:
    """Map each file of the version to its source rows. Files that share a unit with others are left out."""
    files: dict[str, set[str]] = {}
    for row in parent.sources.select(["unit_id", "path"]).to_pylist():
        files.setdefault(row["unit_id"], set()).add(lasting_name(row["path"]))
    alone = {unit: next(iter(names)) for unit, names in files.items() if len(names) == 1}
    shared = {name for unit, names in files.items() if unit not in alone for name in names}
    rows: dict[str, int] = {}
    for unit, tally in parent.tallies().items():
        if unit in alone and alone[unit] not in shared:
            rows[alone[unit]] = rows.get(alone[unit], 0) + tally.source_rows
    return rows


def _rows_read(plan: Plan, read: Mapping[str, int]) -> dict[str, int]:
    """Map each path to the rows that it gives now, where no unit has rows of other files beside its own. So many rows were
    `read` of each unit."""
    rows: dict[str, int] = {}
    shared: set[str] = set()
    for unit in plan.added:
        paths = {span.file.path for span in unit.spans}
        if len(paths) > 1:
            shared |= paths
        for path in paths:
            rows[path] = rows.get(path, 0) + read[unit.unit_id]
    return {path: count for path, count in rows.items() if path not in shared}


def _missing(prepared: Prepared, span: Span, item: Unreadable) -> int:
    """Estimate the rows of a span that are lost beside the dead letter that stands for them."""
    if item.rows_read is None:
        return 0
    return max(0, prepared.survey.expected_rows(span) - item.rows_read - 1)
