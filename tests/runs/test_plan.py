"""Desired minus existing: what is added, kept and dropped, and how spans are numbered."""

import dataclasses

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipeline.runs.plan import make_plan
from pipeline.table import snapshot
from pipeline.table.record import Effort, Record
from pipeline.work import SourceFile, Span

UNITS = st.lists(st.sampled_from("abcdefgh"), unique=True, max_size=8)


def spans_of(name: str) -> tuple[Span, ...]:
    """One span for early letters, two for late ones."""
    file = SourceFile(path=f"/{name}", size=1, version="1", format="jsonl")
    return tuple(Span(file=file, kind="bytes", start=n, stop=n + 1, rows=None) for n in range(1 if name < "e" else 2))


def live(numbers: dict[str, tuple[int, ...]]) -> snapshot.Snapshot:
    rows = [
        {"source": n, "path": "/", "version": "1", "kind": "bytes", "start": 0, "stop": 1}
        | {"unit_id": unit, "unit_rows": 1, "unit_documents": 1}
        | {"unit_failed": 0, "unit_skipped": 0}
        for unit, own in numbers.items()
        for n in own
    ]
    return dataclasses.replace(snapshot.empty(), sources=pa.Table.from_pylist(rows, snapshot.SOURCES))


def recorded(unit: str, sources: tuple[int, ...]) -> Record:
    return Record(
        unit_id=unit, first_row=0, num_rows=1, documents=1, failed=0, skipped=0, broken=False, last=True,
        sources=sources, parts=(),
        dead_letters=None, bad_vectors=0, effort=Effort(), attempt="x",
    )  # fmt: skip


@given(planned=UNITS, existing=UNITS, numbers=st.permutations(range(40)), done=UNITS, others=st.permutations(range(40)))
def test_added_kept_and_dropped_split_the_units_and_no_number_means_two_spans(planned, existing, numbers, done, others):
    free = iter(numbers)
    parent = live({unit: tuple(next(free) for _ in spans_of(unit)) for unit in existing})
    other = iter(others)
    records = {
        unit: [recorded(unit, tuple(next(other) for _ in spans_of(unit)))]
        for unit in done
        if unit in planned and unit not in existing
    }
    plan = make_plan({unit: spans_of(unit) for unit in planned}, parent, records)
    added = [unit.unit_id for unit in plan.added]
    assert added == [unit for unit in planned if unit not in existing]
    assert plan.kept == set(planned) & set(existing)
    assert plan.dropped == set(existing) - set(planned)
    assert {task.unit.unit_id for task in plan.tasks} == set(added) - set(records)
    used = [n for own in parent.units().values() for n in own] + [n for unit in plan.added for n in unit.sources]
    assert len(used) == len(set(used))


def test_a_first_version_numbers_its_spans_from_zero_in_source_order():
    plan = make_plan({unit: spans_of(unit) for unit in "aeb"}, snapshot.empty(), {})
    assert [unit.sources for unit in plan.added] == [(0,), (1, 2), (3,)]


def test_a_recorded_unit_keeps_the_numbers_that_its_parts_carry():
    plan = make_plan({unit: spans_of(unit) for unit in "ab"}, snapshot.empty(), {"b": [recorded("b", (7,))]})
    assert [unit.sources for unit in plan.added] == [(0,), (7,)]
