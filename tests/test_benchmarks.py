"""The benchmarks' own arithmetic, and that a contestant answers."""

import contextlib

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import arithmetic, corpora, results
from benchmarks.contestants import Settings, Turn
from benchmarks.processes import Process


def test_flops_are_those_that_torch_counts(tiny_model):
    model = transformers.BertModel.from_pretrained(tiny_model, add_pooling_layer=False, attn_implementation="eager")
    lengths = [3, 17, 30]
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        for length in lengths:
            model(input_ids=torch.ones(1, length, dtype=torch.long))
    assert arithmetic.flops_of(lengths, tiny_model) == counter.get_total_flops()


def test_medians_and_ratios_of_the_same_round():
    base = [Turn(documents=100, seconds=seconds) for seconds in (1.0, 2.0, 4.0)]
    turns = [Turn(documents=100, seconds=seconds, padding=0.5) for seconds in (0.5, 0.5, 1.0)]
    row = results.row("x", turns, base, tokens=1000, flops=4e9, ceiling=1e10, memory_bytes=0, start_s=0.0)
    assert (row.docs_per_s, row.least, row.most) == (200, 100, 200)
    assert (row.ratio, row.tokens_per_s, row.peak_share, row.padding) == (4.0, 2000, 0.8, 0.5)


def test_a_share_is_spread_over_the_corpus():
    whole = corpora.demo_texts()
    some = corpora.load(corpora.DEMO, corpora.ROOT, 0.25, None).texts
    places = [whole.index(text) for text in some]
    assert len(some) == round(len(whole) / 4)
    assert places[0] == 0
    assert places[-1] > 0.98 * len(whole)


@pytest.mark.slow
def test_contestants_embed_every_text_in_every_turn(tiny_model, tmp_path):
    corpora.write(corpora.Corpus(name="c", texts=["some text"] * 40), tmp_path)
    settings = Settings(corpus=str(tmp_path), model=str(tiny_model), threads=1)
    for name in ("bare", "encode", "ray", "job"):
        with contextlib.closing(Process(name, settings)) as process:
            turns = [process.turn() for _ in range(2)]
        assert [turn.documents for turn in turns] == [40, 40]
        assert all(turn.seconds > 0 for turn in turns)


@pytest.mark.slow
def test_a_contestant_that_fails_says_why(tiny_model, tmp_path):
    with pytest.raises(SystemExit, match=r"model\.precision"):
        Process("bare", Settings(corpus=str(tmp_path), model=str(tiny_model), threads=1, precision="float7"))
