"""A published table is asked: for the rows nearest to a query or to one of its rows, or for pairs that are nearly the same.

A table and a question come in, and `Found` or `Pairs` go out. Every row is compared in this process: it is a look at the
result, not a search service. Only a query needs the model.
"""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.config import RunSpec
from pipeline.errors import InputError, one_line
from pipeline.runs.found import BM25, SCORE, SIMILARITY, Found, Pairs, kept_columns
from pipeline.runs.published import Published, published
from pipeline.runs.recorded import none_published, spec_of, table_of
from pipeline.runs.snippets import snippet
from pipeline.schema import CONTENT_HASH, DOC_ID, ID, TEXT
from pipeline.storage import Folder
from pipeline.table import duplicates, snapshot
from pipeline.table.conditions import Condition, told
from pipeline.table.neighbours import unit
from pipeline.table.row_reader import RowReader
from pipeline.table.search import Places, Stored, all_places, best, rows_at, stored, vectors_at
from pipeline.table.word_index import word_scores
from pipeline.table.words import terms

MOST_COMPARED = 300_000
"""So many rows are compared pair by pair; their work grows with the square."""
_FUSED = 100
"""So many rows of each ranking are fused at least."""
_RANK = 60
"""It is the constant of reciprocal rank fusion: a rank counts 1 / (60 + rank)."""

Given = RunSpec | str | Path


def search(given: Given, query: str, *, top: int = 5, where: Sequence[str] = (), hybrid: bool = False) -> Found:
    """Return the `top` rows, or documents where they are chunked, nearest to the query, best first.

    With `hybrid` the ranking by the query's words is fused with that by vectors. Raises InputError.
    """
    _check_top(top)
    found = published(given if isinstance(given, RunSpec) else spec_of(str(given)))
    reader = RowReader(found.table, found.version)
    condition = told(where, reader.schema)
    vectors, vector = stored(found.table, found.version), query_vector(found, query)
    function = found.encoder.similarity
    if not hybrid:
        places, scores = _nearest(reader, vectors, vector, top, function, condition)
        rows = _documents(reader, places, {SCORE: scores}, top)
    else:
        every, scores = best(reader, vectors, vector, None, function, condition)
        by_words = word_scores(reader, query)[_numbers(reader, every)]
        order, fused = _fuse(scores, by_words, max(_FUSED, 10 * top))
        columns = {SCORE: fused, SIMILARITY: scores[order], BM25: by_words[order]}
        rows = _documents(reader, every.take(order), columns, top)
    return _shown(f'nearest to "{one_line(query, 200)}"', reader, rows, terms(query), none_met(where))


def near(given: Given | RowReader, row: str, *, top: int = 5, where: Sequence[str] = ()) -> Found:
    """Return the rows nearest to a row of the table by cosine, without itself and, of chunks, without its document.

    No model is loaded. Raises InputError.
    """
    _check_top(top)
    reader = given if isinstance(given, RowReader) else opened(given)
    vectors = stored(reader.table, reader.version)
    vector, own = _vector_of(reader, vectors, row)
    condition = told(where, reader.schema)
    places, scores = _nearest(reader, vectors, vector, top + 1, "cosine", condition)
    rows = _documents(reader, places, {SCORE: scores}, top + 1)
    key = DOC_ID if DOC_ID in rows.column_names else ID
    rows = rows.filter(pa.array([value != own for value in rows.column(key).to_pylist()], pa.bool_())).slice(0, top)
    return _shown(f'nearest to the row "{one_line(row, 200)}"', reader, rows, (), none_met(where, "other row"))


def nearly_same(given: Given | RowReader, threshold: float, *, top: int = 20, where: Sequence[str] = ()) -> Pairs:
    """Return the pairs of rows whose cosine is the threshold or more, the `top` nearest of them and how many there are.

    Pairs of chunks of one document are left out. No model is loaded. Raises InputError.
    """
    _check_top(top)
    if not 0 < threshold <= 1:
        raise InputError(f"duplicates is {threshold}; give the least cosine of a pair, above 0 and up to 1")
    reader = given if isinstance(given, RowReader) else opened(given)
    vectors = stored(reader.table, reader.version)
    condition = told(where, reader.schema)
    places = all_places(reader, condition)
    _check_comparable(len(places))
    matrix = vectors_at(reader, vectors, places)
    chunked = DOC_ID in reader.schema.names
    documents = _documents_of(reader, places) if chunked else None
    found = duplicates.pairs(unit(matrix), threshold, top, documents)
    shown = _pairs(reader, places, found, threshold, chunked=chunked)
    return shown if len(places) else replace(shown, notes=(none_met(where),))


def none_met(where: Sequence[str], what: str = "row") -> str:
    """Say why nothing was found: no row meets the conditions, or there is no row."""
    return f"no {what} meets --where {shlex.join(where)}" if where else f"the table has no {what}"


def query_vector(found: Published, query: str) -> NDArray[np.float32]:
    """Return float32[dim], the query's vector by the model of the table. Raises InputError, also for a query without words."""
    if not query.strip():
        raise InputError("the query is empty: give a question, or some words of what is looked for")
    from pipeline.encoder import light

    vector = light.query_vector(found.encoder, query, found.version.probes)
    if vector is not None:
        return vector
    from pipeline.encoder.embedder import embedder

    encoded = embedder(found.encoder_here().for_queries(), "cpu").encode([query])
    if encoded.failed:
        raise InputError(f"the query {query!r} has no vector: {encoded.failed[0]}; ask something else")
    computed: NDArray[np.float32] = encoded.vectors[0]
    return computed


def _check_top(top: int) -> None:
    if top < 1:
        raise InputError(f"--top is {top}; give how many rows to show, 1 or more")


def _check_comparable(rows: int) -> None:
    if rows > MOST_COMPARED:
        raise InputError(
            f"the table has {rows:,} rows, and all pairs of at most {MOST_COMPARED:,} are compared: name fewer with where"
        )


def opened(given: Given, overrides: Sequence[str] = ()) -> RowReader:
    """Return the rows of the current version, without a look at the model. Raises InputError where there is none."""
    if isinstance(given, RunSpec):
        table = Folder(given.table.path, given.table.storage_options)
    else:
        table = table_of(str(given), overrides)
    version = snapshot.current(table)
    if not version.version:
        raise none_published(table.url)
    return RowReader(table, version)


def _vector_of(reader: RowReader, vectors: Stored, row: str) -> tuple[NDArray[np.float32], str]:
    """Return the vector of a row, and its document's id, or its own where there are no chunks.

    The id of a document stands for its first chunk.
    """
    chunked = DOC_ID in reader.schema.names
    names = [row, f"{row}#0"] if chunked else [row]
    columns = [ID, vectors.column, *([DOC_ID] if chunked else [])]
    for rows in reader.with_ids(pa.array(names, pa.string()), columns):
        return vectors.floats(rows)[0], str(rows.column(DOC_ID if chunked else ID)[0].as_py())
    raise InputError(f"the table has no row with the id {row!r}: search shows ids, which are written exactly so")


def _nearest(
    reader: RowReader,
    vectors: Stored,
    vector: NDArray[np.float32],
    top: int,
    function: str,
    condition: Condition | None,
) -> tuple[Places, NDArray[np.float32]]:
    """Return enough of the best rows that `top` documents are among them."""
    if DOC_ID not in reader.schema.names:
        return best(reader, vectors, vector, top, function, condition)
    wanted, total = max(64, 8 * top), sum(part.rows for part in reader.version.parts)
    while True:
        places, scores = best(reader, vectors, vector, wanted, function, condition)
        documents = rows_at(reader, places, [DOC_ID]).column(DOC_ID)
        if len(documents.unique()) >= top or len(places) < wanted or wanted >= total:
            return places, scores
        wanted *= 8


def _documents(reader: RowReader, places: Places, numbers: dict[str, NDArray[np.float32]], top: int) -> pa.Table:
    """Return the first `top` of some rows, or the best chunk of each of the first documents, with these numbers."""
    chosen = np.arange(min(top, len(places)))
    if DOC_ID in reader.schema.names:
        documents = np.asarray(rows_at(reader, places, [DOC_ID]).column(DOC_ID).to_pylist(), object)
        first = {name: place for place, name in reversed(list(enumerate(documents.tolist())))}
        chosen = np.array(sorted(first.values())[:top], np.int64)
    columns = [name for name in reader.schema.names if name != reader.version.embeddings[0]["column"]]
    rows = rows_at(reader, places.take(chosen), columns)
    for name, values in numbers.items():
        # A kept column of this name gives way, as it always did.
        rows = rows.drop_columns([name]) if name in rows.column_names else rows
        rows = rows.append_column(name, pa.array(values[chosen], pa.float32()))
    return rows


def _shown(title: str, reader: RowReader, rows: pa.Table, marked: tuple[str, ...], if_none: str) -> Found:
    kept = kept_columns(rows.column_names, reader.version.embeddings[0]["column"])
    texts = rows.column(TEXT).to_pylist() if TEXT in rows.column_names else [""] * rows.num_rows
    notes = () if TEXT in rows.column_names else ("the table keeps no texts (table.keep_text: false)",)
    notes = notes if rows.num_rows else (if_none,)
    return Found(
        title=title,
        rows=rows,
        kept=tuple(kept),
        snippets=tuple(snippet(text, marked) for text in texts),
        terms=marked,
        notes=notes,
    )


def _fuse(
    scores: NDArray[np.float32], by_words: NDArray[np.float32], most: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the rows among the `most` best of either ranking, best first, and the sum of 1 / (60 + rank) of each."""
    fused = np.zeros(len(scores))
    for ranking in (scores, by_words):
        order = np.argsort(-ranking, kind="stable")[:most]
        if ranking is by_words:
            order = order[ranking[order] > 0]
        fused[order] += 1 / (_RANK + 1 + np.arange(len(order)))
    chosen = np.flatnonzero(fused)
    chosen = chosen[np.lexsort((-scores[chosen], -fused[chosen]))]
    return chosen, fused[chosen].astype(np.float32)


def _numbers(reader: RowReader, places: Places) -> NDArray[np.int64]:
    """Return the number of each row in the order of the whole table."""
    starts, total = {}, 0
    for number, part in enumerate(reader.version.parts):
        for group, rows in enumerate(reader.groups(part)):
            starts[number, group] = total
            total += rows
    pairs = places.part.astype(np.int64) << 32 | places.group
    firsts = np.zeros(len(pairs), np.int64)
    for key in np.unique(pairs).tolist():
        firsts[pairs == key] = starts[key >> 32, key & 0xFFFFFFFF]
    return firsts + places.index


def _documents_of(reader: RowReader, places: Places) -> NDArray[np.int64]:
    """Return a number for the document of each chunk."""
    names = rows_at(reader, places, [DOC_ID]).column(DOC_ID).combine_chunks().dictionary_encode()
    return np.asarray(names.indices, np.int64)


def _pairs(reader: RowReader, places: Places, found: duplicates.Found, threshold: float, *, chunked: bool) -> Pairs:
    columns = [ID, CONTENT_HASH, *([TEXT] if TEXT in reader.schema.names else [])]
    sides = [rows_at(reader, places.take(side), columns).to_pylist() for side in (found.first, found.second)]
    made = []
    for one, other, score in zip(*sides, found.cosine.tolist(), strict=True):
        pair = {ID: one[ID], "other": other[ID], SCORE: score, "same_text": one[CONTENT_HASH] == other[CONTENT_HASH]}
        made.append(
            pair | {"snippet": snippet(one.get(TEXT, ""), ()), "other_snippet": snippet(other.get(TEXT, ""), ())}
        )
    what = "pairs of chunks of different documents" if chunked else "pairs of rows"
    notes = () if len(made) == found.total else (f"{found.total - len(made):,} more pairs are not shown",)
    title = f"{found.total:,} {what} with a cosine of {threshold} or more, among {len(places):,} rows"
    return Pairs(title=title, total=found.total, pairs=tuple(made), notes=notes)
