"""Milvus imports Parquet files from a folder that its servers can read: its own bucket, or a disk that all of them share.

Each file is a job of its own. A job that ran twice gives its rows twice: so who starts jobs has to know that none ran before.
"""

import hashlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
from pymilvus.grpc_gen import milvus_pb2

from pipeline.errors import InputError, StorageError
from pipeline.feeds import milvus_rows, values
from pipeline.feeds.milvus_rows import import_file
from pipeline.feeds.milvus_server import POLL_S, Server
from pipeline.feeds.store import Loaded, Shape
from pipeline.storage import Folder
from pipeline.storage.address import address_of, is_remote

FOLDER, FOLDER_OPTIONS, FOLDER_SEEN = "import_folder", "import_storage_options", "import_path"
"""These options are the feed's own; the others go to pymilvus."""
JOBS_AT_ONCE = 64


class ImportFolder:
    """The folder of a feed's import files, one folder per generation below it."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._url = options.get(FOLDER)
        self._options = options.get(FOLDER_OPTIONS, {})
        self._seen = options.get(FOLDER_SEEN)

    def __bool__(self) -> bool:
        return self._url is not None

    def check(self) -> None:
        """Raise InputError for options that can't be meant."""
        if self._url is None and (self._options or self._seen):
            raise InputError(f"feeds.options has {FOLDER_OPTIONS} or {FOLDER_SEEN}, and no {FOLDER}: give it, too")
        if self._url is not None and not isinstance(self._url, str):
            raise InputError(
                f"feeds.options.{FOLDER} is {self._url!r}; give a folder, or an address such as s3://bucket/x"
            )

    def files(self, generation: str) -> Folder:
        if self._url is None:
            raise InputError(
                f"generation {generation!r} is loaded by imports, and feeds.options has no {FOLDER} any more: give it "
                "again, or drop the generation"
            )
        return Folder(self._url, self._options)

    def seen(self, file: str) -> str:
        """Return a file's path as the server knows it: its key in the bucket, or its path on the disk."""
        root = self._seen
        if root is None:
            url = self.files("").url
            root = address_of(url).key.partition("/")[2] if is_remote(url) else url
        return f"{root.rstrip('/')}/{file}" if root else file

    def forget(self, generation: str) -> None:
        """Remove the files of a generation."""
        if self:
            folder = self.files(generation)
            folder.delete([file.path for file in folder.list(generation)])

    def run(self, server: Server, generation: str, files: Sequence[str]) -> None:
        """Start a job for each file, since all of a job stays on one node, and wait until all are done. Raises
        grpc.RpcError where nobody can say whether a job began."""
        waiting = list(reversed(files))
        running: dict[int, str] = {}
        while waiting or running:
            while waiting and len(running) < JOBS_AT_ONCE:
                request = milvus_pb2.ImportRequest(
                    db_name=server.database, collection_name=generation, files=[self.seen(waiting[-1])]
                )
                running[server.called("Import", request).tasks[0]] = waiting.pop()
            time.sleep(POLL_S)
            for job, file in list(running.items()):
                if self._is_done(server, job, file):
                    del running[job]

    def _is_done(self, server: Server, job: int, file: str) -> bool:
        state = server.handler.get_bulk_insert_state(job, timeout=server.timeout_s)
        if "Failed" in state.state_name:
            raise StorageError(
                f"Milvus can't import {file}: {state.failed_reason}; the server must be able to read "
                f"{self.seen(file)!r}: check feeds.options.{FOLDER} and {FOLDER_SEEN}, or leave them out"
            )
        return bool(state.state_name == "Completed")


def settle(server: Server, generation: str) -> None:
    """Wait until no job fills the collection: the server would try for a minute to fill one that is gone, and keep all
    other jobs waiting."""
    while True:
        jobs = server.handler.list_bulk_insert_tasks(0, generation, timeout=server.timeout_s)
        if all(job.state_name == "Completed" or "Failed" in job.state_name for job in jobs):
            return
        time.sleep(POLL_S)


class ImportLoader:
    """It implements store.Loader: a unit is a file, whose name is its receipt."""

    def __init__(self, folder: Folder, generation: str, shape: Shape) -> None:
        self._folder, self._generation, self._shape = folder, generation, shape

    def load(self, unit: str, rows: Iterable[pa.Table]) -> Loaded:
        whole = pa.concat_tables([self._shape.schema.empty_table(), *rows])
        rejected, fit = values.fit(whole, self._shape, milvus_rows.unfit(whole))
        receipt = None
        if fit.num_rows:
            name = f"{self._generation}/{hashlib.sha256(unit.encode()).hexdigest()[:24]}.parquet"
            self._folder.write(name, import_file(fit, self._shape))
            receipt = json.dumps({"file": name, "rows": fit.num_rows})
        return Loaded(rows=fit.num_rows, rejected=tuple(rejected), receipt=receipt)

    def close(self) -> None: ...
