"""One attempt to publish the version after a parent: what it stages has a name of its own, one create-only write commits it.

Everything before that write lies in staging and can be thrown away; everything after it is materialise.py's. The operations
(operations/) fill a publication: they say which parts, sources and dead letters the version has, and what it changes.
"""

import contextlib
import itertools
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from pipeline import schema
from pipeline.errors import CommitConflict, GateFailed
from pipeline.storage import Folder
from pipeline.storage.file import FileInfo
from pipeline.table import announcement, changelog, dead_letters, layout, snapshot
from pipeline.table.compare import Difference
from pipeline.table.part import Part
from pipeline.table.snapshot import Counts, Snapshot

SETTLE_S = 3.0
"""How long a racer's write may be under way to a store that doesn't keep two apart."""
MAX_KEY_BYTES = 1000
"""The longest key that S3 takes has 1,024 bytes."""


@dataclass(frozen=True, kw_only=True)
class Description:
    """What the snapshot says of the run, beside what it derives from the work."""

    run: str
    time: str
    fingerprint: str
    fingerprint_of: Mapping[str, Any]
    output: str
    output_spec: Mapping[str, Any]
    embedding: str
    """Name of the embedding column."""
    embeddings: tuple[Mapping[str, Any], ...]
    part_schema: pa.Schema
    source_schema: pa.Schema
    probes: tuple[tuple[float, ...], ...]
    timings: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Publication:
    table: Folder
    parent: Snapshot
    """The version that the new one follows; it is fixed when the run is planned."""
    nonce: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    """Makes the names of this attempt its own."""
    lists: list[str] = field(default_factory=list)
    """The paths of the lists of changes and dead letters that were written."""

    @property
    def number(self) -> int:
        """The number of the new version."""
        return self.parent.version + 1

    @property
    def folder(self) -> str:
        """The folder in staging that holds all that this attempt writes; it ends with a slash."""
        return layout.publication(self.nonce)

    # --- names

    def staged(self, kind: str, index: int) -> str:
        """The path of a staged file; `kind` is a folder of the publication: `merged`, `vectors`, .."""
        return f"{self.folder}{kind}/{index:06d}.parquet"

    def row_sources_list(self, part: int) -> str:
        """The path of the list of row sources that the new version has for a part that stays."""
        return layout.row_sources(self.number, part, self.nonce)

    def named(self, fresh: Iterable[Part]) -> list[Part]:
        """Staged parts under the names that they will have in data/; those without rows are left out.

        Raises GateFailed for a name that storage would refuse: it could never be materialised.
        """
        parts = [
            replace(
                part,
                path=layout.data_part(part.partition, self.number, index, self.nonce),
                staged=part.location,
            )
            for index, part in enumerate(part for part in fresh if part.rows)
        ]
        for part in parts:
            self._check_name(part.path)
        return parts

    def _check_name(self, path: str) -> None:
        name = max(path.split("/"), key=lambda piece: len(piece.encode()))
        if len(name.encode()) > schema.MAX_FOLDER_BYTES or len(self.table.url) + len(path.encode()) > MAX_KEY_BYTES:
            raise GateFailed(
                f"the path with the partition folder {name[:80]!r}.. is longer than storage allows "
                f"({schema.MAX_FOLDER_BYTES} bytes a folder, {MAX_KEY_BYTES} in all): nothing was published; partition by a "
                "column with shorter values"
            )

    # --- lists

    def write_changes(self, parts: Sequence[Part], difference: Difference) -> None:
        """Write the list of changes against the parent; the difference names `parts` by their place."""
        upserts = changelog.rows_at(self.table, parts, difference.upserts)
        if difference.all_new:
            upserts = (rows for part in parts for rows in changelog.all_rows(self.table, part))
        self.write_changed_rows(upserts, changelog.rows_at(self.table, parts, difference.deletes))

    def write_changed_rows(self, upserts: Iterable[pa.Table], deletes: Iterable[pa.Table]) -> None:
        """Write the list of changes from rows with id and hashes."""
        self.lists.extend(changelog.write(self.table, f"{self.folder}changes/", upserts, deletes).files)

    def write_dead_letters(self, rows: Iterable[pa.Table]) -> int:
        """Write all dead letters of the new version; returns how many there are."""
        written = dead_letters.write(self.table, f"{self.folder}dead_letters/", rows)
        self.lists.extend(written.files)
        return written.rows

    # --- the version

    def version(self, description: Description, parts: Sequence[Part], sources: pa.Table, counts: Counts) -> Snapshot:
        """The new version of a run, which passed its gate."""
        return Snapshot(
            version=self.number,
            parent=self.parent.version,
            publication=self.folder,
            run=description.run,
            time=description.time,
            fingerprint=description.fingerprint,
            fingerprint_of=description.fingerprint_of,
            output=description.output,
            output_spec=description.output_spec,
            embeddings=description.embeddings,
            schema=snapshot.schema_to_hex(description.part_schema),
            schema_text=str(description.part_schema.remove_metadata()),
            source_schema=snapshot.schema_to_hex(description.source_schema),
            probes=description.probes,
            counts=counts,
            gate={"duplicate_ids": 0, "bad_vectors": 0, "rows": sum(part.rows for part in parts)},
            timings=description.timings,
            min_reader=snapshot.least_reader(parts, None),
            parts=tuple(parts),
            sources=sources,
        )

    def version_like(self, other: Snapshot, **changed: Any) -> Snapshot:
        """The new version as another one was, but for what `changed` says."""
        made = replace(other, **changed)
        return replace(
            made,
            version=self.number,
            parent=self.parent.version,
            publication=self.folder,
            time=snapshot.utc_now(),
            timings={},
            format=snapshot.FORMAT,
            min_reader=snapshot.least_reader(made.parts, made.rows_of),
        )

    # --- the commit

    def commit(self, version: Snapshot, done: Set[str] = frozenset()) -> None:
        """Write the lists of the version, look for all files that it names, and create the snapshot, which makes it the
        current version. What is staged of the units `done` goes when the version is materialised.

        Raises GateFailed where a file is missing, CommitConflict where there is such a version already.
        """
        consumed = self.table.gather(layout.STAGING, lambda files: snapshot.consumed_list(files, done))
        # Before the look: a cleaning that begins later finds somebody at work.
        snapshot.write_lists(self.table, self.folder, version.parts, version.sources, consumed)
        while True:
            staged = self._staged_for(version)
            self.check_files(version, staged)
            named = announcement.announced(self.table, staged)
            if named is not None:  # else a cleaning has ended since, and may have taken what was listed
                break
        self.heed_cleanings(version, named)
        self.create(version)

    def _staged_for(self, version: Snapshot) -> list[FileInfo]:
        """List what the version needs of all that is staged, and the announcements of cleanings."""
        needed = {part.staged for part in version.parts}
        folders = (self.folder, layout.CLEANINGS)
        return self.table.gather(
            layout.STAGING,
            lambda files: [info for info in files if info.path in needed or info.path.startswith(folders)],
        )

    def check_files(self, version: Snapshot, staged: Sequence[FileInfo]) -> None:
        """Raises GateFailed unless every file that the snapshot will name is there: parts with their size, staged or in
        data/, lists of row sources, of changes and of dead letters, value ranges, and the int8 model."""
        # Listed in the order in which files move: one that moves meanwhile is seen twice, not missed.
        folders = [layout.DATA] if any(part.staged is None for part in version.parts) else []
        if any(part.row_sources is not None for part in version.parts):
            folders.append(layout.ROW_SOURCES)
        listed = itertools.chain(staged, *(self.table.list(folder) for folder in folders))
        sizes = {info.path: info.size for info in listed}
        for part in version.parts:
            found = [sizes[path] for path in (part.staged, part.path) if path in sizes]
            if part.size not in found:
                raise GateFailed(
                    f"part {part.location} of {self.table.url} has {max(found, default=None)} bytes where {part.size} were "
                    "written: nothing was published; start again"
                )
        beside = {part.row_sources for part in version.parts} - sizes.keys() - {None}
        beside |= set(self.lists) - sizes.keys()
        gone = beside | {path for path in version.model_files() if self.table.size(path) is None}
        if gone:
            raise GateFailed(
                f"{len(gone)} files that the new version of {self.table.url} would name are gone, the first is "
                f"{min(map(str, gone))}: nothing was published; start again"
            )

    def heed_cleanings(self, version: Snapshot, named: Set[str]) -> None:
        """Raises GateFailed if cleanings have `named` a file that the new version needs: they may delete it at any moment.

        The records that they named go: the next run is not to go on from what is deleted meanwhile.
        """
        needed = {path for part in version.parts for path in (part.staged, part.row_sources)} & named
        needed |= {path for path in named if path.startswith(self.folder)}
        if needed:
            self.table.delete(path for path in named if path.startswith(layout.RECORDS))
            raise GateFailed(
                f"a cleaning of {self.table.url} is about to delete {len(needed)} files that the new version would name, the "
                f"first is {min(map(str, needed))}: nothing was published; start again"
            )

    def create(self, version: Snapshot) -> None:
        """The commit itself. Raises CommitConflict if there is such a version already."""
        path, content = layout.snapshot(version.version), version.to_json()
        exclusive = self.table.creates_exclusively()
        standing = self.table.create_once(path, content)
        if standing is None and not exclusive:
            # The store tells every racer that it won: the one whose bytes stand has, once all writes have arrived.
            time.sleep(SETTLE_S)
        if standing is not None or self.table.read(path) != content:
            raise self._overtaken(version.fingerprint)

    @contextlib.contextmanager
    def guarded(self, fingerprint: str | None = None) -> Iterator[None]:
        """Whatever goes wrong is a CommitConflict where another run published after the parent: it may have moved any file.

        `fingerprint` is that of the vectors of this run, the parent's unless it is given.
        """
        try:
            yield
        except Exception:
            self.check_current(fingerprint)
            raise

    def check_current(self, fingerprint: str | None = None) -> None:
        """Raises CommitConflict if a version was published after the parent; `fingerprint` as in `guarded`."""
        if max(snapshot.versions(self.table), default=0) != self.parent.version:
            raise self._overtaken(self.parent.fingerprint if fingerprint is None else fingerprint)

    def _overtaken(self, fingerprint: str) -> CommitConflict:
        first = f"another run published version {self.number} of {self.table.url} first"
        if snapshot.read_alone(self.table, self.number).fingerprint == fingerprint:
            return CommitConflict(f"{first}; what was encoded is kept: start again")
        return CommitConflict(
            f"{first}, with another model or other settings, whose vectors don't compare with this run's; start again with "
            "another table.path, or with the settings of that version"
        )
