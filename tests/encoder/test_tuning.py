"""An encoder's settings: the fastest on this node for a table's lengths, kept; never a form that computes something else."""

import json

import numpy as np
import pytest

from pipeline.config import ModelSpec
from pipeline.encoder import forms, tuning
from pipeline.encoder.encoder import Encoder, build_encoder, encoder_of
from pipeline.encoder.engines import packed_torch
from pipeline.encoder.engines.base import GraphForm, OutOfMemory
from pipeline.encoder.engines.packed_torch import packed_if_proven
from pipeline.encoder.engines.torch import TorchEngine
from pipeline.encoder.settings import Fixed, Setup
from pipeline.encoder.token_rows import TokenRows
from pipeline.encoder.tuning import BUDGETS, tuned, untuned
from pipeline.machine.processor import processor
from pipeline.model.folder import encoder_spec

SMALLEST, *_, LARGEST = BUDGETS["cpu"]
LENGTHS = np.repeat([16, 64, 256], [160, 40, 10])
"""A third of the tokens stands in rows of each length."""


class Clock:
    """The time that made-up engines take passes on it alone, and exactly."""

    now = 0.0

    def perf_counter(self):
        return self.now


CLOCK = Clock()


class TimedEngine:
    """Takes as long as it is told for a call and for a token, on the made-up clock."""

    name = "timed"
    dim = 3

    def __init__(self, call_s=0.0, token_s=0.0, max_cells=10**9):
        self.call_s, self.token_s, self.max_cells = call_s, token_s, max_cells
        self.calls = 0

    def encode(self, ids, lengths):
        self.calls += 1
        if ids.size > self.max_cells:
            raise OutOfMemory("too large")
        CLOCK.now += self.call_s + self.token_s * ids.size
        return np.ones((len(ids), 3), np.float32)


class ManyForms(TimedEngine):
    """Attention costs a token more, the wider its row is: 1 us and 100 ns for each token of the width, or `fused` both.
    Float32 between int8 products costs `of_float32` times as much as bfloat16 does, where there is bfloat16."""

    may_fuse = True

    def __init__(self, fused=(1e-6, 1e-7), of_fused=1.0, of_float32=0.0):
        super().__init__()
        self.fused, self.of_fused, self.of_float32 = fused, of_fused, of_float32
        self.may_bfloat16 = bool(of_float32)
        self.form = GraphForm(fused_from=64, bfloat16=self.may_bfloat16)
        self.settled = None

    def encode(self, ids, lengths):
        width = ids.shape[1]
        fused = self.form.fused_from is not None and width >= self.form.fused_from
        fixed, of_width = self.fused if fused else (1e-6, 1e-7)
        self.token_s = fixed + of_width * width
        if self.may_bfloat16 and not self.form.bfloat16:
            self.token_s *= self.of_float32
        vectors = super().encode(ids, lengths)
        if fused and self.of_fused is None:
            raise RuntimeError("not on this processor")
        vectors[:, 0] *= self.of_fused if fused else 1.0
        return vectors

    def settle(self, form):
        self.form = self.settled = form


@pytest.fixture
def spec(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return encoder_spec(ModelSpec(path=str(tiny_model), max_seq_length=256, engine="openvino"))


@pytest.fixture
def _made_up_time(monkeypatch):
    monkeypatch.setattr(tuning, "time", CLOCK)
    monkeypatch.setattr(forms, "time", CLOCK)


def setup_of(spec, threads=1, **fixed) -> Setup:
    return Setup(spec=spec, device="cpu", threads=threads, fixed=Fixed(**fixed))


def tuned_budget(engine, spec):
    return tuned(Encoder(engine, 777, overhead_tokens=10**6), setup_of(spec), np.full(100, 16)).budget_tokens


@pytest.mark.parametrize(
    ("engine", "expected"),
    [
        (TimedEngine(call_s=0.05), LARGEST),  # only calls cost
        (TimedEngine(token_s=2e-5), SMALLEST),  # only tokens do
        (TimedEngine(call_s=1.0), 777),  # too slow to measure: what it was given
    ],
    ids=["calls", "tokens", "slow"],
)
@pytest.mark.usefixtures("_made_up_time")
def test_the_smallest_of_the_fastest_batches_is_taken(engine, expected, spec):
    assert tuned_budget(engine, spec) == expected


@pytest.mark.usefixtures("_made_up_time")
def test_a_batch_that_does_not_fit_is_not_taken(spec):
    assert tuned_budget(TimedEngine(call_s=0.02, max_cells=1500), spec) <= 1500


@pytest.mark.usefixtures("_made_up_time")
def test_it_is_measured_once_per_node_model_threads_and_lengths(spec):
    engine = TimedEngine(token_s=1e-6)

    def calls(threads=1, lengths=LENGTHS):
        before = engine.calls
        found = tuned(Encoder(engine, 777), setup_of(spec, threads), lengths)
        return engine.calls - before, found.budget_tokens

    first, budget = calls()
    assert first > 0
    assert calls() == (0, budget)
    for others in (LENGTHS[::-1] + 1, LENGTHS * 11 // 10, LENGTHS - LENGTHS // 6):  # Slices of one table differ so.
        assert calls(lengths=others) == (0, budget)
    assert calls(threads=2)[0] > 0
    assert calls(lengths=LENGTHS * 4)[0] > 0


@pytest.mark.usefixtures("_made_up_time")
def test_where_there_is_little_to_do_only_what_was_found_before_is_used(spec):
    engine = TimedEngine(call_s=0.02)
    assert tuned(Encoder(engine, 777), setup_of(spec), LENGTHS, measures=False).budget_tokens == 777
    assert engine.calls == 0
    found = tuned(Encoder(engine, 777, 10**6), setup_of(spec), LENGTHS).budget_tokens
    calls = engine.calls
    again = tuned(Encoder(engine, 777), setup_of(spec), LENGTHS, measures=False)
    assert (again.budget_tokens, engine.calls) == (found, calls) != (777, calls)
    assert again.settings


@pytest.mark.parametrize(
    ("engine", "expected"),
    [
        (ManyForms(fused=(5e-6, 1e-7)), None),  # dearer everywhere
        (ManyForms(fused=(1e-6, 0.98e-7)), None),  # not by enough
        (ManyForms(fused=(1e-6, 5e-8)), 0),  # cheaper everywhere
        (ManyForms(fused=(8e-6, 1e-8)), 128),  # cheaper in wide rows: between 64 and 256
        (ManyForms(fused=(1e-6, 0.0), of_fused=-1.0), None),  # it computes something else
        (ManyForms(fused=(1e-6, 0.0), of_fused=float("nan")), None),
        (ManyForms(fused=(1e-6, 0.0), of_fused=None), None),  # it fails
    ],
    ids=["dearer", "hardly cheaper", "cheaper", "in wide rows", "wrong", "nan", "fails"],
)
@pytest.mark.usefixtures("_made_up_time")
def test_attention_is_fused_where_that_is_faster_and_the_same(engine, expected, spec):
    encoder = tuned(Encoder(engine, 1024), setup_of(spec, batch_tokens=1024), LENGTHS)
    assert encoder.engine.settled == engine.form == GraphForm(fused_from=expected)
    assert "attention" in encoder.settings
    assert "16/64/256 tokens" in encoder.settings
    kept = tuned(Encoder(ManyForms(), 1024), setup_of(spec, batch_tokens=1024), LENGTHS, measures=False)
    assert kept.engine.settled == GraphForm(fused_from=expected)


@pytest.mark.parametrize(
    ("engine", "expected"),
    [
        (ManyForms(of_float32=1.2), GraphForm(fused_from=None, bfloat16=True)),
        (ManyForms(of_float32=1.0), GraphForm(fused_from=None, bfloat16=True)),  # nothing is won by the other
        (ManyForms(of_float32=0.8, fused=(1e-6, 1e-7)), GraphForm(fused_from=0)),
        (ManyForms(fused=(8e-6, 1e-8), of_float32=1.2), GraphForm(fused_from=128, bfloat16=True)),
        (ManyForms(fused=(1e-6, 5e-8), of_fused=-1.0, of_float32=0.1), GraphForm(fused_from=None, bfloat16=True)),
    ],
    ids=["dearer", "as dear", "cheaper", "in wide rows", "wrong"],
)
@pytest.mark.usefixtures("_made_up_time")
def test_the_rest_of_an_int8_graph_is_in_float32_only_where_that_is_faster(engine, expected, spec):
    encoder = tuned(Encoder(engine, 1024), setup_of(spec, batch_tokens=1024), LENGTHS)
    assert encoder.engine.settled == expected
    assert f"{'bfloat16' if expected.bfloat16 else 'float32'} between int8 products" in encoder.settings
    kept = tuned(Encoder(ManyForms(of_float32=1.0), 1024), setup_of(spec, batch_tokens=1024), LENGTHS, measures=False)
    assert kept.engine.settled == expected


@pytest.mark.parametrize("bfloat16", [True, False])
@pytest.mark.usefixtures("_made_up_time")
def test_whether_an_int8_graph_uses_bfloat16_can_be_fixed(bfloat16, spec):
    engine = ManyForms(of_float32=0.5 if bfloat16 else 2.0)
    encoder = tuned(Encoder(engine, 1024), setup_of(spec, bfloat16_in_int8=bfloat16, batch_tokens=1024), LENGTHS)
    assert encoder.engine.settled.bfloat16 == bfloat16
    without = ManyForms()  # on a processor that has none
    encoder = tuned(Encoder(without, 1024), setup_of(spec, 2, bfloat16_in_int8=bfloat16, batch_tokens=1024), LENGTHS)
    assert encoder.engine.settled.bfloat16 is False


class Way(TimedEngine):
    """It takes its rows in one of several ways, and offers the others."""

    def __init__(self, name, token_s, *others, fails=False):
        super().__init__(token_s=token_s)
        self.name, self._others, self._fails, self.forgotten = name, list(others), fails, 0

    def encode(self, ids, lengths):
        if self._fails:
            raise ValueError("no kernel for these rows")
        return super().encode(ids, lengths)

    def others(self):
        return self._others

    def forget(self):
        self.forgotten += 1


def gpu_setup(spec, **fixed) -> Setup:
    return Setup(spec=spec, device="cuda", threads=1, fixed=Fixed(**fixed))


@pytest.mark.parametrize(
    ("first", "packed", "padded", "chosen"),
    [
        (2e-7, 1e-7, 3e-7, "packed"),
        (2e-7, 3e-7, 1e-7, "padded"),
        (2e-7, 1.96e-7, 1.98e-7, "first"),  # not by enough
        (1e-7, 2e-7, 3e-7, "first"),
        (2e-7, None, 3e-7, "first"),  # it fails
    ],
)
@pytest.mark.usefixtures("_made_up_time")
def test_how_a_gpu_takes_rows_is_measured_and_kept(first, packed, padded, chosen, spec):
    def encoder():
        others = Way("packed", packed or 1e-9, fails=packed is None), TimedEngine(token_s=padded)
        others[1].name = "padded"
        return Encoder(Way("first", first, *others), 65536)

    start = encoder()
    found = tuned(start, gpu_setup(spec), LENGTHS)
    assert found.engine.name == chosen
    assert "first: " in found.settings
    assert ("packed: fails" in found.settings) == (packed is None)
    assert bool(start.engine.forgotten) == (chosen != "first")
    calls = start.engine.calls
    assert tuned(start, gpu_setup(spec), LENGTHS).engine.name == chosen  # kept
    assert start.engine.calls == calls
    again = tuned(encoder(), gpu_setup(spec), LENGTHS, measures=False)
    assert (again.engine.name, again.budget_tokens) == (chosen, found.budget_tokens)


@pytest.mark.usefixtures("_made_up_time")
def test_a_way_that_was_faster_and_is_not_offered_any_more_is_not_taken(spec):
    other = Way("packed", 1e-7)
    assert tuned(Encoder(Way("first", 2e-7, other), 65536), gpu_setup(spec), LENGTHS).engine is other
    alone = Encoder(Way("first", 2e-7), 65536)
    assert tuned(alone, gpu_setup(spec), LENGTHS, measures=False) is alone


def test_a_packed_engine_offers_what_gives_its_vectors(tiny_model, monkeypatch):
    spec = encoder_spec(ModelSpec(path=str(tiny_model)))
    padded = TorchEngine(spec, "cpu", 1)
    first, notes = packed_if_proven(padded, spec)
    assert notes == ()
    found, packed = first.others()
    assert found is padded
    assert list(packed.others()) == [padded]
    assert len({first.name, packed.name, padded.name}) == 3
    rows = TokenRows.of([np.arange(1, length + 1, dtype=np.int32) for length in (3, 9, 1, 7)])
    expected = encoder_of(padded, "cpu").encode(rows).vectors
    for engine in (first, packed):
        np.testing.assert_allclose(encoder_of(engine, "cpu").encode(rows).vectors, expected, atol=1e-5)
    monkeypatch.setattr(packed_torch, "difference", lambda *given: "it differs")
    assert list(first.others()) == [padded]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.usefixtures("_made_up_time")
def test_what_the_user_decides_is_neither_measured_nor_changed(fused, spec):
    engine = ManyForms(fused=(5e-6, 1e-7) if fused else (1e-6, 0.0))
    encoder = tuned(Encoder(engine, 1024), setup_of(spec, fused_attention=fused, batch_tokens=640), LENGTHS)
    assert encoder.engine.settled == GraphForm(fused_from=0 if fused else None)
    assert encoder.budget_tokens == 640
    plain = untuned(setup_of(spec, fused_attention=fused, batch_tokens=640))
    assert (plain.engine.form.fused_from, plain.budget_tokens) == (0 if fused else None, 640)


def texts_of(lengths) -> TokenRows:
    chance = np.random.default_rng(1)
    return TokenRows.of([chance.integers(5, 90, length).astype(np.int32) for length in lengths])


@pytest.mark.parametrize("engine", ["openvino", "auto", "torch"])
def test_a_real_encoder_has_its_settings_and_the_same_vectors(engine, tiny_model, spec):
    setup = setup_of(encoder_spec(ModelSpec(path=str(tiny_model), engine=engine)))
    rows = texts_of([3, 17, 64, 128, 128])
    before = build_encoder(setup.spec, "cpu", 1).encode(rows).vectors
    encoder = tuned(untuned(setup), setup, rows.lengths)
    assert encoder.budget_tokens in BUDGETS["cpu"]
    assert encoder.engine.name in (["torch", "openvino"] if engine == "auto" else [engine])
    np.testing.assert_allclose(encoder.encode(rows).vectors, before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fused_from", [0, 40, None])
def test_a_real_graph_gives_the_same_vectors_in_both_forms(fused_from, spec):
    encoder = build_encoder(spec, "cpu", 1)
    rows = texts_of([3, 17, 64, 100, 128])
    expected = encoder.encode(rows).vectors
    encoder.engine.settle(GraphForm(fused_from=fused_from))
    np.testing.assert_allclose(encoder.encode(rows).vectors, expected, rtol=1e-4, atol=1e-5)


def test_a_processor_is_known_by_its_name_and_its_instructions(tmp_path):
    told = tmp_path / "cpuinfo"
    told.write_text(
        "model name\t: Some CPU @ 2 GHz\nflags\t\t: fpu avx2 amx_int8 sse\nmodel name\t: Some CPU @ 2 GHz\n"
    )
    assert processor(told) == "Some CPU @ 2 GHz amx_int8 avx2"
    told.write_text("Features\t: fp asimd\n")
    assert processor(told).endswith(" asimd")
    assert processor(tmp_path / "none")
    json.dumps(processor())
