"""Digests of keys tell where two sets of rows differ without comparing them row by row.

The digest of a row is the first eight bytes, big-endian, of SHA-256 over its id in UTF-8, its content hash, and its row
hash as eight bytes, big-endian. The ten highest bits of it are the row's bucket. The digest of a bucket is the sum of its
rows' digests modulo 2^64, so that it doesn't depend on their order, and counts duplicates. Databases can compute the same.
"""

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.schema import CONTENT_HASH, ID, ROW_HASH

BUCKET_BITS = 10
NUM_BUCKETS = 1 << BUCKET_BITS


def row_digests(keys: pa.Table) -> NDArray[np.uint64]:
    """Return uint64[n], the digests of rows with the columns of store.KEYS."""
    numbers = keys.column(ROW_HASH).to_numpy().astype(">i8").tobytes()
    ids, contents = keys.column(ID).to_pylist(), keys.column(CONTENT_HASH).to_pylist()
    sha256 = hashlib.sha256
    found = b"".join(
        sha256(b"".join((name.encode(), content, numbers[8 * row : 8 * row + 8]))).digest()[:8]
        for row, (name, content) in enumerate(zip(ids, contents, strict=True))
    )
    return np.frombuffer(found, ">u8").astype(np.uint64)


def buckets(row_digests: NDArray[np.uint64]) -> NDArray[Any]:
    """Return the bucket of each row by its digest."""
    return (row_digests >> np.uint64(64 - BUCKET_BITS)).astype(np.int64)


def digests(keys: "pa.Table | None" = None) -> NDArray[np.uint64]:
    """Return uint64[NUM_BUCKETS], the digest of each bucket. Digests of several sets of rows add up."""
    sums = np.zeros(NUM_BUCKETS, np.uint64)
    if keys is not None and keys.num_rows:
        found = row_digests(keys)
        np.add.at(sums, buckets(found), found)
    return sums
