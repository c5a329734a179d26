"""One interface does the parallel work of a run, whether this machine works or a cluster.

A job comes in, which says what workers have to know for pools of a size, together with pieces of work. Their results
go out. An executor knows nothing of versions and of what the pieces are for.
"""

import json
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import pyarrow as pa

from pipeline.config import ResourceSpec
from pipeline.execution.pools import Load, Pools
from pipeline.redaction import redacted
from pipeline.stages.flow import Flow, OnProgress
from pipeline.stages.row_keys import GetTokenizer, KeyResult, KeyTask
from pipeline.stages.slice_row import SOURCE_CHANGED, unfit_of, unread_of
from pipeline.stages.worker_spec import WorkerSpec
from pipeline.storage import Folder
from pipeline.table.compare import Difference
from pipeline.table.diff import RowDifference, SourceStates
from pipeline.table.part import Part
from pipeline.table.record import Effort
from pipeline.work import Task, Unfit, Unreadable

LOCAL = "local"
"""This address asks for a Ray of this machine, however little there is to do."""
Item = TypeVar("Item")
Result = TypeVar("Result")
Given = TypeVar("Given")
Do = Callable[[Item, WorkerSpec, GetTokenizer], Iterator[Result]]
"""It does a piece of work on one item. The tokenizer is made when it is asked for. Other processes find it by its
name."""


Flowing = Generator[pa.Table, None, None]
"""What the last stage of a flow gives, slice by slice; closing it ends the work."""


class Job(Protocol):
    """It is a run as executors see it."""

    @property
    def table(self) -> Folder: ...

    @property
    def expected_s(self) -> float:
        """Its encoding takes about so many seconds on this machine. They are infinite where nobody can tell."""
        ...

    @property
    def may_be_light(self) -> bool:
        """Its model may run without torch."""
        ...

    @property
    def encoder_bytes(self) -> int:
        """A process that encodes holds about so many bytes of memory."""
        ...

    @property
    def load(self) -> Load:
        """It is what a row costs those who read, encode and write it."""
        ...

    def worker_spec(self, pools: Pools) -> WorkerSpec:
        """Return what workers in pools of these sizes have to know."""
        ...


@dataclass(frozen=True, kw_only=True)
class Expected:
    """It says who would encode."""

    workers: str
    """It names them, with the reason why they are chosen."""
    pools: Pools | None
    """They are the sizes of the pools, and None where only a cluster that has not started knows them."""
    guess: str = ""
    """It says how long encoding takes by the sizes of texts and model alone, where that chose who would encode."""


@dataclass(frozen=True, kw_only=True)
class RowComparison:
    """It says which rows of units are compared with which rows of the table's parts."""

    skipped: frozenset[int]
    """They are the numbers of units that give the table no rows after all."""
    parts: Sequence[Part]
    states: SourceStates
    """They say what becomes of each source of the live version."""
    renewed: bool
    """No live row stays as it is."""
    chunked: bool
    """The rows of the table are chunks."""
    num_keys: int
    """Both sides together have about so many rows."""


class Executor(Protocol):
    """It does the parallel work that runs consist of. Its errors are PipelineErrors, and SourceChanged asks for a new
    plan."""

    @property
    def description(self) -> str:
        """It says who did the work, and why. It is "" while there was none."""
        ...

    def expected(self, job: Job) -> "Expected":
        """Say who would encode for this job, and start nothing."""
        ...

    def flow(self, job: Job, tasks: Sequence[Task], flow: Flow, on_progress: OnProgress | None) -> Flowing:
        """Yield what the last stage of the flow gives for each slice of the tasks, in no particular order."""
        ...

    def pools(self, job: Job) -> Pools:
        """Return how many workers `flow` would have for this job."""
        ...

    def with_all_cpus(self, job: Job, do: Callable[[Item, WorkerSpec, int], Result], item: Item) -> Result:
        """Return `do(item, worker spec, cores)`, called in one process with the cores of a machine. It may load torch."""
        ...

    def for_each(
        self, job: Job, do: Do[Item, Result], items: Sequence[Item], *, seconds: float, heavy: bool = False
    ) -> Iterator[Result]:
        """Yield what `do` gives for each of the items, in no particular order.

        One process would take about so many `seconds` for all of them. A `heavy` item keeps a core busy and holds
        whole parts in memory, while others mostly wait for storage.
        """
        ...

    def spread(
        self,
        do: Callable[[Item, Given], Iterator[Result]],
        given: Given,
        items: Sequence[Item],
        *,
        rows: int,
        writers: int | None = None,
    ) -> Iterator[Result]:
        """Yield what `do(item, given)` gives for each of the items, in no particular order. It needs no model.

        `given` may hold secrets. The items come to so many `rows`. With `writers` so many work side by side at most.
        """
        ...

    def read_keys(self, job: Job, units: Sequence[KeyTask], *, num_keys: int) -> tuple[list[KeyResult], Any]:
        """Read the keys of the units' rows. Return each unit's result and a handle of the keys for `compare_rows`."""
        ...

    def compare_rows(self, job: Job, keys: Sequence[Any], comparison: RowComparison) -> Iterator[RowDifference]:
        """Yield the difference between the rows whose keys were read and the live ones, in one bucket or many."""
        ...

    def compare_versions(self, job: Job, sides: Sequence[tuple[Part, int]], *, renewed: bool) -> Difference:
        """Return the difference over all rows of the parts, each on its side. A `part` in it indexes `sides`."""
        ...


@dataclass(frozen=True, kw_only=True)
class Report:
    """It tells the driver that a slice was recorded, or that it was refused."""

    unit_id: str
    num_rows: int
    failed: int
    last: bool
    effort: Effort
    encoder: str
    engine: str
    encode_start: float
    encode_stop: float
    """It is in Unix seconds, like `encode_start`."""
    refused: str | None
    unread: Mapping[int, Unreadable]
    """It holds the sources that can't be read to their end, by their number in the unit."""
    unfit: Unfit | None
    """It tells of rows that are of another type than their columns."""
    told: str = ""
    """A person should be told this of the tokenizer."""

    @property
    def source_changed(self) -> bool:
        return (self.refused or "").startswith(SOURCE_CHANGED)


def report_of(row: Mapping[str, Any]) -> Report:
    """Make a report from one row of slice_row.REPORT."""
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
        unread=unread_of(row["unread"]),
        unfit=unfit_of(row["unfit"]),
        told=row["told"] or "",
    )


def where_of(resources: ResourceSpec) -> str:
    """Name the Ray that these resources lead to."""
    address = resources.ray_address
    return "a Ray of this machine" if address in (None, LOCAL) else f"the Ray cluster at {redacted(str(address))}"


class Busy:
    """It adds up when the encoders of a run worked, slice by slice, and holds three numbers for each encoder."""

    def __init__(self) -> None:
        self._spans: dict[str, tuple[float, float]] = {}
        self._busy_s = 0.0
        self._begun = time.time()

    def add(self, report: Report) -> None:
        """Count a slice."""
        first, last = self._spans.get(report.encoder, (report.encode_start, report.encode_stop))
        self._spans[report.encoder] = min(first, report.encode_start), max(last, report.encode_stop)
        self._busy_s += report.encode_stop - report.encode_start

    @property
    def first_start(self) -> float:
        """The first slice was begun at this Unix time in seconds. Where there was none, it is when the counting began."""
        return min((first for first, _ in self._spans.values()), default=self._begun)

    @property
    def share(self) -> float:
        """It is the share that an encoder was encoding of the time between its first and its last slice, or zero."""
        alive_s = sum(last - first for first, last in self._spans.values())
        return self._busy_s / alive_s if alive_s else 0.0
