"""What a search found, as a person sees it in a terminal or a notebook, and as a program takes it.

Rows and snippets come in. This file searches nothing and reads no files.
"""

import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.errors import one_line
from pipeline.runs.snippets import for_page, for_terminal
from pipeline.schema import CHUNK, DOC_ID, ID, LINEAGE, TEXT

SCORE, SIMILARITY, BM25 = "score", "similarity", "bm25"
_NUMBERS = (SCORE, SIMILARITY, BM25)
_NUMBERS_HEAD = f"{SCORE:<6}  {SIMILARITY}  {BM25:>5}"
"""It stands above the numbers of a hybrid search, which are as wide."""
_VALUE_WIDTH = 200
_STYLE = "text-align:left;vertical-align:top;white-space:normal;max-width:48em;overflow-wrap:anywhere"


def kept_columns(names: Sequence[str], embedding: str) -> list[str]:
    """Return the columns that a person chose to keep, those of the folders among them."""
    others = {ID, TEXT, embedding, *_NUMBERS, *(field.name for field in (*CHUNK, *LINEAGE))}
    return [name for name in names if name not in others]


class _Lines:
    """What is shown as lines, in a terminal and where Python shows a value."""

    def lines(self, *, colour: bool = False) -> Iterator[str]:
        raise NotImplementedError

    def __str__(self) -> str:
        return "\n".join(self.lines())

    __repr__ = __str__


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Found(_Lines):
    """The rows that a search found, best first. It is iterated as dictionaries."""

    title: str
    rows: pa.Table
    """They have `id`, `score`, the kept columns and the table's text, and `doc_id` where documents are chunked. After a hybrid
    search `score` is that of the fused ranks, and `similarity` and `bm25` stand beside it."""
    kept: tuple[str, ...]
    snippets: tuple[str, ...]
    """They are as many as the rows. One is "" where the text is empty, or the table keeps none."""
    terms: tuple[str, ...] = ()
    """These words are emphasised."""
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return int(self.rows.num_rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.to_dicts())

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return a dictionary for each row: id, score, the kept columns and the snippet, "" where there is no text."""
        names = [ID, *(name for name in _NUMBERS if name in self.rows.column_names), *self.kept]
        names += [DOC_ID] if DOC_ID in self.rows.column_names else []
        shown = self.rows.select(names).to_pylist()
        return [row | {"snippet": text} for row, text in zip(shown, self.snippets, strict=True)]

    def lines(self, *, colour: bool = False) -> Iterator[str]:
        yield self.title
        if BM25 in self.rows.column_names and len(self):
            yield _NUMBERS_HEAD
        for row in self.to_dicts():
            yield "  ".join([_numbers(row), shown(row[ID]), *named({name: row[name] for name in self.kept})])
            if text := row["snippet"]:
                yield f"       {for_terminal(text, self.terms) if colour else text}"
        yield from self.notes

    def _repr_html_(self) -> str:
        names = [name for name in (*_NUMBERS, ID, *self.kept) if name in self.rows.column_names]
        with_text = any(self.snippets)
        head = [*names, *(["text"] if with_text else [])]
        body = []
        for row in self.to_dicts():
            cells = [_cell(name, row[name]) for name in names]
            cells += [for_page(row["snippet"], self.terms)] if with_text else []
            body.append(cells)
        return page_table(self.title, head, body, self.notes)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Pairs(_Lines):
    """Pairs of rows whose vectors are nearly the same, nearest first. It is iterated as dictionaries."""

    title: str
    total: int
    """So many pairs reach the threshold; `pairs` has the nearest of them."""
    pairs: tuple[Mapping[str, Any], ...]
    """Each has `id`, `other`, `score`, `same_text`, `snippet` and `other_snippet`, which are "" where a text is empty or not
    kept."""
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return iter(self.pairs)

    def lines(self, *, colour: bool = False) -> Iterator[str]:
        yield self.title
        for pair in self.pairs:
            same = "  same text" if pair["same_text"] else ""
            yield f"{pair[SCORE]:.3f}  {one_line(pair[ID], 100)}  {one_line(pair['other'], 100)}{same}"
            if pair["snippet"]:
                yield f"       {pair['snippet']}"
            if pair["other_snippet"] and not pair["same_text"]:
                yield f"       {pair['other_snippet']}"
        yield from self.notes

    def _repr_html_(self) -> str:
        names = [SCORE, ID, "other", "same_text", "snippet", "other_snippet"]
        body = [[_cell(name, pair[name]) for name in names] for pair in self.pairs]
        return page_table(self.title, names, body, self.notes)


def page_table(title: str, head: Sequence[str], body: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
    """Return a table as HTML. The cells of the body are HTML already, all else is escaped here."""
    cells = "".join(f'<th style="{_STYLE}">{html.escape(name)}</th>' for name in head)
    rows = "".join(f"<tr>{''.join(f'<td style={_STYLE!r}>{cell}</td>' for cell in row)}</tr>" for row in body)
    told = "".join(f"<p>{html.escape(note)}</p>" for note in notes)
    heading = html.escape(one_line(title))
    return f"<p><b>{heading}</b></p><table><thead><tr>{cells}</tr></thead><tbody>{rows}</tbody></table>{told}"


def shown(value: Any) -> str:
    """Return a value as a piece of a line."""
    return one_line(str(value), _VALUE_WIDTH)


def named(values: Mapping[str, Any]) -> list[str]:
    """Return values as pieces of a line, each with its name; what a row lacks is left out."""
    return [f"{one_line(name)}={shown(value)}" for name, value in values.items() if value is not None]


def _numbers(row: Mapping[str, Any]) -> str:
    if BM25 not in row:
        return f"{row[SCORE]:.3f}"
    return f"{row[SCORE]:6.4f}  {row[SIMILARITY]:10.3f}  {row[BM25]:5.2f}"


def _cell(name: str, value: Any) -> str:
    if name in _NUMBERS:
        return f"{value:.4f}" if name == SCORE else f"{value:.3f}"
    return "" if value is None else html.escape(one_line(str(value), _VALUE_WIDTH))
