"""These functions are all that a Python caller needs.

`embed(spec)`, `plan(spec)`, `read(table, version)` and `changes(table, since)` work on tables, and `vectors(rows)` on
their rows.
`search(table, query)` shows what is in them.
`encode(model, texts)` and `similarity(a, b)` work on texts in this process.

A spec is a `RunSpec`, the path of a YAML file, or a mapping with the same sections; a model is a `ModelSpec`, what stands
in `model.path`, a mapping with the keys of the model section, or a `RunSpec`, whose model it is. Errors are those of
pipeline.errors. Neither torch nor Ray is loaded before there is work for them.
"""

import dataclasses
import functools
import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from pipeline import config, progress
from pipeline.config import ModelSpec, RunSpec

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    import pyarrow.dataset as pads
    from numpy.typing import NDArray

    from pipeline.reports.report import Report
    from pipeline.runs.forecast import Forecast
    from pipeline.runs.found import Found, Pairs
    from pipeline.runs.plan_summary import PlanSummary
    from pipeline.runs.reindex_summary import Reindexed
    from pipeline.runs.summary import RunSummary, Summary

Spec = RunSpec | Mapping[str, Any] | str | Path
AnySummary = TypeVar("AnySummary", bound="RunSummary")
Model = ModelSpec | RunSpec | Mapping[str, Any] | str | Path
Given = ParamSpec("Given")
Result = TypeVar("Result")


def _telling(call: Callable[Given, Result]) -> Callable[Given, Result]:
    """Let a call tell its progress, from before what it needs is imported."""

    @functools.wraps(call)
    def told(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        with progress.run(call.__name__):
            return call(*args, **kwargs)

    return told


@_telling
def embed(spec: Spec, *, retry_failed: bool = False, new_model: bool = False) -> "Summary":
    """Make the table equal to its sources: embed what is new, drop what is gone, publish a version. Return what was done.

    A table that exists is followed by row, at the cost of what changed. With `retry_failed` its dead letters are tried
    again, too; otherwise a row is tried again when its file changes. A table of another model is refused unless it is to
    have a `new_model`. After a kill at any moment, the same call goes on. Raises PipelineError: TableBusy where another run
    is at work on the table and has not ended within `limits.wait_s`.
    """
    from pipeline.execution.by_size import ExecutorBySize
    from pipeline.runs import embed as runs
    from pipeline.runs.observed import observed, tell_summary
    from pipeline.runs.precision import settled
    from pipeline.runs.prepare import check_shared, resources_for

    given = settled(_spec(spec), new_model=new_model)
    check_shared(given)
    _quiet_ray()
    with observed(given), ExecutorBySize(resources_for(given)) as executor:
        summary = tell_summary(runs.embed(given, executor, retry_failed=retry_failed, new_model=new_model))
    return _with_report(given, summary)


@_telling
def reindex(spec: Spec, *, new_model: bool = False, allow_deletes: bool = False) -> "Reindexed | Summary":
    """Do what `embed` does as a schedule needs it: one that finds a run at work does nothing, and mass deletions are
    refused. Return what was done.

    After a kill at any moment, the same call goes on. A table of another model is refused unless it is to have a `new_model`.
    Then, and where there is no table yet, it is built whole, and published at once. More rows than `limits.max_deleted_rows`
    are deleted only with `allow_deletes`. Raises PipelineError: TableBusy where another run is at work on the table and has
    not ended within `limits.wait_s`.
    """
    from pipeline.execution.by_size import ExecutorBySize
    from pipeline.runs import reindex as runs
    from pipeline.runs.observed import observed, tell_summary
    from pipeline.runs.precision import settled
    from pipeline.runs.prepare import check_shared, resources_for

    given = settled(_spec(spec), new_model=new_model)
    check_shared(given)
    _quiet_ray()
    with runs.alone(given), observed(given), ExecutorBySize(resources_for(given)) as executor:
        summary = tell_summary(runs.reindex(given, executor, new_model=new_model, allow_deletes=allow_deletes))
    return _with_report(given, summary)


def _with_report(spec: RunSpec, summary: AnySummary) -> AnySummary:
    """Leave a report beside the version, if the configuration asks for one."""
    if not spec.table.report:
        return summary
    from pipeline.reports.report import leave

    return leave(spec, summary)


def report(
    table: str | Path | RunSpec,
    *,
    price_per_hour: float | None = None,
    verify_rows: int = 0,
    storage_options: Mapping[str, Any] | None = None,
) -> "Report":
    """Return a report on a table's current version: `report(..).write("report.html")`, and notebooks show it.

    `table` is the table's folder or URL. The path of its configuration, or its RunSpec, has feeds, which are then asked, too.
    `verify_rows` rows are encoded again and compared where it is above 0. Large tables are looked at by a sample, which the
    report tells. Raises PipelineError.
    """
    from pipeline.errors import InputError
    from pipeline.reports.report import report as make
    from pipeline.runs.recorded import is_table, spec_of, standing_for
    from pipeline.storage import Folder

    table = table if isinstance(table, RunSpec) else standing_for(str(table))
    if not isinstance(table, RunSpec) and is_table(str(table)):
        if verify_rows and storage_options:
            raise InputError(
                "verify_rows with storage_options needs the table's configuration, or its RunSpec, as `table`"
            )
        spec = spec_of(str(table)) if verify_rows else None
        folder = Folder(str(table), storage_options or {})
        return make(folder, spec, asks_feeds=False, price_per_hour=price_per_hour, verify_rows=verify_rows)
    spec = table if isinstance(table, RunSpec) else _spec(table)
    folder = Folder(spec.table.path, spec.table.storage_options)
    return make(folder, spec, price_per_hour=price_per_hour, verify_rows=verify_rows)


@_telling
def plan_reindex(
    spec: Spec, *, new_model: bool = False, allow_deletes: bool = False, price_per_hour: float | None = None
) -> "Forecast":
    """Return what `reindex` would do now, with exact counts. It reads the changed files and writes nothing."""
    from pipeline.execution.by_size import ExecutorBySize
    from pipeline.runs import reindex as runs
    from pipeline.runs.precision import settled
    from pipeline.runs.prepare import check_shared, resources_for

    given = settled(_spec(spec), new_model=new_model)
    check_shared(given)
    _quiet_ray()
    with ExecutorBySize(resources_for(given)) as executor:
        return runs.plan(
            given, executor, new_model=new_model, allow_deletes=allow_deletes, price_per_hour=price_per_hour
        )


def _quiet_ray() -> None:
    """In a notebook Ray and its progress bars, which stay off, would ask for ipywidgets as soon as they are imported."""
    warnings.filterwarnings("ignore", "IProgress not found")
    logging.getLogger("ray.widgets").setLevel(logging.ERROR)


@_telling
def plan(spec: Spec, *, retry_failed: bool = False, new_model: bool = False) -> "PlanSummary":
    """Return what `embed` would do now. It reads the files that changed since the table was made, and writes nothing."""
    from pipeline.execution.by_size import ExecutorBySize
    from pipeline.runs import embed as runs
    from pipeline.runs.precision import settled
    from pipeline.runs.prepare import check_shared, resources_for

    given = settled(_spec(spec), new_model=new_model)
    check_shared(given)
    _quiet_ray()
    with ExecutorBySize(resources_for(given)) as executor:
        return runs.plan(given, executor, retry_failed=retry_failed, new_model=new_model)


def read(
    table: str | Path, version: int | None = None, storage_options: Mapping[str, Any] | None = None
) -> "pads.Dataset":
    """Return the rows of a version, by default the current one, whatever is published meanwhile: `read(..).to_table()`.

    They are read lazily: choose columns and rows with `to_table(columns=.., filter=..)`, or go through `to_batches()`.
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


def changes(
    table: str | Path,
    since: int,
    until: int | None = None,
    *,
    rows: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> "Iterator[pa.Table]":
    """Yield what changed from version `since` to `until`, by default the current one: who holds the rows of the one and
    applies this holds those of the other.

    Each id comes once: with `op` upsert, and both hashes as they are now, or with delete. From version 0 all rows are
    upserts. With `rows` an upsert has all columns of the table, and its vector as float32; they are null for a delete.
    A change may say again what is the case already. Memory is bounded. Raises InputError, also where a purge has taken
    rows out of the changes in between: compare the rows themselves then.
    """
    from pipeline.errors import InputError
    from pipeline.storage import Folder
    from pipeline.table import changed_rows, snapshot

    for name, value in (("since", since), ("until", until)):
        if not isinstance(value, int) and (name == "since" or value is not None):
            raise InputError(f"{name} is {value!r}; give the number of a version")
    folder = Folder(str(table), storage_options or {})
    version = snapshot.current(folder) if until is None else snapshot.read(folder, until)
    if not version.version:
        raise InputError(f"{str(table)!r} holds no published version: check the path, or embed something first")
    return changed_rows.changes(folder, since, version, with_rows=rows)


def newest_version(table: str | Path, storage_options: Mapping[str, Any] | None = None) -> int:
    """Return the number of the current version, 0 where nothing was published yet. Raises PipelineError."""
    from pipeline.storage import Folder
    from pipeline.table import snapshot

    return max(snapshot.versions(Folder(str(table), storage_options or {})), default=0)


def search(
    table: Spec,
    query: str | None = None,
    *,
    top: int | None = None,
    where: "str | Sequence[str]" = (),
    near: str | None = None,
    duplicates: float | None = None,
    hybrid: bool = False,
) -> "Found | Pairs":
    """Return the rows of a table nearest to a query, or `near` one of its rows, or pairs that are `duplicates`.

    `table` is the path or URL of a table, or a spec. The five nearest rows come, or `top`: of chunks, the best one of each
    document. With `hybrid` a ranking by the query's words (BM25) is fused with that by vectors. `near` is an id.
    `duplicates` is the least cosine of a pair, of which the 20 nearest come, or `top`. Only rows that meet all conditions of
    `where` count, such as `lang=en` or `year >= 2020`. What comes back is shown as a table in a notebook, and its `rows` are
    an Arrow table. Raises InputError.
    """
    from pipeline.errors import InputError
    from pipeline.runs import search as runs

    asked = [value is not None for value in (query, near, duplicates)]
    if sum(asked) != 1 or (hybrid and query is None):
        raise InputError("search takes one of a query, near=ID and duplicates=THRESHOLD; hybrid goes with a query")
    given = _spec(table) if isinstance(table, RunSpec | Mapping) else table
    conditions = [where] if isinstance(where, str) else list(where)
    if query is not None:
        return runs.search(given, query, top=5 if top is None else top, where=conditions, hybrid=hybrid)
    if near is not None:
        return runs.near(given, near, top=5 if top is None else top, where=conditions)
    assert duplicates is not None
    return runs.nearly_same(given, duplicates, top=20 if top is None else top, where=conditions)


def vectors(rows: "pa.Table | pa.RecordBatch", column: str | None = None) -> "NDArray[np.float32]":
    """Return float32[n, dim], the vectors of rows that came from `read(..).to_table()` or from a file of a table of any dtype.

    Codes become the numbers that they stand for (of binary ones +1 or -1) by the schema's metadata, which Arrow carries along,
    and DuckDB, Polars and pandas lose. `column` is needed only where a float table has several columns of fixed-size lists.
    Raises InputError.
    """
    from pipeline.table.vectors import vectors

    return vectors(rows, column)


def encode(
    model: Model, texts: Iterable[str], *, prompt: str | None = None, prompt_name: str | None = None
) -> "NDArray[np.float32]":
    """Return the vectors, float32[n, dim], that a table of this model gets for these texts.

    It is for queries and trials. The vectors are made in this process without Ray, on a GPU where there is one, else on all
    cores. A later call with the same model goes on with what the first one loaded. `prompt`, or `prompt_name` of the model's
    own prompts, replaces the model section's; "" stands for none. Texts are not chunked: what the model doesn't read of a
    long one is cut off. Raises InputError, also where a text has no vector.
    """
    from pipeline.encoder.embedder import embedder
    from pipeline.errors import InputError
    from pipeline.model.folder import encoder_spec

    if isinstance(texts, str):
        raise InputError("texts is a string; give a list of strings, for one text a list with one")
    if not isinstance(texts, Iterable):
        raise InputError(f"texts is {texts!r}; give a list of strings")
    for name, value in (("prompt", prompt), ("prompt_name", prompt_name)):
        if not isinstance(value, str | None):
            raise InputError(f"{name} is {value!r}; give a string, or None for the model section's own")
    spec = _model(model)
    if prompt is not None or prompt_name is not None:
        spec = dataclasses.replace(spec, prompt=prompt, prompt_name=prompt_name)
    # Arrow's own elements are no strings.
    encoded = embedder(encoder_spec(spec)).encode(texts.to_pylist() if hasattr(texts, "to_pylist") else list(texts))
    if encoded.failed:
        number, reason = min(encoded.failed.items())
        more = f" (and {len(encoded.failed) - 1} more texts)" if len(encoded.failed) > 1 else ""
        raise InputError(f"texts[{number}] has no vector: {reason}{more}; leave it out")
    return encoded.vectors


def similarity(a: Any, b: Any, *, model: Model | None = None, function: str | None = None) -> "NDArray[np.float32]":
    """Return the similarity of every vector of `a` to every one of `b`, as float32[n, m]. More is always more alike.

    `a` is [n, dim] and `b` [m, dim], or one vector [dim]: arrays, lists, columns of lists, torch tensors, of floats; what
    a table holds is `vectors(rows)`. `function` is `cosine`, `dot`, `euclidean` or `manhattan`, the last two as negative
    distances; without it the model's own counts, and without a model `cosine`. Raises InputError, also for integers.
    """
    from pipeline.encoder.similarities import similarities

    if function is None and model is not None:
        from pipeline.model.folder import encoder_spec

        # Vectors are compared whatever stood in front of their texts.
        function = encoder_spec(dataclasses.replace(_model(model), prompt="", prompt_name=None)).similarity
    return similarities(a, b, function or "cosine")


def _model(model: Model) -> ModelSpec:
    if isinstance(model, RunSpec):
        return model.model
    if isinstance(model, ModelSpec):
        return model
    keys = model if isinstance(model, Mapping) else {"path": model}
    # What the other sections say doesn't matter: their keys are only required.
    return config.from_mapping({"source": {"path": "-", "text": "-"}, "model": keys, "table": {"path": "-"}}).model


def _spec(spec: Spec) -> RunSpec:
    if isinstance(spec, RunSpec):
        return spec
    if isinstance(spec, Mapping):
        return config.from_mapping(spec)
    if not isinstance(spec, str | os.PathLike):
        from pipeline.errors import ConfigError

        raise ConfigError(f"the spec is {spec!r}; give a RunSpec, a mapping, or the path of a YAML file")
    return config.load(spec)
