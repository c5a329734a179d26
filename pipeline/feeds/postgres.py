"""PostgreSQL with pgvector holds a generation in a table, and shows one of them through a view of the feed's name.

Beside the generations stands the relation `embedding_feeds` with their markers, and `embedding_feed_units` with the units
that a load under way has in place. A unit, a delta and a switch are a transaction each, with the marker in it. So a
crash, a repeated call or a feeder that was frozen changes nothing. How values look on the wire stands in
postgres_columns.py.
"""

import contextlib
import json
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from psycopg import sql

from pipeline.errors import InputError, StorageUnavailable
from pipeline.feed_spec import FeedSpec
from pipeline.feeds import postgres_columns
from pipeline.feeds.ahead import ahead
from pipeline.feeds.digest import BUCKET_BITS, NUM_BUCKETS
from pipeline.feeds.postgres_columns import COPY_END, COPY_START, copy_rows, decoded, keys_of, sql_type, vector_type
from pipeline.feeds.postgres_search import Searches
from pipeline.feeds.postgres_server import MARKERS, Connection, Server, noticed
from pipeline.feeds.store import (
    Generation,
    Guarantees,
    Loaded,
    Marker,
    Rejected,
    Rejection,
    Shape,
    by_age,
    not_ours,
    taken,
)
from pipeline.schema import CONTENT_HASH, ID, ROW_HASH

ROWS_PER_READ = 10_000
MOST_NAME_BYTES = 40
"""PostgreSQL cuts names after 63 bytes, and those of generations and indexes are longer than the feed's."""

_DIGEST = sql.SQL(
    "('x' || encode(substring(sha256(convert_to(id, 'UTF8') || content_hash || int8send(row_hash)) from 1 for 8), "
    "'hex'))::bit(64)::bigint"
)
"""feeds.digest.row_digests, as a signed number."""
_BUCKET = sql.SQL("(({digest} >> {shift}) & {mask})").format(
    digest=_DIGEST, shift=sql.Literal(64 - BUCKET_BITS), mask=sql.Literal(NUM_BUCKETS - 1)
)


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
        self._name = spec.name.rpartition(".")[2]
        self._server = Server(spec)
        self._searches = Searches(self._server)

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
        self._searches.check(shape)
        self._server.check_feed()

    def unfit(self, rows: pa.Table) -> Mapping[int, str]:
        found = postgres_columns.unfit(rows)
        lengths = pc.binary_length(rows.column(ID)).to_numpy()
        for row in np.flatnonzero(lengths > 2_700).tolist():
            found.setdefault(row, "its id has more than 2,700 bytes, which no unique index of PostgreSQL takes")
        return found

    def relation(self, name: str) -> sql.Identifier:
        return self._server.relation(name)

    # --- markers

    def generations(self) -> Sequence[Generation]:
        return self._server.retried(self._generations)

    def _generations(self, connection: Connection) -> Sequence[Generation]:
        schema = self._server.schema_of(connection)
        shown = self._shown(connection, schema)
        tables = connection.execute(
            "SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
            "WHERE n.nspname = %s AND c.relkind = 'r' AND starts_with(c.relname, %s)",
            [schema, f"{self._name}__g"],
        ).fetchall()
        markers = self._markers(connection) if self._server.has(connection, MARKERS) else {}
        names = sorted({name for (name,) in tables}, key=by_age)
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
            self._server.query("SELECT generation, marker::text FROM {markers} WHERE feed = %s"), [self._name]
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
                    sql.SQL("CREATE TABLE IF NOT EXISTS {} ({})").format(self._server.relation(marker.generation), body)
                )
                connection.execute(
                    self._server.query("INSERT INTO {markers} VALUES (%s, %s, %s) ON CONFLICT DO NOTHING"),
                    [self._name, marker.generation, marker.to_json()],
                )

        with noticed("CREATE EXTENSION vector needs a user who may: ask an administrator to run it in this database"):
            self._server.retried(create)

    def _make_relations(self, connection: Connection) -> None:
        # Two that create at the same moment would both fail at the catalog's own unique indexes.
        connection.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [MARKERS])
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        connection.execute(
            self._server.query(
                "CREATE TABLE IF NOT EXISTS {markers} "
                "(feed text, generation text, marker jsonb NOT NULL, PRIMARY KEY (feed, generation))"
            )
        )
        connection.execute(
            self._server.query(
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
                    raise not_ours(marker.generation, expected, found)
                self.set_marker(connection, marker)

        self._server.retried(mark)

    def set_marker(self, connection: Connection, marker: Marker) -> None:
        connection.execute(
            self._server.query(
                "INSERT INTO {markers} VALUES (%s, %s, %s) "
                "ON CONFLICT (feed, generation) DO UPDATE SET marker = excluded.marker"
            ),
            [self._name, marker.generation, marker.to_json()],
        )

    def _locked(self, connection: Connection, generation: str, how: str = "UPDATE") -> Marker | None:
        """Return the marker, which nobody else changes before this transaction ends."""
        found = connection.execute(
            self._server.query(f"SELECT marker::text FROM {{markers}} WHERE feed = %s AND generation = %s FOR {how}"),
            [self._name, generation],
        ).fetchone()
        return None if found is None else Marker.from_json(found[0])

    # --- rows

    def loader(self, generation: str, shape: Shape) -> "_Loader":
        return _Loader(PostgresStore(self._spec), generation, shape)

    def load(self, generation: str, shape: Shape, unit: str, rows: Iterable[pa.Table]) -> Loaded:
        """Copy the rows into the generation together with the name of their unit, in one transaction."""

        def load(connection: Connection) -> Loaded:
            with connection.transaction():
                found = self._locked(connection, generation, "SHARE")
                if found is None or found.applied or found.target is None:
                    raise not_ours(generation, None, found)
                new = connection.execute(
                    self._server.query(
                        "INSERT INTO {units} (feed, generation, unit) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING"
                    ),
                    [self._name, generation, unit],
                ).rowcount
                if new:
                    count, rejected = self.copied(connection, self._server.relation(generation), shape, rows)
                    if rejected:  # Who repeats the unit must hear of them, too.
                        connection.execute(
                            self._server.query(
                                "UPDATE {units} SET rejected = %s WHERE feed = %s AND generation = %s AND unit = %s"
                            ),
                            [json.dumps([asdict(one) for one in rejected]), self._name, generation, unit],
                        )
                else:
                    count = sum(some.num_rows for some in rows)
                    rejected = self._rejected(connection, generation, unit)
            return Loaded(rows=count - len(rejected), rejected=tuple(rejected))

        return self._server.retried(load)

    def _rejected(self, connection: Connection, generation: str, unit: str) -> list[Rejection]:
        found = connection.execute(
            self._server.query("SELECT rejected FROM {units} WHERE feed = %s AND generation = %s AND unit = %s"),
            [self._name, generation, unit],
        ).fetchone()
        return [] if found is None or found[0] is None else [Rejection(**one) for one in found[0]]

    def copied(
        self,
        connection: Connection,
        relation: sql.Composable,
        shape: Shape,
        rows: Iterable[pa.Table],
        then: sql.Composed | None = None,
    ) -> tuple[int, list[Rejection]]:
        """Copy the rows, and `then` do something with them. Return how many were given, and those that the server refuses."""
        query = sql.SQL("COPY {} FROM STDIN (FORMAT BINARY)").format(relation)

        def framed(rows: Iterable[pa.Table]) -> Generator[tuple[int, pa.Buffer]]:
            return ((some.num_rows, copy_rows(some, shape)) for some in rows)

        def copy(rows: Iterable[pa.Table]) -> int:
            count = 0
            try:
                with connection.transaction():
                    with ahead(framed(rows)) as frames, connection.cursor().copy(query) as copy:
                        copy.write(COPY_START)
                        for number, frame in frames:
                            copy.write(frame)
                            count += number
                        copy.write(COPY_END)
                    if then is not None:
                        connection.execute(then)
            except (
                psycopg.errors.DataError,
                psycopg.errors.IntegrityError,
                psycopg.errors.ProgramLimitExceeded,
            ) as error:
                raise Rejected(error.diag.message_primary or str(error)) from None
            return count

        try:
            return copy(rows), []
        except Rejected:  # All of them are gone again.
            count, rejected = 0, list[Rejection]()
            for some in rows:
                count += some.num_rows
                rejected += taken(lambda one: copy([one]), some) if some.num_rows else []
            return count, rejected

    def finish_load(self, shape: Shape, before: Marker, after: Marker, receipts: Sequence[str]) -> None:
        def finish(connection: Connection) -> None:
            with connection.transaction():
                found = self._locked(connection, before.generation)
                if found == after:
                    return
                if found != before:
                    raise not_ours(before.generation, before, found)
                self._searches.sized(connection)
                connection.execute(
                    sql.SQL("ALTER TABLE {} ADD PRIMARY KEY (id)").format(self._server.relation(before.generation))
                )
                self._forget_units(connection, before.generation)
                self.set_marker(connection, after)

        self._server.retried(finish)

    def _forget_units(self, connection: Connection, generation: str) -> None:
        connection.execute(
            self._server.query("DELETE FROM {units} WHERE feed = %s AND generation = %s"), [self._name, generation]
        )

    @contextlib.contextmanager
    def delta(self, shape: Shape, before: Marker, after: Marker) -> Iterator["_Delta"]:
        """The block is one transaction. A connection that is lost as it commits may have committed."""
        connection = self._server.connect()
        delta = _Delta(self, connection, shape, before, after)
        try:
            with self._server.translated(), connection.transaction():
                found = self._locked(connection, before.generation)
                if found != before:
                    raise not_ours(before.generation, before, found)
                delta.begin()
                yield delta
                if not delta.committed:
                    raise psycopg.Rollback
        except StorageUnavailable:
            if not delta.committed or self._server.retried(lambda one: self._locked(one, before.generation)) != after:
                raise

    # --- the index

    def build_index(self, generation: str, shape: Shape, on_progress: Callable[[float], None]) -> None:
        self._searches.build_index(generation, shape, on_progress)

    def search(
        self,
        generation: str,
        shape: Shape,
        vectors: NDArray[np.float32],
        k: int,
        where: Mapping[str, Any] | None = None,
    ) -> list[list[str]]:
        return self._searches.search(generation, shape, vectors, k, where)

    # --- reading back

    def count(self, generation: str) -> int:
        found = self._server.retried(
            lambda one: one.execute(
                sql.SQL("SELECT count(*) FROM {}").format(self._server.relation(generation))
            ).fetchone()
        )
        assert found is not None
        return int(found[0])

    def digests(self, generation: str) -> NDArray[np.uint64]:
        query = sql.SQL("SELECT {}, sum({}) FROM {} GROUP BY 1").format(
            _BUCKET, _DIGEST, self._server.relation(generation)
        )
        sums = np.zeros(NUM_BUCKETS, np.uint64)
        for bucket, total in self._server.retried(lambda one: one.execute(query).fetchall()):
            sums[bucket] = int(total) % 2**64
        return sums

    def keys(self, generation: str, buckets: Sequence[int] | None = None) -> Iterator[pa.Table]:
        where = sql.SQL("") if buckets is None else sql.SQL(" WHERE {} = ANY({})").format(
            _BUCKET, sql.Literal(list(buckets))
        )  # fmt: skip
        query = sql.SQL("COPY (SELECT id, content_hash, row_hash FROM {}{}) TO STDOUT (FORMAT BINARY)").format(
            self._server.relation(generation), where
        )
        # A connection of its own: the caller asks the store for other things between two pieces.
        with self._server.translated(), self._server.opened() as connection, connection.cursor().copy(query) as copy:
            copy.set_types(["text", "bytea", "int8"])
            rows: list[tuple[Any, ...]] = []
            for row in copy.rows():
                rows.append(row)
                if len(rows) == ROWS_PER_READ:
                    yield keys_of(rows)
                    rows = []
            yield keys_of(rows)

    def get(self, generation: str, shape: Shape, ids: Sequence[str]) -> pa.Table:
        names = [ID, *(field.name for field in shape.columns), CONTENT_HASH, ROW_HASH]
        send = {"float32": "vector_send", "float16": "halfvec_send", "binary": "bit_send"}[shape.dtype]
        query = sql.SQL("SELECT {}, {}({}) FROM {} WHERE id = ANY(%b)").format(
            sql.SQL(", ").join(map(sql.Identifier, names)),
            sql.SQL(send),
            sql.Identifier(shape.embedding),
            self._server.relation(generation),
        )
        rows = self._server.retried(lambda one: one.execute(query, [list(ids)], binary=True).fetchall()) if ids else []
        columns = list(zip(*rows, strict=True)) if rows else [()] * (len(names) + 1)
        return decoded(columns, shape)

    # --- generations

    def switch(self, generation: str) -> None:
        def switch(connection: Connection) -> None:
            with connection.transaction():
                connection.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [self._name])
                schema = self._server.schema_of(connection)
                shown = self._shown(connection, schema)
                if shown == generation:
                    return
                view, relation = self._server.relation(self._name), self._server.relation(generation)
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

        with noticed(
            "other views or functions depend on it: drop them, and make them again when the generation has changed"
        ):
            self._server.retried(switch)

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
                connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(self._server.relation(generation)))
                self._forget_units(connection, generation)
                connection.execute(
                    self._server.query("DELETE FROM {markers} WHERE feed = %s AND generation = %s"),
                    [self._name, generation],
                )

        self._server.retried(drop)

    def close(self) -> None:
        self._server.close()


class _Loader:
    """It implements store.Loader with a connection of its own."""

    def __init__(self, store: PostgresStore, generation: str, shape: Shape) -> None:
        self._store, self._generation, self._shape = store, generation, shape

    def load(self, unit: str, rows: Iterable[pa.Table]) -> Loaded:
        return self._store.load(self._generation, self._shape, unit, rows)

    def close(self) -> None:
        self._store.close()


class _Delta:
    """It implements store.Delta within a transaction."""

    def __init__(
        self, store: PostgresStore, connection: Connection, shape: Shape, before: Marker, after: Marker
    ) -> None:
        self._store, self._connection, self._shape, self._after = store, connection, shape, after
        self._relation = store.relation(before.generation)
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
        # What is made of the rows is of the size of a few batches.
        pieces = [pa.Table.from_batches([batch]) for batch in rows.to_batches()]
        return self._store.copied(self._connection, sql.Identifier("feed_delta"), self._shape, pieces, put)[1]

    def delete(self, ids: pa.Array) -> None:
        self._connection.execute(sql.SQL("DELETE FROM {} WHERE id = ANY(%b)").format(self._relation), [ids.to_pylist()])

    def commit(self) -> None:
        self._store.set_marker(self._connection, self._after)
        self.committed = True
