"""Rows become the lines of a bulk request to OpenSearch or Elasticsearch, and documents become rows again.

Numbers of vectors are written straight from float32, in the shortest form that reads back to the same bits. A document
has the row's id as its own. This file also says what an index looks like, in which the two products differ: it makes and
reads JSON, and calls nobody.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.feeds import json_values
from pipeline.feeds.store import KEYS, Shape, matrix
from pipeline.schema import CONTENT_HASH, ID, ROW_HASH, TEXT

MAX_ID_BYTES = 512
FILTERED_LETTERS = 8191
"""A filter finds texts of up to so many letters: Lucene's terms have 32,766 bytes at most."""
OPENSEARCH, ELASTICSEARCH = "opensearch", "elasticsearch"

_SPACES = {"cosine": "cosinesimil", "dot": "innerproduct", "euclidean": "l2", "hamming": "hamming"}
_SIMILARITIES = {"cosine": "cosine", "dot": "max_inner_product", "euclidean": "l2_norm", "hamming": "l2_norm"}


@dataclass(frozen=True, kw_only=True)
class Product:
    """It is what answers at the address."""

    name: str
    version: tuple[int, int]

    @property
    def max_dim(self) -> int:
        return 16_000 if self.name == OPENSEARCH else 4_096

    @property
    def oldest(self) -> tuple[int, int]:
        return (2, 16) if self.name == OPENSEARCH else (8, 15)


def product_of(root: Mapping[str, Any]) -> Product:
    """Tell the product by what it says at its root. Raises InputError for anything else, and for what is too old."""
    version = root.get("version") or {}
    number = str(version.get("number", ""))
    digits = number.split(".")
    if not ("lucene_version" in version or "distribution" in version) or not all(one.isdecimal() for one in digits[:2]):
        raise InputError("what answers at feeds.url is neither OpenSearch nor Elasticsearch: check the address")
    name = OPENSEARCH if version.get("distribution") == OPENSEARCH else ELASTICSEARCH
    found = Product(name=name, version=(int(digits[0]), int(digits[1])))
    if found.version < found.oldest:
        raise InputError(
            f"{name} at feeds.url is version {number}; {'.'.join(map(str, found.oldest))} or newer is needed"
        )
    return found


def check(shape: Shape, product: Product) -> None:
    """Raise InputError for a shape that no index can have."""
    if not 1 <= shape.dim <= product.max_dim:
        raise InputError(f"vectors have {shape.dim} dimensions; {product.name} takes 1 to {product.max_dim}")
    if (shape.metric == "hamming") != (shape.dtype == "binary"):
        raise InputError(
            f"feeds.metric is {shape.metric!r} with vectors of {shape.dtype}; {product.name} compares bits by hamming, and "
            "other vectors by cosine, dot or euclidean"
        )
    if shape.dtype == "binary" and shape.dim % 8:
        raise InputError(f"vectors have {shape.dim} bits; {product.name} takes a multiple of 8")
    if shape.index.kind not in ("auto", "hnsw"):
        raise InputError(f"feeds.index.kind is {shape.index.kind!r}; {product.name} has hnsw")
    for name in [*shape.columns.names, shape.embedding]:
        if name.startswith("_") or "." in name or not name.strip():
            raise InputError(f"{product.name} can't hold a column with the name {name!r}: rename it or leave it out")
    for field in shape.columns:
        if reason := json_values.reason_against(field.type):
            raise InputError(f"{product.name} can't hold column {field.name!r} of type {field.type}: {reason}")


def unfit(rows: pa.Table) -> dict[int, str]:
    """Return why no index can take some rows, by their number."""
    if not rows.num_rows:
        return {}
    sizes = pc.binary_length(rows.column(ID).cast(pa.binary()))
    reasons = dict.fromkeys(json_values.true_places(pc.equal(sizes, 0)), "the id is empty")
    long = json_values.true_places(pc.greater(sizes, MAX_ID_BYTES))
    reasons |= dict.fromkeys(long, f"the id has more than {MAX_ID_BYTES} bytes")
    return reasons | json_values.without_numbers(rows)


# Indexes


def index_of(shape: Shape, product: Product, settings: Mapping[str, Any], meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body that creates an index with these settings of a person and with `_meta`."""
    properties = {field.name: _column(field) for field in shape.columns}
    properties |= {
        ID: {"type": "keyword"},
        CONTENT_HASH: {"type": "keyword", "index": False},
        ROW_HASH: {"type": "long", "index": False},
        shape.embedding: _knn_vector(shape, product) if product.name == OPENSEARCH else _dense_vector(shape),
    }
    own: dict[str, Any] = {}
    if product.name == OPENSEARCH:
        own["knn"] = True
        if product.version >= (3, 0):
            # Else vectors are made anew from the index when they are read, which can change them.
            own["knn.derived_source.enabled"] = False
    elif product.version >= (9, 2):
        # Else documents are read without their vectors.
        own["mapping.exclude_source_vectors"] = False
    mappings = {"dynamic": False, "_meta": dict(meta), "properties": properties}
    return {"settings": {"index": {**settings, **own}}, "mappings": mappings}


def _column(field: pa.Field) -> dict[str, Any]:
    kind = field.type
    while json_values.is_list(kind):
        kind = kind.value_type
    if field.name == TEXT:
        return {"type": "text"}
    if pa.types.is_boolean(kind):
        return {"type": "boolean"}
    if pa.types.is_integer(kind):
        return {"type": "long"}
    if pa.types.is_floating(kind):
        return {"type": "double"}
    if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        return {"type": "date", "format": "strict_date_optional_time"}
    if pa.types.is_struct(kind):
        return {"type": "object", "enabled": False}
    return {"type": "keyword", "ignore_above": FILTERED_LETTERS}


def _knn_vector(shape: Shape, product: Product) -> dict[str, Any]:
    # Lucene has all metrics but the one of bits; the other engine got the cosine late.
    method: dict[str, Any] = {"name": "hnsw", "engine": "faiss" if shape.dtype == "binary" else "lucene"}
    method["space_type"] = _SPACES[shape.metric]
    parameters = {"m": shape.index.m, "ef_construction": shape.index.ef_construction}
    if given := {key: value for key, value in parameters.items() if value is not None}:
        method["parameters"] = given
    kind = {"data_type": "binary"} if shape.dtype == "binary" else {}
    return {"type": "knn_vector", "dimension": shape.dim, **kind, "method": method}


def _dense_vector(shape: Shape) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "dense_vector", "dims": shape.dim, "index": True}
    found["element_type"] = "bit" if shape.dtype == "binary" else "float"
    found["similarity"] = _SIMILARITIES[shape.metric]
    parameters = {"m": shape.index.m, "ef_construction": shape.index.ef_construction}
    given = {key: value for key, value in parameters.items() if value is not None}
    if given or shape.index.kind == "hnsw":
        found["index_options"] = {"type": "hnsw", **given}
    return found


# Documents


def upserts(rows: pa.Table, shape: Shape, epoch: int) -> list[bytes]:
    """Return for each row the two lines that put its document there, unless one of a newer epoch is there or was."""
    vectors = matrix(rows, shape)
    # Bits travel as signed bytes.
    vectors = vectors.view(np.int8) if shape.dtype == "binary" else np.ascontiguousarray(vectors, np.float32)
    columns = {
        ID: rows.column(ID).to_pylist(),
        **{field.name: json_values.values_of(rows.column(field.name)) for field in shape.columns},
        CONTENT_HASH: [value.hex() for value in rows.column(CONTENT_HASH).to_pylist()],
        ROW_HASH: rows.column(ROW_HASH).to_pylist(),
    }
    names, embedding = list(columns), shape.embedding
    lines = []
    for values, vector in zip(zip(*columns.values(), strict=True), vectors, strict=True):
        document = {name: value for name, value in zip(names, values, strict=True) if value is not None}
        document[embedding] = vector
        body = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
        lines.append(b"%b%b\n" % (_action(b"index", document[ID], epoch), body))
    return lines


def deletes(ids: Sequence[str], epoch: int) -> list[bytes]:
    """Return for each id the line that removes its document, unless one of a newer epoch is there."""
    return [_action(b"delete", name, epoch) for name in ids]


def _action(verb: bytes, name: str, epoch: int) -> bytes:
    return b'{"%b":{"_id":%b,"version":%d,"version_type":"external_gte"}}\n' % (verb, orjson.dumps(name), epoch)


def keys_of(hits: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Return store.KEYS of hits with the hashes among their `fields`. A document whose own id isn't the row's, or that
    lacks a hash, was changed by somebody: it gets hashes of zeros."""
    contents, numbers = [], []
    for hit in hits:
        fields = hit.get("fields") or {}
        content, number = _first(fields.get(CONTENT_HASH)), _first(fields.get(ROW_HASH))
        ours = _first(fields.get(ID)) == hit["_id"] and isinstance(number, int)
        contents.append(_bytes_of(content) if ours else bytes(16))
        numbers.append(number if ours else 0)
    return pa.table([[hit["_id"] for hit in hits], contents, numbers], schema=KEYS)


def _first(values: Any) -> Any:
    return values[0] if isinstance(values, list) and len(values) == 1 else None


def _bytes_of(text: Any) -> bytes:
    try:
        found = bytes.fromhex(text)
    except (TypeError, ValueError):
        return bytes(16)
    return found if len(found) == 16 else bytes(16)


def rows_of(documents: Sequence[Mapping[str, Any]], shape: Shape) -> pa.Table:
    """Return documents of `_mget`, those that were found, as rows of `shape.schema`."""
    found = [one for one in documents if one.get("found")]
    sources = [one.get("_source") or {} for one in found]
    columns: dict[str, Any] = {ID: [one["_id"] for one in found]}
    for field in shape.columns:
        columns[field.name] = json_values.column_of(field.type, [source.get(field.name) for source in sources])
    columns[CONTENT_HASH] = [_bytes_of(source.get(CONTENT_HASH)) for source in sources]
    numbers = [source.get(ROW_HASH) for source in sources]
    columns[ROW_HASH] = [number if isinstance(number, int) else 0 for number in numbers]
    width = shape.vector.list_size
    vectors = [_vector(source.get(shape.embedding), width, shape) for source in sources]
    empty = np.empty(0, shape.vector.value_type.to_pandas_dtype())
    flat = np.concatenate([empty, *vectors])
    columns[shape.embedding] = pa.FixedSizeListArray.from_arrays(pa.array(flat), type=shape.vector)
    return pa.table(columns, schema=shape.schema)


def _vector(values: Any, width: int, shape: Shape) -> NDArray[Any]:
    """Return a document's vector; numbers that aren't any for one that somebody changed or removed."""
    kind = np.int8 if shape.dtype == "binary" else np.float32
    try:
        found: NDArray[Any] = np.array(values, kind)
    except (TypeError, ValueError, OverflowError):
        found = np.empty(0, kind)
    if found.shape != (width,):
        found = np.full(width, 0 if shape.dtype == "binary" else np.nan, kind)
    return found.view(np.uint8) if shape.dtype == "binary" else found


# Searches


def search(
    vector: NDArray[np.float32], k: int, where: Mapping[str, Any], shape: Shape, product: Product, candidates: int
) -> dict[str, Any]:
    """Return the body of a search for the nearest rows."""
    query = np.packbits(vector > 0).view(np.int8).tolist() if shape.dtype == "binary" else vector.tolist()
    condition = {"bool": {"filter": [_equals(name, value) for name, value in where.items()]}} if where else None
    more = {"filter": condition} if condition else {}
    if product.name == OPENSEARCH:
        nearest = {"vector": query, "k": k, **more}
        return {"size": k, "_source": False, "query": {"knn": {shape.embedding: nearest}}}
    wide = min(10_000, max(k, candidates))
    nearest = {"field": shape.embedding, "query_vector": query, "k": k, "num_candidates": wide, **more}
    return {"size": k, "_source": False, "knn": nearest}


def _equals(name: str, value: Any) -> dict[str, Any]:
    if value is None:
        return {"bool": {"must_not": [{"exists": {"field": name}}]}}
    if hasattr(value, "isoformat"):
        (value,) = json_values.values_of(pa.chunked_array([pa.array([value])]))
    return {"term": {name: value}}
