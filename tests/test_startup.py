"""A run with nothing to do is quick: it loads neither Ray nor torch."""

import re
import subprocess
import sys

import yaml

from tests.inline import embed, spec_of


def test_a_run_with_nothing_to_do_loads_neither_ray_nor_torch(tiny_model, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"id": "1", "text": "one"}\n')
    embed(spec_of(tmp_path / "a.jsonl", tiny_model, tmp_path / "table"))
    config = {
        "source": {"path": str(tmp_path / "a.jsonl"), "id": "id", "text": "text"},
        "model": {"path": str(tiny_model)},
        "table": {"path": str(tmp_path / "table")},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-X", "importtime", "-m", "jobs.embed", str(tmp_path / "run.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("nothing to do")
    loaded = {name.split(".")[0] for name in re.findall(r"\| +([\w.]+)$", done.stderr, re.MULTILINE)}
    assert "pyarrow" in loaded
    assert not loaded & {"ray", "torch", "transformers", "openvino"}
