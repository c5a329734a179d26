"""In the second stage token ids become vectors, and vectors become the codes that the table keeps.

A slice row with tokens and an encoder come in. The row goes out with codes in place of tokens, and with a dead letter
for each document that has no vector. The stage knows nothing of Ray, of files or of where the encoder came from.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import schema
from pipeline.encoder.chunking import failed_texts, mean_vectors
from pipeline.encoder.encoder import Embeddings, Encoder
from pipeline.encoder.token_rows import arrow_to_tokens
from pipeline.stages.slice_row import FLOW, cell, dead_letters_of, effort_of, effort_to_json, from_cell, to_ipc, without
from pipeline.stages.worker_spec import WorkerSpec
from pipeline.table.quantize import Codes, outside, quantize
from pipeline.table.record import Effort

Vectors = np.ndarray[Any, np.dtype[np.float32]]


def encode(
    row: pa.Table,
    encoder: Encoder,
    spec: WorkerSpec,
    name: str,
    on_progress: Callable[[int, int], None] | None = None,
) -> pa.Table:
    """Return the FLOW row with vectors in place of tokens. Documents that have no vector become dead letters.

    The `name` tells this encoder from the others of the run. `on_progress(documents, tokens)` hears what was encoded
    meanwhile.
    """
    if row.column("refused")[0].is_valid:
        return row
    started = time.perf_counter()
    tokens = from_cell(row, "tokens")
    num_documents = _num_documents(tokens)
    on_rows = on_progress and _per_document(on_progress, num_documents, tokens.num_rows)
    encoded, vectors, failed = vectors_of(tokens, encoder, spec, on_rows)
    changed: dict[str, pa.Array] = {}
    if failed:
        vectors, changed = _without_documents(row, vectors, failed)
    codes, bad_vectors, clipped = _codes_of(vectors, spec)
    effort = effort_of(row) + Effort(
        rows_encoded=encoded.rows_encoded,
        tokens_encoded=encoded.tokens,
        tokens_padded=encoded.padded_tokens,
        coded=vectors.size if spec.write.calibration is not None else 0,
        clipped=clipped,
        encode_s=time.perf_counter() - started - encoded.waited_seconds,
    )
    changed["tokens"] = pa.nulls(1, pa.large_binary())
    changed["vectors"] = cell(pa.py_buffer(np.ascontiguousarray(codes)))
    changed["bad_vectors"] = pa.array([bad_vectors], pa.int64())
    changed["effort"] = pa.array([effort_to_json(effort)])
    changed["encoder"], changed["engine"] = pa.array([name]), pa.array([encoder.description])
    changed["encode_start"], changed["encode_stop"] = (pa.array([at]) for at in encoded.turn)
    return pa.table([changed.get(name, row.column(name)) for name in FLOW.names], schema=FLOW)


def vectors_of(
    tokens: pa.Table, encoder: Encoder, spec: WorkerSpec, on_progress: Callable[[int, int], None] | None
) -> tuple[Embeddings, Vectors, Mapping[int, str]]:
    """Return (what the encoder did, a vector or NaN for each row of the table, document -> why it has no vector)."""
    encoded = encoder.encode(arrow_to_tokens(tokens.column(schema.TOKENS)), on_progress)
    if spec.chunk is None or spec.chunk.rows == "chunks":
        failed = encoded.failed | _unfit(encoded.vectors, spec.write.table.dtype)
        if spec.chunk is None:
            return encoded, encoded.vectors, failed
        return encoded, encoded.vectors, failed_texts(tokens.column(schema.DOCUMENT).to_numpy(), failed)
    document, unit_length = tokens.column(schema.DOCUMENT).to_numpy(), spec.encode.encoder.unit_length
    means, failed = mean_vectors(encoded.vectors, document, encoded.failed, unit_length=unit_length)
    return encoded, means, failed | _unfit(means, spec.write.table.dtype)


def _unfit(vectors: Vectors, dtype: str) -> dict[int, str]:
    """Say why a vector, finite and not zero in float32, is infinite or zero in the table's dtype. NaN is not judged
    here."""
    if dtype != "float16":
        return {}
    codes = quantize(vectors, dtype)
    sizes = np.abs(vectors).max(axis=1, initial=0)
    beyond = np.isinf(codes).any(axis=1) & np.isfinite(sizes)
    lost = (sizes > 0) & ~codes.any(axis=1)
    unfit = "its vector does not fit into float16:"
    mend = "set table.dtype to float32"
    reasons = {
        row: f"{unfit} a number of {sizes[row]:g} is larger than 65504; {mend}"
        for row in np.flatnonzero(beyond).tolist()
    }
    for row in np.flatnonzero(lost).tolist():
        reasons[row] = f"{unfit} it would be all zeros, its largest number is {sizes[row]:g}; {mend}"
    return reasons


def _codes_of(vectors: Vectors, spec: WorkerSpec) -> tuple[Codes, int, int]:
    """Return (the codes that the table keeps, bad vectors, clipped numbers).

    A bad vector is not finite or is zero: float16 has less room than float32, and integers can express neither. A
    clipped number lies outside the table's ranges.
    """
    ranges = spec.write.calibration.ranges if spec.write.calibration is not None else None
    codes = quantize(vectors, spec.write.table.dtype, ranges)
    checked = codes if codes.dtype.kind == "f" else vectors
    bad_vectors = int((~np.isfinite(checked).all(axis=1) | ~checked.any(axis=1)).sum())
    return codes, bad_vectors, int(outside(vectors, ranges).sum()) if ranges is not None else 0


def _num_documents(tokens: pa.Table) -> int:
    if schema.DOCUMENT not in tokens.column_names:
        return int(tokens.num_rows)
    return (pc.max(tokens.column(schema.DOCUMENT)).as_py() or 0) + 1 if tokens.num_rows else 0


def _per_document(
    on_progress: Callable[[int, int], None], num_documents: int, num_rows: int
) -> Callable[[int, int], None]:
    """Tell progress in documents where the encoder counts chunks. It is told in proportion, and no document twice."""
    seen = told = 0

    def progress(rows: int, tokens: int) -> None:
        nonlocal seen, told
        seen += rows
        documents = seen * num_documents // num_rows
        on_progress(documents - told, tokens)
        told = documents

    return progress


def _without_documents(
    row: pa.Table, vectors: np.ndarray[Any, Any], failed: Mapping[int, str]
) -> tuple[np.ndarray[Any, Any], dict[str, pa.Array]]:
    """Return the vectors that are left and the cells of the FLOW row that change. Failed documents leave with all
    their chunks."""
    documents = from_cell(row, "documents")
    paths = dict(zip(row.column("sources")[0].as_py(), row.column("paths")[0].as_py(), strict=True))
    new_dead_letters = dead_letters_of(documents, failed, "encode", paths)
    good = without(documents.num_rows, failed)
    changed = {
        "documents": cell(to_ipc(documents.take(good))),
        "dead_letters": cell(to_ipc(pa.concat_tables([from_cell(row, "dead_letters"), new_dead_letters]))),
    }
    if not row.column("chunks")[0].is_valid:
        return vectors[good], changed
    chunks = from_cell(row, "chunks")
    document = chunks.column(schema.DOCUMENT).to_numpy()
    stay = np.isin(document, good)
    index = chunks.schema.get_field_index(schema.DOCUMENT)
    numbers = pa.array(np.searchsorted(good, document[stay]).astype(np.int32))
    changed["chunks"] = cell(to_ipc(chunks.filter(pa.array(stay)).set_column(index, schema.DOCUMENT, numbers)))
    return vectors[stay], changed
