"""The probe texts' token ids: those of the tokenizer, found once on a node; an encoder that has them needs no torch."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers.models import WordLevel

from pipeline.config import ModelSpec
from pipeline.encoder import probe_tokens as module
from pipeline.encoder.encoder import build_encoder
from pipeline.encoder.probe_tokens import probe_tokens
from pipeline.encoder.probes import TEXTS
from pipeline.encoder.tokenizer import Tokenizer
from pipeline.model.folder import encoder_spec
from tests.architectures import build_static


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("kind", ["transformer", "static"])
def test_they_are_the_tokenizers_and_are_found_once(kind, tiny_model, tmp_path, monkeypatch):
    words = Backend(WordLevel({"[UNK]": 0, "the": 1, "Moon": 2}, "[UNK]"))
    path = tiny_model if kind == "transformer" else build_static(tmp_path / "static", words)
    spec = encoder_spec(ModelSpec(path=str(path), prompt="query: "))
    tokenizer = Tokenizer(spec, 1)
    expected = tokenizer.tokenize(list(TEXTS))
    first = probe_tokens(spec)
    monkeypatch.setattr(module, "Tokenizer", lambda *_: pytest.fail("loaded again"))
    for found in (first, probe_tokens(spec), probe_tokens(replace(spec, precision="int8"))):
        np.testing.assert_array_equal(found.rows.ids, expected.ids)
        np.testing.assert_array_equal(found.rows.offsets, expected.offsets)
        np.testing.assert_array_equal(found.rows.truncated, expected.truncated)
        assert found.rows.failed == expected.failed
        assert found.token_types == tokenizer.gives_token_types


@pytest.mark.parametrize("change", [{"prompt": "other: "}, {"max_seq_length": 20}, {"do_lower_case": True}])
def test_what_changes_the_ids_is_another_key(change, tiny_model):
    spec = encoder_spec(ModelSpec(path=str(tiny_model)))
    before = probe_tokens(spec).rows
    changed = replace(spec, **change)
    after = probe_tokens(changed).rows
    np.testing.assert_array_equal(after.ids, Tokenizer(changed, 1).tokenize(list(TEXTS)).ids)
    assert not np.array_equal(after.ids, before.ids) or change == {"do_lower_case": True}


def test_an_encoder_whose_graph_is_made_starts_without_torch(tiny_model):
    spec = encoder_spec(ModelSpec(path=str(tiny_model)))
    assert build_encoder(replace(spec, engine="made"), "cpu", 1).engine.name == "torch"
    graph = build_encoder(replace(spec, engine="auto"), "cpu", 1)
    rows = probe_tokens(spec).rows
    script = (
        "import sys; from dataclasses import replace; from pipeline.config import ModelSpec\n"
        "from pipeline.encoder.encoder import build_encoder; from pipeline.encoder.probe_tokens import probe_tokens\n"
        "from pipeline.model.folder import encoder_spec\n"
        f"spec = replace(encoder_spec(ModelSpec(path={str(tiny_model)!r})), engine='made')\n"
        "encoder = build_encoder(spec, 'cpu', 1)\n"
        "print(encoder.engine.name, {'torch', 'transformers'} & set(sys.modules))\n"
        "print(encoder.encode(probe_tokens(spec).rows).vectors.tobytes().hex())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    *_, said, vectors = done.stdout.splitlines()
    assert said == "openvino set()"
    found = np.frombuffer(bytes.fromhex(vectors), np.float32).reshape(len(TEXTS), -1)
    np.testing.assert_array_equal(found, graph.encode(rows).vectors)
    exact = build_encoder(replace(spec, engine="torch"), "cpu", 1).encode(rows).vectors
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-5)
