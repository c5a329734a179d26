"""What workers are told of the size of slices, whatever the source holds."""

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
