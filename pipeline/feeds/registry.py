"""Every kind of store has a class, which is imported when a feed uses it, and may need an extra of this project."""

import importlib
from collections.abc import Mapping
from typing import cast

from pipeline import extras
from pipeline.errors import InputError
from pipeline.feed_spec import FeedSpec
from pipeline.feeds.store import Store

STORES: Mapping[str, tuple[str, str]] = {
    "postgres": ("pipeline.feeds.postgres", "PostgresStore"),
    "lance": ("pipeline.feeds.lance", "LanceStore"),
    "milvus": ("pipeline.feeds.milvus", "MilvusStore"),
    "redis": ("pipeline.feeds.redis", "RedisStore"),
    "chroma": ("pipeline.feeds.chroma", "ChromaStore"),
    "qdrant": ("pipeline.feeds.qdrant", "QdrantStore"),
    "opensearch": ("pipeline.feeds.opensearch", "OpenSearchStore"),
    "files": ("pipeline.feeds.files", "FilesStore"),
}
"""It maps the name of a store to the module and the class. A class takes a FeedSpec."""


def open_store(spec: FeedSpec) -> Store:
    """Open the store of a feed. Raises InputError where its client is missing or its address is wrong."""
    module, name = STORES[spec.store]
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.startswith("pipeline."):
            raise InputError(f"feeds.store {spec.store!r} is not built yet") from None
        raise InputError(
            f"feeds.store {spec.store!r} needs the package {error.name!r}: {extras.install(spec.store)}"
        ) from None
    return cast(Store, getattr(found, name)(spec))
