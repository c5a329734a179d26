"""Places in LanceDB for tests: on a disk, and in S3 as moto has it."""

import contextlib
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lancedb
import pyarrow as pa
import pytest

from pipeline.feed_spec import FeedSpec
from pipeline.feeds.lance import LanceStore
from pipeline.feeds.lance_versions import MARKER
from tests.feeds.stores import Place
from tests.servers import S3Server

TYPES = [
    pa.string(), pa.large_string(), pa.int8(), pa.uint8(), pa.int16(), pa.uint16(), pa.int32(), pa.uint32(), pa.int64(),
    pa.uint64(), pa.float16(), pa.float32(), pa.float64(), pa.bool_(), pa.date32(), pa.timestamp("s"), pa.timestamp("us"),
    pa.timestamp("us", "UTC"), pa.decimal128(12, 3), pa.binary(), pa.large_binary(), pa.list_(pa.int32()),
    pa.list_(pa.string()), pa.struct([pa.field("a", pa.int64()), pa.field("b", pa.list_(pa.string()))]),
]  # fmt: skip


def place_at(url: str, options: dict[str, Any]) -> Place:
    spec = FeedSpec(store="lance", url=url, name="docs", options=options)

    def forget_marker(generation: str) -> None:
        import lance
        from lance import LanceDataset, LanceOperation
        from lance.dataset import Transaction

        newest = lance.dataset(f"{url}/docs.lance", storage_options=options)
        is_tagged = generation in newest.tags.list()
        version = newest.checkout_version(generation) if is_tagged else newest
        update = LanceOperation.UpdateConfig(schema_metadata_updates=LanceOperation.UpdateMap({MARKER: None}))
        change = Transaction(version.version, update)
        without = LanceDataset.commit(version, change, storage_options=options, detached=is_tagged)
        if is_tagged:
            without.tags.update(generation, without.version)

    return Place(
        kind="lance",
        spec=spec,
        forget_marker=forget_marker,
        types=TYPES,
        client=lambda: lancedb.connect(url, storage_options=options),
    )


@pytest.fixture
def lance_places(tmp_path: Path) -> Callable[[], contextlib.AbstractContextManager[Place]]:
    @contextlib.contextmanager
    def make() -> Iterator[Place]:
        yield place_at(str(tmp_path / f"db-{uuid.uuid4().hex[:8]}"), {})

    return make


@pytest.fixture
def lance_s3_places(moto: S3Server) -> Callable[[], contextlib.AbstractContextManager[Place]]:
    @contextlib.contextmanager
    def make() -> Iterator[Place]:
        bucket = moto.make_bucket(f"lance-{uuid.uuid4().hex}")
        yield place_at(f"{bucket}/db", s3_options(moto))

    return make


def s3_options(server: S3Server) -> dict[str, Any]:
    """What Lance's object store wants to hear."""
    given = server.storage_options
    return {
        "aws_access_key_id": given["key"],
        "aws_secret_access_key": given["secret"],
        "aws_endpoint": given["endpoint_url"],
        "aws_region": "us-east-1",
        "allow_http": "true",
    }


def store_at(place: Place) -> LanceStore:
    return LanceStore(place.spec)
