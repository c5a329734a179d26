"""A PostgreSQL server is spoken to: connections, retries, what its errors mean, and whether it can hold a feed at all.

A `FeedSpec` comes in. What is done on a connection is a function that may be called again on a new one. This file knows
nothing of rows and generations.
"""

import contextlib
import random
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import psycopg
from psycopg import sql

from pipeline.errors import InputError, StorageError, StorageUnavailable
from pipeline.feed_spec import FeedSpec

MARKERS, UNITS = "embedding_feeds", "embedding_feed_units"
LEAST_PGVECTOR = (0, 8)
"""Filtered searches go on until they have enough rows since then."""
FIRST_CONNECT_S = 5.0
"""An address where nobody answers for so long before any work is taken for a wrong one."""

Result = TypeVar("Result")
Connection = psycopg.Connection[tuple[Any, ...]]


class Server:
    """It is the database that a feed names, and the relations there that have names of the feed."""

    def __init__(self, spec: FeedSpec) -> None:
        self._spec = spec
        schema, dot, _ = spec.name.rpartition(".")
        self._schema = schema if dot else None
        self._connection: Connection | None = None
        self._connected_before = False

    def opened(self) -> Connection:
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

    def connect(self) -> Connection:
        if self._connection is None or self._connection.closed or self._connection.broken:
            self._connection = self.retried(lambda one: one)
        return self._connection

    def retried(self, do: Callable[[Connection], Result]) -> Result:
        """Do it, with a new connection where the old one was lost, until `limits.timeout_s` are over. What is done must be
        a transaction at most, and may be done twice."""
        give_up = time.monotonic() + self._spec.limits.timeout_s
        wait = 0.1
        while True:
            try:
                if self._connection is None or self._connection.closed or self._connection.broken:
                    self._connection = self.opened()
                    self._connected_before = True
                return do(self._connection)
            except psycopg.Error as error:
                failure = self.failure(error)
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
    def translated(self) -> Iterator[None]:
        try:
            yield
        except psycopg.Error as error:
            raise self.failure(error) from None

    def failure(self, error: psycopg.Error) -> "InputError | StorageError":
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

    def schema_of(self, connection: Connection) -> str:
        if self._schema is not None:
            return self._schema
        found = connection.execute("SELECT current_schema()").fetchone()
        if found is None or found[0] is None:
            raise InputError("the user's search_path names no schema that exists: write feeds.name as schema.name")
        return str(found[0])

    def has(self, connection: Connection, relation: str) -> bool:
        found = connection.execute("SELECT to_regclass(%s)", [self.relation(relation).as_string(connection)]).fetchone()
        return found is not None and found[0] is not None

    def relation(self, name: str) -> sql.Identifier:
        return sql.Identifier(self._schema, name) if self._schema is not None else sql.Identifier(name)

    def query(self, text: str) -> sql.Composed:
        return sql.SQL(text).format(markers=self.relation(MARKERS), units=self.relation(UNITS))

    def check_feed(self) -> None:
        """Raise InputError for a server, a database or a user that can't hold a feed."""
        self.retried(self._check)

    def _check(self, connection: Connection) -> None:
        encoding = connection.info.parameter_status("server_encoding")
        if encoding != "UTF8":
            raise InputError(
                f"the database is encoded in {encoding}, which holds not every text: make one with encoding UTF8"
            )
        schema = self.schema_of(connection)
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

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


@contextlib.contextmanager
def noticed(help_: str) -> Iterator[None]:
    """Add what helps where the server refuses a change of its catalog."""
    try:
        yield
    except (InputError, StorageError) as error:
        known = "permission denied" in str(error) or "depend" in str(error)
        raise (InputError(f"{error}: {help_}") if known else error) from None


def _refused_for_good(message: str) -> bool:
    """Say whether libpq failed at something that waiting doesn't change. Such errors have no code."""
    return any(words in message for words in ("authentication failed", "does not exist"))
