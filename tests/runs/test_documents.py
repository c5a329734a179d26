"""Tables of documents: pages of chunks, ids below the source's folder, front matter, and what stays as it was."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import RunSpec
from pipeline.errors import ConfigError
from pipeline.runs.plan import shape
from tests import inline
from tests.documents import docx, paragraph, pdf, pptx
from tests.documents import shape as box
from tests.inline import read_table, spec_of

SOURCE = {"format": "documents", "id": "file", "keep": ["title"]}
CHUNK = {"max_tokens": 12, "overlap_tokens": 2}


def words(page: int, count: int = 24) -> str:
    return " ".join(["the market of new york"] * (count // 4)) + f" {page}"


def fill(folder: Path) -> None:
    folder.mkdir()
    (folder / "a.pdf").write_bytes(pdf([[words(1)], [], ["up"], [words(4)]]))
    (folder / "b.pptx").write_bytes(pptx([(box("the people"), "saw it"), (box("the government"), "")]))
    (folder / "c.docx").write_bytes(docx(paragraph(words(1))))
    (folder / "d.md").write_text("---\ntitle: T\n---\nthe company")


def spec(folder: Path, model: Path, chunk: dict[str, Any] | None = None, **source: Any) -> RunSpec:
    table = folder.parent / "table"
    return spec_of(folder, model, table, source=SOURCE | {"path": str(folder)} | source, chunk=chunk)


def chunks_of(table: Path) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(read_table(table).to_pylist(), key=lambda row: row["chunk_index"]):
        found.setdefault(row["doc_id"], []).append(row)
    return found


def test_chunks_know_their_pages(tmp_path: Path, tiny_model: Path) -> None:
    fill(tmp_path / "docs")
    inline.embed(spec(tmp_path / "docs", tiny_model, CHUNK))
    found = chunks_of(tmp_path / "table")
    assert found.keys() == {"a.pdf", "b.pptx", "c.docx", "d.md"}
    for row in found["a.pdf"]:
        assert 1 <= row["page"] <= row["last_page"] <= 4
        assert (" up" in f" {row['text']}") <= (row["page"] <= 3 <= row["last_page"])
    assert [row["page"] for row in found["a.pdf"]] == sorted(row["page"] for row in found["a.pdf"])
    assert found["a.pdf"][0]["page"] == 1
    assert found["a.pdf"][-1]["last_page"] == 4
    assert (found["b.pptx"][0]["page"], found["b.pptx"][-1]["last_page"]) == (1, 2)
    for name in ("c.docx", "d.md"):
        assert {(row["page"], row["last_page"]) for row in found[name]} == {(None, None)}


def test_a_reindex_adds_what_came_and_leaves_the_rest_alone(tmp_path: Path, tiny_model: Path) -> None:
    docs = tmp_path / "docs"
    fill(docs)
    run = spec(docs, tiny_model, CHUNK)
    inline.embed(run)
    encoded: list[int] = []
    assert inline.reindex(run, encoded=encoded).version == 1
    (docs / "e.pdf").write_bytes(pdf([["the film"], ["the weather"]]))
    assert inline.reindex(run, encoded=encoded).counts.new == len(chunks_of(tmp_path / "table")["e.pdf"])
    assert sum(encoded) == len(chunks_of(tmp_path / "table")["e.pdf"])
    other = ["source", "embedding"]  # numbers of files, and vectors of other batches
    by_row = read_table(tmp_path / "table").sort_by("id").drop_columns(other)
    shutil.rmtree(tmp_path / "table")
    inline.embed(run)
    assert read_table(tmp_path / "table").sort_by("id").drop_columns(other).equals(by_row)


def test_a_page_that_is_put_before_others_moves_their_numbers_alone(tmp_path: Path, tiny_model: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    run = spec(docs, tiny_model, {"max_tokens": 16})
    (docs / "a.pdf").write_bytes(pdf([["the market went up."]]))
    inline.embed(run)
    (docs / "a.pdf").write_bytes(pdf([[], ["the market went up."]]))
    encoded: list[int] = []
    inline.reindex(run, encoded=encoded)
    (row,) = read_table(tmp_path / "table").to_pylist()
    assert (row["page"], row["last_page"]) == (2, 2)


def test_another_folder_gives_other_ids(tmp_path: Path, tiny_model: Path) -> None:
    fill(tmp_path / "docs")
    inline.embed(spec(tmp_path / "docs", tiny_model))
    assert sorted(read_table(tmp_path / "table").column("id").to_pylist()) == ["a.pdf", "b.pptx", "c.docx", "d.md"]
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "x.md").write_text("the film")
    both = spec(tmp_path / "docs", tiny_model, path=[str(tmp_path / "docs"), str(tmp_path / "more")])
    inline.embed(both)
    ids = ["docs/a.pdf", "docs/b.pptx", "docs/c.docx", "docs/d.md", "more/x.md"]
    assert sorted(read_table(tmp_path / "table").column("id").to_pylist()) == ids


def test_front_matter_is_a_column_where_it_is_asked_for(tmp_path: Path, tiny_model: Path) -> None:
    docs = tmp_path / "docs"
    fill(docs)
    inline.embed(spec(docs, tiny_model))
    before = {row["id"]: row for row in read_table(tmp_path / "table").to_pylist()}
    assert (before["d.md"]["title"], before["d.md"]["text"][:3]) == (None, "---")
    inline.embed(spec(docs, tiny_model, front_matter="columns", where='title == "T"'))
    (row,) = read_table(tmp_path / "table").to_pylist()
    assert (row["id"], row["title"], row["text"]) == ("d.md", "T", "the company")


def test_pages_are_columns_only_where_the_configuration_says_so(tmp_path: Path, tiny_model: Path) -> None:
    def pages(path: str, chunk: dict[str, Any] | None, form: str = "auto") -> bool:
        return spec_of(path, tiny_model, tmp_path, source={"path": path, "format": form}, chunk=chunk).rows_have_pages

    assert not pages("notes", CHUNK)
    assert not pages("notes", None, "documents")
    assert not pages("notes", CHUNK | {"rows": "documents"}, "documents")
    assert not pages("notes", CHUNK | {"pages": False}, "documents")
    assert pages("notes", CHUNK, "documents")
    assert pages("notes/*.pdf", CHUNK)
    assert pages("notes", CHUNK | {"pages": True})
    assert pages("notes", CHUNK, "documents")
    with pytest.raises(ConfigError, match="have a column 'page' of their own"):
        spec_of("x", tiny_model, tmp_path, source={"path": "x", "format": "pdf", "keep": ["page"]}, chunk=CHUNK)


def test_a_table_without_pages_has_the_shape_and_the_chunking_that_it_had(tiny_model: Path, tmp_path: Path) -> None:
    run = spec_of("x", tiny_model, tmp_path, chunk=CHUNK)
    assert json.dumps(run.chunk_identity) == (
        '{"max_tokens": 12, "overlap_tokens": 2, "border": "word", "rows": "chunks"}'
    )
    assert shape({"keep": []}) == shape({"keep": [], "pages": None}) != shape({"keep": [], "pages": True})
