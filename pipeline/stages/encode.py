"""The three stages of the flow as plain functions of one-row Arrow tables: read and tokenize, encode, write.

One row is one slice of a unit; what the next stage needs travels as Arrow IPC in `large_binary` cells, which Ray neither
opens nor splits. The stages know nothing of Ray; they never raise for bad data: they record it.
"""

import hashlib
import itertools
import json
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import identity, schema
from pipeline.config import ChunkSpec, LimitSpec, SourceSpec, TableSpec
from pipeline.encoder import int8 as calibrating
from pipeline.encoder.chunking import chunk, failed_texts, mean_vectors
from pipeline.encoder.encoder import Embeddings, Encoder
from pipeline.encoder.token_rows import arrow_to_tokens, tokens_to_arrow
from pipeline.encoder.tokenizer import Tokenizer
from pipeline.errors import RunError, SourceChanged, one_line
from pipeline.model.folder import EncoderSpec
from pipeline.quantize import Codes, outside, quantize
from pipeline.runs.plan import Task
from pipeline.sources.columns import row_bytes
from pipeline.sources.reader import read_slices
from pipeline.storage import Folder
from pipeline.table import calibration, int8, layout
from pipeline.table.calibration import Calibration, Measurement
from pipeline.table.part import Part, distinct_sources, encode_part, split_by_partition
from pipeline.table.record import Effort, Record, create
from pipeline.work import Slice, Unit

FLOW = pa.schema(
    [
        pa.field("unit_id", pa.string()),
        pa.field("first_row", pa.int64()),
        pa.field("num_rows", pa.int64()),
        pa.field("skipped", pa.int64()),
        pa.field("broken", pa.bool_()),
        pa.field("last", pa.bool_()),
        pa.field("sources", pa.list_(pa.int32())),
        pa.field("paths", pa.list_(pa.string())),
        pa.field("documents", pa.large_binary()),
        pa.field("chunks", pa.large_binary()),
        pa.field("tokens", pa.large_binary()),
        pa.field("vectors", pa.large_binary()),
        pa.field("bad_vectors", pa.int64()),
        pa.field("dead_letters", pa.large_binary()),
        pa.field("effort", pa.string()),
        pa.field("encoder", pa.string()),
        pa.field("engine", pa.string()),
        pa.field("encode_start", pa.float64()),
        pa.field("encode_stop", pa.float64()),
        pa.field("refused", pa.string()),
        pa.field("texts", pa.bool_()),
    ]
)
"""What travels between stages: one row per slice. `texts` says that it is of a unit of that kind. `refused` says why
a unit, or the whole run, can't go on; `encoder`, `engine` and the unix times say who encoded it, with what, and when.
`vectors` are the table's codes, the shortest form they have."""

REPORT = pa.schema(
    [
        pa.field("unit_id", pa.string()),
        pa.field("first_row", pa.int64()),
        pa.field("num_rows", pa.int64()),
        pa.field("failed", pa.int64()),
        pa.field("last", pa.bool_()),
        pa.field("effort", pa.string()),
        pa.field("encoder", pa.string()),
        pa.field("engine", pa.string()),
        pa.field("encode_start", pa.float64()),
        pa.field("encode_stop", pa.float64()),
        pa.field("refused", pa.string()),
    ]
)
"""What the write stage tells the driver of each slice."""


MEASURED = pa.schema(
    [
        pa.field("texts", pa.list_(pa.binary())),
        pa.field("units", pa.list_(pa.string())),
        pa.field("minimum", pa.list_(pa.float32())),
        pa.field("maximum", pa.list_(pa.float32())),
        pa.field("refused", pa.string()),
    ]
)
"""A calibration.Measurement of a slice of the sample, or why there is none."""

SAMPLE_ROWS = 256
"""Texts of a slice of the sample."""

BATCH_BYTES = 64 * 2**20
"""Of the columns that chunks repeat from their document: a part of the table is made of so much at a time."""

Vectors = np.ndarray[Any, np.dtype[np.float32]]

SOURCE_CHANGED = "source changed: "
"""How a refusal begins that another plan can mend."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All that the stages of one run need to know; holds secrets, so it never travels as an argument of a Ray stage."""

    source: SourceSpec
    chunk: ChunkSpec | None
    table: TableSpec
    limits: LimitSpec
    encoder: EncoderSpec
    source_schema: pa.Schema
    part_schema: pa.Schema
    calibration: Calibration | None
    """Of a table whose dtype has ranges; None before they are measured, too."""
    fingerprint: str
    probes: tuple[tuple[float, ...], ...]
    carried: tuple[str, ...]
    """RunSpec.carried."""
    slice_rows: int
    slice_bytes: int
    """Of text and kept columns."""
    sample_depth: int = 0
    """Where a sample is read: calibration.Sample.depth."""
    tokenizer_threads: int
    encoder_threads: int
    device: str
    measure_budget: bool = False
    """Whether there is enough to do for looking for the fastest size of a batch."""
    int8_path: str | None = None
    """Where in the table its int8 model is described, for a table that has one."""

    def encoder_here(self) -> EncoderSpec:
        """The encoder with the table's int8 model, if it has one, on this node."""
        return int8.encoder_here(self.encoder, self.open_table(), self.int8_path)

    def open_table(self) -> Folder:
        return Folder(self.table.path, self.table.storage_options)


def read_and_tokenize(task: Task, settings: Settings, tokenizer: Tokenizer) -> Iterator[pa.Table]:
    """The slices of a unit that no earlier run recorded, as FLOW rows; a changed source file ends them with `refused`."""
    slices = read_slices(
        task.unit,
        settings.source_schema,
        settings.source,
        settings.carried,
        settings.limits,
        settings.slice_rows,
        task.done,
        settings.slice_bytes,
        settings.table.partition_by,
    )
    started = time.perf_counter()
    try:
        for piece in slices:
            read_s = time.perf_counter() - started
            yield _tokenize(piece, task.unit, settings, tokenizer, read_s)
            started = time.perf_counter()
    except SourceChanged as error:
        yield refuse(task.unit.unit_id, f"{SOURCE_CHANGED}{error}")


def _tokenize(piece: Slice, unit: Unit, settings: Settings, tokenizer: Tokenizer, read_s: float) -> pa.Table:
    started = time.perf_counter()
    paths = {number: span.file.path for span, number in zip(unit.spans, unit.sources, strict=True)}
    tokenize = tokenize_whole if settings.chunk is None else tokenize_chunks
    tokenized = tokenize(piece.documents, settings, tokenizer)
    dead_letters = piece.dead_letters
    if tokenized.failed:
        new_letters = letters(piece.documents, tokenized.failed, "tokenize", paths)
        dead_letters = pa.concat_tables([dead_letters, new_letters])
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
    )


@dataclass(frozen=True, kw_only=True)
class _Tokenized:
    documents: pa.Table
    """Those that have tokens, with schema.CONTENT_HASH, ROW_HASH, N_TOKENS and TRUNCATED where they are rows of the table."""
    chunks: pa.Table | None
    """Where chunks are rows of the table: these columns, schema.DOCUMENT and the chunk fields but doc_id. The documents'
    own columns are not repeated for each chunk before the rows are written."""
    tokens: pa.Table
    """schema.TOKENS, and schema.DOCUMENT where documents are chunked: a row per chunk."""
    failed: Mapping[int, str]
    """Document -> reason."""


def tokenize_whole(documents: pa.Table, settings: Settings, tokenizer: Tokenizer) -> _Tokenized:
    tokens = tokenizer.tokenize(documents.column(schema.TEXT).to_pylist())
    column, truncated, lengths = tokens_to_arrow(tokens), tokens.truncated, tokens.lengths
    if tokens.failed:
        good = _without(documents.num_rows, tokens.failed)
        documents, column = documents.take(good), column.take(pa.array(good))
        truncated, lengths = truncated[good], lengths[good]
    return _Tokenized(
        documents=_as_rows(documents, lengths, truncated, settings),
        chunks=None,
        tokens=pa.table({schema.TOKENS: column}),
        failed=tokens.failed,
    )


def tokenize_chunks(documents: pa.Table, settings: Settings, tokenizer: Tokenizer) -> _Tokenized:
    assert settings.chunk is not None
    texts = documents.column(schema.TEXT).to_pylist()
    cut = chunk(texts, tokenizer, settings.chunk)
    good, first, document = np.unique(cut.text, return_index=True, return_inverse=True)
    documents, number = documents.take(pa.array(good)), pa.array(document.astype(np.int32))
    lengths, truncated = cut.tokens.lengths, cut.tokens.truncated
    tokens = pa.table({schema.TOKENS: tokens_to_arrow(cut.tokens), schema.DOCUMENT: number})
    if settings.chunk.rows == "documents":
        if len(good):
            lengths, truncated = np.add.reduceat(lengths, first), np.logical_or.reduceat(truncated, first)
        documents, chunks = _as_rows(documents, lengths, truncated, settings), None
    else:
        pieces = zip(cut.text.tolist(), cut.start.tolist(), cut.end.tolist(), strict=True)
        content = pa.array([texts[text][start:end] for text, start, end in pieces], pa.large_string())
        fields = {
            schema.CHUNK_INDEX: pa.array(cut.index.astype(np.int32)),
            schema.CHUNK_START: pa.array(cut.start),
            schema.CHUNK_END: pa.array(cut.end),
        }
        columns = {
            schema.DOCUMENT: number,
            **fields,
            schema.CONTENT_HASH: identity.content_hashes(content, settings.encoder.prompt),
            schema.ROW_HASH: identity.row_hashes(documents.select(settings.carried), pa.table(fields), document),
        }
        chunks = _with_tokens(pa.table(columns), lengths, truncated)
    return _Tokenized(documents=documents, chunks=chunks, tokens=tokens, failed=cut.failed)


def _as_rows(
    documents: pa.Table, lengths: np.ndarray[Any, Any], truncated: np.ndarray[Any, Any], settings: Settings
) -> pa.Table:
    hashes = identity.content_hashes(documents.column(schema.TEXT), settings.encoder.prompt)
    rows = documents.append_column(schema.CONTENT_HASH, hashes)
    rows = rows.append_column(schema.ROW_HASH, identity.row_hashes(documents.select(settings.carried)))
    return _with_tokens(rows, lengths, truncated)


def _with_tokens(rows: pa.Table, lengths: np.ndarray[Any, Any], truncated: np.ndarray[Any, Any]) -> pa.Table:
    rows = rows.append_column(schema.N_TOKENS, pa.array(lengths.astype(np.int32)))
    return rows.append_column(schema.TRUNCATED, pa.array(truncated))


def encode(
    row: pa.Table,
    encoder: Encoder,
    settings: Settings,
    name: str,
    on_progress: Callable[[int, int], None] | None = None,
) -> pa.Table:
    """The same FLOW row with vectors in place of tokens; documents that have no vector become dead letters.

    `name` is the encoder's own among those of the run; `on_progress(documents, tokens)` hears what was encoded meanwhile.
    """
    if row.column("refused")[0].is_valid:
        return row
    start, started = time.time(), time.perf_counter()
    tokens = from_cell(row, "tokens")
    num_documents = _num_documents(tokens)
    on_rows = on_progress and _per_document(on_progress, num_documents, tokens.num_rows)
    encoded, vectors, failed = _vectors_of(tokens, encoder, settings, on_rows)
    changed: dict[str, pa.Array] = {}
    if failed:
        vectors, changed = _without_documents(row, vectors, failed)
    codes, bad_vectors, clipped = _codes_of(vectors, settings)
    effort = effort_of(row) + Effort(
        rows_encoded=encoded.rows_encoded,
        tokens_encoded=encoded.tokens,
        tokens_padded=encoded.padded_tokens,
        coded=vectors.size if settings.calibration is not None else 0,
        clipped=clipped,
        encode_s=time.perf_counter() - started,
    )
    changed["tokens"] = pa.nulls(1, pa.large_binary())
    changed["vectors"] = _cell(pa.py_buffer(np.ascontiguousarray(codes)))
    changed["bad_vectors"] = pa.array([bad_vectors], pa.int64())
    changed["effort"] = pa.array([effort_to_json(effort)])
    changed["encoder"], changed["engine"] = pa.array([name]), pa.array([encoder.engine.name])
    changed["encode_start"], changed["encode_stop"] = pa.array([start]), pa.array([time.time()])
    return pa.table([changed.get(name, row.column(name)) for name in FLOW.names], schema=FLOW)


def _vectors_of(
    tokens: pa.Table, encoder: Encoder, settings: Settings, on_progress: Callable[[int, int], None] | None
) -> tuple[Embeddings, Vectors, Mapping[int, str]]:
    """(what the encoder did, a vector for each row of the table or NaN, document -> reason why it has none)."""
    encoded = encoder.encode(arrow_to_tokens(tokens.column(schema.TOKENS)), on_progress)
    if settings.chunk is None or settings.chunk.rows == "chunks":
        failed = encoded.failed | _unfit(encoded.vectors, settings.table.dtype)
        if settings.chunk is None:
            return encoded, encoded.vectors, failed
        return encoded, encoded.vectors, failed_texts(tokens.column(schema.DOCUMENT).to_numpy(), failed)
    document, unit_length = tokens.column(schema.DOCUMENT).to_numpy(), settings.encoder.unit_length
    means, failed = mean_vectors(encoded.vectors, document, encoded.failed, unit_length=unit_length)
    return encoded, means, failed | _unfit(means, settings.table.dtype)


def _unfit(vectors: Vectors, dtype: str) -> dict[int, str]:
    """Row -> why its vector, finite and not zero in float32, is not so as the table would have it. NaN is not judged."""
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


def _codes_of(vectors: Vectors, settings: Settings) -> tuple[Codes, int, int]:
    """The vectors as the table has them, how many are not finite or are zero (float16 has less room than float32, the
    integers have no word for either), and how many of their numbers lie outside the table's ranges."""
    ranges = settings.calibration.ranges if settings.calibration is not None else None
    codes = quantize(vectors, settings.table.dtype, ranges)
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
    """The same in documents, for an encoder that counts chunks: in proportion, none told twice."""
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
    """The vectors that are left, and the cells of the FLOW row that change: failed documents leave with all their chunks."""
    documents = from_cell(row, "documents")
    paths = dict(zip(row.column("sources")[0].as_py(), row.column("paths")[0].as_py(), strict=True))
    new_letters = letters(documents, failed, "encode", paths)
    good = _without(documents.num_rows, failed)
    changed = {
        "documents": _cell(to_ipc(documents.take(good))),
        "dead_letters": _cell(to_ipc(pa.concat_tables([from_cell(row, "dead_letters"), new_letters]))),
    }
    if not row.column("chunks")[0].is_valid:
        return vectors[good], changed
    chunks = from_cell(row, "chunks")
    document = chunks.column(schema.DOCUMENT).to_numpy()
    stay = np.isin(document, good)
    index = chunks.schema.get_field_index(schema.DOCUMENT)
    numbers = pa.array(np.searchsorted(good, document[stay]).astype(np.int32))
    changed["chunks"] = _cell(to_ipc(chunks.filter(pa.array(stay)).set_column(index, schema.DOCUMENT, numbers)))
    return vectors[stay], changed


def read_sample(task: Task, settings: Settings, tokenizer: Tokenizer) -> Iterator[pa.Table]:
    """FLOW rows with tokens and nothing else: of at most `settings.slice_rows` different texts of a unit, or chunks of them,
    evenly spread over its first `settings.sample_depth` rows. Texts are chosen before they are tokenized.

    It reads on while `source.where` and equal texts leave it with too few, and holds `settings.slice_bytes` of them at most
    but for a single one.
    """
    settings = replace(settings, carried=())
    tokenize = tokenize_whole if settings.chunk is None else tokenize_chunks
    try:
        documents = _spread_texts(task, settings)
    except SourceChanged as error:
        yield refuse(task.unit.unit_id, f"{SOURCE_CHANGED}{error}")
        return
    for start in range(0, documents.num_rows, SAMPLE_ROWS):
        some = documents.slice(start, SAMPLE_ROWS)
        tokens = tokenize(some, settings, tokenizer).tokens
        if settings.chunk is not None and settings.chunk.rows == "chunks":
            tokens = tokens.take(
                _evenly(tokens.num_rows, -(-settings.slice_rows * some.num_rows // documents.num_rows))
            )
        if tokens.num_rows:
            yield flow_row(unit_id=task.unit.unit_id, first_row=start, tokens=to_ipc(tokens))


def _spread_texts(task: Task, settings: Settings) -> pa.Table:
    """The documents of `read_sample`, in their order."""
    most, depth = settings.slice_rows, settings.sample_depth
    pieces = read_slices(
        task.unit, settings.source_schema, settings.source, (), settings.limits, max(most, min(depth, 4096)), ()
    )
    kept: pa.Table | None = None
    seen: set[bytes] = set()
    stride, rows = 1, 0
    for piece in pieces:
        rows += piece.num_rows
        chosen = []
        for row, content in enumerate(identity.content_hashes(piece.documents.column(schema.TEXT), "").to_pylist()):
            if content not in seen:
                if len(seen) % stride == 0:
                    chosen.append(row)
                seen.add(content)
        documents = piece.documents.take(np.array(chosen, np.int64))
        kept = documents if kept is None else pa.concat_tables([kept, documents])
        # Every `stride`th of the texts so far, however many will follow.
        while kept.num_rows > 1 and (kept.num_rows >= 2 * most or kept.nbytes > settings.slice_bytes):
            kept, stride = kept.take(np.arange(0, kept.num_rows, 2)), 2 * stride
        if rows >= depth and len(seen) >= min(most, calibration.STEADY):
            break
    assert kept is not None
    return kept.take(_evenly(kept.num_rows, most)).combine_chunks()


def _evenly(count: int, most: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Of the numbers below `count` at most so many, the first among them."""
    few = min(count, most)
    return np.arange(few) * count // max(1, few)


def measure(
    row: pa.Table, encoder: Encoder, settings: Settings, on_batch: Callable[[], None] | None = None
) -> pa.Table:
    """One MEASURED row: the ranges of the vectors of a FLOW row, as floats. `on_batch` hears of every batch."""
    if row.column("refused")[0].is_valid:
        return measured(None, row.column("refused")[0].as_py())
    tokens = from_cell(row, "tokens")
    _, vectors, _ = _vectors_of(tokens, encoder, settings, on_batch and (lambda rows, tokens: on_batch()))
    hashes = _token_hashes(tokens, settings)
    return measured(calibration.measure(vectors, hashes, row.column("unit_id")[0].as_py()))


def sampled_tokens(rows: Iterable[pa.Table]) -> pa.Table:
    """The tokens of all FLOW rows of a sample together. Raises RunError or SourceChanged where one is refused."""
    found = []
    for row in rows:
        refused = row.column("refused")[0].as_py()
        if refused is not None:
            raise SourceChanged(refused) if refused.startswith(SOURCE_CHANGED) else RunError(refused)
        found.append(from_cell(row, "tokens").select([schema.TOKENS]))
    return pa.concat_tables(found) if found else pa.table({schema.TOKENS: pa.array([], pa.large_list(pa.int32()))})


def quantise(tokens: pa.Table, settings: Settings, threads: int) -> None:
    """Make the table's int8 model, unless another run has. Raises InputError or RunError where it is not to be had."""
    assert settings.int8_path is not None
    graph, made = calibrating.quantise(settings.encoder, arrow_to_tokens(tokens.column(schema.TOKENS)), threads)
    int8.create(settings.open_table(), settings.int8_path, graph, made)


def _token_hashes(tokens: pa.Table, settings: Settings) -> list[bytes]:
    """One for each vector, over all that the model reads of it: equal tokens give equal vectors but for the last bits."""
    rows = arrow_to_tokens(tokens.column(schema.TOKENS))
    whole = settings.chunk is not None and settings.chunk.rows == "documents"
    owners = tokens.column(schema.DOCUMENT).to_numpy() if whole else np.arange(len(rows))
    states = [hashlib.blake2b(digest_size=8) for _ in range(int(owners[-1]) + 1 if len(owners) else 0)]
    for owner, start, stop in zip(owners.tolist(), rows.offsets, rows.offsets[1:], strict=False):
        states[owner].update(rows.ids[start:stop].tobytes())
        states[owner].update(b"/")
    return [state.digest() for state in states]


def measured(found: Measurement | None, refused: str | None = None) -> pa.Table:
    """One MEASURED row of what was found, or of the reason why nothing was."""
    values = {name: list(value) for name, value in vars(found).items()} if found is not None else {}
    return pa.Table.from_pylist([values | {"refused": refused}], MEASURED)


def measurement_of(rows: Iterable[pa.Table]) -> Measurement:
    """Of all MEASURED rows together. Raises RunError or SourceChanged where one is refused."""
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


def refuse(unit_id: str, reason: str) -> pa.Table:
    """The FLOW row that ends a run with this reason."""
    return flow_row(unit_id=unit_id, refused=reason)


def write(row: pa.Table, settings: Settings) -> pa.Table:
    """Stage the slice's parts and dead letters, then create its record. Safe to repeat: the first record wins."""
    if row.column("refused")[0].is_valid:
        return pa.Table.from_pylist([{name: row.column(name)[0].as_py() for name in ("unit_id", "refused")}], REPORT)
    started = time.perf_counter()
    table, attempt = settings.open_table(), uuid.uuid4().hex[:12]
    unit_id, first_row = row.column("unit_id")[0].as_py(), row.column("first_row")[0].as_py()
    stored = settings.part_schema.field(settings.table.embedding_column).type
    codes = np.frombuffer(buffer(row, "vectors"), stored.value_type.to_pandas_dtype()).reshape(-1, stored.list_size)
    documents = from_cell(row, "documents")
    chunks = from_cell(row, "chunks") if row.column("chunks")[0].is_valid else None
    parts: list[Part] = []
    for rows, own in row_batches(documents, chunks, codes):
        places = (layout.staged_part(unit_id, first_row, attempt, index) for index in itertools.count(len(parts)))
        parts += write_parts(table, part_rows(rows, own, settings), unit_id, places, settings)
    dead_letters = from_cell(row, "dead_letters")
    staged_letters = _write_dead_letters(table, dead_letters, unit_id, first_row, attempt)
    record = Record(
        unit_id=unit_id,
        first_row=first_row,
        num_rows=row.column("num_rows")[0].as_py(),
        skipped=row.column("skipped")[0].as_py(),
        documents=count_documents(documents, chunks),
        failed=dead_letters.num_rows,
        broken=row.column("broken")[0].as_py(),
        last=row.column("last")[0].as_py(),
        sources=tuple(row.column("sources")[0].as_py()),
        parts=tuple(parts),
        dead_letters=staged_letters,
        bad_vectors=row.column("bad_vectors")[0].as_py(),
        effort=effort_of(row) + Effort(write_s=time.perf_counter() - started),
        attempt=attempt,
    )
    create(table, record)
    report = {
        "unit_id": unit_id,
        "first_row": first_row,
        "num_rows": record.num_rows,
        "failed": record.failed,
        "last": record.last,
        "effort": effort_to_json(record.effort),
    } | {name: row.column(name)[0].as_py() for name in ("encoder", "engine", "encode_start", "encode_stop")}
    return pa.Table.from_pylist([report], REPORT)


def count_documents(documents: pa.Table, chunks: pa.Table | None) -> int:
    """Of those whose rows are written."""
    if chunks is None:
        return int(documents.num_rows)
    return int(pc.sum(pc.equal(chunks.column(schema.CHUNK_INDEX), 0)).as_py() or 0)


def row_batches(documents: pa.Table, chunks: pa.Table | None, codes: Codes) -> Iterator[tuple[pa.Table, Codes]]:
    """(rows, their codes): all at once, or chunks with their documents' columns, some 64 MiB of them at a time."""
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


def part_rows(documents: pa.Table, codes: Codes, settings: Settings) -> pa.Table:
    """Columns of the parts plus the partition columns that the parts will not carry."""
    column = settings.part_schema.field(settings.table.embedding_column)
    values = pa.array(np.ascontiguousarray(codes).reshape(-1), column.type.value_type)
    embedded = documents.append_column(column, pa.FixedSizeListArray.from_arrays(values, type=column.type))
    parts = embedded.select(settings.part_schema.names).cast(settings.part_schema)
    for name in settings.table.partition_by:
        parts = parts.append_column(name, documents.column(name)) if name not in parts.column_names else parts
    return parts


def write_parts(table: Folder, rows: pa.Table, unit_id: str, places: Iterator[str], settings: Settings) -> list[Part]:
    """A staged part for each partition of the rows, at the next of the places."""
    parts = []
    groups = split_by_partition(rows, settings.table.partition_by)
    for (partition, group), path in zip(groups, places, strict=False):
        content = encode_part(group, settings.table.embedding_column)
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
    from pipeline.table.snapshot import to_parquet

    path, content = layout.staged_dead_letters(unit_id, first_row, attempt), to_parquet(rows)
    table.write(path, content)
    return path, content.size


def letters(documents: pa.Table, failed: Mapping[int, str], stage: str, paths: Mapping[int, str]) -> pa.Table:
    """DEAD_LETTERS for some documents of a table."""
    rows = (
        documents.select([schema.ID, schema.SOURCE, schema.POSITION, schema.TEXT])
        .take(pa.array(sorted(failed), pa.int64()))
        .to_pylist()
    )
    reasons = (one_line(failed[index]) for index in sorted(failed))
    return pa.Table.from_pylist(
        [
            row | {"path": paths[row[schema.SOURCE]], "stage": stage, "error": reason}
            for row, reason in zip(rows, reasons, strict=True)
        ],
        schema.DEAD_LETTERS,
    )


def _without(num_rows: int, failed: Mapping[int, str]) -> np.ndarray[Any, Any]:
    """Indexes of the rows that didn't fail."""
    good = np.ones(num_rows, bool)
    good[list(failed)] = False
    return np.flatnonzero(good)


def to_ipc(table: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def from_cell(row: pa.Table, name: str) -> pa.Table:
    """The Arrow table in a cell, without a copy."""
    return pa.ipc.open_stream(buffer(row, name)).read_all()


def buffer(row: pa.Table, name: str) -> pa.Buffer:
    return row.column(name)[0].as_buffer()


def _cell(buffer: pa.Buffer) -> pa.Array:
    """A one-row large_binary array around a buffer, without a copy."""
    offsets = pa.py_buffer(np.array([0, buffer.size], np.int64))
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, buffer])


def flow_row(**values: Any) -> pa.Table:
    columns: Sequence[pa.Array] = [
        _cell(values[name]) if isinstance(values.get(name), pa.Buffer) else pa.array([values.get(name)], kind)
        for name, kind in zip(FLOW.names, FLOW.types, strict=True)
    ]
    return pa.table(columns, schema=FLOW)


def effort_to_json(effort: Effort) -> str:
    return json.dumps(asdict(effort))


def effort_of(row: pa.Table) -> Effort:
    return Effort(**json.loads(row.column("effort")[0].as_py()))
