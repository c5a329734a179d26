"""What must hold after every single operation: the files that kept versions name are there, and a folder reader misses no row.

It hears of each change of a file, and looks at the store from outside. What a version names is what it named when it was
committed.
"""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.table import layout
from pipeline.table.part import Part, table_to_parts

TABLE = "table/"
Rows = Mapping[str, tuple[bytes, int]]
"""The hashes of each id: of its content, and of its row."""


class Place(Protocol):
    """A store as one looks at it from outside; keys of the table begin with `TABLE`."""

    def get(self, key: str) -> bytes | None: ...
    def names(self) -> list[str]: ...
    def writer(self, key: str) -> str: ...


class Violation(Exception):
    """Something that must hold does not."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Known:
    """A version as it was committed."""

    number: int
    content: bytes
    """Its snapshot."""
    fingerprint: str
    parts: tuple[Part, ...]
    rows_in: Mapping[str, Rows]
    """By the path of a part."""
    files: Mapping[str, tuple[str, ...]]
    """A file's name, and the places of which one must have it."""

    @property
    def rows(self) -> Rows:
        return {name: hashes for rows in self.rows_in.values() for name, hashes in rows.items()}


class Watch:
    """It implements object_store.Watching."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self.versions: dict[int, Known] = {}
        self.erased: set[str] = set()
        """Ids that a purge may erase from versions of the past."""
        self.violations: list[str] = []

    @property
    def current(self) -> int:
        return max(self.versions, default=0)

    def created(self, key: str) -> None:
        path = key.removeprefix(TABLE)
        number = layout.version_of(path)
        if number is not None:
            try:
                self._committed(number)
            except Violation as violation:
                self.violations.append(str(violation))
        elif path.startswith((layout.DATA, layout.META, layout.STAGING)):
            self._changed(path)

    def removed(self, key: str) -> None:
        path = key.removeprefix(TABLE)
        if layout.version_of(path) is not None:
            self.violations.append(f"{path} was removed")
        self._changed(path)
        if path.startswith(layout.DATA):
            self._check_folder(path)

    def after_a_power_cut(self) -> None:
        """A version that nobody had been told of may be gone; whatever was acknowledged is not."""
        if self.current and self.content(layout.snapshot(self.current)) is None:
            del self.versions[self.current]

    def content(self, path: str) -> bytes | None:
        """A file of the table."""
        return self._place.get(TABLE + path)

    def kept(self) -> list[Known]:
        """The versions that are kept whole: the current one and the one before it."""
        return [self.versions[number] for number in (self.current, self.current - 1) if number in self.versions]

    def missing(self, version: Known) -> list[str]:
        """The files of a version that are nowhere, but those that an erasure may take."""
        return [
            f"{name} of version {version.number} is gone"
            for name, places in version.files.items()
            if not self._may_go(version, name) and not any(self._is_at(path, name, version) for path in places)
        ]

    def _may_go(self, version: Known, name: str) -> bool:
        rows = version.rows_in.get(name, {})
        return not self.erased.isdisjoint(_documents(rows)) or (
            # A list of row sources goes with its part.
            name.startswith(layout.ROW_SOURCES)
            and any(part.row_sources == name and self._may_go(version, part.path) for part in version.parts)
        )

    def _is_at(self, path: str, name: str, version: Known) -> bool:
        content = self.content(path)
        if content is None:
            return False
        size = next((part.size for part in version.parts if part.path == name), None)
        return size is None or len(content) == size

    def _changed(self, path: str) -> None:
        for version in self.kept():
            if any(path in places for places in version.files.values()):
                self._report(self.missing(version))

    def _report(self, found: list[str]) -> None:
        self.violations += [violation for violation in found if violation not in self.violations]

    def _check_folder(self, path: str) -> None:
        """Whoever reads data/ finds all rows of this version or of the one before."""
        kept = self.kept()
        if kept and not any(all(self.content(part.path) is not None for part in version.parts) for version in kept):
            rows = {name for version in kept for name in version.rows}
            if self.erased.isdisjoint(rows):
                self._report(
                    [f"without {path}, data/ has the rows of neither {' nor '.join(str(v.number) for v in kept)}"]
                )

    def _committed(self, number: int) -> None:
        if number in self.versions:
            # On a disk without links two may carry out what a third one had begun.
            if self.content(layout.snapshot(number)) != self.versions[number].content:
                raise Violation(f"version {number} was written twice")
            return
        if number != self.current + 1:
            raise Violation(f"version {number} follows version {self.current}")
        content = self.content(layout.snapshot(number))
        assert content is not None
        raw = json.loads(content)
        folder = raw["publication"]
        parts = tuple(table_to_parts(self._parquet(f"{folder}parts.parquet")))
        self._parquet(f"{folder}sources.parquet")
        before = self.versions.get(number - 1)
        rows_in = {part.path: self._rows(part, before) for part in parts}
        files: dict[str, tuple[str, ...]] = {
            part.path: (part.path, *((part.staged,) if part.staged else ()), *_trash(part.path, number))
            for part in parts
        }
        files |= {part.row_sources: (part.row_sources,) for part in parts if part.row_sources}
        for entry in raw["embeddings"]:
            files |= {named["path"]: (named["path"],) for named in (entry["calibration"], entry.get("int8")) if named}
        files["the list of parts"] = (f"{folder}parts.parquet", layout.parts_list(number))
        files["the list of sources"] = (f"{folder}sources.parquet", layout.sources_list(number))
        for name, target in (("changes/", layout.changes(number)), ("dead_letters/", layout.dead_letters(number))):
            for key in self._place.names():
                if key.startswith(f"{TABLE}{folder}{name}"):
                    path = key.removeprefix(TABLE)
                    files[path] = (path, target + path.removeprefix(folder + name))
        self.versions[number] = Known(
            number=number, content=content, fingerprint=raw["fingerprint"], parts=parts, rows_in=rows_in, files=files
        )
        self._report(self.missing(self.versions[number]))

    def _parquet(self, path: str) -> pa.Table:
        content = self.content(path)
        if content is None:
            raise Violation(f"{path} is gone at the commit")
        return pq.read_table(io.BytesIO(content), use_threads=False)

    def _rows(self, part: Part, before: Known | None) -> Rows:
        if before is not None and part.path in before.rows_in:
            return before.rows_in[part.path]
        rows = self._parquet(part.location if self.content(part.location) is not None else part.path)
        return hashes_of(rows)


def hashes_of(rows: pa.Table) -> dict[str, tuple[bytes, int]]:
    columns = (rows.column(name).to_pylist() for name in ("id", "content_hash", "row_hash"))
    return {name: (content, row) for name, content, row in zip(*columns, strict=True)}


def _documents(rows: Rows) -> set[str]:
    """Ids of rows, and of the documents that chunks are of."""
    return {*rows, *(name.partition("#")[0] for name in rows)}


def _trash(path: str, number: int) -> tuple[str, ...]:
    """Where a part is once it was superseded: the next version puts it there, and later ones what they find left."""
    return tuple(layout.trash(later) + path for later in range(number, number + 60))
