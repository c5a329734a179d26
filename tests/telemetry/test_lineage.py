"""An OpenLineage server hears of a run: a real one on the loopback, as far as HTTP goes."""

import contextlib
import dataclasses
import http.server
import json
import threading
import uuid
from collections.abc import Iterator

import pytest

from pipeline import config, progress
from pipeline.errors import ConfigError, RunError
from pipeline.runs.observed import observed
from pipeline.telemetry.lineage import dataset_name, dataset_namespace
from tests.telemetry.observed_runs import corpus, free_port, run, spec


@contextlib.contextmanager
def receiver(status: int = 201) -> Iterator[tuple[str, list[dict]]]:
    """The address of a server, and the events that it got."""
    events: list[dict] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            events.append(json.loads(body) | {"path": self.path, "key": self.headers.get("Authorization")})
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", events
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def _nobody_else_listens(monkeypatch):
    for name in ("OPENLINEAGE_URL", "OPENLINEAGE_CONFIG", "OPENLINEAGE_API_KEY", "OPENLINEAGE_DISABLED"):
        monkeypatch.delenv(name, raising=False)


def with_lineage(folder, model, url):
    return dataclasses.replace(spec(folder, model), lineage=config.LineageSpec(url=url))


def test_a_run_is_told_with_its_sources_and_what_it_made(tiny_model, tmp_path, monkeypatch):
    corpus(tmp_path, 8)
    monkeypatch.setenv("OPENLINEAGE_API_KEY", "key")
    with receiver() as (url, events):
        run(with_lineage(tmp_path, tiny_model, url))
    assert [one["eventType"] for one in events] == ["START", "COMPLETE"]
    assert {(one["path"], one["key"]) for one in events} == {("/api/v1/lineage", "Bearer key")}
    assert len({one["run"]["runId"] for one in events}) == 1
    assert uuid.UUID(events[0]["run"]["runId"]).version == 4
    assert events[0]["eventTime"] < events[1]["eventTime"]
    for one in events:
        assert one["job"]["namespace"] == "embedding-pipeline"
        assert one["job"]["name"] == f"embed {tmp_path}/table"
        assert [(item["namespace"], item["name"]) for item in one["inputs"]] == [("file", f"{tmp_path}/corpus.jsonl")]
    (output,) = events[1]["outputs"]
    assert (output["namespace"], output["name"]) == ("file", f"{tmp_path}/table")
    assert output["outputFacets"]["outputStatistics"]["rowCount"] == 8
    assert output["facets"]["version"]["datasetVersion"] == "1"


def test_a_run_that_fails_or_is_interrupted_says_why_and_no_secret(tiny_model, tmp_path):
    corpus(tmp_path, 8, bad=5)
    with receiver() as (url, events):
        with pytest.raises(RunError):
            run(with_lineage(tmp_path, tiny_model, url))
        with pytest.raises(KeyboardInterrupt), progress.run("embed"), observed(with_lineage(tmp_path, tiny_model, url)):
            raise KeyboardInterrupt
    assert [one["eventType"] for one in events] == ["START", "FAIL", "START", "ABORT"]
    assert "max_failed_rows" in events[1]["run"]["facets"]["errorMessage"]["message"]


def test_the_environment_says_who_listens_and_who_does_not(tiny_model, tmp_path, monkeypatch):
    corpus(tmp_path, 4)
    with receiver() as (url, events):
        monkeypatch.setenv("OPENLINEAGE_URL", url)
        run(spec(tmp_path, tiny_model))
        monkeypatch.setenv("OPENLINEAGE_DISABLED", "true")
        run(spec(tmp_path, tiny_model))
    assert [one["eventType"] for one in events] == ["START", "COMPLETE"]


@pytest.mark.parametrize("status", [None, 500])
def test_a_server_that_does_not_take_events_costs_a_warning_and_no_run(status, tiny_model, tmp_path, caplog):
    corpus(tmp_path, 4)
    if status is None:
        summary = run(with_lineage(tmp_path, tiny_model, f"http://127.0.0.1:{free_port()}"))
    else:
        with receiver(status) as (url, events):
            summary = run(with_lineage(tmp_path, tiny_model, url))
            assert len(events) == 1
    assert summary.published
    assert caplog.text.count("took no event") == 1


def test_data_sets_are_named_as_openlineage_does():
    for place, namespace, name in (
        ("/data/x", "file", "/data/x"),
        ("file:///data/x", "file", "/data/x"),
        ("s3://bucket/a/b", "s3://bucket", "a/b"),
        ("gs://bucket", "gs://bucket", "/"),
        ("https://u:secret@h/x?sig=secret", "https://***@h", "x?***"),
        ("dataset:owner/name", "dataset", "owner/name"),
        ("s3://bucket/a#b?/*.jsonl", "s3://bucket", "a#b?/*.jsonl"),
        ("/data/a#b?.jsonl", "file", "/data/a#b?.jsonl"),
    ):
        assert (dataset_namespace(place), dataset_name(place)) == (namespace, name)


def test_a_wrong_key_is_told():
    raw = {"source": {"path": "a", "text": "b"}, "model": {"path": "m"}, "table": {"path": "t"}}
    with pytest.raises(ConfigError, match=r"lineage\.url is no http"):
        config.from_mapping(raw | {"lineage": {"url": "localhost:5000"}})
    with pytest.raises(ConfigError, match=r"lineage\.namespace is empty"):
        config.from_mapping(raw | {"lineage": {"namespace": ""}})
