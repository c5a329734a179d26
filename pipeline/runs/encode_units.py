"""The tasks of a plan are encoded, whatever kind of run it is.

A prepared run and an executor come in. What was encoded goes out, beside the records that stand in staging, and what a
version says of the run that made it.
"""

import contextlib
import time
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from pipeline import progress
from pipeline.encoder import probes
from pipeline.errors import RunError, SourceChanged
from pipeline.execution.executor import Busy, Executor, Report, report_of
from pipeline.progress import Phase
from pipeline.runs import unread_files
from pipeline.runs.arrange import arranged
from pipeline.runs.estimate import TOKENS_PER_S
from pipeline.runs.guard import check_clipped, check_failed, check_unfit, check_unread
from pipeline.runs.prepared import Prepared
from pipeline.runs.summary import NOTHING_ENCODED, Encoded
from pipeline.runs.unread_files import UnreadFile
from pipeline.stages.flow import EMBED, OnProgress
from pipeline.table import layout, snapshot
from pipeline.table.publication import Description
from pipeline.table.record import Effort
from pipeline.work import Task, Unfit, Unit


def encode_units(prepared: Prepared, executor: Executor) -> Encoded:
    """Encode the tasks of the plan. Every finished slice is recorded in staging, whatever happens afterwards.

    Raises RunError when an encoder refuses, or too many rows failed. Raises SourceChanged when a file isn't the
    planned one.
    """
    tasks = prepared.plan.tasks
    if not tasks:
        return NOTHING_ENCODED
    started = time.time()
    prepared = arranged(prepared, executor)
    filtered = prepared.spec.source.where is not None or prepared.spec.source.on_null == "skip"
    # Reports are added up and not kept: a large corpus has millions of slices.
    busy, engines, told, changed = Busy(), set[str](), set[str](), ""
    rows, failed, effort = 0, 0, Effort()
    units = {task.unit.unit_id: task.unit for task in tasks}
    unread: dict[str, UnreadFile] = {}
    unfit: list[Unfit] = []
    run = progress.current()
    run.begin(Phase.STARTING)
    run.expect(units=len(tasks), **_rows_to_do(prepared))
    with contextlib.closing(reports_of(prepared, executor, tasks, run.encoded)) as coming:
        for report in coming:
            busy.add(report)
            engines.add(report.engine)
            told.add(report.told)
            if report.refused is None:
                run.recorded(report.num_rows, report.failed, report.last, report.effort.stages)
                failed += report.failed
                unread |= _unread_in(report, units[report.unit_id])
                check_unread(prepared, list(unread.values()))
                unfit += [report.unfit] if report.unfit is not None else []
                check_unfit(prepared, unfit)
                # Only in the end it is known how many rows the filter lets through.
                check_failed(prepared, failed, prepared.survey.rows_known if not filtered else None)
                rows, effort = rows + report.num_rows, effort + report.effort
                check_clipped(prepared, effort, done=rows / max(1, rows, prepared.survey.rows_estimate))
            elif not report.source_changed:
                raise RunError(report.refused)
            else:
                changed = changed or report.refused
    if changed:
        raise SourceChanged(changed)
    return Encoded(
        busy_share=busy.share,
        rows=rows,
        effort=effort,
        seconds=time.time() - busy.first_start,
        start_s=busy.first_start - started,
        workers=_workers(prepared, executor),
        engines="; ".join(sorted(engines - {""})),
        told=tuple(sorted(told - {""})),
    )


def _workers(prepared: Prepared, executor: Executor) -> str:
    measured = f"; {prepared.arrangement.reason}" if prepared.arrangement is not None else ""
    return f"{executor.description}{measured}"


def _rows_to_do(prepared: Prepared) -> dict[str, Any]:
    """Return how many rows the tasks have, or about how many where all of a source is to be read that doesn't tell."""
    rows = prepared.rows_to_do
    if rows is None and not prepared.plan.kept and not prepared.plan.records:
        return {"rows": prepared.survey.rows_estimate, "about": True}
    return {"rows": rows}


def _unread_in(report: Report, unit: Unit) -> dict[str, UnreadFile]:
    """Return the files of a slice that can't be read, by path. How many rows they lack is counted in the end."""
    found = unread_files.spans_of(unit, unit.sources, report.unread)
    return {span.file.path: UnreadFile(path=span.file.path, reason=item.reason, rows=0) for span, item in found}


def reports_of(
    prepared: Prepared, executor: Executor, tasks: Sequence[Task], on_encoded: OnProgress
) -> Generator[Report, None, None]:
    """Yield a report of each slice when it is recorded or refused."""
    with contextlib.closing(executor.flow(prepared, tasks, EMBED, on_encoded)) as tables:
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
        **effort.stages,
    }


def pace(encoded: Encoded) -> dict[str, float]:
    """Return the speed that forecasts go by, and what else tells how well the machines were used. They are measured on this
    run alone, since earlier runs may have encoded much of its version."""
    effort, tokens = encoded.effort, encoded.effort.tokens
    if not (tokens and encoded.seconds):
        return {}
    padding = {"padding_share": 1 - effort.tokens_encoded / effort.tokens_padded} if effort.tokens_padded else {}
    speeds = {TOKENS_PER_S: tokens / encoded.seconds, "docs_per_s": encoded.rows / encoded.seconds}
    return speeds | padding | {"busy_share": encoded.busy_share}


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
