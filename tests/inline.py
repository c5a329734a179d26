"""Whole runs in this process: production's own order, with an executor whose slices never leave it."""

import contextlib
import functools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads

from pipeline import config
from pipeline.config import ResourceSpec, RunSpec
from pipeline.encoder.encoder import Encoder, build_encoder
from pipeline.encoder.tokenizer import Tokenizer
from pipeline.execution import worker
from pipeline.execution.executor import Do, Flowing, Item, Job, Result
from pipeline.execution.local.executor import LocalExecutor
from pipeline.execution.pools import Pools
from pipeline.model.folder import EncoderSpec
from pipeline.runs import embed as runs
from pipeline.runs import reindex as reindexing
from pipeline.stages import slice_row
from pipeline.stages.flow import Flow, OnProgress
from pipeline.stages.worker_spec import WorkerSpec
from pipeline.storage import Folder
from pipeline.table import snapshot
from pipeline.table.snapshot import Snapshot
from pipeline.work import Task

POOLS = Pools(
    device="cpu", encoders=1, cpus_per_encoder=1, gpus_per_encoder=0, tokenizers=1, writers=1, cpus_per_task=1
)  # fmt: skip


def spec_of(source: str | Path, model: str | Path, table: str | Path, /, **sections: dict[str, Any]) -> RunSpec:
    """A spec for a source with the columns `id` and `text`; sections override."""
    raw: dict[str, Any] = {
        "source": {"path": str(source), "id": "id", "text": "text"} | sections.get("source", {}),
        "model": {"path": str(model)} | sections.get("model", {}),
        "table": {"path": str(table)} | sections.get("table", {}),
        "chunk": sections.get("chunk"),
        "limits": sections.get("limits", {}),
        "resources": sections.get("resources", {}),
    }
    return config.from_mapping(raw)


def embed(
    spec: RunSpec,
    *,
    encoders: int = 1,
    shuffle: int | None = None,
    stop_after: int | None = None,
    retry_failed: bool = False,
) -> Snapshot:
    """Publish what a run would. `shuffle` seeds another order of the units; `stop_after` slices it dies, unpublished."""
    executor = InProcess(encoders=encoders, shuffle=shuffle, stop_after=stop_after)
    runs.embed(spec, executor, retry_failed=retry_failed)
    return snapshot.current(Folder(spec.table.path, spec.table.storage_options))


def reindex(
    spec: RunSpec, *, encoders: int = 1, stop_after: int | None = None, encoded: list[int] | None = None
) -> Snapshot:
    """Publish what a reindex would, by row. `stop_after` slices it dies; `encoded` hears how many texts the encoder got."""
    executor = InProcess(encoders=encoders, stop_after=stop_after, encoded=encoded)
    reindexing.reindex(spec, executor, allow_deletes=True)
    return snapshot.current(Folder(spec.table.path, spec.table.storage_options))


class InProcess(LocalExecutor):
    """This machine's executor, but that slices go through the stages in this process, one after the other."""

    def __init__(
        self,
        *,
        encoders: int = 1,
        shuffle: int | None = None,
        stop_after: int | None = None,
        encoded: list[int] | None = None,
    ) -> None:
        super().__init__(ResourceSpec())
        self._encoders, self._shuffle, self._stop_after, self._encoded = encoders, shuffle, stop_after, encoded

    def pools(self, job: Job) -> Pools:
        return replace(POOLS, encoders=self._encoders)

    def flow(self, job: Job, tasks: Sequence[Task], flow: Flow, on_progress: OnProgress | None) -> Flowing:
        spec = job.worker_spec(self.pools(job))
        encoder, tokenizer = built(spec.encoder_here()) if flow.encode else (None, Tokenizer(spec.encode.encoder, 1))
        if encoder is not None and flow.proves:
            worker.prove(encoder, spec)
        order = list(tasks)
        if self._shuffle is not None:
            random.Random(self._shuffle).shuffle(order)
        with contextlib.closing(row for task in order for row in flow.read(task, spec, tokenizer)) as slices:
            yield from self._written(slices, flow, encoder, spec)

    def _written(
        self, slices: Iterator[pa.Table], flow: Flow, encoder: Encoder | None, spec: WorkerSpec
    ) -> Iterator[pa.Table]:
        for done, row in enumerate(slices):
            if flow.write is not None and done == self._stop_after:
                raise Died
            if self._encoded is not None and flow.write is not None:
                self._encoded.append(slice_row.from_cell(row, "documents").num_rows)
            if encoder is not None:
                row = flow.encode(row, encoder, spec, "inline", None)
            yield flow.write(row, spec) if flow.write is not None else row

    def for_each(
        self, job: Job, do: Do[Item, Result], items: Sequence[Item], *, seconds: float, heavy: bool = False
    ) -> Iterator[Result]:
        """One item after the other in the caller's own thread, as everything here."""
        return super().for_each(job, do, items, seconds=seconds)

    def with_all_cpus(self, job: Job, do: Callable[[Item, WorkerSpec, int], Result], item: Item) -> Result:
        return do(item, job.worker_spec(self.pools(job)), 1)


class Died(Exception):
    """The run was ended in its middle, as by a kill."""


@functools.lru_cache(maxsize=8)
def built(encoder: EncoderSpec) -> tuple[Encoder, Tokenizer]:
    return build_encoder(encoder, "cpu", 1), Tokenizer(encoder, 1)


def read_table(path: str | Path, filesystem: Any = None) -> pa.Table:
    """All live rows, partition columns included, by id."""
    dataset = pads.dataset(f"{path}/data", format="parquet", partitioning="hive", filesystem=filesystem)
    return dataset.to_table().sort_by("id")


def same_rows(one: pa.Table, other: pa.Table, *, vectors: bool = True) -> None:
    """Equal in all but the last bits of the vectors; `source` numbers are a run's own."""
    rest = [name for name in one.column_names if name not in ("embedding", "source")]
    assert one.select(rest).equals(other.select(rest))
    if vectors:
        assert np.abs(vectors_of(one) - vectors_of(other)).max() <= 1e-6


def vectors_of(rows: pa.Table) -> np.ndarray:
    column = rows["embedding"].combine_chunks()
    return column.flatten().to_numpy().reshape(len(column), -1)
