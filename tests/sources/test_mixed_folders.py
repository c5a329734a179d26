"""A folder as people have them: documents of eight kinds side by side, some of them damaged, and files that are none."""

import os
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import LimitSpec, SourceSpec
from pipeline.errors import InputError
from pipeline.sources.listing import find_sources
from pipeline.sources.reader import SliceSpec, read_slices
from pipeline.sources.survey import survey
from pipeline.work import Unit
from tests import documents
from tests.documents import docx, epub, mail, mbox, notebook, paragraph, pdf, pptx, shape

KEPT = ("title", "author", "date", "pages", "attachments")


def spec_of(*paths: Path, **options: Any) -> SourceSpec:
    return SourceSpec(
        **{"path": tuple(map(str, paths)), "text": "text", "id": "file", "format": "documents", "keep": KEPT, **options}
    )


def read(spec: SourceSpec) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """The documents by id, and the errors by name of the file."""
    found = find_sources(spec)
    surveyed = survey(found.files, spec)
    good: dict[str, dict[str, Any]] = {}
    bad: dict[str, str] = {}
    for number, spans in enumerate(surveyed.spans):
        unit = Unit(unit_id=f"u{number}", spans=spans, sources=tuple(range(len(spans))))
        slices = SliceSpec(schema=surveyed.schema, source=spec, carried=spec.keep, limits=LimitSpec(), rows=1000)
        for piece in read_slices(unit, slices):
            good |= {row["id"]: row for row in piece.documents.to_pylist()}
            bad |= {Path(letter["path"]).name: letter["error"] for letter in piece.dead_letters.to_pylist()}
    return good, bad


def fill(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def whole_documents(number: int) -> dict[str, bytes]:
    text = f"text number {number}"
    return {
        f"{number}/a.pdf": pdf([["cover"], [text]]),
        f"{number}/a.docx": docx(paragraph(text)),
        f"{number}/a.pptx": pptx([(shape(text, "title"), "")]),
        f"{number}/a.epub": epub([f"<p>{text}</p>"]),
        f"{number}/a.ipynb": notebook([("code", text)]),
        f"{number}/a.eml": mail(text, attachments=number),
        f"{number}/a.html": f"<title>Page</title><p>{text}".encode(),
        f"{number}/a.md": text.encode(),
    }


OLD_WORD = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(2000)
DAMAGED = {
    "cut.pdf": (pdf([["text"]] * 9)[:900], "cut off"),
    "cut.docx": (docx(paragraph("text"))[:-30], "cut off"),
    "cut.ipynb": (notebook([("code", "x")])[:-3], "cut off"),
    "empty.pptx": (b"", "is empty"),
    "locked.pdf": (pdf([["text"]], encrypted=True), "asks for a password"),
    "locked.docx": (OLD_WORD, "has a password"),
    "picture.pdf": (b"\x89PNG\r\n\x1a\n" + bytes(200), "is no PDF"),
    "picture.eml": (b"\x89PNG\r\n\x1a\n" + bytes(200), "is no e-mail"),
    "scan.pdf": (pdf([[], []]), "it is scanned"),
    "bomb.epub": (documents.archive({"META-INF/container.xml": bytes(2**28)}), "zip bomb"),
    "broken.md": (b"\xff\xfe\xfd", "is not valid UTF"),
}


def test_forty_documents_are_read_each_by_its_kind(tmp_path: Path) -> None:
    for number in range(5):
        fill(tmp_path, whole_documents(number))
    fill(tmp_path, {"box.mbox": mbox([mail("one"), mail("two")])})
    fill(tmp_path, {f"damaged/{name}": content for name, (content, _) in DAMAGED.items()})
    spec = spec_of(tmp_path)
    good, bad = read(spec)
    assert len(good) == 5 * 8 + 2
    for number in range(5):
        for kind in ("docx", "epub", "ipynb", "eml", "html", "md", "pptx", "pdf"):
            text = good[f"{number}/a.{kind}"]["text"]
            assert text.replace("cover", "").strip() == f"text number {number}"
        assert good[f"{number}/a.eml"]["attachments"] == number
        assert good[f"{number}/a.pdf"]["pages"] == 2
        assert good[f"{number}/a.docx"]["author"] == "Ann Author"
        assert good[f"{number}/a.html"]["title"] == "Page"
        assert [good[f"{number}/a.md"][name] for name in KEPT] == [None] * len(KEPT)
    assert {good[name]["text"] for name in good if name.startswith("box.mbox:")} == {"one", "two"}
    assert bad.keys() == DAMAGED.keys()
    for name, (_, reason) in DAMAGED.items():
        assert reason in bad[name]


def test_files_of_no_format_are_left_out_and_told(tmp_path: Path) -> None:
    fill(
        tmp_path,
        {"a.md": b"x", "b.PDF": pdf([["x"]]), "c/d.PNG": b"", "c/e.png": b"", "f.zip": b"", "g.doc": b"", "h": b""},
    )
    for form in ("auto", "documents"):
        found = find_sources(spec_of(tmp_path, format=form))
        assert [file.relative for file in found.files] == ["a.md", "b.PDF"]
        assert found.unknown == ("c/d.PNG", "c/e.png", "f.zip", "g.doc", "h")
    surveyed = survey(found.files, spec_of(tmp_path))
    assert surveyed.schema.field("attachments").type == "int64"  # though there is no mail
    assert found.left_out == (
        "5 files left out for being of no format that is read (2 .png, 1 .zip, 1 .doc, 1 without a suffix), the first are "
        "'c/d.PNG', 'c/e.png', 'f.zip'",
    )
    (tmp_path / "rows.csv").write_text("text\nx\n")
    found = find_sources(spec_of(tmp_path))
    assert (found.rows, len(found.unknown)) == (("rows.csv",), 5)
    assert "1 file left out, whose rows are no documents: 'rows.csv'; give a pattern to embed these" in found.left_out
    found = find_sources(spec_of(tmp_path, format="auto"))
    assert "rows.csv" not in (*found.unknown, *found.rows)
    found = find_sources(spec_of(tmp_path, exclude=("*.zip", "c")))
    assert (found.unknown, found.rows) == (("g.doc", "h"), ("rows.csv",))


def test_a_pattern_that_stands_for_files_of_no_format_alone_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, {"a.md": b"x", "b.dat": b"", "c/d.png": b""})
    for pattern in ("*.dat", "c", "b.dat"):
        with pytest.raises(InputError, match="is unknown: expected one of"):
            find_sources(spec_of(tmp_path / "a.md", tmp_path / pattern))
    assert find_sources(spec_of(tmp_path / "a.md", tmp_path)).unknown == ("b.dat", "c/d.png")


def test_ids_are_paths_below_the_folder_that_all_patterns_have_in_common(tmp_path: Path) -> None:
    fill(tmp_path, {"x/a.md": b"x", "x/y/b.md": b"x", "z/c.md": b"x"})

    def names(*patterns: str, **options: Any) -> list[str]:
        return [
            file.relative for file in find_sources(spec_of(*(tmp_path / item for item in patterns), **options)).files
        ]

    assert names("") == ["x/a.md", "x/y/b.md", "z/c.md"]
    assert names("x") == names("x/**") == ["a.md", "y/b.md"]
    assert names("x/*.md") == names("x/a.md") == ["a.md"]
    assert names("x", "z/c.md") == names("x", "z") == ["x/a.md", "x/y/b.md", "z/c.md"]
    assert names("x", exclude=("a.md",)) == ["y/b.md"]
    os.symlink(tmp_path / "x", tmp_path / "link")
    assert names("link") == ["a.md", "y/b.md"]


def test_front_matter_that_cannot_be_read_is_counted(tmp_path: Path) -> None:
    broken = {
        "a.md": b"---\ntitle: [x\n---\ntext",
        "b/c.md": b"+++\ntitle = x\n+++\ntext",
        "d.md": b"---\na: *x\n---\n",
    }
    whole = {
        "e.md": b"---\ntitle: x\n---\ntext",
        "f.md": b"---\na rule above\n---\ntext",
        "g.md": b"---\n\ntext",
        "h.txt": b"x",
    }
    fill(tmp_path, broken | whole)
    spec = spec_of(tmp_path, front_matter="columns")
    told = "3 files with front matter that can't be read, which stays text: 'a.md', 'b/c.md', 'd.md'"
    assert survey(find_sources(spec).files, spec).remarks == (told,)
    assert read(spec)[0]["a.md"]["text"] == broken["a.md"].decode()
    spec = spec_of(tmp_path)
    assert survey(find_sources(spec).files, spec).remarks == ()


def test_a_folder_named_file_keeps_its_meaning(tmp_path: Path) -> None:
    fill(tmp_path, {"file=one/a.md": b"x"})
    assert list(read(spec_of(tmp_path))[0]) == ["one"]
