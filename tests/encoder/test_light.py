"""A query's vector without torch is torch's own, or there is none."""

import json
from dataclasses import replace

import numpy as np
import pytest

from pipeline.config import ModelSpec
from pipeline.encoder import light
from pipeline.encoder.embedder import embedder
from pipeline.encoder.probes import TEXTS
from pipeline.model.folder import encoder_spec
from tests.tiny import build_tiny_model

QUERIES = (
    "what do people say of the market?",
    "서울 날씨",
    "a",
    "北京的天气 and emoji 🙂",
    "MiXeD CaSe, with: punctuation!",
)


def probes_of(spec) -> list[list[float]]:
    return embedder(spec, "cpu").encode(TEXTS).vectors.tolist()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"pooling": ("cls",), "normalize": False, "style": "new"},
        {"prompts": {"query": "find: ", "document": "text: "}, "do_lower_case": True},
        {"truncate_dim": 20, "hidden": 48},
    ],
)
def test_it_is_the_vector_that_torch_gives(tmp_path, settings):
    spec = encoder_spec(ModelSpec(path=str(build_tiny_model(tmp_path / "model", **settings))))
    probes = probes_of(spec)
    expected = embedder(spec.for_queries(), "cpu").encode(QUERIES).vectors
    for query, vector in zip(QUERIES, expected, strict=True):
        found = light.query_vector(spec, query, probes)
        assert found is not None
        assert np.abs(found - vector).max() < 2e-5
        assert found.dtype == np.float32


def test_other_vectors_for_the_probes_and_what_is_not_read_whole_are_left_to_torch(tmp_path):
    spec = encoder_spec(ModelSpec(path=str(build_tiny_model(tmp_path / "model"))))
    probes = probes_of(spec)
    assert light.query_vector(spec, "oil", probes) is not None
    assert light.query_vector(spec, "word " * 70, probes) is None
    changed = [*probes[:5], probes[6], *probes[6:]]
    assert light.query_vector(spec, "oil", changed) is None
    assert light.query_vector(spec, "oil", probes[:3]) is None
    assert light.query_vector(replace(spec, precision="int8"), "oil", probes) is None
    dense = encoder_spec(ModelSpec(path=str(build_tiny_model(tmp_path / "dense", dense=16))))
    assert light.query_vector(dense, "oil", probes_of(dense)) is None


def test_an_engine_is_given_where_the_probes_of_a_table_are_its_own(tmp_path):
    spec = encoder_spec(ModelSpec(path=str(build_tiny_model(tmp_path / "model", prompts={"document": "text: "}))))
    probes = probes_of(spec)
    assert light.light_encoder(spec, 2, probes) is not None
    assert light.light_encoder(spec, 2, ()) is not None
    assert light.light_encoder(spec, 2, [*probes[:5], probes[6], *probes[6:]]) is None
    assert light.light_encoder(spec, 2, [[*vector, 0.0] for vector in probes]) is None
    assert light.light_encoder(spec, 2, probes[:3]) is None
    assert light.light_encoder(replace(spec, precision="int8"), 2, probes) is None


def test_a_model_of_another_activation_is_left_to_torch(tmp_path):
    folder = build_tiny_model(tmp_path / "model")
    probes = probes_of(encoder_spec(ModelSpec(path=str(folder))))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    assert light.query_vector(encoder_spec(ModelSpec(path=str(folder))), "oil", probes) is None
