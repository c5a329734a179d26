"""The shape of a generation becomes a collection of Qdrant: its vectors, its indexes, and the filters over its columns.

This file says as well what no collection can take. It makes and reads messages, and calls nobody.
"""

import re
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from qdrant_client import grpc as api
from qdrant_client import models
from qdrant_client.conversions.conversion import RestToGrpc

from pipeline.errors import ConfigError, InputError
from pipeline.feeds import json_values
from pipeline.feeds import qdrant_points as points
from pipeline.feeds.store import Shape
from pipeline.schema import ID, TEXT

MAX_DIM = 65_536

_DISTANCES = {"cosine": "Dot", "dot": "Dot", "euclidean": "Euclid"}
_SETTINGS: Mapping[str, Any] = {
    "shard_number": None,
    "replication_factor": None,
    "write_consistency_factor": None,
    "on_disk_payload": None,
    "hnsw_config": RestToGrpc.convert_hnsw_config_diff,
    "wal_config": RestToGrpc.convert_wal_config_diff,
    "optimizers_config": RestToGrpc.convert_optimizers_config_diff,
    "quantization_config": RestToGrpc.convert_quantization_config,
    "strict_mode_config": RestToGrpc.convert_strict_mode_config,
}
"""It maps the keys of `options.collection`, besides `vectors`, to what turns a model of the client into a message."""


def check(shape: Shape) -> None:
    """Raise InputError for a shape that no collection can have."""
    if shape.dtype == "binary":
        raise InputError(
            "Qdrant has no vectors of bits: feed a table of floats, and let Qdrant make bits of them with "
            "options: {collection: {quantization_config: {binary: {always_ram: true}}}}"
        )
    if shape.metric not in _DISTANCES:
        raise InputError(f"Qdrant doesn't compare by {shape.metric!r}; feeds.metric can be {sorted(_DISTANCES)}")
    if not 1 <= shape.dim <= MAX_DIM:
        raise InputError(f"vectors have {shape.dim} dimensions; Qdrant takes 1 to {MAX_DIM}")
    if shape.index.kind not in ("auto", "hnsw", "none"):
        raise InputError(f"feeds.index.kind is {shape.index.kind!r}; Qdrant has hnsw and none")
    for field in shape.columns:
        if reason := json_values.reason_against(field.type):
            raise InputError(f"Qdrant can't hold column {field.name!r} of type {field.type}: {reason}")
        if field.name == points.EPOCH or '"' in field.name:
            raise InputError(f"Qdrant can't hold a column with the name {field.name!r}: rename it or leave it out")


def created(name: str, shape: Shape, options: Mapping[str, Any]) -> Any:
    """Return the CreateCollection message of a generation. `options.collection` is what Qdrant's REST API takes to create
    a collection; our own settings win. Raises ConfigError where it is wrong."""
    given = dict(options.get("collection") or {})
    if unknown := sorted(set(given) - {*_SETTINGS, "vectors"}):
        raise ConfigError(f"feeds.options.collection has {unknown[0]!r}; it can have {sorted([*_SETTINGS, 'vectors'])}")
    vectors = {
        **(given.get("vectors") or {}),
        "size": shape.dim,
        "distance": _DISTANCES[shape.metric],
        "datatype": shape.dtype,
    }
    graph = {"m": 0 if shape.index.kind == "none" else shape.index.m, "ef_construct": shape.index.ef_construction}
    graph = {key: value for key, value in graph.items() if value is not None}
    if graph:
        given["hnsw_config"] = {**(given.get("hnsw_config") or {}), **graph}
    try:
        found = models.CreateCollection.model_validate({**given, "vectors": vectors})
    except ValueError as error:
        raise ConfigError(f"feeds.options.collection is not what Qdrant takes for a collection: {error}") from None
    request = api.CreateCollection(
        collection_name=name,
        vectors_config=RestToGrpc.convert_vectors_config(found.vectors),
        **{
            key: value if convert is None else convert(value)
            for key, convert in _SETTINGS.items()
            if (value := getattr(found, key)) is not None
        },
    )
    return request


def indexes(shape: Shape, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the paths of the columns that filters can use with the kinds of their indexes. Without
    `options.payload_indexes` these are all columns of fit types but the text."""
    fit = {field.name: kind for field in shape.columns if (kind := _index_kind(field.type)) is not None}
    wanted = options.get("payload_indexes")
    names = [name for name in fit if name != TEXT] if wanted is None else list(wanted)
    for name in names:
        if name not in fit:
            raise ConfigError(f"feeds.options.payload_indexes names {name!r}; columns that can have one: {sorted(fit)}")
    return {points.EPOCH: api.FieldType.FieldTypeInteger, **{_path(name): fit[name] for name in names}}


def _index_kind(kind: pa.DataType) -> Any:
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return api.FieldType.FieldTypeKeyword
    if pa.types.is_boolean(kind):
        return api.FieldType.FieldTypeBool
    if pa.types.is_integer(kind):
        return api.FieldType.FieldTypeInteger
    if pa.types.is_floating(kind):
        return api.FieldType.FieldTypeFloat
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return api.FieldType.FieldTypeDatetime
    return None


def _path(name: str) -> str:
    """Return a column's name as filters have it, where a dot would mean a part of a value."""
    return name if re.fullmatch(r"[\w-]+", name, re.ASCII) else f'"{name}"'


def equals(name: str, value: Any) -> Any:
    """Return the condition that a column has a value."""
    path = _path(name)
    if value is None:
        return api.Condition(is_empty=api.IsEmptyCondition(key=path))
    field = api.FieldCondition(key=path)
    if isinstance(value, bool):
        field.match.boolean = value
    elif isinstance(value, int):
        field.match.integer = value
    elif isinstance(value, float):
        field.range.gte = field.range.lte = value
    elif hasattr(value, "isoformat"):
        (field.match.keyword,) = json_values.values_of(pa.chunked_array([pa.array([value])]))
    else:
        field.match.keyword = str(value)
    return api.Condition(field=field)


def unfit(rows: pa.Table, foreign: str) -> dict[int, str]:
    """Return why Qdrant can't take some rows, by their number: the vector stands last if it is there. No id begins with
    `foreign`, under which points of others are known."""
    if not rows.num_rows:
        return {}
    ids = rows.column(ID)
    reasons = dict.fromkeys(json_values.true_places(pc.equal(ids, "")), "the id is empty")
    reasons |= dict.fromkeys(json_values.true_places(pc.starts_with(ids, foreign)), f"the id begins with {foreign!r}")
    return reasons | json_values.without_numbers(rows)
