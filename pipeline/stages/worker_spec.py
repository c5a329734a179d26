"""What a worker has to know to read, encode and write the slices of one run.

A `WorkerSpec` holds secrets: it reaches workers through a channel of the executor, never as an argument that others can see.
"""

from dataclasses import dataclass

import pyarrow as pa

from pipeline.config import ChunkSpec, LimitSpec, SourceSpec, TableSpec
from pipeline.model.folder import EncoderSpec
from pipeline.sources.reader import SliceSpec
from pipeline.storage import Folder
from pipeline.table import int8
from pipeline.table.calibration import Calibration


@dataclass(frozen=True, kw_only=True)
class ReadSpec:
    """How the documents of a unit are read and tokenized, slice by slice."""

    source: SourceSpec
    schema: pa.Schema
    """The columns of the source, with the types that the table was built with."""
    carried: tuple[str, ...]
    """Columns that go into the table as they are; see RunSpec.carried."""
    partition_by: tuple[str, ...]
    slice_rows: int
    """A slice has at most so many rows."""
    slice_bytes: int
    """A slice has at most so many bytes of text and kept columns."""
    threads: int
    """The tokenizer uses so many threads."""
    sample_depth: int = 0
    """Where a sample is read, it is spread over so many first rows of a unit; see calibration.Sample.depth."""


@dataclass(frozen=True, kw_only=True)
class EncodeSpec:
    """How an encoder is built, and what it has to prove before it works."""

    encoder: EncoderSpec
    int8_path: str | None
    """Where in the table its int8 model is described; None for a table that has none."""
    device: str
    """`cpu` or `cuda`."""
    threads: int
    measures_budget: bool
    """There is enough to do for looking for the fastest size of a batch."""
    probes: tuple[tuple[float, ...], ...]
    """The vectors that the table's encoder gave for the probe texts; empty for a table that begins."""


@dataclass(frozen=True, kw_only=True)
class WriteSpec:
    """Where rows are staged, and what they look like."""

    table: TableSpec
    part_schema: pa.Schema
    calibration: Calibration | None
    """The value ranges of int8 and uint8; None for other dtypes, and before the ranges are measured."""
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class WorkerSpec:
    """All of it; a stage takes what it needs."""

    read: ReadSpec
    chunk: ChunkSpec | None
    encode: EncodeSpec
    write: WriteSpec
    limits: LimitSpec

    @property
    def slices(self) -> SliceSpec:
        """How a unit's rows are read, slice by slice."""
        read = self.read
        return SliceSpec(
            source=read.source,
            schema=read.schema,
            carried=read.carried,
            partition_by=read.partition_by,
            limits=self.limits,
            rows=read.slice_rows,
            bytes=read.slice_bytes,
        )

    @property
    def rows_are_chunks(self) -> bool:
        """Every chunk is a row of the table; else a document is."""
        return self.chunk is not None and self.chunk.rows == "chunks"

    def encoder_here(self) -> EncoderSpec:
        """The encoder with the table's int8 model, if it has one, on this node."""
        return int8.encoder_here(self.encode.encoder, self.open_table(), self.encode.int8_path)

    def open_table(self) -> Folder:
        return Folder(self.write.table.path, self.write.table.storage_options)
