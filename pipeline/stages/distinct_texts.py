"""Distinct texts are read, encoded, and recorded as content hash -> vector, and nothing else.

A unit of kind `texts` comes in. The functions stand beside the ones for rows, so that both kinds go through the same
flow (flow.py). Texts that fail are recorded, too, with the reason. Rows are put together later, by row_writer.py.
"""

import time
import uuid
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from pipeline import identity, schema
from pipeline.encoder.tokenizer import Tokenizer
from pipeline.errors import SourceChanged
from pipeline.stages.read import slices_of, tokenize_chunks, tokenize_whole
from pipeline.stages.slice_row import (
    SOURCE_CHANGED,
    dead_letters_of,
    effort_to_json,
    flow_row,
    from_cell,
    key_of,
    refuse,
    to_ipc,
)
from pipeline.stages.worker_spec import WorkerSpec
from pipeline.stages.write import Staged, codes_of, record_slice
from pipeline.table import layout
from pipeline.table.part import Part, encode_sorted
from pipeline.table.quantize import Codes
from pipeline.table.record import Effort
from pipeline.table.scan import ERROR, STAGE, VECTOR, vectors_schema
from pipeline.work import Slice, Task, Unit


def read_texts(task: Task, spec: WorkerSpec, tokenizer: Tokenizer) -> Iterator[pa.Table]:
    """Yield the FLOW rows of a unit of texts that no earlier run recorded."""
    seen: set[bytes] = set()
    started = time.perf_counter()
    try:
        for piece in slices_of(task.unit, spec, task.done):
            read_s = time.perf_counter() - started
            yield _tokenize(piece, task.unit, spec, tokenizer, seen, read_s)
            started = time.perf_counter()
    except SourceChanged as error:
        yield refuse(task.unit.unit_id, f"{SOURCE_CHANGED}{error}")


def _tokenize(
    piece: Slice, unit: Unit, spec: WorkerSpec, tokenizer: Tokenizer, seen: set[bytes], read_s: float
) -> pa.Table:
    """Tokenize the texts of a slice. Here a document is a text with its hash in hex for an id, so that failures are
    known by it."""
    started = time.perf_counter()
    documents = piece.documents
    tokenize = tokenize_whole if spec.chunk is None else tokenize_chunks
    tokenized = tokenize(documents, spec, tokenizer)
    rows = tokenized.documents if tokenized.chunks is None else tokenized.chunks
    chosen = _first_of(rows.column(schema.CONTENT_HASH).to_pylist(), set(unit.hashes or ()), seen)
    texts = _texts(rows.take(chosen))
    failed = documents.take(pa.array(sorted(tokenized.failed), pa.int64()))
    if tokenized.chunks is not None:
        failed = failed.slice(0, 0)  # The diff knows already that such a document has no chunks.
    hashes = identity.content_hashes(failed.column(schema.TEXT), spec.encode.encoder.prompt)
    failed = failed.set_column(0, schema.ID, _hex(hashes))
    reasons = dict(enumerate(tokenized.failed[row] for row in sorted(tokenized.failed)))
    paths = {number: span.file.path for span, number in zip(unit.spans, unit.sources, strict=True)}
    dead_letters = dead_letters_of(failed, {} if not failed.num_rows else reasons, "tokenize", paths)
    effort = Effort(
        tokens=sum(texts.column(schema.N_TOKENS).to_pylist()),
        truncated=sum(texts.column(schema.TRUNCATED).to_pylist()),
        read_s=read_s,
        tokenize_s=time.perf_counter() - started,
    )
    return flow_row(
        unit_id=piece.unit_id,
        first_row=piece.first_row,
        num_rows=piece.num_rows,
        skipped=piece.num_rows - texts.num_rows - dead_letters.num_rows,
        broken=piece.broken,
        last=piece.last,
        sources=list(unit.sources),
        paths=list(paths.values()),
        documents=to_ipc(texts),
        tokens=to_ipc(_tokens_of(tokenized.tokens, chosen, spec)),
        dead_letters=to_ipc(dead_letters),
        effort=effort_to_json(effort),
        texts=True,
        told=tokenizer.told or None,
    )


def _first_of(hashes: list[bytes], asked: set[bytes], seen: set[bytes]) -> pa.Array:
    """Return the first place of each text that is asked for and not `seen`, and add these texts to `seen`."""
    chosen = []
    for row, item in enumerate(hashes):
        if item in asked and item not in seen:
            seen.add(item)
            chosen.append(row)
    return pa.array(chosen, pa.int64())


def _texts(rows: pa.Table) -> pa.Table:
    """Return the columns that are recorded, and the columns by which the encode stage names what fails."""
    nothing = pa.array([""] * rows.num_rows, pa.large_string())
    zeros = np.zeros(rows.num_rows, np.int32)
    return pa.table(
        {
            schema.ID: _hex(rows.column(schema.CONTENT_HASH)),
            schema.TEXT: nothing,
            schema.SOURCE: rows.column(schema.SOURCE) if schema.SOURCE in rows.column_names else pa.array(zeros),
            schema.POSITION: pa.nulls(rows.num_rows, pa.int64()),
            schema.CONTENT_HASH: rows.column(schema.CONTENT_HASH),
            schema.N_TOKENS: rows.column(schema.N_TOKENS),
            schema.TRUNCATED: rows.column(schema.TRUNCATED),
        }
    )


def _hex(hashes: pa.Array | pa.ChunkedArray) -> pa.Array:
    return pa.array([item.hex() for item in hashes.to_pylist()], pa.string())


def _tokens_of(tokens: pa.Table, chosen: pa.Array, spec: WorkerSpec) -> pa.Table:
    """Return the token rows of the chosen texts, numbered anew."""
    if spec.chunk is None:
        return tokens.take(chosen)
    if spec.chunk.rows == "chunks":
        numbers = pa.array(np.arange(len(chosen), dtype=np.int32))
        return tokens.select([schema.TOKENS]).take(chosen).append_column(schema.DOCUMENT, numbers)
    document = tokens.column(schema.DOCUMENT).to_numpy()
    order = chosen.to_numpy()
    stay = np.isin(document, order)
    numbers = pa.array(np.searchsorted(order, document[stay]).astype(np.int32))
    return tokens.select([schema.TOKENS]).filter(pa.array(stay)).append_column(schema.DOCUMENT, numbers)


def _reasons(failed: pa.Table, spec: WorkerSpec) -> list[str]:
    """Return why texts failed. Where chunks are rows, each text was a document of one chunk, so the chunk's number is
    left out."""
    alone = spec.rows_are_chunks
    return [error.removeprefix("chunk 0: " if alone else "") for error in failed.column("error").to_pylist()]


def write_texts(row: pa.Table, spec: WorkerSpec) -> pa.Table:
    """Stage a file of content hash -> vector, then create its record. It is safe to repeat, because the first record
    wins."""
    started = time.perf_counter()
    table, attempt = spec.open_table(), uuid.uuid4().hex[:12]
    texts, failed = from_cell(row, "documents"), from_cell(row, "dead_letters")
    rows = _staged_rows(texts, failed, codes_of(row, spec), spec)
    unit_id, first_row = key_of(row)
    parts: tuple[Part, ...] = ()
    if rows.num_rows:
        path = layout.staged_part(unit_id, first_row, attempt, 0)
        content = encode_sorted([rows], rows.schema, VECTOR, spec.write.table.encoding)
        table.write(path, content)
        part = Part(
            path=path,
            size=content.size,
            rows=rows.num_rows,
            raw_bytes=rows.nbytes,
            partition=(),
            units=(unit_id,),
            sources=(),
        )
        parts = (part,)
    staged = Staged(
        attempt=attempt,
        parts=parts,
        dead_letters=None,
        documents=texts.num_rows,
        failed=failed.num_rows,
        write_s=time.perf_counter() - started,
        texts_of=spec.write.fingerprint,
    )
    return record_slice(row, staged, table)


def _staged_rows(texts: pa.Table, failed: pa.Table, codes: Codes, spec: WorkerSpec) -> pa.Table:
    """Return texts with their codes, then failed texts with the reason, as scan.vectors_schema."""
    vector = spec.write.part_schema.field(spec.write.table.embedding_column).type
    values = pa.FixedSizeListArray.from_arrays(pa.array(codes.reshape(-1), vector.value_type), type=vector)
    done = [texts.column(schema.CONTENT_HASH), values, texts.column(schema.N_TOKENS), texts.column(schema.TRUNCATED)]
    nothing = pa.nulls(texts.num_rows, pa.string())
    kind = vectors_schema(vector)
    bad = [
        pa.array([bytes.fromhex(item) for item in failed.column(schema.ID).to_pylist()], pa.binary(16)),
        *(pa.nulls(failed.num_rows, item) for item in kind.types[1:4]),
        failed.column("stage"),
        pa.array(_reasons(failed, spec), pa.string()),
    ]
    assert kind.names[4:] == [STAGE, ERROR]
    return pa.concat_tables([pa.table([*done, nothing, nothing], schema=kind), pa.table(bad, schema=kind)])
