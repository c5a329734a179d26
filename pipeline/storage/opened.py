"""An open file whose failures are already ours: what comes through a parser as another error is bad data."""

import contextlib
import io
import os
from collections.abc import Callable
from typing import Any, BinaryIO

READAHEAD_BYTES = 4 * 2**20


class Opened(io.RawIOBase):
    """Reads through `inner`, each time within `reported()` and by way of `patiently`; closes it at the end."""

    def __init__(
        self,
        inner: BinaryIO,
        reported: Callable[[], contextlib.AbstractContextManager[None]],
        patiently: Callable[[Callable[[], bytes]], bytes],
    ) -> None:
        self._inner = inner
        self._reported = reported
        self._patiently = patiently

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        with self._reported():
            # A read that fails leaves the position where it was.
            return self._patiently(lambda: self._inner.read(-1 if size is None else size))

    def readinto(self, buffer: Any, /) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        with self._reported():
            return self._inner.seek(offset, whence)

    def tell(self) -> int:
        return self._inner.tell()

    def close(self) -> None:
        if not self.closed:
            self._inner.close()
        super().close()
