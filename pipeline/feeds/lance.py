"""A feed's store in LanceDB, on a disk or in an object store: `url` is the database, `name` is the table.

Every change is prepared aside and shown by one commit, so that readers see whole generations and whole syncs only.
Loaders write fragments, and the end of a load puts them into one version. What was prepared and never shown leaves files
that Lance's cleanup removes after a week. How versions are made stands in lance_versions.py, and how they are indexed in
lance_index.py.
"""

import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
from lance import LanceDataset, LanceOperation
from lance.fragment import FragmentMetadata, write_fragments
from numpy.typing import NDArray

from pipeline.errors import InputError, PipelineError, RunError
from pipeline.feed_spec import FeedSpec
from pipeline.feeds import lance_index
from pipeline.feeds.lance_versions import GENERATION, MARKER, Preempted, Versions, is_detached, marker_of, shown
from pipeline.feeds.store import (
    KEYS,
    Generation,
    Guarantees,
    Loaded,
    Marker,
    Rejection,
    Shape,
)
from pipeline.schema import ID
from pipeline.storage.address import is_remote, local_path, store_of

PRIMARY_KEY = {"lance-schema:unenforced-primary-key": "true"}
"""Lance's own mark on a column: merges by other programs then don't add an id twice."""
KEYS_BATCH_ROWS = 65_536
IO_BYTES = 64 * 2**20
"""A scan holds so many bytes that were read and not looked at yet. Lance itself would hold two gigabytes."""
IDS_AT_ONCE = 1_000
KEEP_UP_ATTEMPTS = 3
RESERVED = frozenset(["_distance", "_score", "_rowid", "_rowaddr", "_rowoffset", "_relevance_score"])


class LanceStore:
    """See store.Store."""

    guarantees = Guarantees(atomic_marker=True, fences=True, atomic_switch=True, keeps_bits=True, tested_on_server=True)

    def __init__(self, spec: FeedSpec) -> None:
        if spec.url.startswith("db://"):
            raise InputError("feeds.url is an address of LanceDB Cloud, which has no versions: give a folder or s3://")
        self._spec = spec
        self._versions = Versions(spec.url, spec.name, spec.options, spec.limits.timeout_s)

    def check(self, shape: Shape) -> None:
        _check_shape(shape)
        self._check_place()
        self.generations()

    def unfit(self, rows: pa.Table) -> Mapping[int, str]:
        """Lance takes every row of a shape that `check` took."""
        return {}

    def generations(self) -> Sequence[Generation]:
        return self._versions.generations()

    def create(self, shape: Shape, marker: Marker) -> None:
        if all(found.name != marker.generation for found in self.generations()):
            newest = self._versions.begin(_schema(shape))
            operation = LanceOperation.Overwrite(_marked(shape, marker), [])
            self._versions.point(marker.generation, self._versions.aside(newest, operation))

    def mark(self, marker: Marker, expected: Marker | None) -> None:
        head = self._versions.head(marker.generation)
        if marker_of(head) != marker:
            head = self._versions.expect(marker.generation, expected)
            self._versions.advance(head, self._versions.marked(head, marker), marker)

    def loader(self, generation: str, shape: Shape) -> "LanceLoader":
        return LanceLoader(self._versions, self._versions.head(generation), shape)

    def finish_load(self, shape: Shape, before: Marker, after: Marker, receipts: Sequence[str]) -> None:
        if marker_of(self._versions.head(after.generation)) == after:
            return
        head = self._versions.expect(before.generation, before)
        if not is_detached(head):
            raise RunError(f"{self._versions.place} shows {after.generation} already: load a new generation instead")
        units = [json.loads(receipt) for receipt in receipts]
        fragments = [FragmentMetadata.from_json(json.dumps(one)) for unit in units for one in unit["fragments"]]
        loaded = self._versions.aside(head, LanceOperation.Overwrite(_marked(shape, after), fragments))
        self._versions.advance(head, loaded, after)

    @contextmanager
    def delta(self, shape: Shape, before: Marker, after: Marker) -> Iterator["LanceDelta"]:
        head = self._versions.expect(before.generation, before)
        delta = LanceDelta(self._versions, head, after, self._spec.limits.bytes_in_flight)
        yield delta
        if delta.committed and not is_detached(head):
            self._keep_up(after.generation, shape)

    def build_index(self, generation: str, shape: Shape, on_progress: Callable[[float], None]) -> None:
        head = self._versions.head(generation)
        if not is_detached(head):
            self._keep_up(generation, shape)
        else:
            newest = self._versions.newest()
            with self._versions.errors():
                operation = lance_index.build(head, shape, newest.version if newest is not None else 1)
            if operation is not None:
                self._versions.point(generation, self._versions.aside(head, operation))
        on_progress(1.0)

    def count(self, generation: str) -> int:
        with self._versions.errors():
            return int(self._versions.head(generation).count_rows())

    def digests(self, generation: str) -> None:
        """Lance computes no SHA-256; see `keys`."""

    def keys(self, generation: str, buckets: Sequence[int] | None = None) -> Iterator[pa.Table]:
        head = self._versions.head(generation)
        with self._versions.errors():
            for batch in head.scanner(
                columns=KEYS.names, batch_size=KEYS_BATCH_ROWS, io_buffer_size=IO_BYTES
            ).to_batches():
                if batch.num_rows:
                    yield pa.Table.from_arrays([batch.column(name) for name in KEYS.names], schema=KEYS)

    def get(self, generation: str, shape: Shape, ids: Sequence[str]) -> pa.Table:
        head = self._versions.head(generation)
        found = [_schema(shape).empty_table()]
        with self._versions.errors():
            for start in range(0, len(ids), IDS_AT_ONCE):
                chosen = ", ".join(map(_literal, ids[start : start + IDS_AT_ONCE]))
                rows = head.scanner(columns=shape.schema.names, filter=f"{ID} IN ({chosen})", io_buffer_size=IO_BYTES)
                found.append(rows.to_table())
        return _as_sent(found, shape)

    def search(
        self,
        generation: str,
        shape: Shape,
        vectors: NDArray[np.float32],
        k: int,
        where: Mapping[str, Any] | None = None,
    ) -> list[list[str]]:
        head = self._versions.head(generation)
        wanted = " AND ".join(f"`{name}` {_equals(value)}" for name, value in (where or {}).items()) or None
        query = {"column": shape.embedding, "k": k, "metric": lance_index.METRICS[shape.metric]}
        query.update(lance_index.refinement(shape))
        found = []
        with self._versions.errors():
            if not head.count_rows():
                return [[] for _ in vectors]
            for vector in _queries(shape, vectors):
                rows = head.scanner(
                    columns=[ID, "_distance"],
                    filter=wanted,
                    prefilter=True,
                    nearest={**query, "q": vector},
                    io_buffer_size=IO_BYTES,
                ).to_table()
                found.append(rows.column(ID).to_pylist())
        return found

    def switch(self, generation: str) -> None:
        self._versions.show(generation)

    def drop(self, generation: str) -> None:
        newest = self._versions.newest()
        if newest is None:
            return
        if shown(newest) == generation:
            raise RunError(f"{generation} is what readers of {self._versions.place} see: show another one first")
        self._versions.forget(generation)

    def close(self) -> None:
        """Nothing stays open between calls."""

    def _keep_up(self, generation: str, shape: Shape) -> None:
        cleanup = not self._versions.has_detached()
        for attempt in range(1, KEEP_UP_ATTEMPTS + 1):
            try:
                with self._versions.errors():
                    return lance_index.keep_up(self._versions.head(generation), shape, cleanup)
            except Preempted:  # The user's own upkeep is at work.
                if attempt == KEEP_UP_ATTEMPTS:
                    raise

    def _check_place(self) -> None:
        url = self._spec.url
        if store_of(url) not in ("file", "s3", "gs", "az"):
            raise InputError(f"feeds.url is {url!r}; give a folder, or an address of s3://, gs:// or az://")
        if not is_remote(url):
            folder = local_path(url)
            while not os.path.exists(folder):
                folder = os.path.dirname(folder)
            if not os.path.isdir(folder):
                raise InputError(f"feeds.url is {url!r}, and {folder!r} is a file: give a folder")
            if not os.access(folder, os.W_OK | os.X_OK):
                raise InputError(f"feeds.url is {url!r}, and {folder!r} can't be written to: give rights to it")


class LanceLoader:
    """It writes each unit's rows into fragments, which belong to no version until the load ends."""

    def __init__(self, versions: Versions, head: LanceDataset, shape: Shape) -> None:
        self._versions, self._head, self._schema = versions, head, _schema(shape)

    def load(self, unit: str, rows: Iterable[pa.Table]) -> Loaded:
        fragments: Sequence[FragmentMetadata] = []
        batches = _Batches(rows)
        if (first := next(batches, None)) is not None:
            with batches.own_error(), self._versions.errors():
                fragments = write_fragments(
                    pa.RecordBatchReader.from_batches(first.schema, itertools.chain([first], batches)),
                    self._versions.uri,
                    schema=self._schema,
                    mode="overwrite",
                    storage_options=self._versions.options,
                )
        return Loaded(rows=batches.rows, receipt=json.dumps({"fragments": [one.to_json() for one in fragments]}))

    def close(self) -> None:
        """Nothing stays open between units."""


class _Batches:
    """It gives the rows of a unit to Lance, which tells an error in reading them as one of its own."""

    def __init__(self, rows: Iterable[pa.Table]) -> None:
        self._batches = (batch for some in rows for batch in some.to_batches() if batch.num_rows)
        self._error: PipelineError | None = None
        self.rows = 0

    def __iter__(self) -> "_Batches":
        return self

    def __next__(self) -> pa.RecordBatch:
        try:
            batch = next(self._batches)
        except PipelineError as error:
            self._error = error
            raise
        self.rows += batch.num_rows
        return batch

    @contextmanager
    def own_error(self) -> Iterator[None]:
        try:
            yield
        except PipelineError as error:
            raise self._error or error from None


class LanceDelta:
    """It makes detached versions, each on top of the one before it, and shows the last one."""

    def __init__(self, versions: Versions, head: LanceDataset, after: Marker, most_bytes: int) -> None:
        self._versions, self._head, self._prepared, self._after = versions, head, head, after
        self._most_bytes = most_bytes
        self._waiting: list[pa.Table] = []
        self.committed = False

    def upsert(self, rows: pa.Table) -> Sequence[Rejection]:
        self._waiting.append(rows)
        if sum(table.nbytes for table in self._waiting) >= self._most_bytes:
            self._flush()
        return []

    def delete(self, ids: pa.Array) -> None:
        if len(ids):
            self._merge(pa.table({ID: ids}), lambda merge: merge.when_matched_delete())

    def commit(self) -> None:
        self._flush()
        self._versions.advance(self._head, self._versions.marked(self._prepared, self._after), self._after)
        self.committed = True

    def _flush(self) -> None:
        rows = pa.concat_tables(self._waiting) if self._waiting else None
        self._waiting = []
        if rows is not None and rows.num_rows:
            self._merge(rows, lambda merge: merge.when_matched_update_all().when_not_matched_insert_all())

    def _merge(self, rows: pa.Table, how: Callable[[Any], Any]) -> None:
        with self._versions.errors():
            transaction, _ = how(self._prepared.merge_insert(ID)).execute_uncommitted(rows)
        self._prepared = self._versions.aside(self._prepared, transaction.operation)


def _schema(shape: Shape) -> pa.Schema:
    schema = shape.schema
    return schema.set(0, schema.field(ID).with_metadata(PRIMARY_KEY))


def _marked(shape: Shape, marker: Marker) -> pa.Schema:
    return _schema(shape).with_metadata({GENERATION: marker.generation, MARKER: marker.to_json()})


def _as_sent(tables: Sequence[pa.Table], shape: Shape) -> pa.Table:
    """Give rows the types that they came with: Lance forgets that elements of a vector are never null."""
    columns = []
    for field in shape.schema:
        chunks = [chunk for table in tables for chunk in table.column(field.name).chunks]
        if field.name == shape.embedding:
            chunks = [pa.FixedSizeListArray.from_arrays(chunk.flatten(), type=field.type) for chunk in chunks]
        columns.append(pa.chunked_array(chunks, field.type))
    return pa.Table.from_arrays(columns, schema=shape.schema)


def _queries(shape: Shape, vectors: NDArray[np.float32]) -> NDArray[Any]:
    if shape.dtype == "binary":
        return np.packbits(vectors > 0, axis=1)
    return vectors.astype(np.float16) if shape.dtype == "float16" else vectors


def _literal(text: str) -> str:
    doubled = text.replace("'", "''")
    return f"'{doubled}'"


def _equals(value: Any) -> str:
    if value is None:
        return "IS NULL"
    if isinstance(value, bool):
        return f"= {str(value).lower()}"
    if isinstance(value, (int, float)):
        return f"= {value!r}"
    if isinstance(value, str):
        return f"= {_literal(value)}"
    raise InputError(f"a filter compares with {value!r} of type {type(value).__name__}; give text, a number or a bool")


def _check_shape(shape: Shape) -> None:
    known = ["auto", "none", *lance_index.KINDS]
    if shape.index.kind not in known:
        raise InputError(f"feeds.index.kind is {shape.index.kind!r}; LanceDB has {', '.join(known)}")
    if (shape.dtype == "binary") != (shape.metric == "hamming"):
        raise InputError(
            f"feeds.dtype is {shape.dtype!r} and feeds.metric is {shape.metric!r}; binary vectors go with hamming, and "
            "others with cosine, dot or euclidean"
        )
    for field in shape.columns:
        if "." in field.name or "`" in field.name or not field.name or field.name in RESERVED:
            raise InputError(
                f"feeds.columns names {field.name!r}, which LanceDB can't have as a column: leave it out, or give it "
                "another name in the table"
            )
        if not _is_known(field.type):
            raise InputError(
                f"feeds.columns names {field.name!r}, whose type {field.type} LanceDB can't hold: leave it out, or store "
                "it as text"
            )


def _is_known(kind: pa.DataType) -> bool:
    """Tell whether a type was seen to come back as it was."""
    if pa.types.is_struct(kind):
        return kind.num_fields > 0 and all(_is_known(field.type) for field in kind)
    if pa.types.is_map(kind):
        return _is_known(kind.key_type) and _is_known(kind.item_type)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _is_known(kind.value_type)
    if pa.types.is_dictionary(kind):
        return _is_known(kind.value_type)
    tests = ("string", "large_string", "binary", "large_binary", "fixed_size_binary", "boolean", "integer", "floating")
    times = ("date", "timestamp", "time", "duration", "decimal128", "decimal256")
    return any(getattr(pa.types, f"is_{name}")(kind) for name in (*tests, *times))
