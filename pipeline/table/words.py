"""Texts become the words that a search by words compares; writing systems without spaces become pairs of characters.

Texts come in, words go out. This file knows no index and no table.
"""

import re
import unicodedata

_RUN = re.compile(
    r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]+|[^\W_\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]+"
)
_PAIRED = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]")
_COMMON = """
a about an and are as at be been by can did do does for from had has have how i if in into is it its me my no
not of on or our so than that the their them then there these they this to was we were what when where which
who why will with would you your
"""
COMMON = frozenset(_COMMON.split())
"""These English words say nothing of what a person looks for."""


def words(text: str) -> list[str]:
    """Return the words of a text in their order, in one form of Unicode and in lower case.

    Chinese and Japanese characters and Korean syllables come as pairs that overlap, one that stands alone as itself.
    """
    found: list[str] = []
    for run in _RUN.findall(unicodedata.normalize("NFKC", text).lower()):
        if _PAIRED.match(run) and len(run) > 1:
            found += [run[start : start + 2] for start in range(len(run) - 1)]
        else:
            found.append(run)
    return found


def terms(query: str) -> tuple[str, ...]:
    """Return the words of a query that are worth showing, each once: all of them, if all are common."""
    found = tuple(dict.fromkeys(words(query)))
    telling = tuple(word for word in found if word not in COMMON)
    return telling or found
