"""An embedding run goes by units: it encodes what has no record, commits, and updates the folder.

A spec, or a run that is prepared, and an executor come in. A published version and its summary go out. A reindex
encodes texts and builds whole tables by these functions, too.
"""

import contextlib
import time
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from pipeline.config import RunSpec
from pipeline.encoder import probes
from pipeline.errors import RunError, SourceChanged
from pipeline.execution.executor import Executor, Report, busy_time, report_of
from pipeline.execution.part_workers import PartWorkers
from pipeline.model.folder import check_model_unchanged
from pipeline.progress import Progress
from pipeline.runs import plan as planning
from pipeline.runs.calibrate import calibrate
from pipeline.runs.estimate import TOKENS_PER_S
from pipeline.runs.guard import check_clipped, check_failed, check_version
from pipeline.runs.plan import Plan
from pipeline.runs.prepare import prepare
from pipeline.runs.prepared import Prepared
from pipeline.runs.summary import NOTHING_ENCODED, Encoded, Summary, nothing_to_do, summarise
from pipeline.stages.flow import EMBED, OnProgress
from pipeline.table import layout, materialise, record, snapshot
from pipeline.table.operations import replace_units
from pipeline.table.publication import Description, Publication
from pipeline.table.record import Effort
from pipeline.table.snapshot import Snapshot

Result = TypeVar("Result")
Check = Callable[[snapshot.Tally], None]
"""It looks at all rows of the new version before it is committed, and raises what stands against it."""


def embed(spec: RunSpec, executor: Executor, *, retry_failed: bool = False) -> Summary:
    """Make the table equal to its sources. After a kill at any moment, the same call goes on. Raises PipelineError."""
    started = time.perf_counter()

    def once() -> Summary:
        prepared = prepare(spec, writes=True, retry_failed=retry_failed)
        if prepared.plan.changes_nothing:
            return nothing_to_do(prepared)
        return embed_units(prepared, executor, started)

    return planned_again(once)


def planned_again(once: Callable[[], Result]) -> Result:
    """Return what `once` gives. If a file is replaced while it runs, plan again with the new file, a single time."""
    try:
        return once()
    except SourceChanged:
        return once()


def embed_units(prepared: Prepared, executor: Executor, started: float, check: Check = lambda tally: None) -> Summary:
    """Run a plan by units to its end. The run `started` at this reading of time.perf_counter."""
    prepared = calibrate(prepared, executor)
    encoded = encode_units(prepared, executor)
    seconds = timings(prepared, encoded)
    name = uuid.uuid4().hex[:12]
    version, published = publish_units(prepared, executor, name, seconds | pace(encoded), check)
    total = {"total": time.perf_counter() - started}
    return summarise(prepared, version, encoded, seconds | published | total)


def encode_units(prepared: Prepared, executor: Executor) -> Encoded:
    """Encode the tasks of the plan. Every finished slice is recorded in staging, whatever happens afterwards.

    Raises RunError when an encoder refuses, or too many rows failed. Raises SourceChanged when a file isn't the
    planned one.
    """
    tasks = prepared.plan.tasks
    if not tasks:
        return NOTHING_ENCODED
    started = time.time()
    filtered = prepared.spec.source.where is not None or prepared.spec.source.on_null == "skip"
    reports = []
    rows, effort = 0, Effort()
    with (
        Progress(units=len(tasks), rows=prepared.rows_to_do) as progress,
        contextlib.closing(reports_of(prepared, executor, progress.encoded)) as coming,
    ):
        for report in coming:
            reports.append(report)
            if report.refused is None:
                progress.recorded(report.num_rows, report.failed, report.last)
                # Only in the end it is known how many rows the filter lets through.
                check_failed(prepared, progress.failed, prepared.survey.rows_known if not filtered else None)
                rows, effort = rows + report.num_rows, effort + report.effort
                check_clipped(prepared, effort, done=rows / max(1, rows, prepared.survey.rows_estimate))
            elif not report.source_changed:
                raise RunError(report.refused)
    changed = [report.refused for report in reports if report.source_changed]
    if changed:
        raise SourceChanged(str(changed[0]))
    busy = busy_time(reports)
    return Encoded(
        busy_share=busy.share,
        rows=rows,
        effort=effort,
        seconds=time.time() - busy.first_start,
        start_s=busy.first_start - started,
        workers=executor.description,
        engines=", ".join(sorted({report.engine for report in reports} - {""})),
    )


def reports_of(prepared: Prepared, executor: Executor, on_encoded: OnProgress) -> Generator[Report, None, None]:
    """Yield a report of each slice when it is recorded or refused."""
    with contextlib.closing(executor.flow(prepared, prepared.plan.tasks, EMBED, on_encoded)) as tables:
        for table in tables:
            yield from map(report_of, table.to_pylist())


def timings(prepared: Prepared, encoded: Encoded) -> dict[str, float]:
    """Return the seconds by stage so far. The seconds to read, tokenize, encode and write are sums over the workers."""
    effort = encoded.effort
    return {
        "plan": prepared.plan_s,
        **({"calibrate": prepared.calibrate_s} if prepared.calibrate_s else {}),
        "start": encoded.start_s,
        "flow": encoded.seconds,
        "read": effort.read_s,
        "tokenize": effort.tokenize_s,
        "encode": effort.encode_s,
        "write": effort.write_s,
    }


def pace(encoded: Encoded) -> dict[str, float]:
    """Return the speed that forecasts go by. It is measured on this run alone, since earlier runs may have encoded
    much of its version."""
    tokens = encoded.effort.tokens
    return {TOKENS_PER_S: tokens / encoded.seconds} if tokens and encoded.seconds else {}


def publish_units(
    prepared: Prepared,
    executor: Executor,
    run: str,
    timings: Mapping[str, float],
    check: Check = lambda tally: None,
) -> tuple[Snapshot, dict[str, float]]:
    """Commit the version and materialise it. Return it with the seconds that both took.

    Where a run only tried dead letters again, and all of them failed again, there is nothing to commit and the parent
    is returned. Raises RunError when slices are missing, too many rows failed or a limit is passed. Raises what
    `check` raises of all rows of the new version, and CommitConflict when another run published meanwhile.
    """
    started = time.perf_counter()
    table = prepared.table
    units = [*prepared.plan.added, *prepared.plan.retried.values()]
    plan = planning.with_records(prepared.plan, record.read_all(table, [unit.unit_id for unit in units]))
    attempt = Publication(table, prepared.parent)
    attempt.check_current(prepared.vectors.fingerprint)
    if plan.tasks:
        raise RunError(f"{len(plan.tasks)} units have no complete record after the run: start again to finish them")
    retried = _recovered(prepared.parent, plan)
    done = [(unit, plan.records[unit.unit_id]) for unit in plan.added]
    work = replace_units.Work(done=done, kept=plan.kept, retried=retried)
    # A record that gave nothing is deleted, or the next run would take its unit for done.
    record.forget(table, [again.unit_id for unit, again in plan.retried.items() if unit not in retried])
    if not plan.added and not plan.dropped and not retried:
        return prepared.parent, {}
    tally = work.tally(prepared.parent)
    failed = tally.failed + _lost_rows(prepared.parent, plan)
    effort = sum((item.effort for item in work.records), Effort())
    check_version(prepared, failed=failed, total=tally.documents + tally.failed, effort=effort)
    check(replace(tally, failed=failed))
    check_model_unchanged(prepared.encoder)
    workers = PartWorkers(executor, prepared)
    version = replace_units.publish(attempt, work, description(prepared, run, timings), workers)
    committed = time.perf_counter()
    materialise.materialise(table, version)
    return version, {"commit": committed - started, "materialise": time.perf_counter() - committed}


def _recovered(parent: Snapshot, plan: Plan) -> dict[str, Sequence[record.Record]]:
    """Map each unit to its new records, if some of its dead letters now have a vector or are left out."""
    if not plan.retried:
        return {}
    before = parent.tallies()
    found = {unit: (again, plan.records[again.unit_id]) for unit, again in plan.retried.items()}
    return {
        unit: items
        for unit, (again, items) in found.items()
        if replace_units.mends(before[unit], replace_units.tally_of(items), placed=again.is_placed)
    }


def _lost_rows(parent: Snapshot, plan: Plan) -> int:
    """Count the rows that broken files had in the table and no longer give. One dead letter stands for many of them."""
    broken = {
        span.file.path
        for unit in plan.added
        if any(item.broken for item in plan.records[unit.unit_id])
        for span in unit.spans
    }
    broken_units = {row["unit_id"] for row in parent.sources.to_pylist() if row["path"] in broken}
    lost = plan.dropped & broken_units
    before = sum(tally.source_rows for unit, tally in parent.tallies().items() if unit in lost)
    after = sum(
        item.num_rows
        for unit in plan.added
        if any(span.file.path in broken for span in unit.spans)
        for item in plan.records[unit.unit_id]
    )
    return max(0, before - after)


def description(prepared: Prepared, run: str, timings: Mapping[str, float]) -> Description:
    spec = prepared.spec
    vectors = prepared.vectors
    stored = prepared.table.read(layout.probe_vectors(vectors.fingerprint))
    ranges = vectors.calibration and {"path": vectors.ranges_path, "digest": vectors.calibration.digest}
    quantised = vectors.int8 and {"int8": {"path": vectors.int8_path, "digest": vectors.int8.digest}}
    return Description(
        run=run,
        time=snapshot.utc_now(),
        fingerprint=vectors.fingerprint,
        fingerprint_of=vectors.words,
        output=prepared.target.output,
        output_spec=prepared.target.output_spec,
        embedding=spec.table.embedding_column,
        embeddings=(
            {
                "column": spec.table.embedding_column,
                "fingerprint": vectors.fingerprint,
                "dim": prepared.encoder.dim,
                "dtype": spec.table.dtype,
                "calibration": ranges,
                "similarity": prepared.encoder.similarity,
                "model": prepared.encoder.origin.place,
                **(quantised or {}),
            },
        ),
        part_schema=prepared.target.part_schema,
        source_schema=prepared.survey.schema,
        probes=prepared.parent.probes or (probes.from_json(stored) if stored else ()),
        timings=timings,
    )
