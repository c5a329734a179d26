"""A sample of a source's texts is read, and what int8 needs is measured on it.

Tasks come in, and some of their texts are sampled. The tokens, the ranges of their vectors, or the table's int8 model
go out. The functions know nothing of Ray.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import identity, schema
from pipeline.encoder import int8 as encoder_int8
from pipeline.encoder.encoder import Encoder
from pipeline.encoder.token_rows import arrow_to_tokens
from pipeline.encoder.tokenizer import Tokenizer
from pipeline.errors import RunError, SourceChanged
from pipeline.sources.reader import SLICE_BYTES, read_slices
from pipeline.stages.encode import vectors_of
from pipeline.stages.read import tokenize_chunks, tokenize_whole
from pipeline.stages.slice_row import SOURCE_CHANGED, flow_row, from_cell, refuse, to_ipc
from pipeline.stages.worker_spec import WorkerSpec
from pipeline.table import calibration, int8
from pipeline.table.calibration import Measurement
from pipeline.work import Task

MEASURED = pa.schema(
    [
        pa.field("texts", pa.list_(pa.binary())),
        pa.field("units", pa.list_(pa.string())),
        pa.field("minimum", pa.list_(pa.float32())),
        pa.field("maximum", pa.list_(pa.float32())),
        pa.field("refused", pa.string()),
    ]
)
"""It holds the calibration.Measurement of a slice of the sample, or why there is none."""

SAMPLE_ROWS = 256
"""A slice of the sample has so many texts."""
MOST_THREADS = 8
"""A process that quantises a model has at most so many threads, because more wait for each other."""


def read_sample(task: Task, spec: WorkerSpec, tokenizer: Tokenizer) -> Iterator[pa.Table]:
    """Yield FLOW rows with the tokens of a sample of a unit, and nothing else.

    The sample has at most `spec.read.slice_rows` different texts, or chunks of them, evenly spread over the unit's
    first `spec.read.sample_depth` rows. Texts are chosen before they are tokenized. It reads on while `source.where`
    and equal texts leave it with too few. It holds at most `spec.read.slice_bytes` of texts, or a single one.
    """
    spec = replace(spec, read=replace(spec.read, carried=()))
    tokenize = tokenize_whole if spec.chunk is None else tokenize_chunks
    try:
        documents = _spread_texts(task, spec)
    except SourceChanged as error:
        yield refuse(task.unit.unit_id, f"{SOURCE_CHANGED}{error}")
        return
    for start in range(0, documents.num_rows, SAMPLE_ROWS):
        some = documents.slice(start, SAMPLE_ROWS)
        tokens = tokenize(some, spec, tokenizer).tokens
        if spec.rows_are_chunks:
            tokens = tokens.take(
                _evenly(tokens.num_rows, -(-spec.read.slice_rows * some.num_rows // documents.num_rows))
            )
        if tokens.num_rows:
            yield flow_row(unit_id=task.unit.unit_id, first_row=start, tokens=to_ipc(tokens))


def _spread_texts(task: Task, spec: WorkerSpec) -> pa.Table:
    """Return the documents of `read_sample`, in their order."""
    most, depth = spec.read.slice_rows, spec.read.sample_depth
    slices = replace(spec.slices, carried=(), partition_by=(), rows=max(most, min(depth, 4096)), bytes=SLICE_BYTES)
    kept: pa.Table | None = None
    seen: set[bytes] = set()
    stride, rows = 1, 0
    for piece in read_slices(task.unit, slices):
        rows += piece.num_rows
        chosen = []
        for row, content in enumerate(identity.content_hashes(piece.documents.column(schema.TEXT), "").to_pylist()):
            if content not in seen:
                if len(seen) % stride == 0:
                    chosen.append(row)
                seen.add(content)
        documents = piece.documents.take(np.array(chosen, np.int64))
        kept = documents if kept is None else pa.concat_tables([kept, documents])
        # It holds every `stride`th of the texts so far, however many will follow.
        while kept.num_rows > 1 and (kept.num_rows >= 2 * most or kept.nbytes > spec.read.slice_bytes):
            kept, stride = kept.take(np.arange(0, kept.num_rows, 2)), 2 * stride
        if rows >= depth and len(seen) >= min(most, calibration.STEADY):
            break
    assert kept is not None
    return kept.take(_evenly(kept.num_rows, most)).combine_chunks()


def _evenly(count: int, most: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Choose at most `most` of the numbers below `count`, evenly spread, the first among them."""
    few = min(count, most)
    return np.arange(few) * count // max(1, few)


def measure(
    row: pa.Table,
    encoder: Encoder,
    spec: WorkerSpec,
    name: str,
    on_progress: Callable[[int, int], None] | None = None,
) -> pa.Table:
    """Return one MEASURED row with the ranges of the vectors of a FLOW row, as floats. The encoder's `name` is not
    used."""
    if row.column("refused")[0].is_valid:
        return measured(None, row.column("refused")[0].as_py())
    tokens = from_cell(row, "tokens")
    _, vectors, _ = vectors_of(tokens, encoder, spec, on_progress)
    hashes = _token_hashes(tokens, spec)
    return measured(calibration.measure(vectors, hashes, row.column("unit_id")[0].as_py()))


def refuse_to_measure(unit_id: str, reason: str) -> pa.Table:
    """Return the MEASURED row that ends a measurement with this reason."""
    return measured(None, reason)


def sampled_tokens(rows: Iterable[pa.Table]) -> pa.Table:
    """Return the tokens of all FLOW rows of a sample together. Raises RunError or SourceChanged where one is refused."""
    found = []
    for row in rows:
        refused = row.column("refused")[0].as_py()
        if refused is not None:
            raise SourceChanged(refused) if refused.startswith(SOURCE_CHANGED) else RunError(refused)
        found.append(from_cell(row, "tokens").select([schema.TOKENS]))
    return pa.concat_tables(found) if found else pa.table({schema.TOKENS: pa.array([], pa.large_list(pa.int32()))})


def quantise_model(tokens: pa.Table, spec: WorkerSpec, threads: int) -> None:
    """Make the table's int8 model, unless another run has. Raises InputError or RunError where it can't be made."""
    assert spec.encode.int8_path is not None
    rows = arrow_to_tokens(tokens.column(schema.TOKENS))
    graph, made = encoder_int8.quantise(spec.encode.encoder, rows, min(threads, MOST_THREADS))
    int8.create(spec.open_table(), spec.encode.int8_path, graph, made)


def _token_hashes(tokens: pa.Table, spec: WorkerSpec) -> list[bytes]:
    """Hash all that the model reads of each vector's text. Equal tokens give equal vectors but for the last bits."""
    rows = arrow_to_tokens(tokens.column(schema.TOKENS))
    whole = spec.chunk is not None and spec.chunk.rows == "documents"
    texts = tokens.column(schema.DOCUMENT).to_numpy() if whole else np.arange(len(rows))
    states = [hashlib.blake2b(digest_size=8) for _ in range(int(texts[-1]) + 1 if len(texts) else 0)]
    for text, start, stop in zip(texts.tolist(), rows.offsets, rows.offsets[1:], strict=False):
        states[text].update(rows.ids[start:stop].tobytes())
        states[text].update(b"/")
    return [state.digest() for state in states]


def measured(found: Measurement | None, refused: str | None = None) -> pa.Table:
    """Return one MEASURED row of what was found, or of the reason why nothing was."""
    values = {name: list(value) for name, value in vars(found).items()} if found is not None else {}
    return pa.Table.from_pylist([values | {"refused": refused}], MEASURED)


def measurement_of(rows: Iterable[pa.Table]) -> Measurement:
    """Add up all MEASURED rows. Raises RunError or SourceChanged where one is refused."""
    total = calibration.NOTHING
    for row in (row for table in rows for row in table.to_pylist()):
        refused = row["refused"]
        if refused is not None:
            raise SourceChanged(refused) if refused.startswith(SOURCE_CHANGED) else RunError(refused)
        total += Measurement(
            texts=frozenset(row["texts"]),
            units=frozenset(row["units"]),
            minimum=tuple(row["minimum"]),
            maximum=tuple(row["maximum"]),
        )
    return total
