"""The benchmarks' own arithmetic, and that a contestant answers."""

import contextlib
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

import pipeline
from benchmarks import arithmetic, corpora, flow, gpu, peers, quality, reindex, results, seeded, turns
from benchmarks.processes import Process
from benchmarks.turns import Settings, Turn
from pipeline.config import ModelSpec
from pipeline.encoder.tokenizer import Tokenizer
from pipeline.model.folder import encoder_spec
from pipeline.table import diff


def test_flops_are_those_that_torch_counts(tiny_model):
    model = transformers.BertModel.from_pretrained(tiny_model, add_pooling_layer=False, attn_implementation="eager")
    lengths = [3, 17, 30]
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        for length in lengths:
            model(input_ids=torch.ones(1, length, dtype=torch.long))
    assert arithmetic.flops_of(lengths, tiny_model) == counter.get_total_flops()


def test_medians_and_ratios_of_the_same_round():
    base = [Turn(documents=100, seconds=seconds) for seconds in (1.0, 2.0, 4.0)]
    taken = [Turn(documents=100, seconds=seconds, padding=0.5) for seconds in (0.5, 0.5, 1.0)]
    row = results.row("x", taken, base, tokens=1000, flops=4e9, ceiling=1e10, memory_bytes=0, start_s=0.0)
    assert (row.docs_per_s, row.least, row.most) == (200, 100, 200)
    assert (row.ratio, row.tokens_per_s, row.peak_share, row.padding) == (4.0, 2000, 0.8, 0.5)


def test_wrong_vectors_make_no_best_peer():
    def row(name, docs_per_s, cosine, precision="float32"):
        turns = [Turn(documents=docs_per_s, seconds=1.0)]
        facts = {"tokens": 1, "flops": 1.0, "ceiling": None, "memory_bytes": 0, "start_s": 0.0}
        return results.row(name, turns, turns, precision=precision, cosines=[cosine], **facts)

    rows = [
        row("encode", 100, 1.0),
        row("wrong", 900, 0.9),
        row("right", 200, 0.99999),
        row("job", 400, 1.0),
        row("alone", 9, 1.0, "int8"),
    ]
    section = results.Section(
        corpus="c",
        rows=1,
        distinct_rows=1,
        tokens=1,
        lengths={},
        best_batch=None,
        sweep={},
        ceilings={},
        contestants=rows,
    )
    found = results.beside_best_peers(section, ["job", "alone"])
    assert found.best_peers == {"float32": "right"}
    assert [item.ratio_to_best_peer for item in found.contestants] == [0.5, 4.5, 1.0, 2.0, None]
    assert "0.9000 (0.900), wrong" in results.table(found)


def test_a_contestant_in_memory_leaves_the_vectors_that_are_asked_for(tmp_path):
    corpora.write(corpora.Corpus(name="c", texts=[f"{'x' * number}" for number in range(1, 41)]), tmp_path / "c")
    sizes = []

    def encode(texts, size):
        sizes.append(size)
        return [[len(text)] for text in texts]

    settings = turns.Settings(corpus=str(tmp_path / "c"), model="", threads=1, batch_size=0)
    contestant = turns.in_memory(encode, settings)
    turn = contestant(save={"path": str(tmp_path / "kept.npy"), "rows": [3, 0, 39]})
    assert np.load(tmp_path / "kept.npy").tolist() == [[4], [1], [40]]
    assert turn.documents == 40
    assert turn.parts["batch"] == sizes[-1]
    assert set(turns.BATCH_SIZES) <= set(sizes)


def test_a_peer_whose_packages_are_missing_is_left_out(monkeypatch, tmp_path, capsys):
    (tmp_path / "peers-onnx").mkdir()
    monkeypatch.setattr("sys.argv", ["peers", "--environments", str(tmp_path)])
    names = peers._arguments().only
    assert "fastembed" in names
    assert "job int8" in names
    assert "ST OpenVINO int8" not in names
    told = capsys.readouterr().out
    assert f"ST OpenVINO int8 is left out: the packages for it are not at '{tmp_path}/peers-openvino'" in told
    assert "make bench" in told


def test_a_share_is_spread_over_the_corpus():
    whole = corpora.demo_texts()
    some = corpora.load(corpora.DEMO, corpora.ROOT, 0.25, None).texts
    places = [whole.index(text) for text in some]
    assert len(some) == round(len(whole) / 4)
    assert places[0] == 0
    assert places[-1] > 0.98 * len(whole)


@pytest.mark.slow
def test_contestants_embed_every_text_in_every_turn(tiny_model, tmp_path):
    corpora.write(corpora.Corpus(name="c", texts=["some text"] * 40), tmp_path)
    settings = Settings(corpus=str(tmp_path), model=str(tiny_model), threads=1)
    for name in ("bare", "encode", "ray", "job"):
        with contextlib.closing(Process(name, settings)) as process:
            taken = [process.turn(), process.turn(save={"path": str(tmp_path / f"{name}.npy"), "rows": [0, 39]})]
        assert [turn.documents for turn in taken] == [40, 40]
        assert all(turn.seconds > 0 for turn in taken)
        np.testing.assert_allclose(np.load(tmp_path / f"{name}.npy"), np.load(tmp_path / "bare.npy"), atol=1e-4)


@pytest.mark.slow
def test_a_contestant_that_fails_says_why(tiny_model, tmp_path):
    with pytest.raises(SystemExit, match=r"model\.precision"):
        Process("bare", Settings(corpus=str(tmp_path), model=str(tiny_model), threads=1, precision="float7"))


@pytest.mark.parametrize("kind", seeded.LENGTHS)
def test_seeded_texts_have_the_lengths_they_were_made_for(tmp_path, kind):
    folder = seeded.build(seeded.SIZES["tiny"], tmp_path / "model")
    lengths = seeded.lengths_of(kind, 300, 512)
    tokens = Tokenizer(encoder_spec(ModelSpec(path=str(folder))), 1).tokenize(seeded.texts_of(lengths, 200))
    assert tokens.lengths.tolist() == lengths
    assert max(lengths) <= seeded.LENGTHS[kind][-1]
    middle = seeded.LENGTHS[kind][len(seeded.LENGTHS[kind]) // 2]
    assert sorted(lengths)[150] == pytest.approx(middle, rel=0.2)


QUICK = ("--device", "cpu", "--quick", "--rounds", "1", "--precisions", "bfloat16")


@pytest.mark.slow
def test_the_gpu_benchmark_tries_itself_out_without_one(tmp_path, capsys):
    gpu.main([*QUICK, "--lengths", "short", "news", "--budgets", "1024", "2048", "--out", str(tmp_path)])
    (written,) = tmp_path.glob("*-gpu-quick.json")
    sections = json.loads(written.read_text())["sections"]
    assert [section["lengths"] for section in sections] == ["short", "news"]
    for section in sections:
        names = [item["name"] for item in section["contestants"]]
        assert names == ["padded", "packed", "packed, recorded, 1024", "packed, recorded, 2048", "encode"]
        for item in section["contestants"]:
            assert item["error"] == ""
            assert item["docs_per_s"] > 0
            assert item["least_cosine"] > 0.99
        assert section["engine"] == "PackedTorchEngine"
        assert section["contestants"][1]["fill"] == 1
    assert capsys.readouterr().out.count("packed, recorded, 2048") == 2
    assert "packed, recorded, 2048" in written.with_suffix(".md").read_text()


def test_a_contestant_that_fails_leaves_the_others_their_turns(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "BUDGET_TOKENS", {})
    gpu.main([*QUICK, "--lengths", "short", "--out", str(tmp_path)])
    (written,) = tmp_path.glob("*.json")
    padded, packed = json.loads(written.read_text())["sections"][0]["contestants"][:2]
    assert padded["error"] == "KeyError: 'cuda'"
    assert packed["docs_per_s"] > 0


@pytest.mark.parametrize(("given", "words"), [([], "finds no GPU"), (["--device", "cpu"], "add --quick")])
def test_the_gpu_benchmark_without_a_gpu_says_so(given, words, capsys):
    if torch.cuda.is_available() and not given:
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit) as ended:
        gpu.main(given)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_one_key_in_a_hundred_differs():
    live, wanted = (reindex.make_keys(0, 1000, side) for side in (diff.LIVE_FIRST, diff.WANTED))
    found = diff.compare(diff.joined([live, wanted]), np.array([diff.GONE], np.int8))
    assert (len(found.matches), len(found.upserts), len(found.duplicates)) == (990, 10, 0)
    assert sorted(found.matches["index"].tolist() + found.upserts["index"].tolist()) == list(range(1000))


def test_cosines_are_of_texts_that_have_vectors() -> None:
    exact = np.array([[1, 0], [0, 2], [0, 0]], np.float32)
    int8 = np.array([[3, 4], [0, 1], [0, 0]], np.float32)
    np.testing.assert_allclose(quality._cosines(exact, int8), [0.6, 1.0])


def test_work_inside_of_other_work_counts_for_itself_alone():
    clock = flow.Clock()

    class Work:
        def outer(self):
            _spin(0.05)
            self.inner()

        def inner(self):
            _spin(0.1)

        def steps(self):
            for _ in range(3):
                _spin(0.02)
                yield

    clock.watch(Work, "outer", "outer")
    clock.watch(Work, "inner", "inner")
    clock.watch(Work, "steps", "steps")
    Work().outer()
    for _ in Work().steps():
        _spin(0.02)
    assert clock.seconds["outer"] == pytest.approx(0.05, abs=0.02)
    assert clock.seconds["inner"] == pytest.approx(0.1, abs=0.02)
    assert clock.seconds["steps"] == pytest.approx(0.06, abs=0.02)


def _spin(seconds):
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


def test_a_metronome_takes_rows_at_its_rate_and_tells_when(tmp_path):
    script = (
        "from pipeline.encoder.encoder import build_encoder\n"
        "from types import SimpleNamespace\n"
        "import numpy as np\n"
        "engine = build_encoder(SimpleNamespace(dim=8), 'cpu', 1).engine\n"
        "answers = [engine.start(np.zeros((100, 4), np.int32), np.full(100, 4)) for _ in range(2)]\n"
        "assert [answer().shape for answer in answers] == [(100, 8), (100, 8)]\n"
    )
    environment = os.environ | flow.with_metronome(1000, str(tmp_path))
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
    (first, second) = flow.beats_of(tmp_path)
    assert first[2] == second[2] == 100
    assert first[1] - first[0] == pytest.approx(0.1)
    assert second[0] == first[1]


def test_a_seeded_static_model_gives_unit_vectors_of_its_size(tmp_path):
    folder = seeded.build_static(tmp_path / "model", 24)
    vectors = pipeline.encode({"path": str(folder)}, ["w1 w2", "w2 w1", "w3"])
    assert vectors.shape == (3, 24)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1)
    assert np.allclose(vectors[0], vectors[1], atol=1e-6)
