"""In the third stage the rows of a slice become staged parts, and then a record that proves them.

A slice row with codes comes in. What the driver is told of it goes out. A stage that is repeated does no harm,
because the first record wins. The stage knows nothing of Ray and of versions.
"""

import itertools
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import schema
from pipeline.sources.columns import row_bytes
from pipeline.stages.slice_row import REPORT, buffer, effort_of, effort_to_json, from_cell, key_of, unread_of
from pipeline.stages.worker_spec import WorkerSpec
from pipeline.storage import Folder
from pipeline.table import layout
from pipeline.table.part import Part, distinct_sources, encode_part, split_by_partition
from pipeline.table.quantize import Codes
from pipeline.table.record import Effort, Record, create
from pipeline.table.snapshot import to_parquet

BATCH_BYTES = 64 * 2**20
"""Rows of chunks are made in batches of so many bytes, because chunks repeat the columns of their document."""


@dataclass(frozen=True, kw_only=True)
class Staged:
    """It is what a slice left in staging, ready to be recorded."""

    attempt: str
    """It is the nonce in the names of the slice's files."""
    parts: tuple[Part, ...]
    dead_letters: tuple[str, int] | None
    """It is the staged file of dead letters and its size."""
    documents: int
    """So many source rows, or distinct texts, have a vector."""
    failed: int
    write_s: float
    texts_of: str | None = None
    """It is the fingerprint of the vectors for a slice of distinct texts, and None for a slice of rows."""


def write_rows(row: pa.Table, spec: WorkerSpec) -> pa.Table:
    """Stage the slice's parts and dead letters, then create its record. It is safe to repeat, because the first
    record wins."""
    started = time.perf_counter()
    table, attempt = spec.open_table(), uuid.uuid4().hex[:12]
    unit_id, first_row = key_of(row)
    codes = codes_of(row, spec)
    documents = from_cell(row, "documents")
    chunks = from_cell(row, "chunks") if row.column("chunks")[0].is_valid else None
    parts: list[Part] = []
    for rows, own in row_batches(documents, chunks, codes):
        places = (layout.staged_part(unit_id, first_row, attempt, index) for index in itertools.count(len(parts)))
        parts += write_parts(table, part_rows(rows, own, spec), unit_id, places, spec)
    dead_letters = from_cell(row, "dead_letters")
    staged = Staged(
        attempt=attempt,
        parts=tuple(parts),
        dead_letters=_write_dead_letters(table, dead_letters, unit_id, first_row, attempt),
        documents=count_documents(documents, chunks),
        failed=dead_letters.num_rows,
        write_s=time.perf_counter() - started,
    )
    return record_slice(row, staged, table)


def record_slice(row: pa.Table, staged: Staged, table: Folder) -> pa.Table:
    """Create the record of what was staged, and return the slice's REPORT row."""
    record = Record(
        unit_id=row.column("unit_id")[0].as_py(),
        first_row=row.column("first_row")[0].as_py(),
        num_rows=row.column("num_rows")[0].as_py(),
        skipped=row.column("skipped")[0].as_py(),
        documents=staged.documents,
        failed=staged.failed,
        broken=row.column("broken")[0].as_py(),
        last=row.column("last")[0].as_py(),
        sources=tuple(row.column("sources")[0].as_py()),
        parts=staged.parts,
        dead_letters=staged.dead_letters,
        bad_vectors=row.column("bad_vectors")[0].as_py(),
        effort=effort_of(row) + Effort(write_s=staged.write_s),
        attempt=staged.attempt,
        unread=unread_of(row.column("unread")[0].as_py()),
        texts_of=staged.texts_of,
    )
    create(table, record)
    report = {
        "unit_id": record.unit_id,
        "first_row": record.first_row,
        # A unit of texts reads many rows for the few texts that it gives.
        "num_rows": record.num_rows if staged.texts_of is None else record.documents + record.failed,
        "failed": record.failed,
        "last": record.last,
        "effort": effort_to_json(record.effort),
    } | {
        name: row.column(name)[0].as_py()
        for name in ("encoder", "engine", "encode_start", "encode_stop", "unread", "unfit", "told")
    }
    return pa.Table.from_pylist([report], REPORT)


def codes_of(row: pa.Table, spec: WorkerSpec) -> Codes:
    """Return the vectors of a slice row as the table keeps them, [n, width], without a copy."""
    stored = spec.write.part_schema.field(spec.write.table.embedding_column).type
    return np.frombuffer(buffer(row, "vectors"), stored.value_type.to_pandas_dtype()).reshape(-1, stored.list_size)


def count_documents(documents: pa.Table, chunks: pa.Table | None) -> int:
    """Count the documents whose rows are written."""
    if chunks is None:
        return int(documents.num_rows)
    return int(pc.sum(pc.equal(chunks.column(schema.CHUNK_INDEX), 0)).as_py() or 0)


def row_batches(documents: pa.Table, chunks: pa.Table | None, codes: Codes) -> Iterator[tuple[pa.Table, Codes]]:
    """Yield (rows, their codes). Documents come all at once, chunks in batches of 64 MiB with their documents'
    columns."""
    if chunks is None:
        yield documents, codes
        return
    texts = documents.column(schema.TEXT).to_pylist()
    others = documents.drop_columns([schema.TEXT])
    sizes = np.cumsum(row_bytes(others)[chunks.column(schema.DOCUMENT).to_numpy()])
    start = 0
    while start < chunks.num_rows:
        done = sizes[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(sizes, done + BATCH_BYTES, side="right")))
        yield _chunk_rows(others, texts, chunks.slice(start, stop - start)), codes[start:stop]
        start = stop


def _chunk_rows(documents: pa.Table, texts: Sequence[str], chunks: pa.Table) -> pa.Table:
    number = chunks.column(schema.DOCUMENT)
    rows = documents.take(number)
    fields = [schema.DOCUMENT, schema.CHUNK_INDEX, schema.CHUNK_START, schema.CHUNK_END]
    places = list(zip(*(chunks.column(name).to_pylist() for name in fields), strict=True))
    doc_ids = rows.column(schema.ID)
    ids = [f"{name}#{index}" for name, (_, index, _, _) in zip(doc_ids.to_pylist(), places, strict=True)]
    rows = rows.set_column(rows.schema.get_field_index(schema.ID), schema.ID, pa.array(ids, pa.string()))
    content = pa.array([texts[document][start:end] for document, _, start, end in places], pa.large_string())
    rows = rows.append_column(schema.TEXT, content).append_column(schema.DOC_ID, doc_ids)
    for name in chunks.column_names[1:]:
        rows = rows.append_column(name, chunks.column(name))
    return rows


def part_rows(documents: pa.Table, codes: Codes, spec: WorkerSpec) -> pa.Table:
    """Return the columns of the parts, and the partition columns that the parts will not carry."""
    column = spec.write.part_schema.field(spec.write.table.embedding_column)
    values = pa.array(np.ascontiguousarray(codes).reshape(-1), column.type.value_type)
    embedded = documents.append_column(column, pa.FixedSizeListArray.from_arrays(values, type=column.type))
    parts = embedded.select(spec.write.part_schema.names).cast(spec.write.part_schema)
    for name in spec.write.table.partition_by:
        parts = parts.append_column(name, documents.column(name)) if name not in parts.column_names else parts
    return parts


def write_parts(table: Folder, rows: pa.Table, unit_id: str, places: Iterator[str], spec: WorkerSpec) -> list[Part]:
    """Write a staged part for each partition of the rows, at the next of the places."""
    parts = []
    groups = split_by_partition(rows, spec.write.table.partition_by)
    for (partition, group), path in zip(groups, places, strict=False):
        content = encode_part(group, spec.write.table.embedding_column, spec.write.table.encoding)
        table.write(path, content)
        parts.append(
            Part(
                path=path,
                size=content.size,
                rows=group.num_rows,
                raw_bytes=group.nbytes,
                partition=partition,
                units=(unit_id,),
                sources=distinct_sources(group),
            )
        )
    return parts


def _write_dead_letters(
    table: Folder, rows: pa.Table, unit_id: str, first_row: int, attempt: str
) -> tuple[str, int] | None:
    if not rows.num_rows:
        return None
    path, content = layout.staged_dead_letters(unit_id, first_row, attempt), to_parquet(rows)
    table.write(path, content)
    return path, content.size
