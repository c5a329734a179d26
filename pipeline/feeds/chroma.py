"""Chroma holds a generation in a collection; the one that readers see has the feed's name, the others their own.

A collection's metadata says which generation it is, and holds the marker. Chroma has neither transactions nor aliases: a
delta is marked before and after, each call of it says all of a row, and a switch is two renames, between which readers find
no collection of the name. An upsert leaves the values that it doesn't name: so nulls are named.
"""

import contextlib
import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from chromadb.errors import ChromaError, InvalidArgumentError, NotFoundError
from numpy.typing import NDArray

from pipeline.errors import InputError, StorageError
from pipeline.feed_spec import FeedSpec
from pipeline.feeds import values
from pipeline.feeds.chroma_server import Server
from pipeline.feeds.store import (
    KEYS,
    Delta,
    Generation,
    Guarantees,
    Loaded,
    Loader,
    Marker,
    NotOurs,
    Rejected,
    Rejection,
    Shape,
    by_age,
    loaded_by,
    matrix,
    not_ours,
    taken,
)
from pipeline.schema import CONTENT_HASH, ID, ROW_HASH
from pipeline.storage import before_work

FEED, GENERATION, MARKER = "embedding_feed", "embedding_feed_generation", "embedding_feed_marker"
EXACT = "embedding_feed_exact"
"""Chroma reads numbers of more than 15 digits inexactly: those of a row stand here, as JSON in a text."""
METRICS = {"cosine": "cosine", "dot": "ip", "euclidean": "l2"}
EF_SEARCH = 100
BYTES_A_CALL = 16 * 2**20
"""A server takes 40 MB a request, and a row takes more as JSON than here."""
ROWS_A_PAGE = 2_000
COLLECTIONS_A_PAGE = 100


class ChromaStore:
    """It implements store.Store."""

    guarantees = Guarantees(
        atomic_marker=False,
        fences=False,
        atomic_switch=False,
        keeps_bits=False,  # under cosine it keeps a direction and a length, and multiplies them
        dtypes=frozenset({"float32"}),
        tested_on_server=True,
    )

    def __init__(self, spec: FeedSpec) -> None:
        self._spec = spec
        self._server = Server(spec.url, spec.options, spec.limits.timeout_s)
        self._rows_a_call = 0

    # --- before anything is written

    def check(self, shape: Shape) -> None:
        name = self._spec.name
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,198}[A-Za-z0-9]", name):
            raise InputError(
                f"feeds.name is {name!r}; Chroma takes 3 to 200 letters, digits, '.', '_' and '-', with a letter or digit "
                "at both ends"
            )
        values.check(shape.columns, "Chroma")
        if shape.embedding in shape.columns.names:
            raise InputError(f"feeds.columns names {shape.embedding!r}, which is the column of vectors: leave it out")
        for column in shape.columns.names:
            if column.startswith(("$", "#", "chroma:", "embedding_feed")) or not column:
                raise InputError(
                    f"feeds.columns names {column!r}; Chroma keeps names that begin so to itself: leave it out"
                )
        if shape.dtype != "float32" or shape.metric not in METRICS:
            raise InputError(
                f"feeds.dtype is {shape.dtype} with feeds.metric {shape.metric!r}; Chroma has vectors of float32, compared "
                "by cosine, dot or euclidean"
            )
        if shape.index.kind not in ("auto", "hnsw"):
            raise InputError(f"feeds.index.kind is {shape.index.kind!r}; a Chroma feed has hnsw or auto")
        self.generations()

    def unfit(self, rows: pa.Table) -> Mapping[int, str]:
        columns = [
            field
            for field in rows.schema
            if field.name not in KEYS.names and not pa.types.is_fixed_size_list(field.type)
        ]
        found = dict(values.unfit(rows, pa.schema(columns)))
        if ID in rows.column_names:
            empty = pc.equal(pc.binary_length(rows.column(ID)), 0).combine_chunks().to_numpy(zero_copy_only=False)
            for row in np.flatnonzero(empty).tolist():
                found.setdefault(row, "its id is empty, which Chroma doesn't take")
        return found

    # --- markers

    def generations(self) -> Sequence[Generation]:
        with before_work():
            found = self._collections()
        return [
            Generation(name=name, marker=_marker(collection), live=collection.name == self._spec.name)
            for name, collection in sorted(found.items(), key=lambda item: by_age(item[0]))
        ]

    def _collections(self) -> dict[str, Any]:
        """Return this feed's collections by their generations. Raises InputError if readers of the name see another one."""
        found: dict[str, Any] = {}
        offset = 0
        while True:
            page = self._server.patiently(functools.partial(_listed, offset))
            for collection in page:
                metadata = collection.metadata or {}
                if metadata.get(FEED) == self._spec.name and GENERATION in metadata:
                    found[str(metadata[GENERATION])] = collection
                elif collection.name == self._spec.name:
                    raise InputError(
                        f"Chroma has the collection {self._spec.name!r} already, which is none of this feed: choose another "
                        "feeds.name, or rename it"
                    )
                elif collection.name.startswith(f"{self._spec.name}__g"):
                    found[collection.name] = collection
            if len(page) < COLLECTIONS_A_PAGE:
                return found
            offset += len(page)

    def _collection(self, generation: str) -> Any:
        found = self._collections().get(generation)
        if found is None:
            raise NotOurs(f"generation {generation!r} is not in Chroma any more: another feed was at work; start again")
        return found

    def create(self, shape: Shape, marker: Marker) -> None:
        if marker.generation in self._collections():
            return
        hnsw: dict[str, Any] = {"space": METRICS[shape.metric], "ef_search": EF_SEARCH}
        hnsw |= {"ef_construction": shape.index.ef_construction or 200, "max_neighbors": shape.index.m or 16}

        def create(client: Any) -> None:
            try:
                client.create_collection(
                    marker.generation,
                    metadata=self._metadata(marker.generation, marker),
                    configuration={"hnsw": hnsw},
                    embedding_function=None,
                )
            except ChromaError as error:
                if "already exists" not in str(error):  # by an attempt whose answer was lost
                    raise

        self._server.patiently(create)

    def _metadata(self, generation: str, marker: Marker) -> dict[str, str]:
        return {FEED: self._spec.name, GENERATION: generation, MARKER: marker.to_json()}

    def mark(self, marker: Marker, expected: Marker | None) -> None:
        collection = self._collection(marker.generation)
        found = _marker(collection)
        if found == marker:
            return
        if found != expected:
            raise not_ours(marker.generation, expected, found)
        self._server.patiently(lambda client: collection.modify(metadata=self._metadata(marker.generation, marker)))

    # --- rows

    def loader(self, generation: str, shape: Shape) -> Loader:
        return _Loader(self, self._collection(generation), shape)

    def upsert(self, collection: Any, shape: Shape, rows: pa.Table) -> list[Rejection]:
        """Put rows there in calls of as many as the server takes; return those that are refused."""
        rejected, rows = values.fit(rows, shape, self.unfit(rows))

        def apply(some: pa.Table) -> None:
            ids, vectors, metadatas = some.column(ID).to_pylist(), matrix(some, shape), _metadatas(some, shape)

            def upsert(client: Any) -> None:
                try:
                    collection.upsert(ids=ids, embeddings=vectors, metadatas=metadatas)
                except (InvalidArgumentError, ValueError, TypeError) as error:
                    raise Rejected(f"Chroma refuses it: {error}") from None

            self._server.patiently(upsert)

        per_call = self._per_call(shape)
        for start in range(0, rows.num_rows, per_call):
            rejected += taken(apply, rows.slice(start, per_call))
        return rejected

    def _per_call(self, shape: Shape) -> int:
        if not self._rows_a_call:
            self._rows_a_call = int(self._server.patiently(lambda client: client.get_max_batch_size()))
        return max(1, min(self._rows_a_call, BYTES_A_CALL // (4 * shape.dim)))

    def delete(self, collection: Any, ids: Sequence[str]) -> None:
        for start in range(0, len(ids), ROWS_A_PAGE):
            some = list(ids[start : start + ROWS_A_PAGE])
            self._server.patiently(functools.partial(_deleted, collection, some))

    def finish_load(self, shape: Shape, before: Marker, after: Marker, receipts: Sequence[str]) -> None:
        self.mark(after, before)

    @contextlib.contextmanager
    def delta(self, shape: Shape, before: Marker, after: Marker) -> Iterator[Delta]:
        collection = self._collection(before.generation)
        found = _marker(collection)
        if found != before:
            raise not_ours(before.generation, before, found)
        yield _Delta(self, collection, shape, before, after)

    def build_index(self, generation: str, shape: Shape, on_progress: Callable[[float], None]) -> None:
        """Chroma builds the index as it writes, and searches exactly what it has not yet indexed."""
        on_progress(1.0)

    # --- reading back

    def count(self, generation: str) -> int:
        collection = self._collection(generation)
        return int(self._server.patiently(lambda client: collection.count()))

    def digests(self, generation: str) -> None:
        return None

    def keys(self, generation: str, buckets: Sequence[int] | None = None) -> Iterator[pa.Table]:
        collection = self._collection(generation)
        offset = 0
        while True:
            found = self._server.patiently(
                functools.partial(_got, collection, limit=ROWS_A_PAGE, offset=offset, include=["metadatas"])
            )
            if not found["ids"]:
                return
            yield _keys(found)
            offset += len(found["ids"])

    def get(self, generation: str, shape: Shape, ids: Sequence[str]) -> pa.Table:
        collection = self._collection(generation)
        pieces = [shape.schema.empty_table()]
        for start in range(0, len(ids), ROWS_A_PAGE):
            some = list(ids[start : start + ROWS_A_PAGE])
            found = self._server.patiently(
                functools.partial(_got, collection, ids=some, include=["metadatas", "embeddings"])
            )
            if found["ids"]:
                pieces.append(_restored(found, shape))
        return pa.concat_tables(pieces)

    def search(
        self,
        generation: str,
        shape: Shape,
        vectors: NDArray[np.float32],
        k: int,
        where: Mapping[str, Any] | None = None,
    ) -> list[list[str]]:
        collection = self._collection(generation)
        tests: list[dict[str, Any]] = [{name: value} for name, value in (where or {}).items()]
        wanted = {"$and": tests} if len(tests) > 1 else tests[0] if tests else None
        found = self._server.patiently(
            lambda client: collection.query(query_embeddings=vectors, n_results=k, where=wanted, include=[])
        )
        return [list(ids) for ids in found["ids"]]

    # --- readers

    def switch(self, generation: str) -> None:
        found = self._collections()
        if generation not in found:
            raise StorageError(f"generation {generation!r} is not in Chroma: it can't be shown")
        for name, collection in found.items():
            if collection.name == self._spec.name and name != generation:
                self._rename(collection, name)
        self._rename(found[generation], self._spec.name)

    def _rename(self, collection: Any, name: str) -> None:
        if collection.name != name:
            self._server.patiently(lambda client: collection.modify(name=name))

    def drop(self, generation: str) -> None:
        found = self._collections().get(generation)
        if found is None:
            return
        if found.name == self._spec.name:
            raise StorageError(f"generation {generation!r} is shown to readers: switch to another one before")
        with contextlib.suppress(NotFoundError):
            self._server.patiently(lambda client: client.delete_collection(found.name))

    def close(self) -> None:
        self._server.close()


class _Loader:
    """It implements store.Loader."""

    def __init__(self, store: ChromaStore, collection: Any, shape: Shape) -> None:
        self._store, self._collection, self._shape = store, collection, shape

    def load(self, unit: str, rows: Iterable[pa.Table]) -> Loaded:
        return loaded_by(lambda some: self._store.upsert(self._collection, self._shape, some), rows)

    def close(self) -> None: ...


class _Delta:
    """It implements store.Delta."""

    def __init__(self, store: ChromaStore, collection: Any, shape: Shape, before: Marker, after: Marker) -> None:
        self._store, self._collection, self._shape = store, collection, shape
        self._before, self._after = before, after

    def upsert(self, rows: pa.Table) -> Sequence[Rejection]:
        return self._store.upsert(self._collection, self._shape, rows)

    def delete(self, ids: pa.Array) -> None:
        self._store.delete(self._collection, ids.to_pylist())

    def commit(self) -> None:
        self._store.mark(self._after, self._before)


def _listed(offset: int, client: Any) -> list[Any]:
    return list(client.list_collections(limit=COLLECTIONS_A_PAGE, offset=offset))


def _deleted(collection: Any, ids: list[str], client: Any) -> None:
    collection.delete(ids=ids)


def _got(collection: Any, client: Any, **wanted: Any) -> Mapping[str, Any]:
    found: Mapping[str, Any] = collection.get(**wanted)
    return found


# --- values


def _metadatas(rows: pa.Table, shape: Shape) -> list[dict[str, Any]]:
    names = [CONTENT_HASH, ROW_HASH, *shape.columns.names]
    columns = [[value.hex() for value in rows.column(CONTENT_HASH).to_pylist()], rows.column(ROW_HASH).to_pylist()]
    columns += [_encoded(rows.column(field.name)) for field in shape.columns]
    found = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
    doubles = [field.name for field in shape.columns if field.type == pa.float64()]
    if doubles:
        for metadata in found:
            long = {name: metadata[name] for name in doubles if _is_long(metadata[name])}
            metadata[EXACT] = values.to_json(long) if long else None
    return found


def _is_long(value: float | None) -> bool:
    return value is not None and float(f"{value:.15g}") != value


def _encoded(column: pa.ChunkedArray) -> list[Any]:
    plain = values.plain(column)
    if _is_json(column.type):
        return [None if value is None else values.to_json(value) for value in plain]
    return plain


def _is_json(kind: pa.DataType) -> bool:
    """Chroma makes integers of 64 bits without a sign inexact."""
    return bool(pa.types.is_nested(kind) or kind == pa.uint64())


def _decoded(metadatas: list[Mapping[str, Any]], field: pa.Field) -> pa.Array:
    cells = [metadata.get(field.name) for metadata in metadatas]
    if _is_json(field.type):
        cells = [None if cell is None else json.loads(cell) for cell in cells]
    if field.type == pa.float64():
        exact = [json.loads(metadata.get(EXACT) or "{}") for metadata in metadatas]
        cells = [long.get(field.name, cell) for long, cell in zip(exact, cells, strict=True)]
    return values.restored(cells, field.type)


def _keys(found: Mapping[str, Any]) -> pa.Table:
    """Return KEYS of rows. One that somebody else wrote is a row of no state."""
    metadatas = [metadata or {} for metadata in found["metadatas"]]
    hashes = [metadata.get(ROW_HASH) for metadata in metadatas]
    return pa.table(
        {
            ID: list(found["ids"]),
            CONTENT_HASH: [_content(metadata.get(CONTENT_HASH)) for metadata in metadatas],
            ROW_HASH: [value if isinstance(value, int) else 0 for value in hashes],
        },
        schema=KEYS,
    )


def _content(value: Any) -> bytes:
    is_ours = isinstance(value, str) and re.fullmatch("[0-9a-f]{32}", value)
    return bytes.fromhex(value) if is_ours else bytes(16)


def _restored(found: Mapping[str, Any], shape: Shape) -> pa.Table:
    keys = _keys(found)
    columns: dict[str, Any] = {name: keys.column(name) for name in KEYS.names}
    metadatas = [metadata or {} for metadata in found["metadatas"]]
    for field in shape.columns:
        columns[field.name] = _decoded(metadatas, field)
    flat = np.asarray(found["embeddings"], np.float32).reshape(-1)
    columns[shape.embedding] = pa.FixedSizeListArray.from_arrays(pa.array(flat), type=shape.vector)
    return pa.table({name: columns[name] for name in shape.schema.names}, schema=shape.schema)


def _marker(collection: Any) -> Marker | None:
    text = (collection.metadata or {}).get(MARKER)
    return Marker.from_json(text) if text else None
