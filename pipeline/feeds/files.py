"""A feed's store of plain files on a disk: `url` is a folder, `name` a link in it, `options.format` what the files are.

A generation's rows stand in Parquet files, in the way that the format wants them. A sync writes those anew that hold a
changed row, takes over the others, and makes the file that is searched anew. Formats stand in files_formats.py, indexes in
files_indexes.py, and how a change becomes visible in files_revisions.py. No server is needed to read any of it.
"""

import json
import os
import shutil
import urllib.parse
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import InputError, RunError
from pipeline.feed_spec import FeedSpec
from pipeline.feeds import files_formats, files_indexes
from pipeline.feeds.files_formats import FORMATS, Format
from pipeline.feeds.files_revisions import MARKER_FILE, Revisions, linked, sync_folder
from pipeline.feeds.store import Generation, Guarantees, Loaded, Marker, Rejection, Shape, joined, matrix
from pipeline.schema import ID
from pipeline.storage.address import is_remote, local_path

FORMAT_FILE, UNITS, VDF_FILE = "format", "units", "VDF_META.json"
SMALL_ROWS, MANY_FILES = 8_192, 16
"""So many files with fewer rows are put together."""
BESIDE = ("index.faiss", "index.usearch", files_indexes.DUCKDB_FILE, files_indexes.IDS_FILE, VDF_FILE)
"""These files are made of all rows."""
RUN_HERE = frozenset(["faiss", "usearch", "duckdb"])


class FilesStore:
    """See store.Store."""

    def __init__(self, spec: FeedSpec) -> None:
        self._spec = spec
        if is_remote(spec.url):
            raise InputError(f"feeds.url is {spec.url!r}; the store files writes to a folder of a disk: give one")
        self._format_name = str(spec.options.get("format", ""))
        if self._format_name not in FORMATS:
            raise InputError(f"feeds.options.format is {self._format_name!r}; give one of {', '.join(FORMATS)}")
        self._format: Format = FORMATS[self._format_name]
        self._revisions = Revisions(local_path(spec.url), spec.name)

    @property
    def guarantees(self) -> Guarantees:
        return Guarantees(
            atomic_marker=True,
            fences=True,
            atomic_switch=True,
            keeps_bits=True,
            tested_on_server=self._format_name in RUN_HERE,
        )

    def check(self, shape: Shape) -> None:
        self._check_options()
        self._check_shape(shape)
        folder = self._revisions.folder
        while not folder.exists():
            folder = folder.parent
        if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
            raise InputError(
                f"feeds.url is {self._spec.url!r}, and {str(folder)!r} is no folder that can be written to"
            )
        if self._format.package is not None:
            files_indexes.package(self._format.package)
        self.generations()

    def unfit(self, rows: pa.Table) -> Mapping[int, str]:
        return self._format.unfit(rows)

    def generations(self) -> Sequence[Generation]:
        found = self._revisions.generations()
        for one in found:
            path = self._revisions.newest(one.name) / FORMAT_FILE
            written = path.read_text("utf-8") if path.exists() else ""
            if written != self._format_name:
                raise InputError(
                    f"feeds.options.format is {self._format_name!r}, and {one.name} in {self._spec.url!r} is {written!r}: "
                    "give another feeds.name for another format"
                )
        live = [one.name for one in found if one.live]
        if live:  # A feeder may have died between a revision and the link to it.
            self._revisions.show(live[0])
        return found

    def create(self, shape: Shape, marker: Marker) -> None:
        if all(one.name != marker.generation for one in self.generations()):
            self._revisions.add(None, marker, self._begin)

    def mark(self, marker: Marker, expected: Marker | None) -> None:
        if self._revisions.marker(self._revisions.newest(marker.generation)) != marker:
            newest = self._revisions.expect(marker.generation, expected)
            self._revisions.add(newest, marker, lambda folder: self._take_over(newest, folder, beside=True))

    def loader(self, generation: str, shape: Shape) -> "FilesLoader":
        return FilesLoader(self._revisions.newest(generation).parent / UNITS, self._format, shape)

    def finish_load(self, shape: Shape, before: Marker, after: Marker, receipts: Sequence[str]) -> None:
        units = self._revisions.newest(after.generation).parent / UNITS
        if self._revisions.marker(self._revisions.newest(after.generation)) != after:
            newest = self._revisions.expect(before.generation, before)
            names = [name for receipt in receipts if (name := json.loads(receipt)["file"]) is not None]

            def fill(folder: Path) -> None:
                self._begin(folder)
                for number, name in enumerate(names):
                    linked(units / name, self._rows(folder) / _file_name(number))
                self._describe(folder, shape)

            self._revisions.add(newest, after, fill)
        shutil.rmtree(units, ignore_errors=True)

    @contextmanager
    def delta(self, shape: Shape, before: Marker, after: Marker) -> Iterator["FilesDelta"]:
        newest = self._revisions.expect(before.generation, before)

        def commit(upserts: pa.Table, deletes: pa.Array) -> None:
            def fill(folder: Path) -> None:
                self._begin(folder)
                gone = pa.concat_arrays([upserts.column(ID).combine_chunks(), deletes])
                self._rewrite(newest, folder, shape, upserts, gone)
                self._describe(folder, shape)
                beside = self._format.beside
                if beside is None or not self._has_index(newest):
                    return
                if not beside.change(newest, folder, shape, gone, upserts):
                    self._build(folder, shape)

            self._revisions.add(newest, after, fill)

        yield FilesDelta(shape, commit)

    def build_index(self, generation: str, shape: Shape, on_progress: Callable[[float], None]) -> None:
        newest = self._revisions.newest(generation)
        marker = self._revisions.marker(newest)
        if self._format.beside is not None and not self._has_index(newest):
            if marker is None:
                raise RunError(f"{str(newest)!r} has no marker: --adopt gives it one")

            def fill(folder: Path) -> None:
                self._take_over(newest, folder, beside=False)
                self._build(folder, shape)

            self._revisions.add(newest, marker, fill)
        on_progress(1.0)

    def count(self, generation: str) -> int:
        return sum(pq.ParquetFile(path).metadata.num_rows for path in self._files(self._revisions.newest(generation)))

    def digests(self, generation: str) -> None:
        """Files compute nothing; see `keys`."""

    def keys(self, generation: str, buckets: Sequence[int] | None = None) -> Iterator[pa.Table]:
        for path in self._files(self._revisions.newest(generation)):
            yield from files_formats.read_keys(path, self._format)

    def get(self, generation: str, shape: Shape, ids: Sequence[str]) -> pa.Table:
        wanted = pa.array(ids, pa.string())
        found = [shape.schema.empty_table()]
        for path in self._files(self._revisions.newest(generation)):
            if pc.any(pc.is_in(pq.read_table(path, columns=[ID]).column(ID), wanted)).as_py():
                for rows in files_formats.read(path, self._format, shape):
                    found.append(rows.filter(pc.is_in(rows.column(ID), wanted)))
        return pa.concat_tables(found)

    def search(
        self,
        generation: str,
        shape: Shape,
        vectors: NDArray[np.float32],
        k: int,
        where: Mapping[str, Any] | None = None,
    ) -> list[list[str]]:
        newest = self._revisions.newest(generation)
        if not self.count(generation):
            return [[] for _ in vectors]
        if self._format.beside is not None and not where and self._has_index(newest):
            return self._format.beside.search(newest, shape, vectors, k)
        rows = self._all(newest, shape)
        for name, value in (where or {}).items():
            column = rows.column(name)
            rows = rows.filter(pc.is_null(column) if value is None else pc.equal(column, pa.scalar(value, column.type)))
        ids = rows.column(ID).to_pylist()
        return [[ids[number] for number in row] for row in files_indexes.exact(shape, matrix(rows, shape), vectors, k)]

    def switch(self, generation: str) -> None:
        self._revisions.live()
        self._revisions.show(generation)

    def drop(self, generation: str) -> None:
        if self._revisions.live() == generation:
            raise RunError(f"{generation} is what readers of {str(self._revisions.link)!r} see: show another one first")
        self._revisions.drop(generation)

    def close(self) -> None:
        """Nothing stays open between calls."""

    # --- the files of a revision

    def _rows(self, revision: Path) -> Path:
        return revision / self._format.rows_folder(self._spec.name, self._spec.options)

    def _files(self, revision: Path) -> list[Path]:
        return sorted(self._rows(revision).glob("*.parquet"))

    def _has_index(self, revision: Path) -> bool:
        return any((revision / name).exists() for name in BESIDE if name != VDF_FILE)

    def _begin(self, folder: Path) -> None:
        (folder / FORMAT_FILE).write_text(self._format_name, "utf-8")

    def _take_over(self, source: Path, folder: Path, beside: bool) -> None:
        for path in source.rglob("*"):
            if path.is_file() and path.name != MARKER_FILE and (beside or path.name not in BESIDE):
                linked(path, folder / path.relative_to(source))

    def _describe(self, folder: Path, shape: Shape) -> None:
        if self._format.describe is not None:
            rows = sum(pq.ParquetFile(path).metadata.num_rows for path in self._files(folder))
            self._rows(folder).mkdir(parents=True, exist_ok=True)
            text = json.dumps(self._format.describe(shape, self._spec.name, rows), indent=2)
            (folder / VDF_FILE).write_text(text, "utf-8")

    def _build(self, folder: Path, shape: Shape) -> None:
        if self._format.beside is not None:
            rows = self._all(folder, shape, [ID, shape.embedding])
            self._format.beside.build(folder, shape, rows.column(ID).combine_chunks(), matrix(rows, shape))

    def _all(self, revision: Path, shape: Shape, columns: Sequence[str] | None = None) -> pa.Table:
        empty = shape.schema.empty_table()
        tables = [empty if columns is None else empty.select(list(columns))]
        for path in self._files(revision):
            tables += files_formats.read(path, self._format, shape, columns)
        return pa.concat_tables(tables)

    def _rewrite(self, source: Path, folder: Path, shape: Shape, upserts: pa.Table, gone: pa.Array) -> None:
        """Write anew what holds a changed row, put small files together, and take over the rest."""
        files = self._files(source)
        rows = {path: pq.ParquetFile(path).metadata.num_rows for path in files}
        small = [path for path in files if rows[path] < SMALL_ROWS]
        together = small if len(small) >= MANY_FILES else []
        number, waiting = 0, [upserts] if upserts.num_rows else []
        for path in files:
            hit = len(gone) and pc.any(pc.is_in(pq.read_table(path, columns=[ID]).column(ID), gone)).as_py()
            if not hit and path not in together:
                linked(path, self._rows(folder) / _file_name(number))
                number += 1
                continue
            kept = pa.concat_tables(files_formats.read(path, self._format, shape))
            kept = kept.filter(pc.invert(pc.is_in(kept.column(ID), gone)))
            if path in together:
                waiting.append(kept)
            elif kept.num_rows:
                self._write(self._rows(folder) / _file_name(number), shape, kept)
                number += 1
        added = pa.concat_tables([shape.schema.empty_table(), *waiting])
        if added.num_rows:
            self._write(self._rows(folder) / _file_name(number), shape, added)

    def _write(self, path: Path, shape: Shape, rows: pa.Table) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(self._format.encode(rows, shape), path, compression="zstd")

    # --- what is refused

    def _check_options(self) -> None:
        known = ["format"] + (["namespace"] if self._format_name == "pinecone" else [])
        for name in self._spec.options:
            if name not in known:
                raise InputError(f"feeds.options has {name!r}; the format {self._format_name} has {', '.join(known)}")
        namespace = self._spec.options.get("namespace", "x")
        if not isinstance(namespace, str) or not namespace.replace("-", "").replace("_", "").isalnum():
            raise InputError(f"feeds.options.namespace is {namespace!r}; give letters, digits, - and _")

    def _check_shape(self, shape: Shape) -> None:
        form = self._format
        if shape.dtype not in form.dtypes:
            raise InputError(
                f"feeds.dtype is {shape.dtype!r}, and the format {self._format_name} has {', '.join(form.dtypes)}"
            )
        if (shape.dtype == "binary") != (shape.metric == "hamming"):
            raise InputError(
                f"feeds.dtype is {shape.dtype!r} and feeds.metric is {shape.metric!r}; binary vectors go with hamming, and "
                "others with cosine, dot or euclidean"
            )
        if shape.index.kind not in ("auto", "hnsw", "none"):
            raise InputError(f"feeds.index.kind is {shape.index.kind!r}; files have auto, hnsw and none")
        for field in shape.columns:
            if not form.takes(field.type):
                raise InputError(
                    f"feeds.columns names {field.name!r}, whose type {field.type} the format {self._format_name} doesn't "
                    "have: leave it out, or store it as text"
                )


class FilesLoader:
    """It writes each unit's rows into a file of the format, which the end of the load takes over."""

    def __init__(self, folder: Path, form: Format, shape: Shape) -> None:
        self._folder, self._format, self._shape = folder, form, shape

    def load(self, unit: str, rows: Iterable[pa.Table]) -> Loaded:
        pieces = joined(rows)
        first = next(pieces, None)
        if first is None:
            return Loaded(rows=0, receipt=json.dumps({"file": None}))
        name, count = f"{urllib.parse.quote(unit, safe='')}.parquet", 0
        self._folder.mkdir(parents=True, exist_ok=True)
        beside = self._folder / f".{uuid.uuid4().hex}"
        with beside.open("wb") as file:
            encoded = self._format.encode(first, self._shape)
            with pq.ParquetWriter(file, encoded.schema, compression="zstd") as writer:
                writer.write_table(encoded)
                count += first.num_rows
                for some in pieces:
                    writer.write_table(self._format.encode(some, self._shape))
                    count += some.num_rows
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, self._folder / name)
        sync_folder(self._folder)
        return Loaded(rows=count, receipt=json.dumps({"file": name}))

    def close(self) -> None:
        """Nothing stays open between units."""


class FilesDelta:
    """It collects what changes, and writes it in one revision."""

    def __init__(self, shape: Shape, commit: Callable[[pa.Table, pa.Array], None]) -> None:
        self._upserts = [shape.schema.empty_table()]
        self._deletes = [pa.array([], pa.string())]
        self._commit = commit

    def upsert(self, rows: pa.Table) -> Sequence[Rejection]:
        self._upserts.append(rows)
        return []

    def delete(self, ids: pa.Array) -> None:
        self._deletes.append(ids.cast(pa.string()))

    def commit(self) -> None:
        self._commit(pa.concat_tables(self._upserts), pa.concat_arrays(self._deletes))


def _file_name(number: int) -> str:
    return f"{number:08d}.parquet"
