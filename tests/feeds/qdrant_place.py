"""Places in the server of qdrant_server.py, one after the other: each begins as an empty server."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pytest

from pipeline.feed_spec import FeedLimitSpec, FeedSpec
from tests.feeds.qdrant_server import QdrantServer, qdrant_server
from tests.feeds.stores import Place

TYPES = (
    pa.string(),
    pa.large_string(),
    pa.int64(),
    pa.int8(),
    pa.uint32(),
    pa.float64(),
    pa.float32(),
    pa.bool_(),
    pa.date32(),
    pa.timestamp("us"),
    pa.timestamp("ms", "UTC"),
    pa.decimal128(18, 4),
    pa.list_(pa.string()),
    pa.list_(pa.float64()),
    pa.struct([pa.field("a", pa.int64()), pa.field("b", pa.list_(pa.bool_()))]),
)


@pytest.fixture(scope="session")
def qdrant() -> Iterator[QdrantServer]:
    with qdrant_server() as server:
        yield server


def qdrant_spec(server: QdrantServer, timeout_s: float = 20, **more: Any) -> FeedSpec:
    limits = FeedLimitSpec(timeout_s=timeout_s)
    return FeedSpec(store="qdrant", url=server.url, name="docs", limits=limits, **more)


@pytest.fixture
def qdrant_places(qdrant: QdrantServer) -> Callable[..., contextlib.AbstractContextManager[Place]]:
    @contextlib.contextmanager
    def place(**more: Any) -> Iterator[Place]:
        qdrant.forget()

        def forget_marker(generation: str) -> None:
            qdrant.local.update_collection(generation, metadata={"embedding_pipeline_marker": None})

        yield Place(
            kind="qdrant",
            spec=qdrant_spec(qdrant, **more),
            forget_marker=forget_marker,
            dtypes=("float32", "float16"),
            types=TYPES,
            client=qdrant,
        )

    return place
