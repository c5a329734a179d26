"""One request goes to OpenSearch or Elasticsearch by HTTP, and its answer or an error of ours comes back.

What passes is tried again for a limited time: this file tells such errors from others, and translates them. It knows
the products' statuses and types of errors, and nothing of rows and generations.
"""

import base64
import urllib.parse
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import orjson
import urllib3
from urllib3.exceptions import HTTPError, MaxRetryError, NewConnectionError, SSLError

from pipeline.errors import ConfigError, StorageError
from pipeline.feeds.patience import Passing, Patience
from pipeline.feeds.store import NotOurs, Rejected
from pipeline.redaction import redacted_url

T = TypeVar("T")
PASSING = frozenset({408, 429, 502, 503, 504})
PORT = 9200


class Calls:
    """It is a pool of connections to one cluster, which are made when they are needed."""

    def __init__(self, url: str, options: Mapping[str, Any], timeout_s: float) -> None:
        self.shown = redacted_url(url)
        self._url, user, password = _address(url, self.shown)
        self._secrets = [str(one) for one in (options.get("api_key"), options.get("password"), password) if one]
        self._headers = {"Accept": "application/json", "Content-Type": "application/json"}
        user, password = options.get("username", user), options.get("password", password)
        if options.get("api_key"):
            self._headers["Authorization"] = f"ApiKey {options['api_key']}"
        elif user:
            given = base64.b64encode(f"{user}:{password or ''}".encode()).decode()
            self._headers["Authorization"] = f"Basic {given}"
        self._headers |= dict(options.get("headers") or {})
        settings: dict[str, Any] = {"maxsize": 8, "retries": False}
        if options.get("ca_certs"):
            settings["ca_certs"] = options["ca_certs"]
        if not options.get("verify_certs", True):
            settings |= {"cert_reqs": "CERT_NONE", "assert_hostname": False}
        self._pool = urllib3.PoolManager(**settings)
        self.patience = Patience(timeout_s)

    def __call__(self, method: str, path: str, body: Any = None, *, fine: tuple[int, ...] = ()) -> Any:
        """Return the JSON of an answer. The request may arrive more than once. Answers with a status among `fine` are no
        errors."""
        return self.again(lambda timeout_s: self.once(method, path, body, timeout_s, fine=fine))

    def again(self, attempt: Callable[[float], T]) -> T:
        """Return what `attempt` returns at last, which makes requests with `once` and may be made many times."""
        return self.patience.until_answered(attempt)

    def once(self, method: str, path: str, body: Any, timeout_s: float, *, fine: tuple[int, ...] = ()) -> Any:
        headers = self._headers
        if isinstance(body, bytes):
            headers = {**headers, "Content-Type": "application/x-ndjson"}
        elif body is not None:
            body = orjson.dumps(body)
        try:
            answer = self._pool.request(
                method, self._url + path, body=body, headers=headers, timeout=urllib3.Timeout(total=timeout_s)
            )
            content = answer.data
        except HTTPError as error:
            raise self._broken(method, path, error) from None
        said = _parsed(content)
        if answer.status < 300 or answer.status in fine:
            if said is None and content:
                raise Passing(f"{self.shown} answered {method} {path} with half of an answer")
            return said if isinstance(said, dict) else {}
        raise self._translated(method, path, answer, said, content)

    def close(self) -> None:
        self._pool.clear()

    def _broken(self, method: str, path: str, error: HTTPError) -> Exception:
        if isinstance(error, MaxRetryError) and error.reason is not None:
            error = error.reason  # type: ignore[assignment]
        said = f"no answer to {method} {path} from {self.shown}: {self.safe(str(error) or type(error).__name__)}"
        if isinstance(error, SSLError):
            return StorageError(f"{said}. Give the certificate of its authority as feeds.options.ca_certs")
        return Passing(said, unreachable=isinstance(error, NewConnectionError))

    def _translated(self, method: str, path: str, answer: Any, said: Any, content: bytes) -> Exception:
        status = answer.status
        why = f"{self.shown} answered {method} {path} with {status}: {self.safe(reason_of(said, content))}"
        if status in PASSING:
            return Passing(why, after_s=_retry_after(answer.headers.get("Retry-After")))
        if status == 413:
            return Rejected(f"{why}: the request is larger than the server takes")
        if status in (401, 403):
            return StorageError(
                f"{why}. Give feeds.options.api_key, or a name and a password in feeds.url, with the rights to manage and "
                "to write indexes of the feed's name"
            )
        if status == 404:
            return NotOurs(f"{why}. Somebody removed what the feed works on: start the feed again")
        if status < 500:
            return Rejected(why)
        return StorageError(f"{why}. See the server's log, then start the feed again: it goes on where it was")

    def safe(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text[:1000]


def reason_of(said: Any, content: bytes = b"") -> str:
    """Return why a request or one of its items failed, as the server says it."""
    error = said.get("error", said) if isinstance(said, dict) else said
    if isinstance(error, dict):
        caused = error.get("caused_by") or {}
        words = [error.get("type"), error.get("reason"), caused.get("reason") if isinstance(caused, dict) else None]
        return ": ".join(str(word) for word in words if word) or "no reason given"
    return str(error) if error else content[:200].decode(errors="replace")


def _parsed(content: bytes) -> Any:
    try:
        return orjson.loads(content) if content else None
    except orjson.JSONDecodeError:
        return None


def _address(url: str, shown: str) -> tuple[str, str | None, str | None]:
    """Return the address without its name and password, and these."""
    parts = urllib.parse.urlsplit(url if "://" in url else f"http://{url}")
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or port == -1:
        raise ConfigError(f"feeds.url is {shown!r}; give the cluster's address such as http://localhost:{PORT}")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    port = port or (443 if parts.scheme == "https" else PORT)
    user, password = (urllib.parse.unquote(one) if one else None for one in (parts.username, parts.password))
    return f"{parts.scheme}://{host}:{port}{parts.path.rstrip('/')}", user, password


def _retry_after(value: str | None) -> float:
    try:
        return max(0.0, float(value or 0))
    except ValueError:
        return 0.0
