"""Chains of records: which slices count, what is left to do, when a unit is done."""

import dataclasses
import datetime
import gc
import json
import tracemalloc
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from pipeline.storage import Folder
from pipeline.table import layout, record
from pipeline.table.part import Part
from pipeline.table.record import Effort, Record, Records
from pipeline.work import Unreadable

UNIT = "ab" * 16


def make(
    first_row: int, num_rows: int, *, last: bool = False, attempt: str = "x", parts: tuple[Part, ...] = ()
) -> Record:
    return Record(
        unit_id=UNIT, first_row=first_row, num_rows=num_rows, documents=num_rows, failed=0,
        skipped=0, broken=False, last=last, sources=(3,), parts=parts,
        dead_letters=None, bad_vectors=0, effort=Effort(tokens=num_rows), attempt=attempt,
    )  # fmt: skip


def staged_part(table: Folder, first_row: int, attempt: str) -> Part:
    path = layout.staged_part(UNIT, first_row, attempt, 0)
    table.write(path, b"12345")
    return Part(
        path=path, size=5, rows=1, raw_bytes=5, partition=(("day", None), ("n", 7)), units=(UNIT,), sources=(3,)
    )


def test_a_record_reads_back_as_it_was_written(tmp_path):
    table = Folder(str(tmp_path), {})
    written = make(0, 1, last=True, parts=(staged_part(table, 0, "x"),))
    assert record.create(table, written)
    assert record.read_all(table, [UNIT]) == {UNIT: [written]}


def test_held_records_are_equal_to_those_that_were_given(tmp_path):
    part = replace(
        staged_part(Folder(str(tmp_path)), 0, "x"), partition=(("day", datetime.date(2024, 2, 29)), ("n", None))
    )
    effort = Effort(**{item.name: number + 0.5 for number, item in enumerate(dataclasses.fields(Effort))})
    first = replace(make(0, 3, parts=(part, replace(part, sources=(4, 9)))), effort=effort, sources=(3, 4, 9))
    unread = {9: Unreadable(reason="torn", rows_read=2), 4: Unreadable(reason="torn", rows_read=None)}
    last = replace(
        make(3, 1, last=True),
        failed=1,
        broken=True,
        dead_letters=("a.dead", 7),
        unread=unread,
        texts_of="f",
        bad_vectors=2,
    )
    held = Records()
    held.add(UNIT, [first, last])
    assert held == {UNIT: [first, last]}
    assert (list(held), len(held), held.get("cd" * 16)) == ([UNIT], 1, None)


def test_a_held_record_takes_a_quarter_of_what_its_objects_take():
    """The records of all slices are held until the commit: what one takes decides how many slices a driver carries."""

    def made(number: int) -> bytes:
        unit, attempt = f"{number:032x}", f"{7919 * number:032x}"
        part = Part(
            path=layout.staged_part(unit, 0, attempt, 0), size=10**7 + number, rows=8192, raw_bytes=10**8 + number,
            partition=(), units=(unit,), sources=(number,),
        )  # fmt: skip
        effort = Effort(rows_encoded=8192, tokens=10**5 + number, encode_s=number / 7, write_s=number / 3)
        record = replace(make(0, 8192, last=True, attempt=attempt, parts=(part,)), unit_id=unit, sources=(number,))
        return replace(record, effort=effort).to_json()

    written = {f"{number:032x}": made(number) for number in range(1000, 2000)}
    units = {unit: unit for unit in written}
    tracemalloc.start()
    try:
        held = Records()
        for unit, content in written.items():
            held.add(unit, [Record.from_json(content, units)])
        gc.collect()  # Python keeps some freed tuples for later.
        taken = tracemalloc.get_traced_memory()[0] / len(held)
    finally:
        tracemalloc.stop()
    assert taken < 450


def test_a_record_of_a_newer_program_counts_and_stays(tmp_path):
    """What it writes beside is not known here; its slice is done all the same."""
    table = Folder(str(tmp_path), {})
    written = make(0, 1, last=True, parts=(staged_part(table, 0, "x"),))
    raw = json.loads(written.to_json()) | {"placed": "somewhere"}
    raw["effort"]["watts"] = 3.5
    raw["parts"][0]["sorted_by"] = ["id"]
    path = layout.record(UNIT, 0)
    table.write(path, json.dumps(raw).encode())
    assert record.read_all(table, [UNIT]) == {UNIT: [written]}
    assert json.loads(table.read(path)) == raw


def test_the_first_record_of_a_slice_wins(tmp_path):
    table = Folder(str(tmp_path), {})
    assert record.create(table, make(0, 5, attempt="first"))
    assert not record.create(table, make(0, 9, attempt="second"))
    assert record.read_all(table, [UNIT])[UNIT][0].attempt == "first"


def test_a_record_whose_part_is_gone_or_torn_is_removed_so_that_the_slice_can_be_done_again(tmp_path):
    table = Folder(str(tmp_path), {})
    part = staged_part(table, 0, "x")
    record.create(table, make(0, 1, last=True, parts=(replace(part, size=6),)))
    assert record.read_all(table, [UNIT]) == {}
    assert record.create(table, make(0, 1, last=True, parts=(part,), attempt="again"))


def test_records_of_units_that_nobody_asked_for_are_left_alone(tmp_path):
    table = Folder(str(tmp_path), {})
    record.create(table, make(0, 5))
    assert record.read_all(table, ["cd" * 16]) == {}
    assert record.read_all(table, [UNIT]) != {}


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9)), max_size=12, unique_by=lambda pair: pair[0]))
def test_a_chain_never_covers_a_row_twice_and_gaps_are_what_it_leaves(pairs):
    chain = record.chain([make(first, count) for first, count in pairs])
    covered = [row for first, stop in record.intervals(chain) for row in range(first, stop)]
    assert len(covered) == len(set(covered))
    assert covered == sorted(covered)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8))
def test_a_unit_is_done_when_its_records_meet_end_to_end_and_the_final_one_says_so(counts):
    starts = [sum(counts[:index]) for index in range(len(counts))]
    # A slice of no rows stands only at the end: one in the middle would share its first row with the next.
    records = [make(start, count) for start, count in zip(starts, counts, strict=True) if count]
    records.append(make(sum(counts), 0, last=True))
    assert record.is_complete(record.chain(records))
    assert not record.is_complete(record.chain(records[:-1]))
    for index in range(len(records) - 1):
        assert not record.is_complete(record.chain(records[:index] + records[index + 1 :]))
