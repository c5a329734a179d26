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
from tests.feeds.postgres_place import postgres, postgres_places

__all__ = [
    "duckdb_places",
    "files_places",
    "lance_places",
    "lance_s3_places",
    "milvus_layout_places",
    "pinecone_layout_places",
    "postgres",
    "postgres_places",
    "usearch_places",
    "vdf_places",
]
