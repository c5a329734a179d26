"""One connection to a Chroma server, whose errors become this project's.

This file knows no feed. All that is tried again here may be done twice.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import urlsplit

import chromadb
import httpx
from chromadb.config import Settings
from chromadb.errors import (
    AuthorizationError,
    ChromaAuthError,
    ChromaError,
    NotFoundError,
    RateLimitError,
)

from pipeline.errors import InputError, StorageError, StorageUnavailable, StorageUnreachable
from pipeline.storage.retry import persistently

OPTIONS = ("headers", "tenant", "database", "ssl")
FIRST_CONNECT_S = 5.0
"""An address where nobody answers for so long before any work is taken for a wrong one."""

Result = TypeVar("Result")


class Busy(Exception):
    """The server asks to come back later."""

    def __init__(self, status: int, retry_after_s: float) -> None:
        super().__init__(f"HTTP status {status}")
        self.retry_after_s = retry_after_s


class Denied(Exception):
    """The server doesn't know the user, or doesn't let it do this."""


_PASSING = (httpx.TransportError, Busy, RateLimitError)


class Server:
    """A connection that is opened at its first use."""

    def __init__(self, url: str, options: Mapping[str, Any], timeout_s: float) -> None:
        self._url, self._options, self._timeout = url, dict(options), timeout_s
        self._opened: Any = None
        self._answered = False

    @property
    def client(self) -> Any:
        if self._opened is None:
            self._opened = self._connected()
        return self._opened

    def _connected(self) -> Any:
        unknown = sorted(set(self._options) - set(OPTIONS))
        if unknown:
            raise InputError(f"feeds.options names {unknown}; a Chroma feed takes {', '.join(OPTIONS)}")
        try:
            parts = urlsplit(self._url)
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/"):
                raise ValueError("no such address")
            port = parts.port or (443 if parts.scheme == "https" else 8000)
        except ValueError as error:
            raise InputError(f"feeds.url is {self._url!r}: {error}; give an address such as http://host:8000") from None
        options = {"ssl": parts.scheme == "https", **self._options}
        settings = Settings(anonymized_telemetry=False)
        try:
            client = chromadb.HttpClient(host=parts.hostname, port=port, settings=settings, **options)
        except ValueError as error:
            if "Could not connect" in str(error):
                raise httpx.ConnectError("nobody answers") from None
            raise Denied(str(error)) from None
        except NotFoundError as error:
            raise Denied(str(error)) from None
        for session in _sessions(client):  # They would wait for ever, and hide the status of an answer.
            session.timeout = httpx.Timeout(self._timeout)
            session.event_hooks = {"response": [_looked_at]}
        return client

    def patiently(self, attempt: Callable[[Any], Result]) -> Result:
        """Return what `attempt` returns, tried again while errors pass; raise ours instead of Chroma's. NotFoundError goes
        through."""

        def patience(error: BaseException) -> float:
            if not isinstance(error, _PASSING):
                return 0.0
            return self._timeout if self._answered else min(self._timeout, FIRST_CONNECT_S)

        def tried() -> Result:
            try:
                return attempt(self.client)
            except Busy as error:
                time.sleep(min(error.retry_after_s, self._timeout))
                raise

        try:
            found = persistently(tried, patience)
        except NotFoundError:
            self._answered = True
            raise
        except (ChromaError, httpx.HTTPError, Busy, Denied) as error:
            raise self.translated(error) from None
        self._answered = True
        return found

    def translated(self, error: Exception) -> Exception:
        said = self._said(error)
        if isinstance(error, Denied | AuthorizationError | ChromaAuthError):
            return InputError(
                f"Chroma at {self._url} doesn't let this user in: {said}; check headers, tenant and database in feeds.options"
            )
        if isinstance(error, _PASSING):
            if not self._answered and not isinstance(error, Busy):
                return StorageUnreachable(f"no Chroma answers at {self._url}: {said}; check feeds.url")
            return StorageUnavailable(
                f"Chroma at {self._url} gave no answer in {self._timeout:g} s: {said}; start again"
            )
        return StorageError(f"Chroma at {self._url} refused: {said}")

    def _said(self, error: Exception) -> str:
        said = str(error) or type(error).__name__
        headers = self._options.get("headers")
        for secret in headers.values() if isinstance(headers, Mapping) else ():
            for word in str(secret).split():
                said = said.replace(word, "***") if len(word) > 7 else said
        return said

    def close(self) -> None:
        if self._opened is not None:
            for session in _sessions(self._opened):
                session.close()
            self._opened.close()
            self._opened = None


def _sessions(client: Any) -> list[httpx.Client]:
    """Return the client's sessions: a second one looks for tenants and databases."""
    servers = [getattr(one, "_server", None) for one in (client, getattr(client, "_admin_client", None))]
    found = [getattr(server, "_session", None) for server in servers]
    return [session for session in found if isinstance(session, httpx.Client)]


def _looked_at(response: httpx.Response) -> None:
    if response.status_code in (408, 429, 502, 503, 504):
        wait = response.headers.get("Retry-After", "")
        raise Busy(response.status_code, float(wait) if wait.isdigit() else 0.0)
    if response.status_code in (401, 403):
        raise Denied(f"HTTP status {response.status_code}")
