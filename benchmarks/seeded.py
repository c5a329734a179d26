"""A BERT or a static model of a given size with seeded weights, saved in the sentence-transformers format, and texts of given
lengths for it.

Needs torch, transformers and tokenizers alone: nothing is fetched. Every word of the texts is one token.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertModel

from pipeline.model.quiet import quiet_transformers


@dataclass(frozen=True, kw_only=True)
class Size:
    layers: int
    hidden: int
    heads: int
    words: int = 30000
    max_seq_length: int = 512


SIZES = {
    "minilm": Size(layers=6, hidden=384, heads=12),
    "base": Size(layers=12, hidden=768, heads=12),
    "large": Size(layers=24, hidden=1024, heads=16),
    "tiny": Size(layers=2, hidden=32, heads=4, words=200),
}
LENGTHS = {
    "short": (16, 16),
    "medium": (128, 128),
    "long": (512, 512),
    "news": (12, 27, 38, 43, 50, 59, 69, 122, 280),
    "abstracts": (8, 28, 74, 115, 173, 238, 308, 442, 512),
}
"""Tokens of a text. With more than two numbers they are the quantiles QUANTILES of real corpora: AG News with its titles, and
abstracts on arXiv, both in BERT's tokens."""
QUANTILES = (0, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1)
CUT = {"abstracts": 256}
"""max_seq_length, where it is not the model's."""
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def build(size: Size, folder: Path) -> Path:
    """Transformer -> mean pooling -> normalize, of the release 3.4's style."""
    vocabulary = [*SPECIALS, *(f"w{number}" for number in range(size.words))]
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        intermediate_size=4 * size.hidden,
        max_position_embeddings=512,
        initializer_range=1.5 / size.hidden**0.5,  # with less, all texts look alike, and no error would show
    )
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    _save_tokenizer(folder, vocabulary)
    names = ["Transformer", "Pooling", "Normalize"]
    entries = [
        {
            "idx": number,
            "name": str(number),
            "path": f"{number}_{name}" if number else "",
            "type": f"sentence_transformers.models.{name}",
        }
        for number, name in enumerate(names)
    ]
    _write(folder / "modules.json", entries)
    _write(
        folder / "1_Pooling" / "config.json",
        {"word_embedding_dimension": size.hidden, "pooling_mode_mean_tokens": True},
    )
    (folder / "2_Normalize").mkdir()
    _write(folder / "sentence_bert_config.json", {"max_seq_length": size.max_seq_length, "do_lower_case": False})
    _write(folder / "config_sentence_transformers.json", {"__version__": {"sentence_transformers": "3.4.1"}})
    return folder


def build_static(folder: Path, dim: int, tokenizer: Path | None = None) -> Path:
    """StaticEmbedding -> normalize: a vector per token, whose mean is that of a text. The tokenizer's file may be another
    model's."""
    inner = folder / "0_StaticEmbedding"
    inner.mkdir(parents=True)
    if tokenizer is None:
        _save_tokenizer(inner, [*SPECIALS, *(f"w{number}" for number in range(SIZES["base"].words))])
    else:
        shutil.copy(tokenizer, inner / "tokenizer.json")
    words = Tokenizer.from_file(str(inner / "tokenizer.json")).get_vocab_size()
    vectors = np.random.default_rng(0).standard_normal((words, dim), np.float32)
    save_file({"embedding.weight": vectors}, inner / "model.safetensors")
    kinds = [("0_StaticEmbedding", "StaticEmbedding"), ("1_Normalize", "Normalize")]
    entries = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (path, kind) in enumerate(kinds)
    ]
    _write(folder / "modules.json", entries)
    (folder / "1_Normalize").mkdir()
    _write(folder / "config_sentence_transformers.json", {"__version__": {"sentence_transformers": "3.4.1"}})
    return folder


def lengths_of(kind: str, count: int, longest: int, seed: int = 0) -> list[int]:
    """Tokens of `count` texts, special ones included; shrunk in proportion where the longest would be over `longest`."""
    chance = np.random.default_rng(seed)
    values = np.array(LENGTHS[kind], np.float64)
    shares = QUANTILES if len(values) > 2 else (0, 1)
    drawn = np.interp(chance.random(count), shares, values * min(1, longest / values[-1]))
    return np.maximum(drawn.round(), 3).astype(int).tolist()


def texts_of(lengths: list[int], words: int, seed: int = 0) -> list[str]:
    chance = np.random.default_rng(seed)
    return [" ".join(f"w{number}" for number in chance.integers(0, words, length - 2)) for length in lengths]


def _save_tokenizer(folder: Path, vocabulary: list[str]) -> None:
    tokenizer = Tokenizer(WordPiece({token: number for number, token in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.add_special_tokens(SPECIALS)
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    special = [(token, vocabulary.index(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", special)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {f"{token[1:-1].lower()}_token": token for token in SPECIALS}
    settings = {"do_lower_case": True, "model_max_length": 512, "tokenizer_class": "BertTokenizer"}
    _write(folder / "tokenizer_config.json", names | settings)
    _write(folder / "special_tokens_map.json", names)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1))
