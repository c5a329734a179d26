"""Stores for the tests of this folder."""

from tests.feeds.opensearch_place import opensearch, opensearch_places
from tests.feeds.postgres_place import postgres, postgres_places
from tests.feeds.qdrant_place import qdrant, qdrant_places

__all__ = ["opensearch", "opensearch_places", "postgres", "postgres_places", "qdrant", "qdrant_places"]
