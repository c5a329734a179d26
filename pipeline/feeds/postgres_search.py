"""The HNSW index of a generation is built, with as much memory as the server may give, and asked.

How vectors are compared, and how a query is written down, stands here as well.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg import sql

from pipeline.errors import InputError, StorageError
from pipeline.feeds.postgres_columns import VECTORS, vector_type
from pipeline.feeds.postgres_server import Connection, Server
from pipeline.feeds.store import Shape

EF_SEARCH = 100
"""A search looks at so many candidates. The server's default of 40 finds fewer of the nearest rows."""
MOST_INDEXED = {"float32": 2_000, "float16": 4_000, "binary": 64_000}
"""HNSW takes vectors of so many dimensions (pgvector 0.8)."""

_OPERATORS = {
    "cosine": ("<=>", "cosine"),
    "dot": ("<#>", "ip"),
    "euclidean": ("<->", "l2"),
    "hamming": ("<~>", "hamming"),
}


class Searches:
    """They are the index of a generation, and what it is asked."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def check(self, shape: Shape) -> None:
        """Raise InputError for an index that pgvector doesn't build."""
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

    def build_index(self, generation: str, shape: Shape, on_progress: Callable[[float], None]) -> None:
        def build(connection: Connection) -> None:
            connection.execute(sql.SQL("ANALYZE {}").format(self._server.relation(generation)))
            if shape.index.kind == "none":
                return
            with _followed(self._followed_by, generation, on_progress), connection.transaction():
                self.sized(connection, self._graph_bytes(connection, generation, shape))
                connection.execute(self._index_query(generation, shape))

        try:
            self._server.retried(build)
        except StorageError as error:
            if "shared memory" not in str(error):
                raise
            # Containers have 64 MB of it, and several workers would share the graph there.
            self._server.retried(lambda one: one.execute("SET max_parallel_maintenance_workers = 0"))
            self._server.retried(build)

    def _index_query(self, generation: str, shape: Shape) -> sql.Composed:
        settings = [("m", shape.index.m), ("ef_construction", shape.index.ef_construction)]
        given = [sql.SQL("{} = {}").format(sql.Identifier(k), sql.Literal(v)) for k, v in settings if v is not None]
        _, operator = _OPERATORS[shape.metric]
        return sql.SQL("CREATE INDEX IF NOT EXISTS {} ON {} USING hnsw ({} {}){}").format(
            sql.Identifier(f"{generation}_hnsw"),
            self._server.relation(generation),
            sql.Identifier(shape.embedding),
            sql.SQL(f"{VECTORS[shape.dtype]}_{operator}_ops"),
            sql.SQL(" WITH ({})").format(sql.SQL(", ").join(given)) if given else sql.SQL(""),
        )

    def _graph_bytes(self, connection: Connection, generation: str, shape: Shape) -> int:
        found = connection.execute(
            "SELECT reltuples FROM pg_class WHERE oid = %s::regclass",
            [self._server.relation(generation).as_string(connection)],
        ).fetchone()
        vector = shape.vector.list_size * shape.vector.value_type.bit_width // 8
        return int((found[0] if found else 0) * 1.2 * (vector + 24 * (shape.index.m or 16)))

    def sized(self, connection: Connection, wanted: int = 2**28) -> None:
        """Let this transaction build with the memory that it wants, up to twice the server's shared buffers, which are a
        quarter of its memory where somebody tuned it."""
        connection.execute(
            "SELECT set_config('maintenance_work_mem', greatest(pg_size_bytes(current_setting('maintenance_work_mem')), "
            "least(%s, 2 * pg_size_bytes(current_setting('shared_buffers')))) / 1024 || 'kB', true)",
            [wanted],
        )

    def _followed_by(self, generation: str) -> float | None:
        """Return the share of the index that is built, by another connection."""
        with self._server.opened() as connection:
            found = connection.execute(
                "SELECT tuples_done::float / nullif(tuples_total, 0) FROM pg_stat_progress_create_index "
                "WHERE relid = to_regclass(%s)",
                [self._server.relation(generation).as_string(connection)],
            ).fetchone()
        return None if found is None else found[0]

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
            self._server.relation(generation),
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

        return self._server.retried(search)


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


def _literal(vector: NDArray[np.float32], shape: Shape) -> str:
    """Return a query as pgvector reads it from text."""
    if shape.dtype == "binary":
        return "".join("1" if value > 0 else "0" for value in vector)
    return f"[{','.join(repr(float(value)) for value in vector)}]"
