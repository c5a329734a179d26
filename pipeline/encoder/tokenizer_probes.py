"""A tokenizer in, texts out that would show where two implementations of it differ.

They are made of its own vocabulary, of its added tokens, and of strings that are hard for normalizers, splitters and
merges. This file compares nothing.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

_MOST_WORDS = 8192
"""So many entries of a vocabulary are taken, spread over all of it: proving takes a tenth of a second."""

_SPACES = [
    " ",
    "  ",
    "\t",
    "\n",
    "\r\n",
    "\x0b",
    "\x1c",
    "\x85",
    "\u00a0",
    "\u2003",
    "\u2028",
    "\u3000",
    "\u200b",
    "\ufeff",
]
_STRANGE = [
    "\x00",
    "\x01",
    "\x7f",
    "\x9f",
    "\ufffd",
    "\ue000",
    "\uffff",
    "\u00ad",
    "\u200e",
    "\u202e",
    "\u2060",
    "\U000e0041",
]
_MARKS = [
    "é",
    "e\u0301",
    "q\u0323\u0307",
    "q\u0307\u0323",
    "\u0301",
    "Å",
    "A\u030a",
    "ﷺ",
    "ﬁ",
    "ŉ",
    "ǰ",
    "\u0345",
    "²½ⅷ①",
]
_CASES = ["İstanbul", "ΟΔΟΣ", "ς", "straße", "ẞ", "ǅ", "K", "Ω", "ÀÉÎ", "'S", "don't", "I'LL"]
_SCRIPTS = [
    *["한국어", "한국어", "ㄱㄴ", "中文句子", "𠀀", "々〆", "ガｶﾞ", "ｈｅ１", "㍿", "ไทยน้ำ", "क्षि", "ಕ್ಷ"],
    *["اَلْعَرَبِيَّةُ", "ـ", "עִבְרִית", "Русский", "ქართული"],
]
_EMOJI = ["🙂", "👩‍👩‍👧", "🏳️‍🌈", "👍🏽", "🇰🇷", "1️⃣", "☃", "❤️"]
_SIGNS = [
    "_",
    "--",
    "...",
    "…",
    "!?",
    "```",
    "$1,234.56",
    "1234567",
    "https://example.org/?q=1&r=2#frag",
    "a_b.c",
    "™",
    "##a",
    "▁",
    "Ġ",
    "<0x0A>",
]
_HARD = ["", *_SPACES, *_STRANGE, *_MARKS, *_CASES, *_SCRIPTS, *_EMOJI, *_SIGNS]
_LONG = ["x" * length for length in (63, 64, 65, 99, 100, 101, 199, 200, 201, 2000)] + [
    *["the " * 700, "字" * 700, "가" * 700, "ab" * 700, "🙂" * 300, "e\u0301" * 300, " " * 300, "\n" * 300, "." * 300],
    *["no_space_at_all_" * 100, "1" * 300, "a, " + "b" * 90 + "," * 300, "\u0301" * 100],
]


def probe_texts(backend: Any, prompt: str) -> list[str]:
    """Some thousand texts, the same for the same tokenizer and prompt."""
    words = _words(backend)
    texts = [
        *_HARD,
        *_LONG,
        *(f"a{piece}b {piece} A{piece}" for piece in _HARD),
        *_joined([first + second for first, second in itertools.product(_HARD, _HARD)], " ", 8),
        *_joined(words, " ", 32),
        *_joined(_joined(words, "", 4), " ", 8),
        *_around_added(backend),
    ]
    return [*texts, *(prompt + text for text in (*_HARD, *_LONG))] if prompt else texts


def _words(backend: Any) -> list[str]:
    """Entries of the vocabulary as they stand, and as they are written in a text."""
    size = backend.get_vocab_size(with_added_tokens=True)
    ids = range(0, size, -(-size // _MOST_WORDS))
    tokens = [token for number in ids if (token := backend.id_to_token(number)) is not None]
    written = backend.decode_batch([[number] for number in ids], skip_special_tokens=False)
    plain = [token.removeprefix("##").replace("▁", " ") for token in tokens]
    return [word for words in (written, plain) for word in words if word]


def _around_added(backend: Any) -> Iterator[str]:
    added = sorted(token.content for token in backend.get_added_tokens_decoder().values())
    for token in added[:256]:
        yield from (token, f"x{token}y", f"x {token} y", f"{token}{token}", f" {token}\n{token} ", token.upper())
        yield from (
            token.lower(),
            f"한{token}中",
            token[:-1],
            f"{token[1:]} x{token[:-1]}",
            f"the{token}\u0301 {token}ing",
        )
    for first, second in itertools.product(added[:16], added[:16]):
        yield from (f"{first}{second}the", f"the {first} {second}{first}s")


def _joined(pieces: Sequence[str], between: str, together: int) -> list[str]:
    return [between.join(pieces[start : start + together]) for start in range(0, len(pieces), together)]
