"""The pages on which chunks stand, by the form feeds that end the pages in a document's text.

Texts and the places of chunks come in. Two columns go out. A document without a form feed has no pages.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import schema

_END = "\f"
_Places = np.ndarray[Any, np.dtype[np.int64]]


def pages_of(texts: Sequence[str], text: _Places, start: _Places, end: _Places) -> dict[str, pa.Array]:
    """Return PAGE and LAST_PAGE, int32 from 1 on, of the chunks `texts[text[i]][start[i]:end[i]]`.

    White space at the ends of a chunk, page ends among it, does not count.
    """
    ends: dict[int, _Places] = {}
    found: list[tuple[int | None, int | None]] = []
    for number, first, stop in zip(text.tolist(), start.tolist(), end.tolist(), strict=True):
        if number not in ends:
            ends[number] = _page_ends(texts[number])
        if not len(ends[number]):
            found.append((None, None))
            continue
        piece = texts[number][first:stop]
        first += len(piece) - len(piece.lstrip())
        last = max(first, stop - 1 - len(piece) + len(piece.rstrip()))
        pages = np.searchsorted(ends[number], [first, last]) + 1
        found.append((int(pages[0]), int(pages[1])))
    firsts, lasts = zip(*found, strict=True) if found else ((), ())
    return {schema.PAGE: pa.array(firsts, pa.int32()), schema.LAST_PAGE: pa.array(lasts, pa.int32())}


def _page_ends(text: str) -> _Places:
    """Return the places of the form feeds."""
    found: list[int] = []
    place = text.find(_END)
    while place >= 0:
        found.append(place)
        place = text.find(_END, place + 1)
    return np.array(found, np.int64)
