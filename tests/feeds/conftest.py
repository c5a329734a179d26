"""Stores for the tests of this folder."""

from tests.feeds.chroma_place import chroma_places, chroma_server
from tests.feeds.milvus_place import milvus, milvus_import_places, milvus_places
from tests.feeds.postgres_place import postgres, postgres_places
from tests.feeds.redis_place import redis_places, redis_server

__all__ = [
    "chroma_places",
    "chroma_server",
    "milvus",
    "milvus_import_places",
    "milvus_places",
    "postgres",
    "postgres_places",
    "redis_places",
    "redis_server",
]
