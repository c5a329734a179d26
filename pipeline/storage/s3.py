"""S3 and its imitations, through s3fs. Versions are etags, and every range read is checked against them."""

import errno
from collections.abc import Iterable
from typing import Any

import fsspec

from pipeline.storage.address import Address
from pipeline.storage.error import code
from pipeline.storage.file import FileInfo, Options
from pipeline.storage.store import Info, Store

_MAX_PUT_COPY_BYTES = 5 * 2**30
_DELETE_BATCH = 1000


class S3(Store):
    extra = "s3"

    def connect(self, address: Address, options: Options, patient: bool) -> Any:
        config: dict[str, Any] = {
            "connect_timeout": 5,
            "read_timeout": 20 if patient else 10,
            "retries": {"mode": "standard", "total_max_attempts": 2},
            "max_pool_connections": 32,
        }
        if options.get("endpoint_url") or options.get("client_kwargs", {}).get("endpoint_url"):
            # Stores other than AWS refuse or garble the checksum headers that botocore adds of its own accord.
            config |= {"request_checksum_calculation": "when_required", "response_checksum_validation": "when_required"}
        config |= options.get("config_kwargs", {})
        # The client compares the etag of every answer: as strong as If-Match, which some stores ignore.
        defaults = {"local_expiry_check": True}
        fixed = {"config_kwargs": config, "use_listings_cache": False, "skip_instance_cache": True}
        # A key of digits alone is a number in YAML.
        keys = {name: str(options[name]) for name in ("key", "secret", "token") if options.get(name) is not None}
        filesystem = fsspec.filesystem("s3", **{**defaults, **options, **keys, **fixed})
        filesystem.retries = 1  # retry.py does
        filesystem.connect()
        return filesystem

    def version(self, info: Info) -> str:
        return str(info.get("ETag") or f"{info['size']}-{self.modified(info):.0f}").strip('"')

    def modified(self, info: Info) -> float:
        moment = info.get("LastModified")
        return float(moment.timestamp()) if moment else 0.0

    def look_up(self, key: str) -> FileInfo | None:
        try:
            info = self.filesystem.info(self.path(key))
        except FileNotFoundError as error:
            _raise_if_no_bucket(error)
            return None
        return self.file(info) if info["type"] == "file" else None

    def read(self, key: str) -> bytes | None:
        try:
            return bytes(self.filesystem.cat_file(self.path(key)))
        except FileNotFoundError as error:
            _raise_if_no_bucket(error)
            return None

    def write(self, key: str, data: bytes) -> None:
        self.filesystem.pipe_file(self.path(key), data)

    def create(self, key: str, data: bytes) -> None:
        try:
            self.filesystem.pipe_file(self.path(key), data, mode="create")
        except OSError as error:
            if error.errno != errno.ENOSYS:
                raise
            self.filesystem.pipe_file(self.path(key), data)

    def copy(self, source: str, target: str) -> None:
        found = self.look_up(source)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", source)
        if found.size > _MAX_PUT_COPY_BYTES:
            self.filesystem.cp_file(self.path(source), self.path(target), block=2**30)
            return
        original = {"Bucket": self.root, "Key": source}
        self.filesystem.call_s3("copy_object", Bucket=self.root, Key=target, CopySource=original)

    def delete(self, keys: Iterable[str]) -> None:
        named = [{"Key": key} for key in keys]
        for start in range(0, len(named), _DELETE_BATCH):
            batch = {"Objects": named[start : start + _DELETE_BATCH], "Quiet": True}
            answer = self.filesystem.call_s3("delete_objects", Bucket=self.root, Delete=batch)
            failed = [error for error in answer.get("Errors", ()) if error.get("Code") != "NoSuchKey"]
            if failed:
                first = failed[0]
                reason = f"{len(failed)} files stay, the first is {first.get('Key')}: {first.get('Message')}"
                raise OSError(errno.EIO, reason)


def _raise_if_no_bucket(error: OSError) -> None:
    if code(error) == "NoSuchBucket":
        raise error
