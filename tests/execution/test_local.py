"""This machine's executor: its table is that of one process, its driver loads no torch, and it leaves nothing behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import pipeline
from pipeline.config import ResourceSpec
from pipeline.execution import by_size
from pipeline.execution.by_size import ExecutorBySize
from pipeline.execution.costs import LOCAL_ENCODING_S
from pipeline.execution.local.executor import LocalExecutor
from pipeline.execution.local.pool import LOADING, STARTED_S, LocalFlow
from pipeline.execution.pools import ALONE
from pipeline.runs.prepare import prepare
from pipeline.stages.flow import EMBED
from tests import faulty, inline
from tests.chaos import processes
from tests.inline import read_table, same_rows, spec_of

ROWS = 700
LIGHT = "numpy, for a quick start with few texts"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(3):
        rows = range(number, ROWS, 3)
        lines = [json.dumps({"id": f"d{n}", "text": f"document about {n % 500}", "lang": f"l{n % 2}"}) for n in rows]
        (folder / f"{number}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize(
    "table",
    [
        pytest.param({"dtype": "float32"}, id="float32"),
        pytest.param({"dtype": "int8", "partition_by": ["lang"]}, id="int8", marks=pytest.mark.slow),
    ],
)
def test_its_table_is_that_of_one_process_and_a_second_run_finds_nothing_to_do(
    table, corpus, tiny_model, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # No graph was made on this node before.
    sections = {"table": table, "limits": {"unit_rows": 64}, "resources": {"encoders": 2}}
    spec = spec_of(corpus, tiny_model, tmp_path / "table", **sections)
    summary = pipeline.embed(spec)
    assert (summary.counts.rows, summary.counts.failed) == (ROWS, 0)
    assert summary.runs.workers.startswith("2 x 1 CPU encoders")
    assert summary.runs.workers.endswith("of this machine, without Ray (about 1 s of encoding were expected)")
    assert summary.runs.engine == "torch"
    inline.embed(spec_of(corpus, tiny_model, tmp_path / "apart", **sections))
    same_rows(read_table(tmp_path / "table"), read_table(tmp_path / "apart"), vectors=table["dtype"] == "float32")
    assert column_of(tmp_path / "table") == column_of(tmp_path / "apart")
    assert not pipeline.embed(spec).published


def column_of(table: Path) -> pa.Field:
    """The type of the vectors, in a file that workers wrote."""
    return pq.ParquetFile(min((table / "data").rglob("*.parquet"))).schema_arrow.field("embedding")


def test_a_reindex_names_who_worked_and_on_what(corpus, tiny_model, tmp_path):
    spec = spec_of(corpus, tiny_model, tmp_path / "table")
    inline.embed(spec)
    (tmp_path / "new").mkdir()
    for path in corpus.iterdir():
        (tmp_path / "new" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "new" / "3.jsonl").write_text('{"id": "new", "text": "one more", "lang": "l0"}\n')
    summary = pipeline.reindex(spec_of(f"{tmp_path}/new", tiny_model, tmp_path / "table"))
    assert (summary.counts.new, summary.to_encode) == (1, 1)
    assert "without Ray" in summary.runs.workers
    assert summary.runs.engine == LIGHT


PROGRAM = """
import json, sys, pipeline
summary = pipeline.embed(json.loads(sys.argv[1]))
print(json.dumps([summary.counts.rows, sorted({"torch", "ray", "transformers"} & set(sys.modules))]))
"""


def test_its_driver_loads_neither_torch_nor_ray(corpus, tiny_model, tmp_path):
    given = {
        "source": {"path": str(corpus), "id": "id", "text": "text"},
        "model": {"path": str(tiny_model)},
        "table": {"path": str(tmp_path / "table")},
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(given)], cwd=faulty.ROOT, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == [ROWS, []]


def test_few_texts_are_encoded_without_torch_in_any_process(corpus, tiny_model, tmp_path):
    (tmp_path / "without/torch").mkdir(parents=True)
    (tmp_path / "without/torch/__init__.py").write_text("import os; os._exit(9)")
    source = tmp_path / "source"
    shutil.copytree(corpus, source)
    given = {
        "source": {"path": str(source), "id": "id", "text": "text"},
        "model": {"path": str(tiny_model)},
        "table": {"path": str(tmp_path / "table")},
    }
    for rows in (ROWS, ROWS + 1):  # a first build, and one new row
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, json.dumps(given)], cwd=faulty.ROOT, capture_output=True, text=True,
            env=os.environ | {"PYTHONPATH": f"{tmp_path}/without"}, check=True,
        )  # fmt: skip
        assert json.loads(done.stdout)[0] == rows
        (source / "new.jsonl").write_text('{"id": "new", "text": "one more", "lang": "l0"}\n')
    inline.embed(spec_of(source, tiny_model, tmp_path / "apart"))
    same_rows(read_table(tmp_path / "table"), read_table(tmp_path / "apart"))


def test_a_model_that_needs_torch_and_an_engine_that_is_asked_for_get_it(corpus, tiny_model, tmp_path):
    asked = spec_of(corpus, tiny_model, tmp_path / "asked", model={"engine": "torch"})
    assert pipeline.embed(asked).runs.engine == "torch"
    other = shutil.copytree(tiny_model, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    assert pipeline.embed(spec_of(corpus, other, tmp_path / "needs")).runs.engine == "torch"


@pytest.mark.slow
def test_ctrl_c_ends_it_within_three_seconds_with_no_process_left(corpus, tiny_model, tmp_path):
    config = {
        "source": {"path": str(corpus), "id": "id", "text": "text"},
        "model": {"path": str(tiny_model)},
        "table": {"path": str(tmp_path / "table")},
        "resources": {"encoders": 2},
        "limits": {"unit_rows": 32},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    run = faulty.start(tmp_path, SLOW="pipeline.stages.encode:encode:0.5", COUNT_BATCHES="1")
    deadline = time.monotonic() + 60
    while not faulty.encoded(tmp_path):
        assert run.poll() is None, faulty.said(tmp_path)
        assert time.monotonic() < deadline, faulty.said(tmp_path)
        time.sleep(0.05)
    below = processes.descendants(run.pid)
    assert len(below) == 3  # one reads and writes, two encode
    pressed = time.monotonic()
    run.send_signal(signal.SIGINT)
    assert run.wait(10) == 130
    assert time.monotonic() - pressed < 3
    assert "interrupted: finished work is kept" in faulty.said(tmp_path)
    assert "Traceback" not in faulty.said(tmp_path)
    assert not [one for one in below if Path(f"/proc/{one.pid}").exists()]
    assert faulty.start(tmp_path).wait(60) == 0, faulty.said(tmp_path)
    assert read_table(tmp_path / "table").num_rows == ROWS


@pytest.mark.parametrize(
    ("form", "encoders"), [pytest.param("parquet", 2, id="rows-known"), pytest.param("jsonl", 1, id="rows-unknown")]
)
def test_encoders_start_beside_the_reader_where_rows_are_known(form, encoders, corpus, tiny_model, tmp_path):
    source = corpus
    if form == "parquet":
        source = tmp_path / "rows.parquet"
        pq.write_table(pa.table({"id": [f"{n}" for n in range(100)], "text": ["a text"] * 100}), source)
    spec = spec_of(source, tiny_model, tmp_path / "table", limits={"unit_rows": 32}, resources={"encoders": 2})
    prepared = prepare(spec, writes=False)
    pools = LocalExecutor(spec.resources).pools(prepared)
    with LocalFlow(prepared.plan.tasks, EMBED, prepared.worker_spec(pools), pools, None) as flow:
        flow._hand_out()
        assert [process.asked[0][0] for process in flow._encoders] == [LOADING] * encoders


def test_encoders_are_starved_only_by_readers_that_are_at_work(tiny_model, tmp_path):
    """One that starts is as quick as another that would be started now."""
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"id": name, "text": "a text"}) + "\n" * 2**23)
    spec = spec_of(f"{tmp_path}/*.jsonl", tiny_model, tmp_path / "table", resources={"encoders": 1})
    prepared = prepare(spec, writes=False)
    assert len(prepared.plan.tasks) > 1
    pools = LocalExecutor(spec.resources).pools(prepared)
    with LocalFlow(prepared.plan.tasks, EMBED, prepared.worker_spec(pools), pools, None) as flow:
        flow._hand_out()
        (reader,), (encoder,) = flow._lights, flow._encoders
        encoder.asked.clear()  # as if it had loaded its model
        flow._hand_out()
        assert not flow._starving
        reader.has_answered = True
        flow._hand_out()
        assert flow._starving
        reader.has_answered, reader.created = False, reader.created - STARTED_S  # Its first slice takes long.
        flow._hand_out()
        assert flow._starving
        assert flow._lights == [reader]


class Work:
    """A job of which only its length is known."""

    def __init__(self, expected_s: float) -> None:
        self.expected_s = expected_s


@pytest.mark.parametrize(
    ("resources", "seconds", "chosen"),
    [
        ({}, LOCAL_ENCODING_S, "local"),
        ({}, LOCAL_ENCODING_S + 1, "ray"),
        ({"encoders": 1, "gpus_per_encoder": 0}, 1.0, "local"),
        ({"gpus_per_encoder": 0.5}, 1.0, "ray"),
        ({"ray_address": "local"}, 1.0, "ray"),
        ({"ray_address": "10.0.0.1:6379"}, 1.0, "ray"),
    ],
)
def test_who_encodes_is_chosen_by_the_length_of_the_work(resources, seconds, chosen, monkeypatch):
    executor = ExecutorBySize(ResourceSpec(**resources))
    monkeypatch.setattr(executor, "_on_ray", lambda: "ray")
    found = executor._encoding(Work(seconds))
    assert ("ray" if found == "ray" else "local") == chosen


def test_small_pieces_never_leave_this_process(monkeypatch):
    executor = ExecutorBySize(ResourceSpec(ray_address="10.0.0.1:6379"))
    monkeypatch.setattr(executor, "_on_ray", lambda: pytest.fail("no cluster is needed"))

    class Job:
        def worker_spec(self, pools):
            assert pools == ALONE
            return None

    def pid_of(item, spec, tokenizer):
        yield item, os.getpid()

    found = executor.for_each(Job(), pid_of, [1, 2], seconds=by_size.CLUSTER_START_S)
    assert list(found) == [(1, os.getpid()), (2, os.getpid())]
