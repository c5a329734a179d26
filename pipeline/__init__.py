"""Distributed batch embedding: sharded documents in, one vector per document out, as partitioned Parquet.

import pipeline

summary = pipeline.embed("run.yaml")            # or a mapping, or a pipeline.RunSpec
rows = pipeline.read("embeddings").to_table()   # ids, kept columns, vectors
queries = pipeline.encode("sentence-transformers/all-MiniLM-L6-v2", ["a question"])
scores = pipeline.similarity(queries, pipeline.vectors(rows))
"""

from pipeline.api import (
    changes,
    embed,
    encode,
    newest_version,
    plan,
    plan_reindex,
    read,
    reindex,
    report,
    search,
    similarity,
    vectors,
)
from pipeline.config import ModelSpec, RunSpec
from pipeline.errors import PipelineError

__all__ = [
    "ModelSpec",
    "PipelineError",
    "RunSpec",
    "changes",
    "embed",
    "encode",
    "newest_version",
    "plan",
    "plan_reindex",
    "read",
    "reindex",
    "report",
    "search",
    "similarity",
    "vectors",
]
