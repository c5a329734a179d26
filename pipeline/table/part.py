"""One Parquet file of the table: its description, its bytes, and the lists of parts and sources as Arrow tables.

Knows columns and Parquet settings; knows nothing of versions or of where a file is written.
"""

import datetime
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.arrays import ROWS_AT_ONCE, compact, holds_dictionary, table_of
from pipeline.schema import CHUNK, CHUNK_PAGES, ID, LINEAGE, TEXT, embedding_type
from pipeline.table.calibration import Calibration
from pipeline.table.layout import Partition
from pipeline.table.quantize import PACKED, SCALAR

ROW_GROUP_BYTES = 64 * 2**20
"""Bytes of vectors per row group."""
ROW_GROUP_ROWS = 131_072
"""However short the vectors: the text beside them is not."""
Encoding = Literal["plain", "byte_stream_split"]
"""It is how the numbers of float32 vectors are laid out in a part: one after the other, or all first bytes, then all second
bytes, and so on. The part's own footer tells it, so that every part may have another one. Vectors of another dtype are
always plain."""
_SPLIT = "BYTE_STREAM_SPLIT"
QUANTISED = b"embedding"
"""Key in the metadata of a part's schema: how its codes are read back, as JSON; see `part_schema`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    path: str
    """Where it stands, or will stand, below the table's root."""
    size: int
    rows: int
    raw_bytes: int
    """Bytes of its rows in memory: text compresses so well that the file's size says little about it."""
    partition: Partition
    units: tuple[str, ...]
    """Units that its rows come from."""
    sources: tuple[int, ...]
    """Numbers of the spans that its rows come from."""
    staged: str | None = None
    """Where it lies until its version is materialised."""
    row_sources: str | None = None
    """The list that says which span each row belongs to now, where the column `source` doesn't any more; row_sources.py."""

    @property
    def location(self) -> str:
        """Where it can be read before its version is materialised."""
        return self.staged or self.path


def part_schema(
    kept: pa.Schema,
    keep_text: bool,
    embedding: str,
    dim: int,
    dtype: str,
    *,
    chunks: bool = False,
    pages: bool = False,
    calibration: Calibration | None = None,
) -> pa.Schema:
    """Columns of every part, in order; partition columns stand in the path only.

    A reader of a single file can turn codes into numbers: the metadata of an int8, uint8, binary or ubinary table has
    `column`, `dtype`, `dim`, and the `minimum` and `maximum` of each dimension where the dtype has ranges.
    """
    fields = [pa.field(ID, pa.string(), nullable=False), *kept]
    if keep_text:
        fields.append(pa.field(TEXT, pa.large_string(), nullable=False))
    if chunks:
        fields += CHUNK
    if pages:
        fields += CHUNK_PAGES
    fields.append(pa.field(embedding, embedding_type(dim, dtype), nullable=False))
    return pa.schema([*fields, *LINEAGE], _metadata(embedding, dim, dtype, calibration))


def _metadata(embedding: str, dim: int, dtype: str, calibration: Calibration | None) -> dict[bytes, bytes] | None:
    if dtype not in SCALAR + PACKED:
        return None
    told: dict[str, object] = {"column": embedding, "dtype": dtype, "dim": dim}
    if calibration is not None:
        ranges = calibration.to_dict()
        told |= {"minimum": ranges["minimum"], "maximum": ranges["maximum"]}
    return {QUANTISED: json.dumps(told).encode()}


def encode_part(rows: pa.Table, embedding: str, encoding: Encoding = "plain") -> pa.Buffer:
    """Rows sorted by id, as the bytes of a Parquet file."""
    return encode_sorted([rows.sort_by([(ID, "ascending")])], rows.schema, embedding, encoding)


def encode_sorted(
    pieces: Iterable[pa.Table], schema: pa.Schema, embedding: str, encoding: Encoding = "plain"
) -> pa.Buffer:
    """Rows in the order that they have, as the bytes of a Parquet file; holds one row group of them at a time. Rows of a part
    must come sorted by id.

    zstd for all; no dictionary and no statistics for the vectors: they only cost there (noise in every value). Bytes have a
    dictionary: Parquet holds them as 32-bit integers otherwise, half as large again after zstd.
    """
    vectors = set(_leaf_paths(pa.schema([schema.field(embedding)])))
    # The writer tells leaves apart by path alone: a kept column with a dot may share the vector's, and its settings.
    leaves = _leaf_paths(schema)
    others = [path for path in leaves if path not in vectors]
    of_bytes = schema.field(embedding).type.value_type.bit_width == 8
    most = max(1, min(ROW_GROUP_ROWS, ROW_GROUP_BYTES // vector_bytes(schema, embedding)))
    sink = pa.BufferOutputStream()
    options: dict[str, Any] = {"use_dictionary": leaves if of_bytes else others, "write_statistics": others}
    if encoding == "byte_stream_split" and pa.types.is_float32(schema.field(embedding).type.value_type):
        # A kept column of the same path may be of a type that can't be split.
        options["column_encoding"] = {path: _SPLIT for path in vectors if leaves.count(path) == 1}
    with pq.ParquetWriter(sink, schema, compression="zstd", **options) as writer:
        for group in _groups_of(pieces, schema, most):
            writer.write_table(_without_traces(group), row_group_size=most)
    return sink.getvalue()


def encoding_of(file: pq.ParquetFile, embedding: str) -> Encoding:
    """Return how the vectors of a part are encoded, for those who write its rows anew and know no configuration."""
    (path,) = _leaf_paths(pa.schema([file.schema_arrow.field(embedding)]))
    groups = (file.metadata.row_group(index) for index in range(min(1, file.num_row_groups)))
    columns = (group.column(index) for group in groups for index in range(group.num_columns))
    split = any(column.path_in_schema == path and _SPLIT in column.encodings for column in columns)
    return "byte_stream_split" if split else "plain"


def _groups_of(pieces: Iterable[pa.Table], schema: pa.Schema, most: int) -> Iterator[pa.Table]:
    """Yield the rows `most` at a time, and what is left in the end."""
    held = schema.empty_table()
    for piece in pieces:
        held = pa.concat_tables([held, piece])
        while held.num_rows >= most:
            yield held.slice(0, most)
            held = held.slice(most)
    if held.num_rows:
        yield held


def vector_bytes(schema: pa.Schema, embedding: str) -> int:
    """How many bytes one vector has in the parts."""
    kind = schema.field(embedding).type
    return int(kind.list_size * kind.value_type.bit_width // 8)


def _without_traces(rows: pa.Table) -> pa.Table:
    """Arrow writes a dictionary whole: without its unused values no part holds what only rows elsewhere have."""
    for index, item in enumerate(rows.schema):
        if holds_dictionary(item.type):
            rows = rows.set_column(index, item, compact(rows.column(index).combine_chunks()))
    return rows


def _leaf_paths(schema: pa.Schema) -> list[str]:
    """Parquet names of all leaf columns, as the writer's per-column options want them."""
    probe = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), probe)
    written = pq.read_metadata(pa.BufferReader(probe.getvalue())).schema
    return [written.column(index).path for index in range(len(written))]


def split_by_partition(rows: pa.Table, columns: Sequence[str]) -> list[tuple[Partition, pa.Table]]:
    """The rows of each combination of partition values, without the partition columns."""
    if not columns:
        return [((), rows)] if rows.num_rows else []
    index = "__row"
    numbered = rows.select(list(columns)).append_column(index, pa.array(range(rows.num_rows), pa.int64()))
    groups = numbered.group_by(list(columns), use_threads=False).aggregate([(index, "list")])
    rest = rows.drop_columns(list(columns))
    return [
        (tuple((name, group[name]) for name in columns), rest.take(pa.array(group[f"{index}_list"], pa.int64())))
        for group in groups.to_pylist()
    ]


def distinct_sources(rows: pa.Table) -> tuple[int, ...]:
    return tuple(sorted(pc.unique(rows.column("source")).to_pylist()))


_PARTS = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("raw_bytes", pa.int64(), nullable=False),
        pa.field("partition", pa.string(), nullable=False),
        pa.field("units", pa.list_(pa.string()), nullable=False),
        pa.field("sources", pa.list_(pa.int32()), nullable=False),
        pa.field("staged", pa.string()),
        pa.field("owners", pa.string()),
    ]
)


def parts_to_table(parts: Iterable[Part]) -> pa.Table:
    """The list of parts that stands beside a snapshot; partition values as JSON, dates in ISO form."""
    rows = (
        {
            "path": part.path,
            "size": part.size,
            "rows": part.rows,
            "raw_bytes": part.raw_bytes,
            "partition": json.dumps(partition_to_json(part.partition)),
            "units": part.units,
            "sources": part.sources,
            "staged": part.staged,
            "owners": part.row_sources,
        }
        for part in parts
    )
    return table_of(rows, _PARTS)


def table_to_parts(table: pa.Table) -> list[Part]:
    return [
        Part(
            path=row["path"],
            size=row["size"],
            rows=row["rows"],
            # The first tables of format 1 don't tell.
            raw_bytes=row.get("raw_bytes", row["size"]),
            partition=partition_from_json(json.loads(row["partition"])),
            units=tuple(row["units"]),
            sources=tuple(row["sources"]),
            staged=row["staged"],
            row_sources=row.get("owners"),
        )
        for batch in table.to_batches(ROWS_AT_ONCE)
        for row in batch.to_pylist()
    ]


def partition_to_json(partition: Partition) -> list[list[object]]:
    """Pairs of name and JSON value; a date is `{"date": ISO form}`."""
    return [
        [name, {"date": value.isoformat()} if isinstance(value, datetime.date) else value] for name, value in partition
    ]


def partition_from_json(raw: Iterable[tuple[str, object]]) -> Partition:
    def value(item: object) -> object:
        return datetime.date.fromisoformat(item["date"]) if isinstance(item, dict) else item

    return tuple((name, value(item)) for name, item in raw)  # type: ignore[misc]


def raw_bytes(parts: Iterable[Part]) -> int:
    """How many bytes all rows of the parts have in memory."""
    return sum(part.raw_bytes for part in parts)


def materialised(part: Part) -> Part:
    return replace(part, staged=None)
