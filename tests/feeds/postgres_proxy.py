"""A proxy between a feed and a PostgreSQL server, on Unix sockets, that can do harm at the n-th message.

Messages of both directions are counted over all connections. At the chosen one a function is called, and then the
connection is cut, unless it is to stay: before a request reaches the server, or after the server has done what was asked
and before anybody hears of it.
"""

import contextlib
import select
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path


class Proxy:
    """It forwards to a server's socket."""

    def __init__(self, folder: Path, target: Path) -> None:
        self.folder, self._target = folder, str(target)
        self._lock = threading.Lock()
        self._number: int | None = None
        self._act: Callable[[], None] = lambda: None
        self._cuts = True
        self.seen = 0
        """So many messages passed since the last call of `strike`."""
        self.struck = False
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / ".s.PGSQL.5432"))
        self._listener.listen(50)
        threading.Thread(target=self._serve, daemon=True).start()

    def strike(self, number: int | None, act: Callable[[], None] = lambda: None, *, cuts: bool = True) -> None:
        """Do harm at the message of this number from now on, or none."""
        with self._lock:
            self._number, self._act, self._cuts, self.seen, self.struck = number, act, cuts, 0, False

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._pass, args=(client,), daemon=True).start()

    def _pass(self, client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX) as server, contextlib.suppress(OSError):
            server.connect(self._target)
            other = {client: server, server: client}
            while True:
                for source in select.select([client, server], [], [])[0]:
                    data = source.recv(1 << 16)
                    with self._lock:
                        self.seen += 1
                        strikes = self.seen == self._number
                    if strikes:
                        self.struck = True
                        self._act()
                    if (strikes and self._cuts) or not data:
                        return
                    other[source].sendall(data)

    def close(self) -> None:
        self._listener.close()


@contextlib.contextmanager
def proxy_of(server_folder: Path) -> Iterator[Proxy]:
    folder = Path(tempfile.mkdtemp(prefix="px"))
    proxy = Proxy(folder, server_folder / ".s.PGSQL.5432")
    try:
        yield proxy
    finally:
        proxy.close()
