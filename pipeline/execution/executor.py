"""Who does the parallel work of a run, as the run sees it: one interface, whether this machine does it or a cluster.

Comes in: a job, which says what workers have to know for pools of a size, and pieces of work. Goes out: what they give.
An executor knows nothing of versions and of what the pieces are for.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import pyarrow as pa

from pipeline.execution.pools import Pools
from pipeline.stages.flow import Flow, OnProgress
from pipeline.stages.row_keys import GetTokenizer, KeyResult, KeyTask
from pipeline.stages.slice_row import SOURCE_CHANGED
from pipeline.stages.worker_spec import WorkerSpec
from pipeline.storage import Folder
from pipeline.table.compare import Difference
from pipeline.table.diff import RowDifference, SourceStates
from pipeline.table.part import Part
from pipeline.table.record import Effort
from pipeline.work import Task

Item = TypeVar("Item")
Result = TypeVar("Result")
Do = Callable[[Item, WorkerSpec, GetTokenizer], Iterator[Result]]
"""A piece of work on one item; the tokenizer is made when it is asked for. It is found by its name in other processes."""


class Job(Protocol):
    """A run as executors see it."""

    @property
    def table(self) -> Folder: ...

    @property
    def expected_s(self) -> float:
        """About so many seconds its encoding takes on this machine; infinite where nobody can tell."""
        ...

    def worker_spec(self, pools: Pools) -> WorkerSpec:
        """What workers in pools of these sizes have to know."""
        ...


@dataclass(frozen=True, kw_only=True)
class RowComparison:
    """Which rows are compared with which: the rows that units want with those that parts of the table have."""

    skipped: frozenset[int]
    """Units that want nothing after all, by their number."""
    parts: Sequence[Part]
    states: SourceStates
    """What becomes of each source of the live version."""
    renewed: bool
    """No live row stays as it is."""
    chunked: bool
    """The rows of the table are chunks."""
    num_keys: int
    """About so many rows stand on both sides together."""


class Executor(Protocol):
    """Does the pieces of parallel work that runs consist of. Errors are PipelineErrors; SourceChanged asks for a new plan."""

    @property
    def description(self) -> str:
        """Who did the work, and why; "" while there was none."""
        ...

    def flow(self, job: Job, tasks: Sequence[Task], flow: Flow, on_progress: OnProgress | None) -> Iterator[pa.Table]:
        """What the last stage of the flow gives for each slice of the tasks, in no particular order."""
        ...

    def pools(self, job: Job) -> Pools:
        """How many workers `flow` would have for this job."""
        ...

    def with_all_cpus(self, job: Job, do: Callable[..., None], item: pa.Table) -> None:
        """`do(item, worker spec, threads)` in one process with the CPUs of a machine: it may load torch."""
        ...

    def for_each(
        self, job: Job, do: Do[Item, Result], items: Sequence[Item], *, seconds: float, heavy: bool = False
    ) -> Iterator[Result]:
        """What `do` gives for each of the items, in no particular order. One process would take about so many `seconds` for
        all of them; a `heavy` item keeps a core busy and holds whole parts in memory, others mostly wait for storage."""
        ...

    def read_keys(self, job: Job, units: Sequence[KeyTask], *, num_keys: int) -> tuple[list[KeyResult], Any]:
        """What the rows of each unit come to, and a handle of their keys for `compare_rows`."""
        ...

    def compare_rows(self, job: Job, keys: Sequence[Any], comparison: RowComparison) -> Iterator[RowDifference]:
        """The difference of the rows whose keys were read and the live ones, in one bucket or many."""
        ...

    def compare_versions(self, job: Job, sides: Sequence[tuple[Part, int]], *, renewed: bool) -> Difference:
        """The difference over all rows of the parts, each on its side; `part` in it indexes `sides`."""
        ...


@dataclass(frozen=True, kw_only=True)
class Report:
    """What the driver learns of a slice: it was recorded, or it was refused."""

    unit_id: str
    num_rows: int
    failed: int
    last: bool
    effort: Effort
    encoder: str
    engine: str
    encode_start: float
    encode_stop: float
    """In Unix seconds, as `encode_start`."""
    refused: str | None

    @property
    def source_changed(self) -> bool:
        return (self.refused or "").startswith(SOURCE_CHANGED)


def report_of(row: Mapping[str, Any]) -> Report:
    """From one row of slice_row.REPORT."""
    return Report(
        unit_id=row["unit_id"],
        num_rows=row["num_rows"] or 0,
        failed=row["failed"] or 0,
        last=bool(row["last"]),
        effort=Effort(**json.loads(row["effort"])) if row["effort"] else Effort(),
        encoder=row["encoder"] or "",
        engine=row["engine"] or "",
        encode_start=row["encode_start"] or time.time(),
        encode_stop=row["encode_stop"] or time.time(),
        refused=row["refused"],
    )


@dataclass(frozen=True, kw_only=True)
class Busy:
    """When the encoders worked."""

    first_start: float
    """Unix seconds of the first slice."""
    share: float
    """The share that an encoder was encoding, of the time between its first and its last slice."""


def busy_time(reports: Sequence[Report]) -> Busy:
    """Over the slices of one run; all zero where nothing was encoded."""
    spans: dict[str, list[Report]] = {}
    for report in reports:
        spans.setdefault(report.encoder, []).append(report)
    alive_s = sum(max(r.encode_stop for r in own) - min(r.encode_start for r in own) for own in spans.values())
    busy_s = sum(report.encode_stop - report.encode_start for report in reports)
    return Busy(
        first_start=min((report.encode_start for report in reports), default=time.time()),
        share=busy_s / alive_s if alive_s else 0.0,
    )
