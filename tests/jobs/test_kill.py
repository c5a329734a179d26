"""SIGKILL of the driver at each step of a run: the same command, started again, gives the table of an undisturbed run."""

import json
import signal
import subprocess
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests import faulty
from tests.inline import read_table, same_rows

ROWS, UNIT_ROWS, ENCODERS, IN_FLIGHT, WRITERS = 1200, 100, 1, 2, 1
MOMENTS = {
    "reading": "pipeline.stages.read:_tokenize:4",
    "encoding": "pipeline.stages.encode:encode:4",
    "between the parts and the record": "pipeline.stages.write:create:4",
    "before the commit": "pipeline.table.publication:Publication.create:1",
    "after the commit, before materialising": "pipeline.table.materialise:materialise:1",
    "amid materialising": "pipeline.table.materialise:_copy_lists:1",
}
QUICK = {"encoding", "after the commit, before materialising"}
"""The others take a quarter of a minute each; tests/simulation and `make chaos` stop there, too."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Four files, one much larger than a slice, with some equal texts."""
    folder = tmp_path_factory.mktemp("corpus")
    rows = [{"id": f"doc-{n}", "text": f"document about {n % 1100}", "label": n % 3} for n in range(ROWS)]
    for index, (first, stop) in enumerate([(0, 700), (700, 900), (900, 1000), (1000, ROWS)]):
        pq.write_table(pa.Table.from_pylist(rows[first:stop]), folder / f"{index}.parquet")
    return folder


@pytest.fixture(scope="module")
def undisturbed(corpus, tiny_model, tmp_path_factory) -> pa.Table:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert run(write_config(folder, corpus, tiny_model), folder).returncode == 0
    return comparable(folder)


@pytest.mark.parametrize(
    ("moment", "ray_address"),
    [
        # Half a minute each on Ray; `make chaos` kills there at all of them.
        *(pytest.param(moment, "local", marks=pytest.mark.slow, id=f"{moment}-ray") for moment in MOMENTS),
        *(
            pytest.param(moment, None, marks=() if moment in QUICK else pytest.mark.slow, id=f"{moment}-here")
            for moment in MOMENTS
        ),
    ],
)
def test_a_killed_run_started_again_gives_the_table_of_an_undisturbed_one(
    moment, ray_address, corpus, tiny_model, undisturbed, tmp_path
):
    config = write_config(tmp_path, corpus, tiny_model, ray_address)
    killed = run(config, tmp_path, FAULT=MOMENTS[moment])
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    again = run(config, tmp_path)
    assert again.returncode == 0, again.stderr
    same_rows(comparable(tmp_path), undisturbed)
    assert faulty.encoded(tmp_path) - ROWS <= (ENCODERS * IN_FLIGHT + WRITERS + 1) * UNIT_ROWS
    leftovers = [str(path) for path in (tmp_path / "table" / "staging").rglob("*.json") if "records" in path.parts]
    assert leftovers == []
    third = run(config, tmp_path)
    assert json.loads(third.stdout)["published"] is False


def write_config(folder: Path, corpus: Path, model: Path, ray_address: str | None = None) -> Path:
    config = {
        "source": {"path": str(corpus), "id": "id", "text": "text"},
        "model": {"path": str(model)},
        "table": {"path": str(folder / "table"), "partition_by": ["label"]},
        "resources": {"encoders": ENCODERS, "writers": WRITERS, "ray_address": ray_address},
        "limits": {"unit_rows": UNIT_ROWS},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder / "config.yaml"


def run(config: Path, faults: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        faulty.command(config.parent),
        env=faulty.environment(faults, **environment),
        cwd=faulty.ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def comparable(folder: Path) -> pa.Table:
    """All live rows, with the path of their file: the number in `source` is a run's own."""
    sources = pq.read_table(next((folder / "table" / "meta" / "sources").glob("*.parquet"))).to_pylist()
    paths = {row["source"]: row["path"] for row in sources}
    rows = read_table(folder / "table")
    return rows.append_column("path", pa.array([paths[number] for number in rows["source"].to_pylist()]))
