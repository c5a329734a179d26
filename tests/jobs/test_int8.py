"""Tables computed in int8: quantised once, near float32, resumed and searched with the same model; a poor one is refused."""

import json

import numpy as np
import pyarrow.compute as pc
import pytest

import pipeline
from pipeline.encoder import int8
from pipeline.errors import InputError, RunError
from pipeline.runs import prepare
from tests import inline
from tests.inline import read_table, same_rows, vectors_of

WORDS = [f"word{number}" for number in range(60)]


@pytest.fixture
def corpus(tmp_path):
    chance = np.random.default_rng(0)
    rows = [
        {"id": f"{number:03d}", "text": " ".join(chance.choice(WORDS, chance.integers(1, 30)))} for number in range(240)
    ]
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name, some in (("a", rows[:120]), ("b", rows[120:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    return folder


def int8_spec(corpus, model, folder, /, **sections):
    sections["model"] = {"precision": "int8"} | sections.get("model", {})
    return inline.spec_of(corpus, model, folder, **sections)


def quantised_files(table):
    return sorted(path.name for path in (table / "meta" / "calibration").rglob("int8*"))


def test_vectors_are_near_float32s_and_the_version_names_the_model(corpus, tiny_model, tmp_path):
    version = inline.embed(int8_spec(corpus, tiny_model, tmp_path / "int8"))
    inline.embed(inline.spec_of(corpus, tiny_model, tmp_path / "float32"))
    found, exact = (vectors_of(read_table(tmp_path / name)) for name in ("int8", "float32"))
    cosines = (found * exact).sum(axis=1)
    assert 0.99 <= cosines.mean() < 1 - 1e-7
    named = version.embeddings[0]["int8"]
    known = json.loads((tmp_path / "int8" / named["path"]).read_text())
    assert named["digest"] == known["digest"]
    assert known["agreement"]["mean_cosine"] >= 0.99
    assert len(quantised_files(tmp_path / "int8")) == 2
    assert version.fingerprint_of["encoder"]["int8"] == known["digest"]


def test_a_run_that_died_goes_on_with_the_same_model(corpus, tiny_model, tmp_path):
    spec = int8_spec(corpus, tiny_model, tmp_path / "table", limits={"unit_rows": 40})
    with pytest.raises(inline.Died):
        inline.embed(spec, stop_after=2)
    files = quantised_files(tmp_path / "table")
    version = inline.embed(spec)
    assert quantised_files(tmp_path / "table") == files
    assert version.counts.rows == 240
    assert version.counts.encoded <= 240


def test_another_unit_size_and_a_later_file_change_nothing(corpus, tiny_model, tmp_path):
    spec = int8_spec(corpus, tiny_model, tmp_path / "table")
    inline.embed(spec)
    before = read_table(tmp_path / "table")
    (corpus / "c.jsonl").write_text(json.dumps({"id": "new", "text": "word1 word2"}) + "\n")
    version = inline.embed(int8_spec(corpus, tiny_model, tmp_path / "table", limits={"unit_rows": 7}))
    assert (version.counts.new, version.counts.unchanged) == (1, 240)
    after = read_table(tmp_path / "table")
    same_rows(before, after.filter(pc.not_equal(after["id"], "new")))


def test_a_reindex_encodes_what_changed_with_the_tables_model(corpus, tiny_model, tmp_path):
    spec = int8_spec(corpus, tiny_model, tmp_path / "table")
    first = inline.embed(spec)
    rows = [json.loads(line) for line in (corpus / "b.jsonl").read_text().splitlines()]
    rows[3]["text"] = "word3 word4 word5"
    (corpus / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    encoded = []
    version = inline.reindex(spec, encoded=encoded)
    assert sum(encoded) == 1
    assert version.fingerprint == first.fingerprint
    assert (version.counts.changed, version.counts.unchanged) == (1, 239)


def test_with_int8_codes_the_ranges_are_those_of_int8_vectors(corpus, tiny_model, tmp_path):
    spec = int8_spec(corpus, tiny_model, tmp_path / "table", table={"dtype": "int8"})
    planned = pipeline.plan(spec)
    assert planned.fingerprint is None
    version = inline.embed(spec)
    assert version.embeddings[0]["calibration"] is not None
    assert version.embeddings[0]["int8"] is not None
    assert pipeline.plan(spec).fingerprint == version.fingerprint
    assert prepare.prepare(spec, writes=True).plan.changes_nothing


def test_a_model_that_loses_too_much_is_refused_before_any_row(corpus, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(int8, "LEAST_COSINE", 1.0)
    with pytest.raises(
        RunError, match=r"in int8 this model loses too much: on \d+ texts .* set model.precision to float32"
    ):
        inline.embed(int8_spec(corpus, tiny_model, tmp_path / "table"))
    # Nothing stays but the lease, which is given back.
    assert {path.name for path in (tmp_path / "table" / "meta").iterdir()} == {"leases"}


@pytest.mark.parametrize("damage", ["gone", "damaged"])
def test_a_table_whose_model_is_gone_or_damaged_says_so(damage, corpus, tiny_model, tmp_path, monkeypatch):
    spec = int8_spec(corpus, tiny_model, tmp_path / "table")
    inline.embed(spec)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))  # another node
    (corpus / "c.jsonl").write_text(json.dumps({"id": "new", "text": "word1 word2"}) + "\n")
    for path in (tmp_path / "table" / "meta" / "calibration").rglob("int8-*.zip"):
        path.unlink() if damage == "gone" else path.write_bytes(path.read_bytes()[:-9] + b"123456789")
    with pytest.raises(InputError, match=f"the table's int8 model in .*zip is {damage}: put it back"):
        inline.embed(spec)
    for path in (tmp_path / "table" / "meta" / "calibration").rglob("int8.json"):
        path.unlink()
    with pytest.raises(InputError, match=r"the int8 model that the table was built with stands in .* gone"):
        prepare.prepare(spec, writes=True)


def test_float32_and_int8_never_meet_in_a_table(corpus, tiny_model, tmp_path):
    inline.embed(int8_spec(corpus, tiny_model, tmp_path / "table"))
    with pytest.raises(InputError, match=r'encoder\.precision was "int8", is "float32"'):
        prepare.prepare(inline.spec_of(corpus, tiny_model, tmp_path / "table"), writes=True)
    inline.embed(inline.spec_of(corpus, tiny_model, tmp_path / "exact"))
    with pytest.raises(InputError, match=r'encoder\.precision was "float32", is "int8"'):
        prepare.prepare(int8_spec(corpus, tiny_model, tmp_path / "exact"), writes=True)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"precision": "int8", "engine": "torch"}, "int8 is computed by openvino"),
        ({"precision": "float16", "engine": "openvino"}, "computes in float32 or int8"),
    ],
)
def test_what_can_t_be_is_said_before_any_work(model, words, corpus, tiny_model, tmp_path):
    spec = inline.spec_of(corpus, tiny_model, tmp_path / "table", model=model)
    with pytest.raises(InputError, match=words):
        prepare.prepare(spec, writes=True)


def test_a_job_computes_in_int8_and_its_table_is_searched_and_verified(corpus, tiny_model, ray_address, tmp_path):
    # On the cluster of all tests: Ray 2.60 loses the first actor of a process that goes to another cluster and comes back.
    resources = {"ray_address": ray_address, "encoders": 1}
    spec = int8_spec(corpus, tiny_model, tmp_path / "table", resources=resources)
    summary = pipeline.embed(spec)
    assert summary.counts.rows == 240
    assert summary.runs.engine.startswith("openvino")
    assert "the model was quantised to int8 on" in "\n".join(summary.notes)
    assert not pipeline.embed(spec).published

    from jobs.search import search
    from pipeline.runs.published import published
    from pipeline.runs.verify import verify

    text = json.loads((corpus / "a.jsonl").read_text().splitlines()[5])
    assert search(spec, text["text"], 1).column("id").to_pylist() == [text["id"]]
    checked = verify(published(spec), 100, 0)
    assert checked.passed, str(checked)
    assert checked.precision == "int8"


def test_gpus_are_left_alone(corpus, tiny_model, tmp_path):
    spec = int8_spec(corpus, tiny_model, tmp_path / "table", resources={"gpus_per_encoder": 1})
    with pytest.raises(InputError, match=r"precision 'int8' runs on CPUs: set\s+resources.gpus_per_encoder to 0"):
        prepare.prepare(spec, writes=True)
