"""OpenSearch or Elasticsearch holds each generation as an index, and shows one of them to readers under an alias.

Which of the two it is, is asked at the root of its address. The marker stands in `_meta` of the index's mapping, which
can't be compared and set: it is read before it is replaced. Every sync counts an epoch up, and its writes carry the
number as their external version, so that those of an older sync are refused, deletes included: the server remembers
deleted documents for an hour. This program was not run against a server of either product.
"""

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import ConfigError, InputError, StorageError
from pipeline.feed_spec import FeedSpec
from pipeline.feeds import epoch, json_values
from pipeline.feeds import opensearch_documents as documents
from pipeline.feeds.opensearch_calls import PASSING, Calls, reason_of
from pipeline.feeds.opensearch_documents import OPENSEARCH, Product
from pipeline.feeds.patience import Passing
from pipeline.feeds.store import (
    Delta,
    Generation,
    Guarantees,
    Loaded,
    Loader,
    Marker,
    NotOurs,
    Rejected,
    Rejection,
    Shape,
    loaded_by,
    not_ours,
)
from pipeline.schema import CONTENT_HASH, ID, ROW_HASH
from pipeline.storage import before_work

META = "embedding_pipeline"
"""Our key in a mapping's `_meta`; it holds `marker`, which is JSON as text, and `epoch`."""
OPTIONS = (
    "api_key",
    "ca_certs",
    "headers",
    "num_candidates",
    "password",
    "settings",
    "streams",
    "username",
    "verify_certs",
)
REQUEST_BYTES = 8 << 20
"""A server takes 100 MB in a request by default, and works best with some MB."""
PAGE = 5_000
KEEP_ALIVE = "5m"
REMEMBER_DELETED = "1h"

Problem = tuple[str, str]
"""The id of a row and why it was refused."""


class OpenSearchStore:
    """It is a feed's indexes in one cluster of either product."""

    guarantees = Guarantees(
        atomic_marker=False,
        fences=False,
        atomic_switch=True,
        keeps_bits=True,
        dtypes=frozenset({"float32", "binary"}),
        tested_on_server=False,
    )

    def __init__(self, spec: FeedSpec) -> None:
        unknown = sorted(set(spec.options) - set(OPTIONS))
        if unknown:
            raise ConfigError(
                f"feeds.options has {unknown[0]!r}, which store opensearch doesn't know; it has {list(OPTIONS)}"
            )
        if spec.name != spec.name.lower() or spec.name.startswith("_"):
            raise ConfigError(f"feeds.name is {spec.name!r}; names of indexes have small letters, and no _ in front")
        self._spec = spec
        self._calls = Calls(spec.url, spec.options, spec.limits.timeout_s)
        self._name = re.compile(rf"{re.escape(spec.name)}__g(\d+)_\w+")
        self._known: Product | None = None

    @property
    def _product(self) -> Product:
        if self._known is None:
            self._known = documents.product_of(self._calls("GET", "/"))
        return self._known

    # What there is

    def check(self, shape: Shape) -> None:
        with before_work():
            documents.check(shape, self._product)
            self.generations()

    def unfit(self, rows: pa.Table) -> Mapping[int, str]:
        return documents.unfit(rows)

    def generations(self) -> Sequence[Generation]:
        with before_work():
            live = self._live()
            found = self._calls("GET", f"/{self._spec.name}__g*/_mapping", fine=(404,))
            names = sorted((int(match[1]), name) for name in found if (match := self._name.fullmatch(name)))
            return [Generation(name=name, marker=_marker_of(found[name]), live=name == live) for _, name in names]

    def _live(self) -> str | None:
        found = self._calls("GET", f"/{self._spec.name}/_alias", fine=(404,))
        shown = [name for name, one in found.items() if isinstance(one, dict) and "aliases" in one]
        if self._spec.name in shown:
            raise InputError(
                f"there is an index {self._spec.name!r} of somebody else: choose another feeds.name, or remove it"
            )
        if len(shown) > 1 or not all(map(self._name.fullmatch, shown)):
            raise InputError(
                f"the alias {self._spec.name!r} shows {', '.join(sorted(shown))}, which is not one index of this feed: "
                "choose another feeds.name, or remove the alias"
            )
        return shown[0] if shown else None

    def _mapping(self, generation: str) -> Mapping[str, Any]:
        found = self._calls("GET", f"/{generation}/_mapping")
        if generation not in found:
            raise NotOurs(f"{generation} is no index, but a name of {', '.join(found)}: start the feed again")
        mapping: Mapping[str, Any] = found[generation]
        return mapping

    # Generations and their markers

    def create(self, shape: Shape, marker: Marker) -> None:
        name = marker.generation
        settings = {**(self._spec.options.get("settings") or {}), "gc_deletes": REMEMBER_DELETED}
        if self._spec.index.defer:
            settings["refresh_interval"] = "-1"
        body = documents.index_of(shape, self._product, settings, {META: {"marker": marker.to_json(), "epoch": 1}})

        def attempt(timeout_s: float) -> None:
            found = self._calls.once("GET", f"/{name}/_mapping", None, timeout_s, fine=(404,))
            if name not in found:
                try:
                    self._calls.once("PUT", f"/{name}", body, timeout_s)
                except Rejected as error:
                    if "resource_already_exists" in str(error):
                        return
                    raise InputError(f"can't make an index for the feed: {error}") from None

        self._calls.again(attempt)

    def mark(self, marker: Marker, expected: Marker | None) -> None:
        found = self._mapping(marker.generation)
        if (now := _marker_of(found)) == marker:
            return
        if now != expected:
            raise not_ours(marker.generation, expected, now)
        self._set(marker.generation, found, marker=marker.to_json())
        if (now := _marker_of(self._mapping(marker.generation))) != marker:
            raise not_ours(marker.generation, marker, now)

    def _set(self, generation: str, mapping: Mapping[str, Any], **values: Any) -> None:
        """Replace values of ours. The server replaces `_meta` whole, so that all of it is sent."""
        meta = (mapping.get("mappings") or {}).get("_meta") or {}
        own = meta.get(META) or {}
        self._calls("PUT", f"/{generation}/_mapping", {"_meta": {**meta, META: {**own, **values}}})

    def switch(self, generation: str) -> None:
        def attempt(timeout_s: float) -> None:
            found = self._calls.once("GET", f"/{self._spec.name}/_alias", None, timeout_s, fine=(404,))
            shown = [name for name, one in found.items() if isinstance(one, dict) and "aliases" in one]
            if shown == [generation]:
                return
            alias = self._spec.name
            actions = [{"remove": {"index": name, "alias": alias}} for name in shown]
            body = {"actions": [*actions, {"add": {"index": generation, "alias": alias}}]}
            self._calls.once("POST", "/_aliases", body, timeout_s)

        self._calls.again(attempt)

    def drop(self, generation: str) -> None:
        if self._live() == generation:
            raise InputError(f"{generation} is live: switch to another generation before it is dropped")
        self._calls("DELETE", f"/{generation}", fine=(404,))

    # Rows

    def loader(self, generation: str, shape: Shape) -> Loader:
        def guard() -> None:
            found = _marker_of(self._mapping(generation))
            if found is None or found.applied:
                raise NotOurs(f"{generation} is no longer being loaded: its marker is {found and found.to_json()}")

        return _Loader(_Writer(self, generation, shape, number=1, guard=guard))

    def finish_load(self, shape: Shape, before: Marker, after: Marker, receipts: Sequence[str]) -> None:
        self.mark(after, before)

    @contextlib.contextmanager
    def delta(self, shape: Shape, before: Marker, after: Marker) -> Iterator[Delta]:
        generation = before.generation

        def guard() -> Mapping[str, Any]:
            mapping = self._mapping(generation)
            if (found := _marker_of(mapping)) != before:
                raise not_ours(generation, before, found)
            return mapping

        mapping = guard()
        number = epoch.after(int(_own(mapping).get("epoch") or 0))
        self._set(generation, mapping, epoch=number)

        def commit() -> None:
            self._refresh(generation)
            self.mark(after, before)

        with contextlib.closing(_Writer(self, generation, shape, number, guard)) as writer:
            yield _Delta(writer, commit)

    def build_index(self, generation: str, shape: Shape, on_progress: Callable[[float], None]) -> None:
        """Graphs are built as segments are written: what is left is to make all rows visible, and to let the server do so
        by itself from now on."""
        wanted = (self._spec.options.get("settings") or {}).get("refresh_interval")
        self._calls("PUT", f"/{generation}/_settings", {"index": {"refresh_interval": wanted}})
        self._refresh(generation)
        on_progress(1.0)

    def _refresh(self, generation: str) -> None:
        self._calls.again(lambda timeout_s: self._whole("POST", f"/{generation}/_refresh", None, timeout_s))

    def _whole(self, method: str, path: str, body: Any, timeout_s: float) -> Any:
        """Return an answer that all shards have given."""
        return _complete(self._calls.once(method, path, body, timeout_s), self._calls.shown)

    def count(self, generation: str) -> int:
        self._refresh(generation)
        answer = self._calls.again(lambda timeout_s: self._whole("GET", f"/{generation}/_count", None, timeout_s))
        return int(answer["count"])

    def digests(self, generation: str) -> NDArray[np.uint64] | None:
        return None

    def keys(self, generation: str, buckets: Sequence[int] | None = None) -> Iterator[pa.Table]:
        """Yield the keys as they were at one moment. Documents without the field of ids come last, 5,000 at most."""
        self._refresh(generation)
        with self._moment(generation) as moment:
            fields = [ID, CONTENT_HASH, ROW_HASH]
            page: dict[str, Any] = {
                "size": PAGE,
                "_source": False,
                "docvalue_fields": fields,
                "track_total_hits": False,
            }
            search = {**page, "sort": [{ID: "asc"}], "query": {"exists": {"field": ID}}}
            while hits := moment(search):
                yield documents.keys_of(hits)
                search["search_after"] = hits[-1]["sort"]
            if hits := moment({**page, "query": {"bool": {"must_not": [{"exists": {"field": ID}}]}}}):
                yield documents.keys_of(hits)

    @contextlib.contextmanager
    def _moment(self, generation: str) -> Iterator[Callable[[Mapping[str, Any]], list[Any]]]:
        """Give searches that all see the index as it is now."""
        ours = self._product.name == OPENSEARCH
        opening = "_search/point_in_time" if ours else "_pit"
        answer = self._calls("POST", f"/{generation}/{opening}?keep_alive={KEEP_ALIVE}")
        found = str(answer["pit_id" if ours else "id"])

        def search(body: Mapping[str, Any]) -> list[Any]:
            nonlocal found
            whole = {**body, "pit": {"id": found, "keep_alive": KEEP_ALIVE}}
            said = self._calls.again(lambda timeout_s: self._whole("POST", "/_search", whole, timeout_s))
            found = said.get("pit_id", found)
            hits: list[Any] = said["hits"]["hits"]
            return hits

        try:
            yield search
        finally:
            closing = ("/_search/point_in_time", {"pit_id": [found]}) if ours else ("/_pit", {"id": found})
            self._calls("DELETE", *closing, fine=(404,))

    def get(self, generation: str, shape: Shape, ids: Sequence[str]) -> pa.Table:
        at_once = max(1, min(PAGE, REQUEST_BYTES // (12 * shape.dim)))
        pieces = [shape.schema.empty_table()]
        for start in range(0, len(ids), at_once):
            found = self._got(generation, ids[start : start + at_once])
            pieces.append(documents.rows_of(found, shape))
        return pa.concat_tables(pieces)

    def _got(self, generation: str, ids: Sequence[str]) -> list[Any]:
        def attempt(timeout_s: float) -> list[Any]:
            answer = self._calls.once("POST", f"/{generation}/_mget", {"ids": list(ids)}, timeout_s)
            found: list[Any] = answer["docs"]
            for one in found:
                if "error" in one:
                    raise Passing(f"{self._calls.shown} can't read a document of {generation}: {reason_of(one)}")
            return found

        return self._calls.again(attempt)

    def search(
        self,
        generation: str,
        shape: Shape,
        vectors: NDArray[np.float32],
        k: int,
        where: Mapping[str, Any] | None = None,
    ) -> list[list[str]]:
        self._refresh(generation)
        candidates = int(self._spec.options.get("num_candidates", 100))
        lines = []
        for vector in vectors:
            body = documents.search(vector, k, where or {}, shape, self._product, candidates)
            lines.append(b"{}\n" + orjson.dumps(body) + b"\n")

        def attempt(timeout_s: float) -> list[list[str]]:
            answer = self._calls.once("POST", f"/{generation}/_msearch", b"".join(lines), timeout_s)
            found = [_complete(one, self._calls.shown) for one in answer["responses"]]
            return [[hit["_id"] for hit in one["hits"]["hits"]] for one in found]

        return self._calls.again(attempt) if lines else []

    def close(self) -> None:
        self._calls.close()


class _Writer:
    """It sends lines to one generation in requests of some MB, several at a time, and reads what became of each."""

    def __init__(
        self, store: OpenSearchStore, generation: str, shape: Shape, number: int, guard: Callable[[], Any]
    ) -> None:
        self._calls, self._generation, self._shape, self._epoch = store._calls, generation, shape, number
        self._guard = guard
        self._threads = ThreadPoolExecutor(int(store._spec.options.get("streams", 2)))

    def upsert(self, rows: pa.Table) -> list[Rejection]:
        """Put the rows there, those that the server takes; return the others."""
        reasons = {**json_values.without_direction(rows, self._shape), **documents.unfit(rows)}
        rejected = [Rejection(id=rows.column(ID)[row].as_py(), reason=why) for row, why in sorted(reasons.items())]
        if reasons:
            rows = rows.filter(pa.array([row not in reasons for row in range(rows.num_rows)]))
        ids = rows.column(ID).to_pylist()
        lines = documents.upserts(rows, self._shape, self._epoch)
        return rejected + [Rejection(id=name, reason=why) for name, why in self._send(ids, lines)]

    def delete(self, ids: Sequence[str]) -> None:
        if refused := self._send(ids, documents.deletes(ids, self._epoch)):
            raise StorageError(f"{self._calls.shown} can't delete {refused[0][0]!r}: {refused[0][1]}")

    def _send(self, ids: Sequence[str], lines: Sequence[bytes]) -> list[Problem]:
        pieces, start, size = [], 0, 0
        for number, line in enumerate(lines):
            if size and size + len(line) > REQUEST_BYTES:
                pieces.append((start, number))
                start, size = number, 0
            size += len(line)
        if lines:
            pieces.append((start, len(lines)))
        problems: list[Problem] = []
        for found in self._threads.map(lambda piece: self._bulk(ids[slice(*piece)], lines[slice(*piece)]), pieces):
            problems += found
        return problems

    def _bulk(self, ids: Sequence[str], lines: Sequence[bytes]) -> list[Problem]:
        """Send lines, and again those that the server had no time for. Return those that it refuses."""
        problems: list[Problem] = []
        left = dict(zip(ids, lines, strict=True))

        def attempt(timeout_s: float) -> None:
            self._guard()
            answer = self._calls.once("POST", f"/{self._generation}/_bulk", b"".join(left.values()), timeout_s)
            items = answer.get("items") or []
            if len(items) != len(left):
                raise Passing(f"{self._calls.shown} answered {len(items)} of {len(left)} items of a bulk request")
            busy = ""
            for name, item in zip(list(left), items, strict=True):
                busy = self._result(name, item, left, problems) or busy
            if left:
                raise Passing(f"{self._calls.shown} has no time for {len(left)} rows: {busy}")

        try:
            self._calls.again(attempt)
        except Rejected as error:
            if len(left) == 1:
                return [*problems, (next(iter(left)), str(error))]
            rest = list(left.items())
            for part in (rest[: len(rest) // 2], rest[len(rest) // 2 :]):
                problems += self._bulk([name for name, _ in part], [line for _, line in part])
        return problems

    def _result(self, name: str, item: Mapping[str, Any], left: dict[str, bytes], problems: list[Problem]) -> str:
        """Take a row that is done out of `left`, or say why the server had no time for it."""
        (result,) = item.values()
        status, why = result["status"], self._calls.safe(reason_of(result))
        if result.get("_id", name) != name:
            raise Passing(f"{self._calls.shown} answered a bulk request for {name!r} with {result['_id']!r}")
        if status in PASSING:
            return why
        if status == 409:
            raise NotOurs(f"a newer sync has written {name!r} to {self._generation}: {why}. Start this feed again")
        if status in (401, 403) or status >= 500:
            raise StorageError(f"{self._calls.shown} can't write {name!r} to {self._generation}: {status}, {why}")
        gone = status == 404 and "error" not in result  # A document that is deleted need not be there.
        if status == 404 and not gone:
            raise NotOurs(f"{self._generation} is gone: {why}. Start the feed again")
        if status >= 300 and not gone:
            problems.append((name, f"{status}, {why}"))
        del left[name]
        return ""

    def close(self) -> None:
        self._threads.shutdown()


class _Loader:
    def __init__(self, writer: _Writer) -> None:
        self._writer = writer

    def load(self, unit: str, rows: Iterable[pa.Table]) -> Loaded:
        return loaded_by(self._writer.upsert, rows)

    def close(self) -> None:
        self._writer.close()


class _Delta:
    def __init__(self, writer: _Writer, commit: Callable[[], None]) -> None:
        self._writer, self._commit = writer, commit

    def upsert(self, rows: pa.Table) -> Sequence[Rejection]:
        return self._writer.upsert(rows)

    def delete(self, ids: pa.Array) -> None:
        self._writer.delete(ids.to_pylist())

    def commit(self) -> None:
        self._commit()


def _complete(answer: Mapping[str, Any], shown: str) -> Any:
    """Return the answer if all shards gave theirs. A missing one looks like missing rows."""
    shards = answer.get("_shards") or {}
    if "error" in answer or shards.get("failed") or answer.get("timed_out"):
        failures = shards.get("failures") or [answer]
        raise Passing(f"{shown} gave a part of an answer: {reason_of(failures[0].get('reason') or failures[0])}")
    return answer


def _own(mapping: Mapping[str, Any]) -> Mapping[str, Any]:
    meta = (mapping.get("mappings") or {}).get("_meta") or {}
    found = meta.get(META)
    return found if isinstance(found, dict) else {}


def _marker_of(mapping: Mapping[str, Any]) -> Marker | None:
    text = _own(mapping).get("marker")
    return Marker.from_json(text) if text else None
