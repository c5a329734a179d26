"""Texts on which tokenizers and models go wrong first: some to send through every combination, many for the edges."""

import random
import unicodedata
from collections.abc import Mapping

WORDS = (
    *("the", "oil", "price", "market", "small", "water", "it's", "X", "x!", "naïve"),
    *("한국어", "문장", "좋은", "中文", "天气", "[SEP]", "🙂", "ΟΔΟΣ"),
)


def some_words(count: int) -> str:
    return " ".join(random.Random(count).choices(WORDS, k=count))


TEXTS = [
    "the oil price",
    "a",
    "",
    " ",
    "government people say that the market will work well this year, in two or more ways",
    "한국어 문장입니다. 안녕하세요",
    "中文句子，天气很好。",
    "x [SEP] y </s> z [MASK] <mask> [CLS] <|endoftext|> <eos>",
    "  spaces   in front\tand\nbehind  ",
    "the oil price",
    "long text about oil and water " * 30,
    *map(some_words, (5, 13, 21, 34)),
]
"""From empty to beyond every limit, two of them equal."""

_KOREAN = "한국어 문장입니다. 안녕하세요"
_LATIN = "Émile's naïve café in Zürich, Ångström"

EDGE_TEXTS: Mapping[str, str] = {
    "empty": "",
    "a space": " ",
    "white space": " \t\n\r\x0b\x0c\u00a0\u2003\u3000 ",
    "one letter": "a",
    "one Chinese character": "中",
    "one emoji": "🙂",
    "literal specials of BERT": "[CLS] oil [SEP] price [MASK] [PAD] [UNK] [sep]",
    "literal specials of RoBERTa": "<s>oil</s> price <mask> <pad><unk> </S>",
    "literal specials of decoders": "oil <|endoftext|> price <|im_end|><|im_start|> <eos><bos> <0x0A>",
    "nothing but a special": "[SEP]",
    "nothing but the end of text": "</s>",
    "nothing but a decoder's end": "<|endoftext|>",
    "sentencepiece's own space": "▁oil ▁▁price ▁",
    "wordpiece's own mark": "##ing ##oil",
    "emoji": "oil 🙂🙃 price ☃ ☃️",
    "emoji joined": "👩‍👩‍👧‍👦 and 🏳️‍🌈 and 👍🏽 and 🇰🇷🇨🇳",
    "Greek final sigma": "ΟΔΟΣ ΣΊΣΥΦΟΣ ὈΔΥΣΣΕΎΣ Σ",
    "Turkish, German, ligatures": "İSTANBUL ISPARTA ıi STRASSE straße ẞ ﬁ ﬃ Ǆ",
    "Korean, composed": unicodedata.normalize("NFC", _KOREAN),
    "Korean, jamo": unicodedata.normalize("NFD", _KOREAN),
    "Korean, compatibility jamo": "ㅋㅋㅋ ㅠㅠ ㄱㄴㄷ",
    "Chinese": "秦川雄帝宅，函谷壯皇居。北京天气很好",
    "Chinese beyond the first plane": "𠀀𠀁𪚥",
    "Japanese": "今日は良い天気ですね。カタカナ ｶﾀｶﾅ",
    "Arabic, Hebrew, Thai, Hindi": "سعر النفط מחיר הנפט ราคาน้ำมัน तेल की कीमत",
    "mixed": "oil 석유 石油 price가 상승the中文the",
    "Latin, composed": unicodedata.normalize("NFC", _LATIN),
    "Latin, decomposed": unicodedata.normalize("NFD", _LATIN),
    "many combining marks": "e" + "\u0301\u0302\u0303" * 40,
    "full width": "Ｏｉｌ　Ｐｒｉｃｅ　１２３",
    "null": "oil\0price \0",
    "escape": "\x1b[31moil\x1b[0m\x07\x08 price\x7f",
    "zero width": "oil\u200bprice\u200c\u200d\u2060 a\u00adb",
    "byte order mark": "\ufeffoil price\ufeff",
    "right to left marks": "\u202eoil\u202c \u200eprice\u200f \u2066x\u2069",
    "replacement and private": "\ufffd oil \ue000 \uf8ff \U0010ffff",
    "not a character": "\ufdd0 oil \uffff",
    "mojibake": "naÃ¯ve cafÃ© â€œoilâ€\x9d Ã­Â•Âœ",
    "tabs and newlines": "\toil\tprice\n\nthe market\r\nsaid\n",
    "line separators": "oil\u2028price\u2029the\x85market",
    "repeated": "the the the the the the the the the the the the",
    "long word": "x" * 300,
    "punctuation": "!!!???...,,,;;;:::---___///\\\\\\",
    "numbers": "1 12 123 1,234.5 0x1F 1e-9 ½ ² Ⅷ ٣",
    "URL": "https://example.org/a/b?q=1&r=2#frag user@example.org",
    "code": "def f(x):\n    return {'a': [1, 2][x]}  # comment",
    "HTML": "<p>oil &amp; <b>price</b></p><!-- x -->",
}
"""Name -> text."""

LONG_TEXTS: Mapping[str, str] = {
    "100,000 characters": "the oil price of the market, " * 3449,
    "100,000 without a space": "oilprice" * 12500,
    "100,000 Chinese characters": "天气很好" * 25000,
    "100,000 spaces": " " * 100000,
    "100,000 emoji": "🙂" * 100000,
}
"""Far beyond what any model reads."""
