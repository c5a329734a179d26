"""Which rows are embedded: `where`, `limit` and `on_null`, the same in every format, and every row is accounted for."""

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import InputError
from tests import inline
from tests.inline import read_table, spec_of

ROWS = [
    {
        "id": f"d{number:03}",
        "text": None if number % 10 == 3 else f"the market of {number}",
        "lang": ("en", "ko", None)[number % 3],
        "year": 2000 + number % 25,
    }
    for number in range(200)
]
SCHEMA = pa.schema([("id", pa.string()), ("text", pa.string()), ("lang", pa.string()), ("year", pa.int64())])


def write_parquet(folder: Path) -> Path:
    for part in range(2):
        rows = pa.Table.from_pylist(ROWS[part * 100 : part * 100 + 100], SCHEMA)
        pq.write_table(rows, folder / f"{part}.parquet", row_group_size=20)
    return folder / "*.parquet"


def write_jsonl(folder: Path) -> Path:
    for part in range(2):
        lines = (json.dumps(row) + "\n" for row in ROWS[part * 100 : part * 100 + 100])
        (folder / f"{part}.jsonl").write_text("".join(lines))
    return folder / "*.jsonl"


@pytest.fixture(params=[write_parquet, write_jsonl])
def source(request, tmp_path) -> Path:
    (tmp_path / "corpus").mkdir()
    return request.param(tmp_path / "corpus")


def ids(table: Path) -> list[str]:
    return read_table(table)["id"].to_pylist()


def expected(keep, rows=ROWS) -> list[str]:
    return [row["id"] for row in rows if row["text"] is not None and keep(row)]


@pytest.mark.parametrize(
    "where", ['lang == "en" and year >= 2010', '(pc.field("lang") == "en") & (pc.field("year") >= 2010)']
)
def test_where_lets_through_what_it_says_and_counts_the_rest(source, tiny_model, tmp_path, where):
    spec = spec_of(source, tiny_model, tmp_path / "table", source={"where": where}, limits={"max_failed_rows": 100})
    counts = inline.embed(spec).counts
    chosen = [row for row in ROWS if row["lang"] == "en" and row["year"] >= 2010]
    assert ids(tmp_path / "table") == expected(lambda row: row in chosen)
    assert counts.failed == sum(row["text"] is None for row in chosen)
    assert counts.rows + counts.failed + counts.skipped == len(ROWS)


def test_null_texts_are_dead_letters_or_left_out_but_counted(source, tiny_model, tmp_path):
    nulls = sum(row["text"] is None for row in ROWS)
    recorded = inline.embed(spec_of(source, tiny_model, tmp_path / "a", limits={"max_failed_rows": 100})).counts
    skipped = inline.embed(spec_of(source, tiny_model, tmp_path / "b", source={"on_null": "skip"})).counts
    assert (recorded.failed, recorded.skipped) == (nulls, 0)
    assert (skipped.failed, skipped.skipped) == (0, nulls)
    assert ids(tmp_path / "a") == ids(tmp_path / "b") == expected(lambda row: True)


@pytest.mark.parametrize("limit", [1, 19, 20, 100, 137, 500])
def test_limit_takes_the_first_rows(source, tiny_model, tmp_path, limit):
    spec = spec_of(source, tiny_model, tmp_path / "table", source={"limit": limit, "on_null": "skip"})
    inline.embed(spec)
    assert ids(tmp_path / "table") == expected(lambda row: True, ROWS[:limit])


def test_limit_counts_the_rows_that_pass_where(source, tiny_model, tmp_path):
    spec = spec_of(
        source, tiny_model, tmp_path / "table", source={"limit": 12, "where": 'lang == "ko"', "on_null": "skip"}
    )
    inline.embed(spec)
    korean = [row for row in ROWS if row["lang"] == "ko"][:12]
    assert ids(tmp_path / "table") == expected(lambda row: True, korean)


def test_the_whole_after_a_trial_keeps_what_the_trial_encoded(source, tiny_model, tmp_path):
    inline.embed(spec_of(source, tiny_model, tmp_path / "table", source={"limit": 100, "on_null": "skip"}))
    whole = inline.embed(spec_of(source, tiny_model, tmp_path / "table", source={"on_null": "skip"}))
    assert whole.counts.rows == len(expected(lambda row: True))
    assert whole.counts.deleted == 0
    assert whole.counts.changed == 0


def test_all_left_out_is_an_empty_table(source, tiny_model, tmp_path):
    counts = inline.embed(spec_of(source, tiny_model, tmp_path / "table", source={"where": "year > 3000"})).counts
    assert (counts.rows, counts.failed, counts.skipped) == (0, 0, len(ROWS))


def test_a_resumed_run_leaves_out_the_same_rows(source, tiny_model, tmp_path):
    spec = spec_of(
        source, tiny_model, tmp_path / "table",
        source={"where": "year >= 2005", "on_null": "skip"}, limits={"unit_rows": 13},
    )  # fmt: skip
    with pytest.raises(inline.Died):
        inline.embed(spec, stop_after=4)
    counts = inline.embed(spec).counts
    assert ids(tmp_path / "table") == expected(lambda row: row["year"] >= 2005)
    assert counts.rows + counts.skipped == len(ROWS)


def test_a_filter_that_can_t_be_is_refused_before_work(source, tiny_model, tmp_path):
    for where in ("year == 'x'", "nowhere > 1", "year >", "__import__('os')"):
        with pytest.raises(InputError):
            inline.embed(spec_of(source, tiny_model, tmp_path / "table", source={"where": where}))
    assert not (tmp_path / "table").exists()


def test_a_bad_row_is_a_dead_letter_whatever_the_filter(tiny_model, tmp_path):
    (tmp_path / "docs.jsonl").write_text(
        '{"id": "a", "text": "oil", "year": 1}\n{broken\n{"id": "b", "text": "oil", "year": 2}\n'
    )
    spec = spec_of(
        tmp_path / "docs.jsonl",
        tiny_model,
        tmp_path / "table",
        source={"where": "year == 2"},
        limits={"max_failed_rows": 2},
    )
    counts = inline.embed(spec).counts
    assert (counts.rows, counts.failed, counts.skipped) == (1, 1, 1)


def test_ids_of_several_columns_are_joined_so_that_none_meet(tiny_model, tmp_path):
    pairs = [("a", "b:c"), ("a:b", "c"), ("a\\", "b"), ("a", "\\b"), ("x", "1")]
    with open(tmp_path / "docs.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["repo", "file", "text"])
        writer.writerows((*pair, "oil") for pair in pairs)
    inline.embed(spec_of(tmp_path / "docs.csv", tiny_model, tmp_path / "table", source={"id": ["repo", "file"]}))
    found = ids(tmp_path / "table")
    assert len(set(found)) == len(pairs)
    assert "x:1" in found
