"""Which rows are embedded: `where`, `limit` and `on_null`, the same in every format, and every row is accounted for."""

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import InputError, RunError
from pipeline.runs import embed as embedding
from pipeline.sources import reader
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


# --- another configuration on the same table


def write_csv(path: Path, rows: list[list[str]]) -> Path:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def test_another_row_limit_reads_a_quoted_csv_anew_even_in_the_middle(tiny_model, tmp_path):
    rows = [[f"d{number}", "oil\n" * (40 if number == 5 else 1)] for number in range(40)]
    path = write_csv(tmp_path / "docs.csv", [["id", "text"], *rows])
    first = spec_of(path, tiny_model, tmp_path / "table", limits={"unit_rows": 8, "max_row_bytes": 100})
    with pytest.raises(inline.Died):
        inline.embed(first, stop_after=2)
    inline.embed(spec_of(path, tiny_model, tmp_path / "table", limits={"unit_rows": 8, "max_row_bytes": 10**6}))
    assert sorted(ids(tmp_path / "table")) == sorted(row[0] for row in rows)


def test_a_type_given_later_counts(tiny_model, tmp_path):
    path = write_csv(tmp_path / "docs.csv", [["id", "text", "price"], ["a", "oil", "1.5"], ["b", "oil", ""]])
    inline.embed(spec_of(path, tiny_model, tmp_path / "table", source={"keep": ["price"]}))
    assert read_table(tmp_path / "table")["price"].to_pylist() == ["1.5", ""]
    typed = {"keep": ["price"], "schema": {"price": "float64"}}
    inline.embed(spec_of(path, tiny_model, tmp_path / "table", source=typed))
    assert read_table(tmp_path / "table")["price"].to_pylist() == [1.5, None]


def test_what_says_the_same_in_other_words_is_nothing_to_do(source, tiny_model, tmp_path):
    def spec(**more: object):
        return spec_of(source, tiny_model, tmp_path / "table", source={"on_null": "skip", **more})

    first = inline.embed(spec(where="year >= 2010"))
    again = inline.embed(spec(where="(year   >=  2010)", csv={"delimiter": ";"}))
    assert again.version == first.version
    assert inline.embed(spec(where="year >= 2010", format=source.suffix[1:])).version == first.version
    assert inline.embed(spec(where="year >= 2011")).version == 2


def test_the_first_rows_are_those_of_the_first_files(tiny_model, tmp_path):
    for name, count in (("a", 5), ("b", 300), ("c", 5)):
        lines = (
            json.dumps({"id": f"{name}{n}", "text": "oil " * (10_000 if name == "b" else 1)}) + "\n"
            for n in range(count)
        )
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    inline.embed(spec_of(tmp_path / "*.jsonl", tiny_model, tmp_path / "table", source={"limit": 7}))
    assert ids(tmp_path / "table") == ["a0", "a1", "a2", "a3", "a4", "b0", "b1"]


def test_the_share_of_failed_rows_is_of_those_that_were_to_embed(tiny_model, tmp_path):
    rows = [{"id": f"d{n}", "text": "oil" if n else None, "year": n} for n in range(200)]
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = spec_of(tmp_path / "docs.jsonl", tiny_model, tmp_path / "table", source={"where": "year < 2"})
    with pytest.raises(RunError, match="1 rows of 2 failed"):
        inline.embed(spec)


def test_rows_that_a_filter_leaves_out_are_recorded_in_slices_too(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "SPARSE_ROWS", 4)
    rows = [{"id": f"d{n:04}", "text": "oil", "year": n} for n in range(20_000)]
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = spec_of(
        tmp_path / "docs.jsonl", tiny_model, tmp_path / "table",
        source={"where": "year == 19999"}, limits={"unit_rows": 1000},
    )  # fmt: skip
    with pytest.raises(inline.Died):
        inline.embed(spec, stop_after=3)
    counts = inline.embed(spec).counts
    assert (ids(tmp_path / "table"), counts.skipped) == (["d19999"], 19_999)


# --- rows that go


def write_lines(path: Path, names: list[str], bad: bool = False) -> None:
    lines = [json.dumps({"id": name, "text": "oil"}) for name in names] + (["{broken"] if bad else [])
    path.write_text("".join(line + "\n" for line in lines))


def test_rows_may_go_from_a_unit_with_an_old_dead_letter(tiny_model, tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(10):
        write_lines(folder / f"{number}.jsonl", [f"f{number}-{row}" for row in range(100)], bad=number == 9)
    spec = spec_of(folder, tiny_model, tmp_path / "table")
    inline.embed(spec)
    (folder / "0.jsonl").unlink()
    write_lines(folder / "9.jsonl", [f"f9-{row}" for row in range(50)], bad=True)
    counts = inline.embed(spec).counts
    assert (counts.rows, counts.deleted, counts.failed) == (850, 150, 1)


def test_a_file_that_breaks_does_not_take_its_rows_along_unnoticed(tiny_model, tmp_path):
    import gzip

    whole = gzip.compress("".join(json.dumps({"id": f"d{n}", "text": f"oil {n}"}) + "\n" for n in range(3000)).encode())
    (tmp_path / "docs.jsonl.gz").write_bytes(whole)
    spec = spec_of(tmp_path / "docs.jsonl.gz", tiny_model, tmp_path / "table", limits={"max_failed_files": 1})
    inline.embed(spec)
    (tmp_path / "docs.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    summary = embedding.embed(spec, inline.InProcess())
    assert (summary.exit_code, summary.published, summary.counts.rows) == (3, False, 3000)
    assert "its rows stay" in str(summary)
    assert read_table(tmp_path / "table").num_rows == 3000


# --- values of folders


def write_folders(folder: Path, **values: str) -> Path:
    for name, value in values.items():
        (folder / value).mkdir(parents=True)
        write_lines(folder / value / f"{name}.jsonl", [name])
    return folder


def test_values_of_folders_have_the_type_that_is_asked_for(tiny_model, tmp_path):
    corpus = write_folders(tmp_path / "corpus", a="score=0.5", b="score=2", c="score=__HIVE_DEFAULT_PARTITION__")
    source = {"keep": ["score"], "schema": {"score": "float64"}}
    inline.embed(spec_of(corpus, tiny_model, tmp_path / "table", source=source))
    assert read_table(tmp_path / "table")["score"].to_pylist() == [0.5, 2.0, None]


@pytest.mark.parametrize(("first", "later"), [("year=2023", "year=unknown"), ("hour=10", "hour=09")])
def test_a_later_folder_whose_value_doesn_t_fit_is_refused_not_made_null(tiny_model, tmp_path, first, later):
    name = first.partition("=")[0]
    corpus = write_folders(tmp_path / "corpus", a=first)
    spec = spec_of(corpus, tiny_model, tmp_path / "table", source={"keep": [name]})
    inline.embed(spec)
    write_folders(corpus, b=later)
    with pytest.raises(InputError, match=rf"column '{name}' is int64, but the folders of .*b\.jsonl"):
        inline.embed(spec)


def test_a_table_among_its_sources_is_refused(tiny_model, tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    pq.write_table(pa.table({"id": ["a", "b"], "text": ["oil", "market"]}), folder / "docs.parquet")
    spec = spec_of(f"dataset:{folder}", tiny_model, folder / "out")
    inline.embed(spec)
    with pytest.raises(InputError, match=r"holds the source file .*part-"):
        inline.embed(spec)


def test_a_column_that_today_s_sample_lacks_keeps_the_type_that_the_table_has(tiny_model, tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "a.jsonl").write_text('{"id": "a", "text": "oil", "rare": 7}\n')
    spec = spec_of(corpus, tiny_model, tmp_path / "table", source={"keep": ["rare"]})
    inline.embed(spec)
    (corpus / "a.jsonl").write_text('{"id": "a", "text": "oil"}\n')
    inline.embed(spec)
    rows = read_table(tmp_path / "table")
    assert (rows["rare"].to_pylist(), rows.schema.field("rare").type) == ([None], pa.int64())
