"""Stores for the tests of this folder."""

from tests.feeds.milvus_place import milvus, milvus_import_places, milvus_places
from tests.feeds.postgres_place import postgres, postgres_places

__all__ = ["milvus", "milvus_import_places", "milvus_places", "postgres", "postgres_places"]
