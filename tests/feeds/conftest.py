"""Stores for the tests of this folder."""

from tests.feeds.files_place import (
    duckdb_places,
    files_places,
    milvus_layout_places,
    pinecone_layout_places,
    usearch_places,
    vdf_places,
)
from tests.feeds.lance_place import lance_places, lance_s3_places
from tests.feeds.opensearch_place import opensearch, opensearch_places
from tests.feeds.postgres_place import postgres, postgres_places
from tests.feeds.qdrant_place import qdrant, qdrant_places

__all__ = [
    "duckdb_places",
    "files_places",
    "lance_places",
    "lance_s3_places",
    "milvus_layout_places",
    "opensearch",
    "opensearch_places",
    "pinecone_layout_places",
    "postgres",
    "postgres_places",
    "qdrant",
    "qdrant_places",
    "usearch_places",
    "vdf_places",
]
