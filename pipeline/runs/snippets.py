"""The part of a text that shows best why it was found, with the query's words marked for a terminal or a page.

Texts and words come in; what goes out is safe to print, since control characters are escaped and HTML is quoted.
"""

import html
import re
from collections.abc import Sequence

from pipeline.errors import one_line

WIDTH = 200
"""Characters of a snippet, at most."""
_BOLD, _PLAIN = "\x1b[1m", "\x1b[0m"


def snippet(text: str, terms: Sequence[str], width: int = WIDTH) -> str:
    """Return the stretch of the text, on one line, that holds most of the different terms, or its beginning."""
    flat = re.sub(r"\s+", " ", text).strip()
    if len(flat) <= width:
        return one_line(flat, width + 100)
    found = [(match.start(), match[0].lower()) for match in _pattern(terms).finditer(flat)] if terms else []
    start = 0
    if found:
        best = max(found, key=lambda hit: (len({word for at, word in found if 0 <= at - hit[0] < width - 40}), -hit[0]))
        start = max(0, min(best[0] - 40, len(flat) - width))
    if start:
        space = flat.find(" ", start, start + 30)
        start = space + 1 if space >= 0 else start
    stop = min(len(flat), start + width)
    if stop < len(flat):
        space = flat.rfind(" ", stop - 30, stop)
        stop = space if space > start else stop
    shown = f"{'… ' if start else ''}{flat[start:stop]}{' …' if stop < len(flat) else ''}"
    return one_line(shown, width + 100)


def for_terminal(shown: str, terms: Sequence[str]) -> str:
    """Return a snippet with the terms in bold."""
    return _pattern(terms).sub(lambda match: f"{_BOLD}{match[0]}{_PLAIN}", shown) if terms else shown


def for_page(shown: str, terms: Sequence[str]) -> str:
    """Return a snippet as HTML with the terms in <mark>."""
    if not terms:
        return html.escape(shown)
    pieces, start = [], 0
    for match in _pattern(terms).finditer(shown):
        pieces += [html.escape(shown[start : match.start()]), f"<mark>{html.escape(match[0])}</mark>"]
        start = match.end()
    return "".join([*pieces, html.escape(shown[start:])])


def _pattern(terms: Sequence[str]) -> re.Pattern[str]:
    """A term matches at the beginning of words, in writing without spaces anywhere."""
    each = [re.escape(term) if not term.isascii() else rf"\b{re.escape(term)}\w*" for term in terms]
    return re.compile("|".join(each), re.IGNORECASE)
