"""PostgreSQL with pgvector holds a generation in a table, and shows one of them through a view of the feed's name.

Beside the generations stands the relation `embedding_feeds` with their markers, and `embedding_feed_units` with the units
that a load under way has in place. A unit, a delta and a switch are a transaction each, with the marker in it. So a
crash, a repeated call or a feeder that was frozen changes nothing. How values look on the wire stands in
postgres_columns.py.
"""

import contextlib
import json
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

import numpy as np
import psycopg
import pyarrow as pa
from numpy.typing import NDArray
from psycopg import sql

from pipeline.errors import InputError, StorageError, StorageUnavailable
from pipeline.feed_spec import FeedSpec
from pipeline.feeds import postgres_columns
from pipeline.feeds.digest import BUCKET_BITS, NUM_BUCKETS
from pipeline.feeds.postgres_columns import COPY_END, COPY_START, VECTORS, copy_rows, decoded, sql_type, vector_type
from pipeline.feeds.store import (
    KEYS,
    Generation,
    Guarantees,
    Loaded,
    Marker,
    NotOurs,
    Rejected,
    Rejection,
    Shape,
    taken,
)
from pipeline.schema import CONTENT_HASH, ID, ROW_HASH

MARKERS, UNITS = "embedding_feeds", "embedding_feed_units"
LEAST_PGVECTOR = (0, 8)
"""Filtered searches go on until they have enough rows since then."""
EF_SEARCH = 100
"""A search looks at so many candidates. The server's default of 40 finds fewer of the nearest rows."""
ROWS_PER_READ = 10_000
MOST_NAME_BYTES = 40
"""PostgreSQL cuts names after 63 bytes, and those of generations and indexes are longer than the feed's."""
MOST_INDEXED = {"float32": 2_000, "float16": 4_000, "binary": 64_000}
"""HNSW takes vectors of so many dimensions (pgvector 0.8)."""
FIRST_CONNECT_S = 5.0
"""An address where nobody answers for so long before any work is taken for a wrong one."""

_OPERATORS = {
    "cosine": ("<=>", "cosine"),
    "dot": ("<#>", "ip"),
    "euclidean": ("<->", "l2"),
    "hamming": ("<~>", "hamming"),
}
_DIGEST = sql.SQL(
    "('x' || encode(substring(sha256(convert_to(id, 'UTF8') || content_hash || int8send(row_hash)) from 1 for 8), "
    "'hex'))::bit(64)::bigint"
)
"""feeds.digest.row_digests, as a signed number."""
_BUCKET = sql.SQL("(({digest} >> {shift}) & {mask})").format(
    digest=_DIGEST, shift=sql.Literal(64 - BUCKET_BITS), mask=sql.Literal(NUM_BUCKETS - 1)
)

Result = TypeVar("Result")
Connection = psycopg.Connection[tuple[Any, ...]]


class PostgresStore:
    """It implements store.Store, loaders included: a loader has a connection of its own."""

    guarantees = Guarantees(
        atomic_marker=True,
        fences=True,
        atomic_switch=True,
        keeps_bits=True,
        dtypes=frozenset({"float32", "float16", "binary"}),
        tested_on_server=True,
    )

    def __init__(self, spec: FeedSpec) -> None:
        self._spec = spec
        schema, dot, name = spec.name.rpartition(".")
        self._schema = schema if dot else None
        self._name = name
        self._connection: Connection | None = None
        self._connected_before = False

    # --- before anything is written

    def check(self, shape: Shape) -> None:
        if len(self._name.encode()) > MOST_NAME_BYTES:
            raise InputError(
                f"feeds.name is {self._name!r}; a Postgres feed takes names of {MOST_NAME_BYTES} letters at most"
            )
        for field in shape.columns:
            sql_type(field)
        if shape.embedding in (field.name for field in shape.columns):
            raise InputError(f"feeds.columns names {shape.embedding!r}, which is the column of vectors: leave it out")
        if (shape.metric == "hamming") != (shape.dtype == "binary"):
            raise InputError(
                f"feeds.metric is {shape.metric!r} with vectors of {shape.dtype}; pgvector compares bits by hamming, and "
                "nothing else by it: change feeds.dtype or feeds.metric"
            )
        self._check_index(shape)
        self._retried(self._check_server)

    def _check_index(self, shape: Shape) -> None:
        if shape.index.kind not in ("auto", "hnsw", "none"):
            raise InputError(f"feeds.index.kind is {shape.index.kind!r}; a Postgres feed has hnsw, none or auto")
        if shape.index.kind == "none" or shape.dim <= MOST_INDEXED[shape.dtype]:
            return
        helps = " feeds.dtype: float16 takes 4,000," if shape.dtype == "float32" and shape.dim <= 4_000 else ""
        raise InputError(
            f"the vectors have {shape.dim:,} dimensions, and an HNSW index of {VECTORS[shape.dtype]} takes "
            f"{MOST_INDEXED[shape.dtype]:,} at most:{helps} model.truncate_dim makes them shorter, and "
            "feeds.index: {kind: none} does without an index"
        )

    def _check_server(self, connection: Connection) -> None:
        encoding = connection.info.parameter_status("server_encoding")
        if encoding != "UTF8":
            raise InputError(
                f"the database is encoded in {encoding}, which holds not every text: make one with encoding UTF8"
            )
        schema = self._schema_of(connection)
        found = connection.execute(
            "SELECT has_schema_privilege(%s, 'CREATE'), "
            "(SELECT extversion FROM pg_extension WHERE extname = 'vector'), "
            "(SELECT extnamespace::regnamespace::text FROM pg_extension WHERE extname = 'vector'), "
            "(SELECT default_version FROM pg_available_extensions WHERE name = 'vector'), "
            "to_regtype('vector') IS NOT NULL, current_user, "
            "(SELECT rolsuper FROM pg_roles WHERE rolname = current_user), "
            "(SELECT bool_or(trusted) FROM pg_available_extension_versions WHERE name = 'vector')",
            [schema],
        ).fetchone()
        assert found is not None
        may_create, installed, where, available, visible, user, is_super, trusted = found
        if not may_create:
            raise InputError(
                f"the user {user!r} may not create tables in schema {schema!r}: GRANT CREATE ON SCHEMA {schema} TO {user}"
            )
        if installed is None and available is None:
            raise InputError("the server doesn't have pgvector: install its package for this version of PostgreSQL")
        if tuple(int(piece) for piece in (installed or available).split(".")[:2]) < LEAST_PGVECTOR:
            raise InputError(
                f"pgvector is {installed or available}, and 0.8 or newer is needed: ALTER EXTENSION vector UPDATE"
            )
        if installed is None and not (is_super or trusted):
            raise InputError(
                f"the database lacks the extension vector, and {user!r} may not create it: let an administrator run CREATE "
                "EXTENSION vector in this database"
            )
        if installed is not None and not visible:
            raise InputError(
                f"the extension vector stands in schema {where!r}, which the search path of {user!r} lacks: ALTER ROLE {user} "
                f"SET search_path = {schema}, {where}"
            )

    def unfit(self, rows: pa.Table) -> Mapping[int, str]:
        found = postgres_columns.unfit(rows)
        for row in np.flatnonzero(np.array(_lengths(rows)) > 2_700).tolist():
            found.setdefault(row, "its id has more than 2,700 bytes, which no unique index of PostgreSQL takes")
        return found

    # --- markers

    def generations(self) -> Sequence[Generation]:
        return self._retried(self._generations)

    def _generations(self, connection: Connection) -> Sequence[Generation]:
        schema = self._schema_of(connection)
        shown = self._shown(connection, schema)
        tables = connection.execute(
            "SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
            "WHERE n.nspname = %s AND c.relkind = 'r' AND starts_with(c.relname, %s)",
            [schema, f"{self._name}__g"],
        ).fetchall()
        markers = self._markers(connection) if self._has(connection, MARKERS) else {}
        names = sorted({name for (name,) in tables}, key=_number)
        return [Generation(name=name, marker=markers.get(name), live=name == shown) for name in names]

    def _shown(self, connection: Connection, schema: str) -> str | None:
        """Return the generation that the view of the feed's name reads. Raises InputError if anything else has the name."""
        found = connection.execute(
            "SELECT c.relkind, d.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
            "LEFT JOIN pg_rewrite r ON r.ev_class = c.oid "
            "LEFT JOIN pg_depend p ON p.objid = r.oid AND p.classid = 'pg_rewrite'::regclass "
            "AND p.refclassid = 'pg_class'::regclass AND p.refobjid <> c.oid "
            "LEFT JOIN pg_class d ON d.oid = p.refobjid WHERE n.nspname = %s AND c.relname = %s",
            [schema, self._name],
        ).fetchall()
        if not found:
            return None
        names = {name for _, name in found}
        if found[0][0] not in ("v", b"v") or len(names) != 1 or not str(min(names)).startswith(f"{self._name}__g"):
            raise InputError(
                f"the database has something named {self._spec.name!r} already that is no view of this feed: choose another "
                "feeds.name, or rename it"
            )
        return str(names.pop())

    def _markers(self, connection: Connection) -> dict[str, Marker]:
        rows = connection.execute(
            self._query("SELECT generation, marker::text FROM {markers} WHERE feed = %s"), [self._name]
        ).fetchall()
        return {name: Marker.from_json(text) for name, text in rows}

    def create(self, shape: Shape, marker: Marker) -> None:
        columns: list[sql.Composable] = [sql.SQL('id text COLLATE "C" NOT NULL')]
        columns += [
            sql.SQL("{} {}").format(sql.Identifier(field.name), sql.SQL(sql_type(field))) for field in shape.columns
        ]
        columns += [sql.SQL("content_hash bytea NOT NULL"), sql.SQL("row_hash bigint NOT NULL")]
        vector = sql.SQL("{} {} NOT NULL").format(sql.Identifier(shape.embedding), sql.SQL(vector_type(shape)))

        def create(connection: Connection) -> None:
            with connection.transaction():
                self._make_relations(connection)
                body = sql.SQL(", ").join([*columns, vector])
                connection.execute(
                    sql.SQL("CREATE TABLE IF NOT EXISTS {} ({})").format(self._relation(marker.generation), body)
                )
                connection.execute(
                    self._query("INSERT INTO {markers} VALUES (%s, %s, %s) ON CONFLICT DO NOTHING"),
                    [self._name, marker.generation, marker.to_json()],
                )

        with _noticed("CREATE EXTENSION vector needs a user who may: ask an administrator to run it in this database"):
            self._retried(create)

    def _make_relations(self, connection: Connection) -> None:
        # Two that create at the same moment would both fail at the catalog's own unique indexes.
        connection.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [MARKERS])
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        connection.execute(
            self._query(
                "CREATE TABLE IF NOT EXISTS {markers} "
                "(feed text, generation text, marker jsonb NOT NULL, PRIMARY KEY (feed, generation))"
            )
        )
        connection.execute(
            self._query(
                "CREATE TABLE IF NOT EXISTS {units} "
                "(feed text, generation text, unit text, rejected jsonb, PRIMARY KEY (feed, generation, unit))"
            )
        )

    def mark(self, marker: Marker, expected: Marker | None) -> None:
        def mark(connection: Connection) -> None:
            with connection.transaction():
                if expected is None:
                    self._make_relations(connection)
                found = self._locked(connection, marker.generation)
                if found == marker:
                    return
                if found != expected:
                    raise _not_ours(marker.generation, expected, found)
                self._set(connection, marker)

        self._retried(mark)

    def _set(self, connection: Connection, marker: Marker) -> None:
        connection.execute(
            self._query(
                "INSERT INTO {markers} VALUES (%s, %s, %s) "
                "ON CONFLICT (feed, generation) DO UPDATE SET marker = excluded.marker"
            ),
            [self._name, marker.generation, marker.to_json()],
        )

    def _locked(self, connection: Connection, generation: str, how: str = "UPDATE") -> Marker | None:
        """Return the marker, which nobody else changes before this transaction ends."""
        found = connection.execute(
            self._query(f"SELECT marker::text FROM {{markers}} WHERE feed = %s AND generation = %s FOR {how}"),
            [self._name, generation],
        ).fetchone()
        return None if found is None else Marker.from_json(found[0])

    # --- rows

    def loader(self, generation: str, shape: Shape) -> "_Loader":
        return _Loader(PostgresStore(self._spec), generation, shape)

    def load(self, generation: str, shape: Shape, unit: str, rows: pa.Table) -> Loaded:
        """Copy the rows into the generation together with the name of their unit, in one transaction."""

        def load(connection: Connection) -> Loaded:
            rejected: list[Rejection] = []
            with connection.transaction():
                found = self._locked(connection, generation, "SHARE")
                if found is None or found.applied or found.target is None:
                    raise _not_ours(generation, None, found)
                new = connection.execute(
                    self._query(
                        "INSERT INTO {units} (feed, generation, unit) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING"
                    ),
                    [self._name, generation, unit],
                ).rowcount
                if new:
                    rejected = self._copied(connection, self._relation(generation), shape, rows)
                    if rejected:  # Who repeats the unit must hear of them, too.
                        connection.execute(
                            self._query(
                                "UPDATE {units} SET rejected = %s WHERE feed = %s AND generation = %s AND unit = %s"
                            ),
                            [json.dumps([asdict(one) for one in rejected]), self._name, generation, unit],
                        )
                else:
                    rejected = self._rejected(connection, generation, unit)
            return Loaded(rows=rows.num_rows - len(rejected), rejected=tuple(rejected))

        return self._retried(load)

    def _rejected(self, connection: Connection, generation: str, unit: str) -> list[Rejection]:
        found = connection.execute(
            self._query("SELECT rejected FROM {units} WHERE feed = %s AND generation = %s AND unit = %s"),
            [self._name, generation, unit],
        ).fetchone()
        return [] if found is None or found[0] is None else [Rejection(**one) for one in found[0]]

    def _copied(
        self,
        connection: Connection,
        relation: sql.Composable,
        shape: Shape,
        rows: pa.Table,
        then: sql.Composed | None = None,
    ) -> list[Rejection]:
        """Copy the rows, and `then` do something with them. Return those that the server refuses."""
        query = sql.SQL("COPY {} FROM STDIN (FORMAT BINARY)").format(relation)

        def copy(some: pa.Table) -> None:
            try:
                with connection.transaction():
                    with connection.cursor().copy(query) as copy:
                        copy.write(COPY_START)
                        for batch in some.to_batches():
                            copy.write(copy_rows(pa.Table.from_batches([batch]), shape))
                        copy.write(COPY_END)
                    if then is not None:
                        connection.execute(then)
            except (
                psycopg.errors.DataError,
                psycopg.errors.IntegrityError,
                psycopg.errors.ProgramLimitExceeded,
            ) as error:
                raise Rejected(error.diag.message_primary or str(error)) from None

        return taken(copy, rows) if rows.num_rows else []

    def finish_load(self, shape: Shape, before: Marker, after: Marker, receipts: Sequence[str]) -> None:
        def finish(connection: Connection) -> None:
            with connection.transaction():
                found = self._locked(connection, before.generation)
                if found == after:
                    return
                if found != before:
                    raise _not_ours(before.generation, before, found)
                self._sized(connection)
                connection.execute(
                    sql.SQL("ALTER TABLE {} ADD PRIMARY KEY (id)").format(self._relation(before.generation))
                )
                self._forget_units(connection, before.generation)
                self._set(connection, after)

        self._retried(finish)

    def _forget_units(self, connection: Connection, generation: str) -> None:
        connection.execute(
            self._query("DELETE FROM {units} WHERE feed = %s AND generation = %s"), [self._name, generation]
        )

    @contextlib.contextmanager
    def delta(self, shape: Shape, before: Marker, after: Marker) -> Iterator["_Delta"]:
        """The block is one transaction. A connection that is lost as it commits may have committed."""
        connection = self._connect()
        delta = _Delta(self, connection, shape, before, after)
        try:
            with self._translated(), connection.transaction():
                found = self._locked(connection, before.generation)
                if found != before:
                    raise _not_ours(before.generation, before, found)
                delta.begin()
                yield delta
                if not delta.committed:
                    raise psycopg.Rollback
        except StorageUnavailable:
            if not delta.committed or self._retried(lambda one: self._locked(one, before.generation)) != after:
                raise

    # --- the index

    def build_index(self, generation: str, shape: Shape, on_progress: Callable[[float], None]) -> None:
        def build(connection: Connection) -> None:
            connection.execute(sql.SQL("ANALYZE {}").format(self._relation(generation)))
            if shape.index.kind == "none":
                return
            with _followed(self._followed_by, generation, on_progress), connection.transaction():
                self._sized(connection, self._graph_bytes(connection, generation, shape))
                connection.execute(self._index_query(generation, shape))

        try:
            self._retried(build)
        except StorageError as error:
            if "shared memory" not in str(error):
                raise
            # Containers have 64 MB of it, and several workers would share the graph there.
            self._retried(lambda one: one.execute("SET max_parallel_maintenance_workers = 0"))
            self._retried(build)

    def _index_query(self, generation: str, shape: Shape) -> sql.Composed:
        settings = [("m", shape.index.m), ("ef_construction", shape.index.ef_construction)]
        given = [sql.SQL("{} = {}").format(sql.Identifier(k), sql.Literal(v)) for k, v in settings if v is not None]
        _, operator = _OPERATORS[shape.metric]
        return sql.SQL("CREATE INDEX IF NOT EXISTS {} ON {} USING hnsw ({} {}){}").format(
            sql.Identifier(f"{generation}_hnsw"),
            self._relation(generation),
            sql.Identifier(shape.embedding),
            sql.SQL(f"{VECTORS[shape.dtype]}_{operator}_ops"),
            sql.SQL(" WITH ({})").format(sql.SQL(", ").join(given)) if given else sql.SQL(""),
        )

    def _graph_bytes(self, connection: Connection, generation: str, shape: Shape) -> int:
        found = connection.execute(
            "SELECT reltuples FROM pg_class WHERE oid = %s::regclass",
            [self._relation(generation).as_string(connection)],
        ).fetchone()
        vector = shape.vector.list_size * shape.vector.value_type.bit_width // 8
        return int((found[0] if found else 0) * 1.2 * (vector + 24 * (shape.index.m or 16)))

    def _sized(self, connection: Connection, wanted: int = 2**28) -> None:
        """Let this transaction build with the memory that it wants, up to twice the server's shared buffers, which are a
        quarter of its memory where somebody tuned it."""
        connection.execute(
            "SELECT set_config('maintenance_work_mem', greatest(pg_size_bytes(current_setting('maintenance_work_mem')), "
            "least(%s, 2 * pg_size_bytes(current_setting('shared_buffers')))) / 1024 || 'kB', true)",
            [wanted],
        )

    def _followed_by(self, generation: str) -> float | None:
        """Return the share of the index that is built, by another connection."""
        with self._opened() as connection:
            found = connection.execute(
                "SELECT tuples_done::float / nullif(tuples_total, 0) FROM pg_stat_progress_create_index "
                "WHERE relid = to_regclass(%s)",
                [self._relation(generation).as_string(connection)],
            ).fetchone()
        return None if found is None else found[0]

    # --- reading back

    def count(self, generation: str) -> int:
        found = self._retried(
            lambda one: one.execute(sql.SQL("SELECT count(*) FROM {}").format(self._relation(generation))).fetchone()
        )
        assert found is not None
        return int(found[0])

    def digests(self, generation: str) -> NDArray[np.uint64]:
        query = sql.SQL("SELECT {}, sum({}) FROM {} GROUP BY 1").format(_BUCKET, _DIGEST, self._relation(generation))
        sums = np.zeros(NUM_BUCKETS, np.uint64)
        for bucket, total in self._retried(lambda one: one.execute(query).fetchall()):
            sums[bucket] = int(total) % 2**64
        return sums

    def keys(self, generation: str, buckets: Sequence[int] | None = None) -> Iterator[pa.Table]:
        where = sql.SQL("") if buckets is None else sql.SQL(" WHERE {} = ANY({})").format(
            _BUCKET, sql.Literal(list(buckets))
        )  # fmt: skip
        query = sql.SQL("COPY (SELECT id, content_hash, row_hash FROM {}{}) TO STDOUT (FORMAT BINARY)").format(
            self._relation(generation), where
        )
        # A connection of its own: the caller asks the store for other things between two pieces.
        with self._translated(), self._opened() as connection, connection.cursor().copy(query) as copy:
            copy.set_types(["text", "bytea", "int8"])
            rows: list[tuple[Any, ...]] = []
            for row in copy.rows():
                rows.append(row)
                if len(rows) == ROWS_PER_READ:
                    yield _keys_of(rows)
                    rows = []
            yield _keys_of(rows)

    def get(self, generation: str, shape: Shape, ids: Sequence[str]) -> pa.Table:
        names = [ID, *(field.name for field in shape.columns), CONTENT_HASH, ROW_HASH]
        send = {"float32": "vector_send", "float16": "halfvec_send", "binary": "bit_send"}[shape.dtype]
        query = sql.SQL("SELECT {}, {}({}) FROM {} WHERE id = ANY(%b)").format(
            sql.SQL(", ").join(map(sql.Identifier, names)),
            sql.SQL(send),
            sql.Identifier(shape.embedding),
            self._relation(generation),
        )
        rows = self._retried(lambda one: one.execute(query, [list(ids)], binary=True).fetchall()) if ids else []
        columns = list(zip(*rows, strict=True)) if rows else [()] * (len(names) + 1)
        return decoded(columns, shape)

    def search(
        self,
        generation: str,
        shape: Shape,
        vectors: NDArray[np.float32],
        k: int,
        where: Mapping[str, Any] | None = None,
    ) -> list[list[str]]:
        conditions = [
            sql.SQL("{} = {}").format(sql.Identifier(name), sql.Literal(value)) for name, value in (where or {}).items()
        ]
        query = sql.SQL("SELECT id FROM {}{} ORDER BY {} {} %s::{} LIMIT {}").format(
            self._relation(generation),
            sql.SQL(" WHERE {}").format(sql.SQL(" AND ").join(conditions)) if conditions else sql.SQL(""),
            sql.Identifier(shape.embedding),
            sql.SQL(_OPERATORS[shape.metric][0]),
            sql.SQL(vector_type(shape)),
            sql.Literal(k),
        )

        def search(connection: Connection) -> list[list[str]]:
            with connection.transaction():
                # Only a library that was loaded has these settings, and a use loads it: LOAD needs a superuser.
                connection.execute("SELECT '[1]'::vector")
                connection.execute(f"SET LOCAL hnsw.ef_search = {max(EF_SEARCH, min(1000, 4 * k))}")
                if conditions:
                    connection.execute("SET LOCAL hnsw.iterative_scan = strict_order")
                return [
                    [name for (name,) in connection.execute(query, [_literal(vector, shape)], prepare=True).fetchall()]
                    for vector in vectors
                ]

        return self._retried(search)

    # --- generations

    def switch(self, generation: str) -> None:
        def switch(connection: Connection) -> None:
            with connection.transaction():
                connection.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [self._name])
                schema = self._schema_of(connection)
                shown = self._shown(connection, schema)
                if shown == generation:
                    return
                view, relation = self._relation(self._name), self._relation(generation)
                grants = self._grants(connection, schema) if shown else []
                if shown:
                    # A view can't get columns of other types, so it goes, and comes again before anybody sees.
                    connection.execute(sql.SQL("DROP VIEW {}").format(view))
                connection.execute(sql.SQL("CREATE VIEW {} AS SELECT * FROM {}").format(view, relation))
                for privilege, role, grantable in grants:
                    connection.execute(sql.SQL("GRANT {} ON {} TO {}{}").format(
                        sql.SQL(privilege),
                        view,
                        sql.Identifier(role) if role else sql.SQL("PUBLIC"),
                        sql.SQL(" WITH GRANT OPTION" if grantable else ""),
                    ))  # fmt: skip

        with _noticed(
            "other views or functions depend on it: drop them, and make them again when the generation has changed"
        ):
            self._retried(switch)

    def _grants(self, connection: Connection, schema: str) -> list[tuple[str, str | None, bool]]:
        return connection.execute(
            "SELECT a.privilege_type, r.rolname, a.is_grantable FROM pg_class c "
            "JOIN pg_namespace n ON n.oid = c.relnamespace, LATERAL aclexplode(c.relacl) a "
            "LEFT JOIN pg_roles r ON r.oid = a.grantee "
            "WHERE n.nspname = %s AND c.relname = %s AND a.grantee <> c.relowner",
            [schema, self._name],
        ).fetchall()

    def drop(self, generation: str) -> None:
        def drop(connection: Connection) -> None:
            with connection.transaction():
                connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(self._relation(generation)))
                self._forget_units(connection, generation)
                connection.execute(
                    self._query("DELETE FROM {markers} WHERE feed = %s AND generation = %s"), [self._name, generation]
                )

        self._retried(drop)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # --- the connection

    def _opened(self) -> Connection:
        options: dict[str, Any] = {"application_name": "embedding-pipeline", "connect_timeout": 10} | dict(
            self._spec.options
        )
        connection = psycopg.connect(self._spec.url, autocommit=True, **options)
        # Notices of objects that are there already would be log lines. A feeder that is frozen within a transaction would hold
        # its locks for ever, and one that waits for them would wait as long.
        for name, value in (
            ("client_min_messages", "warning"),
            ("idle_in_transaction_session_timeout", f"{self._spec.limits.lease_s:.0f}s"),
            ("lock_timeout", f"{2 * self._spec.limits.lease_s:.0f}s"),
        ):
            connection.execute("SELECT set_config(%s, %s, false)", [name, value])
        return connection

    def _connect(self) -> Connection:
        if self._connection is None or self._connection.closed or self._connection.broken:
            self._connection = self._retried(lambda one: one)
        return self._connection

    def _retried(self, do: Callable[[Connection], Result]) -> Result:
        """Do it, with a new connection where the old one was lost, until `limits.timeout_s` are over. What is done must be
        a transaction at most, and may be done twice."""
        give_up = time.monotonic() + self._spec.limits.timeout_s
        wait = 0.1
        while True:
            try:
                if self._connection is None or self._connection.closed or self._connection.broken:
                    self._connection = self._opened()
                    self._connected_before = True
                return do(self._connection)
            except psycopg.Error as error:
                failure = self._failure(error)
                if not isinstance(failure, StorageUnavailable):
                    raise failure from None
                if not self._connected_before:
                    give_up = min(give_up, time.monotonic() + FIRST_CONNECT_S) if wait == 0.1 else give_up
                if time.monotonic() + wait > give_up:
                    if self._connected_before:
                        raise failure from None
                    raise InputError(f"{failure}: check feeds.url, and that the server runs") from None
            time.sleep(wait * random.uniform(0.5, 1.0))
            wait = min(2 * wait, 5.0)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except psycopg.Error as error:
            raise self._failure(error) from None

    def _failure(self, error: psycopg.Error) -> "InputError | StorageError":
        """Say what an error of the server or of the connection means."""
        if isinstance(error, psycopg.ProgrammingError) and not error.sqlstate:
            # libpq shows pieces of an address that it can't read, and a password may be in them.
            return InputError(
                f"Postgres feed {self._spec.name!r}: feeds.url or feeds.options can't be read: write the address as "
                "postgresql://user:password@host:5432/database, with %40 for @ in a password, %2F for /, %23 for #, %25 for %"
            )
        # The detail of a server's message can hold a row.
        told = f"Postgres feed {self._spec.name!r}: {' '.join((error.diag.message_primary or str(error)).split())}"
        state = error.sqlstate or ""
        if state[:2] in ("28", "3D", "3F", "42", "0A"):
            return InputError(told)
        passes = isinstance(error, psycopg.OperationalError) and state != "53100"
        if "shared memory" in told:
            return StorageError(told)
        if state == "" and "resolve host" in str(error):
            return InputError(
                f"Postgres feed {self._spec.name!r}: the host in feeds.url is not known here: check it; an @ in a password is "
                "written %40"
            )
        if state == "" and _refused_for_good(str(error)):
            return InputError(f"{told}: check feeds.url")
        return StorageUnavailable(told) if passes else StorageError(told)

    def _schema_of(self, connection: Connection) -> str:
        if self._schema is not None:
            return self._schema
        found = connection.execute("SELECT current_schema()").fetchone()
        if found is None or found[0] is None:
            raise InputError("the user's search_path names no schema that exists: write feeds.name as schema.name")
        return str(found[0])

    def _has(self, connection: Connection, relation: str) -> bool:
        found = connection.execute(
            "SELECT to_regclass(%s)", [self._relation(relation).as_string(connection)]
        ).fetchone()
        return found is not None and found[0] is not None

    def _relation(self, name: str) -> sql.Identifier:
        return sql.Identifier(self._schema, name) if self._schema is not None else sql.Identifier(name)

    def _query(self, text: str) -> sql.Composed:
        return sql.SQL(text).format(markers=self._relation(MARKERS), units=self._relation(UNITS))


class _Loader:
    """It implements store.Loader with a connection of its own."""

    def __init__(self, store: PostgresStore, generation: str, shape: Shape) -> None:
        self._store, self._generation, self._shape = store, generation, shape

    def load(self, unit: str, rows: pa.Table) -> Loaded:
        return self._store.load(self._generation, self._shape, unit, rows)

    def close(self) -> None:
        self._store.close()


class _Delta:
    """It implements store.Delta within a transaction."""

    def __init__(
        self, store: PostgresStore, connection: Connection, shape: Shape, before: Marker, after: Marker
    ) -> None:
        self._store, self._connection, self._shape, self._after = store, connection, shape, after
        self._relation = store._relation(before.generation)
        self.committed = False

    def begin(self) -> None:
        self._connection.execute(
            sql.SQL("CREATE TEMPORARY TABLE feed_delta (LIKE {}) ON COMMIT DROP").format(self._relation)
        )

    def upsert(self, rows: pa.Table) -> Sequence[Rejection]:
        names = [sql.Identifier(name) for name in self._shape.schema.names]
        new = [sql.SQL("{0} = excluded.{0}").format(name) for name in names[1:]]
        put = sql.SQL("INSERT INTO {} SELECT * FROM feed_delta ON CONFLICT (id) DO UPDATE SET {}").format(
            self._relation, sql.SQL(", ").join(new)
        )
        put = sql.SQL("; ").join([put, sql.SQL("TRUNCATE feed_delta")])
        return self._store._copied(self._connection, sql.Identifier("feed_delta"), self._shape, rows, put)

    def delete(self, ids: pa.Array) -> None:
        self._connection.execute(sql.SQL("DELETE FROM {} WHERE id = ANY(%b)").format(self._relation), [ids.to_pylist()])

    def commit(self) -> None:
        self._store._set(self._connection, self._after)
        self.committed = True


@contextlib.contextmanager
def _followed(
    share: Callable[[str], float | None], generation: str, on_progress: Callable[[float], None]
) -> Iterator[None]:
    """Tell each second how much of an index is built, while the block builds it."""
    ended = threading.Event()

    def follow() -> None:
        while not ended.wait(1.0):
            with contextlib.suppress(psycopg.Error):
                if (found := share(generation)) is not None:
                    on_progress(found)

    thread = threading.Thread(target=follow, name="index", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextlib.contextmanager
def _noticed(help_: str) -> Iterator[None]:
    """Add what helps where the server refuses a change of its catalog."""
    try:
        yield
    except (InputError, StorageError) as error:
        known = "permission denied" in str(error) or "depend" in str(error)
        raise (InputError(f"{error}: {help_}") if known else error) from None


def _not_ours(generation: str, expected: Marker | None, found: Marker | None) -> NotOurs:
    def told(marker: Marker | None) -> str:
        if marker is None:
            return "none"
        return f"version {marker.applied}" + (f" on its way to {marker.target}" if marker.target is not None else "")

    return NotOurs(
        f"the marker of {generation} in the store is {told(found)}, and {told(expected)} was expected: another feed was at "
        "work; the same command goes on from what stands there"
    )


def _refused_for_good(message: str) -> bool:
    """Say whether libpq failed at something that waiting doesn't change. Such errors have no code."""
    return any(words in message for words in ("authentication failed", "does not exist"))


def _keys_of(rows: Sequence[tuple[Any, ...]]) -> pa.Table:
    columns = list(zip(*rows, strict=True)) if rows else [(), (), ()]
    return pa.table([pa.array(values, field.type) for values, field in zip(columns, KEYS, strict=True)], schema=KEYS)


def _lengths(rows: pa.Table) -> list[int]:
    import pyarrow.compute as pc

    return list(pc.binary_length(rows.column(ID)).to_pylist())


def _literal(vector: NDArray[np.float32], shape: Shape) -> str:
    """Return a query as pgvector reads it from text."""
    if shape.dtype == "binary":
        return "".join("1" if value > 0 else "0" for value in vector)
    return f"[{','.join(repr(float(value)) for value in vector)}]"


def _number(generation: str) -> tuple[int, str]:
    """Return a key that puts generations in the order in which they were made."""
    digits = generation.rpartition("__g")[2].partition("_")[0]
    return (int(digits) if digits.isdigit() else 0, generation)
