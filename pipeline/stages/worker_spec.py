"""A worker spec is all that a worker has to know to read, encode and write the slices of a run.

A `WorkerSpec` holds secrets. It reaches workers through a channel of the executor, never as an argument that others
can see.
"""

from dataclasses import dataclass

import pyarrow as pa

from pipeline.config import ChunkSpec, LimitSpec, SourceSpec, TableSpec
from pipeline.encoder.settings import Fixed, Setup
from pipeline.model.folder import EncoderSpec
from pipeline.sources.reader import SliceSpec
from pipeline.storage import Folder
from pipeline.table import int8
from pipeline.table.calibration import Calibration


@dataclass(frozen=True, kw_only=True)
class ReadSpec:
    """It says how the documents of a unit are read and tokenized, slice by slice."""

    source: SourceSpec
    schema: pa.Schema
    """They are the columns of the source, with the types that the table was built with."""
    carried: tuple[str, ...]
    """They are the columns that go into the table as they are; see RunSpec.carried."""
    partition_by: tuple[str, ...]
    slice_rows: int
    """A slice has at most so many rows."""
    slice_bytes: int
    """A slice has at most so many bytes of text and kept columns."""
    threads: int
    """The tokenizer uses so many threads."""
    expected_chars: int | None = None
    """Each process that reads tokenizes about so many characters. It is None where nobody knows."""
    pages: bool = False
    """Each chunk is told the pages that it stands on."""
    sample_depth: int = 0
    """A sample is spread over so many first rows of a unit; see calibration.Sample.depth."""


@dataclass(frozen=True, kw_only=True)
class EncodeSpec:
    """It says how an encoder is built, and what it has to prove before it works."""

    encoder: EncoderSpec
    int8_path: str | None
    """The table's int8 model is described at this path. It is None for a table that has none."""
    device: str
    """It is `cpu` or `cuda`."""
    threads: int
    measures: bool
    """There is enough to do to make looking for the encoder's fastest settings worth its time."""
    fixed: Fixed
    """These settings are the user's, and are not looked for."""
    probes: tuple[tuple[float, ...], ...]
    """They are the vectors that the table's encoder gave for the probe texts. They are empty for a table that begins.
    """

    @property
    def setup(self) -> Setup:
        return Setup(spec=self.encoder, device=self.device, threads=self.threads, fixed=self.fixed)


@dataclass(frozen=True, kw_only=True)
class WriteSpec:
    """It says where rows are staged, and what they look like."""

    table: TableSpec
    part_schema: pa.Schema
    calibration: Calibration | None
    """It has the value ranges of int8 and uint8. It is None for other dtypes, and before the ranges are measured."""
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class WorkerSpec:
    """It holds the specs of all stages. A stage takes what it needs."""

    read: ReadSpec
    chunk: ChunkSpec | None
    encode: EncodeSpec
    write: WriteSpec
    limits: LimitSpec

    @property
    def slices(self) -> SliceSpec:
        """It says how a unit's rows are read, slice by slice."""
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
        """It is true if every chunk is a row of the table, and false if every document is."""
        return self.chunk is not None and self.chunk.rows == "chunks"

    def encoder_here(self) -> EncoderSpec:
        """Return the encoder with the table's int8 model on this node, if the table has one."""
        return int8.encoder_here(self.encode.encoder, self.open_table(), self.encode.int8_path)

    def open_table(self) -> Folder:
        return Folder(self.write.table.path, self.write.table.storage_options)
