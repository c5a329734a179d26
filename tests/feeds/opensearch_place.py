"""Places in the server of opensearch_server.py, one after the other: each begins as an empty server."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pipeline.feed_spec import FeedLimitSpec, FeedSpec
from tests.feeds.opensearch_server import OpenSearchServer, opensearch_server
from tests.feeds.qdrant_place import TYPES
from tests.feeds.stores import Place


@pytest.fixture(scope="session")
def opensearch() -> Iterator[OpenSearchServer]:
    with opensearch_server() as server:
        yield server


def opensearch_spec(server: OpenSearchServer, timeout_s: float = 20, **more: Any) -> FeedSpec:
    limits = FeedLimitSpec(timeout_s=timeout_s)
    return FeedSpec(store="opensearch", url=server.url, name="docs", limits=limits, **more)


@pytest.fixture
def opensearch_places(opensearch: OpenSearchServer) -> Callable[..., contextlib.AbstractContextManager[Place]]:
    @contextlib.contextmanager
    def place(**more: Any) -> Iterator[Place]:
        opensearch.forget()

        def forget_marker(generation: str) -> None:
            opensearch.indexes[generation].mappings["_meta"] = {}

        yield Place(
            kind="opensearch",
            spec=opensearch_spec(opensearch, **more),
            forget_marker=forget_marker,
            dtypes=("float32", "binary"),
            types=TYPES,
            client=opensearch,
        )

    return place
