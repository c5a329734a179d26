"""`precision: auto`: a table keeps its own on every machine, and a new one gets what its model can bear."""

import shutil

import pytest
from safetensors.numpy import load_file, save_file

from pipeline.config import ModelSpec
from pipeline.encoder.half_precision import half_precision
from pipeline.model.folder import encoder_spec
from pipeline.runs.precision import settled
from pipeline.runs.published import published
from tests import inline
from tests.inline import spec_of

GPU = {"gpus_per_encoder": 1}


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "a.jsonl").write_text('{"id": "1", "text": "a text"}\n{"id": "2", "text": "another one"}\n')
    return folder


@pytest.fixture
def overflowing(tiny_model, tmp_path):
    """The model's weights all are numbers of float16, but what its first layers give is not."""
    folder = shutil.copytree(tiny_model, tmp_path / "overflowing")
    weights = load_file(folder / "model.safetensors")
    (name,) = (name for name in weights if name.endswith("layer.0.intermediate.dense.weight"))
    weights[name] = weights[name] * (60_000 / abs(weights[name]).max())
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_a_new_table_gets_float32_without_gpus(source, tiny_model, tmp_path):
    spec = spec_of(source, tiny_model, tmp_path / "table", model={"precision": "auto"})
    assert settled(spec).model.precision == "float32"
    assert settled(spec_of(source, tiny_model, tmp_path / "table")).model.precision == "float32"


def test_a_new_table_on_gpus_gets_float16_where_the_model_stays_finite_in_it(
    source, tiny_model, overflowing, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for model, expected in ((tiny_model, "float16"), (overflowing, "bfloat16")):
        spec = spec_of(source, model, tmp_path / "table", model={"precision": "auto"}, resources=GPU)
        assert settled(spec).model.precision == expected
        # What was found is kept on the node.
        assert half_precision(encoder_spec(ModelSpec(path=str(model)))) == expected
    kept = sorted(path.read_text() for path in (tmp_path / "cache").rglob("precision"))
    assert kept == ["bfloat16", "float16"]


@pytest.mark.parametrize("given", ["float32", "bfloat16"])
def test_a_table_keeps_its_precision_on_another_machine(source, tiny_model, tmp_path, given):
    built = spec_of(source, tiny_model, tmp_path / "table", model={"precision": given})
    version = inline.embed(built)
    for resources in ({}, GPU, {"gpus_per_encoder": 0}):
        spec = spec_of(source, tiny_model, tmp_path / "table", model={"precision": "auto"}, resources=resources)
        assert settled(spec).model.precision == given
        # Whoever only reads the table needs no answer of a machine.
        assert published(spec).encoder.precision == given
    (source / "b.jsonl").write_text('{"id": "3", "text": "a third one"}\n')
    spec = settled(spec_of(source, tiny_model, tmp_path / "table", model={"precision": "auto"}))
    assert inline.reindex(spec).fingerprint == version.fingerprint


def test_another_model_may_get_another_precision(source, tiny_model, tmp_path):
    inline.embed(spec_of(source, tiny_model, tmp_path / "table", model={"precision": "bfloat16"}))
    spec = spec_of(source, tiny_model, tmp_path / "table", model={"precision": "auto"})
    assert settled(spec, new_model=True).model.precision == "float32"
