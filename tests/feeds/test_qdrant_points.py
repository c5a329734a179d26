"""The bytes of Qdrant's requests: what is put together from pieces is the message that the client would have made."""

import base64
import uuid

import numpy as np
import pyarrow as pa
import pytest
from qdrant_client import grpc as api
from qdrant_client.conversions.conversion import payload_to_grpc

from pipeline.feeds import qdrant_points as points
from pipeline.feeds.json_values import values_of
from pipeline.feeds.store import Shape
from tests.feeds.qdrant_place import TYPES
from tests.feeds.rows import PLAIN, ordered, rows_of, shape_of

WIDE = pa.schema([pa.field(f"c {number}.ü", kind) for number, kind in enumerate(TYPES)])


def message_of(rows: pa.Table, shape: Shape, epoch: int = 7) -> api.UpsertPoints:
    head = api.UpsertPoints(collection_name="docs", wait=True).SerializeToString()
    vectors = points.unit_vectors(rows, shape)
    return api.UpsertPoints.FromString(head + points.upsert_body(rows, shape, vectors, epoch))


def reference_of(rows: pa.Table, shape: Shape, epoch: int = 7) -> api.UpsertPoints:
    """The same by the client's own means, value by value."""
    request = api.UpsertPoints(collection_name="docs", wait=True)
    texts = {field.name: values_of(rows.column(field.name)) for field in shape.columns}
    for number, row in enumerate(rows.to_pylist()):
        payload = {"id": row["id"], "content_hash": row["content_hash"].hex(), "row_hash": row["row_hash"]}
        payload |= {name: values[number] for name, values in texts.items() if values[number] is not None}
        payload[points.EPOCH] = epoch
        data = np.array(row["embedding"], np.float32).tolist()
        request.points.append(
            api.PointStruct(
                id=api.PointId(uuid=str(uuid.uuid5(uuid.NAMESPACE_OID, row["id"]))),
                payload=payload_to_grpc(payload),
                vectors=api.Vectors(vector=api.Vector(dense=api.DenseVector(data=data))),
            )
        )
    return request


@pytest.mark.parametrize("columns", [WIDE, PLAIN, pa.schema([])], ids=["all types", "two columns", "none"])
@pytest.mark.parametrize(("dim", "dtype"), [(1, "float32"), (24, "float16"), (500, "float32")])
def test_the_spliced_message_is_the_clients(columns, dim, dtype):
    shape = shape_of(columns, dim=dim, dtype=dtype)
    rows = rows_of(shape, [*range(60), "日本語\0\n", "x" * 5000], seed=dim)
    assert message_of(rows, shape) == reference_of(rows, shape)
    assert message_of(rows.slice(7, 20), shape) == reference_of(rows.slice(7, 20), shape)


def test_no_float_changes_on_its_way():
    shape = shape_of(dim=8, metric="dot")
    odd = np.array([[0.0, -0.0, 1e-45, -1e-38, 3.4028235e38, 1 / 3, -2.5, np.float32(0.1)]], np.float32)
    rows = rows_of(shape, ["a"])
    vector = pa.FixedSizeListArray.from_arrays(pa.array(odd.reshape(-1)), type=shape.vector)
    rows = rows.set_column(rows.num_columns - 1, shape.schema.field("embedding"), vector)
    (point,) = message_of(rows, shape).points
    assert np.array(point.vectors.vector.dense.data, np.float32).tobytes() == odd.tobytes()


def answered(rows: pa.Table, shape: Shape, old: bool = False) -> list[api.RetrievedPoint]:
    """The points as a server gives them back."""
    out = []
    for point in message_of(rows, shape).points:
        data = point.vectors.vector.dense.data
        vector = api.VectorOutput(data=data) if old else api.VectorOutput(dense=api.DenseVector(data=data))
        out.append(api.RetrievedPoint(id=point.id, payload=point.payload, vectors=api.VectorsOutput(vector=vector)))
    return out


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("old", [False, True], ids=["dense", "data"])
def test_rows_come_back(dtype, old):
    shape = shape_of(WIDE, dtype=dtype)
    rows = rows_of(shape, range(50))
    found = points.rows_of(answered(rows, shape, old), shape)
    assert found.schema.equals(shape.schema)
    assert found.equals(ordered(rows).take(pa.array(np.argsort(np.argsort([str(n) for n in range(50)])))))
    keys = points.keys_of(answered(rows, shape), "other:")
    assert keys.to_pylist() == rows.select(keys.column_names).to_pylist()


def test_values_that_somebody_changed_to_another_type_are_null():
    shape = shape_of(pa.schema([pa.field("number", pa.int64()), pa.field("day", pa.date32())]))
    found = answered(rows_of(shape, ["a", "b"]), shape)
    found[0].payload["number"].string_value = "many"
    found[0].payload["day"].string_value = "soon"
    found[1].payload["number"].integer_value = 3
    rows = points.rows_of(found, shape)
    assert rows.column("number").to_pylist() == [None, 3]
    assert rows.column("day")[0].as_py() is None


def test_points_of_others_are_told_from_ours():
    shape = shape_of()
    found = answered(rows_of(shape, ["a", "b", "c", "d", "e"]), shape)
    found[1].payload["id"].string_value = "x"
    found[2].id.num = 5
    del found[3].payload["row_hash"]
    found[4].payload["content_hash"].string_value = base64.b64encode(b"x" * 24).decode()
    names = points.keys_of(found, "other:").column("id").to_pylist()
    assert names[:3] == ["a", f"other:{found[1].id.uuid}", "other:5"]
    assert names[3:] == [f"other:{found[3].id.uuid}", "e"]


def test_only_vectors_of_another_length_are_brought_to_one():
    shape = shape_of(dim=3)
    vectors = np.array([[1, 0, 0], [3, 4, 0], [0.6, 0.8, 0], [1e-20, 0, 0]], np.float32)
    rows = rows_of(shape, range(4))
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), type=shape.vector)
    rows = rows.set_column(rows.num_columns - 1, shape.schema.field("embedding"), column)
    expected = np.array([[1, 0, 0], [0.6, 0.8, 0], [0.6, 0.8, 0], [1, 0, 0]], np.float32)
    assert points.unit_vectors(rows, shape).tobytes() == expected.tobytes()
    assert points.unit_vectors(rows, shape_of(dim=3, metric="dot")).tobytes() == vectors.tobytes()
