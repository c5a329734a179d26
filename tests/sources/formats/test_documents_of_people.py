"""PDF, Word, PowerPoint, EPUB, notebooks and e-mail: text in the order in which a person reads it, and what is told of it."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.sources.formats import front_matter
from tests import documents
from tests.documents import docx, epub, mail, mbox, notebook, paragraph, pdf, pptx, shape, table
from tests.sources.formats.reading import rows_of

STRINGS = ("text", "title", "author", "date", "subject", "from", "to", "path", "file")
COLUMNS = pa.schema(
    [*((name, pa.string()) for name in STRINGS), *((name, pa.int64()) for name in ("pages", "attachments"))]
)
TOLD = {"title": "A title", "author": "Ann Author", "date": "2024-03-01T12:00:00Z"}


def rows(folder: Path, name: str, content: bytes, **options: Any) -> tuple[list[dict[str, Any]], list[Any]]:
    path = folder / name
    path.write_bytes(content)
    return rows_of(path, COLUMNS, **options)


def one(folder: Path, name: str, content: bytes) -> dict[str, Any]:
    """The document, with the columns that it has."""
    ((row,), bad) = rows(folder, name, content)
    assert bad == []
    assert row.pop("path") == str(folder / name)
    assert row.pop("file") == str(folder / name)  # no folder of a source is known here
    return {column: value for column, value in row.items() if value is not None}


def error_of(folder: Path, name: str, content: bytes, **options: Any) -> str:
    good, ((position, error),) = rows(folder, name, content, **options)
    assert good == []
    assert position == 0
    return error


# --- PDF


def test_pages_of_a_pdf_are_told_apart_by_form_feeds(tmp_path: Path) -> None:
    told = {"Title": "A title", "Author": "Ann Author", "CreationDate": "D:20240301130000+01'00'"}
    content = pdf([["Erste Zeile", "zweite"], [], ["京天 🙂", "end."]], told)
    assert one(tmp_path, "a.pdf", content) == {
        "text": "Erste Zeile\nzweite\n\f\n\f京天 🙂\nend.\n\f",
        "pages": 3,
        **TOLD,
    }


@pytest.mark.parametrize(
    ("date", "expected"),
    [
        ("D:20240301120000Z", "2024-03-01T12:00:00Z"),
        ("D:20240301120000", "2024-03-01T12:00:00Z"),
        ("D:20240301023000-0930", "2024-03-01T12:00:00Z"),
        ("2024", "2024-01-01T00:00:00Z"),
        ("D:20241301", None),
        ("D:00010101000000+02'00'", None),
        ("yesterday", None),
    ],
)
def test_dates_of_a_pdf(tmp_path: Path, date: str, expected: str | None) -> None:
    assert one(tmp_path, "a.pdf", pdf([["x"]], {"CreationDate": date})).get("date") == expected


def test_a_pdf_without_text_or_without_its_end_says_so(tmp_path: Path) -> None:
    good = pdf([["some text"], ["more"]])
    assert "(2) has text: it is scanned" in error_of(tmp_path, "a.pdf", pdf([[], []]))
    assert error_of(tmp_path, "a.pdf", good[: len(good) // 2]) == "the PDF is cut off: its end is missing"
    assert error_of(tmp_path, "a.pdf", b"") == "the file is empty"
    assert error_of(tmp_path, "a.pdf", b"\x89PNG\r\n" * 9) == "the file is no PDF, whatever its name says"
    assert "the PDF is damaged" in error_of(tmp_path, "a.pdf", b"%PDF-1.7\nnothing\n%%EOF")
    assert "longer than limits.max_row_bytes (10)" in error_of(tmp_path, "a.pdf", good, max_row_bytes=10)
    locked = error_of(tmp_path, "a.pdf", pdf([["secret"]], encrypted=True))
    assert locked == "the PDF is encrypted and asks for a password: save it without one"
    cyclic = good.replace(b"/Kids[7 0 R", b"/Kids[2 0 R")
    assert len(rows(tmp_path, "a.pdf", cyclic)[0]) <= 1


# --- Word


def test_a_word_document_is_read_from_top_to_bottom(tmp_path: Path) -> None:
    hidden = "<w:p><w:r><w:rPr><w:vanish/></w:rPr><w:t>hidden</w:t></w:r><w:r><w:t>seen</w:t></w:r></w:p>"
    changed = (
        "<w:p><w:del><w:r><w:delText>gone</w:delText></w:r></w:del><w:ins><w:r><w:t>new</w:t></w:r></w:ins>"
        "<w:r><w:tab/><w:t>a</w:t><w:br/><w:t>b</w:t><w:noBreakHyphen/><w:t>c</w:t></w:r></w:p>"
    )
    control = f"<w:sdt><w:sdtContent>{paragraph('in a control')}</w:sdtContent></w:sdt>"
    link = "<w:p><w:hyperlink><w:r><w:t>a link</w:t></w:r></w:hyperlink></w:p>"
    box = f"<w:p><w:r><w:pict><w:txbxContent>{paragraph('in a box')}</w:txbxContent></w:pict></w:r></w:p>"
    nested = (
        f"<w:tbl><w:tr><w:tc>{paragraph('1')}{table([['2', '3']])}</w:tc><w:tc>{paragraph('4')}</w:tc></w:tr></w:tbl>"
    )
    body = paragraph("Heading") + table([["a", "b c"], ["", "d"]]) + control + hidden + changed + link + box + nested
    assert one(tmp_path, "a.docx", docx(body, ["a note"])) == {
        "text": "Heading\na\tb c\n\td\nin a control\nseen\nnew\ta\nb-c\na link\n\nin a box\n\n1 2 3\t4\na note",
        **TOLD,
    }


# --- PowerPoint


def test_slides_come_in_their_order_with_their_notes(tmp_path: Path) -> None:
    grid = (
        "<p:graphicFrame><a:tbl><a:tr><a:tc><a:txBody><a:p><a:r><a:t>1</a:t></a:r></a:p></a:txBody></a:tc>"
        "<a:tc><a:txBody><a:p><a:r><a:t>2</a:t></a:r></a:p></a:txBody></a:tc></a:tr></a:tbl></p:graphicFrame>"
    )
    group = f"<p:grpSp><p:nvGrpSpPr/>{shape('in a group')}</p:grpSp>"
    slides = [(shape("point one\npoint two") + shape("Title", "title"), "say this"), (grid + group, ""), ("", "")]
    assert one(tmp_path, "a.pptx", pptx(slides)) == {
        "text": "Title\npoint one\npoint two\nsay this\n\f1\t2\nin a group\n\f\n\f",
        "pages": 3,
        **TOLD,
    }


# --- books


def test_chapters_come_in_the_order_of_the_spine(tmp_path: Path) -> None:
    chapters = ["<html><body><h1>One</h1><p>a</p></body></html>", "<html><body><p>b &amp; c</p></body></html>"]
    assert one(tmp_path, "a.epub", epub(chapters)) == {"text": "One\na\nb & c", **TOLD}
    lock = '<encryption><EncryptedData><CipherData><CipherReference URI="OEBPS/{}"/></CipherData></EncryptedData></encryption>'
    font = {"META-INF/encryption.xml": lock.format("font.otf")}
    assert one(tmp_path, "a.epub", epub(chapters, more=font))["text"] == "One\na\nb & c"
    chapter = {"META-INF/encryption.xml": lock.format("text/ch%201.xhtml")}
    assert "is encrypted" in error_of(tmp_path, "a.epub", epub(chapters, more=chapter))


# --- notebooks and mails


def test_a_notebook_is_what_was_written_into_its_cells(tmp_path: Path) -> None:
    cells = [("markdown", "# A title\n\ntext\n"), ("code", "x = 1\nprint(x)"), ("code", ""), ("raw", "raw")]
    expected = {"text": "# A title\n\ntext\n\nx = 1\nprint(x)\n\nraw", "title": "A title"}
    assert one(tmp_path, "a.ipynb", notebook(cells)) == expected
    assert one(tmp_path, "a.ipynb", notebook(cells, "Told"))["title"] == "Told"
    old = {"worksheets": [{"cells": [{"cell_type": "code", "input": ["x"]}]}]}
    assert one(tmp_path, "a.ipynb", json.dumps(old).encode()) == {"text": "x"}
    assert one(tmp_path, "a.ipynb", b'{"cells": [{"source": "half \\ud800 pair"}]}') == {"text": "half \ufffd pair"}
    assert "cut off" in error_of(tmp_path, "a.ipynb", notebook(cells)[:-9])
    assert "no notebook" in error_of(tmp_path, "a.ipynb", b'{"a": 1}')
    assert "no notebook" in error_of(tmp_path, "a.ipynb", b"[1]")
    assert "damaged" in error_of(tmp_path, "a.ipynb", b"[" * 200_000)


MAIL = {
    "title": "A title",
    "author": "Änn Author <ann@example.org>",
    "date": "2024-03-01T12:00:00Z",
    "subject": "A title",
    "from": "Änn Author <ann@example.org>",
    "to": "bob@example.org",
}


def test_a_mail_is_its_text_and_its_attachments_are_counted(tmp_path: Path) -> None:
    text = "Hello Böb,\n\n> quoted\n-- not a signature\nbye"
    content = mail(f"{text}\n-- \nAnn\n+49 1234\n", html="<p>other</p>", attachments=2)
    assert one(tmp_path, "a.eml", content) == {"text": text, "attachments": 2, **MAIL}
    assert one(tmp_path, "a.eml", content.replace(b"\n", b"\r\n"))["text"] == text
    page = mail("", html="<style>x</style><p>Only <b>HTML</b></p><p>ä</p>")
    assert one(tmp_path, "a.eml", page) == {"text": "Only HTML\nä", "attachments": 0, **MAIL}
    assert one(tmp_path, "a.eml", mail(""))["text"] == ""
    assert "no e-mail" in error_of(tmp_path, "a.eml", b"\x89PNG\r\n\x1a\n" * 20)
    odd = b"From: a@b\nDate: never\nSubject: =?klingon?Q?x?=\nContent-Type: text/plain; charset=klingon\n\nbody\xff"
    assert one(tmp_path, "a.eml", odd)["text"] == "bodyÿ"


def test_a_box_has_a_document_per_mail(tmp_path: Path) -> None:
    texts = ["first\n\nFrom the beginning", "second", "third\nFrom here"]
    content = mbox([mail(text, f"mail {number}") for number, text in enumerate(texts)])
    good, bad = rows(tmp_path, "a.mbox", content)
    assert bad == []
    assert [row["text"] for row in good] == texts
    assert [row["title"] for row in good] == ["mail 0", "mail 1", "mail 2"]
    places = [int(row["file"].removeprefix(f"{tmp_path}/a.mbox:")) for row in good]
    assert all(content[place:].startswith(b"From ann@") for place in places)
    assert len(set(places)) == 3
    unquoted = b"From a@b\nSubject: x\n\nline\nFrom here on\n\nFrom a@b\nSubject: y\n\n\n"
    assert [row["text"] for row in rows(tmp_path, "a.mbox", unquoted)[0]] == ["line\nFrom here on", ""]
    assert "no mbox" in error_of(tmp_path, "a.mbox", b"\x89PNG")
    assert rows(tmp_path, "a.mbox", b"") == ([], [])


# --- what is damaged


ARCHIVES = {
    "a.docx": docx(paragraph("text")),
    "a.pptx": pptx([(shape("text"), "")]),
    "a.epub": epub(["<p>text"]),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_damaged_archive_says_what_is_wrong(tmp_path: Path, name: str) -> None:
    content = ARCHIVES[name]
    assert one(tmp_path, name, content)["text"].strip() == "text"
    assert "damaged or cut off" in error_of(tmp_path, name, content[: len(content) // 2])
    assert error_of(tmp_path, name, b"") == "the file is empty"
    assert "whatever its name says" in error_of(tmp_path, name, b"%PDF-1.7 hello")
    assert "old binary Office file" in error_of(tmp_path, name, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 512)
    assert "has no part" in error_of(tmp_path, name, documents.archive({"x": "y"}))
    for other in ARCHIVES.keys() - {name}:
        assert "is no" in (error := error_of(tmp_path, name, ARCHIVES[other])) or "has no part" in error


def test_bombs_are_refused_by_their_size_and_by_the_parser(tmp_path: Path) -> None:
    spaces = "<w:document xmlns:w='x'>" + " " * (130 * 2**20)
    bomb = documents.archive({"word/document.xml": spaces})
    assert len(bomb) < 2**18
    assert "zip bomb" in error_of(tmp_path, "a.docx", bomb)
    grows = "".join(f'<!ENTITY e{n + 1} "{f"&e{n};" * 10}">' for n in range(10))
    laughs = f'<!DOCTYPE x [<!ENTITY e0 "ha">{grows}]><x><t>&e10;</t></x>'
    assert "damaged" in error_of(tmp_path, "a.docx", documents.archive({"word/document.xml": laughs}))
    deep = "<document>" * 50_000 + "</document>" * 50_000
    assert "no text" in error_of(tmp_path, "a.docx", documents.archive({"word/document.xml": deep}))


KINDS = {
    **ARCHIVES,
    "a.pdf": pdf([["text"]]),
    "a.ipynb": notebook([("code", "text")]),
    "a.eml": mail("text", attachments=1),
    "a.mbox": mbox([mail("text")] * 2),
}


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whatever_happens_to_the_bytes_there_is_a_document_or_a_bad_row(tmp_path_factory: Any, data: Any) -> None:
    name = data.draw(st.sampled_from(sorted(KINDS)))
    content = bytearray(KINDS[name])
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place : place + data.draw(st.integers(1, 30))] = data.draw(st.binary(max_size=8))
        if not content:
            break
    good, bad = rows(tmp_path_factory.getbasetemp(), name, bytes(content))
    assert len(good) + len(bad) >= (0 if name == "a.mbox" else 1)


# --- front matter


@pytest.mark.parametrize(
    ("text", "columns", "rest"),
    [
        ("---\ntitle: A: b\n---\nx", None, None),
        ("---\ntitle: 'A: b'\ntags: [a, b]\nn: 010\nd: 2024-01-02\nnone:\n---\nx\n---\n", {"title": "A: b", "tags": "a, b",
         "n": "010", "d": "2024-01-02", "none": None}, "x\n---\n"),
        ("---\r\na: {b: [c]}\r\n---\r\nx", {"a": '{"b": ["c"]}'}, "x"),
        ("+++\ntitle = 'T'\ndate = 2024-01-02\ndraft = true\ntags = ['a', 'b']\n+++\nx", {"title": "T",
         "date": "2024-01-02", "draft": "true", "tags": "a, b"}, "x"),
        ("---\na: 1\n---", {"a": "1"}, ""),
        ("---\n\nA rule above, and a rule below\n\n---\n", None, None),
        ("---\na: &x [1]\nb: *x\n---\n", None, None),
        ("---\na: " + "[" * 40 + "]" * 40 + "\n---\n", None, None),
        ("---\na: {{date}}\n---\n", None, None),
        ("---\na: 1\n", None, None),
        ("text\n---\na: 1\n---\n", None, None),
        ("+++\nno toml\n+++\n", None, None),
    ],
)  # fmt: skip
def test_front_matter_becomes_columns_and_all_else_stays_text(text: str, columns: Any, rest: str | None) -> None:
    assert front_matter.split(text) == ((columns, rest) if columns is not None else ({}, text))


@given(st.text("-+\n\r: ab[]{}&*'\"", max_size=60))
def test_no_text_is_lost_to_front_matter(text: str) -> None:
    columns, rest = front_matter.split(text)
    assert text.endswith(rest)
    assert columns or rest == text or text.strip("-+\n\r {}")[:1] in ("", "#")


def test_front_matter_stays_in_the_text_unless_it_is_asked_for(tmp_path: Path) -> None:
    content = b"---\ntitle: T\nfile: other\n---\n# x\n"
    assert one(tmp_path, "a.md", content) == {"text": content.decode()}
    path = tmp_path / "a.md"
    ((row,), _) = rows_of(path, COLUMNS, front_matter="columns")
    assert (row["title"], row["text"], row["file"]) == ("T", "# x\n", str(path))
    (tmp_path / "a.txt").write_bytes(content)
    ((row,), _) = rows_of(tmp_path / "a.txt", COLUMNS, front_matter="columns")
    assert (row["title"], row["text"]) == (None, content.decode())
