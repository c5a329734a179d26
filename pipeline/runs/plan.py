"""A plan is the desired units minus the existing ones: what to encode, to keep and to drop.

It takes what the source holds (a survey), the current snapshot, the records in staging, and the dead letters that are
to be tried again. A `Plan` goes out. This file is pure and opens nothing.
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
    """They are the units that the snapshot lacks, in source order."""
    kept: frozenset[str]
    """They are the live units that are planned again. They stay as they are."""
    dropped: frozenset[str]
    """They are the live units that the source no longer has in this form."""
    retried: Mapping[str, Unit] = field(default_factory=dict)
    """It maps a kept unit whose dead letters are tried again to a unit of these rows alone."""
    records: Mapping[str, Sequence[Record]]
    """They are the valid records of added units, and of units that try rows again."""

    @property
    def tasks(self) -> tuple[Task, ...]:
        """They are the units that are not recorded to their end."""
        return tuple(
            Task(unit=unit, done=record.intervals(self.records.get(unit.unit_id, ())))
            for unit in (*self.added, *self.retried.values())
            if not record.is_complete(self.records.get(unit.unit_id, ()))
        )

    @property
    def rows_to_retry(self) -> int:
        """So many dead letters are tried again."""
        return sum(len(unit.only or ()) for unit in self.retried.values())

    @property
    def changes_nothing(self) -> bool:
        return not self.added and not self.dropped and not self.retried


def output_spec(
    spec: RunSpec,
    source: pa.Schema,
    forms: Collection[str],
    words: Mapping[str, str] | None = None,
    root: str | None = None,
) -> dict[str, Any]:
    """Return all that shapes the table's files: roles, order and types of columns, rules, partitioning, and format
    version.

    The source files have these `forms`. Options of other formats shape nothing. A type keeps its name in `words` where
    the table's files don't depend on which of several types a column is read as. Where a column has paths below the source's
    folder, that folder is `root`.
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
        **(
            {"front_matter": spec.source.front_matter} if spec.source.front_matter != "text" and "text" in forms else {}
        ),
        **({"root": root} if root is not None else {}),
        "schema": {column.name: str(column.type) for column in source} | dict(words or {}),
        "partition_by": spec.table.partition_by,
        "embedding_column": spec.table.embedding_column,
        "keep_text": spec.table.keep_text,
        "rows": spec.chunk.rows if spec.chunk else "documents",
        **({"pages": True} if spec.rows_have_pages else {}),
    }


def _csv_shape(spec: RunSpec) -> dict[str, Any]:
    """Return the dialect. An option that is younger than some tables is left out where nothing was chosen, so that
    their digests stay."""
    given = asdict(spec.source.csv)
    if given["escape"] is None:
        del given["escape"]
    return given | {"max_row_bytes": spec.limits.max_row_bytes}


def shape(output: Mapping[str, Any]) -> str:
    """Return a digest of the files' columns, their types and partitions, as an output_spec has them.

    It leaves out what only chooses rows or finds their text, because that shapes no row that is there.
    """
    kept = [*output.get("keep", ()), *output.get("partition_by", ())]
    shaping = ("format", "keep", "partition_by", "embedding_column", "keep_text", "rows")
    types = {name: output.get("schema", {}).get(name) for name in kept}
    pages = {"pages": True} if output.get("pages") else {}
    return identity.digest({name: output.get(name) for name in shaping} | {"types": types} | pages)


def unit_ids(groups: Iterable[tuple[Span, ...]], output: str, fingerprint: str) -> dict[str, tuple[Span, ...]]:
    """Map the id of each unit to its spans, in source order."""
    return {identity.unit_id(spans, output, fingerprint): spans for spans in groups}


def make_plan(
    planned: Mapping[str, tuple[Span, ...]],
    parent: Snapshot,
    records: Mapping[str, Sequence[Record]],
    retried: Mapping[str, Unit] | None = None,
) -> Plan:
    """Compare the planned units with the live ones, and number the spans of the units to add."""
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
    """Map each live unit that is planned again and has dead letters to a unit of these rows alone."""
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
    """Give each span a number: the recorded one where it is still free, else the lowest free one.

    Parts with recorded numbers need no rewriting. The numbers of spans that this version drops stay taken, so that no
    number means two things at once.
    """
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
    """Return the plan with the records of more slices."""
    return replace(plan, records=records)
