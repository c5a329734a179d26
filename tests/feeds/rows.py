"""Rows for stores, made of numbers, so that every test knows what a store must hold."""

import datetime
import decimal
import hashlib
import random
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import schema
from pipeline.feeds.store import Dtype, Index, Marker, Metric, Shape

DIM = 24
PLAIN = pa.schema([pa.field("title", pa.string()), pa.field("number", pa.int64())])


def shape_of(
    columns: pa.Schema = PLAIN,
    *,
    dim: int = DIM,
    dtype: Dtype = "float32",
    metric: Metric = "cosine",
    index: Index | None = None,
    fingerprint: str = "f1",
) -> Shape:
    return Shape(
        columns=columns,
        embedding="embedding",
        dim=dim,
        dtype=dtype,
        metric=metric,
        index=index or Index(),
        fingerprint=fingerprint,
    )


def marker_of(shape: Shape, generation: str, applied: int = 0, target: int | None = None, **more: Any) -> Marker:
    return Marker(
        generation=generation,
        shape=shape.in_words(),
        applied=applied,
        applied_of=f"v{applied}" if applied else "",
        target=target,
        target_of=f"v{target}" if target else "",
        **more,
    )


def value_of(kind: pa.DataType, seed: random.Random) -> Any:
    """A value of an Arrow type, now and then null."""
    if seed.random() < 0.1:
        return None
    if pa.types.is_boolean(kind):
        return seed.random() < 0.5
    if pa.types.is_integer(kind):
        bits = kind.bit_width - (not pa.types.is_unsigned_integer(kind))
        low = 0 if pa.types.is_unsigned_integer(kind) else -(2**bits)
        return seed.choice([low, 2**bits - 1, 0, seed.randrange(low, 2**bits)])
    if pa.types.is_floating(kind):
        return float(np.float32(seed.uniform(-9, 9)))
    if pa.types.is_date(kind):
        return datetime.date(1600 + seed.randrange(800), 1 + seed.randrange(12), 1 + seed.randrange(28))
    if pa.types.is_timestamp(kind):
        zone = datetime.UTC if kind.tz else None
        return datetime.datetime(1700 + seed.randrange(500), 2, 3, 4, 5, 6, seed.randrange(10**6), tzinfo=zone)
    if pa.types.is_decimal(kind):
        return decimal.Decimal(seed.randrange(-(10**8), 10**8)).scaleb(-kind.scale)
    if pa.types.is_binary(kind):
        return seed.randbytes(seed.randrange(5))
    if pa.types.is_list(kind):
        return [value_of(kind.value_type, seed) for _ in range(seed.randrange(3))]
    if pa.types.is_struct(kind):
        return {field.name: value_of(field.type, seed) for field in kind}
    return seed.choice(["", "a", 'O\'Neill "x" %s \\ \t\n', "日本語 \U0001f600", "x" * 300])


def rows_of(shape: Shape, ids: Iterable[Any], seed: int = 0) -> pa.Table:
    """Rows with these ids; another seed gives them other values, hashes and vectors."""
    names = [str(name) for name in ids]
    chosen = [random.Random(f"{name}/{seed}") for name in names]
    columns: dict[str, Any] = {schema.ID: names}
    for field in shape.columns:
        columns[field.name] = pa.array([value_of(field.type, one) for one in chosen], field.type)
    columns[schema.CONTENT_HASH] = [hashlib.md5(f"{name}/{seed}".encode()).digest() for name in names]
    columns[schema.ROW_HASH] = [one.randrange(-(2**63), 2**63) for one in chosen]
    columns[shape.embedding] = vectors_of(shape, names, seed)
    return pa.table(columns, schema=shape.schema)


def vectors_of(shape: Shape, names: Sequence[str], seed: int) -> pa.Array:
    width = shape.vector.list_size
    out = np.zeros((len(names), width), shape.vector.value_type.to_pandas_dtype())
    for row, name in enumerate(names):
        source = np.random.default_rng(int.from_bytes(hashlib.md5(f"{name}/{seed}".encode()).digest()[:8], "big"))
        if shape.dtype == "binary":
            out[row] = source.integers(0, 256, width)
        else:
            vector = source.standard_normal(width)
            out[row] = vector / np.linalg.norm(vector)
    return pa.FixedSizeListArray.from_arrays(pa.array(out.reshape(-1), shape.vector.value_type), type=shape.vector)


def floats_of(shape: Shape, rows: pa.Table) -> np.ndarray:
    """float32[n, dim], as searches take vectors: of bits +1 and -1."""
    values = rows.column(shape.embedding).combine_chunks().flatten().to_numpy().reshape(rows.num_rows, -1)
    if shape.dtype == "binary":
        return np.unpackbits(values, axis=1)[:, : shape.dim].astype(np.float32) * 2 - 1
    return values.astype(np.float32)


def ordered(rows: pa.Table) -> pa.Table:
    """By id, in one chunk: two tables of the same rows are equal then."""
    return rows.sort_by(schema.ID).combine_chunks()
