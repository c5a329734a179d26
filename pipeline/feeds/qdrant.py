"""Qdrant holds each generation as a collection, and shows one of them to readers under an alias.

Rows are points by the UUIDv5 of their ids (see qdrant_points.py). The marker stands in the collection's metadata, which
Qdrant can't compare and set: it is read before it is replaced. Every sync counts an epoch up, and its upserts and
deletes leave points of newer epochs alone. Rows of a sync that wakes up late can therefore come back only if a newer
sync deleted them; each request looks at the marker first, so that this takes a request that was on its way already.

Vectors under `cosine` stand as unit vectors under Qdrant's `Dot`, which is the same order. Unit vectors keep their bits
so; Qdrant's own `Cosine` would change what it stores. This program was not run against a Qdrant server: tests speak its
protocol to a server that answers by the client's local mode.
"""

import contextlib
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from qdrant_client import grpc as api

from pipeline.errors import ConfigError, InputError, StorageError
from pipeline.feed_spec import FeedSpec
from pipeline.feeds import epoch, json_values
from pipeline.feeds import qdrant_collection as collection
from pipeline.feeds import qdrant_points as points
from pipeline.feeds.qdrant_calls import Calls
from pipeline.feeds.store import (
    Delta,
    Generation,
    Guarantees,
    Loaded,
    Loader,
    Marker,
    NotOurs,
    Rejection,
    Shape,
    loaded_by,
    not_ours,
    taken,
)
from pipeline.schema import CONTENT_HASH, ID, ROW_HASH
from pipeline.storage import before_work

MARKER, DEFAULT_THRESHOLD = "embedding_pipeline_marker", "embedding_pipeline_indexing_threshold"
"""Keys of a collection's metadata, besides qdrant_points.EPOCH. The second keeps the server's own setting in a load."""
FOREIGN = "qdrant-point:"
"""A point that isn't ours is known under this and its own id."""
OPTIONS = ("api_key", "collection", "grpc_options", "hnsw_ef", "payload_indexes", "root_certificates", "streams")
REQUEST_BYTES, REQUEST_ROWS = 4 << 20, 10_000
"""A server takes 32 MB in a request by default, and works best with some MB."""
PAGE = 5_000
"""So many points come in one answer without vectors."""
NEVER = 2_000_000_000
"""KB of vectors in a segment before it is indexed: more than there will be."""
USUAL_THRESHOLD = 20_000
"""KB; a server that doesn't tell its own has this one."""
FIRST_POLL_S, LONGEST_POLL_S = 0.05, 5.0
OLDEST = (1, 16)
"""Collections have metadata since this version of Qdrant."""

_MAJORITY = api.ReadConsistency(type=api.ReadConsistencyType.Majority)


class QdrantStore:
    """It is a feed's collections in one Qdrant. The address may have Qdrant's HTTP port in place of the one for gRPC."""

    guarantees = Guarantees(
        atomic_marker=False,
        fences=False,
        atomic_switch=True,
        keeps_bits=False,
        dtypes=frozenset({"float32", "float16"}),
        tested_on_server=False,
    )

    def __init__(self, spec: FeedSpec) -> None:
        unknown = sorted(set(spec.options) - set(OPTIONS))
        if unknown:
            raise ConfigError(
                f"feeds.options has {unknown[0]!r}, which store qdrant doesn't know; it has {list(OPTIONS)}"
            )
        self._spec = spec
        self._calls = Calls(spec.url, spec.options, spec.limits.timeout_s)
        self._name = re.compile(rf"{re.escape(spec.name)}__g(\d+)_\w+")

    # What there is

    def check(self, shape: Shape) -> None:
        collection.check(shape)
        collection.indexes(shape, self._spec.options)
        collection.created("any", shape, self._spec.options)
        with before_work():
            version = self._calls("Qdrant/HealthCheck", api.HealthCheckRequest()).version
            found = re.match(r"(\d+)\.(\d+)", version)
            if found and (int(found[1]), int(found[2])) < OLDEST:
                raise InputError(f"Qdrant at {self._spec.url} is version {version}; 1.16 or newer is needed")
            self.generations()

    def unfit(self, rows: pa.Table) -> Mapping[int, str]:
        return collection.unfit(rows, FOREIGN)

    def generations(self) -> Sequence[Generation]:
        with before_work():
            names = [one.name for one in self._calls("Collections/List", api.ListCollectionsRequest()).collections]
            if self._spec.name in names:
                raise InputError(
                    f"Qdrant has a collection {self._spec.name!r} of somebody else: choose another feeds.name, or remove it"
                )
            live = self._live()
            if live is not None and not self._name.fullmatch(live):
                raise InputError(
                    f"the alias {self._spec.name!r} shows the collection {live!r}, which is not of this feed: choose "
                    "another feeds.name, or remove the alias"
                )
            found = sorted((int(match[1]), name) for name in names if (match := self._name.fullmatch(name)))
            return [Generation(name=name, marker=self._marker(name), live=name == live) for _, name in found]

    def _live(self) -> str | None:
        aliases = self._calls("Collections/ListAliases", api.ListAliasesRequest()).aliases
        return next((one.collection_name for one in aliases if one.alias_name == self._spec.name), None)

    def _info(self, generation: str) -> Any:
        return self._calls("Collections/Get", api.GetCollectionInfoRequest(collection_name=generation)).result

    def _marker(self, generation: str) -> Marker | None:
        return _marker_of(self._info(generation))

    # Generations and their markers

    def create(self, shape: Shape, marker: Marker) -> None:
        name = marker.generation
        request = collection.created(name, shape, self._spec.options)
        request.metadata[MARKER].string_value = marker.to_json()

        def attempt(timeout_s: float) -> None:
            asked = api.CollectionExistsRequest(collection_name=name)
            if not self._calls.once("Collections/CollectionExists", asked, timeout_s).result.exists:
                self._calls.once("Collections/Create", request, timeout_s)

        self._calls.again(attempt)
        info = self._info(name)
        if _marker_of(info) is None and not info.points_count:
            self._update(name, {MARKER: marker.to_json()})
            if self._marker(name) is None:
                raise StorageError("this Qdrant doesn't keep metadata of collections: 1.16 or newer is needed")
        for column, kind in collection.indexes(shape, self._spec.options).items():
            field = api.CreateFieldIndexCollection(collection_name=name, wait=True, field_name=column, field_type=kind)
            self._calls("Points/CreateFieldIndex", field)
        found = _marker_of(info)
        if self._spec.index.defer and (found is None or found.applied == 0):
            self._postpone_index(name, info)

    def _postpone_index(self, name: str, info: Any) -> None:
        """Have no index built while rows are loaded. The server's own setting is kept until it is set again."""
        if DEFAULT_THRESHOLD in info.config.metadata:
            return
        own = info.config.optimizer_config
        threshold = own.indexing_threshold if own.HasField("indexing_threshold") else USUAL_THRESHOLD
        self._update(name, {DEFAULT_THRESHOLD: str(threshold)}, threshold=NEVER)

    def _update(self, generation: str, metadata: Mapping[str, str | int], threshold: int | None = None) -> None:
        request = api.UpdateCollection(collection_name=generation)
        for key, value in metadata.items():
            if isinstance(value, str):
                request.metadata[key].string_value = value
            else:
                request.metadata[key].integer_value = value
        if threshold is not None:
            request.optimizers_config.indexing_threshold = threshold
        self._calls("Collections/Update", request)

    def mark(self, marker: Marker, expected: Marker | None) -> None:
        found = self._marker(marker.generation)
        if found == marker:
            return
        if found != expected:
            raise not_ours(marker.generation, expected, found)
        self._update(marker.generation, {MARKER: marker.to_json()})
        found = self._marker(marker.generation)
        if found != marker:
            raise not_ours(marker.generation, marker, found)

    def switch(self, generation: str) -> None:
        def attempt(timeout_s: float) -> None:
            aliases = self._calls.once("Collections/ListAliases", api.ListAliasesRequest(), timeout_s).aliases
            shown = [one.collection_name for one in aliases if one.alias_name == self._spec.name]
            if shown == [generation]:
                return
            request = api.ChangeAliases()
            if shown:
                request.actions.add().delete_alias.alias_name = self._spec.name
            created = request.actions.add().create_alias
            created.alias_name, created.collection_name = self._spec.name, generation
            self._calls.once("Collections/UpdateAliases", request, timeout_s)

        self._calls.again(attempt)

    def drop(self, generation: str) -> None:
        if self._live() == generation:
            raise InputError(f"{generation} is live: switch to another generation before it is dropped")
        self._calls("Collections/Delete", api.DeleteCollection(collection_name=generation))

    # Rows

    def loader(self, generation: str, shape: Shape) -> Loader:
        return _Loader(_Writer(self, generation, shape, number=0, guard=self._unloaded))

    def _unloaded(self, generation: str) -> None:
        found = self._marker(generation)
        if found is None or found.applied:
            raise NotOurs(f"{generation} is no longer being loaded: its marker is {found and found.to_json()}")

    def finish_load(self, shape: Shape, before: Marker, after: Marker, receipts: Sequence[str]) -> None:
        self.mark(after, before)

    @contextlib.contextmanager
    def delta(self, shape: Shape, before: Marker, after: Marker) -> Iterator[Delta]:
        info = self._info(before.generation)
        if (found := _marker_of(info)) != before:
            raise not_ours(before.generation, before, found)
        metadata = info.config.metadata
        number = epoch.after(metadata[points.EPOCH].integer_value if points.EPOCH in metadata else 0)
        self._update(before.generation, {points.EPOCH: number})

        def guard(generation: str) -> None:
            if (found := self._marker(generation)) != before:
                raise not_ours(generation, before, found)

        with contextlib.closing(_Writer(self, before.generation, shape, number, guard)) as writer:
            yield _Delta(writer, lambda: self.mark(after, before))

    def build_index(self, generation: str, shape: Shape, on_progress: Callable[[float], None]) -> None:
        """Give Qdrant its own setting back, and wait until it says twice that nothing is left to be optimised. This takes
        as long as it takes: the server answers all the while."""
        config = self._info(generation).config
        if config.optimizer_config.indexing_threshold == NEVER:
            own = config.metadata[DEFAULT_THRESHOLD].string_value
            self._update(generation, {}, threshold=int(own or USUAL_THRESHOLD))
        green, pause_s = 0, FIRST_POLL_S
        while green < 2:
            info = self._info(generation)
            if info.status == api.CollectionStatus.Red:
                raise StorageError(
                    f"Qdrant can't optimise {generation}: {info.optimizer_status.error or 'see its log'}"
                )
            green = green + 1 if info.status == api.CollectionStatus.Green else 0
            on_progress(1.0 if green else min(0.99, info.indexed_vectors_count / max(1, info.points_count)))
            if green < 2:
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_POLL_S)

    def count(self, generation: str) -> int:
        request = api.CountPoints(collection_name=generation, exact=True, read_consistency=_MAJORITY)
        return int(self._calls("Points/Count", request).result.count)

    def digests(self, generation: str) -> NDArray[np.uint64] | None:
        return None

    def keys(self, generation: str, buckets: Sequence[int] | None = None) -> Iterator[pa.Table]:
        request = api.ScrollPoints(collection_name=generation, limit=PAGE, read_consistency=_MAJORITY)
        request.with_payload.include.fields.extend([ID, CONTENT_HASH, ROW_HASH])
        request.with_vectors.enable = False
        while True:
            answer = self._calls("Points/Scroll", request)
            if answer.result:
                yield points.keys_of(answer.result, FOREIGN)
            if not answer.HasField("next_page_offset"):
                return
            request.offset.CopyFrom(answer.next_page_offset)

    def get(self, generation: str, shape: Shape, ids: Sequence[str]) -> pa.Table:
        at_once = max(1, min(PAGE, REQUEST_BYTES // (4 * shape.dim)))
        pieces = [shape.schema.empty_table()]
        for start in range(0, len(ids), at_once):
            wanted = ids[start : start + at_once]
            request = api.GetPoints(collection_name=generation, read_consistency=_MAJORITY)
            request.ids.extend(api.PointId(uuid=one) for one in points.points_of(wanted))
            request.with_payload.enable = request.with_vectors.enable = True
            found = self._calls("Points/Get", request).result
            names = set(wanted)
            ours = [point for point in found if ID in point.payload and point.payload[ID].string_value in names]
            pieces.append(points.rows_of(ours, shape))
        return pa.concat_tables(pieces)

    def search(
        self,
        generation: str,
        shape: Shape,
        vectors: NDArray[np.float32],
        k: int,
        where: Mapping[str, Any] | None = None,
    ) -> list[list[str]]:
        request = api.QueryBatchPoints(collection_name=generation)
        for vector in vectors:
            query = request.query_points.add(collection_name=generation, limit=k)
            query.query.nearest.dense.data.extend(vector.tolist())
            query.with_payload.include.fields.append(ID)
            if "hnsw_ef" in self._spec.options:
                query.params.hnsw_ef = int(self._spec.options["hnsw_ef"])
            for name, value in (where or {}).items():
                query.filter.must.append(collection.equals(name, value))
        answers = self._calls("Points/QueryBatch", request).result
        return [[point.payload[ID].string_value for point in answer.result] for answer in answers]

    def close(self) -> None:
        self._calls.close()


class _Writer:
    """It sends rows of one generation in requests of some MB, several at a time, and leaves newer epochs alone."""

    def __init__(
        self, store: QdrantStore, generation: str, shape: Shape, number: int, guard: Callable[[str], None]
    ) -> None:
        self._calls, self._generation, self._shape, self._epoch = store._calls, generation, shape, number
        self._guard = guard
        self._threads = ThreadPoolExecutor(int(store._spec.options.get("streams", 2)))
        newer = api.Filter()
        condition = newer.must_not.add().field
        condition.key, condition.range.gt = points.EPOCH, number
        self._newer = newer
        head = api.UpsertPoints(collection_name=generation, wait=True, update_filter=newer)
        self._head = head.SerializeToString()

    def upsert(self, rows: pa.Table) -> list[Rejection]:
        """Put the rows there, those that Qdrant takes; return the others."""
        reasons = {**json_values.without_direction(rows, self._shape), **collection.unfit(rows, FOREIGN)}
        rejected = [Rejection(id=rows.column(ID)[row].as_py(), reason=why) for row, why in sorted(reasons.items())]
        if reasons:
            rows = rows.filter(pa.array([row not in reasons for row in range(rows.num_rows)]))
        at_once = max(1, min(REQUEST_ROWS, REQUEST_BYTES // (4 * self._shape.dim + 256)))
        pieces = [rows.slice(start, at_once) for start in range(0, rows.num_rows, at_once)]
        for refused in self._threads.map(lambda piece: taken(self._send, piece), pieces):
            rejected += refused
        return rejected

    def _send(self, rows: pa.Table) -> None:
        vectors = points.unit_vectors(rows, self._shape)
        body = points.upsert_body(rows, self._shape, vectors, self._epoch)
        self._guard(self._generation)
        self._calls("Points/Upsert", self._head + body)

    def delete(self, ids: Sequence[str]) -> None:
        for start in range(0, len(ids), PAGE):
            piece = ids[start : start + PAGE]
            found = [api.PointId(uuid=one) for one in points.points_of(piece)]
            self._delete([*found, *self._foreign([name for name in piece if name.startswith(FOREIGN)])])

    def _delete(self, ids: Sequence[Any]) -> None:
        request = api.DeletePoints(collection_name=self._generation, wait=True)
        request.points.filter.CopyFrom(self._newer)
        request.points.filter.must.add().has_id.has_id.extend(ids)
        self._guard(self._generation)
        self._calls("Points/Delete", request)

    def _foreign(self, names: Sequence[str]) -> list[Any]:
        """Return the points that somebody else put there. One that is ours by now stays."""
        if not names:
            return []
        request = api.GetPoints(collection_name=self._generation, read_consistency=_MAJORITY)
        for name in names:
            own = name.removeprefix(FOREIGN)
            request.ids.append(api.PointId(num=int(own)) if own.isdecimal() else api.PointId(uuid=own))
        request.with_payload.include.fields.extend([ID, CONTENT_HASH, ROW_HASH])
        request.with_vectors.enable = False
        found = self._calls("Points/Get", request).result
        keys = points.keys_of(found, FOREIGN).column(ID).to_pylist()
        return [point.id for point, name in zip(found, keys, strict=True) if name in names]

    def close(self) -> None:
        self._threads.shutdown()


class _Loader:
    def __init__(self, writer: _Writer) -> None:
        self._writer = writer

    def load(self, unit: str, rows: Iterable[pa.Table]) -> Loaded:
        return loaded_by(self._writer.upsert, rows)

    def close(self) -> None:
        self._writer.close()


class _Delta:
    def __init__(self, writer: _Writer, commit: Callable[[], None]) -> None:
        self._writer, self._commit = writer, commit

    def upsert(self, rows: pa.Table) -> Sequence[Rejection]:
        return self._writer.upsert(rows)

    def delete(self, ids: pa.Array) -> None:
        self._writer.delete(ids.to_pylist())

    def commit(self) -> None:
        self._commit()


def _marker_of(info: Any) -> Marker | None:
    metadata = info.config.metadata
    text = metadata[MARKER].string_value if MARKER in metadata else ""
    return Marker.from_json(text) if text else None
