"""`import pipeline`: embed, plan and read as a Python caller uses them, in a script and in a notebook."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

import pipeline
from pipeline.errors import ConfigError, InputError
from tests import inline
from tests.inline import read_table, same_rows, spec_of

ROOT = Path(__file__).parents[1]


def write_source(path: Path, names: list[str]) -> Path:
    rows = [{"id": name, "text": f"the market of {name}", "lang": "en" if name < "c" else None} for name in names]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def raw_spec(tmp_path: Path, model: Path) -> dict:
    return {
        "source": {"path": tmp_path / "docs.jsonl", "id": "id", "text": "text"},
        "model": {"path": str(model)},
        "table": {"path": str(tmp_path / "table"), "partition_by": ["lang"]},
    }


def test_importing_the_package_loads_neither_torch_nor_ray():
    program = "import sys, pipeline; print(sorted({'torch', 'ray', 'transformers', 'pyarrow'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "torch" not in done.stdout
    assert "ray" not in done.stdout.replace("pyarrow", "")


def test_a_mapping_a_file_and_a_spec_are_the_same_plan(tiny_model, tmp_path):
    write_source(tmp_path / "docs.jsonl", ["a", "b"])
    raw = raw_spec(tmp_path, tiny_model)
    (tmp_path / "run.yaml").write_text(json.dumps(raw, default=str))
    planned = [pipeline.plan(spec) for spec in (raw, tmp_path / "run.yaml", pipeline.RunSpec(**specs_of(raw)))]
    assert {(plan.units_to_encode, plan.changes_pending, plan.fingerprint) for plan in planned} == {
        (1, True, planned[0].fingerprint)
    }
    assert "1 to encode" in str(planned[0])
    assert not (tmp_path / "table").exists()


def specs_of(raw: dict) -> dict:
    spec = pipeline.config.from_mapping(raw)
    return {"source": spec.source, "model": spec.model, "table": spec.table}


def test_embed_then_read(tiny_model, tmp_path, ray_address):
    write_source(tmp_path / "docs.jsonl", ["a", "b", "c"])
    raw = raw_spec(tmp_path, tiny_model) | {"resources": {"ray_address": ray_address}}
    summary = pipeline.embed(raw)
    assert (summary.published, summary.counts.rows) == (True, 3)
    rows = pipeline.read(tmp_path / "table").to_table().sort_by("id")
    assert rows["id"].to_pylist() == ["a", "b", "c"]
    assert rows["lang"].to_pylist() == ["en", "en", None]
    kind = rows.schema.field("embedding").type
    assert (kind.value_type, kind.list_size) == (pa.float32(), 32)
    assert pipeline.embed(raw).published is False
    assert pipeline.plan(raw).changes_pending is False


def test_a_version_is_read_as_it_was(tiny_model, tmp_path):
    write_source(tmp_path / "docs.jsonl", ["a", "b", "c"])
    spec = spec_of(tmp_path / "docs.jsonl", tiny_model, tmp_path / "table", table={"partition_by": ["lang"]})
    inline.embed(spec)
    first = read_table(tmp_path / "table")
    write_source(tmp_path / "docs.jsonl", ["b", "d"])
    inline.embed(spec)
    old, new = pipeline.read(tmp_path / "table", 1), pipeline.read(tmp_path / "table")
    same_rows(old.to_table().sort_by("id").select(first.column_names), first)
    assert sorted(new.to_table(columns=["id"])["id"].to_pylist()) == ["b", "d"]
    assert old.count_rows(filter=pc.field("lang") == "en") == 2
    assert new.head(1, columns=["lang", "id"]).num_rows == 1


def test_reading_what_is_not_there_is_told(tmp_path, tiny_model):
    with pytest.raises(InputError, match="no published version"):
        pipeline.read(tmp_path / "nothing")
    write_source(tmp_path / "docs.jsonl", ["a"])
    inline.embed(spec_of(tmp_path / "docs.jsonl", tiny_model, tmp_path / "table"))
    with pytest.raises(InputError, match="version is '1'"):
        pipeline.read(tmp_path / "table", "1")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="has no version 7"):
        pipeline.read(tmp_path / "table", 7)
    with pytest.raises(ConfigError, match="does not exist"):
        pipeline.embed(tmp_path / "nothing.yaml")


def test_a_notebook_shows_progress_and_a_summary(tiny_model, tmp_path, ray_address):
    import nbclient
    import nbformat

    write_source(tmp_path / "docs.jsonl", [f"d{number}" for number in range(300)])
    raw = raw_spec(tmp_path, tiny_model) | {"resources": {"ray_address": ray_address}}
    cells = [
        f"import pipeline\nfrom pathlib import PosixPath\nraw = {raw!r}\npipeline.plan(raw)",
        "pipeline.embed(raw)",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": ROOT}}
    ).execute()
    plan, embed = (list(cell.outputs) for cell in notebook.cells)
    assert "1 to encode" in plan[-1]["data"]["text/plain"]
    shown = [output["data"]["text/plain"] for output in embed if output["output_type"] == "display_data"]
    assert len(shown) == 1
    assert shown[0].startswith("units 1/1  rows 300")
    assert "published version 1" in embed[-1]["data"]["text/plain"]
    assert not [output for output in embed if output["output_type"] == "stream"]
