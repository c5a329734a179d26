"""A feed's table in LanceDB is one Lance dataset, and its generations are versions of it: this file reads and makes them.

Readers who open the table see the dataset's newest version. Everything else is prepared aside, as detached versions,
which have a number but no place among those that readers see. A tag with the generation's name points to the version
of each generation that is not shown. One commit then shows what was prepared: rows, deletes, marker and, for another
generation, its index.

The metadata of a version's schema names the generation and holds its marker, so that rows and marker never part. This
file knows nothing of indexes and of deltas.
"""

import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import lance
import pyarrow as pa
from lance import LanceDataset, LanceOperation
from lance.commit import CommitConflictError
from lance.dataset import Transaction

from pipeline.errors import InputError, RunError, StorageError, StorageUnavailable
from pipeline.feeds.store import Generation, Marker, NotOurs, by_age
from pipeline.redaction import redacted_url
from pipeline.storage.address import is_remote, local_path

GENERATION, MARKER, CHANGE = "feed.generation", "feed.marker", "feed.change"
"""These keys of a schema's metadata are a feed's. The first is empty in the table that nothing was shown in yet. The last
names the change that made the version: versions by other programs inherit it."""

_SOURCE_LINE = re.compile(r", /\S+\.rs:\d+(:\d+)?")
_REFUSED = re.compile(
    "AccessDenied|Forbidden|InvalidAccessKeyId|SignatureDoesNotMatch|Unauthorized|NoSuchBucket|InvalidBucketName|"
    "No object store provider|Not a directory|Permission denied|builder error|ContainerNotFound|AuthenticationFailed"
)
_PASSES = re.compile(
    "timed? ?out|error sending request|connection|reset by peer|broken pipe|dns error|SlowDown|TooManyRequests|"
    r"non-2xx status code: (429|50[0234])|status: (429|50[0234])",
    re.IGNORECASE,
)


class Preempted(RunError):
    """Another program changed what readers see at the same time."""


class Versions:
    """The versions of one feed's dataset."""

    def __init__(self, url: str, name: str, options: Mapping[str, Any], timeout_s: float) -> None:
        self.place = f"{redacted_url(url)} (table {name})"
        self.name = name
        root = url if is_remote(url) else local_path(url)
        self.uri = f"{root.rstrip('/')}/{name}.lance"
        patience = {"client_max_retries": "20", "client_retry_timeout": str(max(1, round(timeout_s)))}
        self.options = {**patience, **{key: _option(value) for key, value in options.items()}}

    def newest(self) -> LanceDataset | None:
        """Open what readers see; None before there is a dataset. Raises InputError where it is another program's."""
        with self.errors():
            try:
                found = lance.dataset(self.uri, storage_options=self.options)
            except ValueError as error:
                if re.match("Dataset at path .* was not found", str(error)):
                    return None
                raise
        if GENERATION not in _metadata(found):
            raise InputError(
                f"feeds.name is {self.name!r}, and {self.place} was not made by a feed: give another name, or remove "
                "that table"
            )
        return found

    def begin(self, schema: pa.Schema) -> LanceDataset:
        """Open what readers see; make an empty dataset first where there is none."""
        found = self.newest()
        if found is not None:
            return found
        empty = schema.with_metadata({GENERATION: ""}).empty_table()
        with self.errors():
            try:
                return lance.write_dataset(empty, self.uri, storage_options=self.options)
            except OSError as error:
                if "already exists" not in str(error):
                    raise
        return self._must_exist()

    def head(self, generation: str) -> LanceDataset:
        """Open the version that holds a generation."""
        newest = self.newest()
        if newest is None or (shown(newest) != generation and generation not in self._tags(newest)):
            raise RunError(f"{self.place} holds no generation {generation}: it was dropped meanwhile; start again")
        return newest if shown(newest) == generation else self._tagged(newest, generation)

    def generations(self) -> Sequence[Generation]:
        newest = self.newest()
        if newest is None:
            return []
        live = shown(newest)
        names = {name for name in self._tags(newest) if name.startswith(f"{self.name}__")} | ({live} - {""})
        return [
            Generation(
                name=name,
                marker=marker_of(newest if name == live else self._tagged(newest, name)),
                live=name == live,
            )
            for name in sorted(names, key=by_age)
        ]

    def aside(self, base: LanceDataset, operation: Any) -> LanceDataset:
        """Make a detached version on top of another one; readers don't see it."""
        with self.errors():
            return LanceDataset.commit(
                base, Transaction(base.version, operation), storage_options=self.options, detached=True
            )

    def marked(self, base: LanceDataset, marker: Marker) -> LanceDataset:
        """Make a detached version with another marker."""
        updates: dict[str, str | None] = {
            GENERATION: marker.generation,
            MARKER: marker.to_json(),
            CHANGE: uuid.uuid4().hex,
        }
        return self.aside(base, LanceOperation.UpdateConfig(schema_metadata_updates=LanceOperation.UpdateMap(updates)))

    def expect(self, generation: str, expected: Marker | None) -> LanceDataset:
        """Open the version that holds a generation. Raises NotOurs where it has another marker."""
        head = self.head(generation)
        if marker_of(head) != expected:
            raise NotOurs(_not_ours(self.place, expected, marker_of(head)))
        return head

    def advance(self, head: LanceDataset, prepared: LanceDataset, marker: Marker) -> None:
        """Let a prepared version be the generation whose version was `head`. Raises NotOurs where readers see rows that
        came after `head`."""
        if is_detached(head):
            self.point(marker.generation, prepared)
            return
        try:
            if _fragments(head) <= _fragments(prepared):
                self._merge(head, prepared)
            else:
                self._replace(head, prepared)
        except RunError:
            newest = self.head(marker.generation)
            if _change(newest) == _change(prepared):  # The answer was lost.
                return
            if marker_of(newest) != marker_of(head):
                raise NotOurs(_not_ours(self.place, marker_of(head), marker_of(newest))) from None
            raise

    def show(self, generation: str) -> None:
        """Let readers see a generation, with its index, in one commit. The one before it stays, by a tag."""
        newest = self._must_exist()
        if shown(newest) == generation:
            return
        head = self.head(generation)
        self._must_be_whole(head)
        before = shown(newest)
        if before:
            self.point(before, newest)
        try:
            self._commit(newest, LanceOperation.Restore(head.version))
        except RunError:
            if shown(self._must_exist()) != generation:  # Else the answer was lost.
                raise
        self.forget(generation)

    def point(self, generation: str, version: LanceDataset) -> None:
        """Let the generation's tag point to a version."""
        with self.errors():
            tags = version.tags
            (tags.update if generation in tags.list() else tags.create)(generation, version.version)

    def forget(self, generation: str) -> None:
        """Remove the generation's tag."""
        newest = self._must_exist()
        with self.errors():
            if generation in newest.tags.list():
                newest.tags.delete(generation)

    def has_detached(self) -> bool:
        """Tell whether a generation was prepared and not shown yet: Lance's own cleanup doesn't know its files."""
        newest = self._must_exist()
        live = shown(newest)
        return any(name != live and _detached(tag["version"]) for name, tag in self._tags(newest).items())

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Translate what Lance raises."""
        try:
            yield
        except (OSError, ValueError, RuntimeError, KeyError, pa.ArrowException) as error:
            text = _SOURCE_LINE.sub("", str(error)).splitlines()[0]
            code = re.search(r"<Code>(\w+)</Code>", str(error))
            words = f"{self.place}: {text}{f' ({code[1]})' if code else ''}"
            if isinstance(error, CommitConflictError):
                raise Preempted(f"{words}; start again") from error
            if _REFUSED.search(str(error)):
                raise InputError(
                    f"{words}; check feeds.url, its rights, and the credentials in feeds.options"
                ) from error
            if _PASSES.search(str(error)):
                raise StorageUnavailable(f"{words}; start again when the storage answers") from error
            raise StorageError(f"{words}; start again") from error

    def _merge(self, head: LanceDataset, prepared: LanceDataset) -> None:
        """Show a prepared version. Lance refuses it where another one was shown after `head`."""
        rows = [piece.metadata for piece in prepared.get_fragments()]
        self._commit(head, LanceOperation.Merge(rows, prepared.lance_schema), max_retries=0)

    def _replace(self, head: LanceDataset, prepared: LanceDataset) -> None:
        """Show a prepared version that lacks a whole fragment of `head`, which is no merge to Lance. Lance accepts it
        whatever was shown after `head`, so this looks right before, and right afterwards."""
        newest = self._must_exist()
        if newest.version == head.version:
            self._commit(head, LanceOperation.Restore(prepared.version))
            newest = self._must_exist()
            later = range(head.version + 1, newest.version + 1)
            ours = next(number for number in later if _change(self._numbered(newest, number)) == _change(prepared))
            if ours == head.version + 1:
                return
            self._commit(newest, LanceOperation.Restore(ours - 1))
        raise Preempted(f"{self.place} was changed by another program at the same time; start again")

    def _commit(self, newest: LanceDataset, operation: Any, **options: Any) -> None:
        """Make a version that readers see."""
        with self.errors():
            change = Transaction(newest.version, operation)
            LanceDataset.commit(newest, change, storage_options=self.options, **options)

    def _numbered(self, newest: LanceDataset, number: int) -> LanceDataset:
        with self.errors():
            return newest.checkout_version(number)

    def _must_exist(self) -> LanceDataset:
        found = self.newest()
        if found is None:
            raise RunError(f"{self.place} is gone: it was removed meanwhile; start again")
        return found

    def _tags(self, newest: LanceDataset) -> Mapping[str, Any]:
        with self.errors():
            found: Mapping[str, Any] = newest.tags.list()
        return found

    def _tagged(self, newest: LanceDataset, generation: str) -> LanceDataset:
        with self.errors():
            return newest.checkout_version(generation)

    def _must_be_whole(self, head: LanceDataset) -> None:
        """Read a column of a version that was prepared: a cleanup by another program may have taken files of it."""
        if is_detached(head):
            with self.errors():
                for _ in head.scanner(columns=[head.schema.names[0]]).to_batches():
                    pass


def shown(newest: LanceDataset) -> str:
    """Return the generation that readers see; "" if none was shown yet."""
    return _metadata(newest).get(GENERATION, "")


def marker_of(version: LanceDataset) -> Marker | None:
    text = _metadata(version).get(MARKER)
    return None if text is None else Marker.from_json(text)


def _change(version: LanceDataset) -> str:
    return _metadata(version).get(CHANGE, "")


def is_detached(version: LanceDataset) -> bool:
    return _detached(version.version)


def _fragments(version: LanceDataset) -> set[int]:
    return {piece.fragment_id for piece in version.get_fragments()}


def _detached(number: int) -> bool:
    return number >= 1 << 63


def _metadata(version: LanceDataset) -> dict[str, str]:
    return {key.decode(): value.decode() for key, value in (version.schema.metadata or {}).items()}


def _option(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _not_ours(place: str, expected: Marker | None, found: Marker | None) -> str:
    wanted, seen = ("none" if one is None else one.to_json() for one in (expected, found))
    return f"{place}: expected the marker {wanted} and found {seen}: another feed was at work; start again"
