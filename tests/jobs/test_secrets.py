"""A secret of storage_options or of the environment is seen by the store alone, whether runs succeed or fail."""

import base64
import io
import os
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pipeline.storage import Folder
from tests import faulty
from tests.chaos import processes
from tests.proxy import fault_proxy

SECRET = "xK+9/vQ7-marker-Zw3=="
TOKEN = "tok/marker+5a8b2c=="
FORMS = [
    form
    for secret in (SECRET, TOKEN)
    for form in (secret, urllib.parse.quote(secret, safe=""), urllib.parse.quote(secret), secret.replace("/", "\\/"))
]
# Three alignments of base64, without the ends that depend on what stands beside it.
FORMS += [
    base64.b64encode(b" " * shift + secret.encode()).decode()[4:-4] for secret in (SECRET, TOKEN) for shift in range(3)
]

CAPTURE = """
import sys, ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
from ray._private import state
from ray._private.worker import global_worker
gcs = global_worker.gcs_client
for space in (None, b"fun", b"session", b"job", b"cluster", b"usage_stats", b"package", b"dashboard", b"_ray_internal"):
    for key in gcs.internal_kv_keys(b"", space):
        sys.stdout.buffer.write(key + b" " + (gcs.internal_kv_get(key, space) or b"") + b"\\n")
sys.stdout.buffer.write(repr((state.actors(), state.jobs(), state.workers())).encode())
try:
    stats = ray.get_actor("datasets_stats_actor", namespace="_dataset_stats_actor")
    sys.stdout.buffer.write(repr(ray.get(stats.get_datasets.remote())).encode())
except ValueError:
    sys.stdout.buffer.write(b"no stats actor")
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("outcome", ["done", "poison", "store fails", "no bucket"])
def test_no_log_record_manifest_or_state_of_ray_holds_a_secret(outcome, moto, tiny_model, tmp_path):
    from ray.cluster_utils import Cluster

    bucket = moto.make_bucket(f"secrets-{outcome.replace(' ', '-')}")
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(f'{{"id": {n}, "text": "text {n}{" 中" * (n == 7)}"}}\n' for n in range(800)))
    Folder(f"{bucket}/source", moto.storage_options).write("a.jsonl", corpus.read_bytes())
    with fault_proxy(moto.storage_options["endpoint_url"], faults=("slowdown",)) as proxy:
        options = {"key": "test-key", "secret": "${STORE_SECRET}", "token": "${STORE_TOKEN}", "endpoint_url": proxy.url}
        place = "s3://no-such-bucket" if outcome == "no bucket" else bucket
        config = {
            "source": {"path": f"{bucket}/source/a.jsonl", "id": "id", "text": "text", "storage_options": options},
            "model": {"path": str(tiny_model)},
            "table": {"path": f"{place}/table", "storage_options": options},
            "limits": {"unit_rows": 100},
        }
        faults = {"SLOW": "pipeline.encoder.engines.torch:TorchEngine.start:0.3"}
        faults |= {"POISON": f"{token_of('中', tiny_model)}:kill"} if outcome == "poison" else {}
        environment = faulty.environment(tmp_path, STORE_SECRET=SECRET, STORE_TOKEN=TOKEN, **faults)
        # Workers of a cluster have its environment, not the driver's.
        with pytest.MonkeyPatch.context() as patched:
            for name, value in faulty.environment(tmp_path, **faults).items():
                patched.setenv(name, value)
            cluster = Cluster(
                initialize_head=True,
                head_node_args={"num_cpus": 3, "object_store_memory": 2**28, "include_dashboard": False},
            )
        try:
            config["resources"] = {"ray_address": cluster.address, "encoders": 1}
            (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
            with (tmp_path / "log").open("wb") as log:
                run = subprocess.Popen(
                    faulty.command(tmp_path), env=environment, cwd=faulty.ROOT, stdout=log, stderr=log
                )
            titles: set[str] = set()
            captured = b""
            while run.poll() is None:
                titles |= {one.title for one in processes.descendants(os.getpid())}
                if not captured and (tmp_path / "encoded").exists():
                    command = [sys.executable, "-c", CAPTURE, cluster.address]
                    captured = subprocess.run(command, capture_output=True, env=environment, check=True).stdout
                    proxy.rate = 1.0 if outcome == "store fails" else 0.0
                time.sleep(0.1)
            expected = {"done": 0, "poison": 3, "store fails": 1, "no bucket": 2}
            assert run.returncode == expected[outcome], (tmp_path / "log").read_text()
            session = Path(cluster.head_node.get_session_dir_path())
            logs = {str(path): path.read_bytes() for path in session.rglob("*") if path.is_file()}
        finally:
            cluster.shutdown()
    assert captured or outcome == "no bucket"
    assert b"EncodeStage" in captured or outcome == "no bucket"
    assert len(logs) > 5
    places = {"output": (tmp_path / "log").read_bytes(), "titles": "\n".join(titles).encode(), "Ray's state": captured}
    for name, content in (places | logs | dict(files_of(bucket, moto.storage_options))).items():
        for form in FORMS:
            assert form.encode() not in content, f"{form} in {name}"


def files_of(bucket: str, options: dict) -> Iterator[tuple[str, bytes]]:
    """Every file below the table, Parquet as its schema and values."""
    folder = Folder(f"{bucket}/table", options)
    for info in folder.list(temporary=True):
        content = folder.read(info.path) or b""
        if content[:4] == b"PAR1":
            rows = pq.read_table(io.BytesIO(content))
            texts = [name for name in rows.column_names if name != "embedding"]
            content = f"{rows.schema.metadata} {rows.select(texts).to_pylist()}".encode()
        yield info.path, content


def token_of(text: str, model: Path) -> int:
    from pipeline.config import ModelSpec
    from pipeline.encoder.tokenizer import Tokenizer
    from pipeline.model.folder import encoder_spec

    return int(Tokenizer(encoder_spec(ModelSpec(path=str(model))), 1).tokenize([text]).ids[1])


def test_specs_and_errors_do_not_show_storage_options():
    from pipeline.config import from_mapping

    options = {"key": "k", "secret": SECRET, "client_kwargs": {"token": TOKEN}}
    spec = from_mapping(
        {
            "source": {"path": "s3://b/x", "id": "id", "text": "text", "storage_options": options},
            "model": {"path": "m", "storage_options": options},
            "table": {"path": "s3://b/t", "storage_options": options},
        }
    )
    shown = f"{spec!r} {spec} {Folder('s3://b/t', options)!r} {pa.scalar(str(spec.source))}"
    assert SECRET not in shown
    assert TOKEN not in shown
