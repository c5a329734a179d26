"""One call goes to Qdrant by gRPC, and its answer or an error of ours comes back.

What passes is tried again for a limited time: this file tells such errors from others, and translates them. It knows
Qdrant's methods by their names, and nothing of rows and generations.
"""

import re
import urllib.parse
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import grpc
from qdrant_client import grpc as api

from pipeline.errors import ConfigError, StorageError
from pipeline.feeds.patience import Passing, Patience
from pipeline.feeds.store import NotOurs, Rejected
from pipeline.redaction import redacted_url

T = TypeVar("T")

PORT, HTTP_PORT = 6334, 6333
"""Qdrant listens for gRPC at the first, and for HTTP at the second."""

_ANSWERS: Mapping[str, Any] = {
    "Points/Upsert": api.PointsOperationResponse,
    "Points/Delete": api.PointsOperationResponse,
    "Points/CreateFieldIndex": api.PointsOperationResponse,
    "Points/Get": api.GetResponse,
    "Points/Scroll": api.ScrollResponse,
    "Points/Count": api.CountResponse,
    "Points/QueryBatch": api.QueryBatchResponse,
    "Collections/Get": api.GetCollectionInfoResponse,
    "Collections/List": api.ListCollectionsResponse,
    "Collections/CollectionExists": api.CollectionExistsResponse,
    "Collections/Create": api.CollectionOperationResponse,
    "Collections/Update": api.CollectionOperationResponse,
    "Collections/Delete": api.CollectionOperationResponse,
    "Collections/UpdateAliases": api.CollectionOperationResponse,
    "Collections/ListAliases": api.ListAliasesResponse,
    "Qdrant/HealthCheck": api.HealthCheckReply,
}
"""It maps the methods that are used to their answers."""

_PASSING = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.ABORTED}
_BROKEN = re.compile(r"RST_STREAM|stream removed|GOAWAY|connection reset|socket closed", re.IGNORECASE)
"""A connection that breaks in the middle of an answer has these in its message, under several codes."""
_NOBODY = re.compile(r"failed to connect|connection refused|DNS resolution|name resolution", re.IGNORECASE)
_TOO_LARGE = re.compile(r"larger than max|message length too large|payload too large", re.IGNORECASE)
"""Several codes have it, among them the one of a server that is busy."""


class Calls:
    """It is a connection to one Qdrant, which is made at the first call."""

    def __init__(self, url: str, options: Mapping[str, Any], timeout_s: float) -> None:
        self._shown = redacted_url(url)
        self._target, self._tls = _target(url, self._shown)
        self._options = options
        self._channel: grpc.Channel | None = None
        self._methods: dict[str, Any] = {}
        self.patience = Patience(timeout_s)

    def __call__(self, method: str, request: Any) -> Any:
        """Return the answer to a message, which may be ready bytes. The call may arrive more than once."""
        return self.again(lambda timeout_s: self.once(method, request, timeout_s))

    def again(self, attempt: Callable[[float], T]) -> T:
        """Return what `attempt` returns at last, which makes calls with `once` and may be made many times."""
        return self.patience.until_answered(attempt)

    def once(self, method: str, request: Any, timeout_s: float) -> Any:
        try:
            answer = self._method(method)(request, timeout=timeout_s, metadata=self._metadata())
        except grpc.RpcError as error:
            raise self._translated(method, error) from None
        if isinstance(answer, api.PointsOperationResponse) and answer.result.status != api.UpdateStatus.Completed:
            state = api.UpdateStatus.Name(answer.result.status)
            raise Passing(f"Qdrant at {self._shown} took {method}, but has not applied it: {state}")
        return answer

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()
        self._channel, self._methods = None, {}

    def _method(self, name: str) -> Any:
        if self._channel is None:
            given = dict(self._options.get("grpc_options") or {})
            settings = [(key, value) for key, value in {**_UNLIMITED, **given}.items()]
            if self._tls:
                roots = _file(self._options.get("root_certificates"))
                self._channel = grpc.secure_channel(self._target, grpc.ssl_channel_credentials(roots), settings)
            else:
                self._channel = grpc.insecure_channel(self._target, settings)
        if name not in self._methods:
            self._methods[name] = self._channel.unary_unary(
                f"/qdrant.{name}",
                request_serializer=lambda request: (
                    request if isinstance(request, bytes) else request.SerializeToString()
                ),
                response_deserializer=_ANSWERS[name].FromString,
            )
        return self._methods[name]

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        key = self._options.get("api_key")
        return (("api-key", str(key)),) if key else ()

    def _translated(self, method: str, error: Any) -> Exception:
        code, details = error.code(), error.details() or ""
        said = f"Qdrant at {self._shown}: {method} ended with {code.name}: {self._safe(details)}"
        if code == grpc.StatusCode.INVALID_ARGUMENT or _TOO_LARGE.search(details):
            return Rejected(said)
        if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
            return Passing(said, after_s=_retry_after(error))
        if code in _PASSING or _BROKEN.search(details):
            hint = f" (is {self._target} its gRPC port? {PORT} is the usual one)" if _NOBODY.search(details) else ""
            return Passing(said + hint, unreachable=bool(_NOBODY.search(details)))
        if code == grpc.StatusCode.NOT_FOUND:
            return NotOurs(f"{said}. Somebody removed what the feed works on: start the feed again")
        if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
            return StorageError(f"{said}. Give a key that may write as feeds.options.api_key")
        if code == grpc.StatusCode.UNIMPLEMENTED:
            return StorageError(f"{said}. The server is too old: Qdrant 1.16 or newer is needed")
        return StorageError(f"{said}. See the server's log, then start the feed again: it goes on where it was")

    def _safe(self, details: str) -> str:
        key = str(self._options.get("api_key") or "")
        return details.replace(key, "***") if key else details


_UNLIMITED = {"grpc.max_send_message_length": -1, "grpc.max_receive_message_length": -1}


def _target(url: str, shown: str) -> tuple[str, bool]:
    """Return host:port, and whether the connection is encrypted."""
    parts = urllib.parse.urlsplit(url if "//" in url else f"//{url}")
    try:
        port = parts.port
    except ValueError:
        port = -1
    wrong = parts.scheme not in ("", "http", "https", "grpc", "grpcs") or parts.path not in ("", "/") or port == -1
    if wrong or not parts.hostname or parts.query:
        raise ConfigError(f"feeds.url is {shown!r}; give Qdrant's address such as http://localhost:{PORT}")
    if parts.username or parts.password:
        raise ConfigError(f"feeds.url is {shown!r}; give the key as feeds.options.api_key rather than in the address")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{host}:{PORT if port in (None, HTTP_PORT) else port}", parts.scheme in ("https", "grpcs")


def _file(path: Any) -> bytes | None:
    if path is None:
        return None
    try:
        with open(str(path), "rb") as file:
            return file.read()
    except OSError as error:
        raise ConfigError(f"can't read feeds.options.root_certificates {path!r}: {error.strerror}") from None


def _retry_after(error: Any) -> float:
    for key, value in error.trailing_metadata() or ():
        if key.lower() == "retry-after":
            try:
                return max(0.0, float(value))
            except ValueError:
                return 0.0
    return 0.0
