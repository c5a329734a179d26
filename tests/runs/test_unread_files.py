"""A file that can't be read counts by the rows it is known or estimated to hold, and has a limit of its own."""

import gzip
import json
import re
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pipeline.config import RunSpec
from pipeline.errors import InputError, RunError
from pipeline.execution.local.executor import LocalExecutor
from pipeline.runs import embed as embedding
from pipeline.runs import prepare
from pipeline.runs import reindex as reindexing
from pipeline.runs.by_units import embed_units
from pipeline.runs.reindex_summary import Reindexed
from pipeline.runs.summary import Summary
from pipeline.storage import Folder
from pipeline.table import snapshot
from tests import inline
from tests.inline import spec_of

ROWS = 200


def rows_of(name: str) -> list[dict[str, str]]:
    return [{"id": f"{name}-{n:05}", "text": "one two " * 20} for n in range(ROWS)]


def lines_of(name: str) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows_of(name)).encode()


def good_jsonl(path: Path) -> None:
    path.with_suffix(".jsonl").write_bytes(lines_of(path.name))


def good_parquet(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(rows_of(path.name)), path.with_suffix(".parquet"), row_group_size=50)


def one_array(path: Path) -> None:
    path.with_suffix(".jsonl").write_bytes(b"[\n" + lines_of(path.name).rstrip().replace(b"\n", b",\n") + b"\n]\n")


def not_parquet(path: Path) -> None:
    good_parquet(path)
    written = path.with_suffix(".parquet")
    written.write_bytes(written.read_bytes()[:-1] + b"?")


def cut_gzip(path: Path) -> None:
    """Its end is lost before a row came out of it; its bytes are about a quarter of those of its lines."""
    packed = gzip.compress(lines_of(path.name), 0)[: len(lines_of(path.name)) // 4]
    path.with_suffix(".jsonl.gz").write_bytes(packed[:12] + b"\xff" + packed[13:])


def broken_pages(path: Path) -> None:
    """The footer is whole, so that each row is a dead letter of its own."""
    good_parquet(path)
    written = path.with_suffix(".parquet")
    content = bytearray(written.read_bytes())
    end = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    content[4:end] = bytes(end - 4)
    written.write_bytes(content)


BROKEN = {make.__name__: make for make in (one_array, not_parquet, cut_gzip, broken_pages)}
REASON = {
    "one_array": "one JSON array, not JSON Lines",
    "not_parquet": "no readable Parquet file",
    "cut_gzip": "gzip",
    "broken_pages": "the row group can't be read",
}


def spec_for(corpus: Path, model: Path, limits: dict[str, float]) -> RunSpec:
    return spec_of(corpus, model, corpus.parent / f"{corpus.name}-table", limits=limits)


def run_embed(spec: RunSpec) -> Summary:
    return embedding.embed(spec, inline.InProcess())


def run_reindex(spec: RunSpec) -> Summary | Reindexed:
    return reindexing.reindex(spec, inline.InProcess(), allow_deletes=True)


def run_build(spec: RunSpec) -> Summary:
    """By units, as a table is built whole."""
    return embed_units(prepare.prepare(spec, writes=True), inline.InProcess(), 0.0)


def version_of(spec: RunSpec) -> int:
    return snapshot.current(Folder(spec.table.path)).version


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@example(good=1, broken=["broken_pages"], most_files=0.5, most_rows=0.2, later=True)
@given(
    good=st.integers(1, 4),
    broken=st.lists(st.sampled_from(sorted(BROKEN)), min_size=1, max_size=3),
    most_files=st.sampled_from([0, 0.1, 0.3, 0.5, 1, 2, 99]),
    most_rows=st.sampled_from([0.2, 0.45, 0.9, 100_000]),
    later=st.booleans(),
)
def test_unreadable_files_count_as_files_and_by_their_rows(
    good, broken, most_files, most_rows, later, tiny_model, tmp_path_factory
):
    """By units, and by row where the files come `later` than the table's first version."""
    corpus = tmp_path_factory.mktemp("corpus")
    for number in range(good):
        good_jsonl(corpus / f"j{number}")
        good_parquet(corpus / f"p{number}")
    spec = spec_for(corpus, tiny_model, {"max_failed_files": most_files, "max_failed_rows": most_rows})
    if later:
        run_embed(spec)
    for number, kind in enumerate(broken):
        BROKEN[kind](corpus / f"x{number}-{kind}")
    before, run = version_of(spec), run_reindex if later else run_embed
    files = 2 * good + len(broken)
    too_many = len(broken) > (most_files * files if most_files < 1 else most_files)
    lost = len(broken) / files  # the share of rows that is missing, since all files hold as many
    if too_many or (most_rows < 1 and lost > most_rows * 1.3):
        with pytest.raises(RunError) as refused:
            run(spec)
        said = str(refused.value).splitlines()[0]
        assert version_of(spec) == before
        assert any(REASON[kind] in said for kind in broken), said
        assert re.search(rf"\b\d of {files} source files can't be read", said), said
        assert ("max_failed_files" in said) == too_many
    elif most_rows > 1 or lost < most_rows / 1.3:
        summary = run(spec)
        assert summary.exit_code == 3
        unread = summary.stale_files if isinstance(summary, Reindexed) else summary.unread_files
        assert [Path(item.path).name.split(".")[0] for item in unread] == [f"x{n}-{k}" for n, k in enumerate(broken)]
        for item, kind in zip(unread, broken, strict=True):
            assert REASON[kind] in item.reason
            counted = kind == "broken_pages" and not later
            assert item.rows == 0 if counted else 0.7 * ROWS < item.rows < 1.3 * ROWS, (kind, item)
            assert item.path in str(summary)


@pytest.mark.parametrize("by_row", [False, True])
def test_rows_that_the_table_knows_of_a_file_stay_and_count_exactly_in_a_build(by_row, tiny_model, tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for name in "abc":
        # Of two megabytes each, so that none shares a unit with another: nothing but the table tells how many rows it had.
        noise = "".join(f"{zlib.crc32(f'{name}{n}'.encode()):x}" for n in range(300_000))
        rows = [{"id": f"{name}{n}", "text": "one", "more": noise if n == 0 else ""} for n in range(70)]
        path = corpus / f"{name}.jsonl.gz"
        path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode(), 0))
    spec = spec_for(corpus, tiny_model, {"max_failed_files": 1, "max_failed_rows": 0.3})
    run_embed(spec)
    (corpus / "b.jsonl.gz").write_bytes(b"\x1f\x8b not gzip")
    if by_row:
        for summary in (run_embed(spec), run_reindex(spec)):
            assert (summary.exit_code, summary.counts.rows) == (3, 210)
            stay = summary.stale_files if isinstance(summary, Reindexed) else summary.unread_files
            assert [(Path(item.path).name, item.rows) for item in stay] == [("b.jsonl.gz", 0)]
            assert "its rows stay" in str(summary)
        return
    with pytest.raises(RunError, match="70 rows of 210 failed"):
        run_build(spec)
    spec = spec_for(corpus, tiny_model, {"max_failed_files": 1, "max_failed_rows": 0.4})
    summary = run_build(spec)
    assert [(Path(item.path).name, item.rows) for item in summary.unread_files] == [("b.jsonl.gz", 69)]


def test_a_run_that_goes_on_knows_the_unreadable_files_of_the_one_before(tiny_model, tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    one_array(corpus / "a")
    good_jsonl(corpus / "b")
    limits = {"max_failed_files": 99, "max_failed_rows": 10_000, "unit_rows": 20}
    with pytest.raises(inline.Died):
        inline.embed(spec_for(corpus, tiny_model, limits), stop_after=1)
    with pytest.raises(RunError, match=r"^1 of 2 source files can't be read to the end \(about \d+ rows.*JSON array"):
        inline.embed(spec_for(corpus, tiny_model, limits | {"max_failed_files": 0}))


def test_the_limit_of_files_ends_a_run_before_everything_is_encoded(tiny_model, tmp_path, monkeypatch):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    one_array(corpus / "a")
    good_parquet(corpus / "b")
    spec = spec_for(corpus, tiny_model, {"max_failed_files": 0, "max_failed_rows": 10_000})
    encoded: list[int] = []
    with pytest.raises(RunError, match="max_failed_files allows 0"):
        embedding.embed(spec, inline.InProcess(encoded=encoded))
    assert sum(encoded) == 0


def test_a_dry_run_by_row_says_what_a_run_would_refuse(tiny_model, tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    good_parquet(corpus / "a")
    spec = spec_for(corpus, tiny_model, {})
    run_embed(spec)
    one_array(corpus / "b")
    forecast = reindexing.plan(spec, LocalExecutor(spec.resources))
    assert "1 of 2 source files can't be read" in (forecast.refusal or "")
    assert "max_failed_files allows 0.1" in str(forecast)


def test_rows_are_estimated_by_footers_then_by_bytes(tiny_model, tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    good_parquet(corpus / "a")
    good_jsonl(corpus / "b")
    not_parquet(corpus / "c")
    one_array(corpus / "d")
    surveyed = prepare.prepare(spec_for(corpus, tiny_model, {}), writes=False).survey
    spans = {Path(span.file.path).stem: span for group in surveyed.spans for span in group}
    assert surveyed.expected_rows(spans["a"]) == ROWS
    for name in "bcd":
        assert 0.9 * ROWS < surveyed.expected_rows(spans[name]) < 1.3 * ROWS, name


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_texts_that_all_are_in_another_encoding_are_told_the_remedy(
    tmp_path: Path, tiny_model: Path, name: str
) -> None:
    (tmp_path / "in").mkdir()
    rows = '{"text": "größer", "id": "a"}\n' if name == "a.jsonl" else "größer"
    (tmp_path / "in" / name).write_bytes(rows.encode("latin-1"))
    spec = spec_of(tmp_path / "in", tiny_model, tmp_path / "table", source={"path": str(tmp_path / "in"), "id": None})
    hint = "; if it is text of another encoding, name that, as in --set source.encoding=cp1252"
    with pytest.raises((RunError, InputError)) as refused:
        inline.embed(spec)
    assert str(refused.value).endswith(hint)
    assert "is not valid UTF-8" in str(refused.value)
