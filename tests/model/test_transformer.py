"""Every architecture gives the vectors of sentence-transformers, whatever the batch; what can't is refused by name."""

import json
import os

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from pipeline.config import ModelSpec
from pipeline.encoder.encoder import Encoder, build_encoder
from pipeline.encoder.tokenizer import Tokenizer
from pipeline.errors import InputError
from pipeline.model.architectures import ARCHITECTURES, REFUSED
from pipeline.model.folder import encoder_spec
from pipeline.model.transformer import read_transformer
from tests.architectures import (
    ARCHITECTURE_NAMES,
    REFUSED_SAMPLES,
    SAMPLES,
    TEXTS,
    build_architecture,
    build_transformer,
)
from tests.tiny import as_it_stands, load_oracle

TOLERANCE = 1e-5
COMMON = {
    *("albert", "bert", "camembert", "deberta-v2", "distilbert", "gemma3_text", "gpt2", "llama", "modernbert", "mpnet"),
    *("nomic_bert", "qwen3", "roberta", "t5", "xlm-roberta"),
}


def each(names):
    """All of them; those that are met less often in the full suite only."""
    return [pytest.param(name, marks=[] if name in COMMON else pytest.mark.slow) for name in names]


def spec_of(folder, **overrides):
    return encoder_spec(ModelSpec(path=str(folder), **overrides))


def texts_for(name):
    """The oracle fails on a text without any token: the empty one where no special tokens stand around it."""
    return [text for text in TEXTS if text or SAMPLES[name].family != "gpt2"]


def assert_proven(folder, texts, oracle=None, **overrides):
    """Ids and vectors are the oracle's for each text alone, and ours are the same in any batch."""
    oracle = oracle or load_oracle(folder)
    spec = spec_of(folder, **overrides)
    tokenizer, encoder = Tokenizer(spec, 1), build_encoder(spec, "cpu", 1)
    tokens = tokenizer.tokenize(texts)
    for number, text in enumerate(texts):
        ids = tokens.ids[tokens.offsets[number] : tokens.offsets[number + 1]].tolist()
        assert ids == oracle.preprocess([text], prompt=spec.prompt)["input_ids"][0].tolist(), text
    alone = oracle.encode(texts, batch_size=1, prompt=spec.prompt)
    encoded = encoder.encode(tokens)
    good = alone.any(axis=1)  # the others have no token but the prompt's
    assert sorted(encoded.failed) == np.flatnonzero(~good).tolist()
    np.testing.assert_allclose(encoded.vectors[good], alone[good], atol=TOLERANCE, rtol=0)
    whole = Encoder(encoder.engine, 10**6, overhead_tokens=10**6).encode(tokens)
    assert whole.padded_tokens == len(set(texts)) * tokens.lengths.max()
    np.testing.assert_allclose(whole.vectors[good], alone[good], atol=TOLERANCE, rtol=0)
    likeness = (alone @ alone.T)[np.triu_indices(len(texts), 1)]
    assert np.median(likeness) < 0.98, "the texts' vectors hardly differ: the proof proves nothing"


@pytest.mark.parametrize("name", each(ARCHITECTURE_NAMES))
def test_the_vectors_are_those_of_sentence_transformers(tmp_path, name, capfd):
    folder = build_architecture(tmp_path / "model", name)
    oracle = load_oracle(folder)
    capfd.readouterr()
    assert_proven(folder, texts_for(name), oracle)
    loud = [line for line in capfd.readouterr().err.splitlines() if "automatically padded" not in line]
    assert loud == []  # (that one is the oracle's)


def test_every_supported_architecture_has_a_sample():
    assert set(ARCHITECTURE_NAMES) == set(ARCHITECTURES)
    assert not set(ARCHITECTURES) & set(REFUSED)


VARIANTS = {
    "albert-groups": ("albert", {"num_hidden_groups": 2}),
    "bert-decoder": ("bert", {"is_decoder": True}),
    "deberta-v2-absolute": ("deberta-v2", {"position_biased_input": True}),
    "deberta-v2-convolution": ("deberta-v2", {"conv_kernel_size": 3, "conv_act": "gelu"}),
    "falcon-alibi": ("falcon", {"alibi": True, "new_decoder_architecture": False, "multi_query": True}),
    "gemma3-causal": ("gemma3_text", {"use_bidirectional_attention": False}),
    "llama-yarn": ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0}}),
    "longt5-global": ("longt5", {"encoder_attention_type": "transient-global", "global_block_size": 4}),
    "mistral-no-window": ("mistral", {"sliding_window": None}),
    "opt-norm-after": ("opt", {"do_layer_norm_before": False}),
    "qwen2-bidirectional": ("qwen2", {"is_causal": False}),
    "qwen2-window": ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    "t5-gated": ("t5", {"feed_forward_proj": "gated-gelu"}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_of_an_architecture_are_exact(tmp_path, variant):
    name, config = VARIANTS[variant]
    assert_proven(build_architecture(tmp_path, name, config=config), texts_for(name))


@pytest.mark.parametrize("pooling", ["max", "lasttoken", "weightedmean"])
@pytest.mark.parametrize("name", ["qwen3", "llama", "gemma3_text"])
def test_poolings_by_position_are_exact_where_the_oracle_pads_on_the_left(tmp_path, name, pooling):
    folder = build_architecture(tmp_path, name, pooling=pooling, style="legacy")
    assert json.loads((folder / "tokenizer_config.json").read_text())["padding_side"] == "left"
    assert_proven(folder, TEXTS)


@pytest.mark.parametrize("name", ["bert", "roberta", "xlm-roberta", "t5", "qwen3", "llama", "gemma3_text", "gpt2"])
def test_truncation_on_the_left_keeps_the_last_tokens_and_the_special_ones(tmp_path, name):
    folder = build_architecture(tmp_path, name, tokenizer={"truncation_side": "left"}, max_seq_length=12)
    tokenizer = Tokenizer(spec_of(folder), 1)
    assert tokenizer.tokenize(["the oil price " * 9]).truncated[0]
    assert_proven(folder, texts_for(name), prompt="query: ")


@pytest.mark.parametrize("name", ["roberta", "t5", "qwen3", "llama", "gemma3_text"])
@pytest.mark.parametrize("include_prompt", [True, False])
def test_prompts_are_exact_for_every_kind_of_tokenizer(tmp_path, name, include_prompt):
    folder = build_architecture(tmp_path, name, prompts={"query": "say: "}, include_prompt=include_prompt)
    assert_proven(folder, TEXTS, prompt_name="query")


@pytest.mark.parametrize("name", ["gpt2", "gpt_bigcode", "gpt_neo", "gptj"])
def test_token_types_of_zero_are_added_where_the_tokenizer_gives_them(tmp_path, name):
    names = ["input_ids", "token_type_ids", "attention_mask"]
    assert_proven(build_architecture(tmp_path, name, tokenizer={"model_input_names": names}), texts_for(name))


@pytest.mark.parametrize(("name", "precision"), [("deberta", "float16"), ("longt5", "float16")])
def test_a_precision_that_an_architecture_can_not_compute_in_is_refused(tmp_path, name, precision):
    folder = build_architecture(tmp_path, name)
    with pytest.raises(InputError, match=precision):
        build_encoder(spec_of(folder, precision=precision), "cpu", 1)


# --- lengths ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", each(ARCHITECTURE_NAMES))
def test_the_longest_length_is_the_models_own(tmp_path, name):
    """What is said to be the limit works, and one more does not; where there is no limit, any length works."""
    key = ARCHITECTURES[name].positions
    folder = build_architecture(tmp_path, name, config={key: 42} if key else {}, max_seq_length=42)
    limit = read_transformer(folder, "").positions
    text = ["oil " * 200]
    if limit is None:
        assert_as_oracle_at(folder, text, 90)
        return
    assert_as_oracle_at(folder, text, limit)
    with pytest.raises(InputError, match=f"at most {limit}"):
        spec_of(folder, max_seq_length=limit + 1)
    oracle = load_oracle(folder)
    oracle.max_seq_length = limit + 1
    with pytest.raises((IndexError, RuntimeError)):
        oracle.encode(text)


def assert_as_oracle_at(folder, texts, length):
    oracle = load_oracle(folder)
    oracle.max_seq_length = length
    spec = spec_of(folder, max_seq_length=length)
    tokens = Tokenizer(spec, 1).tokenize(texts)
    assert tokens.lengths.tolist() == [length] * len(texts)
    np.testing.assert_allclose(
        build_encoder(spec, "cpu", 1).encode(tokens).vectors, oracle.encode(texts), atol=TOLERANCE
    )


@pytest.mark.parametrize("name", ["modernbert", "qwen3", "llama", "t5", "bloom"])
@pytest.mark.parametrize("of_tokenizer", [20, 1000, int(1e30), None])
def test_the_default_length_is_that_of_sentence_transformers(tmp_path, name, of_tokenizer):
    folder = build_architecture(tmp_path, name)
    change(folder, "tokenizer_config.json", model_max_length=of_tokenizer)
    expected = load_oracle(folder).max_seq_length
    assert spec_of(folder).max_seq_length == (expected if expected < 1e18 else None)


def test_without_a_limit_a_text_is_read_whole(tmp_path):
    folder = build_architecture(tmp_path, "t5")
    change(folder, "tokenizer_config.json", model_max_length=int(1e30))
    tokens = Tokenizer(spec_of(folder), 1).tokenize(["oil " * 700, "x"])
    assert tokens.lengths.tolist() == [701, 3]
    assert not tokens.truncated.any()
    assert_proven(folder, [*TEXTS, "oil price " * 100])


@pytest.mark.parametrize(
    ("name", "rope"),
    [
        ("llama", {"rope_type": "dynamic", "factor": 2.0}),
        ("phi3", {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}),
    ],
)
def test_rotary_positions_that_depend_on_the_batch_limit_the_length(tmp_path, name, rope):
    config = {"max_position_embeddings": 64 if name == "llama" else 128, "original_max_position_embeddings": 64}
    folder = build_architecture(tmp_path, name, config={**config, "rope_scaling": {**rope, "rope_theta": 10000.0}})
    assert spec_of(folder, max_seq_length=64).max_seq_length == 64
    with pytest.raises(InputError, match="at most 64"):
        spec_of(folder, max_seq_length=65)
    assert_proven(folder, TEXTS)


# --- refusals --------------------------------------------------------------------------------------------------------


def change(folder, name, **keys):
    path = folder / name
    value = json.loads(path.read_text()) | keys
    path.write_text(json.dumps({key: item for key, item in value.items() if item is not None}))


@pytest.fixture
def folder(tmp_path):
    return build_architecture(tmp_path / "model", "bert")


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_refused_with_its_reason(folder, name):
    change(folder, "config.json", model_type=name)
    with pytest.raises(InputError) as error:
        spec_of(folder)
    assert REFUSED[name] in str(error.value)


@pytest.mark.parametrize("name", REFUSED_SAMPLES)
def test_what_is_refused_for_its_batch_really_depends_on_it(tmp_path, name):
    oracle = load_oracle(build_architecture(tmp_path, name))
    assert np.abs(oracle.encode(TEXTS) - oracle.encode(TEXTS, batch_size=1)).max() > 1e-2


def test_a_model_of_custom_code_is_refused_and_never_run(folder):
    (folder / "evil.py").write_text("raise SystemExit('executed')")
    change(folder, "config.json", model_type="new", auto_map={"AutoModel": "evil.Model", "AutoConfig": "evil.Config"})
    with pytest.raises(InputError, match=r"auto_map.*never run"):
        spec_of(folder)


def test_code_beside_a_native_architecture_is_refused_for_what_it_may_compute(folder):
    (folder / "evil.py").write_text("raise SystemExit('executed')")
    change(folder, "config.json", auto_map={"AutoModel": "evil.Model", "AutoConfig": "evil.Config"})
    with pytest.raises(InputError, match=r"'bert' with code.*never run"):
        spec_of(folder)


def test_positions_of_gte_are_rotary(tmp_path):
    folder = build_architecture(tmp_path, "gte")
    change(folder, "config.json", position_embedding_type="rope")
    assert_proven(folder, TEXTS)
    change(folder, "config.json", position_embedding_type="absolute")
    with pytest.raises(InputError, match="'rope'"):
        spec_of(folder)


def test_a_pooler_that_is_not_saved_is_not_missed(tmp_path):
    folder = build_architecture(tmp_path, "squeezebert")
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith("pooler.")}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    assert_proven(folder, TEXTS)


@pytest.mark.parametrize(
    ("file", "keys"),
    [("sentence_bert_config.json", {"model_args": 1}), ("sentence_bert_config.json", {"do_lower_case": 1})],
)
def test_values_of_the_wrong_kind_are_told(folder, file, keys):
    change(folder, file, **keys)
    with pytest.raises(InputError, match=f"{file}.*{next(iter(keys))} is 1"):
        spec_of(folder)


def test_code_of_a_tokenizer_is_refused(folder):
    change(folder, "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Tokenizer", None]})
    with pytest.raises(InputError, match="auto_map"):
        spec_of(folder)


@pytest.mark.parametrize("kind", ["relative_key", "alibi", "rotary"])
def test_positions_that_transformers_no_longer_reads_are_refused(folder, kind):
    change(folder, "config.json", position_embedding_type=kind)
    with pytest.raises(InputError, match=kind):
        spec_of(folder)


def test_a_quantised_model_and_an_adapter_are_refused(folder):
    change(folder, "config.json", quantization_config={"quant_method": "bitsandbytes"})
    with pytest.raises(InputError, match="quantization_config"):
        spec_of(folder)
    change(folder, "config.json", quantization_config=None)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="adapter"):
        spec_of(folder)


@pytest.mark.parametrize("name", ["bert", "qwen3"])
def test_a_plain_folder_is_as_sentence_transformers_loads_it_but_for_a_chat(tmp_path, name):
    folder = build_transformer(tmp_path, name)
    change(folder, "tokenizer_config.json", model_max_length=48)
    oracle = load_oracle(folder)
    normalized = spec_of(folder)
    tokens = Tokenizer(normalized, 1).tokenize(TEXTS)
    ours = build_encoder(normalized, "cpu", 1).encode(tokens).vectors
    np.testing.assert_allclose(ours, oracle.encode(TEXTS, batch_size=1), atol=1e-4, rtol=TOLERANCE)
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    with pytest.raises(InputError, match="chat template"):
        spec_of(folder)


@pytest.mark.parametrize("name", ["modernbert", "t5", "qwen3"])
def test_a_damaged_folder_is_an_input_error(tmp_path, name):
    folder = build_architecture(tmp_path, name)
    weights = (folder / "model.safetensors").read_bytes()
    spec = spec_of(folder)
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(InputError, match="doesn't load"):
        build_encoder(as_it_stands(spec), "cpu", 1)
    os.remove(folder / "model.safetensors")
    with pytest.raises(InputError, match="holds no weights"):
        spec_of(folder)
    (folder / "model.safetensors").write_bytes(weights)
    change(folder, "config.json", num_hidden_layers=3, num_layers=3, layer_types=None)
    with pytest.raises(InputError, match=r"lack \d+ tensors"):
        build_encoder(spec_of(folder), "cpu", 1)


def test_a_decoder_keeps_no_keys_and_values(tmp_path):
    folder = build_architecture(tmp_path, "qwen3", config={"use_cache": True})
    engine = build_encoder(spec_of(folder), "cpu", 1).engine
    kept = []
    engine.model.register_forward_hook(lambda module, inputs, output: kept.append(output.past_key_values))
    engine.encode(np.array([[5, 6, 7]], np.int32), np.array([3], np.int32))
    assert kept == [None]
