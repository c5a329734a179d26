"""Slices between processes of this machine: what is sent is what is received, and the memory is gone when nobody has it."""

import os
from collections import deque
from collections.abc import Iterator
from multiprocessing import Pipe

import numpy as np
import pyarrow as pa
import pytest

from pipeline.execution.local import handing
from pipeline.execution.local.handing import Handed
from pipeline.execution.local.pool import LOADING, LocalFlow
from pipeline.execution.pools import ALONE
from pipeline.execution.strikes import Worker
from pipeline.stages.flow import EMBED
from pipeline.stages.slice_row import cell, flow_row, from_cell, to_ipc

pytestmark = pytest.mark.skipif(not handing.CAN_HAND, reason="this system has no memory without a name")


def row_of(name: str, rows: int) -> pa.Table:
    documents = pa.table({"id": [f"{name}-{number}" for number in range(rows)], "text": ["some text " * 10] * rows})
    vectors = np.arange(rows * 8, dtype=np.float32)
    row = flow_row(unit_id=name, first_row=7, num_rows=rows, paths=["p" * 1000] * 50, documents=to_ipc(documents))
    index = row.schema.get_field_index("vectors")
    return row.set_column(index, row.schema.field(index), cell(pa.py_buffer(vectors)))


def is_open(handle: int) -> bool:
    try:
        os.fstat(handle)
    except OSError:
        return False
    return True


@pytest.mark.parametrize("rows", [0, 1, 1000])
def test_a_row_arrives_as_it_was_sent_also_through_a_process_that_does_not_look_into_it(rows):
    (driver, worker), (another, end) = Pipe(), Pipe()
    row = row_of("unit", rows)
    handing.send(worker, ("answer", row))
    kind, value = handing.receive(driver)
    assert kind == "answer"
    assert isinstance(value, Handed) == (row.nbytes >= handing.LEAST_BYTES)
    head = handing.head(value)
    assert (head.column("unit_id")[0].as_py(), head.column("first_row")[0].as_py()) == ("unit", 7)
    assert not head.column("refused")[0].is_valid
    handing.send(another, ("encode", value, 0))
    verb, passed, strikes = handing.receive(end)
    assert (verb, strikes) == ("encode", 0)
    found = handing.opened(passed)
    assert found.equals(row)
    assert from_cell(found, "documents").num_rows == rows


def test_what_the_driver_sends_for_a_large_row_fits_into_a_pipe_that_nobody_reads():
    here, there = Pipe()
    row = row_of("unit", 50_000)
    for _ in range(8):
        handing.send(here, ("encode", row, 0))
    assert all(handing.opened(handing.receive(there)[1]).equals(row) for _ in range(8))


def test_memory_is_gone_when_nobody_has_it_and_a_mapped_row_stays():
    here, there = Pipe()
    handing.send(here, ("answer", row_of("unit", 1000)))
    _, value = handing.receive(there)
    found, handle = handing.opened(value), value.memory.handle
    assert is_open(handle)
    del value
    assert not is_open(handle)
    assert found.equals(row_of("unit", 1000))


def test_a_sender_that_ends_before_the_handle_is_one_that_ended():
    here, there = Pipe()
    row = row_of("unit", 1000)
    here.send(("answer", handing._Coming(row.select(["unit_id"]))))
    here.close()
    with pytest.raises(EOFError):
        handing.receive(there)


class Ended:
    """A process that ended: what it was asked is all that is left of it."""

    def __init__(self, *rows: pa.Table, loading: bool = False) -> None:
        self.worker = Worker("dead", "this machine")
        self.child = self
        self.reading = None
        self.asked = deque([(("encode", (row.column("unit_id")[0].as_py(), 7)), row) for row in rows])
        if loading:
            self.asked.appendleft((LOADING, None))

    def end(self) -> None:
        """Nothing is left to end."""


@pytest.fixture
def flow() -> Iterator[LocalFlow]:
    with LocalFlow([], EMBED, None, ALONE, None) as flow:
        yield flow


def test_only_what_a_process_had_begun_counts_against_it_and_all_is_given_out_again_in_order(flow):
    rows = [row_of(name, 1) for name in ("begun", "queued", "later")]
    process = Ended(*rows[:2])
    for work, _ in process.asked:
        assert flow._begin(work, process) == 0
    flow._encoders.append(process)
    flow._waiting.append(rows[2])
    flow._bury(process)
    assert [row.column("unit_id")[0].as_py() for row in flow._waiting] == ["begun", "queued", "later"]
    another = Ended()
    another.worker = Worker("another", "this machine")
    assert flow._begin(("encode", ("begun", 7)), another) == 1
    assert flow._begin(("encode", ("queued", 7)), another) == 0


def test_a_row_that_is_not_handed_waits_until_the_process_is_idle(flow):
    small, large = row_of("small", 1), Handed(head=row_of("large", 1), memory=None)
    assert flow._may_queue(Ended(small), large)
    assert not flow._may_queue(Ended(small), small)
    assert not flow._may_queue(Ended(loading=True), large)
