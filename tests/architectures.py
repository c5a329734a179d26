"""A tiny, seeded folder of any supported architecture, saved by sentence-transformers itself; built offline.

The tokenizer is of the family's kind (WordPiece, byte-level BPE, SentencePiece's Unigram and BPE) with the family's own
special tokens, and the weights are large enough that different texts get clearly different vectors.
"""

import functools
import json
import string
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from pipeline.model.quiet import quiet_transformers
from pipeline.model.saved_modules import POOLING_MODES

TEXTS = [
    "the oil price",
    "a",
    "government people say that the market will work well this year, in two or more ways",
    "한국어 문장입니다. 안녕하세요",
    "中文句子，天气很好。",
    "x [SEP] y </s> z [MASK] <mask> [CLS] <|endoftext|> <eos>",
    "Émile's 🙂 café, 3 x 4 = 12!",
    "  spaces   in front\tand\nbehind  ",
    "",
    "long text about oil and water " * 12,
]


def build_architecture(
    folder: str | Path,
    model_type: str,
    *,
    pooling: str | Sequence[str] = "mean",
    style: Literal["new", "legacy"] = "new",
    normalize: bool = True,
    max_seq_length: int = 48,
    seed: int = 0,
    prompts: Mapping[str, str] | None = None,
    include_prompt: bool = True,
    config: Mapping[str, Any] | None = None,
    tokenizer: Mapping[str, Any] | None = None,
) -> Path:
    """Save Transformer -> Pooling -> (Normalize) of `model_type` to `folder` and return it.

    `config` and `tokenizer` override keys of the transformers config and of the tokenizer's settings. Pooling modes are
    named as pipeline.model.saved_modules.POOLING_MODES does; the style is that of build_tiny_model.
    """
    folder = Path(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what that library imports is not ours to judge
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.base.modules import Transformer
        from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

    with tempfile.TemporaryDirectory() as bare, quiet_transformers():
        build_transformer(bare, model_type, seed=seed, config=config, tokenizer=tokenizer)
        # The dtype is given since "auto" reads one from the first weight it finds.
        first = Transformer(bare, max_seq_length=max_seq_length, model_kwargs={"dtype": torch.float32})
    modes = [pooling] if isinstance(pooling, str) else list(pooling)
    modules = [
        first,
        Pooling(first.get_embedding_dimension(), modes[0] if len(modes) == 1 else modes, include_prompt=include_prompt),
    ]
    modules += [Normalize()] if normalize else []
    with quiet_transformers():
        model = SentenceTransformer(modules=modules, device="cpu", prompts=dict(prompts or {}))
        model.save(str(folder), create_model_card=False)
    if style == "legacy":
        _make_legacy(folder, modes, max_seq_length)
    return folder


def build_transformer(
    folder: str | Path,
    model_type: str,
    *,
    seed: int = 0,
    config: Mapping[str, Any] | None = None,
    tokenizer: Mapping[str, Any] | None = None,
) -> Path:
    """Save the bare transformer and its tokenizer as transformers does, without modules.json."""
    sample = SAMPLES.get(model_type) or REFUSED_SAMPLES[model_type]
    with quiet_transformers():
        made = _FAMILIES[sample.family](dict(tokenizer or {}))
        made.save_pretrained(folder)
        pad = {"pad_token_id": made.pad_token_id, "bos_token_id": made.bos_token_id, "eos_token_id": made.eos_token_id}
        sizes = _SIZES | {"vocab_size": len(made), **pad, **sample.config, **(config or {})}
        if not sample.positions:
            sizes.pop("max_position_embeddings")
        settings = transformers.AutoConfig.for_model(model_type, **sizes)
        model = _model(settings, seed)
        model.save_pretrained(folder)
    return Path(folder)


def build_static(
    folder: str | Path, tokenizer: Tokenizer, *, dim: int = 24, seed: int = 0, normalize: bool = False
) -> Path:
    """Save StaticEmbedding -> (Normalize) on this tokenizer, with seeded vectors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what that library imports is not ours to judge
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding

    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(tokenizer.get_vocab_size(), dim, generator=generator)
    modules = [StaticEmbedding(tokenizer, embedding_weights=vectors), *([Normalize()] if normalize else [])]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder), create_model_card=False)
    return Path(folder)


@dataclass(frozen=True, kw_only=True)
class Sample:
    family: str
    """Of _FAMILIES: the kind of tokenizer."""
    config: Mapping[str, Any] = field(default_factory=dict)
    positions: bool = True
    """Whether its config.json has max_position_embeddings."""


_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 130,
    "attention_probs_dropout_prob": 0.0,
}
_GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
_WINDOW = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 130, "n_inner": 64}
_T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "num_decoder_layers": 1}
_BART = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "decoder_start_token_id": 2, "forced_eos_token_id": None,
}  # fmt: skip

SAMPLES: Mapping[str, Sample] = {
    "albert": Sample(family="albert", config={"embedding_size": 16}),
    "bert": Sample(family="bert"),
    "bert-generation": Sample(family="xlm-roberta"),
    "camembert": Sample(family="camembert"),
    "data2vec-text": Sample(family="roberta"),
    "deberta": Sample(
        family="deberta",
        config={"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_biased_input": False},
    ),
    "deberta-v2": Sample(
        family="deberta-v2",
        config={
            "relative_attention": True,
            "pos_att_type": ["c2p", "p2c"],
            "position_biased_input": False,
            "position_buckets": 16,
            "share_att_key": True,
            "norm_rel_ebd": "layer_norm",
            "conv_kernel_size": 0,
        },
    ),
    "distilbert": Sample(family="bert", config={"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}),
    "electra": Sample(family="bert", config={"embedding_size": 16}),
    "ernie": Sample(family="bert", config={"use_task_id": True}),
    "esm": Sample(
        family="bert", config={"position_embedding_type": "rotary", "token_dropout": True, "mask_token_id": 4}
    ),
    "eurobert": Sample(family="llama3", config=_GROUPED),
    "gte": Sample(family="xlm-roberta"),
    "ibert": Sample(family="roberta"),
    "jina_embeddings_v3": Sample(family="xlm-roberta"),
    "longformer": Sample(family="roberta", config={"attention_window": 8}),
    "luke": Sample(family="roberta", config={"entity_vocab_size": 10, "entity_emb_size": 8}),
    "megatron-bert": Sample(family="bert"),
    "modernbert": Sample(
        family="modernbert", config={"local_attention": 8, "global_attn_every_n_layers": 2, "cls_token_id": 2}
    ),
    "mpnet": Sample(family="mpnet"),
    "nomic_bert": Sample(family="bert"),
    "rembert": Sample(family="albert", config={"input_embedding_size": 16, "output_embedding_size": 16}),
    "roberta": Sample(family="roberta"),
    "roberta-prelayernorm": Sample(family="roberta"),
    "roformer": Sample(family="bert", config={"embedding_size": 32}),
    "splinter": Sample(family="bert"),
    "squeezebert": Sample(family="bert", config={"embedding_size": 32}),
    "xlm-roberta": Sample(family="xlm-roberta"),
    "xlm-roberta-xl": Sample(family="xlm-roberta"),
    # encoder-decoders
    "t5": Sample(family="t5", config=_T5, positions=False),
    "mt5": Sample(family="t5", config=_T5, positions=False),
    "umt5": Sample(family="t5", config=_T5, positions=False),
    "longt5": Sample(
        family="t5", config={**_T5, "local_radius": 8, "encoder_attention_type": "local"}, positions=False
    ),
    "bart": Sample(family="roberta", config=_BART),
    # decoders
    "bloom": Sample(family="llama3", config={"n_layer": 2, "n_head": 4}, positions=False),
    "cohere": Sample(family="llama3", config=_GROUPED),
    "cohere2": Sample(family="llama3", config={**_GROUPED, **_WINDOW}),
    "ernie4_5": Sample(family="llama", config=_GROUPED),
    "exaone4": Sample(family="llama3", config={**_GROUPED, **_WINDOW}),
    "falcon": Sample(family="llama3", config={"new_decoder_architecture": True, "num_kv_heads": 2}),
    "gemma": Sample(family="gemma", config=_GROUPED),
    "gemma2": Sample(family="gemma", config={**_GROUPED, **_WINDOW, "query_pre_attn_scalar": 8}),
    "gemma3_text": Sample(
        family="gemma",
        config={**_GROUPED, **_WINDOW, "query_pre_attn_scalar": 8, "use_bidirectional_attention": True},
    ),
    "glm": Sample(family="llama3", config=_GROUPED),
    "glm4": Sample(family="llama3", config=_GROUPED),
    "gpt2": Sample(family="gpt2", config=_GPT2),
    "gpt_bigcode": Sample(family="gpt2", config=_GPT2),
    "gpt_neo": Sample(
        family="gpt2",
        config={"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 8},
    ),
    "gpt_neox": Sample(family="gpt2"),
    "gptj": Sample(family="gpt2", config={**_GPT2, "rotary_dim": 4}),
    "granite": Sample(family="gpt2", config=_GROUPED),
    "granitemoe": Sample(family="gpt2", config={**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "helium": Sample(family="llama", config=_GROUPED),
    "lfm2": Sample(family="llama3", config={**_GROUPED, "layer_types": ["conv", "full_attention"]}),
    "llama": Sample(family="llama", config=_GROUPED),
    "ministral": Sample(family="llama3", config={**_GROUPED, **_WINDOW}),
    "ministral3": Sample(family="llama3", config={**_GROUPED}),
    "mistral": Sample(family="llama", config={**_GROUPED, "sliding_window": 8}),
    "mixtral": Sample(family="llama", config={**_GROUPED, "num_local_experts": 4}),
    "modernbert-decoder": Sample(
        family="modernbert",
        config={
            "local_attention": 8,
            "global_attn_every_n_layers": 2,
            "cls_token_id": 2,
            "bos_token_id": 2,
            "eos_token_id": 3,
        },
    ),
    "nemotron": Sample(family="llama3", config=_GROUPED),
    "olmo": Sample(family="gpt2", config=_GROUPED),
    "olmo2": Sample(family="gpt2", config=_GROUPED),
    "olmo3": Sample(family="gpt2", config={**_GROUPED, **_WINDOW}),
    "opt": Sample(family="roberta", config={"ffn_dim": 64, "word_embed_proj_dim": 32}),
    "phi": Sample(family="gpt2"),
    "phi3": Sample(family="llama", config={"num_key_value_heads": 2}),
    "qwen2": Sample(family="qwen3", config=_GROUPED),
    "qwen2_moe": Sample(family="qwen3", config={**_GROUPED, **_EXPERTS, "shared_expert_intermediate_size": 32}),
    "qwen3": Sample(family="qwen3", config=_GROUPED),
    "qwen3_moe": Sample(family="qwen3", config={**_GROUPED, **_EXPERTS}),
    "smollm3": Sample(family="llama3", config=_GROUPED),
    "stablelm": Sample(family="llama3", config={"num_key_value_heads": 2}),
    "starcoder2": Sample(family="gpt2", config={**_GROUPED, "sliding_window": 8}),
    "xglm": Sample(family="xlm-roberta", config={"d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 64}),
    "bitnet": Sample(family="llama3", config=_GROUPED),
    "hunyuan_v1_dense": Sample(family="llama3", config=_GROUPED),
    "seed_oss": Sample(family="llama3", config=_GROUPED),
    "arcee": Sample(family="llama3", config=_GROUPED),
    "apertus": Sample(family="llama3", config=_GROUPED),
    "diffllama": Sample(family="llama3", config=_GROUPED),
}
"""By model_type: everything that is supported."""
ARCHITECTURE_NAMES = tuple(SAMPLES)

REFUSED_SAMPLES: Mapping[str, Sample] = {
    "big_bird": Sample(family="albert", config={"block_size": 4, "num_random_blocks": 1}),
    "convbert": Sample(family="bert", config={"embedding_size": 16}),
    "fnet": Sample(family="albert"),
    "mobilebert": Sample(
        family="bert", config={"embedding_size": 32, "intra_bottleneck_size": 32, "true_hidden_size": 32}
    ),
    "yoso": Sample(family="roberta"),
}
"""What sentence-transformers loads, but whose vectors depend on their batch."""


# --- weights ---------------------------------------------------------------------------------------------------------


def _model(settings: Any, seed: int) -> Any:
    model_class: Any = transformers.AutoModel
    encoder = f"{type(settings).__name__.removesuffix('Config')}EncoderModel"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if settings.is_encoder_decoder and hasattr(transformers, encoder):
            model = getattr(transformers, encoder)(settings)
        else:
            model = model_class.from_config(settings)
        _enlarge(model)
    return model.float().eval()


@torch.no_grad()
def _enlarge(model: Any) -> None:
    """Weights of the size that keeps variance, where a new model's are so small that all texts look alike."""
    for name, weight in model.named_parameters():
        if weight.ndim >= 2:
            weight.normal_(0, 1.5 / weight.shape[-1] ** 0.5 if "embed" not in name else 1.0)
        elif name.endswith("bias"):
            weight.normal_(0, 0.1)


# --- tokenizers ------------------------------------------------------------------------------------------------------


def _split(words: str) -> list[str]:
    return words.split()


_WORDS = _split(
    "a about all and are as at be by can company day first for from game good government has have he his in into is it "
    "its just know last like little long make man many market may more new news no not now of oil on one or other out "
    "over people price report say see she small so some spaces front behind text that the their them there they this "
    "time to two up us was water way we week well what when which who will with work world would year you"
)
_ENDINGS = _split("ed er est ing ion ly ment ness s tion")
_KOREAN = "가나다라마바사아자한국어문장입니다안녕하세요서울날씨좋은"
_CHINESE = "中文句子的一是不了人我在有他天气很好北京"
_CHARACTERS = string.ascii_letters + string.digits + string.punctuation + "É🙂é，。"
_SAMPLE = [" ".join(_WORDS)] * 4 + [f"{word}{ending}" for word in _WORDS for ending in _ENDINGS] + [_KOREAN, _CHINESE]

Settings = dict[str, Any]


def _wordpiece(specials: Sequence[str]) -> dict[str, int]:
    pieces = [f"##{piece}" for piece in [*_CHARACTERS, *_ENDINGS, *_KOREAN]]
    tokens = [*specials, *_CHARACTERS, *_WORDS, *_KOREAN, *_CHINESE, *pieces]
    return {token: number for number, token in enumerate(dict.fromkeys(tokens))}


def _unigram(specials: Sequence[str]) -> list[tuple[str, float]]:
    pieces = [(special, 0.0) for special in specials] + [("▁", -3.0)]
    pieces += [(f"▁{word}", -4.0 - number / 1000) for number, word in enumerate(_WORDS)]
    pieces += [(piece, -6.0) for piece in _ENDINGS]
    return pieces + [(character, -8.0) for character in [*_CHARACTERS, *_KOREAN, *_CHINESE]]


@functools.cache
def _byte_level_pieces() -> tuple[list[str], list[tuple[str, str]]]:
    """(all pieces, merges) of a byte-level BPE."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(
        _SAMPLE, trainers.BpeTrainer(vocab_size=450, show_progress=False, initial_alphabet=alphabet)
    )
    rules = json.loads(tokenizer.to_str())["model"]
    return list(rules["vocab"]), [tuple(merge) for merge in rules["merges"]]


def _byte_level(specials: Sequence[str]) -> Settings:
    pieces, merges = _byte_level_pieces()
    return {"vocab": {piece: number for number, piece in enumerate([*specials, *pieces])}, "merges": merges}


def _sentencepiece_bpe(specials: Sequence[str]) -> Settings:
    """As of Llama 2 and Gemma: a space is a character of its own, and what is unknown falls back to bytes."""
    merges: dict[tuple[str, str], None] = {}
    for word in [*(f"▁{word}" for word in _WORDS), *_ENDINGS]:
        for length in range(1, len(word)):
            merges[word[:length], word[length]] = None
    pieces = ["▁", *_CHARACTERS, *_KOREAN, *_CHINESE, *("".join(merge) for merge in merges)]
    tokens = [*specials, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    return {"vocab": vocabulary, "merges": list(merges)}


_BERT_SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_ROBERTA_SPECIALS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def _backed(tokenizer: Tokenizer, template: str, specials: Mapping[str, str], settings: Settings) -> Any:
    """A tokenizer made by hand, saved as most newer models are: tokenizer.json and the generic class."""
    names = [token for token in specials.values() if token in template.split()]
    pairs = [(token, tokenizer.token_to_id(token)) for token in dict.fromkeys(names)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, pair=f"{template} {template.replace('$A', '$B')}", special_tokens=pairs
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{**specials, **settings})


def _byte_level_backed(
    template: str,
    specials: Mapping[str, str],
    settings: Settings,
    pre_tokenizer: Any = None,
) -> Any:
    tokenizer = Tokenizer(models.BPE(**_byte_level(list(dict.fromkeys(specials.values())))))
    tokenizer.pre_tokenizer = pre_tokenizer or pre_tokenizers.ByteLevel(add_prefix_space=False)
    return _backed(tokenizer, template, specials, settings)


def _bert(settings: Settings) -> Any:
    return transformers.BertTokenizer(vocab=_wordpiece(_BERT_SPECIALS), **settings)


def _mpnet(settings: Settings) -> Any:
    return transformers.MPNetTokenizer(vocab=_wordpiece(["<s>", "<pad>", "</s>", "[UNK]", "<mask>"]), **settings)


def _roberta(settings: Settings) -> Any:
    return transformers.RobertaTokenizer(**_byte_level(_ROBERTA_SPECIALS), **settings)


def _xlm_roberta(settings: Settings) -> Any:
    vocabulary = _unigram(_ROBERTA_SPECIALS[:4])
    return transformers.XLMRobertaTokenizer(vocab=[*vocabulary, ("<mask>", 0.0)], **settings)


def _camembert(settings: Settings) -> Any:
    return transformers.CamembertTokenizer(vocab=_unigram(_ROBERTA_SPECIALS), **settings)


def _albert(settings: Settings) -> Any:
    return transformers.AlbertTokenizer(vocab=_unigram(["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]), **settings)


def _deberta_v2(settings: Settings) -> Any:
    return transformers.DebertaV2Tokenizer(
        vocab=_unigram(["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]), unk_id=3, **settings
    )


def _deberta(settings: Settings) -> Any:
    """Byte-level BPE between BERT's special tokens."""
    specials = ["[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"]
    return transformers.DebertaTokenizer(**_byte_level(specials), **settings)


def _t5(settings: Settings) -> Any:
    return transformers.T5Tokenizer(vocab=_unigram(["<pad>", "</s>", "<unk>"]), extra_ids=0, **settings)


def _modernbert(settings: Settings) -> Any:
    names = ("unk_token", "pad_token", "cls_token", "sep_token", "mask_token")
    specials = dict(zip(names, ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]"], strict=True))
    return _byte_level_backed("[CLS] $A [SEP]", specials, settings)


_QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _qwen3(settings: Settings) -> Any:
    """As of Qwen3-Embedding: each text ends with the token that also pads, and padding is on the left."""
    steps = [
        pre_tokenizers.Split(Regex(_QWEN_PATTERN), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    specials = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    tokenizer = Tokenizer(models.BPE(**_byte_level(list(specials.values()))))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    return _backed(tokenizer, "$A <|endoftext|>", specials, {"padding_side": "left", **settings})


def _gpt2(settings: Settings) -> Any:
    """No special token around the text; those who embed with it pad with the end of text."""
    return transformers.GPT2Tokenizer(**_byte_level(["<|endoftext|>"]), **{"pad_token": "<|endoftext|>"} | settings)


def _llama(settings: Settings) -> Any:
    specials = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    tokenizer = Tokenizer(models.BPE(**_sentencepiece_bpe(["<unk>", "<s>", "</s>"]), fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return _backed(tokenizer, "<s> $A", specials, {"padding_side": "left", **settings})


def _llama3(settings: Settings) -> Any:
    steps = [
        pre_tokenizers.Split(Regex(_QWEN_PATTERN.replace(r"\p{N}|", r"\p{N}{1,3}|")), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    specials = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>", "pad_token": "<|end_of_text|>"}
    return _byte_level_backed(
        "<|begin_of_text|> $A", specials, {"padding_side": "left", **settings}, pre_tokenizers.Sequence(steps)
    )


def _gemma(settings: Settings) -> Any:
    """As of EmbeddingGemma: a token before and one behind the text."""
    specials = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    pieces = _sentencepiece_bpe(["<pad>", "<eos>", "<bos>", "<unk>"])
    tokenizer = Tokenizer(models.BPE(**pieces, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    return _backed(tokenizer, "<bos> $A <eos>", specials, {"padding_side": "left", **settings})


_FAMILIES: Mapping[str, Callable[[Settings], Any]] = {
    "albert": _albert,
    "bert": _bert,
    "camembert": _camembert,
    "deberta": _deberta,
    "deberta-v2": _deberta_v2,
    "gemma": _gemma,
    "gpt2": _gpt2,
    "llama": _llama,
    "llama3": _llama3,
    "modernbert": _modernbert,
    "mpnet": _mpnet,
    "qwen3": _qwen3,
    "roberta": _roberta,
    "t5": _t5,
    "xlm-roberta": _xlm_roberta,
}


# --- the older style -------------------------------------------------------------------------------------------------


def _make_legacy(folder: Path, modes: Sequence[str], max_seq_length: int) -> None:
    """The same model as 5.3 and older saved it."""
    modules = json.loads((folder / "modules.json").read_text())
    for module in modules:
        module["type"] = f"sentence_transformers.models.{module['type'].rpartition('.')[2]}"
    _write(folder / "modules.json", modules)
    _write(folder / "sentence_bert_config.json", {"max_seq_length": max_seq_length, "do_lower_case": False})
    where = folder / "1_Pooling" / "config.json"
    pooling = json.loads(where.read_text())
    active = {f"pooling_mode_{mode}{_KEY_ENDINGS.get(mode, '')}": mode in modes for mode in POOLING_MODES}
    width = {"word_embedding_dimension": pooling["embedding_dimension"]}
    _write(where, width | active | {"include_prompt": pooling.get("include_prompt", True)})
    where = folder / "config_sentence_transformers.json"
    config = json.loads(where.read_text())
    config["__version__"] = {"sentence_transformers": "3.4.1"}
    config.pop("model_type", None)
    _write(where, config)
    where = folder / "tokenizer_config.json"
    _write(where, json.loads(where.read_text()) | {"model_max_length": 512})


_KEY_ENDINGS = {"cls": "_token", "max": "_tokens", "mean": "_tokens", "weightedmean": "_tokens"}


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False), encoding="utf-8")
