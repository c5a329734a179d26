"""What a Python caller needs: `embed(spec)`, `plan(spec)` and `read(table, version)`.

A spec is a `RunSpec`, the path of a YAML file, or a mapping with the same sections. Errors are those of pipeline.errors.
Neither torch nor Ray is loaded before there is work for them.
"""

import logging
import time
import uuid
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import config
from pipeline.config import RunSpec

if TYPE_CHECKING:
    import pyarrow.dataset as pads

    from pipeline.dataflow import Cluster
    from pipeline.run import Encoded, PlanSummary, Prepared, Summary

Spec = RunSpec | Mapping[str, Any] | str | Path


def embed(spec: Spec) -> "Summary":
    """Make the table equal to its sources: embed what is new, drop what is gone, publish a version. Says what was done.

    Killed at any moment, the same call goes on. Raises PipelineError.
    """
    from pipeline import run
    from pipeline.errors import SourceChanged

    started = time.perf_counter()
    given = _spec(spec)
    run.check_shared(given)
    prepared = run.prepare(given, writes=True)
    if prepared.plan.changes_nothing:
        return run.nothing_to_do(prepared)
    # In a notebook Ray and its bars, which stay off, would ask for ipywidgets as soon as they are imported.
    warnings.filterwarnings("ignore", "IProgress not found")
    logging.getLogger("ray.widgets").setLevel(logging.ERROR)
    from pipeline.dataflow import Cluster  # Ray loads only when there is work.

    with Cluster(given.resources) as cluster:
        try:
            encoded = _encode(prepared, cluster)
        except SourceChanged:
            # A file was replaced under our hands: plan what stands there now, once.
            prepared = run.prepare(given, writes=True)
            if prepared.plan.changes_nothing:
                return run.nothing_to_do(prepared)
            encoded = _encode(prepared, cluster)
        timings = run.timings(prepared, encoded)
        version, published = run.publish(prepared, cluster, uuid.uuid4().hex[:12], timings)
    total = {"total": time.perf_counter() - started}
    return run.summarise(prepared, version, encoded, timings | published | total)


def _encode(prepared: "Prepared", cluster: "Cluster") -> "Encoded":
    from pipeline import run
    from pipeline.metrics import Progress

    tasks = prepared.plan.tasks
    with Progress(units=len(tasks), rows=prepared.rows_to_do) as progress:
        return run.encode(prepared, cluster, progress)


def plan(spec: Spec) -> "PlanSummary":
    """What `embed` would do now; writes nothing."""
    from pipeline import run

    return run.summarise_plan(run.prepare(_spec(spec), writes=False))


def read(
    table: str | Path, version: int | None = None, storage_options: Mapping[str, Any] | None = None
) -> "pads.Dataset":
    """The rows of a version, by default the current one, whatever is published meanwhile: `read(..).to_table()`.

    Lazy: choose columns and rows with `to_table(columns=.., filter=..)`, or go through `to_batches()`.
    """
    from pipeline.errors import InputError
    from pipeline.storage import Folder
    from pipeline.table import rows, snapshot

    if version is not None and not isinstance(version, int):
        raise InputError(f"version is {version!r}; give a whole number, or None for the current one")
    folder = Folder(str(table), storage_options or {})
    found = snapshot.current(folder) if version is None else snapshot.read(folder, version)
    if not found.version:
        raise InputError(f"{str(table)!r} holds no published version: check the path, or embed something first")
    return rows.dataset(folder, found)


def _spec(spec: Spec) -> RunSpec:
    if isinstance(spec, RunSpec):
        return spec
    return config.from_mapping(spec) if isinstance(spec, Mapping) else config.load(spec)
