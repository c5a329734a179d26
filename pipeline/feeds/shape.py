"""The shape of a feed's rows follows from the table's version and from what the configuration asks for.

It also turns rows of the table into rows of that shape. This file knows no store.
"""

from typing import Any, get_args

import numpy as np
import pyarrow as pa

from pipeline import schema
from pipeline.errors import InputError
from pipeline.feed_spec import FeedSpec
from pipeline.feeds.store import Dtype, Guarantees, Index, Metric, Shape
from pipeline.table.changed_rows import plain, plain_type
from pipeline.table.quantize import PACKED
from pipeline.table.rows import schema_of
from pipeline.table.snapshot import Snapshot
from pipeline.table.vectors import vectors


def shape_of(version: Snapshot, spec: FeedSpec, guarantees: Guarantees) -> Shape:
    """Return the shape that the feed's next generation has. Raises InputError for columns that the table lacks, and for
    a dtype or a metric that doesn't go with it."""
    embedding = version.embeddings[0]
    dtype = _dtype(spec, str(embedding["dtype"]), guarantees)
    return Shape(
        columns=_columns(version, spec),
        embedding=str(embedding["column"]),
        dim=int(embedding["dim"]),
        dtype=dtype,
        metric=_metric(spec, dtype, str(embedding.get("similarity") or "cosine")),
        index=Index(kind=spec.index.kind, m=spec.index.m, ef_construction=spec.index.ef_construction),
        fingerprint=version.fingerprint,
    )


def _columns(version: Snapshot, spec: FeedSpec) -> pa.Schema:
    known = schema_of(version)
    own = {schema.ID, schema.CONTENT_HASH, schema.ROW_HASH, str(version.embeddings[0]["column"])}
    names = [*spec.columns, *([schema.TEXT] if spec.text and schema.TEXT not in spec.columns else [])]
    for name in names:
        if name in own:
            raise InputError(f"feeds.columns names {name!r}, which every feed has by itself: leave it out")
        if name not in known.names:
            if name == schema.TEXT:
                raise InputError("feeds.text is true, and the table holds no text: build it with table.keep_text: true")
            choice = ", ".join(column for column in known.names if column not in own)
            raise InputError(f"feeds.columns names {name!r}, which the table doesn't have; it has {choice}")
    return pa.schema([pa.field(name, plain_type(known.field(name).type)) for name in names])


def _dtype(spec: FeedSpec, stored: str, guarantees: Guarantees) -> Dtype:
    packed = stored in PACKED
    if spec.dtype == "auto":
        wanted: Dtype = "binary" if packed else "float16" if stored == "float16" else "float32"
        return wanted if wanted in guarantees.dtypes else "float32"
    if spec.dtype not in guarantees.dtypes:
        raise InputError(
            f"feeds.dtype is {spec.dtype!r}; a {spec.store} feed holds {', '.join(sorted(guarantees.dtypes))} or auto"
        )
    if spec.dtype == "binary" and not packed:
        raise InputError(f"feeds.dtype is 'binary', and the table holds {stored}: build it with table.dtype: ubinary")
    return spec.dtype


def _metric(spec: FeedSpec, dtype: Dtype, similarity: str) -> Metric:
    if spec.metric != "auto":
        return spec.metric
    if dtype == "binary":
        return "hamming"
    for metric in get_args(Metric):
        if metric == similarity:
            return similarity  # type: ignore[return-value]
    raise InputError(
        f"the model compares its vectors by {similarity!r}, which no store does: give feeds.metric: cosine, dot or euclidean"
    )


def columns_of(shape: Shape, *, vectors: bool) -> list[str]:
    """Return the names of the columns to read from the table."""
    return [name for name in shape.schema.names if vectors or name != shape.embedding]


def shaped(rows: pa.Table, shape: Shape) -> pa.Table:
    """Return rows of the table, with the columns of `columns_of`, as the shape has them."""
    arrays = []
    for field in shape.schema:
        if field.name not in rows.column_names:
            continue
        if field.name == shape.embedding:
            arrays.append(_vectors(rows, shape))
        else:
            column = rows.column(field.name)
            arrays.append(column if column.type == field.type else plain(column).cast(field.type))
    return pa.table(arrays, schema=pa.schema([field for field in shape.schema if field.name in rows.column_names]))


def _vectors(rows: pa.Table, shape: Shape) -> pa.Array | pa.ChunkedArray:
    if rows.schema.field(shape.embedding).type == shape.vector:
        return rows.column(shape.embedding)
    if rows.schema.field(shape.embedding).type.value_type == shape.vector.value_type and shape.dtype != "binary":
        return rows.column(shape.embedding).combine_chunks().cast(shape.vector)
    floats = vectors(rows, shape.embedding)
    values: np.ndarray[Any, Any]
    if shape.dtype == "binary":
        values = np.packbits(floats > 0, axis=1)
    elif shape.dtype == "float16":
        with np.errstate(over="ignore"):  # What becomes infinite is refused row by row.
            values = floats.astype(np.float16)
    else:
        values = floats
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1), shape.vector.value_type), type=shape.vector)
