"""Google Cloud Storage, through gcsfs. Versions are generations, which change with every write and with nothing
else."""

import logging
import os
from collections.abc import Iterator
from typing import Any

from pipeline.storage.address import Address
from pipeline.storage.file import FileInfo, Options
from pipeline.storage.store import Info, Store

_BOUNDARY = b"--==0=="
"""gcsfs ends the data of a small upload with this, whatever is in it."""
_CHUNK_BYTES = 50 * 2**20


class Gs(Store):
    extra = "gs"

    def connect(self, address: Address, options: Options, patient: bool) -> Any:
        import aiohttp
        import gcsfs.retry

        token = options.get("token")
        if isinstance(token, str) and token.endswith(".json") and not os.path.exists(os.path.expanduser(token)):
            # gcsfs would take the path for a token, and send it to Google.
            raise ValueError("token names a file of credentials that does not exist")

        # fsspec would take another class for gs://, which first asks each bucket for its kind over gRPC, for up to a minute
        # where the answer doesn't come. This one speaks JSON over HTTP to every bucket but the zonal ones.
        from gcsfs.core import GCSFileSystem

        # It logs each error with its traceback before it raises it.
        logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=20 if patient else 10)
        # Checked against what the store says it holds: a body that was cut on its way must not pass for written.
        defaults = {"requests_timeout": timeout, "consistency": "md5"}
        fixed = {"use_listings_cache": False, "skip_instance_cache": True}
        filesystem = GCSFileSystem(**{**defaults, **options, **fixed})
        # Six attempts, half a minute, are part of the method as the class has it.
        attempts = gcsfs.retry.retry_request(retries=2 if patient else 1)(GCSFileSystem._request.__wrapped__)

        async def request(*args: Any, **kwargs: Any) -> Any:
            try:
                return await attempts(filesystem, *args, **kwargs)
            except ValueError as error:  # some refusals
                raise gcsfs.retry.HttpError({"code": 400, "message": str(error)}) from None

        filesystem._request = request
        return filesystem

    def version(self, info: Info) -> str:
        return str(info.get("generation") or info["etag"])

    def modified(self, info: Info) -> float:
        moment = info.get("mtime")
        return float(moment.timestamp()) if moment else 0.0

    def list(self, prefix: str) -> Iterator[FileInfo]:
        with self.missing_is_root():
            yield from super().list(prefix)

    def write(self, key: str, data: bytes) -> None:
        self._upload(key, data, "overwrite")

    def create(self, key: str, data: bytes) -> None:
        self._upload(key, data, "create")

    def find_root(self) -> None:
        # gcsfs drops the answer's text, which says what of the two it was that couldn't be found.
        with self.missing_is_root():
            self.filesystem.call("GET", "b/{}/o", self.root, maxResults=1)

    def _upload(self, key: str, data: bytes, mode: str) -> None:
        # From this size on, data travels without a boundary.
        chunk_bytes = min(len(data), _CHUNK_BYTES) if _BOUNDARY in data else _CHUNK_BYTES
        with self.missing_is_root():
            self.filesystem.pipe_file(self.path(key), data, chunksize=chunk_bytes, mode=mode)
