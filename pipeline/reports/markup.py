"""Pieces of HTML are made here, and nothing that a table holds gets into a page without being escaped and redacted."""

from collections.abc import Iterable, Sequence
from html import escape

from pipeline.errors import one_line
from pipeline.redaction import redacted


def shown(value: object, most: int = 300) -> str:
    """Return a value as text of a page: on one line, without secrets, escaped."""
    return escape(redacted(one_line(str(value), most)))


def clock(time: str) -> str:
    """Return a UTC time in ISO 8601 as people write it."""
    return time.removesuffix("+00:00").replace("T", " ") + " UTC"


def paragraph(sentence: str, kind: str = "") -> str:
    """Return a paragraph of a sentence, which is HTML already."""
    named = f' class="{kind}"' if kind else ""
    return f"<p{named}>{sentence}</p>"


def card(title: str, *pieces: str, wide: bool = False) -> str:
    return f'<div class="card{" wide" if wide else ""}"><h3>{title}</h3>{"".join(pieces)}</div>'


def section(title: str, *cards: str) -> str:
    return f'<section><h2>{title}</h2><div class="cards">{"".join(cards)}</div></section>'


def tiles(pairs: Iterable[tuple[str, str]]) -> str:
    """Return the headline figures, from pairs of a figure and what it counts."""
    made = "".join(
        f'<div class="tile"><b>{shown(figure)}</b><span>{shown(what)}</span></div>' for figure, what in pairs
    )
    return f'<div class="tiles">{made}</div>'


def definitions(pairs: Iterable[tuple[str, str]]) -> str:
    made = "".join(f"<dt>{shown(name)}</dt><dd>{shown(value, 600)}</dd>" for name, value in pairs)
    return f"<dl>{made}</dl>"


def grid(head: Sequence[str], rows: Iterable[Sequence[object]], text: frozenset[int] = frozenset()) -> str:
    """Return a table that scrolls by itself where it is wider than the page. The columns `text` are set to the left."""

    def cells(row: Sequence[object], tag: str) -> str:
        kinds = [' class="text"' if place in text else "" for place in range(len(row))]
        return "".join(f"<{tag}{kind}>{shown(cell)}</{tag}>" for kind, cell in zip(kinds, row, strict=True))

    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{cells(head, "th")}</tr></thead><tbody>{body}</tbody></table></div>'
