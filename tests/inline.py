"""A whole run in this process: the stages as plain functions, one slice after the other, without Ray."""

import functools
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads

from pipeline import config
from pipeline.config import RunSpec
from pipeline.encoder.encoder import Encoder, build_encoder
from pipeline.encoder.tokenizer import Tokenizer
from pipeline.execution.crew import Crew
from pipeline.execution.ray import flow
from pipeline.execution.ray.flow import Cluster, Pools
from pipeline.model.folder import EncoderSpec
from pipeline.runs import prepare
from pipeline.runs import reindex as reindexing
from pipeline.runs.plan import Task
from pipeline.runs.prepare import Prepared
from pipeline.runs.row_changes import Changes, find
from pipeline.stages import distinct_texts
from pipeline.stages import encode as stages
from pipeline.stages.encode import Settings
from pipeline.table.calibration import Measurement
from pipeline.table.snapshot import Snapshot

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
    prepared = prepare.prepare(spec, writes=True, retry_failed=retry_failed)
    if prepared.plan.changes_nothing:
        return prepared.parent
    pools = replace(POOLS, encoders=encoders)
    if prepared.vectors.needs_calibration:
        prepared = prepare.calibrate_with(prepared, pools, Sampler())
    settings = prepare.settings_for(prepared, pools)
    encoder, tokenizer = built(settings.encoder_here())
    flow.prove(encoder, settings, tokenizer)
    tasks = list(prepared.plan.tasks)
    if shuffle is not None:
        random.Random(shuffle).shuffle(tasks)
    slices = (row for task in tasks for row in stages.read_and_tokenize(task, settings, tokenizer))
    for done, row in enumerate(slices):
        if done == stop_after:
            raise Died
        report = stages.write(stages.encode(row, encoder, settings, "inline"), settings)
        assert report.column("refused")[0].as_py() is None, report.to_pylist()
    version, _ = prepare.publish(prepared, Cluster(spec.resources), "inline", {})
    return version


def reindex(
    spec: RunSpec, *, encoders: int = 1, stop_after: int | None = None, encoded: list[int] | None = None
) -> Snapshot:
    """Publish what a reindex would, by row. `stop_after` slices it dies; `encoded` hears how many texts the encoder got."""
    prepared = prepare.prepare(spec, writes=True)
    if prepared.plan.changes_nothing:
        return prepared.parent
    with Crew(spec.resources) as crew:
        changes = find(prepared, crew, writes=True)
        if changes.changes_nothing:
            return prepared.parent
        encode(prepared, changes, encoders=encoders, stop_after=stop_after, encoded=encoded)
        version, _, _ = reindexing.publish(prepared, crew, changes, "inline", {})
    return version


def encode(
    prepared: Prepared,
    changes: Changes,
    *,
    encoders: int = 1,
    stop_after: int | None = None,
    encoded: list[int] | None = None,
) -> None:
    """The texts that a reindex has to encode."""
    settings = prepare.settings_for(prepared, replace(POOLS, encoders=encoders))
    encoder, tokenizer = built(settings.encoder_here())
    slices = (row for task in reindexing.tasks(changes) for row in distinct_texts.read(task, settings, tokenizer))
    for done, row in enumerate(slices):
        if done == stop_after:
            raise Died
        if encoded is not None:
            encoded.append(stages.from_cell(row, "documents").num_rows)
        report = distinct_texts.write(stages.encode(row, encoder, settings, "inline"), settings)
        assert report.column("refused")[0].as_py() is None, report.to_pylist()


class Sampler:
    """run.Sampler in this process."""

    def measure(self, tasks: Sequence[Task], settings: Settings) -> Measurement:
        encoder, _ = built(settings.encoder_here())
        return stages.measurement_of(stages.measure(row, encoder, settings) for row in self._slices(tasks, settings))

    def read(self, tasks: Sequence[Task], settings: Settings) -> pa.Table:
        return stages.sampled_tokens(self._slices(tasks, settings))

    def quantise(self, tokens: pa.Table, settings: Settings) -> None:
        stages.quantise(tokens, settings, threads=1)

    def _slices(self, tasks: Sequence[Task], settings: Settings) -> Iterator[pa.Table]:
        tokenizer = Tokenizer(settings.encoder, 1)
        return (row for task in tasks for row in stages.read_sample(task, settings, tokenizer))


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
