"""Fixtures of the stores: `<kind>_places` makes places in a store of a kind."""

from tests.feeds.qdrant_place import qdrant, qdrant_places

__all__ = ["qdrant", "qdrant_places"]
