"""A proxy on the loopback before a real object store that, for some requests, does what stores and networks do at bad times.

    with fault_proxy("127.0.0.1:9000", rate=0.05, seed=1) as proxy: ... storage_options with proxy.url ...

Counts the requests that came, by kind, and the faults. Ends with the block.
"""

import contextlib
import http.client
import http.server
import random
import socket
import struct
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Iterator

FAULTS = ("slowdown", "reset", "slow", "cut", "lost")
"""503 SlowDown; the connection reset before, or after, the store did as it was told; a second's wait; half an answer."""
HANG = "hang"
"""No answer, and the connection stays open: longer than any client waits."""
EXPIRED = "expired"
"""400 ExpiredToken: the keys were lent for some hours, and these have passed."""
SLOW_S, HANG_S = 1.0, 90.0
_SLOW_DOWN = (
    b'<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>'
)
_EXPIRED = (
    b'<?xml version="1.0"?><Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>'
)


class Proxy(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, upstream: str, rate: float, seed: int, faults: tuple[str, ...]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = upstream
        self.rate = rate
        """Share of requests that get a fault; may change at any time."""
        self.faults = faults
        self.requests: Counter[str] = Counter()
        self.faulty: Counter[str] = Counter()
        self.upstream_s = 0.0
        """Seconds that the store took for its answers, summed over requests."""
        self._chance = random.Random(seed)
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def fault(self, kind: str) -> str:
        """Counts the request; the fault that it gets, or nothing."""
        with self._lock:
            self.requests[kind] += 1
            if self._chance.random() >= self.rate:
                return ""
            chosen = self._chance.choice(self.faults)
            self.faulty[chosen] += 1
            return chosen

    def answered(self, seconds: float) -> None:
        with self._lock:
            self.upstream_s += seconds

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that leave in the middle are none of our business."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.server.fault(_kind(self.command, self.path))
        if fault == "slowdown":
            self._answer(503, {"Content-Type": "application/xml"}, _SLOW_DOWN)
        elif fault == EXPIRED:
            self._answer(400, {"Content-Type": "application/xml"}, _EXPIRED)
        elif fault == "reset":
            self._reset()
        elif fault == HANG:
            time.sleep(HANG_S)
            self._reset()
        else:
            if fault == "slow":
                time.sleep(SLOW_S)
            started = time.perf_counter()
            status, headers, answer = self._forward(body)
            self.server.answered(time.perf_counter() - started)
            if fault == "lost":
                self._reset()
            elif fault == "cut":
                self._answer(status, headers, answer, sent=len(answer) // 2)
                self._reset()
            else:
                self._answer(status, headers, answer)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve  # noqa: N815

    def _forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        upstream = http.client.HTTPConnection(self.server.upstream, timeout=60)
        with contextlib.closing(upstream):
            # The host is part of what the client signed.
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("connection", "expect"):
                    upstream.putheader(name, value)
            upstream.endheaders(body or None)
            response = upstream.getresponse()
            content = response.read()
            left_out = ("connection", "transfer-encoding", "keep-alive")
            headers = {name: value for name, value in response.getheaders() if name.lower() not in left_out}
            return response.status, headers, content

    def _answer(self, status: int, headers: dict[str, str], body: bytes, sent: int | None = None) -> None:
        self.send_response_only(status)
        if self.command != "HEAD" and status not in (204, 304):
            headers = {name: value for name, value in headers.items() if name.lower() != "content-length"}
            headers["Content-Length"] = str(len(body))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:sent])
        self.wfile.flush()

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


def _kind(method: str, path: str) -> str:
    query = urllib.parse.urlsplit(path).query
    if method == "GET" and ("list-type" in query or "prefix=" in query):
        return "LIST"
    return "DELETE" if method == "POST" and "delete" in query else method


@contextlib.contextmanager
def fault_proxy(
    upstream: str, *, rate: float = 0.0, seed: int = 0, faults: tuple[str, ...] = FAULTS
) -> Iterator[Proxy]:
    """`upstream` is host:port of the store, or its URL."""
    with Proxy(upstream.removeprefix("http://"), rate, seed, faults) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
