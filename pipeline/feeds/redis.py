"""Redis with its search module holds each row in a hash, and shows a generation through an alias of the feed's name.

The hashes of a generation have keys such as `docs__g1_1a2b:<id>`, the index over them has the generation's name. A marker is
a key of its own. Rows are written in transactions of some megabytes, each of which happens only if the marker is still the
one that was expected: so a feeder that was frozen can't write any more. How rows look as hashes stands in redis_rows.py.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import redis
from numpy.typing import NDArray

from pipeline.errors import InputError, StorageError
from pipeline.feed_spec import FeedSpec
from pipeline.feeds import redis_rows, values
from pipeline.feeds.redis_server import POLL_S, Server, text
from pipeline.feeds.store import (
    KEYS,
    Delta,
    Generation,
    Guarantees,
    Loaded,
    Loader,
    Marker,
    NotOurs,
    Rejection,
    Shape,
    by_age,
    loaded_by,
)
from pipeline.schema import CONTENT_HASH, ROW_HASH, TEXT
from pipeline.storage import before_work

METRICS = {"cosine": "COSINE", "dot": "IP", "euclidean": "L2"}
MOST_DIM = 32_768
FLOAT16_SINCE = 21_000
"""RediSearch 2.10, as its module tells its version."""
EF_RUNTIME = 64
"""A search looks at so many candidates. The module's default of 10 finds fewer of the nearest rows."""
ROWS_A_CALL = 1_000
BYTES_A_CALL = 4 * 2**20
FILTERS = "filters"
"""This option of the feed names the columns that searches can filter by."""


class RedisStore:
    """It implements store.Store."""

    guarantees = Guarantees(
        atomic_marker=False,
        fences=True,
        atomic_switch=True,
        keeps_bits=True,
        dtypes=frozenset({"float32", "float16"}),
        tested_on_server=True,
    )

    def __init__(self, spec: FeedSpec) -> None:
        self._spec = spec
        self._filters = spec.options.get(FILTERS)
        options = {name: value for name, value in spec.options.items() if name != FILTERS}
        self.server = Server(spec.url, options, spec.limits.timeout_s)

    # --- before anything is written

    def check(self, shape: Shape) -> None:
        name = self._spec.name
        if "." in name:
            raise InputError(f"feeds.name is {name!r}; Redis has no schemas: take a name without a dot")
        values.check(shape.columns, "Redis")
        if shape.embedding in shape.columns.names:
            raise InputError(f"feeds.columns names {shape.embedding!r}, which is the column of vectors: leave it out")
        if shape.dtype == "binary" or shape.metric not in METRICS:
            raise InputError(
                f"feeds.dtype is {shape.dtype} with feeds.metric {shape.metric!r}; Redis has vectors of float32 and float16, "
                "compared by cosine, dot or euclidean"
            )
        if not 1 <= shape.dim <= MOST_DIM:
            raise InputError(f"the vectors have {shape.dim} dimensions; Redis takes 1 to {MOST_DIM}")
        if shape.index.kind not in ("auto", "hnsw", "none"):
            raise InputError(f"feeds.index.kind is {shape.index.kind!r}; a Redis feed has hnsw, none or auto")
        self._check_filters(shape)
        with before_work():
            self._check_server(shape)
        self.generations()

    def _check_filters(self, shape: Shape) -> None:
        if self._filters is None:
            return
        if not isinstance(self._filters, list | tuple):
            raise InputError(f"feeds.options.{FILTERS} is {self._filters!r}; give a list of columns")
        for name in self._filters:
            if name not in shape.columns.names or redis_rows.filter_of(shape.columns.field(name)) is None:
                raise InputError(
                    f"feeds.options.{FILTERS} names {name!r}; expected columns of the feed that are texts, numbers or booleans"
                )

    def _check_server(self, shape: Shape) -> None:
        info = self.server.patiently(lambda client: client.info())
        if info.get("cluster_enabled"):
            raise InputError(
                "this Redis is a cluster, over whose nodes no transaction of a feed could reach: take a server or a "
                "primary with replicas"
            )
        policy = str(info.get("maxmemory_policy", ""))
        if info.get("maxmemory") and policy.startswith("allkeys"):
            raise InputError(
                f"this Redis has maxmemory-policy {policy}, and would drop rows when its memory is full: take noeviction or "
                "a policy that begins with volatile"
            )
        modules = {text(one[b"name"] if b"name" in one else one["name"]): one for one in self._modules()}
        if "search" not in modules:
            raise InputError("this Redis has no search module: take Redis 8 or Redis Stack")
        version = int(modules["search"].get(b"ver", modules["search"].get("ver", 0)))
        if shape.dtype == "float16" and version < FLOAT16_SINCE:
            raise InputError(
                f"feeds.dtype is float16, and this Redis has version {version} of its search module: float16 came with "
                "2.10; take float32, or a newer server"
            )

    def _modules(self) -> Sequence[Mapping[Any, Any]]:
        return list(self.server.patiently(lambda client: client.module_list()))

    def unfit(self, rows: pa.Table) -> Mapping[int, str]:
        return values.unfit(rows, redis_rows.columns_of(rows))

    # --- markers

    @property
    def _names(self) -> str:
        """The key of the set of this feed's generations."""
        return f"embedding_feed:{self._spec.name}:generations"

    def _key(self, generation: str) -> str:
        """The key of a generation's marker."""
        return f"embedding_feed:{self._spec.name}:marker:{generation}"

    def generations(self) -> Sequence[Generation]:
        def generations(client: Any) -> Sequence[Generation]:
            shown = self._shown(client)
            names = sorted((text(name) for name in client.smembers(self._names)), key=by_age)
            texts = client.mget([self._key(name) for name in names]) if names else []
            return [
                Generation(name=name, marker=_marker(text), live=name == shown)
                for name, text in zip(names, texts, strict=True)
            ]

        with before_work():
            return self.server.patiently(generations)

    def _shown(self, client: Any) -> str | None:
        """Return the index that readers of the feed's name see. Raises InputError if it isn't ours."""
        info = self.server.index_info(client, self._spec.name)
        if info is None:
            return None
        name = text(info["index_name"])
        if not name.startswith(f"{self._spec.name}__g"):
            raise InputError(
                f"Redis has the index {self._spec.name!r} already, which is no alias of this feed: choose another "
                "feeds.name, or drop it"
            )
        return name

    def create(self, shape: Shape, marker: Marker) -> None:
        def create(pipe: Any) -> None:
            if pipe.sismember(self._names, marker.generation):
                return
            pipe.multi()
            pipe.sadd(self._names, marker.generation)
            pipe.set(self._key(marker.generation), marker.to_json())

        self.server.transaction(create, self._names)

    def mark(self, marker: Marker, expected: Marker | None) -> None:
        key = self._key(marker.generation)

        def mark(pipe: Any) -> None:
            found = _marker(pipe.get(key))
            if found != marker and (found != expected or not pipe.sismember(self._names, marker.generation)):
                raise _not_ours(marker.generation, expected, found)
            pipe.multi()
            # Also where it stands there already, or `made_durable` would not know for which write to wait.
            pipe.set(key, marker.to_json())

        self.server.transaction(mark, key)
        self.server.made_durable()

    # --- rows

    def loader(self, generation: str, shape: Shape) -> Loader:
        return _Loader(self, generation, shape)

    def write(
        self, generation: str, shape: Shape, rows: pa.Table, is_expected: Callable[[Marker | None], bool]
    ) -> list[Rejection]:
        """Put rows there, in transactions that fail where the marker is not an expected one."""
        rejected, rows = values.fit(rows, shape, self.unfit(rows))
        for some in _pieces(rows):
            commands = redis_rows.commands(generation, some, shape)
            self.server.exchange(self._key(generation), _checked(generation, is_expected), commands)
        return rejected

    def delete(self, generation: str, ids: Sequence[str], is_expected: Callable[[Marker | None], bool]) -> None:
        for start in range(0, len(ids), ROWS_A_CALL):
            keys = [redis_rows.key(generation, name) for name in ids[start : start + ROWS_A_CALL]]
            self.server.exchange(
                self._key(generation), _checked(generation, is_expected), [redis_rows.message(b"UNLINK", *keys)]
            )

    def finish_load(self, shape: Shape, before: Marker, after: Marker, receipts: Sequence[str]) -> None:
        self.mark(after, before)

    @contextlib.contextmanager
    def delta(self, shape: Shape, before: Marker, after: Marker) -> Iterator[Delta]:
        found = _marker(self.server.patiently(lambda client: client.get(self._key(before.generation))))
        if found != before:
            raise _not_ours(before.generation, before, found)
        yield _Delta(self, shape, before, after)

    # --- the index

    def build_index(self, generation: str, shape: Shape, on_progress: Callable[[float], None]) -> None:
        self.server.patiently(lambda client: self._create_index(client, generation, shape))
        while True:
            info = self.server.patiently(lambda client: self.server.index_info(client, generation)) or {}
            share = float(info.get("percent_indexed", 1))
            on_progress(min(share, 1.0))
            if not int(info.get("indexing", 0)) and share >= 1:
                break
            time.sleep(POLL_S)
        failed = int(info.get("hash_indexing_failures", 0))
        if failed:
            raise StorageError(
                f"Redis could not index {failed} rows of generation {generation!r}: see FT.INFO {generation}"
            )

    def _create_index(self, client: Any, generation: str, shape: Shape) -> None:
        if self.server.index_info(client, generation) is not None:
            return
        arguments: list[Any] = ["TYPE", shape.dtype.upper(), "DIM", shape.dim, "DISTANCE_METRIC", METRICS[shape.metric]]
        kind = "FLAT" if shape.index.kind == "none" else "HNSW"
        if kind == "HNSW":
            arguments += ["M", shape.index.m or 16, "EF_CONSTRUCTION", shape.index.ef_construction or 200]
            arguments += ["EF_RUNTIME", EF_RUNTIME]
        fields: list[Any] = [shape.embedding, "VECTOR", kind, len(arguments), *arguments]
        for field in shape.columns:
            wanted = field.name != TEXT if self._filters is None else field.name in self._filters
            if wanted and (found := redis_rows.filter_of(field)) is not None:
                fields += [field.name, *found]
        try:
            client.execute_command(
                "FT.CREATE", generation, "ON", "HASH", "PREFIX", 1, f"{generation}:", "SCHEMA", *fields
            )
        except redis.ResponseError as error:
            if "already exists" not in str(error):
                raise

    # --- reading back

    def count(self, generation: str) -> int:
        return sum(len(keys) for keys in self._scan(generation))

    def _scan(self, generation: str) -> Iterator[list[bytes]]:
        """Yield the keys of a generation's rows, each once: a scan may show one again while the server moves its table."""
        seen: set[int] = set()
        cursor = 0
        while True:
            cursor, keys = self.server.patiently(functools.partial(_scanned, generation, cursor))
            new = []
            for key in keys:
                known = hash(key)  # 64 bits
                if known not in seen:
                    seen.add(known)
                    new.append(key)
            if new:
                yield new
            if not cursor:
                return

    def digests(self, generation: str) -> None:
        return None

    def keys(self, generation: str, buckets: Sequence[int] | None = None) -> Iterator[pa.Table]:
        for keys in self._scan(generation):
            found = self._fetched(keys, [CONTENT_HASH, ROW_HASH])
            yield redis_rows.keys(generation, keys, found) if found else KEYS.empty_table()

    def _fetched(self, keys: Sequence[Any], fields: Sequence[str]) -> list[Any]:
        def fetch(client: Any) -> list[Any]:
            with client.pipeline(transaction=False) as pipe:
                for key in keys:
                    pipe.hmget(key, fields)
                found: list[Any] = pipe.execute(raise_on_error=False)
            for one in found:
                if isinstance(one, Exception) and not str(one).startswith("WRONGTYPE"):
                    raise one
            return found

        return self.server.patiently(fetch)

    def get(self, generation: str, shape: Shape, ids: Sequence[str]) -> pa.Table:
        fields = [name for name in shape.schema.names if name != "id"]
        pieces = [shape.schema.empty_table()]
        for start in range(0, len(ids), ROWS_A_CALL):
            some = ids[start : start + ROWS_A_CALL]
            found = self._fetched([redis_rows.key(generation, name) for name in some], fields)
            pieces.append(redis_rows.restored(some, found, shape))
        return pa.concat_tables(pieces)

    def search(
        self,
        generation: str,
        shape: Shape,
        vectors: NDArray[np.float32],
        k: int,
        where: Mapping[str, Any] | None = None,
    ) -> list[list[str]]:
        tests, parameters = redis_rows.tests(where or {}, shape.columns)
        query = f"({' '.join(tests)})" if tests else "*"
        name = redis_rows.escaped(shape.embedding)
        text = f"{query}=>[KNN {k} @{name} $feed_vector AS feed_distance]"
        found = []
        for vector in redis_rows.packed(vectors, shape):
            arguments: list[Any] = [*parameters, "feed_vector", vector]
            command = ["FT.SEARCH", generation, text, "PARAMS", len(arguments), *arguments]
            command += ["SORTBY", "feed_distance", "NOCONTENT", "LIMIT", 0, k, "DIALECT", 2]
            _, *keys = self.server.patiently(functools.partial(_executed, command))
            found.append([redis_rows.id_of(generation, key) for key in keys])
        return found

    # --- readers

    def switch(self, generation: str) -> None:
        def switch(client: Any) -> None:
            if self._shown(client) != generation:
                client.execute_command("FT.ALIASUPDATE", self._spec.name, generation)

        self.server.patiently(switch)

    def drop(self, generation: str) -> None:
        """Remove index, rows and marker. The marker goes last, so that a drop that was stopped can be made again."""

        def drop_index(client: Any) -> None:
            if self._shown(client) == generation:
                raise StorageError(f"generation {generation!r} is shown to readers: switch to another one before")
            if self.server.index_info(client, generation) is not None:
                client.execute_command("FT.DROPINDEX", generation)

        self.server.patiently(drop_index)
        for keys in self._scan(generation):
            self.server.patiently(functools.partial(_executed, ["UNLINK", *keys]))

        def forget(pipe: Any) -> None:
            pipe.multi()
            pipe.delete(self._key(generation))
            pipe.srem(self._names, generation)

        self.server.transaction(forget, self._key(generation))

    def close(self) -> None:
        self.server.close()


class _Loader:
    """It implements store.Loader. It stops where the marker says that the load is over."""

    def __init__(self, store: RedisStore, generation: str, shape: Shape) -> None:
        self._store, self._generation, self._shape = store, generation, shape

    def load(self, unit: str, rows: Iterable[pa.Table]) -> Loaded:
        loaded = loaded_by(lambda some: self._store.write(self._generation, self._shape, some, _is_loading), rows)
        self._store.server.made_durable()
        return loaded

    def close(self) -> None: ...


class _Delta:
    """It implements store.Delta."""

    def __init__(self, store: RedisStore, shape: Shape, before: Marker, after: Marker) -> None:
        self._store, self._shape, self._before, self._after = store, shape, before, after

    def upsert(self, rows: pa.Table) -> Sequence[Rejection]:
        return self._store.write(self._before.generation, self._shape, rows, self._is_expected)

    def delete(self, ids: pa.Array) -> None:
        self._store.delete(self._before.generation, ids.to_pylist(), self._is_expected)

    def commit(self) -> None:
        self._store.mark(self._after, self._before)

    def _is_expected(self, found: Marker | None) -> bool:
        return found == self._before


def _executed(command: Sequence[Any], client: Any) -> Any:
    return client.execute_command(*command)


def _scanned(generation: str, cursor: int, client: Any) -> tuple[int, list[bytes]]:
    found: tuple[int, list[bytes]] = client.scan(cursor, match=f"{generation}:*", count=ROWS_A_CALL)
    return found


def _checked(generation: str, is_expected: Callable[[Marker | None], bool]) -> Callable[[bytes | None], None]:
    def check(text: bytes | None) -> None:
        found = _marker(text)
        if not is_expected(found):
            raise _not_ours(generation, None, found)

    return check


def _is_loading(found: Marker | None) -> bool:
    return found is not None and not found.applied and found.target is not None


def _pieces(rows: pa.Table) -> Iterator[pa.Table]:
    if rows.num_rows:
        per_call = max(1, min(ROWS_A_CALL, BYTES_A_CALL * rows.num_rows // max(1, rows.nbytes)))
        for start in range(0, rows.num_rows, per_call):
            yield rows.slice(start, per_call)


def _not_ours(generation: str, expected: Marker | None, found: Marker | None) -> NotOurs:
    wanted = expected.to_json() if expected else "another one"
    return NotOurs(
        f"generation {generation!r} in Redis has the marker {found and found.to_json()}, and {wanted} was expected: another "
        "feed was at work; start again"
    )


def _marker(text: bytes | None) -> Marker | None:
    return Marker.from_json(text.decode()) if text else None
