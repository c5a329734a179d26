"""Units of kind `texts`: each of some distinct texts is read, encoded, and recorded as content hash -> vector, nothing else.

The same stages as for rows, so that both go through the same flow; `read` and `write` take units of either kind. Texts that
fail are recorded too, with the reason. Rows are put together later, by row_writer.py.
"""

import time
import uuid
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from pipeline import identity, schema
from pipeline.encoder.tokenizer import Tokenizer
from pipeline.errors import SourceChanged
from pipeline.runs.plan import Task
from pipeline.sources.reader import read_slices
from pipeline.stages import encode
from pipeline.stages.encode import REPORT, Settings, from_cell, to_ipc
from pipeline.table import layout
from pipeline.table.part import Part
from pipeline.table.record import Effort, Record, create
from pipeline.table.scan import ERROR, STAGE, vectors_schema
from pipeline.table.snapshot import to_parquet
from pipeline.work import Slice, Unit


def read(task: Task, settings: Settings, tokenizer: Tokenizer) -> Iterator[pa.Table]:
    """The FLOW rows of a unit of either kind that no earlier run recorded."""
    if task.unit.hashes is None:
        yield from encode.read_and_tokenize(task, settings, tokenizer)
        return
    seen: set[bytes] = set()
    started = time.perf_counter()
    try:
        for piece in read_wanted(task.unit, settings, task.done):
            read_s = time.perf_counter() - started
            yield _tokenize(piece, task.unit, settings, tokenizer, seen, read_s)
            started = time.perf_counter()
    except SourceChanged as error:
        yield encode.refuse(task.unit.unit_id, f"{encode.SOURCE_CHANGED}{error}")


def read_wanted(unit: Unit, settings: Settings, done: tuple[tuple[int, int], ...] = ()) -> Iterator[Slice]:
    """The slices of a unit."""
    return read_slices(
        unit,
        settings.source_schema,
        settings.source,
        settings.carried,
        settings.limits,
        settings.slice_rows,
        done,
        settings.slice_bytes,
        settings.table.partition_by,
    )


def _tokenize(
    piece: Slice, unit: Unit, settings: Settings, tokenizer: Tokenizer, seen: set[bytes], read_s: float
) -> pa.Table:
    """`documents` are texts here, their id is their hash in hex: what fails is known by it."""
    started = time.perf_counter()
    documents = piece.documents
    tokenize = encode.tokenize_whole if settings.chunk is None else encode.tokenize_chunks
    tokenized = tokenize(documents, settings, tokenizer)
    rows = tokenized.documents if tokenized.chunks is None else tokenized.chunks
    chosen = _first_of(rows.column(schema.CONTENT_HASH).to_pylist(), set(unit.hashes or ()), seen)
    texts = _texts(rows.take(chosen))
    failed = documents.take(pa.array(sorted(tokenized.failed), pa.int64()))
    if tokenized.chunks is not None:
        failed = failed.slice(0, 0)  # The diff knew: such a document has no chunks.
    hashes = identity.content_hashes(failed.column(schema.TEXT), settings.encoder.prompt)
    failed = failed.set_column(0, schema.ID, _hex(hashes))
    reasons = dict(enumerate(tokenized.failed[row] for row in sorted(tokenized.failed)))
    paths = {number: span.file.path for span, number in zip(unit.spans, unit.sources, strict=True)}
    letters = encode.letters(failed, {} if not failed.num_rows else reasons, "tokenize", paths)
    effort = Effort(
        tokens=sum(texts.column(schema.N_TOKENS).to_pylist()),
        truncated=sum(texts.column(schema.TRUNCATED).to_pylist()),
        read_s=read_s,
        tokenize_s=time.perf_counter() - started,
    )
    return encode.flow_row(
        unit_id=piece.unit_id,
        first_row=piece.first_row,
        num_rows=piece.num_rows,
        skipped=piece.num_rows - texts.num_rows - letters.num_rows,
        broken=piece.broken,
        last=piece.last,
        sources=list(unit.sources),
        paths=list(paths.values()),
        documents=to_ipc(texts),
        tokens=to_ipc(_tokens_of(tokenized.tokens, chosen, settings)),
        dead_letters=to_ipc(letters),
        effort=encode.effort_to_json(effort),
        texts=True,
    )


def _first_of(hashes: list[bytes], wanted: set[bytes], seen: set[bytes]) -> pa.Array:
    """Where each wanted text that was not `seen` stands first; adds them to `seen`."""
    chosen = []
    for row, item in enumerate(hashes):
        if item in wanted and item not in seen:
            seen.add(item)
            chosen.append(row)
    return pa.array(chosen, pa.int64())


def _texts(rows: pa.Table) -> pa.Table:
    """The columns that the encode stage needs to name what fails, and those that are recorded."""
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


def _tokens_of(tokens: pa.Table, chosen: pa.Array, settings: Settings) -> pa.Table:
    """The token rows of the chosen texts, which are numbered anew."""
    if settings.chunk is None:
        return tokens.take(chosen)
    if settings.chunk.rows == "chunks":
        numbers = pa.array(np.arange(len(chosen), dtype=np.int32))
        return tokens.select([schema.TOKENS]).take(chosen).append_column(schema.DOCUMENT, numbers)
    document = tokens.column(schema.DOCUMENT).to_numpy()
    order = chosen.to_numpy()
    stay = np.isin(document, order)
    numbers = pa.array(np.searchsorted(order, document[stay]).astype(np.int32))
    return tokens.select([schema.TOKENS]).filter(pa.array(stay)).append_column(schema.DOCUMENT, numbers)


def _reasons(failed: pa.Table, settings: Settings) -> list[str]:
    """Where chunks are rows each text was a document of one chunk; which one it is of another is not said here."""
    alone = settings.chunk is not None and settings.chunk.rows == "chunks"
    return [error.removeprefix("chunk 0: " if alone else "") for error in failed.column("error").to_pylist()]


def write(row: pa.Table, settings: Settings) -> pa.Table:
    """Stage what a slice of a unit of either kind gave, then create its record. Safe to repeat: the first record wins."""
    if row.column("refused")[0].is_valid or not row.column("texts")[0].as_py():
        return encode.write(row, settings)
    started = time.perf_counter()
    table, attempt = settings.open_table(), uuid.uuid4().hex[:12]
    unit_id, first_row = row.column("unit_id")[0].as_py(), row.column("first_row")[0].as_py()
    texts, failed = from_cell(row, "documents"), from_cell(row, "dead_letters")
    vector = settings.part_schema.field(settings.table.embedding_column).type
    codes = np.frombuffer(encode.buffer(row, "vectors"), vector.value_type.to_pandas_dtype())
    values = pa.FixedSizeListArray.from_arrays(pa.array(codes, vector.value_type), type=vector)
    done = [texts.column(schema.CONTENT_HASH), values, texts.column(schema.N_TOKENS), texts.column(schema.TRUNCATED)]
    nothing = pa.nulls(texts.num_rows, pa.string())
    kind = vectors_schema(vector)
    bad = [
        pa.array([bytes.fromhex(item) for item in failed.column(schema.ID).to_pylist()], pa.binary(16)),
        *(pa.nulls(failed.num_rows, item) for item in kind.types[1:4]),
        failed.column("stage"),
        pa.array(_reasons(failed, settings), pa.string()),
    ]
    rows = pa.concat_tables([pa.table([*done, nothing, nothing], schema=kind), pa.table(bad, schema=kind)])
    assert kind.names[4:] == [STAGE, ERROR]
    parts: tuple[Part, ...] = ()
    if rows.num_rows:
        path, content = layout.staged_part(unit_id, first_row, attempt, 0), to_parquet(rows)
        table.write(path, content)
        parts = (
            Part(
                path=path,
                size=content.size,
                rows=rows.num_rows,
                raw_bytes=rows.nbytes,
                partition=(),
                units=(unit_id,),
                sources=(),
            ),
        )
    record = Record(
        unit_id=unit_id,
        first_row=first_row,
        num_rows=row.column("num_rows")[0].as_py(),
        skipped=row.column("skipped")[0].as_py(),
        documents=texts.num_rows,
        failed=failed.num_rows,
        broken=row.column("broken")[0].as_py(),
        last=row.column("last")[0].as_py(),
        sources=tuple(row.column("sources")[0].as_py()),
        parts=parts,
        dead_letters=None,
        bad_vectors=row.column("bad_vectors")[0].as_py(),
        effort=encode.effort_of(row) + Effort(write_s=time.perf_counter() - started),
        attempt=attempt,
        texts_of=settings.fingerprint,
    )
    create(table, record)
    report = {
        "unit_id": unit_id,
        "first_row": first_row,
        "num_rows": rows.num_rows,
        "failed": record.failed,
        "last": record.last,
        "effort": encode.effort_to_json(record.effort),
    } | {name: row.column(name)[0].as_py() for name in ("encoder", "encode_start", "encode_stop")}
    return pa.Table.from_pylist([report], REPORT)
