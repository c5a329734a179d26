"""Everything that can be wrong is found before any work, and the work is planned.

A `RunSpec` comes in. A `Prepared` goes out, or an InputError about configuration, model, sources or table. This file
loads neither torch nor Ray.
"""

import collections
import datetime
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import pyarrow as pa

from pipeline import identity, progress
from pipeline.config import ResourceSpec, RunSpec
from pipeline.encoder.chunking import check_room
from pipeline.encoder.tokenizer_backend import framing_tokens
from pipeline.errors import InputError, SourceChanged
from pipeline.model.folder import EncoderSpec, encoder_spec
from pipeline.model.tokenizer_files import check_tokenizer
from pipeline.progress import Phase
from pipeline.runs import kept_types, vector_spec
from pipeline.runs import plan as planning
from pipeline.runs.kept_types import KeptTypes
from pipeline.runs.plan import Plan
from pipeline.runs.prepared import Corpus, Prepared, Target
from pipeline.runs.vector_spec import VectorSpec
from pipeline.sources import filter
from pipeline.sources.columns import column_names
from pipeline.sources.formats import registry
from pipeline.sources.lakehouse.find import is_lakehouse
from pipeline.sources.listing import Recorded, Sources, find_sources
from pipeline.sources.reader import first_spans
from pipeline.sources.spans import Cut
from pipeline.sources.survey import Survey, check_folders, survey
from pipeline.storage import Folder, before_work, contains, is_shared
from pipeline.table import dead_letters, materialise, readiness, record, snapshot
from pipeline.table.part import part_schema
from pipeline.table.snapshot import Snapshot
from pipeline.work import SourceFile, lasting_name

Result = TypeVar("Result")


def prepare(spec: RunSpec, *, writes: bool, retry_failed: bool = False, new_model: bool = False) -> Prepared:
    """Check everything and plan.

    With `writes` a commit that was not materialised is finished first. With `retry_failed` the dead letters of the
    current version are planned, too. A `new_model` may replace the table's. Raises InputError for anything wrong with
    configuration, model, sources or table.
    """
    started = time.perf_counter()
    progress.current().begin(Phase.PLANNING)
    with before_work():
        resources_for(spec)
        check_paths(spec)
        table = Folder(spec.table.path, spec.table.storage_options)
        parent = materialise.finish(table) if writes else snapshot.current(table)
        encoder = encoder_spec(spec.model, parent.fingerprint_of.get("encoder"))
        check_tokenizer(encoder)
        _check_not_held(table, parent)
        readiness.check_own(table, parent)
        found = find_sources(spec.source, _recorded(spec, parent), spec.table.partition_by)
        files = found.files
        forms = {file.format for file in files}
        _check_apart(spec, table, files)
        kept = _surveyed(spec, found, parent, table)
        surveyed = kept.survey
        _check_chunks(spec, encoder)
        described = vector_spec.describe(spec, encoder, table, parent)
        _check_partitions(spec, surveyed.schema)
        renews = new_model and bool(parent.version) and parent.fingerprint != described.fingerprint
        if renews:
            parent = replace(parent, probes=())
            encoder = encoder_spec(spec.model)  # A table that is built anew keeps no earlier prompt.
            _check_chunks(spec, encoder)
            described = vector_spec.describe(spec, encoder, table, snapshot.empty())
        else:
            vector_spec.check_same_vectors(spec, parent, described)
        check_folders(surveyed.folders, surveyed.schema)
        if spec.source.where is not None:
            filter.check(spec.source.where, surveyed.schema)
        surveyed = _limited(spec, surveyed)
        output_spec = planning.output_spec(spec, surveyed.schema, forms, kept.words, _root(spec, files))
        output = identity.digest(output_spec)
        if described.needs_calibration:
            described = vector_spec.describe(spec, encoder, table, snapshot.empty() if renews else parent, output)
        plan = plan_of(table, parent, surveyed, output, described.fingerprint, writes=writes, retry_failed=retry_failed)
        if not plan.changes_nothing:
            readiness.check_writable(table)
        exclusive = table.creates_exclusively() if writes and not plan.changes_nothing else True
    return Prepared(
        spec=spec,
        corpus=Corpus(files=files, survey=surveyed),
        target=Target(
            table=table,
            parent=parent,
            part_schema=part_schema_of(spec, surveyed.schema, described),
            output_spec=output_spec,
            output=output,
            exclusive=exclusive,
            widened=() if renews else kept.widened,
            retyped=not renews and kept.retyped,
            renews=renews,
        ),
        vectors=described,
        plan=plan,
        plan_s=time.perf_counter() - started,
    )


def planned_again(once: Callable[[], Result]) -> Result:
    """Return what `once` gives. If a file is replaced while it runs, plan again with the new file, a single time."""
    try:
        return once()
    except SourceChanged:
        return once()


def _root(spec: RunSpec, files: Sequence[SourceFile]) -> str | None:
    """Return the folder below which files are named, if some column is made of these names."""
    columns = set(column_names(spec.source, spec.carried))
    named = any(registry.FORMS[file.format].is_document and "file" not in dict(file.partition) for file in files)
    return lasting_name(files[0].root) if "file" in columns and named else None


def _surveyed(spec: RunSpec, found: Sources, parent: Snapshot, table: Folder) -> KeptTypes:
    """Survey the files. The types that the table was built with are known before, and kept."""
    before = snapshot.hex_to_schema(parent.source_schema) if parent.source_schema else pa.schema([])
    known = dict(zip(before.names, before.types, strict=True))
    stands = kept_types.standing(spec, parent, {file.format for file in found.files})
    surveyed = survey(found.files, spec.source, spec.table.partition_by, known, stands)
    surveyed = replace(surveyed, left_out=found.left_out)
    return KeptTypes(survey=surveyed) if stands is None else kept_types.settle(spec, surveyed, parent, table)


def _recorded(spec: RunSpec, parent: Snapshot) -> Recorded:
    """Return what the version says of the files it was built from."""
    if not parent.version:
        return Recorded()
    versions: dict[str, set[str]] = {}
    for row in parent.sources.select(["path", "version"]).to_pylist():
        versions.setdefault(row["path"], set()).add(row["version"])
    as_of = datetime.datetime.fromisoformat(parent.time).timestamp()
    return Recorded(versions=versions, as_of=as_of, cuts=_cuts(parent) if is_lakehouse(spec.source) else {})


def _cuts(parent: Snapshot) -> dict[tuple[str, str], Cut]:
    """Return how the files were cut of which each span is a unit by itself."""
    rows = parent.sources.select(["path", "version", "kind", "start", "stop", "unit_id"]).to_pylist()
    members, tallies = collections.Counter(row["unit_id"] for row in rows), parent.tallies()
    shared = {(row["path"], row["version"]) for row in rows if members[row["unit_id"]] > 1}
    found: dict[tuple[str, str], Cut] = {}
    for row in sorted(rows, key=lambda row: row["start"]):
        name, groups = (row["path"], row["version"]), ((row["start"], row["stop"]),)
        before = found.get(name, Cut(groups=(), rows=0))
        found[name] = Cut(
            groups=before.groups + (groups if row["kind"] == "row_groups" else ()),
            rows=before.rows + tallies[row["unit_id"]].source_rows,
        )
    return {name: cut for name, cut in found.items() if name not in shared}


def plan_of(
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
    retried = planning.retries(planned, parent, dead_letters.read(table, parent)) if retry_failed else {}
    recorded = (planned.keys() - parent.live_units()) | {unit.unit_id for unit in retried.values()}
    return planning.make_plan(planned, parent, record.read_all(table, recorded, writes=writes), retried)


def check_shared(spec: RunSpec) -> None:
    """Raise InputError for a path that no other process can see, since a run works in several processes."""
    for path in (*spec.source.places, spec.model.path, spec.table.path):
        if "://" in path and not is_shared(path):
            raise InputError(f"{path!r} is in the memory of this process alone: give a folder or a store")


def resources_for(spec: RunSpec) -> ResourceSpec:
    """Return the resources, with no GPU where none would be used. Raises InputError where one is asked for all the
    same."""
    resources, model = spec.resources, spec.model
    if model.precision != "int8" and model.engine != "openvino":
        return resources
    if resources.gpus_per_encoder not in ("auto", 0):
        setting = "precision 'int8'" if model.precision == "int8" else "engine 'openvino'"
        raise InputError(
            f"resources.gpus_per_encoder is {resources.gpus_per_encoder:g}, but model.{setting} runs on CPUs: set "
            "resources.gpus_per_encoder to 0, or leave one of them out"
        )
    return replace(resources, gpus_per_encoder=0)


def check_paths(spec: RunSpec) -> None:
    """Raise InputError for a table among its sources."""
    for pattern in spec.source.places:
        if contains(pattern, spec.table.path) or contains(spec.table.path, pattern):
            raise InputError(
                f"table.path {spec.table.path!r} and source.path {pattern!r} lie in one another: the run would read what it "
                "writes; give the table a folder of its own"
            )


def _limited(spec: RunSpec, surveyed: Survey) -> Survey:
    """Return the survey of the first `source.limit` rows."""
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
    """Raise InputError for a source file in the table's folder. A data set's name doesn't say where its files are,
    but the files do."""
    inside = next((file.path for file in files if file.path.startswith(f"{table.url}/")), None)
    if inside is not None:
        raise InputError(
            f"table.path {spec.table.path!r} holds the source file {inside!r}: the run would read what it writes; give the "
            "table a folder of its own"
        )


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


def part_schema_of(spec: RunSpec, source: pa.Schema, vectors: VectorSpec) -> pa.Schema:
    """Return the columns of a part, lineage included."""
    kept = pa.schema([source.field(name) for name in spec.source.keep if name not in spec.table.partition_by])
    return part_schema(
        kept,
        spec.table.keep_text,
        spec.table.embedding_column,
        vectors.encoder.dim,
        spec.table.dtype,
        chunks=spec.rows_are_chunks,
        pages=spec.rows_have_pages,
        calibration=vectors.calibration,
    )
