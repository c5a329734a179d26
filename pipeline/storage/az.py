"""Azure Blob Storage and Data Lake, through adlfs. Versions are etags.

Listing and copying call the client that adlfs holds: its own listing takes a missing container for an empty one, its own
copy doesn't wait until the copy is there.
"""

import asyncio
import errno
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import fsspec
import fsspec.asyn

from pipeline.storage.address import Address
from pipeline.storage.error import NoRoot, code
from pipeline.storage.file import FileInfo, Options
from pipeline.storage.store import Info, Store

_COPY_POLL_S = 0.5


class Az(Store):
    extra = "az"

    def connect(self, address: Address, options: Options, patient: bool) -> Any:
        from azure.storage.blob.aio import ExponentialRetry

        if address.account and options.get("account_name", address.account) != address.account:
            raise ValueError(f"account_name is {options['account_name']!r}, but the URL names {address.account!r}")
        account = {"account_name": address.account} if address.account else {}
        fixed = {"use_listings_cache": False, "skip_instance_cache": True}
        filesystem = fsspec.filesystem("abfs", **{**account, **options, **fixed})
        # It reads a path as a URL, and so loses a "?" or "#" at the end, tabs, and the direction of slashes.
        filesystem._strip_protocol = lambda path: path
        filesystem.split_path = _split
        # It passes no such settings on; as they are, an endpoint that refuses is tried for a minute and a half.
        pipeline = filesystem.service_client._pipeline
        timeouts = pipeline._transport.connection_config
        timeouts.timeout, timeouts.read_timeout = 5, 20 if patient else 10
        for policy in pipeline._impl_policies:
            if isinstance(policy, ExponentialRetry):
                policy.total_retries = 1 if patient else 0
                policy.initial_backoff, policy.increment_base = 1, 2
        return filesystem

    def version(self, info: Info) -> str:
        return str(info["etag"]).strip('"')

    def modified(self, info: Info) -> float:
        moment = info.get("last_modified")
        return float(moment.timestamp()) if moment else 0.0

    def list(self, prefix: str) -> Iterator[FileInfo]:
        async def blobs() -> list[Any]:
            async with self._container() as container:
                found: AsyncIterator[Any] = container.list_blobs(name_starts_with=prefix or None, include=["metadata"])
                return [blob async for blob in found]

        for blob in self._run(blobs):
            info = {"etag": blob.etag, "last_modified": blob.last_modified}
            folder = {name.lower(): value for name, value in (blob.metadata or {}).items()}.get("hdi_isfolder")
            if folder != "true" and not blob.name.endswith("/"):
                yield FileInfo(path=blob.name, size=blob.size, version=self.version(info), modified=self.modified(info))

    def find_root(self) -> None:
        async def first() -> None:
            async with self._container() as container:
                async for _ in container.list_blobs(results_per_page=1):
                    break

        self._run(first)

    def copy(self, source: str, target: str) -> None:
        async def copied() -> None:
            async with self._container() as container:
                blob = container.get_blob_client(target)
                answer = await blob.start_copy_from_url(container.get_blob_client(source).url)
                status = answer["copy_status"]
                while status == "pending":
                    await asyncio.sleep(_COPY_POLL_S)
                    status = (await blob.get_blob_properties()).copy.status
                if status != "success":
                    raise OSError(errno.EIO, f"the copy ended as {status!r}")

        self._run(copied)

    def no_root(self) -> NoRoot:
        return NoRoot(errno.ENOENT, f"the container does not exist: {self.root}")

    def _container(self) -> Any:
        return self.filesystem.service_client.get_container_client(self.root)

    def _run(self, work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """A missing container is NoRoot, a missing blob FileNotFoundError."""
        from azure.core.exceptions import ResourceNotFoundError

        try:
            return fsspec.asyn.sync(self.filesystem.loop, work)
        except ResourceNotFoundError as error:
            if code(error) == "ContainerNotFound":
                raise self.no_root() from None
            raise FileNotFoundError(errno.ENOENT, "no such file") from error


def _split(path: str, *_: Any, **__: Any) -> tuple[str, str, None]:
    """Container, key, and no version."""
    container, _slash, key = path.partition("/")
    return container, key, None
