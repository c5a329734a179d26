"""Desired units minus existing ones: what a run has to encode, what it keeps, what it drops. Pure: opens nothing.

Comes in: what the source holds (a survey), the current snapshot, the records in staging, and the dead letters that are to be
tried again. Goes out: a `Plan`.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import identity, schema
from pipeline.config import RunSpec
from pipeline.sources import filter
from pipeline.table import record
from pipeline.table.layout import FORMAT
from pipeline.table.record import Record
from pipeline.table.snapshot import Snapshot
from pipeline.work import NO_PLACE, Span, Task, Unit


@dataclass(frozen=True, kw_only=True)
class Plan:
    added: tuple[Unit, ...]
    """Units that the snapshot lacks, in source order."""
    kept: frozenset[str]
    """Live units that are planned again: they stay as they are."""
    dropped: frozenset[str]
    """Live units that the source no longer has in this form."""
    retried: Mapping[str, Unit] = field(default_factory=dict)
    """Kept units whose dead letters are tried again, each with the unit of these rows alone."""
    records: Mapping[str, Sequence[Record]]
    """Valid records of added units, and of those that try rows again."""

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What is left to do."""
        return tuple(
            Task(unit=unit, done=record.intervals(self.records.get(unit.unit_id, ())))
            for unit in (*self.added, *self.retried.values())
            if not record.is_complete(self.records.get(unit.unit_id, ()))
        )

    @property
    def rows_to_retry(self) -> int:
        """Dead letters that are tried again."""
        return sum(len(unit.only or ()) for unit in self.retried.values())

    @property
    def changes_nothing(self) -> bool:
        return not self.added and not self.dropped and not self.retried


def output_spec(spec: RunSpec, source: pa.Schema, forms: Collection[str]) -> dict[str, Any]:
    """All that shapes the table's files: roles, order and types of columns, rules, partitioning, format version.

    `forms` are the formats of the source files: options of other formats shape nothing.
    """
    delimited = bool({"csv", "tsv"} & set(forms))
    return {
        "format": FORMAT,
        "id": spec.source.id_columns,
        "text": spec.source.text_columns,
        "joiner": "\n",
        "keep": spec.source.keep,
        "on_null": spec.source.on_null,
        "where": filter.normal(spec.source.where),
        # A quoted record that is too long ends after its first line, so the limit says how rows are counted.
        "csv": _csv_shape(spec) if delimited else None,
        **({"renamed": dict(spec.source.renamed)} if spec.source.renamed else {}),
        **({"encoding": spec.source.encoding} if spec.source.encoding != "auto" else {}),
        "schema": {column.name: str(column.type) for column in source},
        "partition_by": spec.table.partition_by,
        "embedding_column": spec.table.embedding_column,
        "keep_text": spec.table.keep_text,
        "rows": spec.chunk.rows if spec.chunk else "documents",
    }


def _csv_shape(spec: RunSpec) -> dict[str, Any]:
    """The dialect; what tables were built before there was a choice of is left out where nothing was chosen."""
    given = asdict(spec.source.csv)
    if given["escape"] is None:
        del given["escape"]
    return given | {"max_row_bytes": spec.limits.max_row_bytes}


def shape(output: Mapping[str, Any]) -> str:
    """A digest of what an output_spec says of rows beyond their text and kept values: the files' columns, their types and
    places. What chooses rows or finds their text shapes none that is there."""
    kept = [*output.get("keep", ()), *output.get("partition_by", ())]
    shaping = ("format", "keep", "partition_by", "embedding_column", "keep_text", "rows")
    types = {name: output.get("schema", {}).get(name) for name in kept}
    return identity.digest({name: output.get(name) for name in shaping} | {"types": types})


def unit_ids(groups: Iterable[tuple[Span, ...]], output: str, fingerprint: str) -> dict[str, tuple[Span, ...]]:
    """The spans of each unit, by its id, in source order."""
    return {identity.unit_id(spans, output, fingerprint): spans for spans in groups}


def make_plan(
    planned: Mapping[str, tuple[Span, ...]],
    parent: Snapshot,
    records: Mapping[str, Sequence[Record]],
    retried: Mapping[str, Unit] | None = None,
) -> Plan:
    """Compare the planned units with the live ones; number the spans of those to add."""
    live = parent.units()
    added = {unit: spans for unit, spans in planned.items() if unit not in live}
    taken = {number for numbers in live.values() for number in numbers}
    recorded = {unit: found[0].sources for unit, found in records.items() if unit in added and found}
    numbers = _number(added, recorded, taken)
    return Plan(
        added=tuple(Unit(unit_id=unit, spans=spans, sources=numbers[unit]) for unit, spans in added.items()),
        kept=frozenset(live) & planned.keys(),
        dropped=frozenset(live) - planned.keys(),
        retried=retried or {},
        records=records,
    )


def retries(
    planned: Mapping[str, tuple[Span, ...]], parent: Snapshot, dead_letters: Iterable[pa.Table]
) -> dict[str, Unit]:
    """For each live unit that is planned again and has some of the dead letters, the unit of these rows alone."""
    numbers = parent.units()
    unit_of = {number: unit for unit in numbers if unit in planned for number in numbers[unit]}
    rows: dict[str, list[tuple[int, int]]] = {}
    for table in dead_letters:
        positions = pc.fill_null(table.column(schema.POSITION), NO_PLACE).to_pylist()
        for source, position in zip(table.column(schema.SOURCE).to_pylist(), positions, strict=True):
            if source in unit_of:
                rows.setdefault(unit_of[source], []).append((source, position))
    return {
        unit: Unit(
            unit_id=identity.retry_id(unit, sorted(found)),
            spans=planned[unit],
            sources=numbers[unit],
            only=tuple(sorted(found)),
        )
        for unit, found in rows.items()
    }


def _number(
    added: Mapping[str, tuple[Span, ...]], recorded: Mapping[str, tuple[int, ...]], taken: set[int]
) -> dict[str, tuple[int, ...]]:
    """A number per span: the recorded ones where they are still free (their parts then need no rewriting), else the lowest
    free ones. Numbers of spans that this version drops stay taken, so that no number means two things at once."""
    numbers: dict[str, tuple[int, ...]] = {}
    for unit, old in recorded.items():
        if taken.isdisjoint(old):
            numbers[unit] = old
            taken.update(old)
    free = _free_numbers(taken)
    return {
        unit: numbers[unit] if unit in numbers else tuple(next(free) for _ in spans) for unit, spans in added.items()
    }


def _free_numbers(taken: set[int]) -> Iterator[int]:
    number = 0
    while True:
        if number not in taken:
            yield number
        number += 1


def with_records(plan: Plan, records: Mapping[str, Sequence[Record]]) -> Plan:
    """The same plan after more slices were recorded."""
    return replace(plan, records=records)
