"""One connection to a Milvus server, whose errors become this project's.

This file knows no feed. pymilvus tries its own calls again by itself, for as long as their timeout; `called` is for messages
that are built here.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import grpc
from pymilvus import MilvusClient, MilvusException

from pipeline.errors import InputError, StorageError, StorageUnavailable, StorageUnreachable
from pipeline.storage.retry import persistently

# It logs every error with a traceback, also those that are expected here.
logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
logging.getLogger("pymilvus.decorators").setLevel(logging.CRITICAL)

_PASSING = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED}
_DENIED = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}
INVALID = 1100
"""A server gives this code where a row is wrong."""
_RATE_LIMIT = 8
_NO_COLLECTION = 100


POLL_S = 0.1


class Server:
    """A connection that is opened at its first use."""

    def __init__(self, url: str, options: Mapping[str, Any], timeout_s: float) -> None:
        self._url, self._options, self.timeout_s = url, dict(options), timeout_s
        self._opened: Any = None

    @property
    def database(self) -> str:
        return str(self._options.get("db_name", ""))

    @property
    def client(self) -> Any:
        if self._opened is None:
            try:
                self._opened = MilvusClient(self._url, timeout=self.timeout_s, **self._options)
            except MilvusException as error:
                raise self.translated(error, StorageUnreachable) from None
            except Exception as error:  # it checks addresses and options by many kinds of errors
                raise InputError(
                    f"feeds.url or feeds.options can't work for Milvus: {self.said(error)}; expected an address such as "
                    "http://host:19530, and options of pymilvus.MilvusClient"
                ) from None
        return self._opened

    @property
    def handler(self) -> Any:
        return self.client._get_connection()

    @contextlib.contextmanager
    def reported(self) -> Iterator[None]:
        try:
            yield
        except (MilvusException, grpc.RpcError) as error:
            raise self.translated(error, StorageUnavailable) from None

    def translated(self, error: Exception, passing: type[StorageUnavailable]) -> Exception:
        said = self.said(error)
        code = error.code() if isinstance(error, grpc.RpcError) else getattr(error, "code", None)
        lower = said.lower()
        if code in _DENIED or "auth check failure" in lower or "permission deny" in lower or "unauthenticated" in lower:
            return InputError(
                f"Milvus at {self._url} doesn't let this user in: {said}; check user, password or token in "
                "feeds.options, and the privileges"
            )
        if "fail connecting" in lower or "illegal connection params" in lower:
            return StorageUnreachable(f"no Milvus answers at {self._url}: check feeds.url")
        if code in _PASSING or code == _RATE_LIMIT or "timeout" in lower or "retry run out" in lower:
            return passing(f"Milvus at {self._url} gave no answer in {self.timeout_s:g} s: {said}; start again")
        return StorageError(f"Milvus at {self._url} refused: {said}")

    def said(self, error: Exception) -> str:
        said = (error.details() or str(error.code())) if isinstance(error, grpc.RpcError) else ""
        said = said or str(getattr(error, "message", "") or error)
        for name in ("password", "token"):
            secret = self._options.get(name)
            if isinstance(secret, str) and secret:
                said = said.replace(secret, "***")
        return said

    def patiently(self, attempt: Callable[[], Any]) -> Any:
        """Return what `attempt` returns, tried again while errors pass; pymilvus does so by itself in its own calls."""

        def patience(error: BaseException) -> float:
            code = error.code() if isinstance(error, grpc.RpcError) else getattr(error, "code", None)
            return self.timeout_s if code in _PASSING or code == _RATE_LIMIT else 0.0

        return persistently(attempt, patience)

    def called(self, method: str, request: Any) -> Any:
        response = getattr(self.handler._stub, method)(request, timeout=self.timeout_s)
        status = response.status
        if status.code or status.error_code:
            raise MilvusException(status.code or status.error_code, status.reason, status.error_code)
        return response

    def described(self, name: str) -> Any:
        """Return what Milvus says of a collection, None if there is none."""
        try:
            return self.client.describe_collection(name, timeout=self.timeout_s)
        except MilvusException as error:
            if error.code == _NO_COLLECTION or "can't find collection" in str(error.message):
                return None
            raise

    def properties(self, generation: str) -> Mapping[str, str] | None:
        found = self.described(generation)
        return None if found is None else dict(found.get("properties", {}))

    def set(self, generation: str, properties: Mapping[str, str]) -> None:
        self.client.alter_collection_properties(generation, dict(properties), timeout=self.timeout_s)

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()
            self._opened = None
