"""Small tokenizers of the three kinds that most models have, trained on a few lines by the installed library."""

from pathlib import Path
from typing import Any

import tokenizers as library
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers, trainers

ODD = st.text(
    st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(" \t\n中a'.\u0301\u200d\u3000\x1c\u0600")),
    max_size=120,
)
"""Texts of any characters, those among them that are hard more often."""


def bert() -> Any:
    tokenizer = library.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer, trainers.WordPieceTrainer(vocab_size=600, special_tokens=["[UNK]"], show_progress=False)


def roberta() -> Any:
    tokenizer = library.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return tokenizer, trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)


def xlm_roberta() -> Any:
    tokenizer = library.Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(library.Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return tokenizer, trainers.UnigramTrainer(
        vocab_size=600, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False
    )


def trained(kind: Any, texts: list[str]) -> Any:
    """The tokenizer of a kind, trained on these texts and on this file."""
    tokenizer, trainer = kind()
    tokenizer.train_from_iterator([*Path(__file__).read_text().splitlines(), *texts], trainer)
    return tokenizer
