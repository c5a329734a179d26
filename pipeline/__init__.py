"""Distributed batch embedding: sharded documents in, one vector per document out, as partitioned Parquet.

import pipeline

summary = pipeline.embed("run.yaml")            # or a mapping, or a pipeline.RunSpec
rows = pipeline.read("embeddings").to_table()   # ids, kept columns, vectors
"""

from pipeline.api import embed, plan, read
from pipeline.config import RunSpec
from pipeline.errors import PipelineError

__all__ = ["PipelineError", "RunSpec", "embed", "plan", "read"]
