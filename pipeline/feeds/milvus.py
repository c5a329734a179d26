"""Milvus holds a generation in a collection, and shows one of them through an alias of the feed's name.

The marker is a property of the collection. Milvus has no transactions: a delta is marked before and after, and each call
of it says all of a row, so that it may be repeated. A load goes through Milvus's import of Parquet files where the server
can read the folder `import_folder`, and else through upserts. An import never sees that a row is there already: so a
collection whose imports may have run is made anew from the files, and its rows are counted before it counts as loaded.
How rows look on the wire stands in milvus_rows.py.
"""

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pymilvus import DataType, MilvusException
from pymilvus.grpc_gen import milvus_pb2

from pipeline.errors import InputError, StorageError
from pipeline.feed_spec import FeedSpec
from pipeline.feeds import milvus_rows, values
from pipeline.feeds.milvus_import import FOLDER, FOLDER_OPTIONS, FOLDER_SEEN, ImportFolder, ImportLoader, settle
from pipeline.feeds.milvus_rows import DYNAMIC, VECTORS, dim_of
from pipeline.feeds.milvus_server import INVALID, POLL_S, Server
from pipeline.feeds.store import (
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
    taken,
)
from pipeline.schema import CONTENT_HASH, ID, ROW_HASH
from pipeline.storage import before_work

MARKER, LOAD, IMPORTS = "embedding_feed.marker", "embedding_feed.load", "embedding_feed.imports"
"""Properties of a collection: its marker as JSON; `import` or `upsert`; and `begun` where imports may have run."""
METRICS = {"cosine": "COSINE", "dot": "IP", "euclidean": "L2", "hamming": "HAMMING"}
INDEXES = ("auto", "hnsw", "none")
FLOAT16_SINCE = (2, 4)
MOST_DIM = 32_768
BYTES_A_CALL = 8 * 2**20
"""A server takes 64 MB a call, and hands its queue 2 to 5 MB a message: pieces of this size keep both busy."""
ROWS_A_PAGE = 4_096
ROWS_A_GET = 500
IDS_A_DELETE = 1_000
ROWS_TO_FLUSH = 10_000
"""Fewer rows are searched exactly and at once where they stand, without an index."""
EF = 64
_TRIES = 3


class MilvusStore:
    """It implements store.Store."""

    def __init__(self, spec: FeedSpec) -> None:
        self._spec = spec
        self._timeout = spec.limits.timeout_s
        own = (FOLDER, FOLDER_OPTIONS, FOLDER_SEEN)
        options = {name: value for name, value in spec.options.items() if name not in own}
        self._folder = ImportFolder(spec.options)
        self._server = Server(spec.url, options, self._timeout)

    @property
    def guarantees(self) -> Guarantees:
        return Guarantees(
            atomic_marker=False,
            fences=False,
            atomic_switch=True,
            keeps_bits=True,
            dtypes=frozenset({"float32", "binary"}),
            tested_on_server=True,
        )

    # --- before anything is written

    def check(self, shape: Shape) -> None:
        name = self._spec.name
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,199}", name):
            raise InputError(f"feeds.name is {name!r}; Milvus takes letters, digits and _, 200 at most")
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,254}", shape.embedding):
            raise InputError(f"the column of vectors is named {shape.embedding!r}; Milvus takes letters, digits and _")
        values.check(shape.columns, "Milvus")
        if shape.embedding in shape.columns.names:
            raise InputError(f"feeds.columns names {shape.embedding!r}, which is the column of vectors: leave it out")
        if (shape.metric == "hamming") != (shape.dtype == "binary"):
            raise InputError(
                f"feeds.metric is {shape.metric!r} with vectors of {shape.dtype}; Milvus compares bits by hamming, and "
                "nothing else by it: change feeds.dtype or feeds.metric"
            )
        if not 2 <= shape.dim <= (8 if shape.dtype == "binary" else 1) * MOST_DIM:
            raise InputError(f"the vectors have {shape.dim} dimensions; Milvus takes 2 to {MOST_DIM}")
        kind = shape.index.kind
        if kind not in INDEXES or (kind == "hnsw" and shape.dtype == "binary"):
            known = "none or auto for bits" if shape.dtype == "binary" else "hnsw, none or auto"
            raise InputError(f"feeds.index.kind is {kind!r}; a Milvus feed has {known}")
        self._folder.check()
        with before_work(), self._server.reported():
            version = self._server.client.get_server_version(timeout=self._timeout)
        if shape.dtype == "float16" and _version(version) < FLOAT16_SINCE:
            raise InputError(
                f"feeds.dtype is float16, and this Milvus is {version}: float16 came with 2.4; take float32, or a newer "
                "server"
            )
        self.generations()

    def unfit(self, rows: pa.Table) -> Mapping[int, str]:
        return milvus_rows.unfit(rows)

    # --- markers

    def generations(self) -> Sequence[Generation]:
        with before_work(), self._server.reported():
            shown = self._shown()
            names = [
                name for name in self._server.client.list_collections(timeout=self._timeout) if self._is_ours(name)
            ]
            found = [(name, self._server.properties(name)) for name in sorted(names, key=by_age)]
        return [
            Generation(name=name, marker=_marker(properties), live=name == shown)
            for name, properties in found
            if properties is not None
        ]

    def _is_ours(self, name: str) -> bool:
        return name.startswith(f"{self._spec.name}__g")

    def _shown(self) -> str | None:
        """Return the collection that readers of the feed's name see. Raises InputError if it isn't ours."""
        found = self._server.described(self._spec.name)
        if found is None:
            return None
        name = str(found["collection_name"])
        if not self._is_ours(name):
            raise InputError(
                f"Milvus has the collection or alias {self._spec.name!r} already, which is no alias of this feed: choose "
                "another feeds.name, or rename it"
            )
        return name

    def _expected(self, generation: str, expected: Marker | None) -> Mapping[str, str]:
        """Return the properties of a generation. Raises NotOurs where another marker stands there."""
        properties = self._server.properties(generation)
        found = _marker(properties)
        if properties is None or found != expected:
            raise NotOurs(
                f"generation {generation!r} in Milvus has the marker {found and found.to_json()}, and "
                f"{expected and expected.to_json()} was expected: another feed was at work; start again"
            )
        return properties

    def create(self, shape: Shape, marker: Marker) -> None:
        with self._server.reported():
            if self._server.properties(marker.generation) is None:
                self._create(shape, marker, "import" if self._folder else "upsert")
            self._create_index(marker.generation, shape)

    def _create(self, shape: Shape, marker: Marker, load: str, **more: str) -> None:
        schema = self._server.client.create_schema(auto_id=False, enable_dynamic_field=True)
        schema.add_field(ID, DataType.VARCHAR, is_primary=True, max_length=milvus_rows.MOST_ID_BYTES)
        schema.add_field(CONTENT_HASH, DataType.VARCHAR, max_length=32)
        schema.add_field(ROW_HASH, DataType.INT64)
        schema.add_field(shape.embedding, VECTORS[shape.dtype], dim=dim_of(shape))
        properties = {MARKER: marker.to_json(), LOAD: load, **more}
        self._server.client.create_collection(
            marker.generation, schema=schema, properties=properties, timeout=self._timeout
        )

    def mark(self, marker: Marker, expected: Marker | None) -> None:
        with self._server.reported():
            if _marker(self._server.properties(marker.generation)) != marker:
                self._expected(marker.generation, expected)
                self._server.set(marker.generation, {MARKER: marker.to_json()})

    # --- rows

    def loader(self, generation: str, shape: Shape) -> Loader:
        with self._server.reported():
            properties = self._server.properties(generation)
        if properties is None:
            raise NotOurs(f"generation {generation!r} is not in Milvus any more: another feed was at work; start again")
        if properties.get(LOAD) != "import":
            return _Upserts(self, generation, shape)
        return ImportLoader(self._folder.files(generation), generation, shape)

    def upsert(self, generation: str, shape: Shape, rows: pa.Table) -> list[Rejection]:
        """Put rows there in calls of some megabytes; return those that are refused."""
        rejected, rows = values.fit(rows, shape, milvus_rows.unfit(rows))

        def apply(some: pa.Table) -> None:
            request = milvus_pb2.UpsertRequest(
                db_name=self._server.database,
                collection_name=generation,
                fields_data=milvus_rows.fields(some, shape),
                num_rows=some.num_rows,
            )
            try:
                self._server.patiently(lambda: self._server.called("Upsert", request))
            except MilvusException as error:
                if error.code == INVALID:
                    raise Rejected(f"Milvus refuses it: {self._server.said(error)}") from None
                raise

        with self._server.reported():
            for some in _pieces(rows, BYTES_A_CALL):
                rejected += taken(apply, some)
        return rejected

    def delete(self, generation: str, ids: Sequence[str]) -> None:
        with self._server.reported():
            for start in range(0, len(ids), IDS_A_DELETE):
                some = f"{ID} in [{', '.join(_quoted(name) for name in ids[start : start + IDS_A_DELETE])}]"
                self._server.client.delete(generation, filter=some, timeout=self._timeout)

    def finish_load(self, shape: Shape, before: Marker, after: Marker, receipts: Sequence[str]) -> None:
        generation = before.generation
        with self._server.reported():
            properties = self._server.properties(generation)
            if _marker(properties) != after:
                properties = self._expected(generation, before)
                files = {one["file"]: one["rows"] for one in map(json.loads, receipts)}
                if properties.get(LOAD) == "import":
                    self._import(shape, before, files, bool(properties.get(IMPORTS)))
                self._expected(generation, before)
                self._server.set(generation, {MARKER: after.to_json(), IMPORTS: ""})
        if properties and properties.get(LOAD) == "import":
            self._folder.forget(generation)

    def _import(self, shape: Shape, marker: Marker, files: Mapping[str, int], is_begun: bool) -> None:
        """Import each file once. A collection whose rows may have arrived twice is made anew."""
        generation, wanted = marker.generation, sum(files.values())
        found = None
        for _ in range(_TRIES):
            if is_begun:
                settle(self._server, generation)
                self._server.client.drop_collection(generation, timeout=self._timeout)
                self._create(shape, marker, "import", **{IMPORTS: "begun"})
                self._create_index(generation, shape)
            else:
                self._server.set(generation, {IMPORTS: "begun"})
            is_begun = True
            try:
                self._folder.run(self._server, generation, list(files))
            except grpc.RpcError:
                continue  # A job may have begun or not: nobody can say.
            # A collection that was in memory before its imports shows them late.
            self._server.client.release_collection(generation, timeout=self._timeout)
            found = self._count(generation)
            if found == wanted:
                return
        raise StorageError(
            f"Milvus holds {found} rows of generation {generation!r} after {len(files)} imports of {wanted} rows, "
            f"{_TRIES} times: look into its log, and start again"
        )

    @contextlib.contextmanager
    def delta(self, shape: Shape, before: Marker, after: Marker) -> Iterator[Delta]:
        with self._server.reported():
            self._expected(before.generation, before)
        yield _Delta(self, shape, before, after)

    # --- the index

    def build_index(self, generation: str, shape: Shape, on_progress: Callable[[float], None]) -> None:
        with self._server.reported():
            self._create_index(generation, shape)
            if self._count(generation) >= ROWS_TO_FLUSH:
                self._server.client.flush(generation, timeout=None)
                while True:
                    found = self._server.client.describe_index(generation, shape.embedding, timeout=self._timeout)
                    total, pending = found["total_rows"], found["pending_index_rows"]
                    on_progress(1 - pending / total if total else 1.0)
                    if not pending and found["state"] == "Finished":
                        break
                    time.sleep(POLL_S)
        on_progress(1.0)

    def _create_index(self, generation: str, shape: Shape) -> None:
        if self._server.client.list_indexes(generation, timeout=self._timeout):
            return
        params: dict[str, int] = {}
        if shape.dtype == "binary":
            kind = "BIN_FLAT"
        elif shape.index.kind == "none":
            kind = "FLAT"
        else:
            kind = "HNSW"
            params = {"M": shape.index.m or 16, "efConstruction": shape.index.ef_construction or 200}
        wanted = self._server.client.prepare_index_params()
        wanted.add_index(shape.embedding, index_type=kind, metric_type=METRICS[shape.metric], params=params)
        self._server.client.create_index(generation, wanted, timeout=self._timeout, sync=False)

    def _load(self, generation: str) -> None:
        """Bring the collection into the servers' memory, where alone it can be read, unless it is there."""
        if self._server.client.get_load_state(generation, timeout=self._timeout)["state"].name == "Loaded":
            return
        self._server.handler.load_collection(generation, _async=True, timeout=self._timeout)
        while self._server.client.get_load_state(generation, timeout=self._timeout)["state"].name != "Loaded":
            time.sleep(POLL_S / 2)

    # --- reading back

    def count(self, generation: str) -> int:
        with self._server.reported():
            return self._count(generation)

    def _count(self, generation: str) -> int:
        (row,) = self._query(generation, "", ["count(*)"])
        return int(row["count(*)"])

    def _query(self, generation: str, expression: str, fields: list[str], **more: Any) -> list[dict[str, Any]]:
        self._load(generation)
        found = self._server.client.query(
            generation,
            filter=expression,
            output_fields=fields,
            consistency_level="Strong",
            timeout=self._timeout,
            **more,
        )
        return list(found)

    def digests(self, generation: str) -> None:
        return None

    def keys(self, generation: str, buckets: Sequence[int] | None = None) -> Iterator[pa.Table]:
        """Milvus shows a key once, however often it is there: only the count tells. A page may be short before the last
        one, since rows of one key are dropped from it after it was cut."""
        last = None
        while True:
            after = f"{ID} > {_quoted(last)}" if last is not None else f'{ID} >= ""'
            with self._server.reported():
                found = self._query(generation, after, [ID, CONTENT_HASH, ROW_HASH], limit=ROWS_A_PAGE)
            if not found:
                return
            yield milvus_rows.keys(found)
            last = max((row[ID] for row in found), key=str.encode)

    def get(self, generation: str, shape: Shape, ids: Sequence[str]) -> pa.Table:
        pieces = [shape.schema.empty_table()]
        for start in range(0, len(ids), ROWS_A_GET):
            wanted = f"{ID} in [{', '.join(_quoted(name) for name in ids[start : start + ROWS_A_GET])}]"
            with self._server.reported():
                found = self._query(generation, wanted, [ID, CONTENT_HASH, ROW_HASH, shape.embedding, DYNAMIC])
            pieces.append(milvus_rows.restored(found, shape))
        return pa.concat_tables(pieces)

    def search(
        self,
        generation: str,
        shape: Shape,
        vectors: NDArray[np.float32],
        k: int,
        where: Mapping[str, Any] | None = None,
    ) -> list[list[str]]:
        tests = [f"{DYNAMIC}[{_quoted(name)}] == {_literal(value)}" for name, value in (where or {}).items()]
        queries: list[Any] = list(vectors)
        if shape.dtype == "binary":
            queries = [bits.tobytes() for bits in np.packbits(vectors > 0, axis=1)]
        elif shape.dtype == "float16":
            queries = list(vectors.astype(np.float16))
        found: list[list[str]] = []
        with self._server.reported():
            self._load(generation)
            for start in range(0, len(queries), 100):
                hits = self._server.client.search(
                    generation,
                    data=queries[start : start + 100],
                    anns_field=shape.embedding,
                    limit=k,
                    filter=" and ".join(tests),
                    output_fields=[],
                    search_params={"metric_type": METRICS[shape.metric], "params": {"ef": max(EF, 2 * k)}},
                    consistency_level="Strong",
                    timeout=self._timeout,
                )
                found += [[str(hit[ID]) for hit in some] for some in hits]
        return found

    # --- readers

    def switch(self, generation: str) -> None:
        with self._server.reported():
            self._load(generation)
            shown = self._shown()
            if shown is None:
                self._server.client.create_alias(generation, self._spec.name, timeout=self._timeout)
            elif shown != generation:
                self._server.client.alter_alias(generation, self._spec.name, timeout=self._timeout)

    def drop(self, generation: str) -> None:
        with self._server.reported():
            if self._shown() == generation:
                raise StorageError(f"generation {generation!r} is shown to readers: switch to another one before")
            self._server.client.drop_collection(generation, timeout=self._timeout)
        self._folder.forget(generation)

    def close(self) -> None:
        self._server.close()


class _Upserts:
    """It implements store.Loader: rows are there once they are acknowledged, and a unit may come again."""

    def __init__(self, store: MilvusStore, generation: str, shape: Shape) -> None:
        self._store, self._generation, self._shape = store, generation, shape

    def load(self, unit: str, rows: Iterable[pa.Table]) -> Loaded:
        return loaded_by(lambda some: self._store.upsert(self._generation, self._shape, some), rows)

    def close(self) -> None: ...


class _Delta:
    """It implements store.Delta."""

    def __init__(self, store: MilvusStore, shape: Shape, before: Marker, after: Marker) -> None:
        self._store, self._shape, self._before, self._after = store, shape, before, after

    def upsert(self, rows: pa.Table) -> Sequence[Rejection]:
        return self._store.upsert(self._before.generation, self._shape, rows)

    def delete(self, ids: pa.Array) -> None:
        self._store.delete(self._before.generation, ids.to_pylist())

    def commit(self) -> None:
        self._store.mark(self._after, self._before)


def _pieces(rows: pa.Table, most_bytes: int) -> Iterator[pa.Table]:
    if rows.num_rows:
        per_call = max(1, most_bytes * rows.num_rows // max(1, rows.nbytes))
        for start in range(0, rows.num_rows, per_call):
            yield rows.slice(start, per_call)


def _marker(properties: Mapping[str, str] | None) -> Marker | None:
    text = (properties or {}).get(MARKER)
    return Marker.from_json(text) if text else None


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(piece) for piece in re.findall(r"\d+", text)[:2])


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _literal(value: Any) -> str:
    return _quoted(value) if isinstance(value, str) else json.dumps(value)
