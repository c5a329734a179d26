"""A document per Word file (.docx, .docm): column `text` is its body with tables and text boxes, then foot- and endnotes.

Headers and footers of its pages are left out, as is what was deleted under tracked changes, comments, pictures and the
numbers of lists. Where pages end is known to nobody before Word lays them out.
"""

from collections.abc import Mapping
from typing import BinaryIO

from pipeline.sources.formats.document import extracted, has_text, look_of
from pipeline.sources.formats.form import Form, Misfit
from pipeline.sources.formats.package import Package, properties
from pipeline.sources.formats.paragraphs import text_of


def _extract(opened: BinaryIO) -> Mapping[str, str | None]:
    package = Package(opened, "Word document")
    body, content = package.main("document", "word/document.xml")
    notes = [*package.related("footnotes", body), *package.related("endnotes", body)]
    texts = (text_of(part) for part in (content, *map(package.xml, notes)))
    text = "\n".join(filter(None, texts))
    if not has_text(text):
        raise Misfit("the Word document has no text: it is empty, or has pictures alone")
    return {"text": text, **properties(package)}


FORM = Form(
    blocks=extracted(_extract),
    look=look_of(("text", "title", "author", "date")),
    suffixes=(".docx", ".docm", ".dotx"),
    packable=False,
    isolated=True,
    strings_only=True,
    rows_per_file=1,
    is_document=True,
)
