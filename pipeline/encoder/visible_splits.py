"""A tokenizer's rules in, the rules of one out that normalizes and splits alike, and whose ids show where it splits.

What is a letter and what a sign decides where a text is split. The ids of a vocabulary with few merges hide it, until
a text comes whose pieces would merge across.
"""

import json
from collections.abc import Mapping
from typing import Any

from pipeline.encoder.tokenizer_backend import steps_of

_ANCHORS = "abAB12!'"
"""They stand beside the character in question; each is one byte."""
_SPACE, _LINE = "Ġ", "Ċ"
"""So a byte-level vocabulary writes them."""


def with_visible_splits(rules: Mapping[str, Any]) -> str:
    """The JSON of a tokenizer, made of that of another one."""
    byte_level = any(step["type"] == "ByteLevel" for step in steps_of(rules["pre_tokenizer"], "pretokenizers"))
    shown: dict[str, Any] = {
        "model": _anchored_bytes() if byte_level else _anchors(),
        "added_tokens": [],
        "post_processor": None,
    }
    return json.dumps({**rules, **shown, "decoder": None})


def _anchors() -> dict[str, Any]:
    """A word that is no anchor is an unknown one, whatever it is."""
    words = ["[UNK]", *(before + anchor for before in ("", "▁") for anchor in _ANCHORS)]
    return {"type": "WordLevel", "vocab": {word: number for number, word in enumerate(words)}, "unk_token": "[UNK]"}


def _anchored_bytes() -> dict[str, Any]:
    """A byte merges with an anchor beside it, and only where no split parts them."""
    letters = _byte_letters()
    pairs = [(anchor, letter) for anchor in [*_ANCHORS, _SPACE, _LINE] for letter in letters]
    pairs = list(dict.fromkeys([*pairs, *((letter, anchor) for anchor, letter in pairs)]))
    words = dict.fromkeys([*letters, *(first + second for first, second in pairs)])
    vocabulary = {word: number for number, word in enumerate(words)}
    model: dict[str, Any] = {"type": "BPE", "vocab": vocabulary, "merges": [list(pair) for pair in pairs]}
    empty = {"dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None}
    return model | empty | {"fuse_unk": False, "byte_fallback": False, "ignore_merges": False}


def _byte_letters() -> list[str]:
    """The letter that stands for each byte in a byte-level vocabulary."""
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())
