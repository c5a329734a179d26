"""A server on the loopback that answers as OpenSearch or Elasticsearch do, as far as a feed asks.

    with opensearch_server() as server: ... server.url ...; server.faults.at("_bulk", "lost")

It holds documents with external versions, shows them to searches only after a refresh, remembers deleted ones, and
compares vectors exactly. For some requests it does what servers and networks do at bad times. It is no proof of how
either product behaves.
"""

import base64
import contextlib
import copy
import fnmatch
import http.server
import json
import os
import signal
import socket
import struct
import threading
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.feeds.faults import Faults

FAULTS = ("busy", "unavailable", "reset", "lost", "cut", "slow", "partial")
"""429 with Retry-After; 503; the connection reset before, or after, the server did as it was told; half an answer; a
short wait; half of the items or shards without an answer."""
SHORT = "short"
"""A bulk request's answer that lacks an item."""
FAIL, FAIL_AFTER = "fail", "fail after"
"""500 before, or after, the server did as it was told: whoever asked gives up."""
HANG, KILL, KILL_AFTER = "hang", "kill", "kill after"
"""No answer; SIGKILL to `faults.victim` before, or after, the server did as it was told."""
RETRY_AFTER_S, SLOW_S, HANG_S = 0.3, 0.2, 20.0
OPENSEARCH = {"distribution": "opensearch", "number": "2.19.1", "lucene_version": "9.12.1"}
ELASTICSEARCH = {"number": "8.17.0", "build_flavor": "default", "lucene_version": "9.12.0"}


class Refused(Exception):
    def __init__(self, status: int, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.status, self.error = status, {"type": kind, "reason": reason}


@dataclass
class Held:
    """An index."""

    settings: dict[str, Any]
    mappings: dict[str, Any]
    documents: dict[str, dict[str, Any]] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    """Of documents that were deleted, too."""
    visible: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def properties(self) -> dict[str, Any]:
        found: dict[str, Any] = self.mappings["properties"]
        return found


class OpenSearchServer(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.forget()

    def forget(self) -> None:
        """Begin as an empty server."""
        self.version = OPENSEARCH
        self.indexes: dict[str, Held] = {}
        self.aliases: dict[str, set[str]] = {}
        self.moments: dict[str, dict[str, dict[str, Any]]] = {}
        self.faults = Faults(FAULTS)
        self.authorization = ""
        self.max_body = 100 << 20
        self.refused: set[str] = set()
        """Rows with these ids are refused."""
        self.intervals: list[Any] = []
        """All values of refresh_interval that came."""
        self.lock = threading.RLock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that leave in the middle are none of our business."""

    def index(self, name: str) -> Held:
        if name not in self.indexes:
            raise Refused(404, "index_not_found_exception", f"no such index [{name}]")
        return self.indexes[name]


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: OpenSearchServer

    def _serve(self) -> None:
        server = self.server
        size = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(size)
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        parts = [part for part in path.split("/") if part]
        name = next((part for part in parts if part.startswith("_")), self.command if parts else "/")
        fault = server.faults.next(name)
        if fault == "busy":
            return self._answer(429, {"error": {"type": "circuit_breaking_exception"}}, retry_after=True)
        if fault == "unavailable":
            return self._answer(503, {"error": {"type": "cluster_block_exception", "reason": "no master"}})
        if fault == FAIL:
            return self._answer(500, {"error": {"type": "internal", "reason": "injected"}})
        if fault == HANG:
            time.sleep(HANG_S)
        if fault == KILL:
            os.kill(server.faults.victim, signal.SIGKILL)
        if fault == "slow":
            time.sleep(SLOW_S)
        if fault == "reset":
            return self._reset()
        status, answer = self._done(parts, body, partial=fault == "partial")
        if fault == KILL_AFTER:
            os.kill(server.faults.victim, signal.SIGKILL)
        if fault == "lost":
            return self._reset()
        if fault == FAIL_AFTER:
            return self._answer(500, {"error": {"type": "internal", "reason": "injected"}})
        if fault == SHORT:
            answer["items"].pop()
        self._answer(status, answer, cut=fault == "cut")
        return None

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve  # noqa: N815

    def _done(self, parts: list[str], body: bytes, partial: bool) -> tuple[int, Any]:
        given = self.headers.get("Authorization", "")
        try:
            if given != self.server.authorization:
                raise Refused(401, "security_exception", f"unable to authenticate {_unpacked(given)}")
            if len(body) > self.server.max_body:
                raise Refused(413, "too_large", "content too long")
            with self.server.lock:
                return 200, self._do(parts, body, partial)
        except Refused as error:
            return error.status, {"error": error.error, "status": error.status}

    def _do(self, parts: list[str], body: bytes, partial: bool) -> Any:
        server = self.server
        asked = json.loads(body) if body and self.headers["Content-Type"] == "application/json" else {}
        match (self.command, *parts):
            case ("GET",):
                return {"name": "node", "version": server.version}
            case ("GET", pattern, "_mapping"):
                found = fnmatch.filter(server.indexes, pattern)
                if not found and "*" not in pattern:
                    server.index(pattern)
                return {name: {"mappings": copy.deepcopy(server.indexes[name].mappings)} for name in found}
            case ("PUT", name, "_mapping"):
                server.index(name).mappings |= asked
            case ("PUT", name, "_settings"):
                held = server.index(name).settings["index"]
                held |= asked["index"]
                server.intervals.append(held["refresh_interval"])
            case ("PUT", name):
                self._create(name, asked)
            case ("DELETE", "_search", "point_in_time"):
                server.moments.pop(asked["pit_id"][0], None)
            case ("DELETE", "_pit"):
                server.moments.pop(asked["id"], None)
            case ("DELETE", name):
                server.index(name)
                del server.indexes[name]
                for shown in server.aliases.values():
                    shown.discard(name)
            case ("GET", name, "_alias"):
                return self._alias(name)
            case ("POST", "_aliases"):
                self._aliases(asked["actions"])
            case ("POST", name, "_refresh"):
                held = server.index(name)
                if not partial:
                    held.visible = copy.deepcopy(held.documents)
                return _sharded({}, partial)
            case ("GET", name, "_count"):
                return _sharded({"count": len(server.index(name).visible) // (1 + partial)}, partial)
            case ("POST", name, "_bulk"):
                return self._bulk(name, body, partial)
            case ("POST", name, "_mget"):
                held = server.index(name)
                found = [self._got(held, one) for one in asked["ids"]]
                if partial:
                    found[0] = {"_id": found[0]["_id"], "error": {"type": "shard"}}
                return {"docs": found}
            case ("POST", name, "_pit") | ("POST", name, "_search", "point_in_time"):
                moment = f"moment{len(server.moments)}"
                server.moments[moment] = {"index": name, **copy.deepcopy(server.index(name).visible)}
                return {"pit_id": moment, "_shards": {"failed": 0}} if "_search" in parts else {"id": moment}
            case ("POST", "_search"):
                return _sharded(self._page(asked), partial)
            case ("POST", name, "_msearch"):
                lines = [json.loads(line) for line in body.splitlines()][1::2]
                return {"responses": [_sharded(self._nearest(server.index(name), line), partial) for line in lines]}
            case _:
                raise Refused(400, "illegal_argument", f"{self.command} {parts}")
        return {"acknowledged": True}

    def _create(self, name: str, asked: dict[str, Any]) -> None:
        if name in self.server.indexes:
            raise Refused(400, "resource_already_exists_exception", f"index [{name}] already exists")
        if name != name.lower():
            raise Refused(400, "invalid_index_name_exception", f"[{name}] must be lowercase")
        if "wrong" in asked["settings"]["index"]:
            raise Refused(400, "illegal_argument_exception", "unknown setting [index.wrong]")
        self.server.indexes[name] = Held(settings=asked["settings"], mappings=asked["mappings"])

    def _alias(self, name: str) -> Any:
        if name in self.server.indexes:
            return {name: {"aliases": {}}}
        if not self.server.aliases.get(name):
            raise Refused(404, "aliases_not_found_exception", f"alias [{name}] missing")
        return {shown: {"aliases": {name: {}}} for shown in self.server.aliases[name]}

    def _aliases(self, actions: list[dict[str, Any]]) -> None:
        aliases = copy.deepcopy(self.server.aliases)
        for action in actions:
            ((verb, given),) = action.items()
            self.server.index(given["index"])
            shown = aliases.setdefault(given["alias"], set())
            if verb == "add":
                shown.add(given["index"])
            elif given["index"] in shown:
                shown.remove(given["index"])
            else:
                raise Refused(404, "aliases_not_found_exception", f"alias [{given['alias']}] missing")
        self.server.aliases = aliases

    def _bulk(self, name: str, body: bytes, partial: bool) -> Any:
        lines = body.splitlines()
        items: list[Any] = []
        place = 0
        while place < len(lines):
            ((verb, action),) = json.loads(lines[place]).items()
            source = json.loads(lines[place + 1]) if verb == "index" else None
            place += 1 if source is None else 2
            try:
                if partial and len(items) % 2:
                    raise Refused(
                        429, "es_rejected_execution_exception", "rejected execution of coordinating operation"
                    )
                status = self._write(name, action, source)
                items.append({verb: {"_id": action["_id"], "status": status}})
            except Refused as error:
                items.append({verb: {"_id": action["_id"], "status": error.status, "error": error.error}})
        return {"errors": any("error" in next(iter(item.values())) for item in items), "items": items}

    def _write(self, name: str, action: dict[str, Any], source: Any) -> int:
        held, own, version = self.server.index(name), action["_id"], action["version"]
        if action["version_type"] != "external_gte" or not own or len(own.encode()) > 512:
            raise Refused(400, "action_request_validation_exception", f"{action}")
        if own in self.server.refused:
            raise Refused(400, "mapper_parsing_exception", f"failed to parse document {own!r}")
        if held.versions.get(own, 0) > version:
            raise Refused(409, "version_conflict_engine_exception", f"current version [{held.versions[own]}] is higher")
        if source is not None:
            _parsed(held, source)
        known = own in held.documents
        held.versions[own] = version
        if source is None:
            held.documents.pop(own, None)
            return 200 if known else 404
        held.documents[own] = source
        return 200 if known else 201

    def _got(self, held: Held, own: str) -> Any:
        found = held.documents.get(own)
        return {"_id": own, "found": False} if found is None else {"_id": own, "found": True, "_source": found}

    def _page(self, asked: dict[str, Any]) -> Any:
        moment = self.server.moments.get(asked["pit"]["id"])
        if moment is None:
            raise Refused(404, "search_context_missing_exception", "No search context found")
        found = sorted(
            (one.get("id"), own) for own, one in moment.items() if own != "index" and _fits(one, asked["query"])
        )
        after = asked.get("search_after")
        hits = []
        for value, own in found:
            if after is None or value > after[0]:
                fields = {name: [moment[own][name]] for name in asked["docvalue_fields"] if name in moment[own]}
                hits.append({"_id": own, "fields": fields, "sort": [value]})
        return {"pit_id": asked["pit"]["id"], "hits": {"hits": hits[: asked["size"]]}}

    def _nearest(self, held: Held, asked: dict[str, Any]) -> Any:
        ours = self.server.version is OPENSEARCH
        if ours:
            ((column, wanted),) = asked["query"]["knn"].items()
            query = wanted["vector"]
        else:
            wanted = asked["knn"]
            column, query = wanted["field"], wanted["query_vector"]
            assert wanted["num_candidates"] >= wanted["k"]
        mapped = held.properties[column]
        metric = mapped["method"]["space_type"] if ours else mapped["similarity"]
        bits = mapped.get("data_type") == "binary" or mapped.get("element_type") == "bit"
        scored = [
            (-_closeness(metric, bits, query, one[column]), own)
            for own, one in held.visible.items()
            if _fits(one, wanted.get("filter", {}))
        ]
        return {"hits": {"hits": [{"_id": own} for _, own in sorted(scored)[: wanted["k"]]]}}

    def _answer(self, status: int, answer: Any, *, cut: bool = False, retry_after: bool = False) -> None:
        body = json.dumps(answer).encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if retry_after:
            self.send_header("Retry-After", str(RETRY_AFTER_S))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if cut else body)
        self.wfile.flush()
        if cut:
            self._reset()

    def _reset(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            # Closing without lingering sends a reset.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.shutdown(socket.SHUT_RD)
            self.connection.close()

    def finish(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            super().finish()


def _unpacked(authorization: str) -> str:
    kind, _, given = authorization.partition(" ")
    return base64.b64decode(given).decode() if kind == "Basic" else given


def _sharded(answer: dict[str, Any], partial: bool) -> dict[str, Any]:
    failures = {"failures": [{"reason": {"type": "node_not_connected", "reason": "gone"}}]} if partial else {}
    return {**answer, "_shards": {"total": 2, "failed": int(partial), **failures}}


def _parsed(held: Held, source: dict[str, Any]) -> None:
    """Refuse what a mapping doesn't take."""
    for name, kind in held.properties.items():
        value = source.get(name)
        if kind["type"] in ("knn_vector", "dense_vector"):
            dim = kind.get("dimension") or kind["dims"]
            bits = kind.get("data_type") == "binary" or kind.get("element_type") == "bit"
            if len(value) != (dim // 8 if bits else dim) or not all(isinstance(one, int | float) for one in value):
                raise Refused(400, "mapper_parsing_exception", f"{len(value)} numbers for {dim} dimensions")
        elif value is not None and kind["type"] == "long" and not all(isinstance(one, int) for one in _flat(value)):
            raise Refused(400, "mapper_parsing_exception", f"failed to parse field [{name}]")


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        for one in value:
            yield from _flat(one)
    elif value is not None:
        yield value


def _fits(source: dict[str, Any], query: dict[str, Any]) -> bool:
    if not query:
        return True
    ((kind, given),) = query.items()
    if kind == "exists":
        return source.get(given["field"]) is not None
    if kind == "term":
        ((name, value),) = given.items()
        return value in list(_flat(source.get(name)))
    return all(_fits(source, one) for one in given.get("filter", [])) and not any(
        _fits(source, one) for one in given.get("must_not", [])
    )


def _closeness(metric: str, bits: bool, query: list[Any], vector: list[Any]) -> float:
    if bits:
        different = np.array(query, np.int8).view(np.uint8) ^ np.array(vector, np.int8).view(np.uint8)
        return -float(np.unpackbits(different).sum())
    one, two = np.array(query, np.float64), np.array(vector, np.float64)
    if metric in ("l2", "l2_norm"):
        return -float(((one - two) ** 2).sum())
    product = float(one @ two)
    return product / float(np.linalg.norm(one) * np.linalg.norm(two)) if "cosine" in metric else product


@contextlib.contextmanager
def opensearch_server() -> Iterator[OpenSearchServer]:
    with OpenSearchServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
