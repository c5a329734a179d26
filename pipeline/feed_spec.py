"""The section `feeds` of a configuration says which vector databases hold the table's rows, and how.

A feed is one store under a name of its own. Like config.py, this file only says what was asked for.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.errors import ConfigError

Auto = Literal["auto"]
StoreName = Literal["postgres", "lance", "qdrant", "milvus", "opensearch", "redis", "chroma", "files"]


@dataclass(frozen=True, kw_only=True)
class FeedIndexSpec:
    """This section says how the store's index for nearest neighbours is built."""

    kind: str = "auto"
    """It is `hnsw`, `none`, or another kind that the store knows; auto is the store's usual one."""
    m: int | None = None
    """A node of an HNSW graph has so many neighbours; null takes the store's default."""
    ef_construction: int | None = None
    """So many candidates are looked at when a node joins the graph; null takes the store's default."""
    defer: bool | Auto = "auto"
    """True builds the index after a load, which is much faster; auto does so wherever the store can."""


@dataclass(frozen=True, kw_only=True)
class FeedLimitSpec:
    """This section bounds what a feed may change, lose or take. A limit on rows below 1 is a share, else a count."""

    max_deleted_rows: float = 0.2
    """If more of the store's rows would be deleted, nothing is until `--allow-deletes` is given."""
    max_failed_rows: float = 0.0
    """If the store refuses more rows, the generation that was loaded is not shown, and a sync does not end."""
    max_changed_rows: float = 0.3
    """If more of the rows changed, and 10,000 at least, all are loaded into a new generation, which is faster, where the store
    can show it in one step."""
    min_recall: float = 0.95
    """If the index finds a smaller share of the ten nearest rows, the generation that was loaded is not shown."""
    writers: int | Auto = "auto"
    """So many writers load side by side; auto has one per core."""
    bytes_in_flight: int = 64 * 2**20
    """A unit of a load, which is what a restart repeats, has so many bytes of vectors at most."""
    rate: float | Auto = "auto"
    """All writers together send so many rows a second at most; auto sends as fast as the store takes them."""
    lease_s: float = 300
    """For so many seconds after its last sign of life a feed has the store to itself, unless it can be seen to be dead."""
    timeout_s: float = 60
    """A store that gives no answer for so many seconds, retries included, ends the command. The next one goes on."""

    def __post_init__(self) -> None:
        for name in ("max_deleted_rows", "max_failed_rows", "max_changed_rows", "min_recall"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"feeds.limits.{name} is {getattr(self, name)}; give 0 or more")
        if self.min_recall > 1:
            raise ConfigError(f"feeds.limits.min_recall is {self.min_recall}; give a share of 1")
        for name in ("writers", "rate", "bytes_in_flight", "lease_s", "timeout_s"):
            value = getattr(self, name)
            if value != "auto" and not 0 < value < math.inf:
                raise ConfigError(f"feeds.limits.{name} is {value}; give more than 0")


@dataclass(frozen=True, kw_only=True)
class FeedSpec:
    """This section names a store and what it is to hold."""

    store: StoreName
    """It is the kind of the vector database."""
    url: str = field(repr=False)
    """It is the address of the database. Give passwords as `${VAR}`."""
    name: str
    """Readers find the rows under this name: a relation, a collection or an alias, as the store has it."""
    columns: tuple[str, ...] = ()
    """These columns of the table go with each vector."""
    text: bool = False
    """True sends the text, too."""
    dtype: Literal["auto", "float32", "float16", "binary"] = "auto"
    """The store holds vectors in it; auto takes the table's own where the store has it, else float32."""
    metric: Literal["auto", "cosine", "dot", "euclidean", "hamming"] = "auto"
    """Rows are compared by it; auto takes the model's own."""
    index: FeedIndexSpec = field(default_factory=FeedIndexSpec)
    """It says how the index is built."""
    limits: FeedLimitSpec = field(default_factory=FeedLimitSpec)
    """It bounds what the feed may change, lose or take."""
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """They go to the store's client as they are."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z_][\w-]*(\.[A-Za-z_][\w-]*)?", self.name, re.ASCII):
            raise ConfigError(
                f"feeds.name is {self.name!r}; give letters, digits, _ and -, beginning with a letter, such as docs"
            )
        if not self.url:
            raise ConfigError("feeds.url is empty: give the address of the store")
        if len(set(self.columns)) < len(self.columns):
            raise ConfigError(f"feeds.columns names a column twice: {list(self.columns)}")
