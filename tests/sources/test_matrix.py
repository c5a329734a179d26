"""Format x compression x filesystem x chunked or not: equal rows and vectors; the table in docs/sources.md is made here.

`UPDATE_DOCS=1 pytest tests/sources/test_matrix.py` writes the table anew.
"""

import os
import uuid
from pathlib import Path

import pytest

from pipeline.sources.formats.registry import FORMS
from tests import matrix
from tests.hub import hub_server
from tests.servers import az_server, gs_server, has_azurite

DOCS = Path(__file__).parents[2] / "docs" / "sources.md"
BEGIN, END = "<!-- made by tests/sources/test_matrix.py -->\n", "<!-- end -->"
STORES = ("disk", "s3", "gs", "az", "hf", "memory")
WORKING: dict[str, dict[tuple[str, str, bool], bool]] = {}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("matrix")
    matrix.write_corpora(folder / "corpora")
    return folder


def check(store: str, url: str, options: dict, model: Path, folder: Path) -> None:
    (folder / store).mkdir()
    (folder / store / "corpora").symlink_to(folder / "corpora")
    WORKING[store] = {
        (*cell, chunked): matrix.works(cell, url, options, str(model), folder / store, chunked=chunked)
        for cell in matrix.CELLS
        for chunked in (False, True)
    }
    assert [cell for cell, works in WORKING[store].items() if not works] == []


def test_every_format_is_in_the_matrix():
    assert matrix.FORMATS.keys() == FORMS.keys()


def test_disk(folder, tiny_model):
    check("disk", str(folder / "corpora"), {}, tiny_model, folder)


@pytest.mark.slow
def test_memory(folder, tiny_model):
    url = f"memory://{uuid.uuid4().hex}"
    matrix.upload(folder / "corpora", url, {})
    check("memory", url, {}, tiny_model, folder)


def test_s3(folder, tiny_model, moto):
    url = moto.make_bucket(f"matrix-{uuid.uuid4().hex}")
    matrix.upload(folder / "corpora", url, moto.storage_options)
    check("s3", url, moto.storage_options, tiny_model, folder)


@pytest.mark.slow
def test_gs(folder, tiny_model):
    with gs_server() as server:
        url = server.make_bucket("matrix")
        matrix.upload(folder / "corpora", url, server.storage_options)
        check("gs", url, server.storage_options, tiny_model, folder)


@pytest.mark.skipif(not has_azurite(), reason="azurite-blob is missing: npm install -g azurite")
def test_az(folder, tiny_model, tmp_path):
    with az_server(tmp_path) as server:
        url = server.make_bucket("matrix")
        matrix.upload(folder / "corpora", url, server.storage_options)
        check("az", url, server.storage_options, tiny_model, folder)


@pytest.mark.slow
def test_hf(folder, tiny_model, tmp_path):
    with hub_server() as hub:
        hub.repository("org/corpus", "datasets").commit(folder / "corpora", "main")
        (folder / "hf").mkdir()
        (folder / "hf" / "corpora").symlink_to(folder / "corpora")
        arguments = ["hf://datasets/org/corpus", str(tiny_model), str(folder / "hf")]
        cells = hub.run(f"from tests import matrix; matrix.main({arguments!r})", tmp_path)
    WORKING["hf"] = {(name, end, chunked): works for name, end, chunked, works in cells}
    assert [cell for cell, works in WORKING["hf"].items() if not works] == []


def test_the_table_in_the_docs_is_what_works(folder):
    missing = [store for store in STORES if store not in WORKING]
    if missing:
        pytest.skip(
            f"run the whole file, and with every emulator, to compare the table: {', '.join(missing)} did not run"
        )
    head, _, rest = DOCS.read_text().partition(BEGIN)
    _, _, tail = rest.partition(END)
    expected = head + BEGIN + table() + END + tail
    if os.environ.get("UPDATE_DOCS"):
        DOCS.write_text(expected)
    assert DOCS.read_text() == expected


def table() -> str:
    rows = [["format", "compression", *STORES], ["---"] * (2 + len(STORES))]
    for name, end in matrix.CELLS:
        marks = [mark(store, name, end) for store in STORES]
        rows.append([name, {"": "none", ".gz": "gzip", ".zst": "zstd"}[end], *marks])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def mark(store: str, name: str, end: str) -> str:
    return "yes" if all(WORKING[store][name, end, chunked] for chunked in (False, True)) else "no"
