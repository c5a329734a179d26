"""The board and the alerts of conf/deploy name metrics that exist, in expressions that Prometheus takes."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.telemetry.metrics import METRICS, PREFIX
from tests.telemetry.observed_runs import program

DEPLOY = Path(__file__).parents[2] / "conf" / "deploy"
BOARD: dict[str, Any] = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
RULES: list[dict[str, Any]] = yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"][0]["rules"]
EXPRESSIONS = [target["expr"] for panel in BOARD["panels"] for target in panel["targets"]]
ALL = [*EXPRESSIONS, *(rule["expr"] for rule in RULES), BOARD["templating"]["list"][1]["query"]["query"]]


def test_every_metric_that_is_named_exists():
    named = {name for text in ALL for name in re.findall(rf"{PREFIX}(\w+)", text)}
    assert named <= METRICS.keys()
    unseen = METRICS.keys() - named
    assert len(unseen) < len(METRICS) / 2, "the board shows most of what is measured"


def test_every_label_that_is_named_is_one_of_its_metric():
    for text in EXPRESSIONS:
        for labels, name in re.findall(rf"by \(([\w, ]+)\) \((?:rate\()?{PREFIX}(\w+)", text):
            assert set(labels.split(", ")) <= {"command", "table", *METRICS[name].labels}, text
    for panel in BOARD["panels"]:
        for target in panel["targets"]:
            for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
                assert re.search(rf"by \([\w, ]*\b{label}\b", target["expr"]), (target, label)


def test_panels_fill_the_board_and_none_lies_on_another():
    cells = [
        (x, y)
        for panel in BOARD["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) == 23
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])
    assert all(panel["datasource"]["uid"] == "${datasource}" and panel["description"] for panel in BOARD["panels"])


def test_prometheus_takes_every_expression_of_the_board(tmp_path):
    filled = [text.replace("$table", ".*").replace("$__rate_interval", "5m") for text in EXPRESSIONS]
    rules = [{"record": f"board:{number}", "expr": text} for number, text in enumerate(filled)]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "board", "rules": rules}]}))
    assert promtool("check", "rules", tmp_path / "rules.yml") == 0


def promtool(*arguments: Any) -> int:
    command = [program("promtool"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, timeout=60).returncode


def test_the_alerts_fire_when_they_should_and_only_then():
    assert [rule["alert"] for rule in RULES] == [
        "EmbeddingPipelineNoSuccess", "EmbeddingPipelineDeadLetters", "EmbeddingPipelineFeedBehind"
    ]  # fmt: skip
    assert promtool("check", "rules", DEPLOY / "alerts.yml") == 0
    assert promtool("test", "rules", DEPLOY / "alerts_test.yml") == 0


@pytest.mark.parametrize("number", range(len(RULES)))
@pytest.mark.parametrize("comparison", ["> 1e12", ">= 0"])
def test_an_alert_that_never_or_always_fires_is_found(number, comparison, tmp_path):
    rules = [dict(rule) for rule in RULES]
    rules[number]["expr"] = re.sub(r"> (24 \* 3600|0)", comparison, rules[number]["expr"])
    (tmp_path / "alerts.yml").write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": rules}]}))
    (tmp_path / "alerts_test.yml").write_text((DEPLOY / "alerts_test.yml").read_text())
    assert promtool("test", "rules", tmp_path / "alerts_test.yml") == 1
