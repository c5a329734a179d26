"""A table with nights for feeds: documents of a small corpus, embedded by the tiny model in this process."""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipeline
from pipeline import config
from pipeline.config import RunSpec
from pipeline.feeds import load
from pipeline.feeds.registry import open_store
from pipeline.feeds.shape import shape_of, shaped
from pipeline.feeds.store import Store
from pipeline.runs import feed as runs
from pipeline.runs import feed_opened
from pipeline.runs.feed_plan import Wishes
from pipeline.runs.feed_summary import FeedSummary
from pipeline.storage import Folder
from pipeline.table import snapshot
from tests.feeds.rows import ordered
from tests.feeds.stores import Place
from tests.inline import InProcess, embed, reindex


def document(name: Any, text: str | None = None, title: str | None = None) -> dict[str, Any]:
    """A document; the same name gives the same one."""
    return {
        "id": str(name),
        "text": text or f"document {name} speaks of {hash_of(name) % 17} and {hash_of(name) % 29}",
        "title": title or f"title {name}",
        "number": hash_of(name),
        "lang": "en" if hash_of(name) % 3 else "de",
    }


def hash_of(name: Any) -> int:
    return sum(map(ord, str(name))) * 7919 % 1009


@dataclasses.dataclass(eq=False)
class Nights:
    """A corpus, its table, and a feed of it."""

    root: Path
    spec: RunSpec
    documents: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    def night(
        self,
        new: Iterable[Any] = (),
        *,
        changed: Mapping[Any, str] | None = None,
        gone: Iterable[Any] = (),
        by_row: bool = True,
    ) -> int:
        """Change the corpus and publish a version; returns its number."""
        for name in gone:
            del self.documents[str(name)]
        self.documents |= {str(name): document(name) for name in new}
        self.documents |= {str(name): document(name, text) for name, text in (changed or {}).items()}
        rows = pa.Table.from_pylist(list(self.documents.values()))
        self.root.mkdir(parents=True, exist_ok=True)
        pq.write_table(rows, self.root / "docs.parquet", row_group_size=50)
        again = by_row and snapshot.versions(self.table)
        return (reindex(self.spec) if again else embed(self.spec)).version

    @property
    def table(self) -> Folder:
        return Folder(self.spec.table.path)

    def feed(self, **wishes: Any) -> FeedSummary:
        return runs.feed(self.spec, "docs", InProcess, Wishes(**wishes))

    def verify(self, **options: Any) -> FeedSummary:
        return runs.verified(self.spec, "docs", **options)

    def with_feed(self, **changes: Any) -> "Nights":
        """The same table under other settings of the feed."""
        spec = dataclasses.replace(self.spec.feeds["docs"], **changes)
        return Nights(self.root, dataclasses.replace(self.spec, feeds={"docs": spec}), self.documents)

    @contextlib.contextmanager
    def store(self) -> Iterator[Store]:
        with contextlib.closing(open_store(self.spec.feeds["docs"])) as store:
            yield store

    def expected(self, version: int | None = None) -> pa.Table:
        """The rows that the store should hold, by id."""
        spec = self.spec.feeds["docs"]
        found = snapshot.current(self.table) if version is None else snapshot.read(self.table, version)
        with self.store() as store:
            shape = shape_of(found, spec, store.guarantees)
        rows = pipeline.read(self.table.url, version).to_table()
        return ordered(shaped(rows.select(shape.schema.names).combine_chunks(), shape))

    def held(self, generation: str | None = None) -> pa.Table:
        """The rows that the store holds, of the live generation, by id."""
        with self.store() as store:
            names = [one.name for one in store.generations() if one.live] if generation is None else [generation]
            (name,) = names
            marker = next(one.marker for one in store.generations() if one.name == name)
            assert marker is not None
            version = snapshot.read(self.table, marker.applied)
            shape = shape_of(version, self.spec.feeds["docs"], store.guarantees)
            ids = [key for keys in store.keys(name) for key in keys.column("id").to_pylist()]
            assert len(ids) == len(set(ids)) == store.count(name)
            return ordered(store.get(name, shape, ids)) if ids else shape.schema.empty_table()


def assert_same_rows(nights: Nights) -> None:
    """The store holds the table's current version, bit by bit where it keeps bits."""
    held, expected = nights.held(), nights.expected()
    assert held.column("id").to_pylist() == expected.column("id").to_pylist()
    with nights.store() as store:
        exact = store.guarantees.keeps_bits
    names = held.column_names if exact else [name for name in held.column_names if name != "embedding"]
    assert held.select(names).to_pylist() == expected.select(names).to_pylist()


def nights_of(root: Path, model: Path, place: Place, **feed: Any) -> Nights:
    """A table without a version yet, and a feed in this place."""
    spec = config.from_mapping(
        {
            "source": {"path": str(root / "docs.parquet"), "id": "id", "text": "text", "keep": ["title", "number"]},
            "model": {"path": str(model)},
            "table": {"path": str(root / "table"), "partition_by": ["lang"]},
            "feeds": {"docs": {"store": place.kind, "url": "-", "name": "docs"}},
        }
    )
    own = dataclasses.replace(place.spec, columns=("title", "lang", "number"), **feed)
    return Nights(root, dataclasses.replace(spec, feeds={"docs": own}))


# --- crashes


class Crash(BaseException):
    """The process ended, as far as the store can tell."""


class Crashing:
    """A store that ends its process at the n-th call, before it or after it."""

    def __init__(self, of: Any, calls: list[int], after: bool) -> None:
        self._of, self._calls, self._after = of, calls, after

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._of, name)
        if not callable(found) or name in ("unfit", "close"):
            return found

        def call(*arguments: Any, **options: Any) -> Any:
            self._calls[0] -= 1
            if self._calls[0] == 0 and not self._after:
                raise Crash
            given = found(*arguments, **options)
            if self._calls[0] == 0:
                raise Crash
            if name == "loader":
                return Crashing(given, self._calls, self._after)
            return self._block(given) if name == "delta" else given

        return call

    @contextlib.contextmanager
    def _block(self, block: Any) -> Iterator[Any]:
        with block as delta:
            yield Crashing(delta, self._calls, self._after)


@contextlib.contextmanager
def crashing(number: int, after: bool) -> Iterator[None]:
    calls = [number]
    opened = feed_opened.open_store
    with pytest.MonkeyPatch.context() as patch:
        for module in (feed_opened, load):
            patch.setattr(module, "open_store", lambda spec: Crashing(opened(spec), calls, after))
        with contextlib.suppress(Crash):
            yield
