"""Milvus holds a generation in a collection, and shows one of them through an alias of the feed's name.

The marker is a property of the collection. Milvus has no transactions: a delta is marked before and after, and each call
of it says all of a row, so that it may be repeated. A load goes through Milvus's import of Parquet files where the server
can read the folder `import_folder`, and else through upserts. An import never sees that a row is there already: so a
collection whose imports may have run is made anew from the files, and its rows are counted before it counts as loaded.
How rows look on the wire stands in milvus_rows.py.
"""

import contextlib
import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pymilvus import DataType, MilvusClient, MilvusException
from pymilvus.grpc_gen import milvus_pb2

from pipeline.errors import InputError, StorageError, StorageUnavailable, StorageUnreachable
from pipeline.feed_spec import FeedSpec
from pipeline.feeds import milvus_rows, values
from pipeline.feeds.milvus_rows import DYNAMIC, VECTORS, dim_of, import_file
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
    matrix,
    taken,
)
from pipeline.schema import CONTENT_HASH, ID, ROW_HASH
from pipeline.storage import Folder, before_work
from pipeline.storage.address import address_of, is_remote
from pipeline.storage.retry import persistently

logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
logging.getLogger("pymilvus.decorators").setLevel(logging.CRITICAL)
"""It logs every error with a traceback, also those that are expected here."""

MARKER, LOAD, IMPORTS = "embedding_feed.marker", "embedding_feed.load", "embedding_feed.imports"
"""Properties of a collection: its marker as JSON; `import` or `upsert`; and `begun` where imports may have run."""
FOLDER, FOLDER_OPTIONS, FOLDER_SEEN = "import_folder", "import_storage_options", "import_path"
"""These options are the feed's own; the others go to pymilvus."""

METRICS = {"cosine": "COSINE", "dot": "IP", "euclidean": "L2", "hamming": "HAMMING"}
INDEXES = ("auto", "hnsw", "none")
FLOAT16_SINCE = (2, 4)
MOST_DIM = 32_768
BYTES_A_CALL = 8 * 2**20
"""A server takes 64 MB a call, and hands its queue 2 to 5 MB a message: pieces of this size keep both busy."""
ROWS_A_PAGE = 4_096
ROWS_A_GET = 500
IDS_A_DELETE = 1_000
JOBS_AT_ONCE = 64
ROWS_TO_FLUSH = 10_000
"""Fewer rows are searched exactly and at once where they stand, without an index."""
EF = 64
POLL_S = 0.1
_TRIES = 3

_PASSING = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED}
_DENIED = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}
_INVALID = 1100
_RATE_LIMIT = 8
_NO_COLLECTION = 100


class MilvusStore:
    """It implements store.Store."""

    def __init__(self, spec: FeedSpec) -> None:
        self._spec = spec
        self._timeout = spec.limits.timeout_s
        options = dict(spec.options)
        self._folder = options.pop(FOLDER, None)
        self._folder_options = options.pop(FOLDER_OPTIONS, {})
        self._folder_seen = options.pop(FOLDER_SEEN, None)
        self._options = options
        self._opened: Any = None

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

    # --- the connection

    @property
    def _client(self) -> Any:
        if self._opened is None:
            try:
                self._opened = MilvusClient(self._spec.url, timeout=self._timeout, **self._options)
            except MilvusException as error:
                raise self._translated(error, StorageUnreachable) from None
            except Exception as error:  # it checks addresses and options by many kinds of errors
                raise InputError(
                    f"feeds.url or feeds.options can't work for Milvus: {self._said(error)}; expected an address such as "
                    "http://host:19530, and options of pymilvus.MilvusClient"
                ) from None
        return self._opened

    @property
    def _handler(self) -> Any:
        return self._client._get_connection()

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except (MilvusException, grpc.RpcError) as error:
            raise self._translated(error, StorageUnavailable) from None

    def _translated(self, error: Exception, passing: type[StorageUnavailable]) -> Exception:
        said = self._said(error)
        code = error.code() if isinstance(error, grpc.RpcError) else getattr(error, "code", None)
        lower = said.lower()
        if code in _DENIED or "auth check failure" in lower or "permission deny" in lower or "unauthenticated" in lower:
            return InputError(
                f"Milvus at {self._spec.url} doesn't let this user in: {said}; check user, password or token in "
                "feeds.options, and the privileges"
            )
        if "fail connecting" in lower or "illegal connection params" in lower:
            return StorageUnreachable(f"no Milvus answers at {self._spec.url}: check feeds.url")
        if code in _PASSING or code == _RATE_LIMIT or "timeout" in lower or "retry run out" in lower:
            return passing(f"Milvus at {self._spec.url} gave no answer in {self._timeout:g} s: {said}; start again")
        return StorageError(f"Milvus at {self._spec.url} refused: {said}")

    def _said(self, error: Exception) -> str:
        said = (error.details() or str(error.code())) if isinstance(error, grpc.RpcError) else ""
        said = said or str(getattr(error, "message", "") or error)
        for name in ("password", "token"):
            secret = self._options.get(name)
            if isinstance(secret, str) and secret:
                said = said.replace(secret, "***")
        return said

    def _patiently(self, attempt: Callable[[], Any]) -> Any:
        """Return what `attempt` returns, tried again while errors pass; pymilvus does so by itself in its own calls."""

        def patience(error: BaseException) -> float:
            code = error.code() if isinstance(error, grpc.RpcError) else getattr(error, "code", None)
            return self._timeout if code in _PASSING or code == _RATE_LIMIT else 0.0

        return persistently(attempt, patience)

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
        self._check_folder()
        with before_work(), self._reported():
            version = self._client.get_server_version(timeout=self._timeout)
        if shape.dtype == "float16" and _version(version) < FLOAT16_SINCE:
            raise InputError(
                f"feeds.dtype is float16, and this Milvus is {version}: float16 came with 2.4; take float32, or a newer "
                "server"
            )
        self.generations()

    def _check_folder(self) -> None:
        if self._folder is None and (self._folder_options or self._folder_seen):
            raise InputError(f"feeds.options has {FOLDER_OPTIONS} or {FOLDER_SEEN}, and no {FOLDER}: give it, too")
        if self._folder is not None and not isinstance(self._folder, str):
            raise InputError(f"feeds.options.{FOLDER} is {self._folder!r}; give a folder or an address such as s3://bucket/x")

    def unfit(self, rows: pa.Table) -> Mapping[int, str]:
        return milvus_rows.unfit(rows)

    # --- markers

    def generations(self) -> Sequence[Generation]:
        with before_work(), self._reported():
            shown = self._shown()
            names = [name for name in self._client.list_collections(timeout=self._timeout) if self._is_ours(name)]
            found = [(name, self._properties(name)) for name in sorted(names, key=_number)]
        return [
            Generation(name=name, marker=_marker(properties), live=name == shown)
            for name, properties in found
            if properties is not None
        ]

    def _is_ours(self, name: str) -> bool:
        return name.startswith(f"{self._spec.name}__g")

    def _shown(self) -> str | None:
        """Return the collection that readers of the feed's name see. Raises InputError if it isn't ours."""
        found = self._described(self._spec.name)
        if found is None:
            return None
        name = str(found["collection_name"])
        if not self._is_ours(name):
            raise InputError(
                f"Milvus has the collection or alias {self._spec.name!r} already, which is no alias of this feed: choose "
                "another feeds.name, or rename it"
            )
        return name

    def _described(self, name: str) -> Any:
        """Return what Milvus says of a collection, None if there is none."""
        try:
            return self._client.describe_collection(name, timeout=self._timeout)
        except MilvusException as error:
            if error.code == _NO_COLLECTION or "can't find collection" in str(error.message):
                return None
            raise

    def _properties(self, generation: str) -> Mapping[str, str] | None:
        found = self._described(generation)
        return None if found is None else dict(found.get("properties", {}))

    def _set(self, generation: str, properties: Mapping[str, str]) -> None:
        self._client.alter_collection_properties(generation, dict(properties), timeout=self._timeout)

    def _expected(self, generation: str, expected: Marker | None) -> Mapping[str, str]:
        """Return the properties of a generation. Raises NotOurs where another marker stands there."""
        properties = self._properties(generation)
        found = _marker(properties)
        if properties is None or found != expected:
            raise NotOurs(
                f"generation {generation!r} in Milvus has the marker {found and found.to_json()}, and "
                f"{expected and expected.to_json()} was expected: another feed was at work; start again"
            )
        return properties

    def create(self, shape: Shape, marker: Marker) -> None:
        with self._reported():
            if self._properties(marker.generation) is None:
                self._create(shape, marker, "import" if self._folder else "upsert")
            self._create_index(marker.generation, shape)

    def _create(self, shape: Shape, marker: Marker, load: str, **more: str) -> None:
        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=True)
        schema.add_field(ID, DataType.VARCHAR, is_primary=True, max_length=milvus_rows.MOST_ID_BYTES)
        schema.add_field(CONTENT_HASH, DataType.VARCHAR, max_length=32)
        schema.add_field(ROW_HASH, DataType.INT64)
        schema.add_field(shape.embedding, VECTORS[shape.dtype], dim=dim_of(shape))
        properties = {MARKER: marker.to_json(), LOAD: load, **more}
        self._client.create_collection(
            marker.generation, schema=schema, properties=properties, timeout=self._timeout
        )

    def mark(self, marker: Marker, expected: Marker | None) -> None:
        with self._reported():
            if _marker(self._properties(marker.generation)) != marker:
                self._expected(marker.generation, expected)
                self._set(marker.generation, {MARKER: marker.to_json()})

    # --- rows

    def loader(self, generation: str, shape: Shape) -> Loader:
        with self._reported():
            properties = self._properties(generation)
        if properties is None:
            raise NotOurs(f"generation {generation!r} is not in Milvus any more: another feed was at work; start again")
        if properties.get(LOAD) != "import":
            return _Upserts(self, generation, shape)
        return _Imports(self._import_files(generation), generation, shape)

    def _import_files(self, generation: str) -> Folder:
        if self._folder is None:
            raise InputError(
                f"generation {generation!r} is loaded by imports, and feeds.options has no {FOLDER} any more: give it "
                "again, or drop the generation"
            )
        return Folder(self._folder, self._folder_options)

    def upsert(self, generation: str, shape: Shape, rows: pa.Table) -> list[Rejection]:
        """Put rows there in calls of some megabytes; return those that are refused."""
        rejected, rows = _fit(rows, shape)

        def apply(some: pa.Table) -> None:
            request = milvus_pb2.UpsertRequest(
                db_name=self._options.get("db_name", ""),
                collection_name=generation,
                fields_data=milvus_rows.fields(some, shape),
                num_rows=some.num_rows,
            )
            try:
                self._patiently(lambda: self._called("Upsert", request))
            except MilvusException as error:
                if error.code == _INVALID:
                    raise Rejected(f"Milvus refuses it: {self._said(error)}") from None
                raise

        with self._reported():
            for some in _pieces(rows, BYTES_A_CALL):
                rejected += taken(apply, some)
        return rejected

    def _called(self, method: str, request: Any) -> Any:
        response = getattr(self._handler._stub, method)(request, timeout=self._timeout)
        status = response.status
        if status.code or status.error_code:
            raise MilvusException(status.code or status.error_code, status.reason, status.error_code)
        return response

    def delete(self, generation: str, ids: Sequence[str]) -> None:
        with self._reported():
            for start in range(0, len(ids), IDS_A_DELETE):
                some = f"{ID} in [{', '.join(_quoted(name) for name in ids[start : start + IDS_A_DELETE])}]"
                self._client.delete(generation, filter=some, timeout=self._timeout)

    def finish_load(self, shape: Shape, before: Marker, after: Marker, receipts: Sequence[str]) -> None:
        generation = before.generation
        with self._reported():
            properties = self._properties(generation)
            if _marker(properties) != after:
                properties = self._expected(generation, before)
                files = {one["file"]: one["rows"] for one in map(json.loads, receipts)}
                if properties.get(LOAD) == "import":
                    self._import(shape, before, files, bool(properties.get(IMPORTS)))
                self._expected(generation, before)
                self._set(generation, {MARKER: after.to_json(), IMPORTS: ""})
        if properties and properties.get(LOAD) == "import":
            self._forget_files(generation)

    def _import(self, shape: Shape, marker: Marker, files: Mapping[str, int], is_begun: bool) -> None:
        """Import each file once. A collection whose rows may have arrived twice is made anew."""
        generation, wanted = marker.generation, sum(files.values())
        found = None
        for _ in range(_TRIES):
            if is_begun:
                self._client.drop_collection(generation, timeout=self._timeout)
                self._create(shape, marker, "import", **{IMPORTS: "begun"})
                self._create_index(generation, shape)
            else:
                self._set(generation, {IMPORTS: "begun"})
            is_begun = True
            try:
                self._run_jobs(generation, list(files))
            except grpc.RpcError:
                continue  # A job may have begun or not: nobody can say.
            # A collection that was in memory before its imports shows them late.
            self._client.release_collection(generation, timeout=self._timeout)
            found = self._count(generation)
            if found == wanted:
                return
        raise StorageError(
            f"Milvus holds {found} rows of generation {generation!r} after {len(files)} imports of {wanted} rows, "
            f"{_TRIES} times: look into its log, and start again"
        )

    def _run_jobs(self, generation: str, files: Sequence[str]) -> None:
        """Start a job for each file, since one of many files stays on one node, and wait until all are done."""
        waiting, running = list(reversed(files)), {}
        while waiting or running:
            while waiting and len(running) < JOBS_AT_ONCE:
                file = waiting.pop()
                request = milvus_pb2.ImportRequest(
                    db_name=self._options.get("db_name", ""), collection_name=generation, files=[self._seen(file)]
                )
                running[self._called("Import", request).tasks[0]] = file
            time.sleep(POLL_S)
            for job, file in list(running.items()):
                state = self._handler.get_bulk_insert_state(job, timeout=self._timeout)
                if "Failed" in state.state_name:
                    raise StorageError(
                        f"Milvus can't import {file}: {state.failed_reason}; the server must be able to read "
                        f"{self._seen(file)!r}: check feeds.options.{FOLDER} and {FOLDER_SEEN}, or leave them out"
                    )
                if state.state_name == "Completed":
                    del running[job]

    def _seen(self, file: str) -> str:
        """Return a file's path as the server knows it: its key in the bucket, or its path on the disk."""
        root = self._folder_seen
        if root is None:
            url = self._import_files("").url
            root = address_of(url).key.partition("/")[2] if is_remote(url) else url
        return f"{root.rstrip('/')}/{file}" if root else file

    def _forget_files(self, generation: str) -> None:
        if self._folder is not None:
            folder = Folder(self._folder, self._folder_options)
            folder.delete([file.path for file in folder.list(generation)])

    @contextlib.contextmanager
    def delta(self, shape: Shape, before: Marker, after: Marker) -> Iterator[Delta]:
        with self._reported():
            self._expected(before.generation, before)
        yield _Delta(self, shape, before, after)

    # --- the index

    def build_index(self, generation: str, shape: Shape, on_progress: Callable[[float], None]) -> None:
        with self._reported():
            self._create_index(generation, shape)
            if self._count(generation) >= ROWS_TO_FLUSH:
                self._client.flush(generation, timeout=None)
                while True:
                    found = self._client.describe_index(generation, shape.embedding, timeout=self._timeout)
                    total, pending = found["total_rows"], found["pending_index_rows"]
                    on_progress(1 - pending / total if total else 1.0)
                    if not pending and found["state"] == "Finished":
                        break
                    time.sleep(POLL_S)
        on_progress(1.0)

    def _create_index(self, generation: str, shape: Shape) -> None:
        if self._client.list_indexes(generation, timeout=self._timeout):
            return
        if shape.dtype == "binary":
            kind, params = "BIN_FLAT", {}
        elif shape.index.kind == "none":
            kind, params = "FLAT", {}
        else:
            kind = "HNSW"
            params = {"M": shape.index.m or 16, "efConstruction": shape.index.ef_construction or 200}
        wanted = self._client.prepare_index_params()
        wanted.add_index(shape.embedding, index_type=kind, metric_type=METRICS[shape.metric], params=params)
        self._client.create_index(generation, wanted, timeout=self._timeout, sync=False)

    def _load(self, generation: str) -> None:
        """Bring the collection into the servers' memory, where alone it can be read, unless it is there."""
        if self._client.get_load_state(generation, timeout=self._timeout)["state"].name == "Loaded":
            return
        self._handler.load_collection(generation, _async=True, timeout=self._timeout)
        while self._client.get_load_state(generation, timeout=self._timeout)["state"].name != "Loaded":
            time.sleep(POLL_S / 2)

    # --- reading back

    def count(self, generation: str) -> int:
        with self._reported():
            return self._count(generation)

    def _count(self, generation: str) -> int:
        (row,) = self._query(generation, "", ["count(*)"])
        return int(row["count(*)"])

    def _query(self, generation: str, expression: str, fields: list[str], **more: Any) -> list[dict[str, Any]]:
        self._load(generation)
        found = self._client.query(
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
            with self._reported():
                found = self._query(generation, after, [ID, CONTENT_HASH, ROW_HASH], limit=ROWS_A_PAGE)
            if not found:
                return
            yield milvus_rows.keys(found)
            last = max((row[ID] for row in found), key=str.encode)

    def get(self, generation: str, shape: Shape, ids: Sequence[str]) -> pa.Table:
        pieces = [shape.schema.empty_table()]
        for start in range(0, len(ids), ROWS_A_GET):
            wanted = f"{ID} in [{', '.join(_quoted(name) for name in ids[start : start + ROWS_A_GET])}]"
            with self._reported():
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
        with self._reported():
            self._load(generation)
            for start in range(0, len(queries), 100):
                hits = self._client.search(
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
        with self._reported():
            self._load(generation)
            shown = self._shown()
            if shown is None:
                self._client.create_alias(generation, self._spec.name, timeout=self._timeout)
            elif shown != generation:
                self._client.alter_alias(generation, self._spec.name, timeout=self._timeout)

    def drop(self, generation: str) -> None:
        with self._reported():
            if self._shown() == generation:
                raise StorageError(f"generation {generation!r} is shown to readers: switch to another one before")
            self._client.drop_collection(generation, timeout=self._timeout)
        self._forget_files(generation)

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()
            self._opened = None


class _Upserts:
    """It implements store.Loader: rows are there once they are acknowledged, and a unit may come again."""

    def __init__(self, store: MilvusStore, generation: str, shape: Shape) -> None:
        self._store, self._generation, self._shape = store, generation, shape

    def load(self, unit: str, rows: pa.Table) -> Loaded:
        rejected = self._store.upsert(self._generation, self._shape, rows)
        return Loaded(rows=rows.num_rows - len(rejected), rejected=tuple(rejected))

    def close(self) -> None: ...


class _Imports:
    """It implements store.Loader: a unit is a file, whose name is its receipt."""

    def __init__(self, folder: Folder, generation: str, shape: Shape) -> None:
        self._folder, self._generation, self._shape = folder, generation, shape

    def load(self, unit: str, rows: pa.Table) -> Loaded:
        rejected, rows = _fit(rows, self._shape)
        receipt = None
        if rows.num_rows:
            name = f"{self._generation}/{hashlib.sha256(unit.encode()).hexdigest()[:24]}.parquet"
            self._folder.write(name, import_file(rows, self._shape))
            receipt = json.dumps({"file": name, "rows": rows.num_rows})
        return Loaded(rows=rows.num_rows, rejected=tuple(rejected), receipt=receipt)

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


def _fit(rows: pa.Table, shape: Shape) -> tuple[list[Rejection], pa.Table]:
    """Tell apart the rows that Milvus would refuse: one of them would refuse its whole file or call."""
    found = {**values.unfit_vectors(matrix(rows, shape), shape.metric), **milvus_rows.unfit(rows)}
    if not found:
        return [], rows
    ids = rows.column(ID)
    rejected = [Rejection(id=ids[row].as_py(), reason=reason) for row, reason in sorted(found.items())]
    return rejected, rows.take(pa.array([row for row in range(rows.num_rows) if row not in found], pa.int64()))


def _pieces(rows: pa.Table, most_bytes: int) -> Iterator[pa.Table]:
    if rows.num_rows:
        per_call = max(1, most_bytes * rows.num_rows // max(1, rows.nbytes))
        for start in range(0, rows.num_rows, per_call):
            yield rows.slice(start, per_call)


def _marker(properties: Mapping[str, str] | None) -> Marker | None:
    text = (properties or {}).get(MARKER)
    return Marker.from_json(text) if text else None


def _number(generation: str) -> tuple[int, str]:
    found = re.search(r"__g(\d+)", generation)
    return (int(found[1]) if found else 0, generation)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(piece) for piece in re.findall(r"\d+", text)[:2])


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _literal(value: Any) -> str:
    return _quoted(value) if isinstance(value, str) else json.dumps(value)
