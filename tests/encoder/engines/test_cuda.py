"""What only a GPU can show: kernels, recordings, copies, memory. Skipped where there is none.

Needs no other fixture: `pytest --noconftest tests/engines/test_cuda.py` runs where the servers of other tests are missing.
"""

import numpy as np
import pytest
import torch

from pipeline.config import ModelSpec
from pipeline.encoder.encoder import PACKED_BUDGET_TOKENS, Encoder, build_encoder
from pipeline.encoder.engines.packed_torch import PackedTorchEngine, packed_if_proven
from pipeline.encoder.engines.torch import TorchEngine
from pipeline.encoder.token_rows import TokenRows
from pipeline.model.folder import encoder_spec
from tests.architectures import build_architecture
from tests.tiny import build_tiny_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

PRECISIONS = {"float16": 0.9999, "bfloat16": 0.999}


def spec_of(folder, precision):
    return encoder_spec(ModelSpec(path=str(folder), precision=precision))


def random_rows(lengths, seed=0):
    ids = np.random.default_rng(seed).integers(5, 200, int(np.sum(lengths))).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    return TokenRows(ids, offsets, np.zeros(len(lengths), np.bool_), {})


def many_lengths(count=3000, longest=64, seed=0):
    return np.random.default_rng(seed).integers(1, longest + 1, count)


def least_cosine(vectors, expected):
    norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(expected, axis=1)
    return float(((vectors * expected).sum(axis=1) / norms).min())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_tiny_model(tmp_path_factory.mktemp("model"), hidden=64)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "modernbert", "nomic_bert", "qwen3"])
def test_models_that_can_be_packed_are_packed_and_recorded(tmp_path, name, precision):
    padded = TorchEngine(spec_of(build_architecture(tmp_path, name), precision), "cuda", 1)
    engine, notes = packed_if_proven(padded, spec_of(tmp_path, precision))
    assert isinstance(engine, PackedTorchEngine), notes
    assert notes == ()


@pytest.mark.parametrize("name", ["mpnet", "t5", "bart", "esm"])
def test_models_that_cannot_be_packed_leave_the_gpu_usable(tmp_path, name):
    spec = spec_of(build_architecture(tmp_path, name), "bfloat16")
    padded = TorchEngine(spec, "cuda", 1)
    assert packed_if_proven(padded, spec)[0] is padded
    assert Encoder(padded, 4096).encode(random_rows(many_lengths(50, 40))).failed == {}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_encoder_of_a_run_gives_the_vectors_of_float32_on_the_cpu(folder, precision):
    encoder = build_encoder(spec_of(folder, precision), "cuda", 1)
    assert isinstance(encoder.engine, PackedTorchEngine)
    rows = random_rows(many_lengths())
    encoded = encoder.encode(rows)
    expected = build_encoder(spec_of(folder, "float32"), "cpu", 1).encode(rows)
    assert encoded.failed == {}
    assert least_cosine(encoded.vectors, expected.vectors) >= PRECISIONS[precision]


def test_float32_on_a_gpu_is_padded_and_exact(folder):
    encoder = build_encoder(spec_of(folder, "float32"), "cuda", 1)
    assert isinstance(encoder.engine, TorchEngine)
    rows = random_rows(many_lengths())
    expected = build_encoder(spec_of(folder, "float32"), "cpu", 1).encode(rows)
    np.testing.assert_allclose(encoder.encode(rows).vectors, expected.vectors, atol=1e-5)


@pytest.mark.parametrize("in_flight", [1, 3, 6])
def test_recorded_batches_are_those_that_are_computed_as_they_come(folder, in_flight):
    """Many batches of several sizes in turn: what was recorded with one holds for the others, and no answer is overwritten."""
    spec = spec_of(folder, "float16")
    padded = TorchEngine(spec, "cuda", 1)
    recorded, plain = (PackedTorchEngine(padded, spec, constant=constant) for constant in (True, False))
    recorded.in_flight = plain.in_flight = in_flight
    encoders = Encoder(recorded, 4096), Encoder(plain, 4096)
    for seed, count in enumerate([2000, 10, 700, 1, 2000, 33]):
        rows = random_rows(many_lengths(count, seed=seed), seed)
        given, expected = (encoder.encode(rows) for encoder in encoders)
        assert given.failed == expected.failed == {}
        assert least_cosine(given.vectors, expected.vectors) > 0.99999
    assert recorded.unrecorded == ()


def test_a_row_has_the_same_vector_in_any_batch(folder):
    encoder = build_encoder(spec_of(folder, "float16"), "cuda", 1)
    lengths = many_lengths(500)
    rows = random_rows(lengths)
    together = encoder.encode(rows).vectors
    for number in range(0, 500, 50):
        ids = rows.ids[rows.offsets[number] : rows.offsets[number + 1]]
        alone = encoder.encode(TokenRows(ids, np.array([0, len(ids)]), np.zeros(1, np.bool_), {})).vectors
        np.testing.assert_allclose(alone[0], together[number], atol=2e-3)


@pytest.mark.parametrize("constant", [True, False])
def test_a_real_lack_of_memory_halves_the_budget_and_is_remembered(folder, constant):
    spec = spec_of(folder, "float16")
    padded = TorchEngine(spec, "cuda", 1)
    expected = Encoder(padded, 4096).encode(random_rows(many_lengths(60_000)))
    encoder = Encoder(PackedTorchEngine(padded, spec, constant=constant), 2**20)
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    kept = torch.empty(max(int(free - 0.7e9), 0), dtype=torch.uint8, device="cuda")
    try:
        encoded = encoder.encode(random_rows(many_lengths(60_000)))
    finally:
        del kept
        torch.cuda.empty_cache()
    assert encoder.budget_tokens < 2**20
    assert encoded.failed == {}
    assert least_cosine(encoded.vectors, expected.vectors) > 0.9999


def test_the_budget_of_a_run_is_a_recorded_size(folder):
    engine = build_encoder(spec_of(folder, "float16"), "cuda", 1).engine
    assert engine.size(np.full(PACKED_BUDGET_TOKENS // 64, 64)) == PACKED_BUDGET_TOKENS
