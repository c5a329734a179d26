"""What int8 needs is measured before a table begins.

That is an int8 model, or the value ranges of int8 and uint8 columns. A prepared run and an executor come in. The run
goes out with what stands in `meta/calibration/` now, and with the unit ids that follow from it.
"""

import time
from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa

from pipeline import progress, schema
from pipeline.execution.executor import Executor
from pipeline.execution.pools import Load, Pools
from pipeline.progress import Phase, say
from pipeline.runs import vector_spec
from pipeline.runs.prepare import part_schema_of, plan_of
from pipeline.runs.prepared import Prepared, slice_bytes
from pipeline.sources.reader import SLICE_BYTES
from pipeline.stages import sample
from pipeline.stages.flow import MEASURE, SAMPLE
from pipeline.stages.worker_spec import WorkerSpec
from pipeline.table import calibration, snapshot
from pipeline.table.calibration import Measurement
from pipeline.work import Task, Unit


def calibrate(prepared: Prepared, executor: Executor) -> Prepared:
    """Measure what int8 needs where the table has no measurement yet, and return the run with it.

    The ids of units are known only afterwards. Raises RunError when the sample gives too few vectors, or int8 ones
    that are too far from float32. Raises SourceChanged when a file isn't the planned one.
    """
    if not prepared.vectors.needs_calibration:
        return prepared
    started = time.perf_counter()
    run = progress.current()
    if prepared.vectors.needs_int8:
        run.begin(Phase.CALIBRATING, "int8")
        prepared = _quantise(prepared, executor)
        say(str(prepared.vectors.int8))
    if prepared.vectors.needs_ranges:
        run.begin(Phase.CALIBRATING, f"the value ranges of {prepared.spec.table.dtype}")
        prepared = _measure_ranges(prepared, executor)
    return replace(prepared, calibrate_s=time.perf_counter() - started)


def _quantise(prepared: Prepared, executor: Executor) -> Prepared:
    chosen = calibration.sample(prepared.survey.spans)
    found = pa.table({schema.TOKENS: pa.array([], pa.large_list(pa.int32()))})
    for units in chosen.rounds():
        job = _SampleJob(prepared, chosen)
        rows = executor.flow(job, [Task(unit=unit, done=()) for unit in units], SAMPLE, None)
        found = pa.concat_tables([found, sample.sampled_tokens(rows)])
        if found.num_rows >= calibration.STEADY:
            break
    executor.with_all_cpus(prepared, sample.quantise_model, found)
    return _described_again(prepared)


def _measure_ranges(prepared: Prepared, executor: Executor) -> Prepared:
    chosen = calibration.sample(prepared.survey.spans)
    found = calibration.NOTHING
    for units in chosen.rounds():
        found += _measured(prepared, executor, chosen, units)
        if len(found.texts) >= calibration.STEADY:
            break
    else:
        more, units = chosen.again(found)
        if units:
            found += _measured(prepared, executor, more, units)
    assert prepared.vectors.ranges_path is not None
    calibration.create(prepared.table, prepared.vectors.ranges_path, found.calibration)
    return _described_again(prepared)


def _measured(prepared: Prepared, executor: Executor, chosen: calibration.Sample, units: Sequence[Unit]) -> Measurement:
    job = _SampleJob(prepared, chosen)
    return sample.measurement_of(executor.flow(job, [Task(unit=unit, done=()) for unit in units], MEASURE, None))


class _SampleJob:
    """It is the run as far as its sample goes, and implements execution.executor.Job."""

    def __init__(self, prepared: Prepared, chosen: calibration.Sample) -> None:
        self._prepared, self._chosen = prepared, chosen
        self.table = prepared.table

    @property
    def expected_s(self) -> float:
        return self._prepared.expected_s

    @property
    def may_be_light(self) -> bool:
        return self._prepared.may_be_light

    @property
    def encoder_bytes(self) -> int:
        return self._prepared.encoder_bytes

    @property
    def load(self) -> Load:
        return self._prepared.load

    def worker_spec(self, pools: Pools) -> WorkerSpec:
        """Tell workers to read the sample.

        A document with one vector costs as much as all of its chunks, so a quarter as many documents must do. Where
        chunks are rows, the text of up to eight times the needed chunks is chunked.
        """
        worker, run = self._prepared.worker_spec(pools), self._prepared.spec
        texts = self._chosen.texts if run.chunk is None or run.rows_are_chunks else -(-self._chosen.texts // 4)
        most = min(SLICE_BYTES, 8 * slice_bytes(run, texts)) if run.rows_are_chunks else SLICE_BYTES
        read = replace(
            worker.read, slice_rows=texts, slice_bytes=most, sample_depth=self._chosen.depth, expected_chars=None
        )
        return replace(worker, read=read)


def _described_again(prepared: Prepared) -> Prepared:
    """Return the run with what now stands in meta/calibration/, and the unit ids that follow from it."""
    survey, target = prepared.survey, prepared.target
    parent = snapshot.empty() if target.renews else target.parent
    vectors = vector_spec.describe(prepared.spec, prepared.encoder, target.table, parent, target.output)
    return replace(
        prepared,
        vectors=vectors,
        target=replace(target, part_schema=part_schema_of(prepared.spec, survey.schema, vectors)),
        plan=plan_of(target.table, target.parent, survey, target.output, vectors.fingerprint, writes=True),
    )
