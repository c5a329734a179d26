"""A document per Jupyter notebook: column `text` is what was written into its cells, texts and code, in their order.

What the code printed is left out. Parts of the file that are no text stay unread.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from pipeline.sources.formats.document import extracted, look_of
from pipeline.sources.formats.form import Form, Misfit

_HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", re.MULTILINE)


def _extract(opened: BinaryIO) -> Mapping[str, str | None]:
    try:
        notebook = json.loads(opened.read())
    except (ValueError, RecursionError) as error:
        raise Misfit(f"the notebook is damaged or cut off: {error}") from None
    if not isinstance(notebook, dict):
        raise Misfit("the file is JSON, but no notebook")
    cells = list(_cells(notebook))
    if not cells and not {"cells", "worksheets"} & notebook.keys():
        raise Misfit("the file is JSON, but no notebook: it has no cells")
    texts = [text.strip("\n") for _, text in cells if text.strip()]
    return {"text": "\n\n".join(texts), "title": _title(notebook, cells)}


def _cells(notebook: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(kind, what was written) of each cell; notebooks before version 4 have their cells on sheets."""
    sheets = notebook.get("worksheets")
    pages = sheets if isinstance(sheets, list) else [notebook]
    for page in pages:
        cells = page.get("cells") if isinstance(page, dict) else None
        for cell in cells if isinstance(cells, list) else []:
            if isinstance(cell, dict):
                source = cell.get("source", cell.get("input", ""))
                lines = source if isinstance(source, list) else [source]
                yield str(cell.get("cell_type", "")), "".join(line for line in lines if isinstance(line, str))


def _title(notebook: Mapping[str, Any], cells: list[tuple[str, str]]) -> str | None:
    """What the notebook says, or its first heading."""
    told = notebook.get("metadata")
    title = told.get("title") if isinstance(told, dict) else None
    if isinstance(title, str) and title.strip():
        return title.strip()
    headings = (_HEADING.search(text) for kind, text in cells if kind == "markdown")
    return next((found[1] for found in headings if found), None)


FORM = Form(
    blocks=extracted(_extract),
    look=look_of(("text", "title")),
    suffixes=(".ipynb",),
    packable=False,
    isolated=True,
    strings_only=True,
    rows_per_file=1,
    is_document=True,
)
