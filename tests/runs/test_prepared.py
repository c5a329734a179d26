"""What workers are told of the size of slices, whatever the source holds."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.execution.costs import INT8_TIMES
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
    pools = replace(inline.POOLS, encoders=encoders)
    assert prepare(spec, writes=False).worker_spec(pools).read.slice_rows >= 1


TEXTS = [f"text {number} on {number % 7} things" for number in range(2000)]


def prepared_of(path, model, tmp_path, **sections):
    spec = spec_of(path, model, tmp_path / "table", **sections)
    return prepare(spec, writes=False)


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_what_a_run_expects_of_a_parquet_file_does_not_depend_on_its_compression(codec, tiny_model, tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": TEXTS, "text": TEXTS}), path, compression=codec, use_dictionary=False)
    prepared = prepared_of(path, tiny_model, tmp_path)
    read = prepared.worker_spec(inline.POOLS).read
    assert read.expected_chars == pytest.approx(2 * sum(map(len, TEXTS)), rel=0.2)  # An id is as long as its text.
    two = prepared.worker_spec(replace(inline.POOLS, tokenizers=2)).read
    assert two.expected_chars == pytest.approx(read.expected_chars / 2, abs=1)


def test_encoding_in_int8_is_expected_to_take_less(tiny_model, tmp_path):
    pq.write_table(pa.table({"id": TEXTS, "text": TEXTS}), tmp_path / "a.parquet")
    prepared = prepared_of(tmp_path / "a.parquet", tiny_model, tmp_path)
    vectors = replace(prepared.vectors, encoder=replace(prepared.encoder, precision="int8"))
    assert replace(prepared, vectors=vectors).expected_core_s == pytest.approx(prepared.expected_core_s / INT8_TIMES)


def test_the_models_settings_are_read_once_for_all_that_workers_are_told(tiny_model, tmp_path, monkeypatch):
    pq.write_table(pa.table({"id": ["a"], "text": ["a text"]}), tmp_path / "a.parquet")
    prepared = prepare(spec_of(tmp_path / "a.parquet", tiny_model, tmp_path / "table"), writes=False)
    read: list[str] = []
    whole = Path.read_text

    def counted(path, *arguments, **keys):
        read.append(path.name)
        return whole(path, *arguments, **keys)

    monkeypatch.setattr(Path, "read_text", counted)
    specs = [prepared.worker_spec(replace(inline.POOLS, encoders=encoders)) for encoders in (1, 2, 3, 2)]
    assert specs[1] == specs[3]
    assert read.count("config.json") <= 1
