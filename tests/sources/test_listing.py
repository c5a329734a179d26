"""Which files a source is made of, in which version, and what is said of those that are left out."""

import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import config
from pipeline.config import SourceSpec
from pipeline.errors import InputError
from pipeline.sources.listing import Recorded, find_sources, list_sources
from pipeline.sources.reader import SliceSpec, read_slices
from pipeline.sources.survey import survey
from pipeline.storage import open_pinned
from pipeline.work import Unit


def spec_of(path: Path | str, **options: Any) -> SourceSpec:
    return SourceSpec(**{"path": str(path), "text": "text", **options})


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"text of {name}")


def names(spec: SourceSpec, below: Path) -> list[str]:
    return [os.path.relpath(file.path, below) for file in list_sources(spec)]


@pytest.mark.parametrize("form", ["file://{}", "file:{}", "FILE://localhost{}", "{}"])
@pytest.mark.parametrize("folder", ["my corpus", "lang=e%20n", "a#b?c"])
def test_urls_of_files_are_decoded(tmp_path: Path, form: str, folder: str) -> None:
    write(tmp_path, f"{folder}/a.txt")
    plain = str(tmp_path / folder)
    if "?" not in folder:
        assert names(spec_of(form.format(plain)), tmp_path) == [f"{folder}/a.txt"]
    if form != "{}":
        url = form.format((tmp_path / folder).as_uri().removeprefix("file://"))
        assert names(spec_of(url), tmp_path) == [f"{folder}/a.txt"]


def test_hidden_files_are_counted_and_what_programs_leave_is_not(tmp_path: Path) -> None:
    write(tmp_path, "index.md", "_index.md", "_posts/a.md", "_posts/b/c.md", ".draft.md", ".git/x.md", ".crc/y.md")
    write(tmp_path, "._SUCCESS.crc", ".index.md.crc", "_SUCCESS", "_started_7", "_x.unknown")
    (tmp_path / "_empty.md").write_text("")
    for path in (tmp_path, tmp_path / "*", f"{tmp_path}/**"):
        found = find_sources(spec_of(path))
        assert [Path(file.path).name for file in found.files] == ["index.md"]
        assert found.hidden == (2 if str(path).endswith("/*") else 4)
    assert survey_of(tmp_path).left_out == ()
    assert "4 files left out for their names" in find_sources(spec_of(tmp_path)).left_out[0]
    (tmp_path / "index.md").unlink()
    with pytest.raises(InputError, match=r"skipped because a name begins with _ or \."):
        find_sources(spec_of(tmp_path))


def survey_of(path: Path, **options: Any) -> Any:
    spec = spec_of(path, **options)
    return survey(list_sources(spec), spec)


def test_braces_stand_for_their_choices_and_exclude_leaves_out(tmp_path: Path) -> None:
    write(tmp_path, "a/x.txt", "b/x.txt", "c/x.txt", "a/drafts/y.txt", "a/tmp-1.txt", "{q}/z.txt")
    assert names(spec_of(f"{tmp_path}/{{a,b}}/*.txt"), tmp_path) == ["a/tmp-1.txt", "a/x.txt", "b/x.txt"]
    assert names(spec_of(f"{tmp_path}/{{a,{{b,c}}}}/x.txt"), tmp_path) == ["a/x.txt", "b/x.txt", "c/x.txt"]
    assert names(spec_of(f"{tmp_path}/{{q}}"), tmp_path) == ["{q}/z.txt"]
    assert names(spec_of(tmp_path, exclude=("drafts", "tmp-*", "{q}")), tmp_path) == ["a/x.txt", "b/x.txt", "c/x.txt"]
    assert names(spec_of(tmp_path, exclude=(f"{tmp_path}/a", "b/*.txt", "{q}/")), tmp_path) == ["c/x.txt"]
    assert find_sources(spec_of(tmp_path, exclude=("a",))).excluded == 3
    with pytest.raises(InputError, match=r"source\.exclude leaves out all 6 files"):
        find_sources(spec_of(tmp_path, exclude=("*.txt",)))


def test_links_that_loop_or_repeat_are_followed_once(tmp_path: Path) -> None:
    """Of each of 30 levels two links lead to the next: a billion paths."""
    (tmp_path / "out").mkdir()
    write(tmp_path, "out/x.txt", "l0/real/y.txt")
    for level in range(30):
        (tmp_path / f"l{level}").mkdir(exist_ok=True)
    for level in range(29):
        for name in "ab":
            (tmp_path / f"l{level}" / name).symlink_to(tmp_path / f"l{level + 1}")
    (tmp_path / "l29" / "round").symlink_to(tmp_path / "l0")
    (tmp_path / "l29" / "out").symlink_to(tmp_path / "out")
    (tmp_path / "l0" / "again").symlink_to(tmp_path / "l0" / "real")
    found = names(spec_of(tmp_path / "l0"), tmp_path)
    assert [Path(path).name for path in found] == ["x.txt", "y.txt"]
    assert "l0/real/y.txt" in found  # by its own path, though "again" comes before it
    assert names(spec_of(f"{tmp_path}/l0/ag*/*.txt"), tmp_path) == ["l0/again/y.txt"]


def test_another_file_of_the_same_size_and_time_is_another_version(tmp_path: Path) -> None:
    write(tmp_path, "a.txt")
    path = tmp_path / "a.txt"
    os.utime(path, (10**9, 10**9))
    (before,) = list_sources(spec_of(tmp_path))
    content = path.read_bytes()
    (tmp_path / "new").write_bytes(content[::-1])
    os.utime(tmp_path / "new", (10**9, 10**9))
    (tmp_path / "new").replace(path)
    (after,) = list_sources(spec_of(tmp_path))
    assert before.version != after.version
    assert before.size == after.size
    open_pinned(after, {}).close()
    # On another node the time of the change is another one: a read is pinned by size and time of modification alone.
    shutil.copy2(path, tmp_path / "copy")
    (tmp_path / "copy").replace(path)
    open_pinned(after, {}).close()


def test_what_a_table_recorded_stays_its_version_unless_the_file_changed_since(tmp_path: Path) -> None:
    write(tmp_path, "a.txt")
    status = os.stat(tmp_path / "a.txt")
    plain, path = f"{status.st_size}-{status.st_mtime_ns}", str(tmp_path / "a.txt")
    exact = f"{plain}-{status.st_ctime_ns}"

    def version(recorded: list[str], as_of: float) -> str:
        found = find_sources(spec_of(tmp_path), Recorded(versions={path: recorded}, as_of=as_of))
        return found.files[0].version

    assert version([plain], status.st_ctime + 1) == plain
    assert version([plain], status.st_ctime - 1) == exact
    assert version([plain, exact], status.st_ctime + 1) == exact
    assert version([], status.st_ctime + 1) == exact


def rows(spec: SourceSpec) -> list[dict[str, Any]]:
    found = survey(list_sources(spec), spec)
    unit = Unit(unit_id="u", spans=found.spans[0], sources=tuple(range(len(found.spans[0]))))
    slices = read_slices(
        unit, SliceSpec(schema=found.schema, source=spec, carried=spec.keep, limits=config.LimitSpec(), rows=100)
    )
    return [row for piece in slices for row in piece.documents.to_pylist()]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet", "source=web/a.jsonl"])
def test_a_kept_column_can_have_another_name_in_the_table(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    inside = "" if "=" in name else ', "source": "web"'
    if path.suffix == ".jsonl":
        path.write_text(f'{{"id": "a", "text": "t"{inside}}}\n')
    elif path.suffix == ".csv":
        path.write_text("id,text,source\na,t,web\n")
    else:
        pq.write_table(pa.table({"id": ["a"], "text": ["t"], "source": ["web"]}), path)
    raw = {"path": str(tmp_path), "text": "text", "id": "id", "keep": {"source": "origin"}, "where": 'source == "web"'}
    spec = config.from_mapping({"source": raw, "model": {"path": "m"}, "table": {"path": "t"}}).source
    (row,) = rows(spec)
    assert (row["id"], row["text"], row["origin"]) == ("a", "t", "web")


def test_a_string_is_a_list_of_one() -> None:
    sections = {"source": {"path": "a", "text": "t", "keep": "k", "exclude": "x"}, "model": {"path": "m"}}
    spec = config.from_mapping({**sections, "table": {"path": "t", "partition_by": "p"}})
    assert (spec.source.keep, spec.source.exclude, spec.table.partition_by) == (("k",), ("x",), ("p",))


def test_a_uuid_is_the_text_that_everybody_writes(tmp_path: Path) -> None:
    import uuid

    ids = [uuid.UUID(int=number * 2**100 + 7) for number in range(5)]
    values = pa.array([each.bytes for each in ids], pa.uuid())
    pq.write_table(pa.table({"id": values, "text": ["x"] * 5, "k": values}), tmp_path / "a.parquet")
    found = rows(spec_of(tmp_path, id="id"))
    assert [row["id"] for row in found] == [str(each) for each in ids]
    found = rows(spec_of(tmp_path, id="id", keep=("k",), schema={"k": "string"}))
    assert [row["k"] for row in found] == [str(each) for each in ids]


def test_the_first_three_reasons_are_told_when_nothing_can_be_read(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number}.parquet").write_bytes(b"PAR1 nothing " + bytes([65 + number]))
    with pytest.raises(InputError, match=r"0\.parquet.*1\.parquet.*2\.parquet.*and 2 more") as caught:
        survey_of(tmp_path)
    assert str(caught.value).count("no readable Parquet file") == 3
