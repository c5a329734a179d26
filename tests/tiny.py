"""A tiny, seeded BERT saved in the real sentence-transformers format, in either style of key; built offline."""

import json
import string
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertModel

from pipeline.model.digest import folder_digest
from pipeline.model.folder import EncoderSpec
from pipeline.model.quiet import quiet_transformers
from pipeline.model.saved_modules import POOLING_MODES


def _split(words: str) -> list[str]:
    return words.split()


_WORDS = _split(
    "a about after all an and are as at be because but by can company day first for from game get go good government "
    "has have he her his how in into is it its just know last like little long make man many market may more most new "
    "news no not now of oil on one or other out over people president price report say see she shop small so some "
    "still team than that the their them then there they this time to two up us was water we week well were what when "
    "where which who will with work world would year you your"
)
_ENDINGS = _split("ed er est ing ion ly ment ness s tion")
_SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_KOREAN = "가나다라마바사아자차카타파하한국어문장입니다안녕세요서울날씨좋은영화"
_CHINESE = "中文句子的一是不了人我在有他这上们来到时大地为天气很好北京电影"
_LEGACY_POOLING_KEYS = [f"pooling_mode_{mode}" for mode in ("cls_token", "max_tokens", "mean_tokens")] + [
    f"pooling_mode_{mode}" for mode in ("mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
]
_MODULE_HOMES = {
    "Transformer": "base.modules.transformer",
    "Pooling": "sentence_transformer.modules.pooling",
    "Dense": "base.modules.dense",
    "Normalize": "base.modules.normalize",
}


def build_tiny_model(
    folder: str | Path,
    *,
    seed: int = 0,
    pooling: Sequence[str] = ("mean",),
    dense: int | None = None,
    activation: str = "Tanh",
    normalize: bool = True,
    max_seq_length: int = 64,
    positions: int = 512,
    style: Literal["legacy", "new"] = "legacy",
    hidden: int = 32,
    do_lower_case: bool = False,
    lowercase_tokenizer: bool = True,
    include_prompt: bool = True,
    prompts: Mapping[str, str] | None = None,
    default_prompt_name: str | None = None,
    truncate_dim: int | None = None,
) -> Path:
    """Save Transformer -> Pooling -> (Dense) -> (Normalize) to `folder` and return it.

    `pooling` names modes as pipeline.model.saved_modules.POOLING_MODES does; `legacy` is the format of releases up to
    5.3, `new` that of 5.4 and newer. The vocabulary covers English words and letters, and a few Korean and
    Chinese characters.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = _vocabulary()
    _save_transformer(folder, seed, hidden, positions, len(vocabulary))
    _save_tokenizer(folder, vocabulary, lowercase_tokenizer, max_seq_length if style == "new" else 512)
    modules = [("Transformer", ""), ("Pooling", "1_Pooling")]
    _write(folder / "1_Pooling" / "config.json", _pooling_config(style, pooling, hidden, include_prompt))
    width = len(pooling) * hidden
    if dense is not None:
        modules.append(("Dense", f"{len(modules)}_Dense"))
        _save_dense(folder / modules[-1][1], seed, width, dense, activation)
    if normalize:
        modules.append(("Normalize", f"{len(modules)}_Normalize"))
    _write(folder / "modules.json", [_module_entry(style, *module, number) for number, module in enumerate(modules)])
    if style == "legacy":
        _write(folder / "sentence_bert_config.json", {"max_seq_length": max_seq_length, "do_lower_case": do_lower_case})
    else:
        _write(folder / "sentence_bert_config.json", _NEW_TRANSFORMER)
    config: dict[str, Any] = {"__version__": {"sentence_transformers": "3.4.1" if style == "legacy" else "5.4.0"}}
    config |= {"prompts": dict(prompts or {}), "default_prompt_name": default_prompt_name}
    config |= {"similarity_fn_name": "cosine"}
    config |= {"truncate_dim": truncate_dim} if truncate_dim is not None else {}
    config |= {"model_type": "SentenceTransformer"} if style == "new" else {}
    _write(folder / "config_sentence_transformers.json", config)
    return folder


def load_oracle(folder: str | Path) -> Any:
    """The same folder in sentence-transformers, on the CPU; its progress bars and reports stay off."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what that library imports is not ours to judge
        from sentence_transformers import SentenceTransformer
    with quiet_transformers():
        return SentenceTransformer(str(folder), device="cpu", local_files_only=True)


def as_it_stands(spec: EncoderSpec) -> EncoderSpec:
    """The spec of a folder that was changed after it was planned, with the digest of what stands there now."""
    return replace(spec, origin=replace(spec.origin, digest=folder_digest(Path(spec.folder))))


_NEW_TRANSFORMER = {
    "transformer_task": "feature-extraction",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "module_output_name": "token_embeddings",
}


def _vocabulary() -> list[str]:
    characters = string.ascii_lowercase + string.ascii_uppercase + string.digits
    pieces = [f"##{piece}" for piece in [*characters, *_ENDINGS, *_KOREAN]]
    tokens = [*_SPECIALS, *characters, *string.punctuation, *_WORDS, *_KOREAN, *_CHINESE, *pieces]
    return list(dict.fromkeys(tokens))


def _save_transformer(folder: Path, seed: int, hidden: int, positions: int, vocabulary: int) -> None:
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=2 * hidden,
        max_position_embeddings=positions,
        initializer_range=2.2 / hidden**0.5,  # large enough that different texts get clearly different vectors
    )
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        BertModel(config, add_pooling_layer=False).save_pretrained(folder)


def _save_tokenizer(folder: Path, vocabulary: list[str], lowercase: bool, model_max_length: int) -> None:
    tokenizer = Tokenizer(WordPiece({token: number for number, token in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.add_special_tokens(_SPECIALS)
    tokenizer.normalizer = BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    special = [("[CLS]", vocabulary.index("[CLS]")), ("[SEP]", vocabulary.index("[SEP]"))]
    tokenizer.post_processor = TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", special)
    tokenizer.enable_truncation(16)  # many real files carry such a block; it must be overridden
    tokenizer.enable_padding(length=16)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {f"{token[1:-1].lower()}_token": token for token in _SPECIALS}
    settings = {"do_lower_case": lowercase, "model_max_length": model_max_length, "tokenizer_class": "BertTokenizer"}
    _write(folder / "tokenizer_config.json", names | settings)
    _write(folder / "special_tokens_map.json", names)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")


def _pooling_config(style: str, pooling: Sequence[str], hidden: int, include_prompt: bool) -> dict[str, Any]:
    if style == "new":
        modes = pooling[0] if len(pooling) == 1 else list(pooling)
        return {"embedding_dimension": hidden, "pooling_mode": modes, "include_prompt": include_prompt}
    keys = zip(_LEGACY_POOLING_KEYS, POOLING_MODES, strict=True)
    active = {key: mode in pooling for key, mode in keys}
    return {"word_embedding_dimension": hidden, **active, "include_prompt": include_prompt}


def _save_dense(folder: Path, seed: int, width: int, out: int, activation: str) -> None:
    generator = torch.Generator().manual_seed(seed + 1)
    home = "linear" if activation == "Identity" else "activation"
    config = {"in_features": width, "out_features": out, "bias": True}
    _write(folder / "config.json", config | {"activation_function": f"torch.nn.modules.{home}.{activation}"})
    weight = torch.randn(out, width, generator=generator) / width**0.5
    bias = torch.randn(out, generator=generator) / 10
    save_file({"linear.weight": weight, "linear.bias": bias}, folder / "model.safetensors")


def _module_entry(style: str, name: str, path: str, number: int) -> dict[str, Any]:
    home = "models" if style == "legacy" else _MODULE_HOMES[name]
    return {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.{home}.{name}"}


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False), encoding="utf-8")
