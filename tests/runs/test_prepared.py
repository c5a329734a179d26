"""What workers are told of the size of slices, whatever the source holds."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.runs.prepare import prepare
from tests import inline
from tests.inline import spec_of


@pytest.mark.parametrize("rows", [0, 1, 3])
@pytest.mark.parametrize("encoders", [1, 64])
def test_a_slice_has_a_row_at_least_however_little_there_is_to_do(rows, encoders, tiny_model, tmp_path):
    """A slice of no rows would never come to the end of its unit."""
    table = pa.table({"id": [f"d{n}" for n in range(rows)], "text": [f"text {n}" for n in range(rows)]})
    pq.write_table(table.cast(pa.schema([("id", pa.string()), ("text", pa.string())])), tmp_path / "a.parquet")
    spec = spec_of(tmp_path / "a.parquet", tiny_model, tmp_path / "table")
    pools = inline.replace(inline.POOLS, encoders=encoders)
    assert prepare(spec, writes=False).worker_spec(pools).read.slice_rows >= 1


def test_the_models_settings_are_read_once_for_all_that_workers_are_told(tiny_model, tmp_path, monkeypatch):
    pq.write_table(pa.table({"id": ["a"], "text": ["a text"]}), tmp_path / "a.parquet")
    prepared = prepare(spec_of(tmp_path / "a.parquet", tiny_model, tmp_path / "table"), writes=False)
    read: list[str] = []
    whole = Path.read_text

    def counted(path, *arguments, **keys):
        read.append(path.name)
        return whole(path, *arguments, **keys)

    monkeypatch.setattr(Path, "read_text", counted)
    specs = [prepared.worker_spec(inline.replace(inline.POOLS, encoders=encoders)) for encoders in (1, 2, 3, 2)]
    assert specs[1] == specs[3]
    assert read.count("config.json") <= 1
