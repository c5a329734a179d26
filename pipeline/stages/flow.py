"""A flow names the functions that a slice goes through, stage by stage.

Slices are embedded, measured, or only read. A `Flow` is the whole of what an executor has to know of the stages. It
travels to other processes as its name.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyarrow as pa

from pipeline.encoder.encoder import Encoder
from pipeline.encoder.tokenizer import Tokenizer
from pipeline.stages import distinct_texts, encode, read, sample, slice_row, write
from pipeline.stages.worker_spec import WorkerSpec
from pipeline.work import Task

Read = Callable[[Task, WorkerSpec, Tokenizer], Iterator[pa.Table]]
OnProgress = Callable[[int, int], None]
"""It hears (documents, tokens) that left the encoder since the last call."""
Encode = Callable[[pa.Table, Encoder, WorkerSpec, str, OnProgress | None], pa.Table]
Write = Callable[[pa.Table, WorkerSpec], pa.Table]


@dataclass(frozen=True, kw_only=True)
class Flow:
    name: str
    """The flow is found by it in FLOWS."""
    read: Read
    """It gives slice rows. A refused one ends the run."""
    encode: Encode | None = None
    refuse: Callable[[str, str], pa.Table] = slice_row.refuse
    """It turns (unit id, reason) into the row that the encode stage gives in place of an answer."""
    write: Write | None = None
    proves: bool = True
    """An encoder is compared with the table's probe vectors before it works."""

    most_encoders: int | None = None
    """More encoders would take longer to start than they save; None is no limit."""

    def __reduce__(self) -> tuple[Callable[[str], "Flow"], tuple[str]]:
        return _flow_named, (self.name,)


def read_unit(task: Task, spec: WorkerSpec, tokenizer: Tokenizer) -> Iterator[pa.Table]:
    """Yield the FLOW rows of a unit of either kind."""
    either = read.read_rows if task.unit.kind == "rows" else distinct_texts.read_texts
    yield from either(task, spec, tokenizer)


def write_slice(row: pa.Table, spec: WorkerSpec) -> pa.Table:
    """Stage and record a slice of a unit of either kind, and return its REPORT row. A refused one is only reported."""
    if row.column("refused")[0].is_valid:
        return slice_row.refused_report(row)
    either = distinct_texts.write_texts if row.column("texts")[0].as_py() else write.write_rows
    return either(row, spec)


EMBED = Flow(name="embed", read=read_unit, encode=encode.encode, write=write_slice)
MEASURE = Flow(
    name="measure",
    read=sample.read_sample,
    encode=sample.measure,
    refuse=sample.refuse_to_measure,
    proves=False,
    most_encoders=4,
)
"""It proves no encoder: the fingerprint of the vectors, and so their probes, are known only when the ranges are."""
SAMPLE = Flow(name="sample", read=sample.read_sample)
FLOWS = {flow.name: flow for flow in (EMBED, MEASURE, SAMPLE)}


def _flow_named(name: str) -> Flow:
    return FLOWS[name]
