"""In the first stage the slices of a unit are read, and their texts become token ids.

A task comes in. A slice row goes out for each slice that no earlier run recorded. The stage knows nothing of Ray. It
never raises for bad data: what can't be tokenized becomes a dead letter.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import identity, schema
from pipeline.encoder.chunking import chunk
from pipeline.encoder.token_rows import tokens_to_arrow
from pipeline.encoder.tokenizer import Tokenizer
from pipeline.errors import SourceChanged
from pipeline.sources.reader import read_slices
from pipeline.stages.pages import pages_of
from pipeline.stages.slice_row import (
    SOURCE_CHANGED,
    dead_letters_of,
    effort_to_json,
    flow_row,
    refuse,
    to_ipc,
    unfit_cell,
    unread_cell,
    without,
)
from pipeline.stages.worker_spec import WorkerSpec
from pipeline.table.record import Effort
from pipeline.work import Slice, Task, Unit


def read_rows(task: Task, spec: WorkerSpec, tokenizer: Tokenizer) -> Iterator[pa.Table]:
    """Yield the slices of a unit that no earlier run recorded, as FLOW rows. A changed source file ends them with
    `refused`."""
    started = time.perf_counter()
    try:
        for piece in slices_of(task.unit, spec, task.done):
            read_s = time.perf_counter() - started
            yield _tokenize(piece, task.unit, spec, tokenizer, read_s)
            started = time.perf_counter()
    except SourceChanged as error:
        yield refuse(task.unit.unit_id, f"{SOURCE_CHANGED}{error}")


def _tokenize(piece: Slice, unit: Unit, spec: WorkerSpec, tokenizer: Tokenizer, read_s: float) -> pa.Table:
    started = time.perf_counter()
    paths = {number: span.file.path for span, number in zip(unit.spans, unit.sources, strict=True)}
    tokenize = tokenize_whole if spec.chunk is None else tokenize_chunks
    tokenized = tokenize(piece.documents, spec, tokenizer)
    dead_letters = piece.dead_letters
    if tokenized.failed:
        new_dead_letters = dead_letters_of(piece.documents, tokenized.failed, "tokenize", paths)
        dead_letters = pa.concat_tables([dead_letters, new_dead_letters])
    rows = tokenized.documents if tokenized.chunks is None else tokenized.chunks
    effort = Effort(
        tokens=pc.sum(rows.column(schema.N_TOKENS)).as_py() or 0,
        truncated=pc.sum(rows.column(schema.TRUNCATED)).as_py() or 0,
        read_s=read_s,
        tokenize_s=time.perf_counter() - started,
    )
    return flow_row(
        unit_id=piece.unit_id,
        first_row=piece.first_row,
        num_rows=piece.num_rows,
        skipped=piece.skipped,
        broken=piece.broken,
        last=piece.last,
        sources=list(unit.sources),
        paths=list(paths.values()),
        documents=to_ipc(tokenized.documents),
        chunks=None if tokenized.chunks is None else to_ipc(tokenized.chunks),
        tokens=to_ipc(tokenized.tokens),
        dead_letters=to_ipc(dead_letters),
        effort=effort_to_json(effort),
        unread=unread_cell(piece.unread),
        unfit=unfit_cell(piece.unfit),
        told=tokenizer.told or None,
    )


@dataclass(frozen=True, kw_only=True)
class Tokenized:
    documents: pa.Table
    """They have tokens. Where they are rows of the table, they also have CONTENT_HASH, ROW_HASH, N_TOKENS and
    TRUNCATED."""
    chunks: pa.Table | None
    """Where chunks are rows of the table, they have the same four columns, schema.DOCUMENT, and the chunk fields but
    doc_id. The documents' own columns are not repeated for each chunk before the rows are written."""
    tokens: pa.Table
    """It has schema.TOKENS. Where documents are chunked, it also has schema.DOCUMENT and a row per chunk."""
    failed: Mapping[int, str]
    """It maps a document to the reason why it has no tokens."""


def tokenize_whole(documents: pa.Table, spec: WorkerSpec, tokenizer: Tokenizer) -> Tokenized:
    tokens = tokenizer.tokenize(documents.column(schema.TEXT).to_pylist())
    column, truncated, lengths = tokens_to_arrow(tokens), tokens.truncated, tokens.lengths
    if tokens.failed:
        good = without(documents.num_rows, tokens.failed)
        documents, column = documents.take(good), column.take(pa.array(good))
        truncated, lengths = truncated[good], lengths[good]
    return Tokenized(
        documents=_as_rows(documents, lengths, truncated, spec),
        chunks=None,
        tokens=pa.table({schema.TOKENS: column}),
        failed=tokens.failed,
    )


def tokenize_chunks(documents: pa.Table, spec: WorkerSpec, tokenizer: Tokenizer) -> Tokenized:
    assert spec.chunk is not None
    texts = documents.column(schema.TEXT).to_pylist()
    cut = chunk(texts, tokenizer, spec.chunk)
    good, first, document = np.unique(cut.text, return_index=True, return_inverse=True)
    documents, number = documents.take(pa.array(good)), pa.array(document.astype(np.int32))
    lengths, truncated = cut.tokens.lengths, cut.tokens.truncated
    tokens = pa.table({schema.TOKENS: tokens_to_arrow(cut.tokens), schema.DOCUMENT: number})
    if spec.chunk.rows == "documents":
        if len(good):
            lengths, truncated = np.add.reduceat(lengths, first), np.logical_or.reduceat(truncated, first)
        documents, chunks = _as_rows(documents, lengths, truncated, spec), None
    else:
        pieces = zip(cut.text.tolist(), cut.start.tolist(), cut.end.tolist(), strict=True)
        content = pa.array([texts[text][start:end] for text, start, end in pieces], pa.large_string())
        fields = {
            schema.CHUNK_INDEX: pa.array(cut.index.astype(np.int32)),
            schema.CHUNK_START: pa.array(cut.start),
            schema.CHUNK_END: pa.array(cut.end),
            **(pages_of(texts, cut.text, cut.start, cut.end) if spec.read.pages else {}),
        }
        columns = {
            schema.DOCUMENT: number,
            **fields,
            schema.CONTENT_HASH: identity.content_hashes(content, spec.encode.encoder.prompt),
            schema.ROW_HASH: identity.row_hashes(documents.select(spec.read.carried), pa.table(fields), document),
        }
        chunks = _with_tokens(pa.table(columns), lengths, truncated)
    return Tokenized(documents=documents, chunks=chunks, tokens=tokens, failed=cut.failed)


def _as_rows(
    documents: pa.Table, lengths: np.ndarray[Any, Any], truncated: np.ndarray[Any, Any], spec: WorkerSpec
) -> pa.Table:
    hashes = identity.content_hashes(documents.column(schema.TEXT), spec.encode.encoder.prompt)
    rows = documents.append_column(schema.CONTENT_HASH, hashes)
    rows = rows.append_column(schema.ROW_HASH, identity.row_hashes(documents.select(spec.read.carried)))
    return _with_tokens(rows, lengths, truncated)


def _with_tokens(rows: pa.Table, lengths: np.ndarray[Any, Any], truncated: np.ndarray[Any, Any]) -> pa.Table:
    rows = rows.append_column(schema.N_TOKENS, pa.array(lengths.astype(np.int32)))
    return rows.append_column(schema.TRUNCATED, pa.array(truncated))


def slices_of(unit: Unit, spec: WorkerSpec, done: tuple[tuple[int, int], ...] = ()) -> Iterator[Slice]:
    """Yield the slices of a unit without the rows in the intervals `done`. Raises SourceChanged and StorageError."""
    return read_slices(unit, spec.slices, done)
