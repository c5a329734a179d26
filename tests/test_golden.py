"""A whole run's identities, pinned from file bytes to unit ids: a change here makes every table out there look new.

The single hashes are pinned in test_identity.py. Where one of these must change, raise identity.SEMANTICS or the table's
format and say so in the log; never just paste the new value.
"""

import json
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline import config, identity
from pipeline.model.digest import folder_digest
from pipeline.model.folder import encoder_spec
from pipeline.runs import plan
from pipeline.runs.vector_spec import _calibration_key
from pipeline.work import SourceFile, Span

FILES = {
    "config.json": {
        "model_type": "bert", "hidden_size": 32, "num_hidden_layers": 2, "max_position_embeddings": 512,
        "output_hidden_states": True,
    },
    "tokenizer.json": {"version": "1.0"},
    "sentence_bert_config.json": {"max_seq_length": 128, "do_lower_case": True},
    "config_sentence_transformers.json": {"prompts": {"document": "passage: "}, "similarity_fn_name": "dot"},
    "1_WeightedLayerPooling/config.json": {"embedding_dimension": 32, "num_hidden_layers": 2, "layer_start": 1},
    "2_Pooling/config.json": {"embedding_dimension": 32, "pooling_mode": ["mean", "cls"], "include_prompt": False},
    "3_Dense/config.json": {"in_features": 64, "out_features": 16, "activation_function": "torch.nn.GELU"},
    "4_LayerNorm/config.json": {"dimension": 16},
}  # fmt: skip
WEIGHTS = ["model.safetensors", "1_WeightedLayerPooling/model.safetensors", "3_Dense/model.safetensors"]
MODULES = ["Transformer", "WeightedLayerPooling", "Pooling", "Dense", "LayerNorm", "Normalize"]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder in the format; its weights are bytes that nobody loads, and here nobody checks: the values below must not move
    with what a version of safetensors writes."""
    for module in ("transformer", "saved_modules"):
        monkeypatch.setattr(f"pipeline.model.{module}.check_weights", lambda path: None)
    root = tmp_path / "model"
    paths = ["", *(f"{number}_{name}" for number, name in enumerate(MODULES[1:], 1))]
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{name}"}
        for number, (name, path) in enumerate(zip(MODULES, paths, strict=True))
    ]
    for name, value in {**FILES, "modules.json": modules}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(json.dumps(value))
    for name in [*WEIGHTS, "4_LayerNorm/model.safetensors"]:
        (root / name).write_bytes(name.encode())
    return root


def run_of(folder: Path) -> config.RunSpec:
    return config.from_mapping(
        {
            "source": {"path": "x/*.jsonl", "id": ["shard", "n"], "text": ["title", "body"], "keep": ["title", "year"]},
            "model": {"path": str(folder), "prompt_name": "document", "truncate_dim": 8, "normalize": True},
            "chunk": {"max_tokens": 64, "overlap_tokens": 8},
            "table": {"path": "y", "partition_by": ["lang"], "dtype": "float16"},
        }
    )


def test_the_identity_of_a_model_folder(folder):
    assert folder_digest(folder) == "11155a83c948cd6b0f646107a3accc51af28c8d211a3ba1eff1444610484c78d"


def test_the_fingerprint_of_a_run(folder):
    run = run_of(folder)
    known = encoder_spec(run.model).identity()
    assert {name: value for name, value in known.items() if name != "model"} == {
        "max_seq_length": 128,
        "do_lower_case": True,
        "prompt": "passage: ",
        "include_prompt": False,
        "pooling": ["mean", "cls"],
        "token_modules": [{"module": "WeightedLayerPooling", "layer_start": 1, "num_layers": 2}],
        "post_modules": [
            {"module": "Dense", "in_features": 64, "out_features": 16, "bias": True, "activation": "GELU"},
            {"module": "LayerNorm", "dimension": 16},
            {"module": "Normalize"},
        ],
        "truncate_dim": 8,
        "normalize": True,
        "precision": "float32",
    }
    assert (
        identity.digest(identity.vectors_spec(known, run.table.dtype, run.chunk_identity))
        == "4af0461b56b52237fa8bf7b14682fd1f"
    )


def test_the_output_of_a_run_and_its_units(folder):
    schema = pa.schema({"shard": pa.string(), "n": pa.int64(), "title": pa.string(), "body": pa.string()})
    schema = schema.append(pa.field("year", pa.int16())).append(pa.field("lang", pa.string()))
    output = identity.digest(plan.output_spec(run_of(folder), schema, {"jsonl"}))
    assert output == "8c1bd9661015f43730b2bc6acfa41ab0"
    file = SourceFile(path="x/a.jsonl", size=100, version="100-1", format="jsonl")
    span = Span(file=file, kind="bytes", start=0, stop=100, rows=None)
    assert identity.unit_id([span], output, "f" * 32) == "a2afce1e507fc1a1e07dd7b00c07be9a"


def test_the_place_of_the_ranges_of_a_table_without_a_version(folder):
    spec = run_of(folder)
    words = identity.vectors_spec(encoder_spec(spec.model).identity(), "int8", spec.chunk_identity)
    assert _calibration_key(spec, words, "f" * 32) == "8dae4c5d10ae3a17f6d15d4611a5da2e"


def test_the_identity_of_ids():
    first, second = identity.id_hashes(pa.array(["a", "문서#1"])).tolist()
    assert [f"{value:016x}" for value in (*first, *second)] == [
        "7f8773936e5ec327",
        "7e49464e4662e529",
        "44b5b514940f8603",
        "96739c8e139ec151",
    ]
