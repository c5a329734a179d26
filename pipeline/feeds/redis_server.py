"""One connection to a Redis server, whose errors become this project's, and transactions that depend on a key.

This file knows no feed. All that is tried again here may be done twice.
"""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from pipeline.errors import InputError, StorageError, StorageUnavailable, StorageUnreachable
from pipeline.feeds.redis_rows import message
from pipeline.storage.retry import persistently

FIRST_CONNECT_S = 5.0
"""An address where nobody answers for so long before any work is taken for a wrong one."""
POLL_S = 0.05

Result = TypeVar("Result")

_PASSING = (redis.ConnectionError, redis.TimeoutError, redis.BusyLoadingError)


class Server:
    """A connection that is opened at its first use."""

    def __init__(self, url: str, options: Mapping[str, Any], timeout_s: float) -> None:
        self._url, self._options, self._timeout = url, dict(options), timeout_s
        self._opened: Any = None
        self._answered = False

    @property
    def client(self) -> Any:
        if self._opened is None:
            try:
                self._opened = redis.Redis.from_url(
                    self._url,
                    **{
                        "socket_timeout": self._timeout,
                        "socket_connect_timeout": min(self._timeout, FIRST_CONNECT_S),
                        "retry": Retry(NoBackoff(), 0),
                        **self._options,
                        "protocol": 2,  # whose answers are the same in every version of the module
                        "decode_responses": False,
                    },
                )
            except Exception as error:  # it checks addresses and options by many kinds of errors
                raise InputError(
                    f"feeds.url or feeds.options can't work for Redis: {self.said(error)}; expected an address such as "
                    "redis://host:6379/0, and options of redis.Redis"
                ) from None
        return self._opened

    def patiently(self, attempt: Callable[[Any], Result]) -> Result:
        """Return what `attempt` returns, tried again while errors pass; raise ours instead of Redis's."""

        def patience(error: BaseException) -> float:
            if not isinstance(error, _PASSING) or isinstance(error, redis.AuthenticationError):
                return 0.0
            return self._timeout if self._answered else min(self._timeout, FIRST_CONNECT_S)

        try:
            found = persistently(lambda: attempt(self.client), patience)
        except (redis.RedisError, TypeError) as error:
            raise self.translated(error) from None
        self._answered = True
        return found

    def translated(self, error: Exception) -> Exception:
        said = self.said(error)
        if isinstance(error, redis.AuthenticationError | redis.exceptions.NoPermissionError):
            return InputError(
                f"Redis at {self._url} doesn't let this user in: {said}; check user and password in feeds.url, and "
                "the user's ACL"
            )
        if isinstance(error, TypeError):
            return InputError(f"feeds.options can't work for Redis: {said}; expected options of redis.Redis")
        if isinstance(error, _PASSING):
            if not self._answered:
                return StorageUnreachable(f"no Redis answers at {self._url}: {said}; check feeds.url")
            return StorageUnavailable(
                f"Redis at {self._url} gave no answer in {self._timeout:g} s: {said}; start again"
            )
        if "unknown command" in said.lower() and "ft." in said.lower():
            return InputError(f"Redis at {self._url} has no search module: take Redis 8 or Redis Stack")
        return StorageError(f"Redis at {self._url} refused: {said}")

    def said(self, error: Exception) -> str:
        said = str(error)
        secret = self._options.get("password")
        return said.replace(secret, "***") if isinstance(secret, str) and secret else said

    def transaction(self, change: Callable[[Any], None], key: str) -> None:
        """Let `change` read, and then queue what happens only if `key` has not changed meanwhile."""

        def attempt(client: Any) -> None:
            while True:
                with client.pipeline() as pipe:
                    pipe.watch(key)
                    change(pipe)
                    try:
                        pipe.execute()
                        return
                    except redis.WatchError:
                        time.sleep(random.uniform(0, POLL_S))

        self.patiently(attempt)

    def made_durable(self) -> None:
        """Wait until all that this connection wrote is in the log on the disk, where the server keeps one."""

        def wait(client: Any) -> None:
            if not client.info("persistence").get("aof_enabled"):
                return
            try:
                client.execute_command("WAITAOF", 1, 0, int(self._timeout * 1000))
            except redis.ResponseError as error:
                if "unknown command" not in str(error).lower():  # before Redis 7.2
                    raise

        self.patiently(wait)

    def index_info(self, client: Any, name: str) -> dict[str, Any] | None:
        try:
            found = client.execute_command("FT.INFO", name)
        except redis.ResponseError as error:
            if "unknown" in str(error).lower() and "command" not in str(error).lower():
                return None
            if "no such index" in str(error).lower():
                return None
            raise
        pairs = found.items() if isinstance(found, dict) else zip(found[::2], found[1::2], strict=True)
        return {text(key): value for key, value in pairs}

    def exchange(self, key: str, check: Callable[[bytes | None], None], commands: Sequence[bytes]) -> None:
        """Make a transaction of commands, as they are sent, if `check` raises nothing at the value of `key`, and the value
        has not changed meanwhile."""
        sent = b"".join([message(b"MULTI"), *commands, message(b"EXEC")])

        def attempt(client: Any) -> None:
            made = False
            while not made:
                with client.pipeline() as pipe:
                    pipe.watch(key)
                    check(pipe.get(key))
                    made = _exchanged(pipe, sent, len(commands) + 1)

        self.patiently(attempt)

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()
            self._opened = None


def _exchanged(pipe: Any, sent: bytes, acknowledged: int) -> bool:
    """Send a transaction that is written out, over the connection that watches. Return whether it was made."""
    connection = pipe.connection
    try:
        connection.send_packed_command([sent])
        for _ in range(acknowledged):
            connection.read_response()
        results = connection.read_response()
    except BaseException:
        connection.disconnect()  # Other answers are still on their way.
        raise
    finally:
        pipe.watching = False
    for result in results or ():
        if isinstance(result, Exception):
            raise result
    return results is not None


def text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
