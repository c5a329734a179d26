"""Small documents of all kinds, made by hand: what a test puts in is all that is in them."""

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from email.message import EmailMessage
from xml.sax.saxutils import escape

_WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
_DRAWING = "http://schemas.openxmlformats.org/drawingml/2006/main"
_SLIDES = "http://schemas.openxmlformats.org/presentationml/2006/main"
_RELATIONS = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_PACKAGE = "http://schemas.openxmlformats.org/package/2006/relationships"
_CORE = (
    '<cp:coreProperties xmlns:cp="core" xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:t="http://purl.org/dc/terms/">'
    "<dc:title>{title}</dc:title><dc:creator>{author}</dc:creator><t:created>{date}</t:created></cp:coreProperties>"
)
TOLD = {"title": "A title", "author": "Ann Author", "date": "2024-03-01T12:00:00Z"}


def archive(parts: Mapping[str, str | bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as written:
        for name, content in parts.items():
            written.writestr(name, content)
    return out.getvalue()


def relations(*targets: tuple[str, str, str]) -> str:
    """(id, kind, target) of each."""
    items = "".join(
        f'<Relationship Id="{name}" Type="{_RELATIONS}/{kind}" Target="{target}"/>' for name, kind, target in targets
    )
    return f'<Relationships xmlns="{_PACKAGE}">{items}</Relationships>'


# --- Word


def paragraph(text: str) -> str:
    return f'<w:p><w:r><w:t xml:space="preserve">{escape(text)}</w:t></w:r></w:p>'


def table(rows: Sequence[Sequence[str]]) -> str:
    lines = ("".join(f"<w:tc>{paragraph(cell)}</w:tc>" for cell in row) for row in rows)
    return "<w:tbl>" + "".join(f"<w:tr>{line}</w:tr>" for line in lines) + "</w:tbl>"


def docx(body: str, footnotes: Sequence[str] = (), told: Mapping[str, str] = TOLD) -> bytes:
    """`body` is WordprocessingML, such as paragraphs and tables."""
    notes = "".join(f"<w:footnote>{paragraph(note)}</w:footnote>" for note in footnotes)
    parts = {
        "_rels/.rels": relations(
            ("r1", "officeDocument", "word/document.xml"), ("r2", "metadata/core-properties", "docProps/core.xml")
        ),
        "docProps/core.xml": _CORE.format(**told),
        "word/document.xml": f'<w:document xmlns:w="{_WORD}"><w:body>{body}<w:sectPr/></w:body></w:document>',
        "word/header1.xml": f'<w:hdr xmlns:w="{_WORD}">{paragraph("a header")}</w:hdr>',
    }
    if footnotes:
        parts["word/_rels/document.xml.rels"] = relations(("n1", "footnotes", "footnotes.xml"))
        parts["word/footnotes.xml"] = f'<w:footnotes xmlns:w="{_WORD}">{notes}</w:footnotes>'
    return archive(parts)


# --- PowerPoint


def shape(text: str, placeholder: str = "") -> str:
    kind = f'<p:nvPr><p:ph type="{placeholder}"/></p:nvPr>' if placeholder else "<p:nvPr/>"
    lines = "".join(f"<a:p><a:r><a:t>{escape(line)}</a:t></a:r></a:p>" for line in text.split("\n"))
    return f"<p:sp><p:nvSpPr>{kind}</p:nvSpPr><p:txBody>{lines}</p:txBody></p:sp>"


def _slide(kind: str, shapes: str) -> str:
    spaces = f'xmlns:p="{_SLIDES}" xmlns:a="{_DRAWING}"'
    return f"<p:{kind} {spaces}><p:cSld><p:spTree>{shapes}</p:spTree></p:cSld></p:{kind}>"


def pptx(slides: Sequence[tuple[str, str]], told: Mapping[str, str] = TOLD) -> bytes:
    """(shapes, notes) of each slide. The parts are numbered backwards, so that their names say nothing of their order."""
    names = [f"slide{len(slides) - number}.xml" for number in range(len(slides))]
    shown = "".join(f'<p:sldId id="{256 + number}" r:id="s{number}"/>' for number in range(len(slides)))
    parts = {
        "_rels/.rels": relations(
            ("r1", "officeDocument", "ppt/presentation.xml"), ("r2", "metadata/core-properties", "/docProps/core.xml")
        ),
        "docProps/core.xml": _CORE.format(**told),
        "ppt/presentation.xml": f'<p:presentation xmlns:p="{_SLIDES}" xmlns:r="{_RELATIONS}"><p:sldIdLst>{shown}</p:sldIdLst>'
        "</p:presentation>",
        "ppt/_rels/presentation.xml.rels": relations(
            *((f"s{number}", "slide", f"slides/{name}") for number, name in enumerate(names))
        ),
    }
    for name, (shapes, notes) in zip(names, slides, strict=True):
        parts[f"ppt/slides/{name}"] = _slide("sld", shapes + shape("7", "sldNum"))
        if notes:
            parts[f"ppt/slides/_rels/{name}.rels"] = relations(("n", "notesSlide", f"../notesSlides/{name}"))
            parts[f"ppt/notesSlides/{name}"] = _slide("notes", shape("8", "sldNum") + shape(notes, "body"))
    return archive(parts)


# --- books


def epub(chapters: Sequence[str], told: Mapping[str, str] = TOLD, more: Mapping[str, str] | None = None) -> bytes:
    """Chapters in XHTML; `more` are parts of the archive."""
    names = [f"ch {len(chapters) - number}.xhtml" for number in range(len(chapters))]
    items = "".join(
        f'<item id="c{number}" href="text/{name.replace(" ", "%20")}" media-type="application/xhtml+xml"/>'
        for number, name in enumerate(names)
    )
    spine = "".join(f'<itemref idref="c{number}"/>' for number in range(len(chapters)))
    contents = (
        '<package xmlns="http://www.idpf.org/2007/opf"><metadata xmlns:dc="http://purl.org/dc/elements/1.1/">'
        f"<dc:title>{told['title']}</dc:title><dc:creator>{told['author']}</dc:creator><dc:date>{told['date']}</dc:date>"
        '</metadata><manifest><item id="nav" href="nav.xhtml" media-type="application/xhtml+xml" properties="nav"/>'
        f'{items}</manifest><spine><itemref idref="nav"/>{spine}</spine></package>'
    )
    parts = {
        "META-INF/container.xml": '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
        '<rootfile full-path="OEBPS/content.opf"/></rootfiles></container>',
        "OEBPS/content.opf": contents,
        "OEBPS/nav.xhtml": "<html><body><p>contents</p></body></html>",
    }
    parts |= {f"OEBPS/text/{name}": chapter for name, chapter in zip(names, chapters, strict=True)}
    return archive({**parts, **(more or {})})


# --- notebooks and mails


def notebook(cells: Sequence[tuple[str, str]], title: str | None = None) -> bytes:
    """(markdown or code, what is in it) of each cell."""
    made = [
        {"cell_type": kind, "source": source.splitlines(keepends=True), "outputs": [{"text": ["printed"]}]}
        for kind, source in cells
    ]
    metadata = {} if title is None else {"title": title}
    return json.dumps({"nbformat": 4, "metadata": metadata, "cells": made}).encode()


def mail(text: str, subject: str = "A title", html: str | None = None, attachments: int = 0) -> bytes:
    message = EmailMessage()
    message["From"] = "Änn Author <ann@example.org>"
    message["To"] = "bob@example.org"
    message["Date"] = "Fri, 01 Mar 2024 13:00:00 +0100"
    message["Subject"] = subject
    if text or html is None:
        message.set_content(text)
    if html is not None:
        message.add_alternative(html, subtype="html") if text else message.set_content(html, subtype="html")
    for number in range(attachments):
        message.add_attachment(b"\x89PNG", maintype="image", subtype="png", filename=f"{number}.png")
    return message.as_bytes()


def mbox(mails: Sequence[bytes]) -> bytes:
    quoted = [(b"\n" + each).replace(b"\nFrom ", b"\n>From ")[1:].rstrip(b"\n") for each in mails]
    return b"".join(b"From ann@example.org Fri Mar  1 12:00:00 2024\n" + each + b"\n\n" for each in quoted)


# --- PDF


def pdf(pages: Sequence[Sequence[str]], told: Mapping[str, str] | None = None, *, encrypted: bool = False) -> bytes:
    """Lines of each page. A font without shapes maps each character to itself: what is drawn is nothing, what is read is
    the text. An encrypted one has a password that nobody knows."""
    characters = sorted({character for lines in pages for line in lines for character in line})
    code = {character: number + 1 for number, character in enumerate(characters)}
    mapped = "".join(f"<{number:04x}> <{character.encode('utf-16-be').hex()}>\n" for character, number in code.items())
    unicode_map = (
        "/CIDInit /ProcSet findresource begin 12 dict begin begincmap /CMapName /X def /CMapType 2 def\n"
        f"1 begincodespacerange <0000> <ffff> endcodespacerange\n{len(code)} beginbfchar\n{mapped}endbfchar\n"
        "endcmap end end"
    )
    first_page = 7
    count = len(pages)
    kids = " ".join(f"{first_page + 2 * number} 0 R" for number in range(count))
    objects = [
        "<</Type/Catalog/Pages 2 0 R>>",
        f"<</Type/Pages/Count {count}/Kids[{kids}]/MediaBox[0 0 4000 800]/Resources<</Font<</F 3 0 R>>>>>>",
        "<</Type/Font/Subtype/Type0/BaseFont/Made/Encoding/Identity-H/DescendantFonts[4 0 R]/ToUnicode 5 0 R>>",
        "<</Type/Font/Subtype/CIDFontType2/BaseFont/Made/CIDSystemInfo<</Registry(Adobe)/Ordering(Identity)/Supplement 0>>"
        "/DW 500>>",
        f"<</Length {len(unicode_map)}>>stream\n{unicode_map}\nendstream",
        "<<" + "".join(f"/{name}({value})" for name, value in (told or {}).items()) + ">>",
    ]
    for number, lines in enumerate(pages):
        drawn = "\n".join(
            f"BT /F 10 Tf 40 {760 - 20 * row} Td <{''.join(f'{code[character]:04x}' for character in line)}> Tj ET"
            for row, line in enumerate(lines)
        )
        objects.append(f"<</Type/Page/Parent 2 0 R/Contents {first_page + 2 * number + 1} 0 R>>")
        objects.append(f"<</Length {len(drawn)}>>stream\n{drawn}\nendstream")
    lock = ""
    if encrypted:
        objects.append(f"<</Filter/Standard/V 1/R 2/P -4/O({'o' * 32})/U({'u' * 32})>>")
        lock = f"/Encrypt {len(objects)} 0 R/ID[(a)(a)]"
    out = bytearray(b"%PDF-1.7\n")
    places = []
    for number, content in enumerate(objects, 1):
        places.append(len(out))
        out += f"{number} 0 obj\n{content}\nendobj\n".encode("latin-1")
    start = len(out)
    out += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n".encode()
    out += b"".join(f"{place:010d} 00000 n \n".encode() for place in places)
    out += f"trailer<</Size {len(objects) + 1}/Root 1 0 R/Info 6 0 R{lock}>>\nstartxref\n{start}\n%%EOF\n".encode()
    return bytes(out)
