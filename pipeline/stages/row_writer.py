"""Changed rows are put together from source columns and vectors, and staged as parts.

Each function does one piece of work. Who does it, and where, is not known here. Spans are named by their place in the
unit until `write_upserts` gives them the numbers of the version.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import identity, schema
from pipeline.encoder.chunking import failed_texts
from pipeline.errors import GateFailed
from pipeline.stages.read import slices_of, tokenize_chunks
from pipeline.stages.row_keys import GetTokenizer, chunk_ids, only
from pipeline.stages.slice_row import dead_letters_of
from pipeline.stages.worker_spec import WorkerSpec
from pipeline.stages.write import part_rows, row_batches, write_parts
from pipeline.storage import Folder
from pipeline.table import scan
from pipeline.table.diff import Keys
from pipeline.table.part import Part
from pipeline.table.quantize import Codes
from pipeline.table.snapshot import Tally, to_parquet
from pipeline.work import Unit

ROWS_BYTES = 64 * 2**20
"""Rows are written when so many bytes of them are in memory."""

Hashes = np.ndarray[Any, np.dtype[np.uint64]]
"""They are uint64[n, 2]."""


@dataclass(frozen=True, kw_only=True, eq=False)
class UnitUpserts:
    """It holds the rows of one unit that are to be written."""

    unit: Unit
    """It has only the documents of these rows."""
    number: int
    numbers: tuple[int, ...]
    """They are the numbers of its spans in the version."""
    upserts: Keys
    """They are UPSERT[n]."""


@dataclass(frozen=True, kw_only=True)
class WriteTask:
    """It asks for the rows of some units, which go into the same parts."""

    units: tuple[UnitUpserts, ...]
    vectors: tuple[str, ...]
    """They are files that have the vectors of the texts."""
    output: str
    """The paths of the parts begin with it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class WriteResult:
    """It says what a task left in staging."""

    parts: tuple[Part, ...]
    dead_letters: tuple[str, ...]
    """They are files of dead letters, for documents with a text that has no vector."""
    lost: Mapping[int, Tally]
    """It maps the number of a unit to the rows and documents that failed."""
    lost_ids: Hashes
    """They are the hashes of the ids of all rows of such documents."""


def write_upserts(task: WriteTask, spec: WorkerSpec, tokenizer: GetTokenizer) -> Iterator[WriteResult]:
    """Stage parts with the rows. Raises SourceChanged, and GateFailed where a row is not found again."""
    table = spec.open_table()
    hashes = np.concatenate([item.upserts["content"] for item in task.units])
    stock = _VectorsByText(table, task.vectors, [row.tobytes() for row in np.unique(hashes, axis=0)], spec)
    writer = _Writer(table, task.output, task.units[0].unit.unit_id, spec)
    lost: dict[int, Tally] = {}
    lost_ids: list[Hashes] = [np.zeros((0, 2), np.uint64)]
    for item in task.units:
        found = 0
        for piece in slices_of(item.unit, spec):
            rows = _rows(piece.documents, item, stock, spec, tokenizer)
            writer.add(rows.documents, rows.chunks, rows.codes, item.numbers)
            writer.add_dead_letters(rows.dead_letters, item.numbers)
            found += rows.found
            lost[item.number] = lost.get(item.number, Tally()) + rows.lost
            lost_ids.append(rows.lost_ids)
        if found != len(item.upserts):
            raise GateFailed(
                f"{len(item.upserts)} rows of {item.unit.spans[0].file.path!r} were to be written, {found} were found: "
                "nothing was published; this is a bug, keep the staging folder for a report"
            )
    writer.flush()
    yield WriteResult(
        parts=tuple(writer.parts), dead_letters=tuple(writer.dead_letters), lost=lost, lost_ids=np.concatenate(lost_ids)
    )


class _VectorsByText:
    """It finds vectors by the hash of their text."""

    def __init__(self, table: Folder, paths: Sequence[str], hashes: Sequence[bytes], spec: WorkerSpec) -> None:
        kind = spec.write.part_schema.field(spec.write.table.embedding_column).type
        rows = scan.vectors(table, paths, hashes)
        if rows is None:
            rows = scan.vectors_schema(kind).empty_table()
        bad = rows.column(scan.ERROR).is_valid().to_pylist()
        failed = rows.filter(pa.array(bad, pa.bool_()))
        rows = rows.filter(pa.array([not item for item in bad], pa.bool_()))
        self.failed = {
            row[schema.CONTENT_HASH]: (row[scan.STAGE], row[scan.ERROR])
            for row in failed.drop_columns([scan.VECTOR]).to_pylist()
        }
        self._row = {item: number for number, item in enumerate(rows.column(schema.CONTENT_HASH).to_pylist())}
        values = rows.column(scan.VECTOR).combine_chunks()
        self._codes = values.flatten().to_numpy(zero_copy_only=False).reshape(-1, kind.list_size)
        self._tokens, self._truncated = rows.column(schema.N_TOKENS), rows.column(schema.TRUNCATED)

    def of(self, hashes: Sequence[bytes]) -> tuple[Codes, pa.ChunkedArray, pa.ChunkedArray]:
        """Return (codes, tokens, whether truncated) of these texts. Raises GateFailed where one is missing."""
        try:
            numbers = np.array([self._row[item] for item in hashes], np.int64)
        except KeyError:
            raise GateFailed(
                "a text has no vector and no error: nothing was published; this is a bug, keep the staging folder for a report"
            ) from None
        rows = pa.array(numbers)
        return self._codes[numbers], self._tokens.take(rows), self._truncated.take(rows)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Rows:
    """They are the rows of one slice: documents with all columns of the table but the vector, or documents and their
    chunks."""

    documents: pa.Table
    chunks: pa.Table | None
    codes: Codes
    dead_letters: pa.Table
    found: int
    """So many of the upserts stand in the slice, failed ones among them."""
    lost: Tally
    lost_ids: Hashes


def _rows(
    documents: pa.Table, item: UnitUpserts, stock: _VectorsByText, spec: WorkerSpec, tokenizer: GetTokenizer
) -> _Rows:
    found = _candidates(documents, spec, tokenizer)
    upserted = _is_among(found.ids, item.upserts["id"])
    failed = _failed_documents(found, upserted, stock)
    bad = np.isin(found.document, np.array(sorted(failed), np.int64))
    good = np.flatnonzero(upserted & ~bad)
    hashes = [found.hashes[row] for row in good.tolist()]
    codes, tokens, truncated = stock.of(hashes)
    documents, chunks = found.documents, found.chunks
    paths = {number: span.file.path for span, number in zip(item.unit.spans, item.unit.sources, strict=True)}
    dead_letters = _dead_letters(documents, failed, paths)
    if chunks is None:
        documents = documents.take(pa.array(good))
        documents = documents.append_column(schema.CONTENT_HASH, pa.array(hashes, pa.binary(16)))
        documents = documents.append_column(schema.ROW_HASH, identity.row_hashes(documents.select(spec.read.carried)))
        documents = documents.append_column(schema.N_TOKENS, tokens).append_column(schema.TRUNCATED, truncated)
    else:
        chunks = chunks.take(pa.array(good))
    return _Rows(
        documents=documents,
        chunks=chunks,
        codes=codes,
        dead_letters=dead_letters,
        found=int(upserted.sum()),
        lost=Tally(rows=int(bad.sum()), documents=len(failed), failed=-len(failed)),
        lost_ids=found.ids[bad],
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Candidates:
    """They are the n rows that the documents of a slice become, whether they are to be written or not."""

    documents: pa.Table
    chunks: pa.Table | None
    ids: Hashes
    hashes: Sequence[bytes]
    """They are the content hashes of the rows."""
    document: "np.ndarray[Any, np.dtype[np.int64]]"
    """It is the number of each row's document."""


def _candidates(documents: pa.Table, spec: WorkerSpec, tokenizer: GetTokenizer) -> _Candidates:
    if not spec.rows_are_chunks:
        return _Candidates(
            documents=documents,
            chunks=None,
            ids=identity.id_hashes(documents.column(schema.ID)),
            hashes=identity.content_hashes(documents.column(schema.TEXT), spec.encode.encoder.prompt).to_pylist(),
            document=np.arange(documents.num_rows),
        )
    tokenized = tokenize_chunks(documents, spec, tokenizer())
    documents, chunks = tokenized.documents, tokenized.chunks
    assert chunks is not None
    return _Candidates(
        documents=documents,
        chunks=chunks,
        ids=identity.id_hashes(chunk_ids(documents, chunks)),
        hashes=chunks.column(schema.CONTENT_HASH).to_pylist(),
        document=chunks.column(schema.DOCUMENT).to_numpy(),
    )


def _failed_documents(
    found: _Candidates, upserted: "np.ndarray[Any, np.dtype[np.bool_]]", stock: _VectorsByText
) -> dict[int, tuple[str, str]]:
    """Map each document with a text that has no vector to (the stage where it failed, the reason)."""
    rows = [row for row in np.flatnonzero(upserted).tolist() if found.hashes[row] in stock.failed]
    errors = {row: stock.failed[found.hashes[row]] for row in rows}
    reasons = {row: reason for row, (_, reason) in errors.items()}
    if found.chunks is not None:
        reasons = failed_texts(found.document, reasons)
    stages = {int(found.document[row]): stage for row, (stage, _) in errors.items()}
    return {document: (stages[document], reason) for document, reason in reasons.items()}


def _is_among(names: Hashes, known_names: Hashes) -> "np.ndarray[Any, np.dtype[np.bool_]]":
    known = {row.tobytes() for row in known_names}
    return np.array([row.tobytes() in known for row in names], bool)


def _dead_letters(documents: pa.Table, failed: Mapping[int, tuple[str, str]], paths: Mapping[int, str]) -> pa.Table:
    made = [dead_letters_of(documents, {row: reason}, stage, paths) for row, (stage, reason) in sorted(failed.items())]
    return pa.concat_tables([schema.DEAD_LETTERS.empty_table(), *made])


class _Writer:
    """It writes the rows of many units into few parts."""

    def __init__(self, table: Folder, output: str, unit_id: str, spec: WorkerSpec) -> None:
        self._table, self._output, self._unit_id, self._spec = table, output, unit_id, spec
        self._places = (f"{output}-{index:05d}.parquet" for index in itertools.count())
        self._waiting: list[pa.Table] = []
        self.parts: list[Part] = []
        self.dead_letters: list[str] = []

    def add(self, documents: pa.Table, chunks: pa.Table | None, codes: Codes, numbers: tuple[int, ...]) -> None:
        for rows, own in row_batches(with_version_numbers(documents, numbers), chunks, codes):
            if rows.num_rows:
                self._waiting.append(part_rows(rows, own, self._spec))
            if sum(rows.nbytes for rows in self._waiting) >= ROWS_BYTES:
                self.flush()

    def add_dead_letters(self, dead_letters: pa.Table, numbers: tuple[int, ...]) -> None:
        if dead_letters.num_rows:
            self.dead_letters.append(f"{self._output}-{len(self.dead_letters):05d}.letters")
            self._table.write(self.dead_letters[-1], to_parquet(with_version_numbers(dead_letters, numbers)))

    def flush(self) -> None:
        if self._waiting:
            rows = pa.concat_tables(self._waiting)
            self.parts += write_parts(self._table, rows, self._unit_id, self._places, self._spec)
            self._waiting = []


def with_version_numbers(rows: pa.Table, numbers: tuple[int, ...]) -> pa.Table:
    """Replace the spans' places in the unit by their numbers in the version."""
    found = np.array(numbers, np.int32)[rows.column(schema.SOURCE).to_numpy()]
    index = rows.schema.get_field_index(schema.SOURCE)
    return rows.set_column(index, rows.schema.field(schema.SOURCE), pa.array(found, pa.int32()))


def upserts_of(unit: Unit, number: int, numbers: tuple[int, ...], upserts: Keys) -> UnitUpserts:
    """Return the rows to write, and the unit with only their documents."""
    return UnitUpserts(unit=only(unit, upserts), number=number, numbers=numbers, upserts=upserts)
