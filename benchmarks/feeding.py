"""What a load into a vector database costs beside the store's own best path, side by side in turns.

    python -m benchmarks.feeding postgres TABLE [--rounds 5] [--writers 2]

`TABLE` is a table of some 100,000 rows. Each contestant loads all of its rows into an empty relation of the same server; the
index is left out, which all would build alike. `ready` copies bytes that were made before, with as many connections as a
feed has writers: what the server itself can take. Medians go to benchmarks/results/.
"""

import argparse
import contextlib
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
from psycopg import sql

from pipeline import config
from pipeline.execution.local.executor import LocalExecutor
from pipeline.feeds.load import LoadWork, close_places, load_unit, units_of
from pipeline.feeds.postgres_columns import COPY_END, COPY_START, copy_rows
from pipeline.feeds.registry import open_store
from pipeline.feeds.shape import columns_of, shape_of, shaped
from pipeline.feeds.store import Marker, Shape
from pipeline.machine.quotas import cores
from pipeline.storage import Folder
from pipeline.table import snapshot
from pipeline.table.row_reader import RowReader
from tests.feeds.postgres_place import PostgresServer

NAME = "docs"


class Postgres:
    """All contestants of one table on one server."""

    def __init__(self, table: str, url: str, writers: int) -> None:
        self.url, self.writers = url, writers
        spec = config.from_mapping(
            {
                "source": {"path": "-", "text": "-"},
                "model": {"path": "-"},
                "table": {"path": table},
                "feeds": {"pg": {"store": "postgres", "url": url, "name": NAME, "columns": ["title"]}},
            }
        )
        self.spec = spec.feeds["pg"]
        self.table = Folder(table)
        self.version = snapshot.current(self.table)
        with contextlib.closing(open_store(self.spec)) as store:
            self.shape: Shape = shape_of(self.version, self.spec, store.guarantees)
        self.ready: list[bytes] = []

    def rows(self) -> Iterator[pa.Table]:
        reader = RowReader(self.table, self.version)
        for part in self.version.parts:
            for rows in reader.batches(part, columns_of(self.shape, vectors=True)):
                yield shaped(rows, self.shape)

    def make_ready(self) -> None:
        self.ready = [copy_rows(rows, self.shape).to_pybytes() for rows in self.rows()]

    @contextlib.contextmanager
    def relation(self) -> Iterator[tuple[Any, Marker]]:
        """An empty generation, dropped afterwards."""
        store = open_store(self.spec)
        marker = Marker(
            generation=f"{NAME}__g1_{time.time_ns():x}",
            shape=self.shape.in_words(),
            applied=0,
            applied_of="",
            target=self.version.version,
            target_of="x",
        )
        store.create(self.shape, marker)
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute("CHECKPOINT")  # so that nobody pays for what was loaded before
        try:
            yield store, marker
        finally:
            store.drop(marker.generation)
            store.close()

    def feed(self) -> float:
        """This project: units are read, encoded and copied by so many writers."""
        with self.relation() as (store, marker), tempfile.TemporaryDirectory() as notes:
            reader = RowReader(self.table, self.version)
            started = time.perf_counter()
            units = sorted(units_of(reader, self.shape, 2**26), key=lambda unit: -unit.rows)
            work = LoadWork(
                table=self.table,
                version=self.version.version,
                spec=self.spec,
                generation=marker.generation,
                shape=self.shape,
                notes=f"staging/bench-{Path(notes).name}/",
            )
            with LocalExecutor(config.ResourceSpec()) as executor:
                done = list(executor.spread(load_unit, work, units, rows=0, writers=self.writers))
            seconds = time.perf_counter() - started
            assert sum(loaded.rows for _, loaded in done) == store.count(marker.generation)
            close_places()
            self.table.delete([info.path for info in self.table.list(work.notes)])
        return seconds

    def copy_ready(self) -> float:
        with self.relation() as (_, marker):
            query = sql.SQL("COPY {} FROM STDIN (FORMAT BINARY)").format(sql.Identifier(marker.generation))
            count = self.writers

            def copy(number: int) -> None:
                with psycopg.connect(self.url) as connection, connection.cursor().copy(query) as copying:
                    copying.write(COPY_START)
                    for piece in self.ready[number::count]:
                        copying.write(piece)
                    copying.write(COPY_END)

            return _seconds(copy, count)

    def write_row(self) -> float:
        """psycopg's own way, row by row, in binary, with one connection; pgvector's adapter for the vectors."""
        from pgvector.psycopg import register_vector

        with self.relation() as (_, marker), psycopg.connect(self.url) as connection:
            register_vector(connection)
            names = [*self.shape.schema.names]
            query = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(
                sql.Identifier(marker.generation), sql.SQL(", ").join(map(sql.Identifier, names))
            )
            started = time.perf_counter()
            with connection.cursor().copy(query) as copying:
                copying.set_types(["text", "text", "bytea", "int8", "vector"])
                for rows in self.rows():
                    vectors = (
                        rows.column(self.shape.embedding)
                        .combine_chunks()
                        .flatten()
                        .to_numpy()
                        .reshape(rows.num_rows, -1)
                    )
                    columns = [rows.column(name).to_pylist() for name in names[:-1]]
                    for row in zip(*columns, vectors, strict=True):
                        copying.write_row(row)
            connection.commit()
            return time.perf_counter() - started

    def langchain(self) -> float:
        """LangChain's PGVectorStore with vectors that are there, a tenth of the rows; counted for all of them."""
        from langchain_core.embeddings import Embeddings
        from langchain_postgres import PGEngine, PGVectorStore

        class Nothing(Embeddings):
            def embed_documents(self, texts: list[str]) -> list[list[float]]:
                raise NotImplementedError

            def embed_query(self, text: str) -> list[float]:
                return [0.0] * dim

        dim = self.shape.dim
        engine = PGEngine.from_connection_string(self.url.replace("postgresql://", "postgresql+psycopg://"))
        name = f"lc_{time.time_ns():x}"
        engine.init_vectorstore_table(table_name=name, vector_size=dim, id_column="langchain_id")
        store = PGVectorStore.create_sync(engine, Nothing(), table_name=name)
        rows = pa.concat_tables(self.rows()).slice(0, self.version.counts.rows // 10)
        vectors = rows.column(self.shape.embedding).combine_chunks().flatten().to_numpy().reshape(rows.num_rows, -1)
        started = time.perf_counter()
        import uuid

        store.add_embeddings(
            texts=rows.column("title").to_pylist(),
            embeddings=[vector.tolist() for vector in vectors],
            ids=[str(uuid.uuid4()) for _ in range(rows.num_rows)],
        )
        seconds = time.perf_counter() - started
        engine.drop_table(name)
        return seconds * self.version.counts.rows / rows.num_rows


def _seconds(work: Callable[[int], None], count: int) -> float:
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - started


def main() -> None:
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("store", choices=["postgres"])
    command.add_argument("table")
    command.add_argument("--rounds", type=int, default=5)
    command.add_argument("--writers", type=int, default=cores())
    command.add_argument("--only", nargs="*", default=["feed", "copy_ready", "write_row", "langchain"])
    arguments = command.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    folder.chmod(0o755)
    server = PostgresServer(folder, [])
    try:
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        place = Postgres(arguments.table, server.url, arguments.writers)
        place.make_ready()
        seconds: dict[str, list[float]] = {name: [] for name in arguments.only}
        for turn in range(arguments.rounds):
            for name in arguments.only if turn % 2 == 0 else arguments.only[::-1]:
                seconds[name].append(getattr(place, name)())
                print(f"{name:12} {place.version.counts.rows / seconds[name][-1]:>10,.0f} rows/s", flush=True)
        medians = {name: statistics.median(found) for name, found in seconds.items()}
        for name, median in medians.items():
            print(
                f"{name:12} {place.version.counts.rows / median:>10,.0f} rows/s, "
                f"feed is {median / medians['feed']:.2f} times as fast"
            )
    finally:
        server.stop()


if __name__ == "__main__":
    main()
