"""The map of a table: what is in the page, which rows it has, and how a browser shows it."""

import base64
import gzip
import json
import re

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs import explore as command
from pipeline.errors import InputError
from pipeline.runs.explore import explore, kept_page, write
from pipeline.runs.map_labels import labels
from pipeline.runs.search import opened
from tests.browser import browser
from tests.inline import embed, read_table, spec_of

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
COUNT = 90


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_model):
    folder = tmp_path_factory.mktemp("explore")
    rows = [
        {
            "id": f"d{n:02}",
            "text": f"report {n} of {('cats', 'dogs', 'oil')[n % 3]} in the city",
            "kind": "xyz"[n % 3],
            "size": n,
        }
        for n in range(COUNT)
    ]
    rows[7] |= {"text": f"hostile {HOSTILE}", "id": f"d07{HOSTILE}", "kind": HOSTILE}
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = {"partition_by": ["kind"]}
    embed(spec_of(folder / "a.jsonl", tiny_model, folder / "table", source={"keep": ["size", "kind"]}, table=table))
    return folder


def unpacked(page: str) -> tuple[dict, bytes]:
    found = re.findall(r'<script type="text/plain" id="\w+">([^<]*)</script>', page)
    rows, numbers = (gzip.decompress(base64.b64decode(each)) for each in found)
    return json.loads(rows), numbers


def test_the_page_holds_every_row_its_place_and_its_neighbours(folder):
    made = explore(folder / "table")
    data, numbers = unpacked(made.page())
    live = read_table(folder / "table")
    assert sorted(data["ids"]) == sorted(live["id"].to_pylist())
    assert data["told"] == f"{COUNT} rows, version 1"
    assert len(numbers) == COUNT * (2 * 2 + 4 * 10)
    places = np.frombuffer(numbers, "<u2", 2 * COUNT).reshape(2, COUNT).T / 65535
    assert np.abs(places - made.points).max() < 1e-4
    vectors = np.stack(live["embedding"].to_numpy(zero_copy_only=False))
    order = [live["id"].to_pylist().index(name) for name in data["ids"]]
    scores = vectors[order] @ vectors[order].T
    np.fill_diagonal(scores, -1)
    near = np.frombuffer(numbers, "<u4", offset=4 * COUNT).reshape(COUNT, 10)
    assert np.allclose(np.take_along_axis(scores, near, axis=1), -np.sort(-scores, axis=1)[:, :10], atol=1e-5)
    columns = {column["name"]: column for column in data["columns"]}
    assert (columns["size"]["kind"], columns["kind"]["kind"]) == ("number", "category")
    assert sum(columns["kind"]["counts"]) == COUNT


def test_nothing_of_a_row_stands_in_the_page_as_html(folder):
    page = explore(folder / "table").page("kind")
    assert "owned" not in page
    assert page.count("</script>") == 3
    assert "hostile" in json.dumps(unpacked(page)[0]["texts"])


def test_a_sample_is_told_and_its_seed_decides(folder):
    one, same, other = (explore(folder / "table", rows=40, seed=seed) for seed in (1, 1, 2))
    assert one.told == f"a random sample of 40 of {COUNT} rows (seed 1), version 1"
    assert one.rows.equals(same.rows)
    assert np.array_equal(one.points, same.points)
    assert not one.rows.equals(other.rows)
    assert explore(folder / "table", where=["size<10"]).total == 10


@pytest.mark.parametrize("rows", [1, 2, 3, 5])
def test_few_rows_have_a_map_too(folder, rows):
    made = explore(folder / "table", rows=rows)
    data, _ = unpacked(made.page())
    assert len(data["ids"]) == rows
    assert np.isfinite(made.points).all()
    assert data["neighbours"] == min(10, rows - 1)


@pytest.mark.parametrize(
    ("dtype", "chunk"),
    [
        ("float16", None),
        ("int8", None),
        ("binary", None),
        ("float32", {"max_tokens": 6, "overlap_tokens": 1, "rows": "chunks"}),
    ],
)
def test_any_dtype_and_chunks_have_a_map(tiny_model, tmp_path, dtype, chunk):
    rows = [{"id": f"d{n}", "text": f"the market of people {n} in the city of oil"} for n in range(30)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    embed(spec_of(tmp_path / "a.jsonl", tiny_model, tmp_path / "table", chunk=chunk, table={"dtype": dtype}))
    data, _ = unpacked(explore(tmp_path / "table").page())
    assert len(data["ids"]) == read_table(tmp_path / "table").num_rows
    names = [column["name"] for column in data["columns"]]
    assert names == (["doc_id", "chunk_index"] if chunk else [])


def test_exports_take_no_file_of_others_place(folder, tmp_path, capsys):
    (tmp_path / "mine.html").write_text("<p>mine</p>")
    made = explore(folder / "table", rows=20)
    with pytest.raises(InputError, match="exists and is no map"):
        write(made, tmp_path / "mine.html")
    assert (tmp_path / "mine.html").read_text() == "<p>mine</p>"
    assert write(made, tmp_path / "site") == tmp_path / "site" / "index.html"
    assert write(made, tmp_path / "site") == tmp_path / "site" / "index.html"
    assert command.main([str(folder / "table"), "--export", str(tmp_path / "map.parquet"), "--rows", "20"]) == 0
    assert "a random sample of 20" in capsys.readouterr().out
    found = pq.read_table(tmp_path / "map.parquet")
    assert {"id", "kind", "text", "projection_x", "projection_y", "neighbors"} <= set(found.column_names)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["map.parquet", "mine.html", "site"]
    with pytest.raises(InputError, match="no column 'sise' to colour by; there are size, kind"):
        made.page("sise")


def test_a_map_is_made_once_for_a_version(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    reader = opened(folder / "table")
    first = kept_page(reader, rows=30)
    stamp = first.stat().st_mtime_ns
    assert kept_page(reader, rows=30) == first
    assert first.stat().st_mtime_ns == stamp
    assert kept_page(reader, rows=31) != first
    for rows in range(2, 10):
        kept_page(reader, rows=rows)
    assert len(list(first.parent.iterdir())) == 8


def test_regions_are_named_by_words_of_their_own():
    draw = np.random.default_rng(0)
    points = np.concatenate([draw.normal(place, 0.02, (200, 2)) for place in (0.2, 0.5, 0.8)]).astype(np.float32)
    topics = ["cats and kittens", "engines of ships", "prices in markets"]
    texts = [f"the report {n} about {topics[n // 200]}" for n in range(600)]
    for label in labels(points, texts):
        topic = topics[int(np.argmin([abs(label.x - place) for place in (0.2, 0.5, 0.8)]))]
        assert all(word in topic for word in label.text.split(", ")), label
    assert labels(points, texts)
    assert labels(points[:3], texts[:3]) == []


# --- in a browser


@pytest.fixture(scope="module")
def tab(folder, tmp_path_factory):
    file = write(explore(folder / "table"), folder / "map.html", "kind")
    with browser(tmp_path_factory.mktemp("chromium")) as opened_browser:
        yield lambda **looks: opened_browser.open(file.as_uri(), ready="document.body.dataset.ready", **looks)


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)])
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_shows_the_map_without_a_network(tab, width, height, dark):
    page = tab(width=width, height=height, dark=dark)
    assert page.requests == []
    assert page.complaints == []
    assert page.value("document.title") == "Map of table"
    assert page.value("document.getElementById('told').textContent") == f"{COUNT} rows, version 1"
    # Nothing sticks out at the side, and no text is smaller than a person reads.
    assert page.value("document.documentElement.scrollWidth") <= width
    assert page.value("Math.min(...[...document.querySelectorAll('body *')].filter(e => e.innerText)"
                      ".map(e => parseFloat(getComputedStyle(e).fontSize)))") >= 12  # fmt: skip
    assert page.value("canvas.clientWidth * canvas.clientHeight") > 0.35 * width * height
    assert contrast(page, "body") > 7
    assert contrast(page, "#told", "header") > 4.5
    drawn = "new Set(new Uint32Array(ctx.getImageData(0, 0, canvas.width, canvas.height).data.buffer)).size"
    assert (
        page.value(f"new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done({drawn}))))") > 10
    )


def contrast(page, front: str, behind: str | None = None) -> float:
    def luminance(selector: str, name: str) -> float:
        text = page.value(f"getComputedStyle(document.querySelector({selector!r})).{name}")
        parts = [int(value) / 255 for value in re.findall(r"\d+", text)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    one, other = luminance(front, "color"), luminance(behind or front, "backgroundColor")
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)


def test_keys_search_and_a_click_shows_a_row_and_its_neighbours(tab):
    page = tab()
    page.press("/", "/")
    assert page.value("document.activeElement.id") == "query"
    for letter in "hostile":
        page.press(letter, letter)
    page.press("Enter", "\r")
    assert page.value("hits.length") == 1
    side = page.value("document.getElementById('side').innerText")
    assert HOSTILE in side
    assert "Nearest rows" in side
    assert page.value("document.querySelectorAll('#side .hit').length") == 10
    assert page.value("document.querySelectorAll('#side mark').length") >= 1
    # What a row holds is text on the page, and nothing of it ran.
    assert page.value("document.querySelectorAll('#side img, #side script, #legend img').length") == 0
    assert page.value("document.title") == "Map of table"
    # Rows that match are drawn among those that don't.
    shades = "new Set(new Uint32Array(ctx.getImageData(0, 0, canvas.width, canvas.height).data.buffer)).size"
    ask = "$('query').value = 'cats'; search(); data.labels = []; paint();"
    assert page.value(f"(() => {{ {ask} return {shades} }})()") > 3
    page.press("Escape")
    assert page.value("selected") == -1
    x, y = page.value(
        "(() => { const box = canvas.getBoundingClientRect(); return [sx(px[20]) + box.left, sy(py[20]) + box.top] })()"
    )
    page.click(x, y)
    chosen = page.value("selected")
    assert page.value(f"Math.hypot(px[{chosen}] - px[20], py[{chosen}] - py[20]) * unitPx()") < 12
    assert page.value("document.querySelector('#side h2').textContent === data.ids[selected]")
    page.value("document.querySelector('#legend button').click()")
    assert page.value("[...Array(n).keys()].filter(isLit).length") < COUNT
    assert page.complaints == []
