"""Distributed batch embedding: sharded documents in, one vector per document out, as partitioned Parquet."""
