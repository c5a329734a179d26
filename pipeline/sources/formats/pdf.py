"""A document per PDF file: column `text` is the text of its pages in their order, each ended by a form feed.

PDFium reads it, as Chromium does: within a page the text has the order in which it was written, and lines end as they do on
the page. A word that was hyphenated at the end of a line is put together again. Pictures are not read.
"""

import datetime
import re
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from pipeline.sources.formats.document import PAGE_END, extracted, has_text, look_of, needs
from pipeline.sources.formats.form import Form, Misfit

_HEAD_BYTES, _TAIL_BYTES = 1024, 2**15
_HYPHEN = re.compile("[\x02\ufffe]\n?")
"""PDFium gives one of these for a hyphen that the end of a line made necessary."""
_DATE = re.compile(
    r"(?:D:)?(\d{4})(\d\d)?(\d\d)?(\d\d)?(\d\d)?(\d\d)?(?:([-+Z])(?:(\d\d)'?(?:(\d\d)'?)?)?)?.*", re.ASCII | re.DOTALL
)


def _extract(opened: BinaryIO) -> Mapping[str, str | None]:
    import pypdfium2

    _check_ends(opened)
    try:
        document = pypdfium2.PdfDocument(opened)
    except pypdfium2.PdfiumError as error:
        raise Misfit(_refusal(error)) from None
    try:
        pages = list(_pages(document))
        told = document.get_metadata_dict()
    finally:
        document.close()
    if not any(map(has_text, pages)):
        raise Misfit(
            f"none of the PDF's pages ({len(pages):,}) has text: it is scanned, or drawn; run OCR over it first (ocrmypdf)"
        )
    return {
        "text": "".join(page + PAGE_END for page in pages),
        "title": told.get("Title", "").strip() or None,
        "author": told.get("Author", "").strip() or None,
        "date": _date(told.get("CreationDate", "")),
        "pages": str(len(pages)),
    }


def _check_ends(opened: BinaryIO) -> None:
    """PDFium makes something of the beginning of any file, so that lost pages would not be noticed."""
    head = opened.read(_HEAD_BYTES)
    if b"%PDF-" not in head:
        raise Misfit("the file is no PDF, whatever its name says")
    size = opened.seek(0, 2)
    opened.seek(max(0, size - _TAIL_BYTES))
    if b"%%EOF" not in opened.read():
        raise Misfit("the PDF is cut off: its end is missing")
    opened.seek(0)


def _refusal(error: Any) -> str:
    import pypdfium2.raw

    if error.err_code in (pypdfium2.raw.FPDF_ERR_PASSWORD, pypdfium2.raw.FPDF_ERR_SECURITY):
        return "the PDF is encrypted and asks for a password: save it without one"
    return f"the PDF is damaged: {' '.join(str(error).split())[:200]}"


def _pages(document: Any) -> Iterator[str]:
    import pypdfium2

    for number in range(len(document)):
        try:
            page = document[number]
            try:
                text = page.get_textpage().get_text_range()
            finally:
                page.close()
        except pypdfium2.PdfiumError as error:
            raise Misfit(f"page {number + 1} of the PDF is damaged: {' '.join(str(error).split())[:200]}") from None
        yield _HYPHEN.sub("", text.replace("\r\n", "\n").replace("\r", "\n").replace("\f", "\n")).rstrip()


def _date(told: str) -> str | None:
    """`D:20240301120000+01'00'` as 2024-03-01T11:00:00Z; a date without a zone counts as UTC. None for what is no date."""
    found = _DATE.fullmatch(told.strip())
    if found is None:
        return None
    low = (1, 1, 1, 0, 0, 0)
    year, month, day, hour, minute, second = (
        int(part or least) for part, least in zip(found.groups(), low, strict=False)
    )
    shift = datetime.timedelta(hours=int(found[8] or 0), minutes=int(found[9] or 0))
    try:
        local = datetime.datetime(year, month, day, hour, minute, second)
        return f"{(local + shift if found[7] == '-' else local - shift).isoformat()}Z"
    except (ValueError, OverflowError):
        return None


FORM = Form(
    blocks=extracted(_extract),
    look=look_of(("text", "title", "author", "date", "pages"), needs("pypdfium2", "PDF", "documents")),
    suffixes=(".pdf",),
    packable=False,
    isolated=True,
    strings_only=True,
    rows_per_file=1,
    is_document=True,
)
