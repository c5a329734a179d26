"""A document per electronic book: column `text` is its chapters, in the order that the book's spine gives.

Each chapter is read as HTML files are. The table of contents is left out.
"""

import posixpath
from collections.abc import Iterator, Mapping
from typing import BinaryIO

from pipeline.sources.formats import html
from pipeline.sources.formats.document import extracted, has_text, look_of, needs
from pipeline.sources.formats.form import Form, Misfit
from pipeline.sources.formats.package import Element, Package, child_texts, local, resolved

_CONTAINER = "META-INF/container.xml"
_ENCRYPTION = "META-INF/encryption.xml"


def _extract(opened: BinaryIO) -> Mapping[str, str | None]:
    book = Package(opened, "EPUB")
    roots = [each.get("full-path", "") for each in book.xml(_CONTAINER).iter() if local(each) == "rootfile"]
    if not roots:
        raise Misfit("the EPUB is damaged: its container names no book")
    contents = book.xml(roots[0])
    sections = {local(section): section for section in contents}
    chapters = list(_chapters(sections, posixpath.dirname(roots[0])))
    locked = _encrypted(book)
    if locked.intersection(chapters):
        raise Misfit("the EPUB is encrypted: its shop protects it against copying")
    text = "\n".join(filter(None, (html.page(book.read(chapter))["text"] for chapter in chapters)))
    if not has_text(text):
        raise Misfit("the EPUB has no text: it is empty, or has pictures alone")
    told = child_texts(sections["metadata"]) if "metadata" in sections else {}
    return {"text": text, "title": told.get("title"), "author": told.get("creator"), "date": told.get("date")}


def _chapters(sections: Mapping[str, Element], folder: str) -> Iterator[str]:
    if "manifest" not in sections or "spine" not in sections:
        raise Misfit("the EPUB is damaged: it doesn't say in which order its chapters stand")
    items = {item.get("id", ""): item for item in sections["manifest"]}
    for reference in sections["spine"]:
        item = items.get(reference.get("idref", ""))
        if (
            item is not None
            and "html" in item.get("media-type", "")
            and "nav" not in item.get("properties", "").split()
        ):
            yield resolved(folder, item.get("href", ""))


def _encrypted(book: Package) -> frozenset[str]:
    """The parts that are encrypted; fonts often are, and are not read."""
    if not book.has(_ENCRYPTION):
        return frozenset()
    return frozenset(
        resolved("", each.get("URI", "")) for each in book.xml(_ENCRYPTION).iter() if local(each) == "CipherReference"
    )


FORM = Form(
    blocks=extracted(_extract),
    look=look_of(("text", "title", "author", "date"), needs("selectolax.lexbor", "EPUB", "documents")),
    suffixes=(".epub",),
    packable=False,
    isolated=True,
    strings_only=True,
    rows_per_file=1,
    is_document=True,
)
