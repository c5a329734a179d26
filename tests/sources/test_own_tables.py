"""A table of this program below a source is no part of it, on a disk and in a store, by folders and by patterns."""

import itertools

import fsspec
import pytest

from pipeline.config import SourceSpec
from pipeline.errors import InputError
from pipeline.sources import own_tables
from pipeline.sources.listing import find_sources
from pipeline.table import layout

MARKS = {"published": layout.snapshot(1), "killed": layout.lease(1), "both": layout.snapshot(1_000_000)}
numbers = itertools.count()


@pytest.fixture(params=["disk", "memory"])
def place(request, tmp_path):
    """An empty folder, and what writes files below it."""
    root = str(tmp_path) if request.param == "disk" else f"memory://own-tables-{next(numbers)}"

    def write(*names):
        for name in names:
            with fsspec.open(f"{root}/{name}", "wb", auto_mkdir=True) as file:
                file.write(b"x")

    write.root = root
    return write


def table_at(place, name, mark="published"):
    place(
        *(
            f"{name}/{file}"
            for file in (MARKS[mark], "data/p.parquet", "data/k=v/q.parquet", "meta/parts/000001.parquet")
        )
    )


def found(place, *patterns, **options):
    paths = tuple(f"{place.root}/{pattern}".rstrip("/") for pattern in patterns)
    return find_sources(SourceSpec(path=paths, text="text", **options))


def names(sources, place):
    return [file.path.split(f"{place.root.removeprefix('memory://')}/")[-1] for file in sources.files]


@pytest.mark.parametrize("mark", MARKS)
def test_a_table_below_a_source_is_left_out_and_told(place, mark):
    place("a.md", "rows.parquet", "sub/b.md", "meta/versions/notes.md")
    table_at(place, "one.embeddings", mark)
    table_at(place, "sub/two [x].embeddings", mark)
    for pattern in ("", "**"):
        sources = found(place, pattern)
        assert names(sources, place) == ["a.md", "meta/versions/notes.md", "rows.parquet", "sub/b.md"]
        assert sources.tables == ("one.embeddings", "sub/two [x].embeddings")
        assert sources.left_out == (
            "2 tables below the source are left out: 'one.embeddings', 'sub/two [x].embeddings'",
        )
    sources = found(place, "**/*.parquet")
    assert (names(sources, place), sources.tables) == (["rows.parquet"], ("one.embeddings", "sub/two [x].embeddings"))
    sources = found(place, "*/*/*.parquet", "a.md")
    assert (names(sources, place), sources.tables) == (["a.md"], ("one.embeddings",))
    assert sources.left_out == ("the table 'one.embeddings' below the source is left out",)
    for pattern in ("**/*.md", "*.md"):
        assert found(place, pattern).left_out == ()


def test_a_path_that_leads_into_a_table_asks_for_its_files(place):
    place("a.parquet")
    table_at(place, "one.embeddings")
    data = ["one.embeddings/data/k=v/q.parquet", "one.embeddings/data/p.parquet"]
    for pattern in ("one.embeddings/data", "*.embeddings/data/**/*.parquet", "one.embeddings/d*/**"):
        sources = found(place, pattern)
        assert (names(sources, place), sources.tables) == (data, ())
    assert names(found(place, "*.embeddings/data/*.parquet"), place) == data[1:]
    assert set(data) < set(names(found(place, "one.embeddings"), place))
    sources = found(place, "", "one.embeddings/data")
    assert (names(sources, place), sources.tables[1:]) == (["a.parquet", *data], ())


def test_what_exclude_names_counts_as_excluded_and_a_source_of_tables_alone_is_refused(place):
    table_at(place, "x/one.embeddings")
    place("a.md", "_x/b.md")
    sources = found(place, "", exclude=("*.embeddings",))
    assert (sources.tables, sources.excluded, sources.hidden) == ((), 4, 1)
    with pytest.raises(InputError, match=r"of tables that were embedded already \('.*x/one\.embeddings'\)"):
        found(place, "x")


def test_a_folder_like_one_is_none(place):
    place("one/meta/versions/1.json", "one/meta/versions/000001.json.md", "one/meta/leases/a.md", "one/data/p.parquet")
    for pattern in ("", "**/*.md", "**/*.parquet"):
        assert found(place, pattern).tables == ()


def test_storage_is_asked_only_where_the_listing_does_not_show_it(place, monkeypatch):
    asked = []
    monkeypatch.setattr(own_tables, "_is_table", lambda root, options: asked.append(root))
    table_at(place, "one.embeddings")
    place("a.md", "b.parquet")
    for pattern in ("", "**", "**/*.md", "*.parquet"):
        found(place, pattern)
    assert asked == []
    found(place, "**/*.parquet")
    assert len(asked) == 1
