"""Metrics of a run: over HTTP while it works, in a file afterwards, and named as Prometheus wants them."""

import dataclasses
import json
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs import feed as feed_job
from pipeline import config, progress
from pipeline.errors import ConfigError, InputError, RunError, TableBusy
from pipeline.progress import Phase, Progress
from pipeline.runs import feed_work
from pipeline.runs.observed import exit_code, observed
from pipeline.telemetry import exposition
from pipeline.telemetry.metrics import METRICS, PREFIX, RunMetrics, labels_of, merged
from tests.telemetry.observed_runs import corpus, free_port, program, run, spec

OWN = {"command": "embed", "table": "t"}


def values(path: Path) -> dict[str, float]:
    """What the file says of this command, by names and the label that only some of them have."""
    found = {}
    for (name, labels), value in exposition.read_file(str(path)).items():
        more = [text for label, text in labels if label not in ("command", "table", "version")]
        found[" ".join([name, *more])] = value
    return found


def test_a_file_has_the_figures_of_the_run_that_ended(tiny_model, tmp_path):
    corpus(tmp_path, 10, bad=1)
    path = tmp_path / "run.prom"
    before = time.time()
    given_spec = dataclasses.replace(spec(tmp_path, tiny_model), metrics=config.MetricsSpec(textfile=str(path)))
    summary = run(given_spec)
    found = values(path)
    assert summary.exit_code == found["run_exit_code"] == 3
    assert found["run_in_progress"] == 0
    assert found["rows_recorded_total"] == found["rows_planned"] == 10
    assert found["dead_letters_total"] == found["table_dead_letters"] == 1
    assert (found["table_version"], found["table_rows"]) == (1, 9)
    assert found["units_recorded_total"] == found["units_planned"] == 1
    assert {name for name in found if name.startswith("stage_seconds")} == {
        f"stage_seconds_total {stage}" for stage in ("read", "tokenize", "encode", "write")
    }
    assert found["stage_seconds_total encode"] > 0
    assert found["phase_seconds_total committing"] > 0
    assert before <= found["run_start_timestamp_seconds"] <= found["run_end_timestamp_seconds"] <= time.time()
    assert found["last_success_timestamp_seconds"] == found["run_end_timestamp_seconds"]
    assert not any(name.startswith(("run_phase", "rows_queued")) for name in found)
    assert path.stat().st_mode & 0o777 == 0o644
    assert [item.name for item in tmp_path.iterdir() if "prom" in item.name or item.name.startswith(".")] == [
        "run.prom"
    ]


def test_a_file_keeps_what_others_told_and_when_it_last_went_well(tiny_model, tmp_path):
    corpus(tmp_path, 8)
    path = tmp_path / "run.prom"
    given_spec = dataclasses.replace(spec(tmp_path, tiny_model), metrics=config.MetricsSpec(textfile=str(path)))
    run(given_spec)
    table = str(tmp_path / "table")
    other = labels_of({"command": "reindex", "table": table})
    told = exposition.read_file(str(path))
    exposition.write_file(str(path), told | {("run_exit_code", other): 1.0})
    well = values(path)["last_success_timestamp_seconds"]
    corpus(tmp_path, 8, bad=5)
    with pytest.raises(RunError):
        run(given_spec)
    found = exposition.read_file(str(path))
    assert found["run_exit_code", other] == 1
    own = labels_of({"command": "embed", "table": table})
    assert found["run_exit_code", own] == 1
    assert found["last_success_timestamp_seconds", own] == well
    assert found["table_version", own] == 1
    corpus(tmp_path, 8, bad=2)
    assert run(given_spec).exit_code == 3
    found = exposition.read_file(str(path))
    assert found["dead_letters_total", own] == found["table_dead_letters", own] == 2
    assert found["last_success_timestamp_seconds", own] > well


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return answer.read().decode()


def test_a_run_is_scraped_while_it_works_and_the_port_is_closed_when_it_has_ended(tiny_model, tmp_path):
    port = free_port()
    given_spec = dataclasses.replace(spec(tmp_path, tiny_model), metrics=config.MetricsSpec(port=port))
    threads = set(threading.enumerate())
    with progress.listening(shown=False), progress.run("embed") as own, observed(given_spec):
        own.expect(units=2, rows=10)
        own.begin(Phase.ENCODING)
        own.encoded(6, 60)
        own.recorded(4, 1, True, {"encode": 1.5})
        page = scrape(port)
    labels = f'command="embed",table="{tmp_path / "table"}"'
    for line in (
        f"{PREFIX}rows_encoded_total{{{labels}}} 6.0",
        f"{PREFIX}rows_recorded_total{{{labels}}} 4.0",
        f"{PREFIX}dead_letters_total{{{labels}}} 1.0",
        f'{PREFIX}rows_queued{{command="embed",queue="encode",table="{tmp_path / "table"}"}} 4.0',
        f'{PREFIX}rows_queued{{command="embed",queue="record",table="{tmp_path / "table"}"}} 2.0',
        f'{PREFIX}run_phase{{command="embed",phase="encoding",table="{tmp_path / "table"}"}} 1.0',
        f'{PREFIX}stage_seconds_total{{command="embed",stage="encode",table="{tmp_path / "table"}"}} 1.5',
    ):
        assert line in page
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), timeout=5)
    assert set(threading.enumerate()) <= threads


def test_what_would_keep_metrics_from_being_read_is_told_before_any_work(tiny_model, tmp_path):
    corpus(tmp_path, 4)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        for metrics, error, said in (
            ({"port": taken}, ConfigError, rf"127\.0\.0\.1:{taken} .*in use.*: give a free port in metrics\.port"),
            ({"port": free_port(), "address": "203.0.113.9"}, ConfigError, r"203\.0\.113\.9"),
            ({"textfile": str(tmp_path / "no" / "run.prom")}, InputError, r"metrics\.textfile .*its folder"),
        ):
            with pytest.raises(error, match=said):
                run(dataclasses.replace(spec(tmp_path, tiny_model), metrics=config.MetricsSpec(**metrics)))
    assert not (tmp_path / "table").exists()


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        ({"port": 0}, r"metrics\.port is 0"),
        ({"port": 70000}, r"metrics\.port is 70000"),
        ({"textfile": "run.txt"}, r"metrics\.textfile is 'run\.txt'; .*\.prom"),
        ({"address": ""}, r"metrics\.address is empty"),
    ],
)
def test_a_wrong_key_is_told(metrics, said):
    raw = {"source": {"path": "a", "text": "b"}, "model": {"path": "m"}, "table": {"path": "t"}}
    with pytest.raises(ConfigError, match=said):
        config.from_mapping(raw | {"metrics": metrics})


STEPS = st.one_of(
    st.tuples(st.just("expect"), st.integers(0, 50), st.integers(0, 50)),
    st.tuples(st.just("encoded"), st.integers(0, 50), st.integers(0, 50)),
    st.tuples(st.just("recorded"), st.integers(0, 50), st.integers(0, 5)),
)


@given(st.lists(STEPS, max_size=30))
def test_counters_are_the_sums_of_what_was_told_and_never_go_back(steps):
    metrics = RunMetrics("embed", "t", "1")
    told = Progress("embed", (metrics,))
    encoded = recorded = failed = 0
    before: dict = {}
    for step, first, second in steps:
        if step == "expect":
            told.expect(units=first, rows=second)
        elif step == "encoded":
            told.encoded(first, second)
            encoded += first
        else:
            told.recorded(first, second, True)
            recorded, failed = recorded + first, failed + second
        now = metrics.samples()
        counters = {key: value for key, value in now.items() if METRICS[key[0]].kind == "counter"}
        assert all(counters[key] >= value for key, value in before.items())
        before = counters
    now = metrics.samples()
    assert now["rows_encoded_total", labels_of(OWN)] == encoded
    assert now["rows_recorded_total", labels_of(OWN)] == recorded
    assert now["dead_letters_total", labels_of(OWN)] == failed


def test_what_is_kept_of_a_file_is_of_others_or_lasts():
    other = labels_of({"command": "feed", "table": "t"})
    own = labels_of(OWN)
    before = {
        ("run_exit_code", other): 1.0, ("run_exit_code", own): 1.0, ("rows_planned", own): 7.0,
        ("last_success_timestamp_seconds", own): 5.0,
    }  # fmt: skip
    assert merged(before, {("run_exit_code", own): 0.0}, "embed", "t") == {
        ("run_exit_code", other): 1.0, ("run_exit_code", own): 0.0, ("last_success_timestamp_seconds", own): 5.0,
    }  # fmt: skip


def test_a_file_that_is_none_of_ours_is_no_hindrance(tmp_path):
    path = tmp_path / "x.prom"
    for content in ("", "nonsense {{{", 'node_load1{a="b"} 3\n', f'{PREFIX}other{{command="a",table="b"}} 1\n'):
        path.write_text(content)
        assert exposition.read_file(str(path)) == {}
    assert exposition.read_file(str(tmp_path / "none.prom")) == {}


def test_the_exit_code_is_the_one_that_the_command_ends_with():
    told = Progress("embed")
    assert exit_code(told, None) == 0
    told.know(exit_code=3)
    assert exit_code(told, None) == 3
    assert exit_code(told, ConfigError("x")) == 2
    assert exit_code(told, TableBusy("x")) == 0
    assert exit_code(told, ValueError("x")) == 1
    assert exit_code(told, KeyboardInterrupt()) == 130
    assert exit_code(told, KeyboardInterrupt(143)) == 143


def test_every_name_and_help_is_as_prometheus_wants_them(tmp_path):
    samples = {
        (name, labels_of(OWN | dict.fromkeys(metric.labels, "x"))): 1.0 for name, metric in METRICS.items()
    }  # fmt: skip
    path = tmp_path / "all.prom"
    assert exposition.write_file(str(path), samples) == ""
    checked = subprocess.run(
        [program("promtool"), "check", "metrics"], input=path.read_text(), capture_output=True, text=True, timeout=30
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")
    assert path.read_text().count("# HELP") == len(METRICS)
    assert exposition.read_file(str(path)) == samples


def test_a_label_may_hold_anything(tmp_path):
    labels = labels_of({"command": "embed", "table": 'a"b\\c\nd é'})
    exposition.write_file(str(tmp_path / "x.prom"), {("table_rows", labels): 1.0})
    assert exposition.read_file(str(tmp_path / "x.prom")) == {("table_rows", labels): 1.0}


# --- a real Prometheus


@pytest.mark.slow
def test_a_real_prometheus_scrapes_a_run(tiny_model, tmp_path):
    port, own = free_port(), free_port()
    scrapes = [{"job_name": "embedding-pipeline", "scrape_interval": "200ms", "scrape_timeout": "200ms",
                "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}]  # fmt: skip
    (tmp_path / "prometheus.yml").write_text(json.dumps({"scrape_configs": scrapes}))
    server = subprocess.Popen(
        [program("prometheus"), f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data",
         f"--web.listen-address=127.0.0.1:{own}", "--log.level=error"],
    )  # fmt: skip
    try:
        given_spec = dataclasses.replace(spec(tmp_path, tiny_model), metrics=config.MetricsSpec(port=port))
        with progress.listening(shown=False), progress.run("embed") as told, observed(given_spec):
            told.expect(units=1, rows=100)
            deadline, rate = time.monotonic() + 60, f"rate({PREFIX}rows_recorded_total[1m])"
            while not asked(own, rate):  # It takes two scrapes.
                assert time.monotonic() < deadline
                told.encoded(2, 20)
                told.recorded(2, 0, False)
                time.sleep(0.1)
            assert asked(own, f"max({PREFIX}run_in_progress)") == 1
            assert 0 < asked(own, f"{PREFIX}rows_recorded_total") <= told.recorded_rows
    finally:
        server.terminate()
        server.wait(30)


def asked(port: int, query: str) -> float | None:
    try:
        address = f"http://127.0.0.1:{port}/api/v1/query?" + urllib.parse.urlencode({"query": query})
        with urllib.request.urlopen(address, timeout=5) as answer:
            found = json.load(answer)["data"]["result"]
    except OSError:
        return None
    return float(found[0]["value"][1]) if found else None


def test_a_file_that_could_not_be_written_in_the_end_is_a_warning(tiny_model, tmp_path, caplog):
    corpus(tmp_path, 4)
    folder = tmp_path / "collector"
    folder.mkdir()
    given_spec = dataclasses.replace(
        spec(tmp_path, tiny_model), metrics=config.MetricsSpec(textfile=str(folder / "run.prom"))
    )
    with progress.listening(shown=False), progress.run("embed"), observed(given_spec):
        folder.rmdir()
    assert "metrics.textfile could not be written" in caplog.text


# --- feeds


def test_a_feed_says_how_far_its_store_is_behind(tiny_model, tmp_path, monkeypatch):
    path = tmp_path / "run.prom"
    raw = {
        "source": {"path": str(tmp_path / "corpus.jsonl"), "id": "id", "text": "text"},
        "model": {"path": str(tiny_model)},
        "table": {"path": str(tmp_path / "table")},
        "feeds": {"files": {"store": "files", "url": str(tmp_path / "store"), "name": "docs", "options": {"format": "faiss"}}},
        "metrics": {"textfile": str(path)},
    }  # fmt: skip
    configured = tmp_path / "run.yaml"
    configured.write_text(json.dumps(raw))
    corpus(tmp_path, 8)
    run(config.from_mapping(raw))
    assert feed_job.main([str(configured)]) == 0
    found = values(path)
    assert (found["feed_rows_behind files"], found["feed_table_version files"], found["table_version"]) == (0, 1, 1)
    assert (found["feed_rows_sent_total files"], found["feed_exit_code files"]) == (8, 0)
    corpus(tmp_path, 11)
    run(config.from_mapping(raw))
    monkeypatch.setattr(feed_work.Work, "do", _refuse)
    assert feed_job.main([str(configured), "files", "--dry-run"]) == 10
    assert values(path)["feed_rows_behind files"] == 0, "a look at it changes nothing"
    with pytest.raises(RunError):
        feed_job.main([str(configured)])
    found = values(path)
    assert (found["feed_rows_behind files"], found["feed_table_version files"], found["feed_exit_code files"]) == (
        3,
        1,
        1,
    )
    monkeypatch.undo()
    assert feed_job.main([str(configured)]) == 0
    found = values(path)
    assert (found["feed_rows_behind files"], found["feed_table_version files"], found["feed_exit_code files"]) == (
        0,
        2,
        0,
    )
    assert {dict(labels)["command"] for _, labels in exposition.read_file(str(path))} == {"embed", "feed"}


def _refuse(*_):
    raise RunError("the store is away")
