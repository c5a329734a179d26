"""A prepared run passed every check: it has its corpus, its table, its vectors and its plan.

What runs/prepare.py found comes in. A `Prepared` goes out, which says what workers have to know for pools of a size.
"""

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.config import ResourceSpec, RunSpec
from pipeline.encoder.engines.numpy_bert import is_plain
from pipeline.encoder.settings import Fixed
from pipeline.execution import costs
from pipeline.execution.arrangement import Arrangement
from pipeline.execution.pools import Load, Pools
from pipeline.execution.slicing import evened
from pipeline.machine.quotas import cores
from pipeline.model.digest import vector_files
from pipeline.model.folder import EncoderSpec
from pipeline.runs.plan import Plan
from pipeline.runs.vector_spec import VectorSpec
from pipeline.sources.reader import SLICE_BYTES
from pipeline.sources.survey import Survey
from pipeline.sources.type_changes import TypeChange
from pipeline.stages.worker_spec import EncodeSpec, ReadSpec, WorkerSpec, WriteSpec
from pipeline.storage import Folder
from pipeline.table.part import vector_bytes
from pipeline.table.snapshot import Snapshot
from pipeline.work import SourceFile

VECTOR_BYTES = 64 * 2**20
"""A slice has at most so many bytes of vectors as the table has them and as they travel."""
FLOAT_BYTES = 256 * 2**20
"""A slice has at most so many bytes of float32 vectors. An encoder holds them so, however few bits the table keeps."""
SLICES_PER_ENCODER = 2
"""A small corpus is cut into at least so many slices per encoder, so that one is written while the next is encoded.

More slices would waste more: rows are sorted by length within their slice, and each slice brings shapes that are new
to its encoder.
"""
MIN_SLICE_ROWS, MAX_CPU_SLICE_ROWS = 256, 4096
MIN_SLICE_S = 2.0
"""Long texts may make slices of fewer rows than MIN_SLICE_ROWS, down to so many seconds of a core."""
MANY_ROWS = 4000
"""An encoder has many rows if it has at least so many. Building a graph then pays off: it takes some seconds per node and
saves a quarter of the time of a row."""
MEASURED_FROM_S = 60.0
"""Looking for an encoder's fastest settings takes some seconds on each node, and is worth them if an encoder has so many
seconds to do, now or in other nights."""
BYTES_PER_TOKEN = 4
"""A token of text has about so many bytes."""


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """It is the source as it was found."""

    files: tuple[SourceFile, ...]
    survey: Survey


@dataclass(frozen=True, kw_only=True)
class Target:
    """It is the table as it stands, and what the run makes of its rows."""

    table: Folder
    parent: Snapshot
    """It is the version that the run builds on. Its probes are empty where another model replaces the table's."""
    part_schema: pa.Schema
    output_spec: Mapping[str, Any]
    output: str
    """It is the digest of `output_spec`."""
    exclusive: bool
    """The table's store lets only one of two publishers win."""
    widened: tuple[TypeChange, ...]
    """They are columns that take another type, for which all files of the table are written anew."""
    retyped: bool
    """All units are other ones than the table's, though only types of columns changed: rows are compared one by one."""
    renews: bool
    """Another model, or other settings of it, replace the parent's."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """It is a run that passed every check, with its plan. Executors work for it as their job."""

    spec: RunSpec
    corpus: Corpus
    target: Target
    vectors: VectorSpec
    plan: Plan
    plan_s: float
    calibrate_s: float = 0.0
    arrangement: Arrangement | None = None
    """It says how many cores an encoder has, where that was measured."""

    @property
    def table(self) -> Folder:
        return self.target.table

    @property
    def parent(self) -> Snapshot:
        return self.target.parent

    @property
    def survey(self) -> Survey:
        return self.corpus.survey

    @property
    def encoder(self) -> EncoderSpec:
        return self.vectors.encoder

    @property
    def is_full(self) -> bool:
        """The table is built whole, by units, because there is none yet or it gets another model."""
        return not self.parent.version or self.target.renews

    @property
    def rows_to_do(self) -> int | None:
        """So many rows have all tasks together. It is None where only reading can tell."""
        rows = [task.rows_to_do for task in self.plan.tasks]
        return None if None in rows else sum(count for count in rows if count is not None)

    @property
    def stored_vector_bytes(self) -> int:
        """One vector of the table has so many bytes."""
        return vector_bytes(self.target.part_schema, self.spec.table.embedding_column)

    @property
    def expected_s(self) -> float:
        """Encoding takes about so many seconds on the cores of this machine, by the sizes of files and model."""
        return self.expected_core_s / cores()

    @property
    def expected_core_s(self) -> float:
        """Encoding takes about so many seconds on a single core."""
        if not self.plan.tasks or self.encoder.is_static:
            return self._expected_rows / costs.READ_ROWS_PER_S
        return costs.encoding_s(self._expected_tokens, _weights(self.encoder), int8=self.encoder.precision == "int8")

    @property
    def _expected_rows(self) -> int:
        return self.rows_to_do if self.rows_to_do is not None else self.survey.rows_estimate

    @property
    def _expected_tokens(self) -> float:
        return self._expected_rows * self._tokens_per_row()

    def _expected_chars(self, pools: Pools) -> int | None:
        """Estimate the characters that a process tokenizes. It is None where only reading can tell which rows are new."""
        if self.rows_to_do is None and (self.plan.kept or self.plan.records):
            return None
        return round(self._expected_tokens * BYTES_PER_TOKEN / max(1, pools.tokenizers))

    @property
    def may_be_light(self) -> bool:
        """The model may run without torch, and the user asked for no engine."""
        return self.spec.model.engine == "auto" and is_plain(self.encoder)

    @property
    def encoder_bytes(self) -> int:
        """A process that encodes holds about so many bytes of memory, by the files of the model."""
        return costs.encoder_bytes(sum(file.stat().st_size for file in vector_files(Path(self.encoder.folder))))

    @property
    def load(self) -> Load:
        """It is what a row costs those who read, encode and write it."""
        weights = 0 if self.encoder.is_static else _weights(self.encoder)
        tokens = self._tokens_per_row()
        if self.spec.chunk is not None and self.spec.rows_are_chunks:
            tokens = min(tokens, self.spec.chunk.max_tokens)
        threads = self.arrangement.threads if self.arrangement is not None else None
        return Load(tokens=tokens, weights=weights, vector_bytes=self.stored_vector_bytes, threads=threads)

    def _tokens_per_row(self) -> float:
        """Estimate the tokens of a row by the table's own rows, or by the bytes of the files where there is no table."""
        counts = self.parent.counts
        if self.parent.version and counts.encoded and counts.tokens:
            return counts.tokens / counts.encoded
        text = self.survey.bytes_unpacked
        tokens = text / max(1, self.survey.rows_estimate) / BYTES_PER_TOKEN if text else costs.TOKENS_GUESSED
        return tokens if self.spec.chunk is not None else min(tokens, self.encoder.max_seq_length or math.inf)

    def _engine(self, pools: Pools, *, many: bool) -> str:
        """Return what `auto` means for so much work; see EncoderSpec.engine."""
        if pools.light:
            return "numpy" if self.expected_core_s < costs.NUMPY_CORE_S else "light"
        return "auto" if many else "made"

    def worker_spec(self, pools: Pools) -> WorkerSpec:
        """Return what the stages have to know, for pools of these sizes."""
        spec, many = self.spec, _has_many_rows(self, pools)
        rows = slice_rows(self, pools)
        encoder = self.encoder
        if spec.model.engine == "auto":
            encoder = replace(encoder, engine=self._engine(pools, many=many))
        return WorkerSpec(
            read=ReadSpec(
                source=spec.source,
                schema=self.survey.schema,
                carried=spec.carried,
                partition_by=tuple(spec.table.partition_by),
                slice_rows=rows,
                slice_bytes=slice_bytes(spec, rows),
                threads=max(1, int(pools.cpus_per_task)),
                expected_chars=self._expected_chars(pools),
                pages=spec.rows_have_pages,
            ),
            chunk=spec.chunk,
            encode=EncodeSpec(
                encoder=encoder,
                int8_path=self.vectors.int8_path,
                device=pools.device,
                threads=pools.cpus_per_encoder,
                measures=many and not pools.light and _encoding_s(self, pools) >= MEASURED_FROM_S * pools.encoders,
                fixed=fixed_settings(spec.resources),
                probes=self.parent.probes,
            ),
            write=WriteSpec(
                table=spec.table,
                part_schema=self.target.part_schema,
                calibration=self.vectors.calibration,
                fingerprint=self.vectors.fingerprint,
            ),
            limits=spec.limits,
        )


@functools.lru_cache(maxsize=8)
def _weights(encoder: EncoderSpec) -> int:
    """Estimate the weights of the transformer's layers by the usual twelve times hidden squared per layer."""
    config = json.loads((encoder.transformer_folder / "config.json").read_text(encoding="utf-8"))
    hidden = config.get("hidden_size") or config.get("d_model") or config.get("dim") or encoder.dim
    layers = config.get("num_hidden_layers") or config.get("num_layers") or config.get("n_layers") or 12
    return 12 * int(layers) * int(hidden) ** 2


def fixed_settings(spec: ResourceSpec) -> Fixed:
    fused, bfloat16, tokens = spec.fused_attention, spec.bfloat16_in_int8, spec.batch_tokens
    return Fixed(
        fused_attention=None if isinstance(fused, str) else fused,
        bfloat16_in_int8=None if isinstance(bfloat16, str) else bfloat16,
        batch_tokens=None if isinstance(tokens, str) else tokens,
    )


def _has_many_rows(prepared: Prepared, pools: Pools) -> bool:
    """Say whether a faster encoder is worth a slower start, by the rows of the run or of its table."""
    # The table's rows count, too, because what one run made on a node serves the next.
    rows = max(sum(_unit_rows(prepared)), prepared.parent.counts.rows)
    return rows >= MANY_ROWS * pools.encoders


def _encoding_s(prepared: Prepared, pools: Pools) -> float:
    """The seconds of a core, or of a GPU, for the rows of the run, or of its table where that is more."""
    share = prepared.parent.counts.rows / max(1, sum(_unit_rows(prepared)))
    times = costs.GPU_FLOPS / costs.FLOPS_PER_CORE if pools.device == "cuda" else 1.0
    return prepared.expected_core_s * max(1.0, share) / times


def slice_rows(prepared: Prepared, pools: Pools) -> int:
    """Return the rows of a slice: at most `limits.unit_rows`, 64 MiB of vectors, and an even share of a small corpus."""
    stored = prepared.stored_vector_bytes
    room = min(VECTOR_BYTES // stored, FLOAT_BYTES // (4 * prepared.encoder.dim))
    most = min(prepared.spec.limits.unit_rows, max(1, room))
    if pools.device == "cpu" and not prepared.encoder.is_static:  # Larger slices spare a static model the merging.
        most = min(most, MAX_CPU_SLICE_ROWS)
    units = _unit_rows(prepared)
    share = -(-sum(units) // (pools.encoders * SLICES_PER_ENCODER))
    worth = MIN_SLICE_S / max(prepared.expected_core_s, 1e-9) * sum(units)
    rows = min(most, max(1, min(MIN_SLICE_ROWS, math.ceil(worth)), share))
    # Nobody knows yet how many rows chunked documents become.
    return rows if prepared.spec.chunk is not None else evened(rows, units, pools.encoders)


def _unit_rows(prepared: Prepared) -> list[int]:
    """Return the rows that each task still has to do, or one estimate for all where only reading can tell."""
    rows = [task.rows_to_do for task in prepared.plan.tasks]
    return [prepared.survey.rows_estimate] if None in rows else [count for count in rows if count is not None]


def slice_bytes(spec: RunSpec, slice_rows: int) -> int:
    """Return the bytes of text that become about `slice_rows` chunks at most. Most tokens have four bytes, and all
    have one."""
    if spec.chunk is None:
        return SLICE_BYTES
    return min(SLICE_BYTES, 2 * slice_rows * (spec.chunk.max_tokens - spec.chunk.overlap_tokens))
