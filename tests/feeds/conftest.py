"""Stores for the tests of this folder."""

from tests.feeds.lance_place import lance_places, lance_s3_places
from tests.feeds.postgres_place import postgres, postgres_places

__all__ = ["lance_places", "lance_s3_places", "postgres", "postgres_places"]
