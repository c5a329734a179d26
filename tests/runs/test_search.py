"""A table is asked for its nearest rows, neighbours and duplicates: what comes back, and how it is shown."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest

import pipeline
from jobs import search as command
from pipeline.errors import InputError
from pipeline.runs import recorded
from pipeline.runs.explore import explore
from pipeline.runs.snippets import for_page, for_terminal, snippet
from pipeline.table import word_index
from pipeline.table.words import terms, words
from tests.inline import embed, read_table, spec_of, vectors_of

TOPICS = ("cats and dogs", "the price of oil", "water in the city", "news of the company")


def write(path, rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def table(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    rows = [
        {"id": f"d{n:02}", "text": f"report {n} says {TOPICS[n % 4]} is up", "lang": "ab"[n % 2], "n": n}
        for n in range(60)
    ]
    rows += [{"id": f"same{n}", "text": "one and the same text", "lang": "a", "n": 100 + n} for n in range(3)]
    write(folder / "a.jsonl", rows)
    sections = {"source": {"keep": ["n", "lang"]}, "table": {"partition_by": ["lang"]}}
    embed(spec_of(folder / "a.jsonl", tiny_model, folder / "table", **sections))
    return folder / "table"


@pytest.fixture(scope="module")
def chunked(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("chunks")
    rows = [{"id": f"d{n}", "text": " ".join(f"{topic} {n}." for topic in TOPICS * 3)} for n in range(12)]
    rows[4]["text"] += " people of the government vote this week."
    write(folder / "a.jsonl", rows)
    chunk = {"max_tokens": 12, "overlap_tokens": 2, "rows": "chunks"}
    embed(spec_of(folder / "a.jsonl", tiny_model, folder / "table", chunk=chunk))
    return folder / "table"


def test_rows_come_with_snippets_kept_columns_and_scores(table):
    found = pipeline.search(table, "report 8 says cats and dogs is up", top=3)
    first = next(iter(found))
    assert (first["id"], first["n"], first["lang"]) == ("d08", 8, "a")
    assert first["score"] == pytest.approx(1, abs=1e-5)
    assert first["snippet"] == "report 8 says cats and dogs is up"
    scores = [row["score"] for row in found]
    assert scores == sorted(scores, reverse=True)
    assert (len(found), found.rows.num_rows) == (3, 3)
    assert str(found).splitlines()[1].startswith("1.000  d08  n=8  lang=a")


def test_conditions_choose_before_the_nearest_are_taken(table):
    found = pipeline.search(table, "cats", top=50, where=["n >= 20", "lang=b"])
    assert sorted(row["n"] for row in found) == list(range(21, 60, 2))
    assert len(pipeline.search(table, "cats", top=50, where="n<0")) == 0
    with pytest.raises(InputError, match="where names column 'm'; the table has id, n, text"):
        pipeline.search(table, "cats", where="m=1")


def test_that_no_row_meets_the_conditions_is_said(table):
    for asked, what in (({"query": "cats"}, "row"), ({"near": "d01"}, "other row"), ({"duplicates": 0.5}, "row")):
        found = pipeline.search(table, where=["n<0", "lang=a b"], **asked)
        assert str(found).splitlines()[-1] == f"no {what} meets --where 'n<0' 'lang=a b'"
        assert not str(pipeline.search(table, where="n>0", **asked)).splitlines()[-1].startswith("no ")
    assert str(pipeline.search(table, near="d01", where="n=1")).splitlines()[-1] == "no other row meets --where n=1"
    with pytest.raises(InputError, match=r"nothing to show of version 1 .*: no row meets --where 'n<0'"):
        explore(table, where=["n<0"])


def test_neighbours_of_a_row_are_those_of_a_full_comparison(table):
    rows = read_table(table)
    vectors, ids = vectors_of(rows), rows["id"].to_pylist()
    scores = vectors @ vectors[ids.index("d10")]
    order = [ids[place] for place in np.argsort(-scores, kind="stable") if ids[place] != "d10"]
    found = pipeline.search(table, near="d10", top=4)
    assert [row["score"] for row in found] == pytest.approx(sorted(scores, reverse=True)[1:5], abs=1e-5)
    assert next(iter(found))["id"] == order[0]
    with pytest.raises(InputError, match="no row with the id 'd999'"):
        pipeline.search(table, near="d999")


def test_duplicates_are_found_and_what_is_left_out_is_told(table):
    found = pipeline.search(table, duplicates=0.9999)
    assert {(pair["id"], pair["other"]) for pair in found if pair["same_text"]} == {
        ("same0", "same1"), ("same0", "same2"), ("same1", "same2"),
    }  # fmt: skip
    loose = pipeline.search(table, duplicates=0.2, top=2)
    assert (len(loose), loose.total > 2) == (2, True)
    assert str(loose).endswith(f"{loose.total - 2:,} more pairs are not shown")
    assert pipeline.search(table, duplicates=0.9999, where="n<100").total == found.total - 3
    for wrong in (0, 1.5, -1):
        with pytest.raises(InputError, match=f"duplicates is {wrong}; give the least cosine"):
            pipeline.search(table, duplicates=wrong)


def test_a_document_comes_once_with_its_best_chunk(chunked):
    live = read_table(chunked)
    query = next(text for text in live["text"].to_pylist() if "government" in text)
    found = pipeline.search(chunked, query, top=12)
    rows = list(found)
    assert len({row["doc_id"] for row in rows}) == len(rows) == 12
    assert (rows[0]["doc_id"], rows[0]["snippet"]) == ("d4", query.strip())
    scores = vectors_of(live) @ pipeline.encode(model_of(chunked), [query])[0]
    documents = np.array(live["doc_id"].to_pylist())
    best = {name: scores[documents == name].max() for name in set(documents.tolist())}
    assert {row["doc_id"]: row["score"] for row in rows} == pytest.approx(best, abs=1e-5)
    near = pipeline.search(chunked, near="d4", top=5)
    assert "d4" not in {row["doc_id"] for row in near}
    assert len(near) == 5
    pairs = pipeline.search(chunked, duplicates=0.5)
    assert all(pair["id"].split("#")[0] != pair["other"].split("#")[0] for pair in pairs)


def model_of(table) -> str:
    return recorded.spec_of(str(table)).model.path


def test_words_are_ranked_too_and_an_index_is_kept_for_each_version(table, tmp_path, monkeypatch):
    pytest.importorskip("bm25s", reason="the extra `search` is not installed")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = list(pipeline.search(table, "37", hybrid=True, top=3))
    assert found[0]["id"] == "d37"
    assert found[0]["bm25"] > 0 == found[1]["bm25"]
    alone = {row["id"]: row["score"] for row in pipeline.search(table, "37", top=63)}
    assert all(row["similarity"] == pytest.approx(alone[row["id"]], abs=1e-6) for row in found)
    rank = sorted(alone.values(), reverse=True).index(pytest.approx(found[0]["similarity"], abs=1e-6))
    assert found[0]["score"] == pytest.approx(1 / 61 + 1 / (61 + rank), abs=1e-6)
    assert all(row["lang"] == "a" for row in pipeline.search(table, "oil 37", hybrid=True, where="lang=a"))
    assert len(pipeline.search(table, "zzzz", hybrid=True, top=4)) == 4
    (kept,) = [path for path in (tmp_path / "embedding-pipeline" / "words").iterdir() if path.is_dir()]
    stamp = (kept / "vocab.index.json").stat().st_mtime_ns
    pipeline.search(table, "oil", hybrid=True)
    assert (kept / "vocab.index.json").stat().st_mtime_ns == stamp
    _, head, first, *_ = str(pipeline.search(table, "37", hybrid=True, top=3)).splitlines()
    assert head.split() == ["score", "similarity", "bm25"]
    numbers = [first[head.index(name) :].split()[0] for name in head.split()[:1]]
    assert numbers == [f"{found[0]['score']:.4f}"]
    assert len(first.partition("  d37")[0]) == len(head), "each number stands below its name"
    monkeypatch.setattr(word_index, "KEPT_INDEXES", 1)
    monkeypatch.setattr(word_index, "FORMAT", 2)
    pipeline.search(table, "oil", hybrid=True)
    assert not kept.exists()


def test_a_table_without_texts_says_so(tiny_model, tmp_path):
    write(tmp_path / "a.jsonl", [{"id": f"d{n}", "text": f"a text {n}"} for n in range(9)])
    embed(spec_of(tmp_path / "a.jsonl", tiny_model, tmp_path / "table", table={"keep_text": False}))
    found = pipeline.search(tmp_path / "table", "a text 3", top=2)
    assert str(found).endswith("the table keeps no texts (table.keep_text: false)")
    assert next(iter(found))["snippet"] == ""
    with pytest.raises(InputError, match=r"table\.keep_text is false: leave out hybrid"):
        pipeline.search(tmp_path / "table", "a text 3", hybrid=True)


def test_what_is_asked_must_be_one_thing(table, capsys):
    for asked in ({}, {"query": "x", "near": "d01"}, {"near": "d01", "hybrid": True}):
        with pytest.raises(InputError, match="search takes one of a query, near=ID and duplicates=THRESHOLD"):
            pipeline.search(table, **asked)
    for arguments in ([], ["x", "--near", "d01"], ["x", "--duplicates", "0.9"]):
        with pytest.raises(InputError, match="give one of a question in quotes"):
            command.main([str(table), *arguments])
    assert command.main([str(table), "--near", "d01", "--json", "--top", "2"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["near"], len(told["rows"])) == ("d01", 2)
    assert command.main([str(table), "--duplicates", "0.9999", "--json", "--where", "n>=100"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["total"], {pair["same_text"] for pair in told["pairs"]}) == (3, {True})
    assert command.main([str(table), "oil", "--where", "n<5", "lang=a", "--json", "--top", "9"]) == 0
    assert {row["n"] for row in json.loads(capsys.readouterr().out)["rows"]} == {0, 2, 4}


def test_neither_torch_nor_ray_is_loaded(table):
    program = (
        "import sys, pipeline; pipeline.search(sys.argv[1], 'oil'); pipeline.search(sys.argv[1], near='d01');"
        "print(sorted({'torch', 'ray', 'transformers', 'openvino'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program, str(table)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


HOSTILE = "</td><script>alert('oil')</script>\x1b[2J"


def test_a_notebook_shows_a_table_in_which_nothing_of_a_row_is_html(tiny_model, tmp_path):
    write(tmp_path / "a.jsonl", [{"id": HOSTILE, "text": f"oil {HOSTILE} oil", "title": HOSTILE}] * 1)
    embed(spec_of(tmp_path / "a.jsonl", tiny_model, tmp_path / "table", source={"keep": ["title"]}))
    found = pipeline.search(tmp_path / "table", f"oil {HOSTILE}")
    shown = found._repr_html_()
    assert "<script" not in shown
    assert "\x1b" not in shown + str(found)
    assert "<mark>oil</mark>" in shown
    assert shown.count("<tr>") == 2
    assert len(re.findall(r"<td[ >]", shown)) == len(re.findall(r"<th[ >]", shown)) == 4


def test_a_notebook_shows_an_error_as_one_line(capsys):
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell()
    shell.run_cell("import pipeline\npipeline.search('/nowhere/table', 'a\\nquery')")
    shown = capsys.readouterr().out.strip()
    assert shown.startswith("InputError: '/nowhere/table' does not exist")
    assert "\n" not in shown


@pytest.mark.parametrize(
    ("text", "asked", "expected"),
    [
        ("short  text\nhere", "x", "short text here"),
        ("start " * 60 + "the oil price rose", "oil price", "oil price rose"),
        ("oil " + "filler " * 60 + "oil price report " + "tail " * 60, "oil price report", "oil price report"),
        ("字" * 300 + "天气很好" + "字" * 300, "天气", "天气很好"),
    ],
)
def test_a_snippet_shows_why_a_text_was_found(text, asked, expected):
    shown = snippet(text, terms(asked))
    assert expected in shown
    assert len(shown) <= 210
    assert "\n" not in shown


def test_words_are_emphasised_where_they_begin():
    found = terms("How does the Oil price?")
    assert found == ("oil", "price")
    assert for_terminal("oils boil, Oil", found) == "\x1b[1moils\x1b[0m boil, \x1b[1mOil\x1b[0m"
    assert for_page("<b> oil & price", found) == "&lt;b&gt; <mark>oil</mark> &amp; <mark>price</mark>"
    assert for_page("the", terms("the")) == "<mark>the</mark>"
    assert for_page("a<b", ()) == "a&lt;b"


def test_writing_without_spaces_becomes_pairs():
    assert words("Ｆｕｌｌ width, snake_case 42") == ["full", "width", "snake", "case", "42"]
    assert words("北京天气 ok 字") == ["北京", "京天", "天气", "ok", "字"]
    assert words("안녕하세요") == ["안녕", "녕하", "하세", "세요"]


def test_a_value_that_a_row_lacks_is_left_out(tiny_model, tmp_path):
    write(tmp_path / "a.jsonl", [{"id": "d1", "text": "one", "kind": None}, {"id": "d2", "text": "two", "kind": "k"}])
    embed(spec_of(tmp_path / "a.jsonl", tiny_model, tmp_path / "table", source={"keep": ["kind"]}))
    found = pipeline.search(tmp_path / "table", "one", top=2)
    assert [row["kind"] for row in found] == [None, "k"]
    assert re.search(r"(?m)^1\.000  d1$", str(found))
    assert "None" not in str(found) + found._repr_html_()
