"""The rows that a unit gives the table become keys, to be compared with the live ones.

A key has the hashes of id, content and kept values. The file works on one unit. Who reads many units, and where, is
not known here. Spans are named by their place in the unit.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from pipeline import identity, schema
from pipeline.encoder.tokenizer import Tokenizer
from pipeline.stages.read import slices_of, tokenize_chunks
from pipeline.stages.slice_row import dead_letters_of
from pipeline.stages.worker_spec import WorkerSpec
from pipeline.table import scan
from pipeline.table.diff import WANTED, WANTED_KEY, Keys
from pipeline.table.snapshot import Tally, to_parquet
from pipeline.work import Unfit, Unit, Unreadable, together

GetTokenizer = Callable[[], Tokenizer]


@dataclass(frozen=True, kw_only=True)
class KeyTask:
    """The keys of this unit's rows are to be read. The number of a span in it is its place among the spans."""

    unit: Unit
    number: int
    """It is the number of the unit among the units of the run."""
    folder: str | None
    """Dead letters go into this folder. It is None where nothing is to be written."""


@dataclass(frozen=True, kw_only=True)
class KeyResult:
    """It says how many rows a unit has, and what could not be read."""

    number: int
    tally: Tally
    unread: Mapping[int, Unreadable]
    """It maps each span that can't be read to its end to what is known of that."""
    dead_letters: tuple[str, ...]
    """They are files of dead letters."""
    unfit: Unfit | None
    """It tells of rows that are of another type than their columns."""


def read_keys(item: KeyTask, spec: WorkerSpec, tokenizer: GetTokenizer) -> Iterator[Keys | KeyResult]:
    """Yield WANTED_KEY[n] of the unit's rows, some at a time, and in the end the unit's result. Raises SourceChanged."""
    unit, tally = item.unit, Tally()
    unread: dict[int, Unreadable] = {}
    dead_letters: list[str] = []
    unfit: list[Unfit] = []
    chunked = spec.rows_are_chunks
    for piece in slices_of(unit, spec):
        documents, dead = piece.documents, piece.dead_letters
        if chunked:
            tokenized = tokenize_chunks(documents, spec, tokenizer())
            assert tokenized.chunks is not None
            paths = {number: span.file.path for span, number in zip(unit.spans, unit.sources, strict=True)}
            if tokenized.failed:
                dead = pa.concat_tables([dead, dead_letters_of(documents, tokenized.failed, "tokenize", paths)])
            found = _chunk_keys(tokenized.documents, tokenized.chunks)
            num_documents = tokenized.documents.num_rows
        else:
            found, num_documents = _document_keys(documents, spec), documents.num_rows
        found["unit"], found["side"] = item.number, WANTED
        yield found
        unread |= piece.unread
        unfit += [piece.unfit] if piece.unfit is not None else []
        tally += Tally(rows=len(found), documents=num_documents, failed=dead.num_rows, skipped=piece.skipped)
        if dead.num_rows and item.folder is not None:
            dead_letters.append(f"{item.folder}letters/{item.number:06d}-{piece.first_row:012d}.parquet")
            spec.open_table().write(dead_letters[-1], to_parquet(dead))
    yield KeyResult(
        number=item.number, tally=tally, unread=unread, dead_letters=tuple(dead_letters), unfit=together(unfit)
    )


def _document_keys(documents: pa.Table, spec: WorkerSpec) -> Keys:
    out = np.zeros(documents.num_rows, WANTED_KEY)
    out["id"] = identity.id_hashes(documents.column(schema.ID))
    texts = documents.column(schema.TEXT)
    out["content"] = scan.hash_words(identity.content_hashes(texts, spec.encode.encoder.prompt))
    out["row"] = identity.row_hashes(documents.select(spec.read.carried)).to_numpy()
    out["span"] = documents.column(schema.SOURCE).to_numpy()
    out["position"] = documents.column(schema.POSITION).to_numpy()
    return out


def _chunk_keys(documents: pa.Table, chunks: pa.Table) -> Keys:
    number = chunks.column(schema.DOCUMENT).to_numpy()
    out = np.zeros(chunks.num_rows, WANTED_KEY)
    out["id"] = identity.id_hashes(chunk_ids(documents, chunks))
    out["content"] = scan.hash_words(chunks.column(schema.CONTENT_HASH))
    out["row"] = chunks.column(schema.ROW_HASH).to_numpy()
    out["span"] = documents.column(schema.SOURCE).to_numpy()[number]
    out["position"] = documents.column(schema.POSITION).to_numpy()[number]
    return out


def chunk_ids(documents: pa.Table, chunks: pa.Table) -> pa.Array:
    names = documents.column(schema.ID).to_pylist()
    pairs = zip(chunks.column(schema.DOCUMENT).to_pylist(), chunks.column(schema.CHUNK_INDEX).to_pylist(), strict=True)
    return pa.array([f"{names[document]}#{index}" for document, index in pairs], pa.string())


def with_spans(unit: Unit, places: Sequence[int]) -> Unit:
    """Return the unit with only the spans at these places. They keep their numbers, and no other file is opened."""
    return replace(
        unit,
        spans=tuple(unit.spans[place] for place in places),
        sources=tuple(unit.sources[place] for place in places),
    )


def only(unit: Unit, rows: Keys) -> Unit:
    """Return the unit with only the documents of these rows (UPSERT or ROW), and with the spans that have them."""
    places = np.unique(np.stack([rows["span"].astype(np.int64), rows["position"]], axis=1), axis=0)
    chosen = tuple((int(span), int(position)) for span, position in places.tolist())
    return replace(with_spans(unit, sorted({span for span, _ in chosen})), only=chosen)
