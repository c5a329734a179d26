"""Redis with its search module holds each row in a hash, and shows a generation through an alias of the feed's name.

The hashes of a generation have keys such as `docs__g1_1a2b:<id>`, the index over them has the generation's name. A marker is
a key of its own. Rows are written in transactions of some megabytes, each of which happens only if the marker is still the
one that was expected: so a feeder that was frozen can't write any more. How rows look as hashes stands in redis_rows.py.
"""

import contextlib
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import redis
from numpy.typing import NDArray
from redis.backoff import NoBackoff
from redis.retry import Retry

from pipeline.errors import InputError, StorageError, StorageUnavailable, StorageUnreachable
from pipeline.feed_spec import FeedSpec
from pipeline.feeds import redis_rows, values
from pipeline.feeds.store import KEYS, Delta, Generation, Guarantees, Loaded, Loader, Marker, NotOurs, Rejection, Shape
from pipeline.schema import CONTENT_HASH, ROW_HASH, TEXT
from pipeline.storage import before_work
from pipeline.storage.retry import persistently

METRICS = {"cosine": "COSINE", "dot": "IP", "euclidean": "L2"}
MOST_DIM = 32_768
FLOAT16_SINCE = 21_000
"""RediSearch 2.10, as its module tells its version."""
EF_RUNTIME = 64
"""A search looks at so many candidates. The module's default of 10 finds fewer of the nearest rows."""
ROWS_A_CALL = 1_000
BYTES_A_CALL = 4 * 2**20
FIRST_CONNECT_S = 5.0
"""An address where nobody answers for so long before any work is taken for a wrong one."""
POLL_S = 0.05
FILTERS = "filters"
"""This option of the feed names the columns that searches can filter by."""

Result = TypeVar("Result")


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
        self._timeout = spec.limits.timeout_s
        self._options = {name: value for name, value in spec.options.items() if name != FILTERS}
        self._filters = spec.options.get(FILTERS)
        self._opened: Any = None
        self._answered = False

    # --- the connection

    @property
    def _client(self) -> Any:
        if self._opened is None:
            try:
                self._opened = redis.Redis.from_url(
                    self._spec.url,
                    **{
                        "socket_timeout": self._timeout,
                        "socket_connect_timeout": min(self._timeout, FIRST_CONNECT_S),
                        "retry": Retry(NoBackoff(), 0),
                        **self._options,
                        "protocol": 2,  # whose answers are the same in every version of the module
                        "decode_responses": False,
                    },
                )
            except Exception as error:  # it checks addresses and options by many kinds of errors
                raise InputError(
                    f"feeds.url or feeds.options can't work for Redis: {self._said(error)}; expected an address such as "
                    "redis://host:6379/0, and options of redis.Redis"
                ) from None
        return self._opened

    def _patiently(self, attempt: Callable[[Any], Result]) -> Result:
        """Return what `attempt` returns, tried again while errors pass; raise ours instead of Redis's."""

        def patience(error: BaseException) -> float:
            if not isinstance(error, _PASSING):
                return 0.0
            return self._timeout if self._answered else min(self._timeout, FIRST_CONNECT_S)

        try:
            found = persistently(lambda: attempt(self._client), patience)
        except (redis.RedisError, TypeError) as error:
            raise self._translated(error) from None
        self._answered = True
        return found

    def _translated(self, error: Exception) -> Exception:
        said = self._said(error)
        if isinstance(error, redis.AuthenticationError | redis.exceptions.NoPermissionError):
            return InputError(
                f"Redis at {self._spec.url} doesn't let this user in: {said}; check user and password in feeds.url, and "
                "the user's ACL"
            )
        if isinstance(error, TypeError):
            return InputError(f"feeds.options can't work for Redis: {said}; expected options of redis.Redis")
        if isinstance(error, _PASSING):
            if not self._answered:
                return StorageUnreachable(f"no Redis answers at {self._spec.url}: {said}; check feeds.url")
            return StorageUnavailable(
                f"Redis at {self._spec.url} gave no answer in {self._timeout:g} s: {said}; start again"
            )
        if "unknown command" in said.lower() and "ft." in said.lower():
            return InputError(f"Redis at {self._spec.url} has no search module: take Redis 8 or Redis Stack")
        return StorageError(f"Redis at {self._spec.url} refused: {said}")

    def _said(self, error: Exception) -> str:
        said = str(error)
        for name in ("password", "username"):
            secret = self._options.get(name)
            said = said.replace(secret, "***") if isinstance(secret, str) and secret else said
        return said

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
        info = self._patiently(lambda client: client.info())
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
        modules = {_text(one[b"name"] if b"name" in one else one["name"]): one for one in self._modules()}
        if "search" not in modules:
            raise InputError("this Redis has no search module: take Redis 8 or Redis Stack")
        version = int(modules["search"].get(b"ver", modules["search"].get("ver", 0)))
        if shape.dtype == "float16" and version < FLOAT16_SINCE:
            raise InputError(
                f"feeds.dtype is float16, and this Redis has version {version} of its search module: float16 came with "
                "2.10; take float32, or a newer server"
            )

    def _modules(self) -> Sequence[Mapping[Any, Any]]:
        return list(self._patiently(lambda client: client.module_list()))

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
            names = sorted((_text(name) for name in client.smembers(self._names)), key=_number)
            texts = client.mget([self._key(name) for name in names]) if names else []
            return [
                Generation(name=name, marker=_marker(text), live=name == shown)
                for name, text in zip(names, texts, strict=True)
            ]

        with before_work():
            return self._patiently(generations)

    def _shown(self, client: Any) -> str | None:
        """Return the index that readers of the feed's name see. Raises InputError if it isn't ours."""
        info = self._index_info(client, self._spec.name)
        if info is None:
            return None
        name = _text(info["index_name"])
        if not name.startswith(f"{self._spec.name}__g"):
            raise InputError(
                f"Redis has the index {self._spec.name!r} already, which is no alias of this feed: choose another "
                "feeds.name, or drop it"
            )
        return name

    def _index_info(self, client: Any, name: str) -> dict[str, Any] | None:
        try:
            found = client.execute_command("FT.INFO", name)
        except redis.ResponseError as error:
            if "unknown" in str(error).lower() and "command" not in str(error).lower():
                return None
            if "no such index" in str(error).lower():
                return None
            raise
        pairs = found.items() if isinstance(found, dict) else zip(found[::2], found[1::2], strict=True)
        return {_text(key): value for key, value in pairs}

    def create(self, shape: Shape, marker: Marker) -> None:
        def create(pipe: Any) -> None:
            if pipe.sismember(self._names, marker.generation):
                return
            pipe.multi()
            pipe.sadd(self._names, marker.generation)
            pipe.set(self._key(marker.generation), marker.to_json())

        self._transaction(create, self._names)

    def mark(self, marker: Marker, expected: Marker | None) -> None:
        key = self._key(marker.generation)

        def mark(pipe: Any) -> None:
            found = _marker(pipe.get(key))
            if found == marker:
                return
            if found != expected or not pipe.sismember(self._names, marker.generation):
                raise _not_ours(marker.generation, expected, found)
            pipe.multi()
            pipe.set(key, marker.to_json())

        self._transaction(mark, key)
        self._patiently(self._made_durable)

    def _transaction(self, change: Callable[[Any], None], key: str) -> None:
        """Let `change` read, and then queue what happens only if `key` has not changed meanwhile."""

        def attempt(client: Any) -> None:
            while True:
                with client.pipeline() as pipe:
                    pipe.watch(key)
                    change(pipe)
                    try:
                        pipe.execute()
                        return
                    except redis.WatchError:
                        time.sleep(random.uniform(0, POLL_S))

        self._patiently(attempt)

    def _made_durable(self, client: Any) -> None:
        """Wait until all that this connection wrote is in the log on the disk, where the server keeps one."""
        info = client.info("persistence")
        if not info.get("aof_enabled"):
            return
        try:
            client.execute_command("WAITAOF", 1, 0, int(self._timeout * 1000))
        except redis.ResponseError as error:
            if "unknown command" not in str(error).lower():  # before Redis 7.2
                raise

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
            self._change(generation, commands, is_expected)
        return rejected

    def delete(self, generation: str, ids: Sequence[str], is_expected: Callable[[Marker | None], bool]) -> None:
        for start in range(0, len(ids), ROWS_A_CALL):
            keys = [redis_rows.key(generation, name) for name in ids[start : start + ROWS_A_CALL]]
            self._change(generation, [("UNLINK", *keys)], is_expected)

    def _change(
        self, generation: str, commands: Sequence[Sequence[Any]], is_expected: Callable[[Marker | None], bool]
    ) -> None:
        key = self._key(generation)

        def change(pipe: Any) -> None:
            found = _marker(pipe.get(key))
            if not is_expected(found):
                raise _not_ours(generation, None, found)
            pipe.multi()
            for command in commands:
                pipe.execute_command(*command)

        self._transaction(change, key)

    def made_durable(self) -> None:
        self._patiently(self._made_durable)

    def finish_load(self, shape: Shape, before: Marker, after: Marker, receipts: Sequence[str]) -> None:
        self.mark(after, before)

    @contextlib.contextmanager
    def delta(self, shape: Shape, before: Marker, after: Marker) -> Iterator[Delta]:
        found = _marker(self._patiently(lambda client: client.get(self._key(before.generation))))
        if found != before:
            raise _not_ours(before.generation, before, found)
        yield _Delta(self, shape, before, after)

    # --- the index

    def build_index(self, generation: str, shape: Shape, on_progress: Callable[[float], None]) -> None:
        self._patiently(lambda client: self._create_index(client, generation, shape))
        while True:
            info = self._patiently(lambda client: self._index_info(client, generation)) or {}
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
        if self._index_info(client, generation) is not None:
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
            cursor, keys = self._patiently(
                lambda client, at=cursor: client.scan(at, match=f"{generation}:*", count=ROWS_A_CALL)
            )
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

        return self._patiently(fetch)

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
            _, *keys = self._patiently(lambda client, words=command: client.execute_command(*words))
            found.append([redis_rows.id_of(generation, key) for key in keys])
        return found

    # --- readers

    def switch(self, generation: str) -> None:
        def switch(client: Any) -> None:
            if self._shown(client) != generation:
                client.execute_command("FT.ALIASUPDATE", self._spec.name, generation)

        self._patiently(switch)

    def drop(self, generation: str) -> None:
        """Remove index, rows and marker. The marker goes last, so that a drop that was stopped can be made again."""

        def drop_index(client: Any) -> None:
            if self._shown(client) == generation:
                raise StorageError(f"generation {generation!r} is shown to readers: switch to another one before")
            if self._index_info(client, generation) is not None:
                client.execute_command("FT.DROPINDEX", generation)

        self._patiently(drop_index)
        for keys in self._scan(generation):
            self._patiently(lambda client, some=keys: client.unlink(*some))

        def forget(pipe: Any) -> None:
            pipe.multi()
            pipe.delete(self._key(generation))
            pipe.srem(self._names, generation)

        self._transaction(forget, self._key(generation))

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()
            self._opened = None


_PASSING = (redis.ConnectionError, redis.TimeoutError, redis.BusyLoadingError)


class _Loader:
    """It implements store.Loader. It stops where the marker says that the load is over."""

    def __init__(self, store: RedisStore, generation: str, shape: Shape) -> None:
        self._store, self._generation, self._shape = store, generation, shape

    def load(self, unit: str, rows: pa.Table) -> Loaded:
        rejected = self._store.write(self._generation, self._shape, rows, _is_loading)
        self._store.made_durable()
        return Loaded(rows=rows.num_rows - len(rejected), rejected=tuple(rejected))

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


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _number(generation: str) -> tuple[int, str]:
    found = re.search(r"__g(\d+)", generation)
    return (int(found[1]) if found else 0, generation)
