"""Places in real stores for tests: a server or a library of each kind, and what a test may do behind a feed's back.

Each kind has a fixture `<kind>_places` in conftest.py, a function that makes a place of its own for a test.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pytest

from pipeline.feed_spec import FeedSpec
from pipeline.feeds.registry import open_store
from pipeline.feeds.store import Store

KINDS = ["postgres", "lance", "qdrant", "opensearch", "files", "milvus", "redis", "chroma"]
"""Stores that the contract is tested on."""

QUICK = ("postgres",)
"""A server with transactions, and a library without a server."""
WHOLE = [pytest.param(kind, marks=() if kind in QUICK else pytest.mark.slow) for kind in KINDS]
"""Stores that whole feeds are tested on; half a minute each."""

FORMATS_OF_FILES = ["usearch", "duckdb", "pinecone_layout", "milvus_layout", "vdf"]
"""The contract is tested on these, too."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """A feed of its own in a store."""

    kind: str
    spec: FeedSpec
    forget_marker: Callable[[str], None]
    """Removes the marker of a generation, as somebody could by hand."""
    dtypes: Sequence[str] = ("float32", "float16", "binary")
    """The store has vectors of these."""
    types: Sequence[pa.DataType] = (pa.string(), pa.int64(), pa.float64(), pa.bool_())
    """Columns of these Arrow types come back exactly."""
    client: Any = field(default=None, repr=False)
    """The store's own client, for tests of this store alone."""

    def open(self) -> Store:
        return open_store(self.spec)
