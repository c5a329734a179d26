"""Stores for the tests of this folder."""

from tests.feeds.postgres_place import postgres, postgres_places

__all__ = ["postgres", "postgres_places"]
