"""The budget of a batch: the smallest that is about as fast as any, kept per node; never one that doesn't fit."""

import time

import numpy as np
import pytest

from pipeline.config import ModelSpec
from pipeline.encoder.batch_size import CANDIDATES, best_budget
from pipeline.encoder.encoder import Encoder, build_encoder
from pipeline.encoder.engines.base import OutOfMemory
from pipeline.model.folder import encoder_spec

SMALLEST, *_, LARGEST = CANDIDATES["cpu"]


class TimedEngine:
    """Takes as long as it is told for a call and for a token."""

    name = "timed"
    dim = 3

    def __init__(self, call_s=0.0, token_s=0.0, max_cells=10**9):
        self.call_s, self.token_s, self.max_cells = call_s, token_s, max_cells
        self.calls = 0

    def encode(self, ids, lengths):
        self.calls += 1
        if ids.size > self.max_cells:
            raise OutOfMemory("too large")
        time.sleep(self.call_s + self.token_s * ids.size)
        return np.ones((len(ids), 3), np.float32)


@pytest.fixture
def spec(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return encoder_spec(ModelSpec(path=str(tiny_model)))


@pytest.mark.parametrize(
    ("engine", "expected"),
    [
        (TimedEngine(call_s=0.05), LARGEST),  # only calls cost
        (TimedEngine(token_s=2e-5), SMALLEST),  # only tokens do
        (TimedEngine(call_s=1.0), 777),  # too slow to measure: what it was given
    ],
    ids=["calls", "tokens", "slow"],
)
def test_the_smallest_of_the_fastest_is_taken(engine, expected, spec):
    encoder = Encoder(engine, 777, overhead_tokens=10**6)
    assert best_budget(encoder, spec, "cpu", 1) == expected
    assert encoder.budget_tokens == 777


def test_it_is_measured_once_per_node_model_and_threads(spec):
    engine = TimedEngine(token_s=1e-6)
    first = best_budget(Encoder(engine, 777), spec, "cpu", 1)
    calls = engine.calls
    assert best_budget(Encoder(engine, 777), spec, "cpu", 1) == first
    assert engine.calls == calls
    best_budget(Encoder(engine, 777), spec, "cpu", 2)
    assert engine.calls > calls


def test_a_budget_that_does_not_fit_is_not_taken(spec):
    engine = TimedEngine(call_s=0.02, max_cells=1500)
    encoder = Encoder(engine, 1024, overhead_tokens=10**6)
    assert best_budget(encoder, spec, "cpu", 1) <= 1500
    assert encoder.budget_tokens == 1024


def test_a_real_encoder_has_one_and_its_vectors_are_the_same(spec):
    encoder = build_encoder(spec, "cpu", 1)
    assert best_budget(encoder, spec, "cpu", 1) in CANDIDATES["cpu"]
