"""Texts from the edges: the ids and the vectors of sentence-transformers, or a dead letter where that has no vector of use."""

import itertools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from pipeline.config import ModelSpec
from pipeline.encoder.encoder import build_encoder
from pipeline.encoder.tokenizer import Tokenizer
from pipeline.model.folder import encoder_spec
from tests import inline
from tests.architectures import build_architecture
from tests.inline import read_table, spec_of, vectors_of
from tests.parity.comparison import COMPOSITIONS, assert_same_tokens, difference, oracle_vectors
from tests.parity.figures import record
from tests.parity.saved import change
from tests.parity.test_cards import write_source
from tests.parity.texts import EDGE_TEXTS, LONG_TEXTS, TEXTS
from tests.tiny import load_oracle

KINDS = {"bert": "WordPiece", "roberta": "byte-level BPE", "qwen3": "byte-level BPE, NFC", "xlm-roberta": "Unigram"} | {
    "t5": "Unigram",
    "gpt2": "byte-level BPE without special tokens",
    "llama": "BPE with bytes",
}
"""model_type -> the kind of its tokenizer."""
QUICK = {("bert", True), ("roberta", False), ("t5", False), ("qwen3", True)}
CASES = [
    pytest.param(model_type, lower, marks=[] if (model_type, lower) in QUICK else pytest.mark.slow)
    for model_type, lower in itertools.product(KINDS, (False, True))
]


def build(folder: Path, model_type: str, *, lower: bool) -> Path:
    """A model that reads 48 tokens; `lower` is the switch in sentence_bert_config.json."""
    tokenizer = {"do_lower_case": False} if model_type == "bert" else {}
    build_architecture(folder, model_type, style="legacy", tokenizer=tokenizer)
    change(folder / "sentence_bert_config.json", do_lower_case=lower)
    return folder


@pytest.mark.parametrize(("model_type", "lower"), CASES)
def test_edges_have_the_ids_and_vectors_of_the_oracle(tmp_path, model_type, lower):
    prove(tmp_path / "model", model_type, EDGE_TEXTS, lower=lower)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", KINDS)
def test_long_texts_have_the_ids_and_vectors_of_the_oracle(tmp_path, model_type):
    prove(tmp_path / "model", model_type, LONG_TEXTS, lower=False)


def prove(folder: Path, model_type: str, edges: Mapping[str, str], *, lower: bool) -> None:
    """In one batch with normal texts, with and without a prompt."""
    build(folder, model_type, lower=lower)
    texts = [*edges.values(), *TEXTS]
    oracle = load_oracle(folder)
    for overrides in ({}, {"prompt": "Query: "}):
        spec = encoder_spec(ModelSpec(path=str(folder), **overrides))
        tokenizer, encoder = Tokenizer(spec, 1), build_encoder(spec, "cpu", 1)
        tokens = tokenizer.tokenize(texts)
        assert_same_tokens(tokens, tokenizer, oracle, texts, spec)
        expected = oracle_vectors(oracle, texts, spec, overrides)
        worst = max(difference(compose(encoder, tokens), tokens, expected) for compose in COMPOSITIONS)
        record(worst, ("edge texts", KINDS[model_type]), *(("edge text", name) for name in edges))


@pytest.mark.parametrize("model_type", KINDS)
def test_lower_casing_does_something(tmp_path, model_type):
    texts = ["OIL Price ΟΔΟΣ", "oil price οδοσ"]
    for lower in (False, True):
        spec = encoder_spec(ModelSpec(path=str(build(tmp_path / str(lower), model_type, lower=lower))))
        rows = Tokenizer(spec, 1).tokenize(texts)
        first, second = rows.ids[: rows.offsets[1]].tolist(), rows.ids[rows.offsets[1] :].tolist()
        assert (first == second) is lower


def test_texts_without_a_vector_are_dead_letters_and_no_others(tmp_path):
    """A table of the edges: what the oracle gives no token, zeros or nothing finite for is a dead letter, all else a row."""
    folder = build(tmp_path / "model", "gpt2", lower=False)
    names, texts = [*EDGE_TEXTS], [*EDGE_TEXTS.values()]
    source = write_source(texts, tmp_path / "source.jsonl")
    limits = {"max_failed_rows": 1.0}
    version = inline.embed(spec_of(source, folder, tmp_path / "table", limits=limits))
    rows = read_table(tmp_path / "table")
    oracle = load_oracle(folder)
    expected = oracle.encode(texts)
    tokens = [len(oracle.preprocess([text])["input_ids"][0]) for text in texts]
    useless = ~np.isfinite(expected).all(axis=1) | ~expected.any(axis=1) | (np.array(tokens) == 0)
    assert [names[number] for number in np.flatnonzero(useless)] == ["empty"]
    kept = [f"{number:06}" for number in np.flatnonzero(~useless)]
    assert rows["id"].to_pylist() == kept
    assert version.counts.failed == useless.sum()
    assert np.abs(vectors_of(rows) - expected[~useless]).max() <= 1e-5
