"""The parts of an embedding run, from a spec to a published version; jobs/embed.py puts them in order.

`prepare` finds all that is wrong before any work and loads neither torch nor Ray; the rest drives the cluster.
"""

import datetime
import json
import math
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa

from pipeline import identity, schema
from pipeline.config import ResourceSpec, RunSpec
from pipeline.encoder.chunking import check_room
from pipeline.encoder.tokenizer import framing_tokens
from pipeline.errors import InputError, RunError, SourceChanged, StorageError, StorageUnavailable, one_line
from pipeline.execution.pools import Pools
from pipeline.execution.slicing import evened
from pipeline.model.folder import EncoderSpec, Int8Graph, encoder_spec
from pipeline.progress import Progress, duration, per_second, say, size
from pipeline.quantize import SCALAR
from pipeline.runs import plan as planning
from pipeline.runs.estimate import TOKENS_PER_S
from pipeline.runs.plan import Plan, Task
from pipeline.sources import filter
from pipeline.sources.listing import Recorded, find_sources
from pipeline.sources.reader import SLICE_BYTES, first_spans
from pipeline.sources.survey import Survey, check_folders, survey
from pipeline.storage import Folder, before_work, contains, is_shared
from pipeline.table import calibration, int8, layout, materialise, publication, record, snapshot
from pipeline.table.calibration import Calibration, Measurement
from pipeline.table.int8 import Quantised
from pipeline.table.part import part_schema, vector_bytes
from pipeline.table.record import Effort
from pipeline.table.snapshot import Snapshot
from pipeline.work import SourceFile

if TYPE_CHECKING:  # Ray and torch load only when there is work.
    from pipeline.execution.ray.flow import Cluster
    from pipeline.stages.encode import Settings

VECTOR_BYTES = 64 * 2**20
"""Of one slice, as the table has them and as they travel."""
FLOAT_BYTES = 256 * 2**20
"""The same as float32: an encoder holds them so, however few bits the table keeps."""
SLICES_PER_ENCODER = 2
"""A small corpus is cut into at least so many slices per encoder: while one is written the next is encoded. More of them
would waste more: rows are sorted by length within their slice, and encoders begin with shapes new to them."""
NOTICEABLE = 0.005
"""Share of clipped numbers that a summary mentions: ranges of 1,024 texts leave 0.2 % of such texts' numbers outside."""
NOT_EXCLUSIVE = (
    "this object store ignores create-only writes: two runs that publish at once are told apart unless a write takes "
    f"longer than {publication.SETTLE_S:g} s, so let the scheduler see to one run at a time"
)
MIN_SLICE_ROWS, MAX_CPU_SLICE_ROWS = 256, 4096
MANY_ROWS = 4000
"""Per encoder: a model's graph and the measuring of a budget take some seconds, once per node, and save a quarter of the
time of a row."""


@dataclass(frozen=True, kw_only=True)
class VectorSpec:
    """All that changes a vector of the table, as far as it is known: the ranges of int8 and uint8 are measured once."""

    encoder: EncoderSpec
    """With the table's int8 model, where it has one."""
    words: Mapping[str, Any]
    """identity.vectors_spec."""
    fingerprint: str
    """The digest of `words`; that of no unit in the table while `needs_calibration`."""
    ranges_path: str | None
    """Where in the table the calibration stands, or will stand; None for dtypes without ranges."""
    calibration: Calibration | None
    """None for dtypes without ranges, too."""
    needs_ranges: bool
    """The dtype has ranges, and the table has none yet."""
    int8_path: str | None
    """Where in the table its int8 model is described, or will be; None for other precisions."""
    int8: Quantised | None
    needs_int8: bool
    """The precision is int8, and the table has no model of it yet."""

    @property
    def needs_calibration(self) -> bool:
        return self.needs_ranges or self.needs_int8


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A run that passed every check, and what it has to do."""

    spec: RunSpec
    encoder: EncoderSpec
    table: Folder
    parent: Snapshot
    files: tuple[SourceFile, ...]
    survey: Survey
    part_schema: pa.Schema
    vectors: VectorSpec
    output_spec: Mapping[str, Any]
    output: str
    plan: Plan
    plan_s: float
    exclusive: bool
    """The table's store lets only one of two publishers win."""
    renews: bool = False
    """Another model, or other settings of it, takes the place of the parent's."""
    calibrate_s: float = 0.0

    @property
    def rows_to_do(self) -> int | None:
        """Of all tasks; None where only reading can tell."""
        rows = [task.rows_to_do for task in self.plan.tasks]
        return None if None in rows else sum(count for count in rows if count is not None)


def prepare(spec: RunSpec, *, writes: bool, retry_failed: bool = False, new_model: bool = False) -> Prepared:
    """Check everything and plan. With `writes` a commit that was not materialised is finished first; with `retry_failed`
    the dead letters of the current version are planned too. A `new_model` may take the place of the table's.

    Raises InputError for anything wrong with configuration, model, sources or table.
    """
    started = time.perf_counter()
    with before_work():
        encoder = encoder_spec(spec.model)
        resources_for(spec)
        check_paths(spec)
        table = Folder(spec.table.path, spec.table.storage_options)
        parent = materialise.finish(table) if writes else snapshot.current(table)
        _check_not_held(table, parent)
        found = find_sources(spec.source, _recorded(parent))
        files = found.files
        forms = {file.format for file in files}
        _check_apart(spec, table, files)
        before = snapshot.hex_to_schema(parent.source_schema) if parent.source_schema else pa.schema([])
        known = dict(zip(before.names, before.types, strict=True))
        surveyed = survey(files, spec.source, spec.table.partition_by, known)
        surveyed = replace(surveyed, hidden=found.hidden, excluded=found.excluded)
        _check_chunks(spec, encoder)
        described = _describe_vectors(spec, encoder, table, parent)
        _check_partitions(spec, surveyed.schema)
        renews = new_model and bool(parent.version) and parent.fingerprint != described.fingerprint
        if renews:
            parent = replace(parent, probes=())
            described = _describe_vectors(spec, encoder, table, snapshot.empty())
        else:
            _check_vectors(spec, parent, described)
        surveyed = replace(surveyed, schema=_fixed_schema(spec, surveyed.schema, parent, forms))
        check_folders(surveyed.folders, surveyed.schema)
        if spec.source.where is not None:
            filter.check(spec.source.where, surveyed.schema)
        surveyed = _limited(spec, surveyed)
        output_spec = planning.output_spec(spec, surveyed.schema, forms)
        output = identity.digest(output_spec)
        if described.needs_calibration:
            described = _describe_vectors(spec, encoder, table, snapshot.empty() if renews else parent, output)
        plan = _plan(table, parent, surveyed, output, described.fingerprint, writes=writes, retry_failed=retry_failed)
        exclusive = _check_writable(table) if writes and not plan.changes_nothing else True
    return Prepared(
        spec=spec,
        encoder=described.encoder,
        table=table,
        parent=parent,
        files=files,
        survey=surveyed,
        part_schema=_part_schema(spec, surveyed.schema, encoder.dim, described.calibration),
        vectors=described,
        output_spec=output_spec,
        output=output,
        plan=plan,
        plan_s=time.perf_counter() - started,
        exclusive=exclusive,
        renews=renews,
    )


def _recorded(parent: Snapshot) -> Recorded:
    """What the version says of the files it was built from."""
    if not parent.version:
        return Recorded()
    versions: dict[str, set[str]] = {}
    for row in parent.sources.select(["path", "version"]).to_pylist():
        versions.setdefault(row["path"], set()).add(row["version"])
    return Recorded(versions=versions, as_of=datetime.datetime.fromisoformat(parent.time).timestamp())


def _plan(
    table: Folder,
    parent: Snapshot,
    surveyed: Survey,
    output: str,
    fingerprint: str,
    *,
    writes: bool,
    retry_failed: bool = False,
) -> Plan:
    planned = planning.unit_ids(surveyed.spans, output, fingerprint)
    retried = planning.retries(planned, parent, publication.dead_letters(table, parent)) if retry_failed else {}
    wanted = (planned.keys() - parent.live_units()) | {unit.unit_id for unit in retried.values()}
    return planning.make_plan(planned, parent, record.read_all(table, wanted, writes=writes), retried)


def _describe_vectors(
    spec: RunSpec, encoder: EncoderSpec, table: Folder, parent: Snapshot, output: str | None = None
) -> VectorSpec:
    """With the calibration that the table's version names; that of a table without a version stands, if an earlier run of
    this very configuration measured one, under a key that only `output` completes."""
    encoder = replace(encoder, int8=None)  # its own file is known by all but itself
    int8_path, quantised = _describe_int8(spec, encoder, table, parent, output)
    if quantised is not None:
        encoder = replace(encoder, int8=Int8Graph(digest=quantised.digest))
    needs_int8 = encoder.precision == "int8" and quantised is None
    words = identity.vectors_spec(encoder.identity(), spec.table.dtype, spec.chunk_identity)
    path: str | None = None
    found: Calibration | None = None
    if spec.table.dtype in SCALAR and not needs_int8:
        named = parent.embeddings[0]["calibration"] if parent.version else None
        if named is not None:
            path, found = named["path"], calibration.stored(table, parent.embeddings[0])
        elif output is not None:
            path = layout.calibration(_calibration_key(spec, words, output))
            found = calibration.load(table, path, encoder.dim)
    if found is not None:
        words = identity.vectors_spec(encoder.identity(), spec.table.dtype, spec.chunk_identity, found.digest)
    return VectorSpec(
        encoder=encoder,
        words=words,
        fingerprint=identity.digest(words),
        ranges_path=path,
        calibration=found,
        needs_ranges=spec.table.dtype in SCALAR and found is None,
        int8_path=int8_path,
        int8=quantised,
        needs_int8=needs_int8,
    )


def _describe_int8(
    spec: RunSpec, encoder: EncoderSpec, table: Folder, parent: Snapshot, output: str | None
) -> tuple[str | None, Quantised | None]:
    """(where it is described, what stands there): as with the ranges, that of the table's version or of an earlier run."""
    if encoder.precision != "int8":
        return None, None
    named = parent.embeddings[0].get("int8") if parent.version else None
    if named is not None:
        return named["path"], int8.stored(table, parent.embeddings[0])
    if output is None:
        return None, None
    words = identity.vectors_spec(encoder.identity(), spec.table.dtype, spec.chunk_identity)
    path = layout.int8_model(_calibration_key(spec, words, output))
    return path, int8.load(table, path)


def _calibration_key(spec: RunSpec, words: Mapping[str, Any], output: str) -> str:
    """Of the ranges of a table that has no version yet: what makes a vector, what makes a row, and the source as the user
    describes it. The files found there are left out, so that a run that died goes on though one more has arrived."""
    source = spec.source
    described = {
        "path": source.patterns,
        "format": source.format,
        "dataset": asdict(source.dataset),
        "limit": source.limit,
    }
    return identity.digest({"vectors": words, "output": output, "source": described})


def check_shared(spec: RunSpec) -> None:
    """Raises InputError for what no other process can see: a run works in several."""
    for path in (*spec.source.patterns, spec.model.path, spec.table.path):
        if "://" in path and not is_shared(path):
            raise InputError(f"{path!r} is in the memory of this process alone: give a folder or a store")


def resources_for(spec: RunSpec) -> ResourceSpec:
    """The resources with no GPU where none would be used. Raises InputError where one is asked for all the same."""
    resources, model = spec.resources, spec.model
    if model.precision != "int8" and model.engine != "openvino":
        return resources
    if resources.gpus_per_encoder not in ("auto", 0):
        wanted = "precision 'int8'" if model.precision == "int8" else "engine 'openvino'"
        raise InputError(
            f"resources.gpus_per_encoder is {resources.gpus_per_encoder:g}, but model.{wanted} runs on CPUs: set "
            "resources.gpus_per_encoder to 0, or leave one of them out"
        )
    return replace(resources, gpus_per_encoder=0)


def check_paths(spec: RunSpec) -> None:
    """Raises InputError for a table among its sources."""
    for pattern in spec.source.patterns:
        if contains(pattern, spec.table.path) or contains(spec.table.path, pattern):
            raise InputError(
                f"table.path {spec.table.path!r} and source.path {pattern!r} lie in one another: the run would read what it "
                "writes; give the table a folder of its own"
            )


def _limited(spec: RunSpec, surveyed: Survey) -> Survey:
    """The first `source.limit` rows of what was surveyed."""
    if spec.source.limit is None:
        return surveyed
    spans = first_spans(surveyed.spans, surveyed.schema, spec.source, spec.carried, spec.limits)
    rows = sum(span.rows or 0 for group in spans for span in group)
    return replace(surveyed, spans=spans, rows_known=rows, rows_estimate=rows)


def _check_chunks(spec: RunSpec, encoder: EncoderSpec) -> None:
    if spec.chunk is not None and spec.chunk.max_tokens > (encoder.max_seq_length or math.inf):
        raise InputError(
            f"chunk.max_tokens is {spec.chunk.max_tokens}, but the model reads {encoder.max_seq_length} tokens at most: the "
            f"rest of each chunk would be lost; give at most {encoder.max_seq_length}"
        )
    if spec.chunk is not None and (framing := framing_tokens(encoder)) is not None:
        check_room(spec.chunk, framing)


def _check_apart(spec: RunSpec, table: Folder, files: Sequence[SourceFile]) -> None:
    """A data set's name doesn't say where its files are: the files do."""
    inside = next((file.path for file in files if file.path.startswith(f"{table.url}/")), None)
    if inside is not None:
        raise InputError(
            f"table.path {spec.table.path!r} holds the source file {inside!r}: the run would read what it writes; give the "
            "table a folder of its own"
        )


def _check_writable(table: Folder) -> bool:
    """Whether create-only writes hold on the table's store; raises InputError if nothing can be written there."""
    try:
        probe = f"{layout.STAGING}probe-{uuid.uuid4().hex[:12]}"
        table.write(probe, b"")
        table.delete([probe])
        return table.creates_exclusively()
    except StorageUnavailable:
        raise
    except StorageError as error:
        raise InputError(f"table.path {table.url!r} can't be written: {error}") from None


def _fixed_schema(spec: RunSpec, surveyed: pa.Schema, parent: Snapshot, forms: Collection[str]) -> pa.Schema:
    """The types that the table was built with, while the roles of the columns are the same: types that are guessed from
    samples must not change with every new file. A value that doesn't fit them is a dead letter."""
    if not parent.source_schema:
        return surveyed
    fixed = snapshot.hex_to_schema(parent.source_schema)
    if planning.shape(planning.output_spec(spec, fixed, forms)) != planning.shape(parent.output_spec):
        return surveyed
    told = set(fixed.names) - set(spec.source.schema)
    return pa.schema([fixed.field(name) if name in told else surveyed.field(name) for name in surveyed.names])


def _check_not_held(table: Folder, parent: Snapshot) -> None:
    if snapshot.is_held(table, parent):
        raise InputError(
            f"table {table.url} was rolled back to the rows of version {parent.rows_of} and is held so: when what was wrong "
            "is mended, let runs go on with `python -m jobs.status CONFIG.yaml --release`"
        )


def _check_partitions(spec: RunSpec, source: pa.Schema) -> None:
    for name in spec.table.partition_by:
        kind = source.field(name).type
        allowed = (
            pa.types.is_string,
            pa.types.is_large_string,
            pa.types.is_integer,
            pa.types.is_boolean,
            pa.types.is_date,
        )
        if not any(is_kind(kind) for is_kind in allowed):
            raise InputError(
                f"table.partition_by names {name!r}, which is {kind}: a folder's name can hold a string, an integer, a "
                "boolean or a date"
            )


def _check_vectors(spec: RunSpec, parent: Snapshot, vectors: VectorSpec) -> None:
    """Raises InputError if the version holds vectors of another model, of other settings or of other ranges."""
    if parent.version and parent.fingerprint != vectors.fingerprint:
        before, now = dict(parent.fingerprint_of), json.loads(json.dumps(vectors.words))
        changes = "; ".join(_differences(before, now))
        raise InputError(
            f"table {spec.table.path!r} was built with another model or other model settings ({changes}): vectors of two "
            "models don't compare; use the table's settings or another table.path, or let `python -m jobs.reindex` build the "
            "table anew with --new-model"
        )


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """`chunk.max_tokens was 256, is 128` for each setting that differs."""
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{above}{name}.")
        elif old != new:
            yield f"{above}{name} was {_shown(old)}, is {_shown(new)}"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}.."


def _part_schema(spec: RunSpec, source: pa.Schema, dim: int, ranges: Calibration | None) -> pa.Schema:
    kept = pa.schema([source.field(name) for name in spec.source.keep if name not in spec.table.partition_by])
    column, dtype = spec.table.embedding_column, spec.table.dtype
    return part_schema(kept, spec.table.keep_text, column, dim, dtype, chunks=spec.rows_are_chunks, calibration=ranges)


class Sampler(Protocol):
    """Works on the texts of a sample, wherever it runs."""

    def measure(self, tasks: Sequence[Task], settings: "Settings") -> Measurement:
        """The ranges of the vectors of some texts of each task."""
        ...

    def read(self, tasks: Sequence[Task], settings: "Settings") -> pa.Table:
        """The tokens of these texts, in a column schema.TOKENS."""
        ...

    def quantise(self, tokens: pa.Table, settings: "Settings") -> None:
        """Make the table's int8 model."""
        ...


def calibrate(prepared: Prepared, cluster: "Cluster") -> Prepared:
    """The run with what int8 needs, measured on the cluster where the table has none yet: the model of an int8 precision, the
    ranges of an int8 or uint8 table.

    Raises RunError when the sample gives too few vectors, or int8 ones that are too far from float32; SourceChanged when a
    file isn't the planned one.
    """
    if not prepared.vectors.needs_calibration:
        return prepared
    from pipeline.execution.ray import flow

    pools = cluster.pools()
    cluster.check_reachable(prepared.table)
    return calibrate_with(prepared, pools, flow.ClusterSampler(pools))


def calibrate_with(prepared: Prepared, pools: Pools, sampler: Sampler) -> Prepared:
    """The same, by any sampler. Only then are units known by their ids."""
    started = time.perf_counter()
    if prepared.vectors.needs_int8:
        prepared = _quantise(prepared, pools, sampler)
        say(str(prepared.vectors.int8))
    if prepared.vectors.needs_ranges:
        prepared = _measure_ranges(prepared, pools, sampler)
    return replace(prepared, calibrate_s=time.perf_counter() - started)


def _quantise(prepared: Prepared, pools: Pools, sampler: Sampler) -> Prepared:
    sample = calibration.sample(prepared.survey.spans)
    settings = settings_for(prepared, pools)
    found = pa.table({schema.TOKENS: pa.array([], pa.large_list(pa.int32()))})
    for units in sample.rounds():
        tasks = [Task(unit=unit, done=()) for unit in units]
        found = pa.concat_tables([found, sampler.read(tasks, _sampling(settings, prepared.spec, sample))])
        if found.num_rows >= calibration.STEADY:
            break
    sampler.quantise(found, settings)
    return _described_again(prepared)


def _measure_ranges(prepared: Prepared, pools: Pools, sampler: Sampler) -> Prepared:
    sample = calibration.sample(prepared.survey.spans)
    settings, spec = settings_for(prepared, pools), prepared.spec
    found = calibration.NOTHING
    for units in sample.rounds():
        found += sampler.measure([Task(unit=unit, done=()) for unit in units], _sampling(settings, spec, sample))
        if len(found.texts) >= calibration.STEADY:
            break
    else:
        more, units = sample.again(found)
        if units:
            found += sampler.measure([Task(unit=unit, done=()) for unit in units], _sampling(settings, spec, more))
    assert prepared.vectors.ranges_path is not None
    calibration.create(prepared.table, prepared.vectors.ranges_path, found.calibration)
    return _described_again(prepared)


def _described_again(prepared: Prepared) -> Prepared:
    """With what now stands in meta/calibration/, and the units' ids that follow from it."""
    survey, parent = prepared.survey, snapshot.empty() if prepared.renews else prepared.parent
    vectors = _describe_vectors(prepared.spec, prepared.encoder, prepared.table, parent, prepared.output)
    return replace(
        prepared,
        vectors=vectors,
        encoder=vectors.encoder,
        part_schema=_part_schema(prepared.spec, survey.schema, prepared.encoder.dim, vectors.calibration),
        plan=_plan(prepared.table, prepared.parent, survey, prepared.output, vectors.fingerprint, writes=True),
    )


def _sampling(settings: "Settings", spec: RunSpec, sample: calibration.Sample) -> "Settings":
    """Of a read of the sample. Documents that have one vector cost as much as their chunks: a quarter of them must do. Of
    long ones that become many rows, eight times the text of the chunks that are wanted is chunked."""
    texts = sample.texts if spec.chunk is None or spec.rows_are_chunks else -(-sample.texts // 4)
    most = min(SLICE_BYTES, 8 * _slice_bytes(spec, texts)) if spec.rows_are_chunks else SLICE_BYTES
    return replace(settings, slice_rows=texts, slice_bytes=most, sample_depth=sample.depth)


def settings_for(prepared: Prepared, pools: Pools) -> "Settings":
    """What the stages need to know, for pools of these sizes."""
    from pipeline.stages.encode import Settings

    spec, many = prepared.spec, _has_many_rows(prepared, pools)
    slice_rows = _slice_rows(prepared, pools)
    return Settings(
        source=spec.source,
        chunk=spec.chunk,
        carried=spec.carried,
        table=spec.table,
        limits=spec.limits,
        encoder=replace(prepared.encoder, engine="auto") if many and spec.model.engine == "auto" else prepared.encoder,
        measure_budget=many and not prepared.encoder.is_static,
        int8_path=prepared.vectors.int8_path,
        source_schema=prepared.survey.schema,
        part_schema=prepared.part_schema,
        calibration=prepared.vectors.calibration,
        fingerprint=prepared.vectors.fingerprint,
        probes=prepared.parent.probes,
        slice_rows=slice_rows,
        slice_bytes=_slice_bytes(spec, slice_rows),
        tokenizer_threads=max(1, int(pools.cpus_per_task)),
        encoder_threads=pools.cpus_per_encoder,
        device=pools.device,
    )


def _has_many_rows(prepared: Prepared, pools: Pools) -> bool:
    """In the run or in its table: whether a start of some seconds more is worth a faster encoder."""
    rows = max(sum(_unit_rows(prepared)), prepared.parent.counts.rows)  # what one run made on a node serves the next
    return rows >= MANY_ROWS * pools.encoders


def _slice_rows(prepared: Prepared, pools: Pools) -> int:
    """At most `limits.unit_rows`, 64 MiB of vectors, and an even share of a small corpus."""
    stored = stored_vector_bytes(prepared)
    room = min(VECTOR_BYTES // stored, FLOAT_BYTES // (4 * prepared.encoder.dim))
    most = min(prepared.spec.limits.unit_rows, max(1, room))
    if pools.device == "cpu":
        most = min(most, MAX_CPU_SLICE_ROWS)
    units = _unit_rows(prepared)
    share = -(-sum(units) // (pools.encoders * SLICES_PER_ENCODER))
    rows = min(most, max(MIN_SLICE_ROWS, share))
    # Of documents that are chunked nobody knows yet how many rows they become.
    return rows if prepared.spec.chunk is not None else evened(rows, units, pools.encoders)


def _unit_rows(prepared: Prepared) -> list[int]:
    """Of each task, what is left to do; all as one where only reading can tell."""
    rows = [task.rows_to_do for task in prepared.plan.tasks]
    return [prepared.survey.rows_estimate] if None in rows else [count for count in rows if count is not None]


def stored_vector_bytes(prepared: Prepared) -> int:
    """Of one vector as the table has it."""
    return vector_bytes(prepared.part_schema, prepared.spec.table.embedding_column)


def _slice_bytes(spec: RunSpec, slice_rows: int) -> int:
    """Text that becomes about `slice_rows` chunks at most: a token has a byte at least, most have four."""
    if spec.chunk is None:
        return SLICE_BYTES
    return min(SLICE_BYTES, 2 * slice_rows * (spec.chunk.max_tokens - spec.chunk.overlap_tokens))


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """What the encoding part of a run leaves behind, beside its records."""

    busy_share: float
    """Of the encoders' time between first and last slice, the share spent encoding; 0 if nothing was encoded."""
    rows: int
    """Source rows recorded by this run."""
    effort: Effort
    """Of this run's slices."""
    seconds: float
    """From the encoders' first slice to the last record."""
    start_s: float
    """Before that: starting Ray, importing and loading the model in the workers."""
    pools: str
    engines: str


NOTHING_ENCODED = Encoded(busy_share=0.0, rows=0, effort=Effort(), seconds=0.0, start_s=0.0, pools="", engines="")


def encode(prepared: Prepared, cluster: "Cluster", progress: Progress) -> Encoded:
    """Run what is left to do; everything finished is recorded in staging, whatever happens.

    Raises RunError when an encoder refuses, or too many rows failed; SourceChanged when a file isn't the planned one.
    """
    from pipeline.execution.ray import flow

    tasks = prepared.plan.tasks
    if not tasks:
        return NOTHING_ENCODED
    started = time.time()
    filtered = prepared.spec.source.where is not None or prepared.spec.source.on_null == "skip"
    pools = cluster.pools()
    settings = settings_for(prepared, pools)
    cluster.check_reachable(prepared.table)
    reports = []
    rows, effort = 0, Effort()
    for report in flow.run_units(tasks, settings, pools, progress.encoded):
        reports.append(report)
        if report.refused is None:
            progress.recorded(report.num_rows, report.failed, report.last)
            # What share of the rows `where` lets through is known only in the end.
            check_failed(prepared, progress.failed, prepared.survey.rows_known if not filtered else None)
            rows, effort = rows + report.num_rows, effort + report.effort
            _check_clipped(prepared, effort, done=rows / max(1, rows, prepared.survey.rows_estimate))
        elif not report.source_changed:
            raise RunError(report.refused)
    changed = [report.refused for report in reports if report.source_changed]
    if changed:
        raise SourceChanged(str(changed[0]))
    busy = flow.busy_time(reports)
    return Encoded(
        busy_share=busy.share,
        rows=rows,
        effort=effort,
        seconds=time.time() - busy.first_start,
        start_s=busy.first_start - started,
        pools=pools.describe(),
        engines=", ".join(sorted({report.engine for report in reports} - {""})),
    )


def check_failed(prepared: Prepared, failed: int, total: int | None) -> None:
    """`limits.max_failed_rows` as a count, or as a share where the total is known."""
    limit = prepared.spec.limits.max_failed_rows
    allowed = limit if limit >= 1 else (limit * total if total is not None else None)
    if allowed is not None and failed > allowed:
        share = f" of {total:,}" if total is not None else ""
        raise RunError(
            f"{failed:,} rows{share} failed, limits.max_failed_rows allows {limit:g}: nothing was published, finished work is "
            f"kept; {_reasons(prepared.table)}"
        )


def _reasons(table: Folder) -> str:
    """The first three reasons of rows that failed, and the newest file of them in staging."""
    staged = [info for info in table.list(layout.STAGED_PARTS) if info.path.endswith(".dead")]
    staged += [info for info in table.list(layout.PUBLICATIONS) if "letters" in info.path]
    newest = max(staged, key=lambda info: (info.modified, info.path), default=None)
    content = table.read(newest.path) if newest is not None else None
    if newest is None or content is None:
        return "no reason was staged"
    rows = snapshot.read_parquet(content).slice(0, 3).to_pylist()
    told = "; ".join(f"{row['path']!r}: {one_line(row['error'], 200)}" for row in rows)
    return f"the first reasons are {told}; all of them stand in files such as {table.url}/{newest.path}"


def _check_clipped(prepared: Prepared, effort: Effort, done: float = 1.0) -> None:
    """Raises RunError where the first version of a table would have too many numbers outside its ranges; `done` is the
    share of it that `effort` stands for, so that it is told as soon as it is sure."""
    if (prepared.parent.version and not prepared.renews) or effort.coded < calibration.FEWEST_NUMBERS:
        return
    if effort.clipped * done > calibration.CLIPPED * effort.coded:
        raise RunError(
            f"{effort.clipped / effort.coded:.1%} of {effort.coded:,} numbers lie outside the value ranges in "
            f"{prepared.table.url}/{prepared.vectors.ranges_path} and would be clipped, up to {calibration.CLIPPED:.0%} are "
            "allowed: nothing was published. If the source was another when they were measured, delete that file and run "
            "again; else set table.dtype to float16 or float32"
        )


def timings(prepared: Prepared, encoded: Encoded) -> dict[str, float]:
    """Seconds by stage so far; read, tokenize, encode and write are sums over the workers."""
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
    """What forecasts go by: of this run alone, since earlier ones may have encoded much of its version."""
    tokens = encoded.effort.tokens
    return {TOKENS_PER_S: tokens / encoded.seconds} if tokens and encoded.seconds else {}


def publish(
    prepared: Prepared,
    cluster: "Cluster",
    run: str,
    timings: Mapping[str, float],
    check: Callable[[snapshot.Tally], None] = lambda tally: None,
) -> tuple[Snapshot, dict[str, float]]:
    """Commit the version and bring the folder into its state; returns it with the seconds that both took. Where all that was
    to do was to try dead letters again, and all failed again, there is nothing to commit: the parent is returned.

    Raises RunError when slices are missing, too many rows failed or the gate refuses, what `check` raises of all rows of the
    new version, and CommitConflict when overtaken.
    """
    from pipeline.execution.ray.flow import ClusterWorkers

    started = time.perf_counter()
    table = prepared.table
    units = [*prepared.plan.added, *prepared.plan.retried.values()]
    plan = planning.with_records(prepared.plan, record.read_all(table, [unit.unit_id for unit in units]))
    publication.check_current(table, prepared.parent, prepared.vectors.fingerprint)
    if plan.tasks:
        raise RunError(f"{len(plan.tasks)} units have no complete record after the run: start again to finish them")
    retried = _recovered(prepared.parent, plan)
    done = [(unit, plan.records[unit.unit_id]) for unit in plan.added]
    work = publication.Work(done=done, kept=plan.kept, retried=retried)
    # What gave nothing would be taken for done the next time.
    record.forget(table, [again.unit_id for unit, again in plan.retried.items() if unit not in retried])
    if not plan.added and not plan.dropped and not retried:
        return prepared.parent, {}
    tally = work.tally(prepared.parent)
    failed = tally.failed + _lost_rows(prepared.parent, plan)
    check_failed(prepared, failed, tally.documents + tally.failed)
    check(replace(tally, failed=failed))
    workers = ClusterWorkers(
        cluster, table, lambda: settings_for(prepared, cluster.pools()), prepared.spec.table.embedding_column
    )
    _check_clipped(prepared, sum((item.effort for item in work.records), Effort()))
    version = publication.publish(table, prepared.parent, work, description(prepared, run, timings), workers)
    committed = time.perf_counter()
    materialise.materialise(table, version)
    return version, {"commit": committed - started, "materialise": time.perf_counter() - committed}


def _recovered(parent: Snapshot, plan: Plan) -> dict[str, Sequence[record.Record]]:
    """The records of those units of whose dead letters some have a vector now, or are left out."""
    if not plan.retried:
        return {}
    before = parent.tallies()
    found = {unit: (again, plan.records[again.unit_id]) for unit, again in plan.retried.items()}
    return {
        unit: items
        for unit, (again, items) in found.items()
        if publication.mends(before[unit], publication.tally_of(items), placed=again.is_placed)
    }


def _lost_rows(parent: Snapshot, plan: Plan) -> int:
    """Rows that files had in the table and no longer give because they broke: one dead letter stands for many of them."""
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


def description(prepared: Prepared, run: str, timings: Mapping[str, float]) -> publication.Description:
    from pipeline.encoder import probes

    spec = prepared.spec
    vectors = prepared.vectors
    stored = prepared.table.read(layout.probe_vectors(vectors.fingerprint))
    ranges = vectors.calibration and {"path": vectors.ranges_path, "digest": vectors.calibration.digest}
    quantised = vectors.int8 and {"int8": {"path": vectors.int8_path, "digest": vectors.int8.digest}}
    return publication.Description(
        run=run,
        time=snapshot.utc_now(),
        fingerprint=vectors.fingerprint,
        fingerprint_of=vectors.words,
        output=prepared.output,
        output_spec=prepared.output_spec,
        embedding=spec.table.embedding_column,
        embeddings=(
            {
                "column": spec.table.embedding_column,
                "fingerprint": vectors.fingerprint,
                "dim": prepared.encoder.dim,
                "dtype": spec.table.dtype,
                "calibration": ranges,
                "similarity": prepared.encoder.similarity,
                **(quantised or {}),
            },
        ),
        part_schema=prepared.part_schema,
        source_schema=prepared.survey.schema,
        probes=prepared.parent.probes or (probes.from_json(stored) if stored else ()),
        timings=timings,
    )


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a run did, for a person (`str`) and for machines (`to_dict`)."""

    table: str
    version: int
    published: bool
    counts: snapshot.Counts
    padding_share: float
    busy_share: float
    """Of the encoders' time from the first to the last slice of this run, the share that they encoded."""
    docs_per_s: float
    tokens_per_s: float
    seconds: Mapping[str, float]
    output_bytes: int
    retried: int
    """Dead letters that were tried again."""
    recovered: int
    """Those of them that have a vector now."""
    notes: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        return 3 if self.published and self.counts.failed_new else 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"exit_code": self.exit_code}

    def __str__(self) -> str:
        counts = self.counts
        if not self.published:
            done = "nothing changed" if self.retried else "nothing to do"
            lines = [f"{done}: {self.table} is at version {self.version} with {counts.rows:,} rows", *self._retried()]
        else:
            seconds = ", ".join(f"{name} {value:.1f}" for name, value in self.seconds.items())
            lines = [
                f"published version {self.version} of {self.table}",
                f"  rows       {counts.rows:,}: {counts.new:,} new, {counts.changed:,} changed, {counts.deleted:,} deleted, "
                f"{counts.unchanged:,} unchanged ({counts.reused:,} in reused units)",
                *self._documents(),
                f"  failed     {counts.failed:,} without a vector ({counts.failed_new:,} of them new)"
                + (f"; see {self.table}/{layout.dead_letters(self.version)}" if counts.failed else ""),
                *self._retried(),
                f"  texts      {counts.encoded:,} encoded, {counts.tokens:,} tokens, {counts.truncated:,} texts truncated",
                f"  speed      {per_second(self.docs_per_s)} docs/s, {self.tokens_per_s:,.0f} tokens/s, padding "
                f"{self.padding_share:.1%}, encoders busy {self.busy_share:.0%}",
                f"  seconds    {seconds}",
                f"  output     {size(self.output_bytes)} in {self.table}/{layout.DATA}",
            ]
        return "\n".join(lines + [f"  note       {note}" for note in self.notes])

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """How IPython and notebooks show it."""
        printer.text(str(self))

    def _retried(self) -> list[str]:
        if not self.retried:
            return []
        return [f"  retried    {self.retried:,} that had failed: {self.recovered:,} have a vector now"]

    def _documents(self) -> list[str]:
        """What the rows don't say by themselves."""
        counts = self.counts
        chunked = [f"  documents  {counts.documents:,} in these rows"] if counts.documents != counts.rows else []
        skipped = [f"  left out   {counts.skipped:,} by source.where or source.on_null"] if counts.skipped else []
        return chunked + skipped


def summarise(prepared: Prepared, version: Snapshot, encoded: Encoded, timings: Mapping[str, float]) -> Summary:
    """The summary of a run that published `version`, or of one that had nothing to do (`version` is the parent)."""
    effort = encoded.effort
    notes = [*prepared.encoder.notes, *prepared.survey.left_out]
    if encoded.pools:
        notes.append(f"ran {encoded.pools}, on {encoded.engines}" if encoded.engines else f"ran {encoded.pools}")
    if prepared.vectors.int8 is not None:
        notes.append(str(prepared.vectors.int8))
    ranges = prepared.vectors.calibration
    if ranges is not None and ranges.rows < calibration.STEADY:
        notes.append(
            f"the value ranges of {prepared.spec.table.dtype} were measured on {ranges.rows} texts only: other texts' values "
            "may be clipped; a table that begins with more texts keeps more of them"
        )
    if effort.clipped > NOTICEABLE * effort.coded:
        notes.append(
            f"{effort.clipped / effort.coded:.1%} of the {prepared.spec.table.dtype} numbers of this run lie outside the "
            "table's value ranges and were clipped: its first texts were not like these; build the table anew, in another "
            "table.path, to have ranges of both"
        )
    if not prepared.exclusive:
        notes.append(NOT_EXCLUSIVE)
    return Summary(
        table=prepared.table.url,
        version=version.version,
        published=version.version != prepared.parent.version,
        counts=version.counts,
        padding_share=1 - effort.tokens_encoded / effort.tokens_padded if effort.tokens_padded else 0.0,
        busy_share=encoded.busy_share,
        docs_per_s=encoded.rows / encoded.seconds if encoded.seconds else 0.0,
        tokens_per_s=encoded.effort.tokens / encoded.seconds if encoded.seconds else 0.0,
        seconds=timings,
        output_bytes=sum(part.size for part in version.parts),
        retried=prepared.plan.rows_to_retry,
        recovered=_recovered_rows(prepared, version),
        notes=tuple(notes),
    )


def _recovered_rows(prepared: Prepared, version: Snapshot) -> int:
    """Of the rows that were tried again, those that the version holds. The lists are long: most runs need not look."""
    if not prepared.plan.retried:
        return 0
    before, now = prepared.parent.tallies(), version.tallies()
    return sum(now[unit].documents - before[unit].documents for unit in prepared.plan.retried)


def nothing_to_do(prepared: Prepared) -> Summary:
    """The summary of a run whose plan changes nothing."""
    return summarise(prepared, prepared.parent, NOTHING_ENCODED, {"plan": prepared.plan_s})


@dataclass(frozen=True, kw_only=True)
class PlanSummary:
    """What the source holds and what a run would do, for a person (`str`) and for machines (`to_dict`)."""

    table: str
    version: int
    """The current one."""
    files: int
    bytes: int
    rows: int | None
    """None where only reading can tell."""
    rows_estimate: int
    units: int
    units_to_encode: int
    units_recorded: int
    """Encoded by an earlier run that didn't publish."""
    units_reused: int
    units_dropped: int
    rows_to_retry: int
    """Dead letters that are tried again."""
    dim: int
    fingerprint: str | None
    """None before the table's value ranges are measured."""
    plan_s: float
    changes_pending: bool
    left_out: tuple[str, ...] = ()
    """What is to be said of source files that were left out."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        rows = f"{self.rows:,}" if self.rows is not None else f"about {self.rows_estimate:,}"
        return "\n".join(
            [
                f"plan for {self.table} (now at version {self.version})",
                f"  source     {self.files:,} files, {size(self.bytes)}, {rows} rows",
                *(f"  left out   {reason}" for reason in self.left_out),
                f"  units      {self.units:,}: {self.units_to_encode:,} to encode, {self.units_recorded:,} recorded by an "
                f"earlier run, {self.units_reused:,} reused, {self.units_dropped:,} to drop",
                *([f"  failed     {self.rows_to_retry:,} rows to try again"] if self.rows_to_retry else []),
                *self._calibration(),
                f"  planned in {duration(self.plan_s)}",
                "  changes pending" if self.changes_pending else "  nothing to do",
            ]
        )

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """How IPython and notebooks show it."""
        printer.text(str(self))

    def _calibration(self) -> list[str]:
        if self.fingerprint is not None:
            return []
        return [f"  first      measure what int8 needs on about {calibration.TEXTS:,} texts, once for the table"]


def summarise_plan(prepared: Prepared) -> PlanSummary:
    plan = prepared.plan
    added = {unit.unit_id for unit in plan.added}
    tasks = [task for task in plan.tasks if task.unit.unit_id in added]
    return PlanSummary(
        table=prepared.table.url,
        version=prepared.parent.version,
        files=len(prepared.files),
        bytes=sum(file.size for file in prepared.files),
        rows=prepared.survey.rows_known,
        rows_estimate=prepared.survey.rows_estimate,
        units=len(plan.added) + len(plan.kept),
        units_to_encode=len(tasks),
        units_recorded=len(plan.added) - len(tasks),
        units_reused=len(plan.kept),
        units_dropped=len(plan.dropped),
        rows_to_retry=plan.rows_to_retry,
        dim=prepared.encoder.dim,
        fingerprint=None if prepared.vectors.needs_calibration else prepared.vectors.fingerprint,
        plan_s=round(prepared.plan_s, 3),
        changes_pending=not plan.changes_nothing,
        left_out=prepared.survey.left_out,
    )
