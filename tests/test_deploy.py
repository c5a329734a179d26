"""What starts a run by itself: each file is what its scheduler takes, and the command in it is one of ours."""

import ast
import importlib
import importlib.metadata
import importlib.util
import itertools
import re
import shlex
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from jobs.main import COMMAND

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "conf" / "deploy"
CONFIG = ROOT / "conf" / "reindex-nightly.yaml"
NEEDED = set(re.findall(r"\$\{(\w+)\}", CONFIG.read_text()))
"""Variables that the configuration reads."""
FIELDS = [(0, 59), (0, 23), (1, 31), (1, 12), (0, 7)]

JOB = {
    "activeDeadlineSeconds": int, "backoffLimit": int, "rayClusterSpec": dict, "submitterPodTemplate": dict, "metadata": dict,
    "clusterSelector": dict, "submitterConfig": dict, "managedBy": str, "deletionStrategy": dict, "entrypoint": str,
    "runtimeEnvYAML": str, "jobId": str, "submissionMode": str, "entrypointResources": str, "entrypointNumCpus": float,
    "entrypointNumGpus": float, "ttlSecondsAfterFinished": int, "shutdownAfterJobFinishes": bool, "suspend": bool,
}  # fmt: skip
"""The fields of a RayJob's spec, as KubeRay names them; an operator silently drops others."""
CLUSTER = {
    "rayVersion": str, "headGroupSpec": dict, "workerGroupSpecs": list, "enableInTreeAutoscaling": bool, "suspend": bool,
    "autoscalerOptions": dict, "headServiceAnnotations": dict, "managedBy": str, "gcsFaultToleranceOptions": dict,
    "authOptions": dict,
}  # fmt: skip
GROUP = {"rayStartParams": dict, "template": dict}
WORKERS = GROUP | {"groupName": str, "replicas": int, "minReplicas": int, "maxReplicas": int, "numOfHosts": int}
CRON_JOB = {
    "schedule": str, "timeZone": str, "concurrencyPolicy": str, "startingDeadlineSeconds": int, "jobTemplate": dict,
    "successfulJobsHistoryLimit": int, "failedJobsHistoryLimit": int, "suspend": bool,
}  # fmt: skip


@pytest.fixture(autouse=True)
def keys(monkeypatch):
    for name in NEEDED:
        monkeypatch.setenv(name, "x")


@pytest.fixture
def corpus(tmp_path) -> Path:
    rows = pa.table({"id": ["1"], "title": ["one"], "body": ["of many"], "url": ["x"], "lang": ["en"]})
    pq.write_table(rows, tmp_path / "rows.parquet")
    return tmp_path / "rows.parquet"


def check_command(words: list[str], corpus: Path, tiny_model: Path) -> list[str]:
    """One of our commands, with flags that it takes and the nightly configuration, planned for real on a small corpus.
    Returns the overrides that it has."""
    command, verb, config, *flags = words
    assert Path(command).name == COMMAND
    assert Path(config).name == CONFIG.name
    name = f"jobs.{verb}"
    assert importlib.util.find_spec(name) is not None
    here = [f"source.path={corpus}", f"table.path={corpus.parent / 'table'}", f"model.path={tiny_model}"]
    here += ["source.storage_options={}", "table.storage_options={}", "resources.ray_address=null"]
    sets = [word for override in here for word in ("--set", override)]
    assert importlib.import_module(name).main([str(CONFIG), *flags, *sets, "--dry-run"]) == 10
    joined = [flag.removeprefix("--set=") for flag in flags if flag.startswith("--set=")]
    return [value for flag, value in itertools.pairwise(flags) if flag == "--set"] + joined


def check_fields(section: dict[str, Any], known: dict[str, type]) -> None:
    for name, value in section.items():
        assert name in known, name
        assert isinstance(value, known[name]), f"{name} is {value!r}"


def check_cron(schedule: str) -> None:
    """Five fields, each a number in its range, or any."""
    fields = schedule.split()
    assert len(fields) == len(FIELDS)
    for field, (least, most) in zip(fields, FIELDS, strict=True):
        assert field == "*" or least <= int(field) <= most, schedule


def test_the_crontab_line_runs_our_command_with_the_keys_it_needs(corpus, tiny_model):
    text = (DEPLOY / "reindex-nightly.crontab").read_text()
    assert text.endswith("\n")  # cron drops a line without one
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert [line.split("=")[0] for line in lines[:-1]] == ["MAILTO", "SHELL"]
    assert "%" not in lines[-1]  # a line end to cron
    found = re.fullmatch(r"((?:[\d*]+ ){5}) *(cd /\S+) && set -a && \. (/\S+) && (.+) >> (/\S+)", lines[-1])
    assert found is not None, lines[-1]
    check_cron(found[1])
    (metrics,) = check_command(shlex.split(found[4]), corpus, tiny_model)
    assert re.fullmatch(r"metrics\.textfile=/\S+\.prom", metrics)


def test_the_ray_job_is_one_of_kuberay_with_our_ray_our_command_and_keys_from_a_secret(corpus, tiny_model):
    job = yaml.safe_load((DEPLOY / "ray-job.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert job["metadata"]["generateName"].endswith("-")  # `kubectl create` makes another one every night
    spec = job["spec"]
    check_fields(spec, JOB)
    assert spec["shutdownAfterJobFinishes"] is True
    # KubeRay puts the entrypoint into a shell's line, and Ray into another.
    assert not set(spec["entrypoint"]) & set("'\"$;&|<>\\`\n")
    assert check_command(spec["entrypoint"].split(), corpus, tiny_model) == [
        "resources.ray_address=auto", "metrics.port=9464", "metrics.address=0.0.0.0"
    ]  # fmt: skip
    assert (
        spec["rayClusterSpec"]["headGroupSpec"]["template"]["metadata"]["annotations"]["prometheus.io/port"] == "9464"
    )
    cluster = spec["rayClusterSpec"]
    check_fields(cluster, CLUSTER)
    assert cluster["authOptions"] == {"mode": "token"}
    check_fields(cluster["headGroupSpec"], GROUP)
    for workers in cluster["workerGroupSpecs"]:
        check_fields(workers, WORKERS)
        assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    pinned = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]
    assert cluster["rayVersion"] == pinned == importlib.metadata.version("ray")
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    (containers,) = zip(*(group["template"]["spec"]["containers"] for group in groups), strict=True)
    assert len({container["image"] for container in containers}) == 1
    for group in groups:
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
    for container in containers:
        assert {variable["name"] for variable in container["env"]} >= NEEDED
        for variable in container["env"]:
            assert variable.keys() == {"name", "valueFrom"}
            assert variable["valueFrom"].keys() == {"secretKeyRef"}
            assert variable["valueFrom"]["secretKeyRef"].keys() == {"name", "key"}
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys()


def test_the_cron_job_creates_the_ray_job_and_may_do_nothing_else():
    account, role, binding, job = yaml.safe_load_all((DEPLOY / "cron-job.yaml").read_text())
    assert [item["kind"] for item in (account, role, binding, job)] == [
        "ServiceAccount", "Role", "RoleBinding", "CronJob"
    ]  # fmt: skip
    assert role["rules"] == [{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create"]}]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert [subject["name"] for subject in binding["subjects"]] == [account["metadata"]["name"]]
    assert job["apiVersion"] == "batch/v1"
    check_fields(job["spec"], CRON_JOB)
    check_cron(job["spec"]["schedule"])
    pod = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == account["metadata"]["name"]
    assert pod["restartPolicy"] in ("Never", "OnFailure")
    (container,), (volume,) = pod["containers"], pod["volumes"]
    (mount,) = container["volumeMounts"]
    assert mount["name"] == volume["name"]
    assert "env" not in container
    command = shlex.join(container["command"])
    assert command == f"kubectl create -f {mount['mountPath']}/ray-job.yaml"
    comment = (DEPLOY / "cron-job.yaml").read_text()
    assert f"create configmap {volume['configMap']['name']} --from-file=conf/deploy/ray-job.yaml" in comment


def test_the_pod_runs_our_image_and_command_as_the_images_own_user(corpus, tiny_model):
    job = yaml.safe_load((DEPLOY / "one-pod.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "CronJob")
    check_fields(job["spec"], CRON_JOB)
    check_cron(job["spec"]["schedule"])
    template = job["spec"]["jobTemplate"]["spec"]["template"]
    (container,) = template["spec"]["containers"]
    assert "command" not in container
    dockerfile = (ROOT / "Dockerfile").read_text()
    (entrypoint,) = re.findall(r'ENTRYPOINT \["(.+)"\]', dockerfile)
    assert check_command([entrypoint, *container["args"]], corpus, tiny_model) == [
        "metrics.port=9464", "metrics.address=0.0.0.0"
    ]  # fmt: skip
    assert f"USER {template['spec']['securityContext']['runAsUser']}\n" in dockerfile
    assert template["metadata"]["annotations"]["prometheus.io/port"] == str(container["ports"][0]["containerPort"])
    given = set(re.findall(r"--from-literal=(\w+)=", (DEPLOY / "one-pod.yaml").read_text()))
    assert given >= NEEDED
    cluster = yaml.safe_load((DEPLOY / "ray-job.yaml").read_text())["spec"]["rayClusterSpec"]["headGroupSpec"]
    assert container["image"] == cluster["template"]["spec"]["containers"][0]["image"]


def test_the_airflow_dag_submits_our_command_and_holds_no_secret(corpus, tiny_model):
    text = (DEPLOY / "airflow_dag.py").read_text()
    calls = {
        ast.unparse(call.func): {keyword.arg: keyword.value for keyword in call.keywords}
        for call in ast.walk(ast.parse(text))
        if isinstance(call, ast.Call)
    }
    dag, task = calls["DAG"], calls["BashOperator"]
    check_cron(ast.literal_eval(dag["schedule"]))
    assert ast.literal_eval(dag["catchup"]) is False
    submit, command = ast.literal_eval(task["bash_command"]).split(" -- ")
    assert submit == "ray job submit"
    assert check_command(shlex.split(command), corpus, tiny_model) == ["resources.ray_address=auto"]
    for name, value in ast.literal_eval(task["env"]).items():
        assert re.fullmatch(r"\{\{ conn\.ray\.\w+ \}\}", value), name


def test_the_airflow_dag_is_one_where_airflow_is_installed():
    pytest.importorskip("airflow")
    spec = importlib.util.spec_from_file_location("airflow_dag", DEPLOY / "airflow_dag.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
