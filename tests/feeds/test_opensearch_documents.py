"""The lines of a bulk request, and the rows that are read back from documents."""

import json

import numpy as np
import orjson
import pyarrow as pa
import pytest

from pipeline.errors import InputError
from pipeline.feeds import opensearch_documents as documents
from pipeline.feeds.opensearch_documents import ELASTICSEARCH, OPENSEARCH, Product
from pipeline.feeds.store import Shape
from tests.feeds.qdrant_place import TYPES
from tests.feeds.rows import rows_of, shape_of

WIDE = pa.schema([pa.field(f"c {number} ü", kind) for number, kind in enumerate(TYPES)])


def documents_of(rows: pa.Table, shape: Shape) -> list[tuple[dict, dict]]:
    """What the standard library reads from the lines."""
    pairs = [line.splitlines() for line in documents.upserts(rows, shape, 7)]
    assert all(len(pair) == 2 for pair in pairs)
    return [(json.loads(action), json.loads(source)) for action, source in pairs]


@pytest.mark.parametrize("dtype", ["float32", "binary"])
def test_rows_come_back_from_their_documents(dtype):
    shape = shape_of(WIDE, dtype=dtype, metric="hamming" if dtype == "binary" else "cosine")
    rows = rows_of(shape, [*range(60), 'quote " \\ \n\0', "日本語"])
    found = documents_of(rows, shape)
    for (action, source), name in zip(found, rows.column("id").to_pylist(), strict=True):
        assert action == {"index": {"_id": name, "version": 7, "version_type": "external_gte"}}
        assert source["id"] == name
        assert None not in source.values()
    answers = [{"_id": source["id"], "found": True, "_source": source} for _, source in found]
    back = documents.rows_of([*answers, {"_id": "missing", "found": False}], shape)
    assert back.schema.equals(shape.schema)
    assert back.equals(rows.combine_chunks())


def test_no_float_changes_on_its_way():
    shape = shape_of(dim=50_000, metric="dot")
    bits = np.random.default_rng(0).integers(0, 2**32, 50_000, np.uint32)
    floats = bits.view(np.float32)
    floats[~np.isfinite(floats)] = 0.1
    floats[:4] = [-0.0, 1e-45, 3.4028235e38, 1 / 3]
    rows = rows_of(shape_of(dim=1, metric="dot"), ["a"]).drop_columns(["embedding"])
    column = pa.FixedSizeListArray.from_arrays(pa.array(floats), type=shape.vector)
    rows = rows.append_column(shape.schema.field("embedding"), column)
    ((_, source),) = documents_of(rows, shape)
    back = documents.rows_of([{"_id": "a", "found": True, "_source": source}], shape)
    assert back.column("embedding").combine_chunks().flatten().to_numpy().tobytes() == floats.tobytes()


def test_documents_that_somebody_changed_are_read_without_a_crash():
    shape = shape_of(pa.schema([pa.field("number", pa.int64()), pa.field("day", pa.date32())]))
    (_, good), *_ = documents_of(rows_of(shape, ["a"]), shape)
    changes = [
        {"number": "many", "day": "soon"},
        {"embedding": None},
        {"embedding": [1.0]},
        {"embedding": ["x"] * shape.dim},
        {"content_hash": 5, "row_hash": "no"},
        {"content_hash": "zz"},
    ]
    answers = [{"_id": "a", "found": True, "_source": {**good, **change}} for change in changes]
    back = documents.rows_of([*answers, {"_id": "a", "found": True}], shape)
    assert back.num_rows == 7
    assert back.column("number")[0].as_py() is None
    assert np.isnan(back.column("embedding")[1].as_py()).all()
    assert back.column("content_hash")[4].as_py() == bytes(16)


def test_keys_of_documents_that_are_not_ours_have_hashes_of_zeros():
    fields = {"id": ["a"], "content_hash": ["ab" * 16], "row_hash": [-5]}
    hits = [
        {"_id": "a", "fields": fields},
        {"_id": "b", "fields": fields},
        {"_id": "c"},
        {"_id": "a", "fields": {**fields, "row_hash": [1, 2]}},
        {"_id": "a", "fields": {**fields, "content_hash": ["short"]}},
    ]
    found = documents.keys_of(hits)
    assert found.column("id").to_pylist() == ["a", "b", "c", "a", "a"]
    assert found.column("row_hash").to_pylist() == [-5, 0, 0, 0, -5]
    assert [any(value) for value in found.column("content_hash").to_pylist()] == [True, False, False, False, False]


@pytest.mark.parametrize(
    ("root", "found"),
    [
        ({"distribution": "opensearch", "number": "2.19.1"}, Product(name=OPENSEARCH, version=(2, 19))),
        ({"distribution": "opensearch", "number": "3.0.0-beta1"}, Product(name=OPENSEARCH, version=(3, 0))),
        ({"number": "8.17.0", "lucene_version": "9.12.0"}, Product(name=ELASTICSEARCH, version=(8, 17))),
    ],
)
def test_products_are_told_apart(root, found):
    assert documents.product_of({"version": root}) == found


@pytest.mark.parametrize(
    ("root", "words"),
    [
        ({"version": {"distribution": "opensearch", "number": "2.11.0"}}, "opensearch.*2.11.0; 2.16 or newer"),
        ({"version": {"number": "7.17.9", "lucene_version": "8"}}, "elasticsearch.*7.17.9; 8.15 or newer"),
        ({"title": "qdrant", "version": {"number": "1.16.0"}}, "neither OpenSearch nor Elasticsearch"),
        ({}, "neither"),
    ],
)
def test_other_servers_are_refused(root, words):
    with pytest.raises(InputError, match=words):
        documents.product_of(root)


@pytest.mark.parametrize(
    ("product", "setting", "value"),
    [
        (Product(name=OPENSEARCH, version=(3, 1)), "knn.derived_source.enabled", False),
        (Product(name=OPENSEARCH, version=(2, 19)), "knn.derived_source.enabled", None),
        (Product(name=ELASTICSEARCH, version=(9, 2)), "mapping.exclude_source_vectors", False),
        (Product(name=ELASTICSEARCH, version=(8, 17)), "mapping.exclude_source_vectors", None),
    ],
)
def test_vectors_stay_in_the_documents(product, setting, value):
    body = documents.index_of(shape_of(), product, {"number_of_shards": 3}, {"x": 1})
    assert body["settings"]["index"].get(setting) is value
    assert body["settings"]["index"]["number_of_shards"] == 3
    assert body["mappings"]["_meta"] == {"x": 1}
    assert orjson.dumps(body)
